"""phantom.py: the layout, the truth in subjects.csv measured in a second way, and files that must stay as they are."""

import csv
import json
import pathlib
import sys
from argparse import ArgumentTypeError

import numpy as np
import pytest
from conftest import read_image
from PIL import Image

import phantom
from data import phantom_anatomy
from data.phantom_anatomy import VIEWS, add_rician_noise, draw_age_and_sex, draw_subject, render, slice_tissue, true_areas
from phantom import Settings, place, plan_scans, write_phantoms
from utils import CLASSES, UserError

DISEASE = "ventricle_scale", "sulcal_width_mm", "cortical_thickness_mm"


def subject(number=0, label="NC", **changes):
    """A subject without tilt, so that positions mean the same in each."""
    straight = dict.fromkeys(("yaw_deg", "pitch_deg", "roll_deg", "nod_deg", "shift_x_mm"), 0.0)
    return {**draw_subject(np.random.default_rng([7, number]), label), **straight, **changes}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_subject(folder, subject, *settings, **flags):
    """Write the slices of one subject of the phantoms with these Settings; returns its rows of subjects.csv."""
    for split, label in {place(i) for i in range(4)}:
        (folder / split / label).mkdir(parents=True, exist_ok=True)
    chosen = Settings(*settings, **flags)
    return phantom.write_subject(str(folder), chosen, subject, plan_scans(chosen)[subject])


