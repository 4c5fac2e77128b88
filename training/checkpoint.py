"""Checkpoints of a run: everything that resuming needs, in checkpoint.pt, and the checkpoint before it in previous.pt.

A checkpoint is written under another name, synced and renamed, so that a crash at any moment leaves a whole one.
"""

import os
import sys

import torch

from utils import UserError, atomic_path, load_tensors, save_tensors

FILES = "checkpoint.pt", "previous.pt"  # the newest and the one before it
NEW_PARTS: dict = {"critic_scale": {}, "model_scale": {}}  # states of the parts that older checkpoints lack
FORMAT = 5  # checkpoints of another format are refused
RESTART_HINT = "--resume False starts a new run and keeps the old folder under another name"


def has_checkpoint(folder):
    return any(os.path.exists(os.path.join(folder, name)) for name in FILES)


def write_checkpoint(folder, state):
    """Save `state`, a dictionary of tensors and plain values, as the newest checkpoint."""
    newest, previous = (os.path.join(folder, name) for name in FILES)
    with atomic_path(newest, sync=True) as temporary:
        save_tensors(state | {"format": FORMAT}, temporary)
        if os.path.exists(newest):
            os.replace(newest, previous)  # a crash from here on leaves previous.pt, which is whole


def read_checkpoint(folder, warn=True, hint=RESTART_HINT):
    """The newest checkpoint that is undamaged, with its "file" of FILES; `warn` on stderr if that is the previous one.

    UserError, which ends with `hint`, if there is none, or it has another FORMAT.
    """
    problems = []
    for name in FILES:
        try:
            state = load_tensors(os.path.join(folder, name))
            kimg = f"{state.get('images', 0) / 1000:.1f} kimg"
        except Exception as error:  # PyTorch raises nearly anything for a damaged file
            text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:60]}".removesuffix(": ")
            problems.append(f"{name} is damaged or missing ({text})")
            continue
        if state.get("format") != FORMAT:
            raise UserError(
                f"{os.path.join(folder, name)} was saved by another version of this code (format {state.get('format')}, here "
                f"{FORMAT}); {hint}"
            )
        if problems and warn:
            print(f"warning: {folder}: {problems[0]}; resuming from the checkpoint before it, at {kimg}", file=sys.stderr)
        return NEW_PARTS | state | {"file": name}
    raise UserError(f"{folder}: {' and '.join(problems)}; {hint}")


def restore(parts, state):
    """Load every part, {name: object with load_state_dict}, from `state`; raises what PyTorch raises if one does not fit.

    Adam's moments get the strides of their weights: fused Adam walks through both in memory order.
    """
    for name, part in parts.items():
        part.load_state_dict(state[name])
        for weight, moments in part.state.items() if isinstance(part, torch.optim.Optimizer) else ():
            for key, value in moments.items():
                if value.shape == weight.shape:
                    moments[key] = torch.empty_like(weight).copy_(value)
