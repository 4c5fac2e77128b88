"""The style space: how far two sets of style vectors lie apart, measured in w itself, and maps of them.

    ad, nc = ...                                        # w [n, 256] each, of the same latents
    separation(ad, nc)                                  # neighbours alike and a linear probe's AUC, with intervals
    embed(np.concatenate([ad, nc]), "umap")             # [2 n, 2]

What a gap can carry. The w spaces of two models share nothing but what their mapping networks started with: of two seeds they
lie wholly apart before any training, of one seed they start as equals and drift. Neither is a finding about the disease. So
AD against NC is held against a control, NC against a second NC model, by `verdict`. One conditional model has one w space for
both classes, but keeps them apart from its first step, since it is told the class; what it was not told is the class of real
slices that are projected into that space.
"""

import glob
import os
from typing import NamedTuple

import numpy as np
import torch

from analysis.bootstrap import Interval, auc, bootstrap
from utils import CLASSES, UserError

NEIGHBOURS, FOLDS = 15, 5
EPOCHS_SHOWN = 0, 1 / 16, 3 / 8, 1  # shares of the training in the panel over epochs: 0, 5, 30, 80 of 80
FRAMES = 12  # epochs in the GIF, at most
APART = 0.99  # from here on two sets lie wholly apart
EPOCHS_NOTE = (
    "Neighbours alike: 50% when both mix, 100% when they lie apart. Models of two seeds lie apart before any "
    "training, and a conditional model is told the class: no gap here is by itself a finding about AD and NC (README)."
)


# ---------------------------------------------------------------------------------------------------------------------
# How far apart


class Separation(NamedTuple):
    """How far two sets of vectors lie apart: 0.5 (both) when they mix, 1 when they lie apart."""

    alike: Interval  # mean share of a vector's NEIGHBOURS nearest that are of its own set
    auc: Interval  # of a linear probe, on vectors that it was not fitted to


def neighbour_shares(points, classes, k=NEIGHBOURS):
    """Share of each point's k nearest neighbours that have its own class, [N], of points [N, D] and classes [N]."""
    points, shares = torch.as_tensor(points, dtype=torch.float64), []
    for start in range(0, len(points), 1024):  # [1024, N] distances at a time
        distance = torch.cdist(points[start : start + 1024], points)
        distance[range(len(distance)), range(start, start + len(distance))] = float("inf")
        nearest = distance.topk(min(k, len(points) - 1), largest=False).indices.numpy()
        shares.append((classes[nearest] == classes[start : start + 1024, None]).mean(1))
    return np.concatenate(shares)


def probe_scores(points, classes, groups, seed=0):
    """Held-out scores [N] of a logistic regression on standardised points [N, D], fitted FOLDS times without a fold's groups."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = np.empty(len(points))
    folds = min(FOLDS, np.bincount(classes).min())
    for rest, fold in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(points, classes, groups):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        scores[fold] = probe.fit(points[rest], classes[rest]).decision_function(points[fold])
    return scores


def separation(a, b, paired=True, seed=0):
    """Separation of a [n, D] from b [m, D]; `paired`: row i of both is of one latent, and they are drawn together."""
    points, classes = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    groups = np.r_[: len(a), : len(b)] if paired else np.arange(len(points))
    shares, scores = neighbour_shares(points, classes), probe_scores(points, classes, groups, seed)
    return Separation(
        bootstrap(lambda weights: np.average(shares, weights=weights), groups, seed=seed),
        bootstrap(lambda weights: auc(scores, classes == 1, weights), groups, seed=seed),
    )


def verdict(pair, control=None, like=True):
    """What the Separation of an AD and an NC model carries, given that of two NC models (None: there is none), in a sentence.

    like: the two pairs start alike, either both from one seed or both from two.
    """
    if control is None:
        return (
            "Two models trained apart have unrelated style spaces: without --control_dir, a second NC model, no gap between "
            "them says anything about AD and NC."
        )
    if min(pair.alike.value, control.alike.value) >= APART:
        return "AD and NC lie wholly apart, but so do NC and NC: it is the models that differ, and nothing is shown of the disease."
    further = sum(ours.low > theirs.high for ours, theirs in zip(pair, control))
    text = (
        "AD and NC lie no further apart than NC and NC do.",
        "By one of two measures AD and NC lie further apart than NC and NC.",
        "AD and NC lie further apart than NC and NC do, by both measures; one pair of models each.",
    )[further]
    return (
        text
        if like
        else text + (" But one pair shares its seed, the other does not: no like comparison (train the three with three seeds).")
    )


def conditional_verdict(real=None):
    """The same of a conditional model, given the Separation of real AD and NC slices in its style space, or None."""
    text = "A conditional model is told the class, so its own AD and NC lie apart from the start, whatever they are. "
    if real is None:
        return text + "--dataset_dir AD_NC/test would project real slices into its style space."
    apart = "they lie apart there more than by chance" if real.auc.low > 0.5 else "that they lie apart there was not shown"
    return text + f"Real slices, found in its style space without their class: {apart}, AUC {real.auc}."


# ---------------------------------------------------------------------------------------------------------------------
# Maps


def embed(points, method="umap", seed=0, neighbours=15, min_dist=0.1, start="spectral"):
    """A map [N, 2] of vectors [N, D] by umap (McInnes et al. 2018), tsne (van der Maaten and Hinton 2008) or pca.

    neighbours, min_dist, start: of UMAP, the last a method or the positions [N, 2] to start from. One thread, so that the
    same seed gives the same map.
    """
    from sklearn.decomposition import PCA

    if method == "pca":
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
    """Rows of `points` back under the names of `sets`, {name: [n, D]}, whose rows they are in order."""
    return dict(zip(sets, np.split(points, np.cumsum([len(rows) for rows in sets.values()])[:-1])))


# ---------------------------------------------------------------------------------------------------------------------
# Over the epochs: what train.py kept of the same latents in styles/


def read_styles(folder):
    """{epoch: path} of a run's styles/."""
    return {int(path[-8:-4]): path for path in glob.glob(os.path.join(folder, "styles", "epoch_[0-9][0-9][0-9][0-9].npy"))}


