"""Is the training well? What every block puts out, named troubles, and comparisons with slices that were not trained on.

`Probe` looks into the networks during one step of every row of losses.csv, `Watch` names what is wrong with such rows in one
line, and `Evaluator` compares, every few epochs, what the averaged generator makes with real slices, and the critic's scores
of slices it was trained on with its scores of others.
"""

import functools
import sys

import numpy as np
import torch

from dataset import to_float, to_uint8
from distances import NEIGHBOURS, Features, kid, prdc
from utils import random_stream

EVALUATED = 512  # generated slices, and at most as many real ones of each kind, in one evaluation
STATISTICS = "min", "max", "mean", "std"
PICTURE = "diversity", "lit", "beyond"
EVALUATION = "kid", "kid_test", "precision", "recall", "score_train", "score_test", "score_generated", "overfitting"


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


# ---------------------------------------------------------------------------------------------------------------------
# Against real slices


class Evaluator:
    """KID, precision and recall of the averaged generator, and what the critic thinks of slices it was not trained on.

    train: Slices; test: Slices or None (its figures are nan then). The real slices' features are computed once. The latents
    are the same every time.
    """

    def __init__(self, train, test, z_dim, num_classes, device):
        self.device, self.features = device, Features("vgg16", device)
        self.z = torch.randn(EVALUATED, z_dim, generator=random_stream("evaluation", 0)).to(device)
        self.labels = torch.arange(EVALUATED, device=device) % num_classes if num_classes else None
        self.real = {}  # {"train": (pixels uint8 [n, R, R], labels int64 [n], features [n, D])}
        for split, slices in (("train", train), ("test", test)):
            if slices is not None:
                chosen = np.random.default_rng(0).permutation(len(slices))[:EVALUATED]
                pixels = slices[chosen]
                self.real[split] = pixels, torch.from_numpy(slices.labels[chosen]), self.features(pixels)

    @torch.no_grad()
    def __call__(self, averaged, critic, batch_size):
        """{column of EVALUATION: float}."""
        rng = random_stream("evaluation noise", 0, self.device)
        fake = []
        for i in range(0, EVALUATED, batch_size):
            labels = None if self.labels is None else self.labels[i : i + batch_size]
            w = averaged["mapping"](self.z[i : i + batch_size], labels)
            fake.append(to_uint8(averaged["generator"](w, rng=rng)).cpu())
        fake = torch.cat(fake).numpy()  # [EVALUATED, R, R]
        features = self.features(fake)
        found = dict.fromkeys(EVALUATION, float("nan"))
        found["kid"] = 1000 * kid(self.real["train"][2], features)
        if len(self.real["train"][2]) > NEIGHBOURS:
            found |= {name: value for name, value in prdc(self.real["train"][2], features).items() if name in EVALUATION}
        kinds = {"generated": (fake, self.labels), **{split: real[:2] for split, real in self.real.items()}}
        for kind, slices in kinds.items():
            found[f"score_{kind}"] = mean_score(critic_scores(critic, *slices, batch_size, self.device), slices[1], critic)
        if "test" in self.real:
            found["kid_test"] = 1000 * kid(self.real["test"][2], features)
            gap = found["score_train"] - found["score_generated"]
            found["overfitting"] = (found["score_train"] - found["score_test"]) / gap if gap > 0 else float("nan")
        return found


@torch.no_grad()
def critic_scores(critic, pixels, labels, batch_size, device):
    """Scores, tensor [n], of uint8 pixels [N, R, R] in random order; labels [N] int64 of a conditional critic, else ignored.

    Whole batches only, where there is one, since the critic also looks at the spread within a batch.
    """
    labels = labels.to(device) if critic.embedding is not None else None
    scores = []
    for i in range(0, max(1, len(pixels) - batch_size + 1), batch_size):
        images = to_float(torch.as_tensor(pixels[i : i + batch_size]).to(device))
        scores.append(critic(images, None if labels is None else labels[i : i + batch_size]))
    return torch.cat(scores)


def mean_score(scores, labels, critic):
    """Mean of scores [n] of slices with labels [N], N >= n: of a conditional critic that of the classes' means, as a float.

    Such a critic may score one class above the other by more than real above generated, and sets hold more or less of each.
    """
    if critic.embedding is None:
        return scores.mean().item()
    labels = labels[: len(scores)].to(scores.device)
    return torch.stack([scores[labels == label].mean() for label in labels.unique()]).mean().item()


def memory_gib(device):
    """Peak memory so far in GiB: of the CUDA device, else of this process; nan where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource  # not on Windows
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
