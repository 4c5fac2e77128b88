"""The folder of a training run: what is written into it, and how a run resumes from it. train.py decides when.

config.json  checkpoint.pt  previous.pt  generator.pt  best.pt  losses.csv  evaluations.csv  losses.png
loss_proportion.png  alerts.log  lock  fake_vs_real/epoch_NNNN.png  fake_vs_real/RxR.png  styles/epoch_NNNN.npy

Of a new run, the checkpoint is written first: a folder with anything else and no checkpoint holds a model that nothing may
overwrite. The pictures are drawn by train.py.
"""

import argparse
import contextlib
import csv
import json
import math
import os
from operator import itemgetter

import numpy as np
import torch
from tqdm import tqdm

from data.fingerprints import merge_records
from data.folders import some_of
from lock import Held, Lock
from training.checkpoint import FILES, RESTART_HINT, has_checkpoint, read_checkpoint, restore, write_checkpoint
from training.growth import fade_state, restore_fade, upscaled
from training.recipes import COLUMNS, RECIPES, Recipe, as_flag
from utils import (
    CLASSES,
    UserError,
    atomic_path,
    check_network,
    load_tensors,
    make_folder,
    naming,
    random_stream,
    reason,
    save_tensors,
)

NAMES = (  # of what a run writes, but for its lock
    *(*FILES, "config.json", "generator.pt", "best.pt", "losses.csv", "evaluations.csv", "losses.png", "loss_proportion.png"),
    *("alerts.log", "fake_vs_real", "styles"),
)
STYLES_SAVED = 512  # fixed latents that are mapped to w in styles/
FIXED = "resolution", "channel_base", "channel_max", "mapping_layers"  # settings of the networks, which a run cannot change
FREE = "grow", "loss", *(name for name in Recipe._fields if name not in FIXED), "mirror", "augment", "seed", "amp"


class RunFolder:
    """Writes the files of a run so that a reader or a crash never meets half of one, and reads them to resume.

    config: what config.json holds; tables: {"losses": columns, "evaluations": columns}; processes: only the leading one writes,
    the others read; fingerprints: `training_record` of data/fingerprints.py, which generator.pt keeps, or None.
    rows: {name of a table: its rows, as lists}.
    """

    def __init__(self, folder, config, tables, processes, fingerprints=None):
        self.folder, self.config, self.tables, self.processes = folder, config, tables, processes
        self.rows, self.fingerprints = {name: [] for name in tables}, fingerprints
        self.exists = has_run(folder)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def resume(self, run, new_state):
        """The TrainingState of the newest undamaged checkpoint, made by new_state(resolution).

        The RunState `run` resumes from it too, and the tables are cut there. UserError if the checkpoint fits neither.
        """
        saved = read_checkpoint(self.folder, warn=self.processes.leading)
        self.check_owner(saved)
        try:
            run.resume(saved)
            state = new_state(run.stage.resolution)
            restore(state.parts, saved)
            restore_fade(state.critic, saved["fade"])
            restore_random_stream(state, saved)
        except Exception as error:
            raise UserError(
                f"{self.path('checkpoint.pt')} does not fit these networks ({type(error).__name__}); {RESTART_HINT}"
            ) from None
        for name in self.tables:
            self.rows[name] = self.read_table(name, saved["images"])
        if self.processes.leading:
            self.make_folders_and_tables()
        return state

    def check_owner(self, saved):
        """UserError if the checkpoint, or generator.pt, was copied here from another run: the next save would overwrite a model."""
        files, copied = {saved["file"]: saved}, None
        with contextlib.suppress(Exception):  # missing or damaged: it is written again
            files["generator.pt"] = load_tensors(self.path("generator.pt"))
        for name, content in files.items():
            if content.get("classes", self.config["classes"]) != self.config["classes"]:
                copied = f"{name} was trained on {' and '.join(content['classes'])}"
        reached = {name: content.get("images", 0) / 1000 for name, content in files.items()}
        if saved["file"] == FILES[0] and reached.get("generator.pt", 0) > reached[FILES[0]]:
            copied = f"generator.pt is newer ({reached['generator.pt']:.1f} kimg) than {FILES[0]} ({reached[FILES[0]]:.1f})"
        if copied:
            raise UserError(f"{self.folder}: {copied}, so one of them was copied here; {RESTART_HINT}")

    def read_table(self, name, images):
        """Rows of a table up to so many images, without any that a crash cut short or that no float32 could hold."""
        rows, largest = [], torch.finfo(torch.float32).max
        with contextlib.suppress(OSError, ValueError, csv.Error, KeyError), open(self.path(name + ".csv"), newline="") as file:
            reader = csv.reader(file)
            names = next(reader, ())
            for values in reader:
                row = dict(zip(names, map(float, values)))
                if len(values) == len(names) and row["images"] <= images and not any(abs(x) > largest for x in row.values()):
                    rows.append([row[column] for column in self.tables[name]])
        return rows

    def log(self, name, row):
        """Append a row, {column: number}, to a table in memory and on disk."""
        if not self.processes.leading:
            return
        values = [row[column] for column in self.tables[name]]
        self.rows[name].append(values)
        path = self.path(name + ".csv")
        with naming(path), open(path, "a", newline="") as file:
            csv.writer(file).writerow(_format(values))

    def alert(self, line):
        """Print a line about this run above the progress bar, and append it to alerts.log."""
        if self.processes.leading:
            tqdm.write(f"{self.folder}: {line}")
            with naming(self.path("alerts.log")), open(self.path("alerts.log"), "a") as file:
                file.write(line + "\n")

    def make_folders_and_tables(self):
        make_folder(self.path("fake_vs_real"), "--model_dir")
        make_folder(self.path("styles"), "--model_dir")
        for name, columns in self.tables.items():
            with atomic_path(self.path(name + ".csv")) as path, open(path, "w", newline="") as file:
                csv.writer(file).writerows([columns, *map(_format, self.rows[name])])

    def save(self, state, run):
        """Write the TrainingState and RunState as a checkpoint, the generator and its styles; the rest before the first step.

        Collective. Returns the styles, as `fixed_styles` gives them, or None in processes that write nothing.
        """
        self.processes.check_equal(state.averaged_weights)
        streams = self.processes.gather(state.rng.get_state())
        if not self.processes.leading:
            return None
        saved = {name: part.state_dict() for name, part in state.parts.items()} | run.state_dict()
        saved |= {"fade": fade_state(state.critic.fade), "rng": streams, "rng_device": state.rng.device.type}
        write_checkpoint(self.folder, saved | {"classes": self.config["classes"]})
        if run.step == 0:
            with atomic_path(self.path("config.json")) as path, open(path, "w") as file:
                json.dump(self.config, file, indent=2)
            self.make_folders_and_tables()
        self.save_generator("generator.pt", state.averaged, run.images)
        styles = fixed_styles(state.averaged)
        with atomic_path(self.path("styles", f"epoch_{run.epoch:04d}.npy")) as path:
            np.save(path, styles.squeeze(0).cpu().numpy())
        return styles

    def save_generator(self, name, averaged, images):
        """Write the averaged generator, always at the run's final resolution: in a lower stage it draws upscaled images."""
        state = {
            "network": self.config["network"],
            "classes": self.config["classes"],
            "images": images,
            "mirror": self.config["flags"]["mirror"],
            "weights": upscaled(averaged, self.config["network"]).state_dict(),
        }
        if self.fingerprints is not None:
            state["fingerprints"] = torch.from_numpy(self.fingerprints)
        with atomic_path(self.path(name), sync=True) as path:
            save_tensors(state, path)

    def log_evaluation(self, row, averaged):
        """Append a row to evaluations.csv; save the averaged generator as best.pt if its KID is the lowest so far."""
        kids = [values[self.tables["evaluations"].index("kid")] for values in self.rows["evaluations"]]
        if row["kid"] < min(kids, default=math.inf):
            self.save_generator("best.pt", averaged, row["images"])
        self.log("evaluations", row)


