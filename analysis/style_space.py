"""The style space: how far apart two sets of style vectors are, measured in w itself, and two-dimensional maps of them.

    ad, nc = ...                                        # w [n, 256] each, row i of both from the same latent
    style_separation(ad, nc)                            # share of neighbours alike and a linear probe's AUC, with intervals
    embed(np.concatenate([ad, nc]), "umap")             # [2 n, 2]

What a gap between AD and NC can show. Two models share no style space: if their seeds differ, their style vectors are fully
separated before any training; if they share a seed, they start identical and drift apart. Neither says anything about the
disease, so `verdict` compares AD and NC with a control: NC and a second NC model. One conditional model has one style space for
both classes, but is told the class and so separates them from the first step. It is not told the class of real slices: these
are projected into its style space, and `conditional_verdict` says whether they are separated there.
"""

import contextlib
import os
import re
from typing import NamedTuple

import numpy as np

from analysis.bootstrap import FOLDS, Interval, auc, bootstrap
from analysis.position import beyond_position, position_text
from utils import CLASSES, UserError

NEIGHBOURS = 15
UNDEFINED = Interval(np.nan, np.nan, np.nan)
EPOCHS_SHOWN = 0, 1 / 16, 3 / 8, 1  # shares of the training in the figure over epochs: 0, 5, 30, 80 of 80
FRAMES = 12  # epochs in the GIF, at most
APART = 0.99  # share of neighbours alike from which on two sets count as fully separated
EPOCHS_NOTE = (
    "Neighbours alike: 50% if both sets mix, 100% if they are fully separated. Models of two seeds are separated before any "
    "training, and a conditional model is told the class: no gap here is by itself a finding about AD and NC (docs/evidence.md)."
)


# ---------------------------------------------------------------------------------------------------------------------
# How far apart


class StyleSeparation(NamedTuple):
    """How well two sets of style vectors are separated: both measures are 0.5 if they mix and 1 if they are apart."""

    alike: Interval  # mean share of a vector's NEIGHBOURS nearest neighbours that belong to its own set
    auc: Interval  # of a linear probe, on vectors that it was not fitted to


def style_separation(a, b, groups=None, seed=0):
    """StyleSeparation of a [n, D] and b [m, D]; nan without two groups of both.

    groups [n + m], of a and then of b: rows of one group (slices of a person) are resampled together, do not count as neighbours
    and are not scored by a probe fitted to others of them. None: row i of both has the same latent; these are resampled together.
    """
    points, classes = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    drawn = np.r_[: len(a), : len(b)] if groups is None else np.unique(groups, return_inverse=True)[1]
    if min(len(np.unique(drawn[classes == i])) for i in (0, 1)) < 2:
        return StyleSeparation(UNDEFINED, UNDEFINED)
    shares, scores = neighbour_shares(points, classes, groups), probe_scores(points, classes, drawn, seed)
    return StyleSeparation(
        bootstrap(lambda weights: np.average(shares, weights=weights), drawn, seed=seed),
        bootstrap(lambda weights: auc(scores, classes == 1, weights), drawn, seed=seed),
    )


def neighbour_shares(points, classes, groups=None, k=NEIGHBOURS):
    """Share of each point's k nearest neighbours that have its own class: [N], of [N, D] and classes [N].

    Neighbours are all other points, or, given groups [N], those of other groups.
    """
    from sklearn.neighbors import NearestNeighbors

    groups = np.arange(len(points)) if groups is None else np.unique(groups, return_inverse=True)[1]
    largest = np.bincount(groups).max()  # so many of the nearest may have to be left out
    search = NearestNeighbors(n_neighbors=min(k + largest, len(points)) - 1, algorithm="brute").fit(points)
    nearest = search.kneighbors(return_distance=False)  # [N, k + largest - 1]; without a query, no point is its own neighbour
    counted = groups[nearest] != groups[:, None]
    counted &= counted.cumsum(1) <= k
    return ((classes[nearest] == classes[:, None]) & counted).sum(1) / counted.sum(1)