def read_array(path, axes):
    """w of one epoch, [512, w_dim] or, with 3 axes, [2, 512, w_dim]; UserError when the file holds no such thing."""
    try:
        w = np.load(path, allow_pickle=False)
        if w.ndim != axes or w.shape[:-2] not in ((), (len(CLASSES),)) or not w.size or w.dtype.kind not in "fiu":
            raise ValueError
        with np.errstate(over="ignore"):
            w = w.astype(np.float32)
        if np.abs(w).max() > 1e6 or np.isnan(w).any():
            raise ValueError
    except Exception as error:  # of a damaged file NumPy raises nearly anything
        raise UserError(f"{path}: not the style vectors that train.py kept ({type(error).__name__}); remove it") from None
    return w


def history(folders):
    """[(epoch, {name: w [512, w_dim]})] at up to FRAMES epochs that all runs in `folders`, {name: folder}, kept.

    A single folder, instead of the dict, is that of a conditional run: its two classes are the sets.
    """
    paths = (
        {None: read_styles(folders)}
        if isinstance(folders, str)
        else {name: read_styles(folder) for name, folder in folders.items()}
    )
    epochs = sorted(set.intersection(*map(set, paths.values())))
    chosen = sorted({*np.linspace(0, len(epochs) - 1, FRAMES).round().astype(int)} if len(epochs) > FRAMES else range(len(epochs)))
    return [
        (
            epochs[i],
            dict(zip(CLASSES, read_array(paths[None][epochs[i]], 3)))
            if None in paths
            else {name: read_array(kept[epochs[i]], 2) for name, kept in paths.items()},
        )
        for i in chosen
    ]


def epochs_to_show(epochs):
    """Up to four of the epochs at hand, nearest to EPOCHS_SHOWN of the last."""
    epochs = sorted(epochs)
    if not epochs:
        return []
    return sorted({min(epochs, key=lambda epoch: abs(epoch - share * epochs[-1])) for share in EPOCHS_SHOWN})


def maps_over_epochs(kept, done, **options):
    """[(epoch, {name: [512, 2]}, share of alike neighbours)] of `history`; each map starts from the one before it.

    done: called after each; options: of `embed`, but for its start.
    """
    maps, start = [], "spectral"
    for epoch, sets in kept:
        points = np.concatenate(list(sets.values()))
        classes = np.repeat(np.arange(len(sets)), [len(rows) for rows in sets.values()])
        start = embed(points, start=start, **options)
        start = start - start.mean(0)  # maps drift from epoch to epoch
        maps.append((epoch, split_like(start, sets), neighbour_shares(points, classes).mean()))
        done()
    return maps
