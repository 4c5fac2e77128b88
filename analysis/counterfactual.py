"""Counterfactuals: what a conditional model makes of a real slice if it is told the other class and all else is held.

    judge = class_probe(model, encoder)
    twins = counterfactuals(model, encoder, pixels, labels, judge, shown=[0, 5])        # uint8 [N, R, R], int [N]

By abduction, action and prediction (Pawlowski et al. 2020, arXiv:2006.06485). Abduction: the encoder gives a distribution of w
for a slice; for every draw from it a latent z is sought that the mapping network, told the slice's class, takes there. Action: the
same z with the other class. Prediction: both are drawn with the same noise. What the slice does not tell of z and of the noise
differs between draws, and so does the difference: that is its uncertainty. It is the model's, not that of a person's future.

The axioms of Monteiro et al. 2023 (arXiv:2303.01274) are measured on means over draws: composition (the encoding, encoded again),
reversibility (the twin, encoded and moved back), effectiveness (a probe calls the twin the other class), minimality (person and
position stay).
"""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from analysis.areas import measure_areas
from analysis.bootstrap import FOLDS, bootstrap
from analysis.encoder import draw_slices
from analysis.models import synthesize
from analysis.style_space import build_probe
from analysis.values import PENALTIES, flatten
from dataset import to_uint8
from utils import pick_dtype, random_stream

DRAWS = 16  # of z and noise, for each slice
STEPS, RATE, PRIOR = 100, 0.1, 0.1  # of Adam; weight of the distance from a random z, which settles what w does not tell
ROWS = 1024  # latents that are sought at once
JUDGED = 1024  # generated slices that the probe of the class is fitted to


class Twins(NamedTuple):
    """N slices with their twins of the other class. Pairs are as encoded, then the twin; small: at the side of the encoder."""

    labels: np.ndarray  # int [N], of the slices; of the probe where they were unknown
    points: np.ndarray  # float32 [3, N, K]: of the real slices, of the pair
    small: np.ndarray  # uint8 [5, N, r, r]: real, pair, encoded again (composition), moved there and back (reversibility)
    called_ad: np.ndarray  # bool [3, N], by the probe: of the real slices, of the pair
    areas: dict  # {tissue: mm^2, float [2, DRAWS, N]}; empty where no view was given
    images: np.ndarray  # uint8 [n, 2, R, R]: the pairs that are shown
    difference: np.ndarray  # float32 [n, R, R], twin less encoding in grey levels, mean over the draws
    deviation: np.ndarray  # float32 [n, R, R], standard deviation over the draws


def abduct(model, encoder, encoded, labels, draws, rng, progress=False):
    """z [N, draws, z_dim] that a conditional Model, told `labels` [N, ...], maps to draws from the distributions of an Encoded.

    Minimises |(p(f(z)) - t) / s|^2 + PRIOR |z - z0|^2 with p the principal components of w, t ~ N(mean, s^2), z0 ~ N(0, 1).
    """
    device, inverse = model.device, torch.linalg.pinv(encoder.basis)
    mean, deviation = (torch.as_tensor(part, device=device).repeat_interleave(draws, 0) for part in encoded)
    labels, found = torch.as_tensor(labels, device=device).repeat_interleave(draws, 0), []
    batches = torch.arange(len(mean), device=device).split(ROWS)
    for rows in tqdm(batches, "twins: latents", unit=" batches", disable=None if progress else True):
        target = mean[rows] + deviation[rows] * torch.randn(mean[rows].shape, generator=rng).to(mean)
        start = torch.randn(len(rows), model.mapping.z_dim, generator=rng).to(mean)
        z = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=RATE)
        for _ in range(STEPS):
            away = ((model.mapping(z, labels[rows]) - encoder.mean) @ inverse - target) / deviation[rows]
            loss = away.square().sum() + PRIOR * (z - start).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(z.detach())
    return torch.cat(found).unflatten(0, (-1, draws))


@torch.no_grad()
def both_classes(model, z, labels):
    """w [2, N, draws, w_dim] of z [N, draws, z_dim] with `labels` [N, ...], then with the other class of each, and its values."""
    told = (torch.as_tensor(part, device=z.device).repeat_interleave(z.shape[1], 0) for part in (labels, other_class(labels)))
    return torch.stack([model.mapping(z.flatten(0, 1), one).unflatten(0, z.shape[:2]) for one in told])


def with_values(classes, values):
    """Labels as of `modules.LabelEmbedding` of classes int [N] and values [N, k], or None in a model that is told none."""
    return classes if values is None else np.concatenate([classes[:, None], values], 1, dtype=np.float32)


def other_class(labels):
    """Labels of the other class with the same values."""
    return 1 - labels if labels.ndim == 1 else with_values(1 - labels[:, 0], labels[:, 1:])


@torch.no_grad()
def draw_pairs(model, w, rng):
    """Images uint8 [2, n, R, R] of w [2, n, w_dim], the members of a pair with the same random noise."""
    styles = [style for block in model.generator.blocks for style in block.styles]
    noise = [torch.randn(w.shape[1], *style.fixed_noise.shape[1:], generator=rng).to(w).repeat(2, 1, 1, 1) for style in styles]
    images = model.generator(w.flatten(0, 1), noise, dtype=pick_dtype(None, w.device))
    return to_uint8(images).unflatten(0, (2, -1)).cpu().numpy()


def class_probe(model, encoder, seed=0, progress=False):
    """A linear probe of the class on encoded slices that the Model draws, JUDGED of them: points [N, K] -> bool [N], whether AD."""
    pixels, _ = draw_slices(model, JUDGED, encoder.side, seed + 2, progress)
    probe = build_probe().fit(encoder.encode(pixels).points, np.arange(JUDGED) % len(model.labels))
    return lambda points: probe.decision_function(points) < 0