def probe_scores(points, classes, groups, seed=0):
    """Held-out scores [N] of a logistic regression on standardised points [N, D], fitted FOLDS times without a fold's groups.

    Each class needs two groups. 0, which is no evidence either way, where the other folds hold one class alone.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = np.empty(len(points))
    folds = min(FOLDS, *(len(np.unique(groups[classes == i])) for i in (0, 1)))
    for fitted, held_out in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(points, classes, groups):
        if len(np.unique(classes[fitted])) < 2:  # a class of few groups, all in this fold
            scores[held_out] = 0.0
            continue
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        scores[held_out] = probe.fit(points[fitted], classes[fitted]).decision_function(points[held_out])
    return scores


def verdict(pair, control=None, like=True):
    """One sentence: what the StyleSeparation of an AD and an NC model shows, given that of two NC models (None: no control).

    like: the pairs are comparable, each trained with one shared seed or each with two seeds.
    """
    if control is None:
        return (
            "Two models trained apart have unrelated style spaces: without --control_dir, a second NC model, no gap between "
            "them says anything about AD and NC."
        )
    if min(pair.alike.value, control.alike.value) >= APART:
        return "AD and NC are fully separated, but so are the two NC models: the gap is one between models, not of the disease."
    further = sum(measure.low > control_measure.high for measure, control_measure in zip(pair, control))
    text = (
        "AD and NC are no further apart than the two NC models.",
        "By one of two measures, AD and NC are further apart than the two NC models.",
        "By both measures, AD and NC are further apart than the two NC models (one pair of models each).",
    )[further]
    if further:
        text += " Slices of AD and NC cut at different positions can do that as well: dataset.py tells."
    unlike = " But one pair shares its seed and the other does not: no fair comparison (train all three with three seeds)."
    return text if like else text + unlike


def conditional_verdict(real=None, position=None):
    """What a conditional model shows, given the StyleSeparation of real slices in its style space (None: none were projected) and
    the `position_probe` of the same probe: where the slice index explains as much, AD and NC are not called separated."""
    text = "A conditional model is told the class, so where its own AD and NC lie says nothing about the disease. "
    if real is None:
        return text + "--dataset_dir AD_NC/test would project real slices into its style space."
    if not real.auc.low > 0.5:  # nan with too few people
        apart = f"no separation was shown, AUC {real.auc}"
    elif position and not beyond_position(real.auc, position):
        apart = f"AUC {real.auc}, but no more than slice position may explain"
    else:
        apart = f"they are separated there more than by chance, AUC {real.auc}"
    found = f"Real slices, projected into its style space without their class: {apart}."
    return " ".join([text + found, *(position_text(position) if position else [])])


# ---------------------------------------------------------------------------------------------------------------------
# Maps


def embed(points, method="umap", seed=0, neighbours=15, min_dist=0.1, start="spectral"):
    """A map [N, 2] of vectors [N, D] by umap (McInnes et al. 2018), tsne (van der Maaten and Hinton 2008) or pca.

    neighbours, min_dist and start (a method, or positions [N, 2]) are UMAP's, which runs in one thread so that the same seed
    gives the same map. Equal vectors give a map of equal points.
    """
    if (points == points[0]).all():  # PCA and t-SNE would divide by their variance
        return np.zeros((len(points), 2), np.float32)
    if method == "pca":
        from sklearn.decomposition import PCA

        return PCA(2, random_state=seed).fit_transform(points)
    if method == "tsne":
        from sklearn.manifold import TSNE

        return TSNE(perplexity=min(30, (len(points) - 1) / 3), random_state=seed).fit_transform(points)
    import umap  # 20 s, so only here

    bar = {"desc": f"UMAP of {len(points)} vectors", "leave": False, "disable": None, "bar_format": None}
    return umap.UMAP(
        n_neighbors=min(neighbours, len(points) - 1), min_dist=min_dist, init=start, random_state=seed, n_jobs=1, tqdm_kwds=bar
    ).fit_transform(points)


def split_like(points, sets):
    """Rows of `points` split under the names of `sets`, {name: [n, D]}, in whose order they were concatenated."""
    return dict(zip(sets, np.split(points, np.cumsum([len(rows) for rows in sets.values()])[:-1])))


# ---------------------------------------------------------------------------------------------------------------------
# Over the epochs: style vectors of the same latents, which train.py saves in styles/


def history(folders):
    """[(epoch, {name: w [512, w_dim]})] at up to FRAMES of the epochs that all runs in `folders`, {name: folder}, have saved.

    `folders` may also be the folder of one conditional run: its two classes are the sets then.
    """
    runs = {None: folders} if isinstance(folders, str) else folders
    paths = {name: style_paths(folder) for name, folder in runs.items()}
    epochs = sorted(set.intersection(*map(set, paths.values())))
    shown = np.unique(np.linspace(0, len(epochs) - 1, min(FRAMES, len(epochs))).round().astype(int))

    def read(epoch):
        if isinstance(folders, str):
            return dict(zip(CLASSES, read_styles(paths[None][epoch], axes=3)))
        return {name: read_styles(of_run[epoch], axes=2) for name, of_run in paths.items()}

    return [(epochs[i], read(epochs[i])) for i in shown]


def style_paths(folder):
    """{epoch: path} of the files in a run's styles/."""
    styles, names = os.path.join(folder, "styles"), []
    with contextlib.suppress(OSError):
        names = os.listdir(styles)
    return {
        int(found[1]): os.path.join(styles, found[0]) for name in names if (found := re.fullmatch(r"epoch_([0-9]{4,})\.npy", name))
    }


def read_styles(path, axes):
    """w of one epoch, [512, w_dim] or, with 3 axes, [2, 512, w_dim]; UserError if the file holds anything else."""
    try:
        w = np.load(path, allow_pickle=False)
        if w.ndim != axes or w.shape[:-2] not in ((), (len(CLASSES),)) or not w.size or w.dtype.kind not in "fiu":
            raise ValueError
        with np.errstate(over="ignore"):
            w = w.astype(np.float32)
        if np.abs(w).max() > 1e6 or np.isnan(w).any():
            raise ValueError
    except Exception as error:  # NumPy raises nearly any error on a damaged file
        raise UserError(f"{path}: these are not style vectors saved by train.py ({type(error).__name__}); remove it") from None
    return w


def epochs_to_show(epochs):
    """Up to four of the epochs: those nearest to EPOCHS_SHOWN of the last."""
    epochs = sorted(epochs)
    return sorted({min(epochs, key=lambda epoch: abs(epoch - share * epochs[-1])) for share in EPOCHS_SHOWN}) if epochs else []


def maps_over_epochs(saved, done, **options):
    """[(epoch, {name: [512, 2]}, share of neighbours alike)] of `history`; each map starts from the one before.

    done: called after each map; options: of `embed`, without `start`.
    """
    maps, start = [], "spectral"
    for epoch, sets in saved:
        points = np.concatenate(list(sets.values()))
        classes = np.repeat(np.arange(len(sets)), [len(rows) for rows in sets.values()])
        start = embed(points, start=start, **options)
        start = start - start.mean(0)  # maps drift from epoch to epoch
        maps.append((epoch, split_like(start, sets), neighbour_shares(points, classes).mean()))
        done()
    return maps