@pytest.fixture(scope="module")
def rows(phantoms):
    with open(phantoms / "subjects.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_phantoms_have_the_layout_of_the_real_set_and_twenty_neighbouring_slices_per_subject(phantoms, rows):
    paths = sorted(path.relative_to(phantoms).as_posix() for path in phantoms.rglob("*.jpeg"))
    assert paths == sorted(row["path"] for row in rows) and len(paths) == 80
    slices = {}
    for path in paths:
        split, label, name = path.split("/")
        number, cut = name.removesuffix(".jpeg").split("_")
        slices.setdefault((split, label, number), []).append(int(cut))
        with Image.open(phantoms / path) as image:
            assert (image.size, image.mode, image.format) == ((256, 240), "L", "JPEG")
    assert {key[:2] for key in slices} == {(split, label) for split in ("train", "test") for label in ("AD", "NC")}
    assert all(sorted(cuts) == list(range(min(cuts), min(cuts) + 20)) for cuts in slices.values())
    assert {path.name for path in phantoms.iterdir()} == {"train", "test", "subjects.csv"}


@pytest.mark.slow
def test_written_bytes_depend_on_the_seed_and_not_on_num_workers(phantoms, tmp_path):
    write_phantoms(str(tmp_path / "again"), subjects=4, seed=0, num_workers=2)
    assert contents(tmp_path / "again") == contents(phantoms)
    other = draw_subject(np.random.default_rng([1, 0]), "AD")
    assert other != draw_subject(np.random.default_rng([0, 0]), "AD")


def test_a_subject_does_not_depend_on_the_number_of_subjects(phantoms, tmp_path):
    write_subject(tmp_path, 3, 10, 0)
    assert len(contents(tmp_path)) == 20
    for name, data in contents(tmp_path).items():
        assert (phantoms / name).read_bytes() == data


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_scans_of_a_subject_show_one_anatomy_in_another_pose(tmp_path, view):
    rows = write_subject(tmp_path / "two", 3, 4, 0, scans=2, view=view)
    write_subject(tmp_path / "one", 3, 4, 0, view=view)
    first, second = rows[:20], rows[20:]
    assert [row["path"].split("/")[-1][:7] for row in rows] == ["000006_"] * 20 + ["000007_"] * 20
    if view == "axial":  # in which all scans begin at one slice
        for row in first:  # those of the only scan of this subject in another data set
            path = row["path"].replace("000006", "000003")
            assert (tmp_path / "two" / row["path"]).read_bytes() == (tmp_path / "one" / path).read_bytes()
    same = {name for name in first[0] if first[0][name] == second[0][name]}
    assert {"subject", "anatomy_seed", "class", *DISEASE} <= same and not same & {*phantom_anatomy.POSE}
    numbers = {row["slice"] for row in first} & {row["slice"] for row in second}
    a, b = (np.mean([row["white_mm2"] for row in rows if row["slice"] in numbers]) for rows in (first, second))
    assert b == pytest.approx(a, rel=0.15)


@pytest.mark.parametrize(
    "name, sign", [("ventricle_scale", 1), ("sulcal_width_mm", 1), ("cortical_thickness_mm", -1), ("callosum_thickness_mm", -1)]
)
def test_classes_differ_in_the_right_direction_and_overlap(name, sign):
    rng = np.random.default_rng(0)
    ad, nc = (sign * np.array([draw_subject(rng, label)[name] for _ in range(1000)]) for label in ("AD", "NC"))
    ad_is_larger = (ad[:, None] > nc[None, :]).mean()  # the area under the ROC curve
    assert 0.8 < ad_is_larger < 0.97
    assert ad.min() < np.median(nc) and nc.max() > np.median(ad)


COUNTED = {
    "ventricle_mm2": ("ventricle", "choroid"),
    "grey_mm2": phantom_anatomy.GREY,
    "white_mm2": phantom_anatomy.WHITE,
    "callosum_mm2": ("callosum",),
    "cerebellum_mm2": ("cerebellar_cortex", "cerebellar_white"),
}


def check_areas(areas, tissue, view):
    """Areas (mm^2) against whole pixels, each of the tissue that fills most of it, instead of fractions."""
    names, fractions = list(tissue), np.stack(list(tissue.values()))
    filled, side = fractions.sum(0) > 0.5, VIEWS[view].pixel_mm
    labels = np.where(filled, fractions.argmax(0), -1)
    tolerance, small, of_total = (0.06, 25, 0.01) if view == "axial" else (0.09, 60, 0.015)  # three tissues share edge pixels
    for column, members in COUNTED.items():
        if column in areas:
            counted = sum((labels == names.index(member)).sum() for member in members if member in names) * side**2
            assert counted == pytest.approx(float(areas[column]), rel=tolerance, abs=small), column
    total = sum(float(areas[column]) for column in ("ventricle_mm2", "grey_mm2", "white_mm2", "sulcal_csf_mm2"))
    assert total == pytest.approx(filled.sum() * side**2, rel=of_total)


def test_areas_in_the_table_equal_counted_pixels_of_each_tissue(rows):
    for row in rows[::9]:
        params = {name: float(row[name]) for name in subject()} | {"anatomy_seed": int(row["anatomy_seed"])}
        assert {*COUNTED} <= {*row}
        check_areas(row, slice_tissue(params, float(row["x_mm"])), "sagittal")


def test_areas_of_axial_slices_equal_counted_pixels_of_each_tissue():
    for number, z in enumerate((3.0, 12.0, 24.0)):
        tissue = slice_tissue(subject(number), z, "axial")
        areas = true_areas(tissue, "axial")
        assert {*areas} == {"ventricle_mm2", "grey_mm2", "white_mm2", "sulcal_csf_mm2"}
        check_areas(areas, tissue, "axial")


@pytest.mark.parametrize("view, position", [("axial", 6.0), ("axial", 18.0), ("sagittal", 4.0), ("sagittal", -9.0)])
@pytest.mark.parametrize(
    "name, values, column",
    [
        ("ventricle_scale", (0.7, 1.0, 1.3, 1.6, 1.9), "ventricle_mm2"),
        ("sulcal_width_mm", (0.8, 1.6, 2.4, 3.2), "sulcal_csf_mm2"),
        ("cortical_thickness_mm", (2.1, 2.7, 3.3), "grey_mm2"),
        ("callosum_thickness_mm", (3.6, 4.4, 5.2, 6.0), "callosum_mm2"),
    ],
)
def test_true_areas_grow_with_their_parameters(view, position, name, values, column):
    areas = [true_areas(slice_tissue(subject(**{name: value}), position, view), view).get(column) for value in values]
    assert areas[0] is None if (view, column) == ("axial", "callosum_mm2") else all(b > 1.05 * a for a, b in zip(areas, areas[1:]))


def test_tissue_fractions_fill_the_brain_and_nothing_outside_it():
    for view, high, wide in (("axial", (185, 225), (145, 190)), ("sagittal", (155, 190), (125, 155))):
        for number, label in ((0, "AD"), (1, "NC")):
            params = subject(number, label)
            tissue = slice_tissue(params, 5.0, view)
            filled = np.sum(list(tissue.values()), axis=0)
            assert set(tissue) == set(VIEWS[view].signal) - ({"cistern"} if view == "axial" else set())
            assert min(fraction.min() for fraction in tissue.values()) >= 0 and filled.max() <= 1 + 1e-5
            assert (
                np.abs(filled[(slice(60, 180), slice(80, 176)) if view == "axial" else (slice(50, 120), slice(140, 170))] - 1)
                < 1e-5
            ).all()
            assert filled[[0, -1]].max() == 0 and filled[:, [0, -1]].max() == 0
            rows, columns = np.flatnonzero(filled.any(axis=1)), np.flatnonzero(filled.any(axis=0))
            assert high[0] < np.ptp(rows) < high[1] and wide[0] < np.ptp(columns) < wide[1]
            assert (tissue["white"] > 0.9).sum() > {"axial": 4000, "sagittal": 500}[view]
            assert (tissue["ventricle"] > 0.9).sum() > 200


def test_sagittal_slices_are_turned_as_those_of_the_real_set():
    """Cerebellum upper left, top of the head on the right, front below; and about three quarters of the pixels are black."""
    row, column = np.mgrid[:240, :256]
    for number in range(3):
        params = subject(number)
        tissue = slice_tissue(params, 3.0)

        def middle(name):
            return [(tissue[name] * part).sum() / tissue[name].sum() for part in (row, column)]

        cerebellum, callosum, stem, cortex = map(middle, ("cerebellar_cortex", "callosum", "stem", "cortex"))
        assert cerebellum[0] < stem[0] < callosum[0] and stem[1] < callosum[1] < cortex[1]
        assert max(cerebellum[1], stem[1]) < callosum[1]
        image = render(params, tissue, 3.0, np.random.default_rng(0))
        assert 0.68 < (image < 10).mean() < 0.8


def test_rician_noise_has_the_moments_of_the_rice_distribution():
    rng, sigma = np.random.default_rng(0), 4.0
    background = add_rician_noise(np.zeros(400_000), sigma, rng)
    assert background.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.005)
    assert background.std() == pytest.approx(sigma * np.sqrt(2 - np.pi / 2), rel=0.01)
    signal = add_rician_noise(np.full(400_000, 10.0), sigma, rng)
    assert (signal**2).mean() == pytest.approx(10.0**2 + 2 * sigma**2, rel=0.005)


