"""Is it the disease or age? A linear probe of AD in w, stratified by age, sex or slice position.

    results = age_probe(scores, classes, scans, indices)    # scores [N] of AD, classes [N] (0: AD), scans: of subjects.identify
    sentences = age_sentences(results)

People with AD are often older, so a probe that tells AD from NC may only tell old from young. To hold age, pairs of an AD and an NC
slice are compared within a third of ages alone (age-stratified), and likewise within equal slice indices (position-stratified, see
position.py). Beside the probe stand the AUCs of age alone and of the slice index alone; limits are in docs/methods.md.
"""

import numpy as np

from analysis.bootstrap import MIN_PEOPLE, auc_interval, shared_strata
from analysis.position import index_auc
from data.subjects import resampling_groups
from utils import CLASSES

AGE_STRATIFIED, POSITION_STRATIFIED = "age-stratified", "position-stratified"  # rows: pairs of one third of ages, of one index


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def age_thirds(ages, people):
    """(third [N]: 0, 1 or 2; the two ages between them) of slices: as many people in each, by the mean age of their slices."""
    mean_ages = [ages[people == person].mean() for person in np.unique(people)]
    edges = np.quantile(mean_ages, (1 / 3, 2 / 3))
    return np.searchsorted(edges, ages, side="right"), edges


def age_probe(scores, classes, scans, indices=None, seed=0):
    """What a linear probe of w knows of the disease and of age; None if no slice's age is known.

    scores [N] of AD, each by a probe that was not fitted to this person; classes int [N] (index in CLASSES), scans: their
    `subjects.Scan`s; indices: of the slices, float [N], nan where unknown (None: of all). Returns {"compared": [{"among", "people":
    {class: n}, "probe", "age", "index": Interval of the AUC of AD by the probe, by age alone and by the slice index alone, None
    with fewer than MIN_PEOPLE people of a class}], "slices": of known age, "placed": of these, those of known index, "unknown":
    slices without an age, left out, "thirds": ages between them}. Intervals resample people; the rule that knows the index, too,
    scores nobody that it was fitted to.
    """
    groups, _ = resampling_groups(scans)
    ages = np.array([np.nan if scan.age is None else scan.age for scan in scans])
    sexes = np.array([scan.sex or "" for scan in scans])
    indices = np.full(len(scans), np.nan) if indices is None else indices
    known = np.isfinite(ages)
    if not known.any():
        return None
    scores, positive, people = scores[known], classes[known] == 0, groups[known]
    ages, sexes, indices = ages[known], sexes[known], indices[known]
    thirds, edges = age_thirds(ages, people)
    placed, everyone, alike = np.isfinite(indices), np.ones(len(ages), bool), np.zeros(len(ages))

    def compared(among, rows, strata):
        rows = np.flatnonzero(rows)
        rows = rows[shared_strata(positive[rows], strata[rows])]
        counts = {name: len(np.unique(people[rows][positive[rows] == (name == "AD")])) for name in CLASSES}
        result = {"among": among, "people": counts}
        for name, values in (("probe", scores), ("age", ages)):
            result[name] = auc_interval(values[rows], positive[rows], people[rows], strata[rows], seed)
        return {**result, "index": index_auc(indices[rows], positive[rows], people[rows], seed=seed, strata=strata[rows])}

    low, high = (f"{edge:.1f}" for edge in edges)
    spans = f"under {low} years", f"{low} to {high} years", f"{high} years and over"
    rows = [compared("all", everyone, alike), compared(AGE_STRATIFIED, everyone, thirds)]
    rows += [compared(f"of them, {span}", thirds == i, alike) for i, span in enumerate(spans)]
    if (sexes != "").any():
        rows.append(compared("sex-stratified", sexes != "", sexes))
        rows += [compared(f"of them, {sex}", sexes == sex, alike) for sex in np.unique(sexes[sexes != ""])]
    if placed.any():
        rows.append(compared(POSITION_STRATIFIED, placed, indices))
    return {
        "compared": rows,
        "slices": int(known.sum()),
        "placed": int(placed.sum()),
        "unknown": int((~known).sum()),
        "thirds": edges.tolist(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# What it says


def age_sentences(results, shown=True, seen=False):
    """Plain sentences of what `age_probe` found.

    shown: whether the probe was shown to tell AD from NC at all; seen: the model was trained on these people, so nothing is
    concluded.
    """
    everyone, stratified = results["compared"][:2]
    of_position = next((row for row in results["compared"] if row["among"] == POSITION_STRATIFIED), None)
    if everyone["probe"] is None:
        counted = " and ".join(f"{n} {name}" for name, n in everyone["people"].items())
        return [f"Age: known of {counted} people, too few for any figure (at least {MIN_PEOPLE} of each class are needed)."]
    alone = f", slice index alone with {everyone['index']}" if everyone["index"] else ""
    sentences = [
        f"Age: a linear probe of w tells AD from NC with an AUC of {everyone['probe']}; age alone does with "
        f"{everyone['age']}{alone}."
    ]
    if stratified["probe"] is None:
        sentences.append("Too few people of both classes share a third of ages: whether the probe sees more than age is open.")
    else:
        if seen:
            found = "nothing is concluded of people whom the model was trained on"
        elif not shown:
            found = "no separation was shown"
        elif stratified["probe"].low <= 0.5:
            found = "the interval includes 0.5, so no difference beyond age was shown"
        elif stratified["age"].low > 0.5:
            found = "AD is older within a third of ages, too, so whether the probe sees more than age is open"
        elif of_position and not (of_position["probe"] and of_position["probe"].low > 0.5):
            found = "the probe sees something that is not age, but no more than slice position may explain"
        else:
            found = "the probe sees something of AD that is not age"
        sentences.append(f"Age-stratified the AUC is {stratified['probe']}, that of age {stratified['age']}: {found}.")
    if of_position and of_position["probe"]:
        sentences.append(f"Position-stratified the AUC is {of_position['probe']}.")
    return sentences
