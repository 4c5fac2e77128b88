"""Is the training well? Statistics of what every block puts out, and alerts about rows of losses.csv and evaluations.csv."""

import functools
import sys

import torch

STATISTICS = "min", "max", "mean", "std"
PICTURE = "diversity", "lit", "beyond"


# ---------------------------------------------------------------------------------------------------------------------
# Inside the networks


class Probe:
    """Notes what every block puts out, by forward hooks, while `watching(True)` is entered; costs nothing otherwise.

    noted: {"w", "generator 4" ... "generator R", "image", "critic R" ... "critic 8", "score": tensor [4] of STATISTICS}, of the
    first call after entering: generated slices in the generator, real and generated ones in the critic.
    """

    def __init__(self, model, critic):
        self.noted, self.active = {}, False
        generator = model["generator"]
        self.layers = {"w": model["mapping"]}
        self.layers |= {f"generator {4 << i}": block for i, block in enumerate(generator.blocks)}
        self.layers |= {"image": generator}
        self.layers |= {f"critic {generator.resolution >> i}": block for i, block in enumerate(critic.blocks)}
        self.layers |= {"score": critic}
        for name, layer in self.layers.items():
            layer.register_forward_hook(functools.partial(self._note, name))

    def watching(self, active):
        """A context that notes if `active`; what was noted before stays until it notes again."""
        if active:
            self.noted.clear()
        self.active = active
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.active = False

    def _note(self, name, _layer, _inputs, output):
        if self.active and name not in self.noted:
            if isinstance(output, tuple):  # of a generator's block
                x, scale, _ = output
                output = x * scale[:, :, None, None]
            x = output.detach().float()
            self.noted[name] = torch.stack([*x.aminmax(), x.mean(), x.std()])

    def deviations(self):
        """The standard deviations of what was noted, tensor [len(layers)]."""
        return torch.stack([self.noted[name][3] for name in self.layers])

    def table(self):
        """Text: a line a layer, a column a statistic."""
        lines = [f"{'':14}" + "".join(f"{name:>10}" for name in STATISTICS)]
        lines += [f"{name:14}" + "".join(f"{value:10.4f}" for value in values.tolist()) for name, values in self.noted.items()]
        return "\n".join(lines)


@torch.no_grad()
def picture_statistics(fake, real):
    """How generated slices, as saved, look beside as many real ones, [N, 1, R, R] each: tensor [3] of PICTURE.

    diversity: mean standard deviation of a pixel over the batch, as a share of the real ones'. lit: the share of pixels that
    are not black, likewise. beyond: the share of pixels far brighter than a picture can hold (darker ones are only black).
    """
    diversity = fake.clamp(-1, 1).std(0).mean() / real.std(0).mean().clamp(min=1e-6)
    lit = (fake > -0.9).float().mean() / (real > -0.9).float().mean().clamp(min=1e-6)
    return torch.stack([diversity, lit, (fake > 1.25).float().mean()])


# ---------------------------------------------------------------------------------------------------------------------
# Trouble, in one line

SIGNS = {  # {name: (is it there, from a row or an evaluation by column name; what it means and what to do)}
    "generator collapsed": (
        lambda row: row["diversity"] < 0.1,
        "its pictures are nearly one picture ({diversity:.2f} of the real spread); a lower --lr or a "
        "higher --lambda_gp may help, from a new run",
    ),
    "generator black": (lambda row: row["lit"] < 0.1, "its pictures are nearly empty ({lit:.2f} of the real lit area)"),
    "generator saturated": (
        lambda row: row["beyond"] > 0.25,
        "{beyond:.0%} of its pixels are far brighter than white; a lower --lr may help",
    ),
    "critic won": (
        lambda row: row["separation"] > 0.999 and row["images"] > 20_000,
        "it tells every generated slice from every real one; a higher --lambda_gp or --augment ada may help",
    ),
    "generator narrows": (
        lambda row: row["recall"] < 0.1 and row["precision"] > 0.5,
        "its slices look real (precision {precision:.2f}) but cover few of the training slices (recall "
        "{recall:.2f}); an earlier one may be better: best.pt keeps that of the lowest KID",
    ),
    "critic overfits": (
        lambda row: row["overfitting"] > 0.5,
        "unseen real slices lie {overfitting:.0%} of the way from training slices to generated ones in its "
        "scores; more slices or --augment ada help, and best.pt keeps the best generator so far",
    ),
}
PATIENCE = 5  # rows in a row that must show a sign before it is named; an evaluation, which averages much, counts at once


class Watch:
    """Names trouble once when it begins. `check` takes rows of losses.csv and evaluations alike, as dictionaries."""

    def __init__(self):
        self.seen = dict.fromkeys(SIGNS, 0)

    def check(self, row):
        """[one line for every trouble that has just become certain]; signs whose columns the row lacks are left alone."""
        lines = []
        for name, (shows, meaning) in SIGNS.items():
            try:
                there = shows(row)
            except KeyError:
                continue
            self.seen[name] = self.seen[name] + 1 if there else 0
            if self.seen[name] == (1 if "overfitting" in row else PATIENCE):
                lines.append(f"{name}: {meaning.format(**row)}")
        return lines


def memory_gib(device):
    """Peak memory so far in GiB: of the CUDA device, else of this process; nan where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource  # not on Windows
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
