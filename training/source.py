"""Starting a new run with the networks of another one, of the same or a lower resolution (train.py --start_from).

source = read_source("model/all", network)              # refuses what cannot be carried over, in one line
start_from(source, state, state_of_the_source)
"""

from modules import channels_at
from training.checkpoint import START_ANEW, has_checkpoint, read_checkpoint, restore
from training.growth import grow
from utils import UserError, read_network


def read_source(folder, network):
    """The checkpoint and the network settings of the run from which a new one with settings `network` is to start.

    The settings have the resolution that the run has reached. UserError if the new networks cannot hold those of the run.
    """
    if not has_checkpoint(folder):
        raise UserError(f"--start_from {folder}: no run with a checkpoint.pt in this folder")
    try:
        saved, source = read_checkpoint(folder), read_network(folder)
    except UserError as error:
        raise UserError(f"--start_from: {str(error).removesuffix(f'; {START_ANEW}')}") from None
    if not source:
        raise UserError(f"--start_from {folder}: its config.json cannot be read")
    source = source | {"resolution": saved["stage"]["resolution"]}
    size, needed = source["resolution"], network["resolution"]
    if size > needed:
        raise UserError(f"--start_from {folder}: it was trained at {size}x{size}, so --resolution must be at least {size}")
    flags = ("channel_base", "channel_max")
    channels = [[channels_at(2**i, *(n[flag] for flag in flags)) for i in range(2, size.bit_length())] for n in (source, network)]
    if channels[0] != channels[1] or any(source[name] != network[name] for name in ("mapping_layers", "z_dim", "w_dim")):
        wanted = " ".join(f"--{flag} {source[flag]}" for flag in (*flags, "mapping_layers"))
        raise UserError(f"--start_from {folder}: its networks have other sizes; {wanted} would fit")
    if source["num_classes"] > network["num_classes"]:
        raise UserError(
            f"--start_from {folder}: it is told the class, so the new run must be, too: --classes all --conditional True"
        )
    return saved, source


def start_from(source, new, old):
    """Carry a run that `read_source` has read over into the TrainingState `new`, by way of `old`, which has its networks."""
    try:
        restore(old.parts, source[0])
    except Exception as error:
        raise UserError(f"--start_from: the checkpoint does not fit its config.json ({type(error).__name__})") from None
    return grow(old, new)


def describe_source(folder, saved, source, network):
    """A line that says what a new run with the settings `network` takes over, and what is new in it."""
    new = []
    if source["resolution"] < network["resolution"]:
        new.append(f"blocks above {source['resolution']}x{source['resolution']} and the critic's first layer")
    if source["num_classes"] < network["num_classes"]:
        new.append("class embeddings")
    return f"starting from {folder} ({saved['images'] / 1000:.1f} kimg); new: {', '.join(new) or 'nothing'}"
