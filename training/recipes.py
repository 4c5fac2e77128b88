"""Every number that a run learns by: one row for each network and loss. Nothing here needs PyTorch.

    recipe = RECIPES["thin", "relativistic"]._replace(batch_size=16)        # channels, batch, rates, penalties, ...
    options = Options("relativistic", recipe, augment="none", mirror=False, grad_accum=1, seed=0)

`train.py --network thin --loss relativistic` takes a row; flags of FLAGS and `--set NAME=NUMBER` change one number of it. The rates
are those with which runs of equal minutes were compared: docs/experiments.md. Which losses there are: training/loss.py.
"""

from typing import NamedTuple

from utils import CLASSES, LARGEST, VALUES, number


class Recipe(NamedTuple):
    """A row of RECIPES; COLUMNS says what each number means."""

    channel_base: int
    channel_max: int
    mapping_layers: int
    batch_size: int
    lr: float
    lr_critic: float
    n_critic: int
    lambda_gp: float
    gp_every: int
    path_length: float
    ema_kimg: float
    lr_decay: float
    style_mixing: float


# fmt: off
RECIPES = {  # (network, loss): channels, mapping, batch, lr, lr_critic, n_critic, lambda_gp, gp_every, path, EMA, decay, mixing
    ("full", "wgan-gp"):      Recipe(8192, 256, 8, 32, 1e-3, 2e-3, 1, 10.0, 1, 0.0, 10.0, 0.0, 0.0),
    ("full", "logistic"):     Recipe(8192, 256, 2, 32, 2e-3, 2e-3, 1,  5.0, 8, 0.0, 10.0, 0.0, 0.0),
    ("full", "relativistic"): Recipe(8192, 256, 2, 32, 3e-3, 2e-3, 2,  5.0, 8, 8.0, 10.0, 0.0, 0.0),
    ("thin", "wgan-gp"):      Recipe(1024,  64, 8,  8, 2e-3, 4e-3, 1, 10.0, 1, 0.0, 10.0, 0.0, 0.0),
    ("thin", "logistic"):     Recipe(1024,  64, 2,  8, 4e-3, 4e-3, 1,  5.0, 8, 0.0, 10.0, 0.0, 0.0),
    ("thin", "relativistic"): Recipe(1024,  64, 2,  8, 6e-3, 4e-3, 2,  5.0, 8, 8.0, 10.0, 0.0, 0.0),
}
# fmt: on
NETWORKS, LOSSES = (tuple(dict.fromkeys(names)) for names in zip(*RECIPES))
FLAGS = "channel_base", "channel_max", "batch_size", "lr", "lambda_gp"  # columns with a flag of their own; the others: --set
Z_DIM = W_DIM = 256


class Column(NamedTuple):
    """What a number of a recipe means and which values it takes: `low` to `high`, above `low` if `above`."""

    help: str
    kind: type
    low: float
    high: float = 1e10
    above: bool = False

    def parse(self, text):
        """The number that a text means; argparse.ArgumentTypeError where it is none or out of range."""
        return number(self.kind, self.low, self.high, self.above)(text)


COLUMNS = {
    "channel_base": Column("feature maps at a resolution: channel_base / resolution ...", int, 32, LARGEST["channel_base"]),
    "channel_max": Column("... and at most this many", int, 1, LARGEST["channel_max"]),
    "mapping_layers": Column("layers of the mapping network; Karras et al. 2019 have eight", int, 1, LARGEST["mapping_layers"]),
    "batch_size": Column("slices per step, of all processes together", int, 2, 2**16),
    "lr": Column("Adam's learning rate of generator and mapping network", float, 0, above=True),
    "lr_critic": Column("the critic's learning rate", float, 0, above=True),
    "n_critic": Column("critic updates, each on a batch of its own, per generator update", int, 1, 10**6),
    "lambda_gp": Column("weight of the gradient penalty", float, 0),
    "gp_every": Column("steps between two gradient penalties, each weighted by as many", int, 1, 10**6),
    "path_length": Column("weight of the path length penalty", float, 0),
    "ema_kimg": Column("half-life of the averaged generator in thousand images, less at the start", float, 0, above=True),
    "lr_decay": Column("share of the run, at its end, over which both learning rates fall to 0", float, 0, 1),
    "style_mixing": Column("probability of mixing the styles of two latents", float, 0, 1),
}


class Options(NamedTuple):
    """How a step trains."""

    loss: str
    recipe: Recipe
    augment: str  # "ada" or "none"
    mirror: bool  # whether augmentation may mirror; real images are mirrored where batches are drawn
    grad_accum: int  # micro-batches per step and process
    seed: int


def network_settings(recipe, resolution, told=()):
    """The settings of networks as config.json and generator.pt keep them; told: "class" and names of VALUES, or nothing."""
    sizes = {name: getattr(recipe, name) for name in ("channel_base", "channel_max", "mapping_layers")}
    labels = {"num_classes": len(CLASSES) if told else 0, "values": [name for name in VALUES if name in told]}
    return {"resolution": resolution, **sizes, "z_dim": Z_DIM, "w_dim": W_DIM, **labels}


def as_flag(name, value):
    """The words of a command line that give a flag or a number of a recipe this value."""
    if name in COLUMNS and name not in FLAGS:
        return f"--set {name}={value}"
    return f"--{name} {value}"


def table():
    """The recipes as rows of text: a title and a cell for every recipe, one row a column of RECIPES."""
    rows = [["network", *(network for network, _ in RECIPES)], ["loss", *(loss for _, loss in RECIPES)]]
    for name in Recipe._fields:
        title = f"--{name}" if name in FLAGS else name
        rows.append([title, *(f"{getattr(recipe, name):g}" for recipe in RECIPES.values())])
    return rows