def counterfactuals(model, encoder, pixels, labels, judge, shown=(), view=None, values=None, seed=0, progress=False):
    """The Twins of slices uint8 [N, R, R] of a conditional Model with this Encoder.

    labels: int [N], -1 where unknown; judge: of `class_probe`; shown: rows of the pictures that are kept; view: of `areas`, None
    measures none; values: [N, k] of the slices, in a model that is told these, too.
    """
    rng, encoded = random_stream("counterfactuals", seed), encoder.encode(pixels)
    own = np.where(labels < 0, np.where(judge(encoded.points), 0, 1), labels)
    told = with_values(own, values)
    z, kept, areas = abduct(model, encoder, encoded, told, DRAWS, rng, progress), {}, {}
    w = both_classes(model, z, told)  # [2, N, DRAWS, w_dim]
    for i in tqdm(range(len(pixels)), "twins: drawing", unit=" slices", disable=None if progress else True):
        images = draw_pairs(model, w[:, i], rng)
        for tissue, area in measure_areas(images.reshape(-1, *images.shape[2:]), view).items() if view else ():
            areas.setdefault(tissue, []).append(area.reshape(2, DRAWS))
        if i in shown:
            difference = images[1].astype(np.float32) - images[0]
            kept[i] = synthesize(model, w[:, i].mean(1)), difference.mean(0), difference.std(0, ddof=1)
    small, points = [encoder.reduce(pixels).cpu().numpy()], [encoded.points]

    def draw_mean(w):  # [N, DRAWS, w_dim]
        small.append(encoder.reduce(synthesize(model, w.mean(1))).cpu().numpy())
        return encoder.encode(small[-1])

    again = [draw_mean(part) for part in w]
    points += [part.points for part in again]
    other = other_class(told)
    draw_mean(both_classes(model, abduct(model, encoder, again[0], told, DRAWS, rng, progress), told)[0])
    draw_mean(both_classes(model, abduct(model, encoder, again[1], other, DRAWS, rng, progress), other)[1])
    pictures = [np.stack(part) for part in zip(*(kept[i] for i in shown))] or [None] * 3
    areas = {tissue: np.stack(parts, 2) for tissue, parts in areas.items()}
    return Twins(own, np.stack(points), np.stack(small), np.stack([judge(part) for part in points]), areas, *pictures)


# ---------------------------------------------------------------------------------------------------------------------
# The axioms


def rms(a, b):
    """Root mean square difference [N] of slices uint8 [N, R, R], in grey levels."""
    return np.sqrt(np.square(a.astype(np.float32) - b).mean((1, 2)))


def nearest(points, references):
    """For each of points [N, K] the nearest of references [N, K] but its own: int [N]."""
    distance = torch.cdist(torch.from_numpy(points), torch.from_numpy(references))
    return distance.fill_diagonal_(torch.inf).argmin(1).numpy()


def positions(small, groups, indices):
    """Slice indices [3, N] of slices uint8 [3, N, r, r] by ridge regression on pixels of the first, real ones of other groups."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold

    pixels = [flatten(part) for part in small]
    found = np.zeros((3, len(groups)))
    for fitted, held_out in GroupKFold(min(FOLDS, len(np.unique(groups)))).split(groups, groups=groups):
        ridge = RidgeCV(PENALTIES).fit(pixels[0][fitted], indices[fitted])
        found[:, held_out] = [ridge.predict(part[held_out]) for part in pixels]
    return found


def axioms(twins, groups, indices, seed=0):
    """{what: (Interval of the encodings, Interval of the twins)} over groups [N], the people of the slices.

    indices: float [N], the slice indices, nan where unknown. The person is that of the nearest encoded real slice but its own, the
    position that of `positions`; they need several slices of several people.
    """
    real, encoding, twin, again, back = twins.small
    is_ad = twins.labels == 0
    found = {
        "RMS from the real slice": (rms(encoding, real), rms(twin, real)),
        "RMS from the encoding after encoding it again (composition), or after there and back (reversibility)": (
            *(rms(again, encoding), rms(back, encoding)),
        ),
        "called the other class (effectiveness)": tuple(called != is_ad for called in twins.called_ad[1:]),
    }
    same = groups[:, None] == groups
    if not same.all() and (same.sum(1) > 1).all():
        neighbours = [nearest(points, twins.points[0]) for points in twins.points[1:]]
        found["nearest slice is of the same person (minimality)"] = tuple(groups[rows] == groups for rows in neighbours)
    if not same.all() and np.isfinite(indices).all() and np.ptp(indices):
        error = np.abs(positions(twins.small[:3], groups, indices) - indices)
        found["error of the position, in slices (minimality)"] = error[1], error[2]
    return {
        name: tuple(bootstrap(lambda weights, x=x: np.average(x, weights=weights), groups, seed=seed) for x in pair)
        for name, pair in found.items()
    }


def area_changes(twins, groups, seed=0):
    """{class of the slices, 0 or 1: {tissue: (mean mm^2 as encoded, Interval of the relative change)}}, intervals over groups [N].

    "brain" is grey and white matter and ventricles together.
    """
    measured = {tissue: area.mean(1) for tissue, area in twins.areas.items()}  # [2, N]
    if measured:
        measured["brain"] = sum(measured[tissue] for tissue in ("ventricle", "grey", "white"))
    found = {}
    for label in np.unique(twins.labels):
        rows = twins.labels == label
        for tissue, area in measured.items():
            before, after = area[:, rows]

            def change(weights, before=before, after=after):
                return (weights * (after - before)).sum() / (weights * before).sum()

            found.setdefault(int(label), {})[tissue] = before.mean(), bootstrap(change, groups[rows], seed=seed)
    return found
