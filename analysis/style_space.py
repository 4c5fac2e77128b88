"""The style space: how far apart two sets of style vectors are, measured in w itself, and two-dimensional maps of them.

    ad, nc = ...                                        # w [n, 256] each, row i of both from the same latent
    style_separation(ad, nc)                            # same-class k-NN fraction and a linear probe's AUC, with intervals
    embed(np.concatenate([ad, nc]), "umap")             # [2 n, 2]

Two models share no style space: if their seeds differ, their style vectors are fully separated before any training; if they share
a seed, they start identical and drift apart. So `verdict` compares AD and NC with a control: NC and a second NC model. One
conditional model has one style space for both classes, but is told the class; real slices are encoded without it
(encoded_maps.py), and `real_verdict` says whether they are separated there.
"""

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from analysis.bootstrap import FOLDS, Interval, auc, bootstrap, bootstrap_auc
from analysis.position import beyond_position, position_text

NEIGHBOURS = 15
UNDEFINED = Interval(np.nan, np.nan, np.nan)
PERMUTATIONS = 199  # of labels, for a p value; with 199 the smallest is 0.005
SIGNIFICANT = 0.025  # one-sided, as for intervals of 95%
SEPARATED = 0.99  # same-class k-NN fraction from which on two sets count as fully separated


# ---------------------------------------------------------------------------------------------------------------------
# How far apart


class StyleSeparation(NamedTuple):
    """How well two sets of style vectors are separated: 1 if they are fully separated, by both measures."""

    same_class: Interval  # the same-class k-NN fraction: mean share of a vector's NEIGHBOURS nearest ones that are of its own set
    auc: Interval  # `Auc` of a linear probe, on vectors that it was not fitted to; 0.5 by chance
    chance: float = 0.5  # the same-class k-NN fraction of sets that mix
    p: float = np.nan  # of the AUC, one-sided, by `permutation_test`; nan if it was not made


def style_separation(a, b, groups=None, seed=0, scores=None):
    """StyleSeparation of a [n, D] and b [m, D]; nan without two groups of both.

    scores [n + m], higher for b: of a probe that was fitted to other points; None: one is cross-validated on these.

    groups [n + m], of a and then of b: rows of one group (slices of a person) are resampled together, do not count as neighbours
    and are not scored by a probe fitted to others of them; their AUC is tested by `permutation_test`, since the bootstrap does
    not fit the probe again, so that its interval is too narrow. None: row i of both has the same latent; these are resampled
    together.
    """
    points, classes = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    drawn = np.r_[: len(a), : len(b)] if groups is None else np.unique(groups, return_inverse=True)[1]
    if min(len(np.unique(drawn[classes == i])) for i in (0, 1)) < 2:
        return StyleSeparation(UNDEFINED, UNDEFINED)
    fractions, fixed = same_class_fractions(points, classes, groups), scores is not None
    scores = scores if fixed else probe_scores(points, classes, drawn, seed)

    def measured(labels):
        return auc(scores if fixed or labels is classes else probe_scores(points, labels, drawn, seed), labels == 1)

    p, critical = (np.nan, None) if groups is None else permutation_test(measured, classes, drawn, seed)
    return StyleSeparation(
        bootstrap(lambda weights: np.average(fractions, weights=weights), drawn, seed=seed),
        bootstrap_auc(lambda weights: auc(scores, classes == 1, weights), classes == 1, drawn, seed=seed, critical=critical),
        chance_fraction(classes, groups),
        p,
    )


def chance_fraction(classes, groups=None):
    """The same-class k-NN fraction expected if classes [N] mix: the mean share of a row's possible neighbours in its class.

    Possible neighbours are those of other groups [N] (None: all others). For G people of each class with as many slices each it
    is (G - 1) / (2 G - 1): 0.44 for five, not 0.5, since the own person is left out.
    """
    groups = np.arange(len(classes)) if groups is None else np.unique(groups, return_inverse=True)[1]
    possible = groups[:, None] != groups
    return float((((classes[:, None] == classes) & possible).sum(1) / possible.sum(1)).mean())


