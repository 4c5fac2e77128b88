"""phantom.py: the layout, the truth in subjects.csv measured in a second way, and files that must stay as they are."""

import csv
import pathlib
import sys

import numpy as np
import pytest
from conftest import read_image
from PIL import Image

import phantom
from phantom import PIXEL_MM, SIGNAL, add_rician_noise, draw_subject, place, render, slice_tissue, true_areas, write_phantoms
from utils import CLASSES, UserError


def subject(number=0, label="NC", **changes):
    """A subject without tilt, so that heights mean the same in each."""
    straight = {"yaw_deg": 0.0, "pitch_deg": 0.0, "roll_deg": 0.0}
    return {**draw_subject(np.random.default_rng([7, number]), label), **straight, **changes}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    assert all(cuts == list(range(cuts[0], cuts[0] + 20)) for cuts in slices.values())
    assert {path.name for path in phantoms.iterdir()} == {"train", "test", "subjects.csv"}


@pytest.mark.slow
def test_written_bytes_depend_on_the_seed_and_not_on_num_workers(phantoms, tmp_path):
    write_phantoms(str(tmp_path / "again"), subjects=4, seed=0, num_workers=2)
    assert contents(tmp_path / "again") == contents(phantoms)
    other = phantom.draw_subject(np.random.default_rng([1, 0]), "AD")
    assert other != phantom.draw_subject(np.random.default_rng([0, 0]), "AD")


def test_a_subject_does_not_depend_on_the_number_of_subjects(phantoms, tmp_path):
    for split, label in {place(i) for i in range(4)}:
        (tmp_path / split / label).mkdir(parents=True)
    split, label = place(3)
    phantom.write_subject(str(tmp_path), 0, 1, 3)
    for name, data in contents(tmp_path).items():
        assert (phantoms / name).read_bytes() == data


def test_scans_of_a_subject_show_one_anatomy_in_another_pose(phantoms, tmp_path):
    split, label = place(3)
    (tmp_path / split / label).mkdir(parents=True)
    rows = phantom.write_subject(str(tmp_path), 0, 2, 3)
    first, second = rows[:20], rows[20:]
    assert [row["path"].split("/")[-1][:7] for row in rows] == ["000006_"] * 20 + ["000007_"] * 20
    for row in first:  # those of the only scan of this subject in another data set
        path = row["path"].replace("000006", "000003")
        assert (tmp_path / row["path"]).read_bytes() == (phantoms / path).read_bytes()
    same = {name for name in first[0] if first[0][name] == second[0][name]}
    assert {"subject", "anatomy_seed", "class", "slice", *phantom.DISEASE} <= same and not same & {*phantom.POSE, "z_mm"}
    a, b = (np.mean([row["ventricle_mm2"] for row in of_scan]) for of_scan in (first, second))
    assert b == pytest.approx(a, rel=0.15)


@pytest.mark.parametrize("subjects, in_test", [(4, 2), (10, 2), (100, 20)])
def test_place_gives_a_fifth_to_testing_and_alternates_classes(subjects, in_test):
    places = [place(i) for i in range(subjects)]
    assert sum(split == "test" for split, _ in places) == in_test
    assert sum(label == "AD" for _, label in places) == subjects / 2
    assert len(set(places)) == 4


def test_each_subject_is_in_one_split_and_class(rows):
    folders = {}
    for row in rows:
        folders.setdefault(pathlib.PurePath(row["path"]).name.split("_")[0], set()).add((row["split"], row["class"]))
    assert len(folders) == 4 and all(len(places) == 1 for places in folders.values())


def test_neighbouring_slices_correlate_more_than_distant_ones_or_other_subjects():
    def cut(number, z):
        params = subject(number)
        return render(params, slice_tissue(params, z), z).ravel()

    middle = cut(0, 12.0)
    neighbour, distant, other = (np.corrcoef(middle, pixels)[0, 1] for pixels in (cut(0, 13.5), cut(0, 24.0), cut(1, 12.0)))
    assert neighbour > 0.93
    assert neighbour > distant + 0.05 and neighbour > other + 0.05


@pytest.mark.parametrize("name, sign", [("ventricle_scale", 1), ("sulcal_width_mm", 1), ("cortical_thickness_mm", -1)])
def test_classes_differ_in_the_right_direction_and_overlap(name, sign):
    rng = np.random.default_rng(0)
    ad, nc = (sign * np.array([draw_subject(rng, label)[name] for _ in range(1000)]) for label in ("AD", "NC"))
    ad_is_larger = (ad[:, None] > nc[None, :]).mean()  # the area under the ROC curve
    assert 0.8 < ad_is_larger < 0.97
    assert ad.min() < np.median(nc) and nc.max() > np.median(ad)


