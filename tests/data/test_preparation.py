"""What a run of prepare.py is made of: sides that stay, masks by ID, its record. The rest is in test_prepare.py."""

import os

import pytest

pytest.importorskip("SimpleITK")

from data.preparation import assign_sides, find_masks  # noqa: E402
from data.subjects import Scan  # noqa: E402


def scans_of(first, count):
    """Two scans each of `count` people, AD and CN by turns."""
    return [
        Scan(str(2 * i + k), f"p{i}", ("AD", "CN")[i % 2], "MF"[i // 2 % 2], 60.0 + i)
        for i in range(first, first + count)
        for k in (0, 1)
    ]


def test_sides_depend_on_the_seed_and_hold_the_share_of_every_class():
    people = {}
    assign_sides(people, scans_of(0, 100), 0.3, 0)
    assert len(people) == 100 and sum(side == "test" for side in people.values()) == 30
    assert sum(people[f"p{i}"] == "test" for i in range(0, 100, 2)) == 15
    again, other = {}, {}
    assign_sides(again, scans_of(0, 100)[::-1], 0.3, 0)
    assign_sides(other, scans_of(0, 100), 0.3, 1)
    assert again == people != other


def test_sides_stay_when_people_come_one_by_one_and_the_share_is_kept_on_average():
    people = {}
    for i in range(200):
        before = dict(people)
        assign_sides(people, scans_of(0, i + 1), 0.3, 0)
        assert before.items() <= people.items()
    share = sum(side == "test" for side in people.values()) / 200
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 200) ** 0.5  # four standard errors of independent draws


def test_find_masks_prefers_files_called_mask(tmp_path):
    for name in ("I1_bet.nii.gz", "I1_bet_mask.nii.gz", "I2.nii", "I3_mask.nii", "I3_Mask.nii.gz", "x.nii"):
        (tmp_path / name).write_bytes(b"")
    for name in ("sub-01_T1w.nii.gz", "derivatives/sub-01_T1w_brain_mask.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = {image: sorted(map(os.path.basename, paths)) for image, paths in find_masks(str(tmp_path)).items()}
    assert found.pop("sub-01_T1w") == ["sub-01_T1w_brain_mask.nii.gz"]
    assert found == {"1": ["I1_bet_mask.nii.gz"], "2": ["I2.nii"], "3": ["I3_Mask.nii.gz", "I3_mask.nii"]}
