"""Is it the disease or age? A linear probe of AD in w with age or sex held, age predicted from w, and the AUC of age alone.

    results = age_probe(w, classes, scans)              # w [N, D], classes [N] (1: positive), scans: of subjects.identify
    section = age_section(real, names, table)           # of projected slices {"real AD": w, "real NC": w}; None without ages

People with AD are often older, and ventricles grow with age. So a probe that tells AD from NC may only tell old from young. To
hold age, pairs of an AD and an NC slice are compared within a third of ages alone; docs/evidence.md has the formula and limits.
"""

import numpy as np

from analysis.bootstrap import auc, bootstrap
from analysis.report import ReportTable, Section
from analysis.style_space import FOLDS, probe_scores
from analysis.subjects import identify, resampled_text, resampling_groups
from utils import CLASSES

FEWEST = 5  # people of either class below which there is no figure
SHRINKAGE = 100.0  # of the ridge regression of age on standardised w: the probe's 1 / C


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def age_thirds(ages, people):
    """(third [N]: 0, 1 or 2; the two ages between them) of slices: as many people in each, by the mean age of their slices."""
    mean_ages = [ages[people == person].mean() for person in np.unique(people)]
    edges = np.quantile(mean_ages, (1 / 3, 2 / 3))
    return np.searchsorted(edges, ages, side="right"), edges