def test_brain_size_does_not_depend_on_the_class():
    rng = np.random.default_rng(0)
    ad, nc = ([draw_subject(rng, label)["brain_width_mm"] for _ in range(1000)] for label in ("AD", "NC"))
    assert abs(np.mean(ad) - np.mean(nc)) < 0.6  # 3.4 standard errors


def test_areas_in_the_table_equal_counted_pixels_of_each_tissue(rows):
    for row in rows[::9]:
        params = {name: float(row[name]) for name in draw_subject(np.random.default_rng(0), "AD")}
        params["anatomy_seed"] = int(row["anatomy_seed"])
        tissue = slice_tissue(params, float(row["z_mm"]))
        names = list(tissue)
        filled = np.sum(list(tissue.values()), axis=0) > 0.5
        labels = np.where(filled, np.argmax(list(tissue.values()), axis=0), -1)  # whole pixels instead of fractions
        parts = {"ventricle_mm2": ("ventricle", "choroid"), "grey_mm2": phantom.GREY, "white_mm2": ("white",)}
        for column, members in parts.items():
            counted = sum((labels == names.index(member)).sum() for member in members) * PIXEL_MM**2
            assert counted == pytest.approx(float(row[column]), rel=0.06, abs=25), (row["path"], column)
        total = sum(float(row[column]) for column in (*parts, "sulcal_csf_mm2"))
        assert total == pytest.approx(filled.sum() * PIXEL_MM**2, rel=0.01)


def test_ventricle_area_in_the_table_equals_the_dark_pixels_of_the_written_image(phantoms, rows):
    compared = 0
    for row in rows:
        middle = [float(row[name]) for name in ("shift_x_mm", "shift_y_mm")]
        if not 13 < float(row["z_mm"]) < 17:  # the ventricles are in one piece, the cortex far from them
            continue
        image = read_image(phantoms / row["path"])
        column, line = 127.5 + middle[0] / PIXEL_MM, 119.5 - middle[1] / PIXEL_MM
        box = image[int(line - 55) : int(line + 40), int(column - 40) : int(column + 41)]
        dark = (box < 90).sum() * PIXEL_MM**2
        assert dark == pytest.approx(float(row["ventricle_mm2"]), rel=0.1), row["path"]
        compared += 1
    assert compared >= 6


@pytest.mark.parametrize("z", [6.0, 18.0])
@pytest.mark.parametrize(
    "name, values, column",
    [
        ("ventricle_scale", (0.7, 1.0, 1.3, 1.6, 1.9), "ventricle_mm2"),
        ("sulcal_width_mm", (0.8, 1.6, 2.4, 3.2), "sulcal_csf_mm2"),
        ("cortical_thickness_mm", (2.1, 2.7, 3.3), "grey_mm2"),
    ],
)
def test_true_areas_grow_with_their_parameters(z, name, values, column):
    areas = [true_areas(slice_tissue(subject(**{name: value}), z))[column] for value in values]
    assert all(b > 1.05 * a for a, b in zip(areas, areas[1:])), areas


def test_tissue_fractions_fill_the_brain_and_nothing_outside_it():
    for number, label in ((0, "AD"), (1, "NC")):
        params = subject(number, label)
        tissue = slice_tissue(params, 5.0)
        filled = np.sum(list(tissue.values()), axis=0)
        assert list(tissue) != [] and set(tissue) == set(SIGNAL)
        assert min(fraction.min() for fraction in tissue.values()) >= 0 and filled.max() <= 1 + 1e-5
        assert (np.abs(filled[60:180, 80:176] - 1) < 1e-5).all()
        assert filled[[0, -1]].max() == 0 and filled[:, [0, -1]].max() == 0
        rows, columns = np.flatnonzero(filled.any(axis=1)), np.flatnonzero(filled.any(axis=0))
        assert 185 < np.ptp(rows) < 225 and 145 < np.ptp(columns) < 190
        assert (tissue["white"] > 0.9).sum() > 4000 and (tissue["ventricle"] > 0.9).sum() > 200


def test_render_has_the_contrast_of_t1_and_a_black_background():
    params = subject()
    tissue = slice_tissue(params, 8.0)
    for rng in (None, np.random.default_rng(0)):
        image = render(params, tissue, 8.0, rng)
        assert image.dtype == np.uint8 and image.shape == (240, 256)
        csf, cortex, putamen, white = (image[tissue[name] > 0.97].mean() for name in ("ventricle", "cortex", "putamen", "white"))
        assert csf + 40 < cortex < putamen - 10 and putamen + 20 < white
        assert (image[sum(tissue.values()) == 0] == 0).all()
    assert (render(params, tissue, 8.0) == render(params, tissue, 8.0)).all()


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
        with pytest.raises(UserError, match="other --subjects, --scans or --seed"):
            write_phantoms(str(phantoms), subjects, seed, scans=scans)
    assert {path: path.stat().st_mtime_ns for path in phantoms.rglob("*")} == before