def earlier_record(*folders):
    """The union of the fingerprints that generators in `folders` keep; a missing or damaged one has none."""
    found = [np.empty(0, np.int32)]
    for folder in folders:
        with contextlib.suppress(Exception):
            found.append(load_tensors(os.path.join(folder, "generator.pt"))["fingerprints"].numpy())
    return merge_records(*found)


def _format(row):
    return [f"{value:.6g}" if isinstance(value, float) else value for value in row]


def restore_random_stream(state, saved):
    """Continue a process's stream; a new one if the number of processes or the kind of device has changed."""
    streams, device, processes = saved["rng"], state.rng.device, state.processes
    if len(streams) == processes.size and saved["rng_device"] == device.type:
        state.rng.set_state(streams[processes.rank])
    else:
        new = state.new_random_stream(f"training from image {saved['images']} on {processes.size}", device)
        state.rng.set_state(new.get_state())


@torch.no_grad()
def fixed_styles(averaged):
    """w of latents that are the same in every run and at every epoch, of each class: [classes or 1, STYLES_SAVED, w_dim]."""
    mapping = averaged["mapping"]
    z = torch.randn(STYLES_SAVED, mapping.z_dim, generator=random_stream("fixed latents", 0)).to(mapping.w_mean.device)
    classes = [torch.full([STYLES_SAVED], label, device=z.device) for label in range(mapping.num_classes)]
    return torch.stack([mapping(z, mapping.labels_of(z, label)) for label in classes] or [mapping(z)])


# ---------------------------------------------------------------------------------------------------------------------
# Which run a folder holds


def run_files(folder):
    """Names in `folder` of what a run writes, but for its lock; a folder counts if there is anything in it."""
    paths = {name: os.path.join(folder, name) for name in NAMES}
    return [name for name, path in paths.items() if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path))]


def has_run(folder):
    """Whether `folder` holds a run that can be resumed. UserError if it holds anything of a run without a checkpoint."""
    names = run_files(folder)
    if names and not has_checkpoint(folder):
        raise UserError(
            f"{folder} holds {some_of(names)} of a run but no checkpoint.pt to resume it from, and is left as it is: choose "
            "another --model_dir for a new run, or --resume False, which renames this folder"
        )
    if names == [FILES[0]] and read_checkpoint(folder, warn=False).get("images") == 0:
        return False  # killed during its first save, before config.json
    return bool(names)