def auc_within(scores, positive, strata, weights=None):
    """AUC over those pairs of a positive and a negative that lie in the same stratum [N]; nan if there is none.

    sum_s P_s N_s AUC_s / sum_s P_s N_s, with P_s and N_s the weights of the positives and negatives in stratum s.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    wins = pairs = 0.0
    for stratum in np.unique(strata):
        rows = strata == stratum
        of_stratum = weights[rows][positive[rows]].sum() * weights[rows][~positive[rows]].sum()
        if of_stratum:
            wins += of_stratum * auc(scores[rows], positive[rows], weights[rows])
            pairs += of_stratum
    return wins / pairs if pairs else float("nan")


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


def age_probe(points, classes, scans, seed=0):
    """What a linear probe of w knows of the disease and of age; None if no slice's age is known.

    points [N, D], classes int [N] (index in CLASSES), scans: their `subjects.Scan`s. Returns {"compared": [{"among", "people":
    {class: n}, "probe", "age": Interval of the AUC of AD by the probe and by age alone, None with fewer than FEWEST people of a
    class}], "age from w": the same with "rank correlation", "slices", "unknown": slices without an age, left out, "thirds": the
    ages between them}. Intervals resample people; no person is scored by a regression that was fitted to them.
    """
    groups, _ = resampling_groups(scans)
    ages = np.array([np.nan if scan.age is None else scan.age for scan in scans])
    sexes = np.array([scan.sex or "" for scan in scans])
    known = np.isfinite(ages)
    if not known.any():
        return None
    scores = np.zeros(known.sum())
    if min(len(np.unique(groups[known & (classes == i)])) for i in (0, 1)) >= FEWEST:
        scores = -probe_scores(points, classes, groups, seed)[known]  # of AD, which is label 0
    points, positive, ages, sexes, people = points[known], classes[known] == 0, ages[known], sexes[known], groups[known]
    thirds, edges = age_thirds(ages, people)

    def counts(rows):
        return {name: len(np.unique(people[rows & (positive == (name == "AD"))])) for name in CLASSES}

    def compared(among, rows, strata=None):
        strata = np.zeros(len(rows), int) if strata is None else strata
        both = [s for s in np.unique(strata[rows]) if len(np.unique(positive[rows & (strata == s)])) == 2]
        rows = rows & np.isin(strata, both)
        result = {"among": among, "people": counts(rows), "probe": None, "age": None}
        if min(result["people"].values()) >= FEWEST:
            for name, values in (("probe", scores), ("age", ages)):
                part = values[rows], positive[rows], strata[rows]
                result[name] = bootstrap(lambda weights, part=part: auc_within(*part, weights), people[rows], seed=seed)
        return result

    everyone, of_known_sex = np.ones(len(ages), bool), sexes != ""
    rows = [compared("all", everyone), compared("within thirds of age", everyone, thirds)]
    rows += [compared(f"of them, {span}", thirds == i) for i, span in enumerate(spans(edges))]
    if of_known_sex.any():
        rows.append(compared("within sex", of_known_sex, sexes))
        rows += [compared(f"of them, {sex}", sexes == sex) for sex in np.unique(sexes[of_known_sex])]
    return {
        "compared": rows,
        "age from w": predicted_rows(points, ages, people, positive, seed),
        "slices": int(known.sum()),
        "unknown": int((~known).sum()),
        "thirds": edges.tolist(),
    }


def predicted_rows(points, ages, people, positive, seed):
    """[{"among", "people": n, "rank correlation": Interval of ages and `predicted_ages`, or None with few people}]: all, AD, NC."""
    rows = []
    enough = len(np.unique(people)) >= 2 * FEWEST
    predicted = predicted_ages(points, ages, people, seed) if enough else None
    for among, part in (("all", np.ones(len(ages), bool)), ("AD", positive), ("NC", ~positive)):
        row = {"among": among, "people": len(np.unique(people[part])), "rank correlation": None}
        if enough and row["people"] >= 2 * FEWEST:
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
    from_w = results["age from w"][0]["rank correlation"]
    if everyone["probe"] is None:
        counted = " and ".join(f"{n} {name}" for name, n in everyone["people"].items())
        return [f"Age: known of {counted} people, too few for any figure (at least {FEWEST} of either class are needed)."]
    sentences = [
        f"Age: a linear probe of w tells AD from NC with an AUC of {everyone['probe']}; age alone does with {everyone['age']}."
    ]
    if held["probe"] is None:
        sentences.append("Too few people of both classes share a third of ages: whether the probe sees more than age is open.")
    else:
        if held["probe"].low > 0.5:
            carried = "the probe sees something of AD that is not age"
        elif everyone["probe"].low > 0.5:
            carried = "that interval includes 0.5: with age held, nothing of AD was shown to be left"
        else:
            carried = "no separation was shown with age held or without"
        sentences.append(f"Within thirds of age the AUC is {held['probe']}: {carried}.")
        if held["age"].low > 0.5:
            sentences.append(f"AD is older within thirds, too (AUC of age {held['age']}): age is held only in part.")
    if from_w is not None:
        known = "w knows something of age" if from_w.low > 0 else "that w knows of age was not shown"
        sentences.append(f"Age predicted from w has a rank correlation of {from_w} with the true age: {known}.")
    return sentences


def age_tables(results):
    few = f"too few (under {FEWEST} of a class)"
    rows = [
        [row["among"], *row["people"].values(), *(few if row[name] is None else tuple(row[name]) for name in ("probe", "age"))]
        for row in results["compared"]
    ]
    unknown = f" {results['unknown']} slices of unknown age are left out." if results["unknown"] else ""
    caption = (
        "AUC of AD against NC by a linear probe of w, and by age alone: 0.5 by chance. Within thirds, or within sex: only pairs of "
        f"the same third or sex are compared. {results['slices']} slices.{unknown}"
    )
    columns = ["compared", "AD people", "NC people", "linear probe of w, AUC", "age alone, AUC"]
    predicted = [
        [row["among"], row["people"], tuple(row["rank correlation"] or ()) or f"too few (under {2 * FEWEST})"]
        for row in results["age from w"]
    ]
    note = "Age predicted from w by ridge regression, for people that it was not fitted to: 0 by chance, 1 if in perfect order."
    return [ReportTable(columns, rows, caption), ReportTable(["people", "number", "rank correlation with age"], predicted, note)]


def age_section(real, names, table, title="Age and sex", seed=0):
    """A report.Section on projected slices {"real AD": w [n, D], "real NC": ...}, with their file names, in that order, and the
    table of `read_subjects`; None where no age is known."""
    scans = identify(names, table)
    classes = np.repeat([0, 1], [len(w) for w in real.values()])
    results = age_probe(np.concatenate(list(real.values())), classes, scans, seed)
    if results is None:
        return None
    return Section(title, [*age_sentences(results), resampled_text("people")], age_tables(results), numbers=results)
