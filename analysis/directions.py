"""Principal directions of a generator's style space, by GANSpace and by SeFa, and the images along them.

directions = find_directions(model, k=5, seed=0, method="ganspace")
images = move_along(model, w, directions)                       # uint8 [5, 7, R, R]
"""

from typing import NamedTuple

import numpy as np
import torch

from analysis.latents import STEPS, image_grid
from analysis.models import draw_z, style_vectors
from report import figures
from report.report import ReportTable

LATENTS = 4096  # latents per class for the distribution of w
REACH = 3.0  # standard deviations to both sides in the figures
METHODS = {"ganspace": "GANSpace", "sefa": "SeFa"}


class Directions(NamedTuple):
    """k unit vectors in the style space, and their relation to the distribution of w and to the class."""

    vectors: torch.Tensor  # [k, w_dim]
    share: np.ndarray  # [k], of the variance of w (GANSpace) or of the squared gain of the modulation (SeFa)
    deviation: np.ndarray  # [k], standard deviation of w along each direction
    cosine: np.ndarray  # [k], with the difference of the mean w of NC and AD; NaN if the model is not conditional
    correlation: np.ndarray  # [k], between w along the direction and the label; NaN likewise


def ganspace(w, k):
    """The first k principal components of w [N, w_dim] (Härkönen et al. 2020): [k, w_dim], and their shares of variance [k]."""
    _, values, directions = torch.linalg.svd((w - w.mean(0)).double(), full_matrices=False)
    return directions[:k].to(w), (values.square() / values.square().sum())[:k].cpu().numpy()


def sefa(generator, k):
    """The k directions that the modulation amplifies most (Shen and Zhou 2021, eq. 5): [k, w_dim], and their shares of gain [k].

    They are eigenvectors of A^T A, where A is all affine layers of the style blocks, stacked; shares are of the squared gain.
    """
    weights = torch.cat([style.conv.affine.weight for block in generator.blocks for style in block.styles]).double()
    values, vectors = torch.linalg.eigh(weights.T @ weights)  # ascending
    return vectors.flip(1).T[:k].to(generator.constant), (values.flip(0) / values.sum())[:k].cpu().numpy()


@torch.no_grad()
def find_directions(model, k, seed, method):
    """The first k Directions of a model by `method`, "ganspace" or "sefa", with statistics over LATENTS latents per class."""
    z = draw_z(LATENTS, model.mapping.z_dim, seed).to(model.generator.constant.device)
    of_class = [style_vectors(model.mapping, z, label)[0] for label in model.labels]
    w = torch.cat(of_class)
    vectors, share = ganspace(w, k) if method == "ganspace" else sefa(model.generator, k)
    along = ((w - w.mean(0)) @ vectors.T).cpu().numpy()  # [N, k]
    cosine = correlation = np.full(len(vectors), np.nan)
    if len(of_class) == 2:
        difference = torch.nn.functional.normalize(of_class[1].mean(0) - of_class[0].mean(0), dim=0)
        cosine = (vectors @ difference).cpu().numpy()
        label = np.repeat([0, 1], len(z))
        correlation = np.array([np.corrcoef(column, label)[0, 1] for column in along.T])
    return Directions(vectors, share, along.std(0), cosine, correlation)


def move_along(model, w, directions, steps=STEPS, reach=REACH):
    """Images [k, steps, R, R] of w [w_dim] moved by -reach to reach standard deviations along each direction."""
    distances = torch.linspace(-reach, reach, steps, device=w.device)[:, None] * torch.as_tensor(
        directions.deviation, device=w.device
    )  # [steps, k]
    return image_grid(model, w + distances.T[:, :, None].to(w) * directions.vectors[:, None])


def plot_directions(samples, k):
    """ganspace.png and sefa.png: an image of `latents.Samples` moved along the first k directions; returns a report.Section."""
    shown, table_rows = [], []
    for method, name in METHODS.items():
        directions = find_directions(samples.model, k, samples.seed, method)
        path = samples.path(f"{method}.png")
        rows = [f"{i + 1}" for i in range(len(directions.vectors))]
        if len(samples.model.labels) == 2:
            rows = [f"{row}\nr {correlation:+.2f}" for row, correlation in zip(rows, directions.correlation)]
        columns = [f"{distance:+.0f} sd" if distance else "0" for distance in np.linspace(-REACH, REACH, STEPS)]
        note = f"{name}: an image moved along each direction, in standard deviations of w. r: correlation with the class (NC is 1)."
        images = move_along(samples.model, samples.w[0][0], directions)
        figures.save_image_table(images, path, rows, columns, note)
        shown.append((path, f"{name}."))
        numbers = zip(directions.share, directions.cosine, directions.correlation)
        table_rows += [[name, i + 1, *map(float, values)] for i, values in enumerate(numbers)]
    table = ReportTable(
        ["method", "direction", "share", "cosine with AD to NC", "correlation with class"],
        table_rows,
        "share: of the variance of w (GANSpace), of the squared gain of the modulation (SeFa)",
    )
    return samples.section("principal directions", *shown, tables=[table])
