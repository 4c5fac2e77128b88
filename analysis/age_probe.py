"""Is it the disease or age? A linear probe of AD in w with age, sex or slice position held, and age predicted from w.

    results = age_probe(w, classes, scans, indices)     # w [N, D], classes [N] (0: AD), scans: of subjects.identify
    sentences = age_sentences(results)

People with AD are often older, and ventricles grow with age. So a probe that tells AD from NC may only tell old from young. To
hold age, pairs of an AD and an NC slice are compared within a third of ages alone (age-stratified), and likewise within equal slice
indices (position-stratified, see position.py). Beside the probe stand the AUCs of age alone and of the slice index alone;
docs/evidence.md has the formula and limits.
"""

import numpy as np

from analysis.bootstrap import FOLDS, MIN_PEOPLE, auc_interval, bootstrap, fewest_groups, shared_strata
from analysis.position import index_auc
from analysis.style_space import probe_scores
from data.subjects import resampling_groups
from utils import CLASSES

AGE_STRATIFIED, POSITION_STRATIFIED = "age-stratified", "position-stratified"  # rows: pairs of one third of ages, of one index
SHRINKAGE = 100.0  # of the ridge regression of age on standardised w: the probe's 1 / C


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def age_thirds(ages, people):
    """(third [N]: 0, 1 or 2; the two ages between them) of slices: as many people in each, by the mean age of their slices."""
    mean_ages = [ages[people == person].mean() for person in np.unique(people)]
    edges = np.quantile(mean_ages, (1 / 3, 2 / 3))
    return np.searchsorted(edges, ages, side="right"), edges


def rank_correlation(a, b, weights=None):
    """Spearman's rank correlation of a [N] and b [N], ties at their mean rank, rows counting `weights` times; nan if constant."""
    weights = np.ones(len(a)) if weights is None else weights

    def centred_ranks(values):
        _, number = np.unique(values, return_inverse=True)
        counts = np.bincount(number, weights)
        ranks = (np.cumsum(counts) - counts / 2)[number]
        return ranks - np.average(ranks, weights=weights)

    a, b = centred_ranks(a), centred_ranks(b)
    size = np.sqrt((weights * a * a).sum() * (weights * b * b).sum())
    return float((weights * a * b).sum() / size) if size > 0 else float("nan")