def test_write_phantoms_leaves_equal_phantoms_and_refuses_others(phantoms):
    before = {path: path.stat().st_mtime_ns for path in phantoms.rglob("*")}
    assert write_phantoms(str(phantoms), subjects=4, seed=0) == 0
    for subjects, seed, scans in ((4, 1, 1), (5, 0, 1), (4, 0, 2), (2, 0, 2)):
        with pytest.raises(UserError, match="phantoms of other flags"):
            write_phantoms(str(phantoms), subjects, seed, scans=scans)
    for flag, value in (("view", "axial"), ("traps", ("damaged",)), ("disease", 0)):
        with pytest.raises(UserError, match="phantoms of other flags, and is left as it is"):
            write_phantoms(str(phantoms), 4, 0, **{flag: value})
    assert {path: path.stat().st_mtime_ns for path in phantoms.rglob("*")} == before


@pytest.mark.parametrize("name", ["thesis.docx", "train/AD/1.jpeg", "subjects.csv"])
def test_write_phantoms_refuses_folders_with_other_files(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine,all mine\n1,2\n")
    with pytest.raises(UserError, match="left as it is"):
        write_phantoms(str(tmp_path), 4, 0)
    assert contents(tmp_path) == {str(path.relative_to(tmp_path)): b"mine,all mine\n1,2\n"}


@pytest.mark.parametrize(
    "error, expected", [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), UserError)]
)
def test_write_phantoms_removes_its_files_when_stopped(tmp_path, monkeypatch, error, expected):
    def write_subject(folder, *_, **__):
        (pathlib.Path(folder) / "train/AD/000000_75.jpeg").write_bytes(b"half")
        (pathlib.Path(folder) / "volumes/000_S_0000").mkdir(parents=True)
        (pathlib.Path(folder) / "masks").mkdir()
        raise error

    monkeypatch.setattr(phantom, "write_subject", write_subject)
    with pytest.raises(expected):
        write_phantoms(str(tmp_path / "AD_NC"), 4, 0, traps=("metadata",))
    assert list(tmp_path.iterdir()) == [tmp_path / "AD_NC"] and list((tmp_path / "AD_NC").iterdir()) == []