@pytest.mark.parametrize("name", ["thesis.docx", "train/AD/1.jpeg", "subjects.csv"])
def test_write_phantoms_refuses_folders_with_other_files(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine,all mine\n1,2\n")
    with pytest.raises(UserError, match="left as it is"):
        write_phantoms(str(tmp_path), 4, 0)
    assert contents(tmp_path) == {str(path.relative_to(tmp_path)): b"mine,all mine\n1,2\n"}


def test_write_phantoms_refuses_an_unreadable_table(tmp_path):
    (tmp_path / "subjects.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        write_phantoms(str(tmp_path), 4, 0)


def test_write_phantoms_refuses_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "AD_NC").write_text("")
    with pytest.raises(UserError, match="AD_NC"):
        write_phantoms(str(tmp_path / "AD_NC"), 4, 0)


@pytest.mark.parametrize(
    "error, expected", [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), UserError)]
)
def test_write_phantoms_removes_its_files_when_stopped(tmp_path, monkeypatch, error, expected):
    def write_subject(folder, seed, scans, subject, **_):
        (pathlib.Path(folder) / "train/AD/000000_75.jpeg").write_bytes(b"half")
        (pathlib.Path(folder) / "volumes/000_S_0000").mkdir(parents=True)
        (pathlib.Path(folder) / "masks").mkdir()
        raise error

    monkeypatch.setattr(phantom, "write_subject", write_subject)
    with pytest.raises(expected):
        write_phantoms(str(tmp_path), 4, 0)
    assert list(tmp_path.iterdir()) == []


def test_command_refuses_few_subjects_and_says_when_nothing_is_to_do(tmp_path, monkeypatch, capsys):
    argv = [str(tmp_path / "few"), "--subjects", "3"]
    with pytest.raises(UserError, match="at least 4"):
        phantom.main(argv)
    monkeypatch.setattr(phantom, "write_phantoms", lambda *args: 0)
    argv = [str(tmp_path / "done"), "--subjects", "4"]
    phantom.main(argv)
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_age_and_sex_are_correlated_with_the_anatomy_as_stated_in_either_class():
    rng = np.random.default_rng(5)
    for label in CLASSES:
        people = [draw_subject(rng, label) for _ in range(4000)]
        drawn = [phantom.draw_age_and_sex(rng, params, label) for params in people]
        ages, men = np.array([one["age"] for one in drawn]), np.array([one["sex"] == "M" for one in drawn])
        assert ages.mean() == pytest.approx(phantom.AGE[0][label], abs=0.45)  # four standard errors of 7 / sqrt(4000)
        assert ages.std() == pytest.approx(phantom.AGE[1], rel=0.06)
        for name, r in phantom.AGEING.items():
            found = np.corrcoef(ages, [params[name] for params in people])[0, 1]
            assert found == pytest.approx(r, abs=4 * (1 - r * r) / 4000**0.5 + 0.01)  # 0.01: the ends are clipped
        width = np.array([params["brain_width_mm"] for params in people])
        assert men.mean() == pytest.approx(0.5, abs=0.04)
        assert (width[men].mean(), width[~men].mean()) == pytest.approx((140, 136), abs=0.4)


def test_age_and_sex_of_a_subject_are_those_of_all_its_scans_and_change_no_image(rows):
    for number in range(4):
        of_subject = [row for row in rows if row["subject"] == str(number)]
        params = {name: float(of_subject[0][name]) for name in (*phantom.AGEING, "brain_width_mm")}
        expected = phantom.draw_age_and_sex(np.random.default_rng([0, number, 1]), params, of_subject[0]["class"])
        assert {(float(row["age"]), row["sex"]) for row in of_subject} == {(expected["age"], expected["sex"])}
        first = draw_subject(np.random.default_rng([0, number]), of_subject[0]["class"])  # the images' stream begins with this
        assert float(of_subject[0]["ventricle_scale"]) == pytest.approx(first["ventricle_scale"], abs=1e-4)


def test_volumes_are_refused_before_anything_is_written_where_simpleitk_is_missing(tmp_path, monkeypatch):
    for name in ("analysis.volumes", "analysis.phantom_volumes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(UserError, match="pip install -r requirements-volumes.txt"):
        phantom.main([str(tmp_path / "AD_NC"), "--subjects", "4", "--volumes", "True"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [True, False])
def test_phantoms_with_and_without_volumes_are_not_taken_for_each_other(tmp_path, there):
    rows = [f"0,{subject}\n" for subject in range(4) for _ in range(phantom.SLICES)]
    (tmp_path / "subjects.csv").write_text("seed,subject\n" + "".join(rows))
    if there:
        (tmp_path / "volumes").mkdir()
    assert phantom.already_written(str(tmp_path), 4, 0, volumes=there)
    with pytest.raises(UserError, match="of other --volumes and is left as it is"):
        phantom.already_written(str(tmp_path), 4, 0, volumes=not there)