def predicted_ages(points, ages, people, seed=0):
    """Held-out ages [N] by ridge regression on standardised points [N, D], fitted up to FOLDS times without a fold's people.

    Each fold gets its share of every third of ages: otherwise folds of old people would be predicted by young ones. Two people
    at least.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    predicted = np.empty(len(points))
    thirds, _ = age_thirds(ages, people)
    fewest = min(len(np.unique(people[thirds == i])) for i in np.unique(thirds))
    folds = StratifiedGroupKFold(max(2, min(FOLDS, fewest)), shuffle=True, random_state=seed)
    for fitted, held_out in folds.split(points, thirds, people):
        ridge = make_pipeline(StandardScaler(), Ridge(alpha=SHRINKAGE))
        predicted[held_out] = ridge.fit(points[fitted], ages[fitted]).predict(points[held_out])
    return predicted


def age_probe(points, classes, scans, indices=None, seed=0):
    """What a linear probe of w knows of the disease and of age; None if no slice's age is known.

    points [N, D], classes int [N] (index in CLASSES), scans: their `subjects.Scan`s; indices: of the slices, float [N], nan where
    unknown (None: of all). Returns {"compared": [{"among", "people": {class: n}, "probe", "age", "index": Interval of the AUC of
    AD by the probe, by age alone and by the slice index alone, None with fewer than MIN_PEOPLE people of a class}], "age from w":
    the same with "rank correlation", "slices": of known age, "placed": of these, those of known index, "unknown": slices without
    an age, left out, "thirds": the ages between them}.
    Intervals resample people; no person is scored by a regression or a rule that was fitted to them.
    """
    groups, _ = resampling_groups(scans)
    ages = np.array([np.nan if scan.age is None else scan.age for scan in scans])
    sexes = np.array([scan.sex or "" for scan in scans])
    indices = np.full(len(scans), np.nan) if indices is None else indices
    known = np.isfinite(ages)
    if not known.any():
        return None
    scores = np.zeros(known.sum())
    if fewest_groups(classes[known] == 0, groups[known]) >= MIN_PEOPLE:
        scores = -probe_scores(points, classes, groups, seed)[known]  # of AD, which is label 0
    points, positive, ages, sexes, people = points[known], classes[known] == 0, ages[known], sexes[known], groups[known]
    thirds, edges = age_thirds(ages, people)
    indices = indices[known]
    placed = np.isfinite(indices)

    def compared(among, rows, strata=None):
        strata = np.zeros(len(ages)) if strata is None else strata
        rows = np.flatnonzero(rows)
        rows = rows[shared_strata(positive[rows], strata[rows])]
        counts = {name: len(np.unique(people[rows][positive[rows] == (name == "AD")])) for name in CLASSES}
        result = {"among": among, "people": counts}
        for name, values in (("probe", scores), ("age", ages)):
            result[name] = auc_interval(values[rows], positive[rows], people[rows], strata[rows], seed)
        return {**result, "index": index_auc(indices[rows], positive[rows], people[rows], seed=seed, strata=strata[rows])}

    everyone, of_known_sex = np.ones(len(ages), bool), sexes != ""
    rows = [compared("all", everyone), compared(AGE_STRATIFIED, everyone, thirds)]
    rows += [compared(f"of them, {span}", thirds == i) for i, span in enumerate(spans(edges))]
    if of_known_sex.any():
        rows.append(compared("sex-stratified", of_known_sex, sexes))
        rows += [compared(f"of them, {sex}", sexes == sex) for sex in np.unique(sexes[of_known_sex])]
    if placed.any():
        rows.append(compared(POSITION_STRATIFIED, placed, indices))
    return {
        "compared": rows,
        "age from w": predicted_rows(points, ages, people, positive, seed),
        "slices": int(known.sum()),
        "placed": int(placed.sum()),
        "unknown": int((~known).sum()),
        "thirds": edges.tolist(),
    }


def predicted_rows(points, ages, people, positive, seed):
    """[{"among", "people": n, "rank correlation": Interval of ages and `predicted_ages`, or None with few people}]: all, AD, NC."""
    rows = []
    enough = len(np.unique(people)) >= 2 * MIN_PEOPLE
    predicted = predicted_ages(points, ages, people, seed) if enough else None
    for among, part in (("all", np.ones(len(ages), bool)), ("AD", positive), ("NC", ~positive)):
        row = {"among": among, "people": len(np.unique(people[part])), "rank correlation": None}
        if enough and row["people"] >= 2 * MIN_PEOPLE:
            pair = predicted[part], ages[part]
            row["rank correlation"] = bootstrap(
                lambda weights, pair=pair: rank_correlation(*pair, weights), people[part], seed=seed
            )
        rows.append(row)
    return rows


def spans(edges):
    """The three thirds of ages in words."""
    low, high = (f"{edge:.1f}" for edge in edges)
    return f"under {low} years", f"{low} to {high} years", f"{high} years and over"


# ---------------------------------------------------------------------------------------------------------------------
# What it says


def age_sentences(results):
    """Plain sentences of what `age_probe` found."""
    everyone, held = results["compared"][:2]
    of_position = next((row for row in results["compared"] if row["among"] == POSITION_STRATIFIED), None)
    from_w = results["age from w"][0]["rank correlation"]
    if everyone["probe"] is None:
        counted = " and ".join(f"{n} {name}" for name, n in everyone["people"].items())
        return [f"Age: known of {counted} people, too few for any figure (at least {MIN_PEOPLE} of each class are needed)."]
    alone = f", slice index alone with {everyone['index']}" if everyone["index"] else ""
    sentences = [
        f"Age: a linear probe of w tells AD from NC with an AUC of {everyone['probe']}; age alone does with "
        f"{everyone['age']}{alone}."
    ]
    if held["probe"] is None:
        sentences.append("Too few people of both classes share a third of ages: whether the probe sees more than age is open.")
    else:
        if held["probe"].low > 0.5:
            carried = "the probe sees something of AD that is not age"
            if of_position and not (of_position["probe"] and of_position["probe"].low > 0.5):
                carried = "the probe sees something that is not age, but no more than slice position may explain"
        elif everyone["probe"].low > 0.5:
            carried = "that interval includes 0.5: with age held, nothing of AD was shown to be left"
        else:
            carried = "no separation was shown with age held or without"
        sentences.append(f"Age-stratified the AUC is {held['probe']}: {carried}.")
        if held["age"].low > 0.5:
            sentences.append(f"AD is older within thirds, too (AUC of age {held['age']}): age is held only in part.")
    if of_position and of_position["probe"]:
        sentences.append(f"Position-stratified the AUC is {of_position['probe']}.")
    if from_w is not None:
        known = "w knows something of age" if from_w.low > 0 else "that w knows of age was not shown"
        sentences.append(f"Age predicted from w has a rank correlation of {from_w} with the true age: {known}.")
    return sentences