def find_run(folder, resume):
    """What a start means for `folder`: "resume" or "new", or without `resume` "rename" or "new"; UserError as in `has_run`."""
    if resume:
        return "resume" if has_run(folder) else "new"
    return "rename" if run_files(folder) else "new"


def check_place(folder, data):
    """UserError if a run in `folder` would lie among the slices of `data`, {flag: folder of AD/ and NC/, or None}."""

    def within(path, other):
        return path == other or path.startswith(os.path.join(other, ""))

    place = os.path.realpath(folder)
    for flag, path in data.items():
        if path is None:
            continue
        data_dir = os.path.realpath(path)
        if within(data_dir, place) or any(within(place, os.path.join(data_dir, name)) for name in (*CLASSES, "CN")):
            text = f"the run's folder would be {folder}, which belongs to the slices of {flag} {path}"
            raise UserError(f"--model_dir: {text}: choose another")


def lock_folder(folder):
    """The lock.Lock of a run's folder, held by this process until it ends or releases it; UserError if another holds it.

    Removes temporary files that a killed process left behind.
    """
    try:
        lock = Lock(os.path.join(folder, "lock"))
    except Held as held:
        raise UserError(
            f"{folder}: another train.py is training this run ({held.holder or 'just started'}): wait for it, stop it, or choose "
            f"another --model_dir{held.remedy}"
        ) from None
    for place in (folder, os.path.join(folder, "styles"), os.path.join(folder, "fake_vs_real")):
        if os.path.isdir(place) and (place == folder or not os.path.islink(place)):
            for name in os.listdir(place):
                if name.startswith(".tmp-"):
                    os.unlink(os.path.join(place, name))
    return lock


def read_run(folder):
    """The contents of the config.json of a run that is to be resumed; UserError if it cannot be read or is not whole."""
    try:
        with open(os.path.join(folder, "config.json")) as file:
            config = json.load(file)
        flags, data, _ = config["flags"], config["data"], config["torch"]
        config["network"] = check_network(config["network"])
        itemgetter("dataset_dir", "validation_dir", *FREE)(flags)
        for name in Recipe._fields:
            COLUMNS[name].parse(repr(flags[name]))
        for slices in (data, data["validation"]) if data["validation"] else (data,):
            itemgetter("counts", "fingerprint")(slices)
        kept = data["validation"]["scans"] if data["validation"] else None
        allowed = (flags["network"], flags["loss"]) in RECIPES and {flags["mirror"], flags["keep_damaged"]} <= {True, False}
        if not allowed or not isinstance(data["damaged"], dict) or not all(isinstance(scan, str) for scan in kept or ()):
            raise ValueError("a value is out of range")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, argparse.ArgumentTypeError) as error:
        text = f"it lacks {error}" if isinstance(error, KeyError) else reason(error) if isinstance(error, OSError) else error
        raise UserError(f"{folder}/config.json is damaged, or of another version of this code ({text}); {RESTART_HINT}") from None
    return config


def check_same_run(folder, config):
    """UserError that names the flags by which `config` asks for another network or other data than the run in `folder`.

    Returns other flags that differ, as text: a run may continue with another learning rate, say, or another PyTorch.
    """
    saved = read_run(folder)
    differing = changes(config["network"], saved["network"], FIXED)
    told, was = (",".join(["class", *of["network"]["values"]]) for of in (config, saved))
    if told != was:
        differing.append(f"--conditional {told} (was {was})")
    data = {"dataset_dir": (saved["data"], config["data"])}
    data["validation_dir"] = tuple(slices["validation"] for slices in data["dataset_dir"])
    for flag, (old, new) in data.items():
        if old and new and old["fingerprint"] != new["fingerprint"]:
            before = saved["flags"][flag] or "the people kept for it"
            text = f"its slices differ from those of {before}: {old['counts']}, now {new['counts']}"
            differing.append(f"--{flag} {config['flags'][flag]} ({text})")
    if differing:
        raise UserError(
            f"{folder} holds another run, which differs in {', '.join(differing)}: choose another --model_dir, or "
            "--resume False, which renames the folder of the old run"
        )
    changed = changes(config["flags"], saved["flags"], FREE)
    if config["torch"] != saved["torch"]:
        changed.append(f"PyTorch {config['torch']} (was {saved['torch']})")
    return changed


def changes(new, old, names):
    """["--lr 0.001 (was 0.002)", ...]: those of `names` whose values in two dictionaries differ."""
    return [f"{as_flag(name, new[name])} (was {old.get(name)})" for name in names if new[name] != old.get(name)]


def rename_run(folder):
    """Rename the folder of an old run to the first free one of <folder>.1, <folder>.2, ..."""
    number = next(i for i in range(1, 10**6) if not os.path.lexists(f"{folder}.{i}"))
    os.rename(folder, f"{folder}.{number}")
    print(f"the run in {folder} is now {folder}.{number}")