def permutation_test(statistic, classes, groups, seed=0):
    """(p, critical) of statistic(classes int [N]), such as the AUC of a probe fitted to these labels, permuted over groups [N].

    p: share of PERMUTATIONS + 1 labellings, the true one among them, whose statistic is at least that of the true one (Phipson and
    Smyth 2010); critical: the smallest with p <= SIGNIFICANT. Groups with rows of both classes keep their labels, so that each
    class keeps its number of groups.
    """
    rng, null = np.random.default_rng(seed), []
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    members = [rows for rows in members if len(np.unique(classes[rows])) == 1]
    of_groups = [classes[rows[0]] for rows in members]
    for _ in tqdm(range(PERMUTATIONS), "permuting labels", leave=False, disable=None):
        labels = classes.copy()
        for rows, label in zip(members, rng.permutation(of_groups)):
            labels[rows] = label
        null.append(statistic(labels))
    null = np.sort(null)
    allowed = int(SIGNIFICANT * (PERMUTATIONS + 1)) - 1  # of the permutations, so many may reach the statistic
    return (1 + (null >= statistic(classes)).sum()) / (PERMUTATIONS + 1), float(np.nextafter(null[-1 - allowed], 1))


def same_class_fractions(points, classes, groups=None, k=NEIGHBOURS):
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
    from sklearn.model_selection import StratifiedGroupKFold

    scores = np.empty(len(points))
    folds = min(FOLDS, *(len(np.unique(groups[classes == i])) for i in (0, 1)))
    for fitted, held_out in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(points, classes, groups):
        if len(np.unique(classes[fitted])) < 2:  # a class of few groups, all in this fold
            scores[held_out] = 0.0
            continue
        scores[held_out] = build_probe().fit(points[fitted], classes[fitted]).decision_function(points[held_out])
    return scores


def build_probe():
    """A logistic regression on standardised points."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))


def verdict(pair, control=None, comparable=True):
    """One sentence: what the StyleSeparation of an AD and an NC model shows, given that of two NC models (None: no control).

    comparable: whether the pairs are, each trained with one shared seed or each with two seeds.
    """
    if control is None:
        return (
            "Two models trained apart have unrelated style spaces: without a control, a second NC model (--control_dir), no gap "
            "between them says anything about AD and NC."
        )
    if min(pair.same_class.value, control.same_class.value) >= SEPARATED:
        return "AD and NC are fully separated, but so are the two NC models: the gap is one between models, not of the disease."
    larger_gaps = (pair.same_class.low > control.same_class.high) + (pair.auc.low > control.auc.high)
    text = (
        "AD and NC were not shown to be further apart than the two NC models.",
        "By one of two measures, AD and NC are further apart than the two NC models.",
        "By both measures, AD and NC are further apart than the two NC models (one pair of models each).",
    )[larger_gaps]
    if larger_gaps:
        text += " Slices of AD and NC cut at different positions can do that as well: dataset.py tells."
    if not comparable:
        text += " But one pair shares its seed and the other does not: no fair comparison (train all three with three seeds)."
    return text


CONDITIONAL_NOTE = (
    "A conditional model is told the class, so where its own AD and NC lie says nothing about the disease; real slices "
    "(--dataset_dir) are encoded without it."
)


def real_verdict(real, position=None, seen=False, probe="a linear probe"):
    """What the StyleSeparation of encoded real slices shows, given the `position_probe` of the same probe: AD and NC are not called
    separated where the slice index explains as much, or the model has seen these people in training; probe: its name."""
    tested = f"AUC {real.auc} of {probe}, p = {real.p:.3f} by permutation of people"
    if np.isnan(real.p):
        separation = "too few people to tell whether they are separated"
    elif real.p > SIGNIFICANT:
        separation = f"no separation was shown, {tested}"
    elif position and not beyond_position(position):
        separation = f"{tested}, but no more than slice position may explain"
    elif seen:
        separation = f"{tested}, but of people whom the model was trained on: nothing is concluded"
    else:
        separation = f"they are separated more than by chance, {tested}"
    sentence = f"Real AD and NC slices, encoded without their class: {separation}."
    return " ".join([sentence, *(position_text(position, shown=real.p <= SIGNIFICANT and not seen) if position else [])])


# ---------------------------------------------------------------------------------------------------------------------
# Maps


def embed(points, method="umap", seed=0, n_neighbors=15, min_dist=0.1, start="spectral"):
    """A map [N, 2] of vectors [N, D] by umap (McInnes et al. 2018), tsne (van der Maaten and Hinton 2008) or pca.

    n_neighbors, min_dist and start (a method, or positions [N, 2]) are UMAP's, which runs in one thread so that the same seed
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
        n_neighbors=min(n_neighbors, len(points) - 1), min_dist=min_dist, init=start, random_state=seed, n_jobs=1, tqdm_kwds=bar
    ).fit_transform(points)


def split_like(points, sets):
    """Rows of `points` [N, ...] split under the names of `sets`, {name: [n, ...]}, in whose order they were concatenated."""
    return dict(zip(sets, np.split(points, np.cumsum([len(rows) for rows in sets.values()])[:-1])))