@pytest.mark.slow
def test_age_and_sex_are_correlated_with_the_anatomy_as_stated_in_either_class():
    rng = np.random.default_rng(5)
    for label in CLASSES:
        people = [draw_subject(rng, label) for _ in range(4000)]
        drawn = [draw_age_and_sex(rng, params, label) for params in people]
        ages, men = np.array([one["age"] for one in drawn]), np.array([one["sex"] == "M" for one in drawn])
        assert ages.mean() == pytest.approx(phantom_anatomy.AGE[label][0], abs=0.45)  # four standard errors of 7 / sqrt(4000)
        assert ages.std() == pytest.approx(phantom_anatomy.AGE[label][1], rel=0.06)
        for name, r in phantom_anatomy.AGEING.items():
            found = np.corrcoef(ages, [params[name] for params in people])[0, 1]
            assert found == pytest.approx(r, abs=4 * (1 - r * r) / 4000**0.5 + 0.01)  # 0.01: the ends are clipped
        width = np.array([params["brain_width_mm"] for params in people])
        assert men.mean() == pytest.approx(0.5, abs=0.04)
        assert (width[men].mean(), width[~men].mean()) == pytest.approx((140, 136), abs=0.4)


def test_volumes_are_refused_before_anything_is_written_where_simpleitk_is_missing(tmp_path, monkeypatch):
    for name in ("data.dicom", "data.volumes", "data.phantom_volumes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(UserError, match="pip install -r requirements-volumes.txt"):
        phantom.main([str(tmp_path / "AD_NC"), "--subjects", "4", "--volumes", "True"])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# The traps of AD_NC


def test_classes_differ_in_nothing_but_the_disease_and_not_at_all_without_it():
    for number in range(20):
        ad, nc = (draw_subject(np.random.default_rng(number), label) for label in CLASSES)
        assert {name for name in ad if ad[name] != nc[name]} == {*DISEASE, "callosum_thickness_mm"}
        healthy = [draw_subject(np.random.default_rng(number), label, disease=0) for label in CLASSES]
        assert healthy[0] == healthy[1]
        ages = [draw_age_and_sex(np.random.default_rng(number), healthy[0], label, disease=0) for label in CLASSES]
        assert ages[0] == ages[1]
        half = draw_subject(np.random.default_rng(number), "AD", disease=0.5)
        for name in DISEASE:
            assert half[name] == pytest.approx((ad[name] + healthy[0][name]) / 2)


def first_slices(traps):
    planned = plan_scans(Settings(4000, 1, traps=traps))
    return {label: np.array([scan.first for scans in planned[i::2] for scan in scans]) for i, label in enumerate(CLASSES)}


def test_windows_are_those_of_the_real_set_with_the_trap_and_alike_without():
    first = first_slices(("windows",))
    assert [np.median(first[name]) for name in CLASSES] == pytest.approx([78, 88], abs=1)
    assert all((indices.min(), indices.max()) == (67, 95) for indices in first.values())
    rule = max((np.mean(first["AD"] < edge) + np.mean(first["NC"] >= edge)) / 2 for edge in range(68, 96))
    assert rule == pytest.approx(0.68, abs=0.02)
    plain = first_slices(())
    assert {*plain["AD"]} == {*plain["NC"]} == {*range(78, 87)}
    assert plain["AD"].mean() == pytest.approx(plain["NC"].mean(), abs=0.33)  # four standard errors


def test_people_are_in_both_splits_and_have_several_scans_with_the_traps():
    planned = plan_scans(Settings(2000, 2, traps=("people", "sessions")))
    for i, mean in enumerate((3.4, 1.7)):
        assert np.mean([len(scans) for scans in planned[i::2]]) == pytest.approx(mean, abs=0.2)
    splits = [{scan.split for scan in scans} for scans in planned]
    shared = sum(len(parts) == 2 for parts in splits) / sum("test" in parts for parts in splits)
    assert 0.5 < shared < 0.8  # of AD_NC 65%
    days = [[scan.date for scan in scans] for scans in planned]
    assert 0.15 < sum(len(of) - len({*of}) for of in days) / sum(len(of) - 1 for of in days) < 0.35
    assert all(of == sorted(of) for of in days)
    images = [scan.image for scans in planned for scan in scans]
    assert images == list(range(len(images)))
    apart = plan_scans(Settings(2000, 2, traps=("sessions",)))
    assert all(len({scan.split for scan in scans}) == 1 for scans in apart)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"traps": ("people",)}, "--traps people needs people with several scans"),
        ({"traps": ("sessions",), "scans": 2}, "leave --scans out"),
        ({"traps": ("windows",), "view": "axial"}, "--traps windows is of sagittal slices"),
    ],
)
def test_traps_that_exclude_other_flags_are_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        write_phantoms(str(tmp_path / "AD_NC"), 4, 0, **settings)
    assert list(tmp_path.iterdir()) == []


