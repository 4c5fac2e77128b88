"""Every number that a run learns by: one row for each network and loss. Nothing here needs PyTorch.

    recipe = RECIPES["thin", "relativistic"]        # channels, batch, rates, penalties, ...
    args = Options(loss="relativistic", **...)      # what a step needs to know: training/step.py

`train.py --network thin --loss relativistic` takes a row; a flag of the same name as a column overrides one number. The rates
are those with which runs of equal minutes were compared: docs/experiments.md. Which losses there are: training/loss.py.
"""

from typing import NamedTuple


class Recipe(NamedTuple):
    """A row of RECIPES; each column is a flag of train.py."""

    channel_base: int  # feature maps at a resolution: channel_base / resolution,
    channel_max: int  # ... and at most this many
    mapping_layers: int  # Karras et al. 2019 have eight
    batch_size: int  # slices per step, of all processes together
    lr: float  # Adam's learning rate of generator and mapping network
    lr_critic: float  # that of the critic
    n_critic: int  # critic updates, each on a batch of its own, per generator update
    lambda_gp: float  # weight of the gradient penalty
    gp_every: int  # steps between two gradient penalties, each weighted by as many
    path_length: float  # weight of the path length penalty
    ema_kimg: float  # half-life of the averaged generator in thousand images, less at the start


# fmt: off
RECIPES = {  # (network, loss): channels base and max, mapping layers, batch, both rates, n_critic, penalty, every, path length, EMA
    ("full", "wgan-gp"):      Recipe(8192, 256, 8, 32, 1e-3, 2e-3, 1, 10.0, 1, 0.0, 10.0),
    ("full", "logistic"):     Recipe(8192, 256, 2, 32, 2e-3, 2e-3, 1,  5.0, 8, 0.0, 10.0),
    ("full", "relativistic"): Recipe(8192, 256, 2, 32, 3e-3, 2e-3, 2,  5.0, 8, 8.0, 10.0),
    ("thin", "wgan-gp"):      Recipe(1024,  64, 8,  8, 2e-3, 4e-3, 1, 10.0, 1, 0.0, 10.0),
    ("thin", "logistic"):     Recipe(1024,  64, 2,  8, 4e-3, 4e-3, 1,  5.0, 8, 0.0, 10.0),
    ("thin", "relativistic"): Recipe(1024,  64, 2,  8, 6e-3, 4e-3, 2,  5.0, 8, 8.0, 10.0),
}
# fmt: on
NETWORKS, LOSSES = (tuple(dict.fromkeys(names)) for names in zip(*RECIPES))


class Options(NamedTuple):
    """How a step trains: numbers of a Recipe, and switches with the defaults of train.py's flags of the same names."""

    loss: str
    batch_size: int
    lr: float
    lr_critic: float
    n_critic: int
    lambda_gp: float
    gp_every: int
    path_length: float
    ema_kimg: float
    grad_accum: int = 1  # micro-batches per step and process
    mirror: bool = False  # whether --augment may mirror; real images are mirrored where batches are drawn
    bounded: bool = True  # clip generated images, as real ones are, for the critic
    augment: str = "none"
    augment_p: float = 0.0
    style_mixing: float = 0.0
    seed: int = 0


def options(network, loss, **changes):
    """The Options of a recipe, with `changes`; KeyError if there is no such recipe."""
    recipe = RECIPES[network, loss]._asdict()
    numbers = {name: value for name, value in recipe.items() if name in Options._fields}
    return Options(**{"loss": loss, **numbers, **changes})


def default_network(device):
    """The network for a torch.device: "thin" on a CPU, "full" elsewhere."""
    return "thin" if device.type == "cpu" else "full"


def table():
    """The recipes as rows of text: a title and a cell for every recipe, one row a column of RECIPES."""
    rows = [["network", *(network for network, _ in RECIPES)], ["loss", *(loss for _, loss in RECIPES)]]
    return rows + [[f"--{name}", *(f"{getattr(recipe, name):g}" for recipe in RECIPES.values())] for name in Recipe._fields]


def plain_table():
    """`table` in columns, for --help."""
    rows = table()
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def markdown_table():
    """`table` in Markdown, for docs/training.md."""
    rows = table()
    rule = ["---"] * len(rows[0])
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))