def test_traps_are_names_in_a_list_or_all_of_them():
    assert phantom.parse_traps("sessions, People") == ("people", "sessions") and phantom.parse_traps("all") == tuple(phantom.TRAPS)
    for text in ("", ",", "window", "people,,"):
        with pytest.raises(ArgumentTypeError, match="is none of windows, people"):
            phantom.parse_traps(text)


@pytest.mark.slow
def test_traps_are_written_with_their_truth(tmp_path):
    folder = tmp_path / "AD_NC"
    count = write_phantoms(str(folder), 4, 3, traps=tuple(phantom.TRAPS))
    with open(folder / "subjects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count and {row["traps"] for row in rows} == {"windows people sessions damaged metadata"}

    damaged = {}
    for row in rows:
        damaged.setdefault(row["damaged"], {}).setdefault(pathlib.Path(row["path"]).name.split("_")[0], []).append(row["path"])
    assert {*damaged} == {"", "noise", "black"} and len(damaged["noise"]) == len(damaged["black"]) == 1
    for kind, mean in (("noise", 7.8), ("black", 0.9)):
        ((_, paths),) = damaged[kind].items()
        assert len(paths) == 20
        assert np.mean([read_image(folder / path).mean() for path in paths]) == pytest.approx(mean, abs=0.6)

    found = json.loads((tmp_path / "meta_data_with_label.json").read_text())
    scans = {str(int(pathlib.Path(row["path"]).name.split("_")[0])): row for row in rows}
    assert {name for name, entry in found.items() if entry["label"] != 1} == {*scans} and len(found) > len(scans)
    for name, row in scans.items():
        assert found[name]["label"] == {"AD": 2, "NC": 0}[row["class"]]
        assert f"ADNI_000_S_{int(row['subject']):04d}_" in found[name]["raw"] and row["date"] in found[name]["raw"]
        assert {*found[name]} == {"raw", "masked", "c1", "c2", "c3", "c4", "c5", "label"}

    ages = {}
    for row in rows:
        ages.setdefault(row["subject"], {})[row["date"]] = float(row["age"])
    for by_date in ages.values():
        assert [by_date[date] for date in sorted(by_date)] == sorted(by_date.values())

    assert write_phantoms(str(folder), 4, 3, traps=tuple(phantom.TRAPS)) == 0
    with pytest.raises(UserError, match="meta_data_with_label.json: is there already"):
        write_phantoms(str(tmp_path / "other"), 4, 3, traps=("metadata",))
