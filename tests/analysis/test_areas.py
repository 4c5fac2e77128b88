"""Areas measured from images, compared with the truth that phantoms come with."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from analysis import areas
from data.decode import pad_and_resize
from data.phantom_anatomy import SIGNAL, VIEWS, WIDTH, draw_subject, render, slice_tissue, true_areas, twin_of
from data.view import View
from dataset import Slices
from phantom import write_phantoms
from utils import UserError

CENTRAL = areas.REGIONS["axial"]["ventricle"]


def subject(number, label="AD", **changes):
    return draw_subject(np.random.default_rng([77, number]), label) | {"roll_deg": 0.0, **changes}


def draw(params, position, noise=None, view="axial"):
    """A slice as uint8 [256, 256], and its true areas by the names of AMOUNT."""
    tissue = slice_tissue(params, position, view)
    image = np.asarray(pad_and_resize(Image.fromarray(render(params, tissue, position, noise, view)), 256))
    truth = true_areas(tissue, view)
    return image, {name: truth[f"{name}_mm2"] for name in areas.AMOUNT[view]}


def draw_all(view, positions):
    """Slices of 12 subjects at four positions, uint8 [48, 256, 256], and the truth {tissue: [48]}."""
    rng = np.random.default_rng(0)
    drawn = [draw(subject(i, ("AD", "NC")[i % 2]), position, rng, view) for i in range(12) for position in positions]
    truth = {name: np.array([truth[name] for _, truth in drawn]) for name in areas.AMOUNT[view]}
    return np.stack([image for image, _ in drawn]), truth


@pytest.fixture(scope="module")
def drawn_slices():
    return draw_all("axial", (3.0, 10.0, 17.0, 24.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("phantoms"))
    write_phantoms(folder, 4, 5, view="axial")
    return folder


def test_constants_are_those_of_phantom():
    assert areas.PIXEL_MM == {name: view.pixel_mm for name, view in VIEWS.items()}
    assert (areas.WIDTH, areas.WHITE) == (WIDTH, SIGNAL["white"])


def test_constants_of_the_measurement():
    """AMOUNT was fitted with these."""
    assert areas.REGIONS["axial"] == {"ventricle": (0, 0.1, 0.55, 0.7, 0)} and areas.SIDE == 64
    assert areas.LEVELS["axial"] == (0, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200, 255)
    for view, amounts in areas.AMOUNT.items():
        for regions in amounts.values():
            assert {*regions} <= {"slice", *areas.REGIONS[view]}
            assert {len(amount) for amount in regions.values()} == {len(areas.LEVELS[view]) - 1}


@pytest.mark.parametrize("tissue, correlation, bias", [("ventricle", 0.97, 0.08), ("grey", 0.93, 0.04), ("white", 0.96, 0.04)])
def test_measured_areas_agree_with_the_truth_of_subjects_not_fitted_to(drawn_slices, tissue, correlation, bias):
    pixels, truth = drawn_slices
    measured = areas.measure_areas(pixels, "axial")[tissue]
    assert np.corrcoef(measured, truth[tissue])[0, 1] > correlation
    assert abs(measured.mean() / truth[tissue].mean() - 1) < bias


@pytest.fixture(scope="module")
def sagittal_slices():
    return draw_all("sagittal", (-10.0, -4.0, 3.0, 8.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "tissue, correlation, bias", [("ventricle", 0.95, 0.1), ("callosum", 0.93, 0.1), ("grey", 0.93, 0.05), ("white", 0.93, 0.05)]
)
def test_measured_areas_of_sagittal_slices_agree_with_the_truth_of_subjects_not_fitted_to(
    sagittal_slices, tissue, correlation, bias
):
    pixels, truth = sagittal_slices
    measured = areas.measure_areas(pixels, "sagittal")
    assert {*measured} == {"ventricle", "callosum", "grey", "white"}
    assert np.corrcoef(measured[tissue], truth[tissue])[0, 1] > correlation
    assert abs(measured[tissue].mean() / truth[tissue].mean() - 1) < bias


@pytest.mark.slow
def test_measured_areas_of_a_sagittal_slice_do_not_depend_on_its_brightness_or_on_other_slices(sagittal_slices):
    pixels = areas.reduce_to_side(sagittal_slices[0][:6])
    dim = np.uint8(np.rint(pixels * 0.6))
    plain, darker, alone = (areas.measure_areas(p, "sagittal") for p in (pixels, dim, pixels[2:3]))
    for tissue in areas.AMOUNT["sagittal"]:
        np.testing.assert_allclose(darker[tissue], plain[tissue], rtol=0.03, atol=20)
        np.testing.assert_allclose(alone[tissue], plain[tissue][2:3], rtol=1e-6)


def test_equalise_brightness_gives_the_foreground_one_power_mean():
    pixels = np.zeros((2, 64, 64), np.uint8)
    pixels[:, 10:20, 10:20], pixels[:, 30:50, 30:50], pixels[:, 50:52] = 200, 100, 20  # the last is background
    pixels[1] //= 2
    flat = areas.equalise_brightness(pixels)
    np.testing.assert_allclose(flat[1], flat[0])
    lit = flat[0][flat[0] > 50]
    assert len(lit) == 500 and (lit**8).mean() ** (1 / 8) == pytest.approx(areas.BRIGHTNESS)
    assert (areas.equalise_brightness(np.zeros((1, 64, 64), np.uint8)) == 0).all()


@pytest.mark.parametrize("degrees, wide", [(0, True), (90, False)])
def test_ellipse_is_turned_by_its_degrees(degrees, wide):
    flat = np.zeros((1, 64, 64))
    flat[:, 12:52, 12:52] = areas.WHITE
    (mask,) = areas.ellipse(flat, 0, 0, 0.8, 0.3, degrees)
    assert (np.ptp(np.flatnonzero(mask.any(0))) > np.ptp(np.flatnonzero(mask.any(1)))) == wide
    (mask,) = areas.ellipse(flat, 0, 0, 0.8, 0.3, 30)  # the end on the right is lower
    y, x = np.nonzero(mask)
    assert np.corrcoef(x, y)[0, 1] > 0.3


@pytest.mark.parametrize("found, words", [("mixed", "of more than one view"), ("unknown", "cannot be told")])
def test_areas_of_slices_without_a_known_view_are_refused_in_one_line(monkeypatch, capsys, found, words):
    monkeypatch.setattr(areas, "find_view", lambda _: View(found, 0.9, 1.0, 1.0, 0.9))
    pixels = np.zeros((8, 64, 64), np.uint8)
    with pytest.raises(UserError, match=f"^--x y: .*{words}, so areas cannot be measured; they are known for axial and sagittal"):
        areas.known_view(pixels, "--x y")
    assert areas.view_or_note(pixels, "--x y") is None
    assert capsys.readouterr().out.count("\n") == 1
    assert areas.view_or_note(pixels[:, :32, :32], "--x y") is None and capsys.readouterr().out == ""


@pytest.mark.parametrize("upright, refused", [(1.0, False), (0.0, True)])
def test_areas_of_axial_slices_are_refused_where_heads_lie_on_their_side(monkeypatch, upright, refused):
    monkeypatch.setattr(areas, "find_view", lambda _: View("axial", 0.9, 1.0, upright, 0.9))
    with pytest.raises(UserError, match="lie on their side") if refused else contextlib.nullcontext():
        assert areas.known_view(np.zeros((8, 64, 64), np.uint8), "--x y") == "axial"


def test_generated_slices_of_another_view_than_the_phantoms_are_refused(tmp_path, monkeypatch):
    (tmp_path / "subjects.csv").write_text(
        "path,split,class,view,ventricle_mm2,grey_mm2,white_mm2\na,train,AD,axial,10,1,1\nd,train,NC,axial,5,1,1\n"
    )
    for name in ("AD", "NC"):
        (tmp_path / "out" / name).mkdir(parents=True)
        Image.fromarray(np.full((64, 64), 90, np.uint8)).save(tmp_path / "out" / name / "1.png")
    monkeypatch.setattr(areas, "find_view", lambda _: View("sagittal", 0.5, 0.0, 0.0, 0.6))
    with pytest.raises(UserError, match="sagittal slices, while the phantoms of .* are axial"):
        areas.main([str(tmp_path), "--generated", str(tmp_path / "out")])
    monkeypatch.setattr(areas, "find_view", lambda _: View("unknown", 0.5, 0.0, 0.0, 0.6))  # of a poor model
    assert areas.main([str(tmp_path), "--generated", str(tmp_path / "out")]) == 0


def test_truth_is_of_one_view_and_without_damaged_scans(tmp_path):
    header = "path,split,class,view,damaged,ventricle_mm2,grey_mm2,white_mm2,callosum_mm2\n"
    rows = "a,train,AD,sagittal,,10,1,1,7\nb,train,AD,sagittal,noise,20,1,1,7\n"
    (tmp_path / "subjects.csv").write_text(header + rows)
    truth = areas.read_truth(str(tmp_path))
    assert truth["view"] == "sagittal" and list(truth["path"]) == ["a"] and list(truth["callosum"]) == [7]
    for text in (header, header + rows + "c,train,AD,axial,,1,1,1,1\n", header + rows.replace("sagittal", "coronal")):
        (tmp_path / "subjects.csv").write_text(text)
        with pytest.raises(UserError, match="not the table of phantom.py"):
            areas.read_truth(str(tmp_path))


def test_measured_ventricles_grow_by_as_much_as_the_true_ones():
    drawn = [draw(subject(3, ventricle_scale=scale), 12.0) for scale in (0.8, 1.0, 1.2, 1.4, 1.6)]
    measured = areas.measure_areas(np.stack([image for image, _ in drawn]), "axial")["ventricle"]
    truth = np.array([truth["ventricle"] for _, truth in drawn])
    assert (np.diff(measured) > 0).all()
    assert np.polyfit(truth, measured, 1)[0] == pytest.approx(1, abs=0.2)


def test_measured_grey_matter_shrinks_with_the_cortex():
    images = [draw(subject(3, cortical_thickness_mm=width), 20.0)[0] for width in (2.2, 2.6, 3.0, 3.4)]
    assert (np.diff(areas.measure_areas(np.stack(images), "axial")["grey"]) > 0).all()


def test_measured_areas_depend_little_on_the_resolution(drawn_slices):
    def resized(side):
        images = [Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS) for pixels in drawn_slices[0][:8]]
        return np.stack([np.asarray(image) for image in images])

    at_256, at_128, at_64 = (areas.measure_areas(resized(side), "axial") for side in (256, 128, 64))
    for tissue in areas.AMOUNT["axial"]:
        np.testing.assert_allclose(at_64[tissue], at_256[tissue])  # the same reduction
        np.testing.assert_allclose(at_128[tissue], at_256[tissue], rtol=0.03, atol=20)


def test_remove_shading_divides_out_shading_and_brightness(drawn_slices):
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    pixels = areas.reduce_to_side(drawn_slices[0][:8])
    shaded = np.uint8(np.clip(pixels * 0.85 * (1 + 0.12 * x - 0.1 * y + 0.1 * x * x), 0, 255))
    plain, measured = areas.measure_areas(pixels, "axial"), areas.measure_areas(shaded, "axial")
    for tissue in areas.AMOUNT["axial"]:
        np.testing.assert_allclose(measured[tissue], plain[tissue], rtol=0.06, atol=40)
    assert np.median(areas.remove_shading(shaded)[pixels > 185]) == pytest.approx(areas.WHITE, rel=0.03)


def test_remove_shading_fits_every_term_of_a_quadratic():
    """White matter alone under a shading with all six terms: what remains is the rounding to 8 bits, half a level of 150."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    shading = 1 + 0.04 * x - 0.03 * y + 0.05 * x * y + 0.03 * x * x - 0.04 * y * y
    flat = areas.remove_shading(np.rint(150 * shading).astype(np.uint8)[None])
    np.testing.assert_allclose(flat, areas.WHITE, rtol=0.5 / 150 * 1.5)


def test_remove_shading_is_three_fits_to_white_matter(drawn_slices):
    """Against least squares on the pixels of white matter alone, with shading so strong that a fourth fit changes it again."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    image = np.rint(areas.reduce_to_side(drawn_slices[0][:1])[0] * (0.85 + 0.3 * x * x - 0.15 * y))  # below 255
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1)

    def fit(times):
        shading = np.full((64, 64), np.quantile(image[image > 0.2 * image.max()], 0.85))
        for _ in range(times):
            white = abs(image / shading - 1) < 0.125
            fitted = terms @ np.linalg.lstsq(terms[white], image[white], rcond=None)[0]
            shading = np.clip(fitted, 0.7 * np.median(shading), 1.4 * np.median(shading))
        return image * areas.WHITE / shading

    flat = areas.remove_shading(image[None])[0]
    np.testing.assert_allclose(flat, fit(3), rtol=1e-6)
    assert abs(fit(4) - fit(3)).max() > 0.1


def test_pixels_an_eighth_brighter_than_the_shading_are_not_white_matter():
    pixels = np.full((1, 64, 64), 160, np.uint8)
    pixels[0, 20:30, 20:30] = 180  # 160 and an eighth
    flat = areas.remove_shading(pixels)
    np.testing.assert_allclose(flat[pixels == 160], areas.WHITE, rtol=1e-6)
    np.testing.assert_allclose(flat[pixels == 180], areas.WHITE * 1.125, rtol=1e-6)


def test_measure_areas_shows_a_progress_bar_only_with_a_label(drawn_slices, monkeypatch):
    bars = []
    monkeypatch.setattr(areas, "tqdm", lambda items, label, disable: bars.append((label, disable)) or items)
    areas.measure_areas(drawn_slices[0][:1], "axial")
    areas.measure_areas(drawn_slices[0][:1], "axial", "measuring")
    assert bars == [(None, True), ("measuring", None)]  # None: a bar on a terminal alone


def test_area_by_level_measures_more_slices_than_one_batch_holds(drawn_slices):
    reduced = areas.reduce_to_side(drawn_slices[0])
    many = reduced[np.arange(258) % len(reduced)]
    for tissue, area in areas.area_by_level(many, "axial").items():
        np.testing.assert_allclose(area[256:], areas.area_by_level(many[256:], "axial")[tissue], rtol=1e-6)
        assert len(area) == len(many)


def test_shading_varies_by_a_factor_of_two_at_most_within_a_slice():
    """White matter in one corner alone, ever brighter: its quadratic would reach far beyond at the other."""
    pixels = np.full((1, 64, 64), 30, np.uint8)
    pixels[0, :24, :24] = np.linspace(120, 220, 24) * np.linspace(0.9, 1.1, 24)[:, None]
    shading = pixels.astype(float) * areas.WHITE / areas.remove_shading(pixels)
    assert shading.max() / shading.min() == pytest.approx(1.4 / 0.7)


def test_ellipse_is_placed_by_what_is_brighter_than_fluid():
    bright, dim = np.zeros((2, 64, 64)), np.full((2, 64, 64), 0.15 * areas.WHITE)  # around it, noise
    bright[:, 10:50, 20:40], dim[:, 10:50, 20:40] = areas.WHITE, 0.16 * areas.WHITE
    np.testing.assert_array_equal(areas.ellipse(dim, *CENTRAL), areas.ellipse(bright, *CENTRAL))


def test_measured_areas_of_a_slice_depend_neither_on_mirroring_nor_on_other_slices(drawn_slices):
    pixels = areas.reduce_to_side(drawn_slices[0][:6])
    pixels[2] = pixels[2] // 3  # a much darker scan
    plain, mirrored, alone = (areas.measure_areas(p, "axial") for p in (pixels, pixels[:, :, ::-1], pixels[2:3]))
    for tissue in areas.AMOUNT["axial"]:
        np.testing.assert_allclose(mirrored[tissue], plain[tissue], rtol=1e-6)
        np.testing.assert_allclose(alone[tissue], plain[tissue][2:3], rtol=1e-6)


def test_ellipse_moves_with_the_brain():
    flat = np.zeros((2, 64, 64))
    flat[0, 10:50, 20:40], flat[1, 14:54, 15:35] = 190, 190  # the same brain, moved
    within = areas.ellipse(flat, *CENTRAL)
    np.testing.assert_array_equal(within[1], np.roll(within[0], (4, -5), (0, 1)))
    _, back, across, along, _ = CENTRAL
    assert within[0].sum() == pytest.approx(np.pi * across * 10 * along * 20, rel=0.06)
    y, x = np.nonzero(within[0])
    assert (y.mean(), x.mean()) == pytest.approx((29.5 + back * 20, 29.5), abs=0.6)


def test_measured_areas_of_blank_images_are_finite_and_small_images_are_refused():
    empty = np.stack([np.zeros((64, 64), np.uint8), np.full((64, 64), 255, np.uint8)])
    measured = areas.measure_areas(empty, "axial")
    assert all(np.isfinite(values).all() for values in measured.values())
    assert all(values[0] == 0 for values in measured.values())
    with pytest.raises(UserError, match="32 pixels are too small"):
        areas.measure_areas(empty[:, :32, :32], "axial")


def test_true_means_are_those_of_the_training_slices(tmp_path):
    header = "path,split,class,ventricle_mm2,grey_mm2,white_mm2\n"
    (tmp_path / "subjects.csv").write_text(header + "a,train,AD,10,1,1\nb,train,AD,20,1,1\nc,test,AD,90,1,1\nd,train,NC,5,1,1\n")
    assert areas.true_means(str(tmp_path / "train"), ["AD", "NC"], "axial")["AD"]["ventricle"] == 15
    assert areas.true_means(str(tmp_path / "train"), ["all"], "axial")["all"]["ventricle"] == pytest.approx(35 / 3)
    assert areas.true_means(str(tmp_path / "a" / "train"), ["AD"], "axial") is None
    lines = (tmp_path / "subjects.csv").read_text().splitlines(keepends=True)
    (tmp_path / "subjects.csv").write_text("".join(line for line in lines if "NC" not in line))
    assert areas.true_means(str(tmp_path / "train"), ["AD", "NC"], "axial") is None  # no row of NC
    (tmp_path / "subjects.csv").write_text("image,subject,group\n218391,037_S_4001,AD\n")
    assert areas.true_means(str(tmp_path / "train"), ["AD"], "axial") is None  # real people


def test_accuracy_table_in_closed_form_and_nan_for_constant_areas():
    true = np.array([100.0, 200.0, 300.0, 400.0])
    truth = {"class": np.array(["AD", "AD", "NC", "NC"]), **dict.fromkeys(areas.AMOUNT["axial"], true)}
    measured = {"ventricle": true + 30, "grey": 2 * true, "white": np.full(4, 250.0)}
    ventricle, grey, white = areas.accuracy_table(measured, truth).splitlines()[1:]
    assert ventricle.split() == "ventricle 1.0000 30 mm2 AD +20.0% NC +8.6%".split()
    assert grey.split() == "grey 1.0000 274 mm2 AD +100.0% NC +100.0%".split()
    assert white.split()[:2] == ["white", "nan"]
    assert "NC" not in areas.accuracy_table(*({name: x[:2] for name, x in table.items()} for table in (measured, truth)))


@pytest.mark.slow
def test_command_measures_phantoms(folder, capsys):
    truth = areas.read_truth(folder)
    assert len(truth["path"]) == 80 and set(truth["class"]) == {"AD", "NC"}
    rows = (truth["split"] == "train") & (truth["class"] == "AD")
    training = Slices(f"{folder}/train", "AD", 64)
    measured = areas.measure_areas(training[np.arange(len(training))], "axial")["ventricle"]  # both sorted by name
    assert np.corrcoef(measured, truth["ventricle"][rows])[0, 1] > 0.95
    assert areas.main([folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(areas.AMOUNT["axial"])
    assert float(lines[1].split()[1]) > 0.9


@pytest.mark.slow
def test_command_compares_means_of_generated_slices_with_the_true_ones(folder, tmp_path, capsys):
    """The training phantoms themselves, with AD and NC exchanged."""
    (tmp_path / "AD").symlink_to(os.path.join(folder, "train", "NC"))
    (tmp_path / "NC").symlink_to(os.path.join(folder, "train", "AD"))
    assert areas.main([folder, "--generated", str(tmp_path)]) == 0
    truth = areas.true_means(os.path.join(folder, "train"), ["AD", "NC"], "axial")
    for line in capsys.readouterr().out.splitlines()[1:]:
        tissue, *numbers = line.split()
        ad, nc, ratio, true_ad, true_nc, true_ratio = map(float, numbers)
        assert (true_ad, true_nc) == (round(truth["AD"][tissue]), round(truth["NC"][tissue]))
        assert (nc, ad) == pytest.approx((true_ad, true_nc), rel=0.1)
        assert (ratio, true_ratio) == pytest.approx((ad / nc, true_ad / true_nc), abs=0.002)
    with pytest.raises(UserError, match="^--generated nowhere: no such folder"):
        areas.main([folder, "--generated", "nowhere"])


@pytest.mark.parametrize("text, message", [(None, "subjects.csv"), ("path,split\n1,2\n", "not the table of phantom.py")])
def test_command_refuses_a_folder_without_phantoms(tmp_path, text, message):
    if text:
        (tmp_path / "subjects.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        areas.main([str(tmp_path)])


@pytest.mark.slow
def test_command_runs_as_a_module_from_the_root(tmp_path):
    root = os.path.dirname(os.path.dirname(areas.__file__))
    command = [sys.executable, "-m", "analysis.areas"]
    usage = subprocess.run([*command, "--help"], cwd=root, capture_output=True, text=True)
    assert usage.returncode == 0 and "python -m analysis.areas AD_NC" in usage.stdout
    refused = subprocess.run([*command, str(tmp_path), "--generatedd"], cwd=root, capture_output=True, text=True)
    assert refused.returncode == 2 and "see python -m analysis.areas --help" in refused.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Twins


@pytest.mark.parametrize("disease", [1.0, 0.4])
def test_twin_is_the_same_draw_of_the_other_class(disease):
    """`draw_subject` draws the same standard normal numbers for both classes from one generator."""
    for label, other in (("AD", "NC"), ("NC", "AD")):
        params, twin = (draw_subject(np.random.default_rng(3), name, disease) for name in (label, other))
        assert twin_of(params, label, disease) == pytest.approx(twin)
        assert params["anatomy_seed"] == twin["anatomy_seed"] and params["ventricle_scale"] != twin["ventricle_scale"]


def test_true_twins_are_areas_of_the_table_and_of_the_other_class(folder):
    truth = areas.read_truth(folder)
    paths = [os.path.join(folder, path) for path in truth["path"][[0, 30]]]  # of subjects 0 and 1
    found = areas.true_twins(paths)
    for i, (subject_number, other, k) in enumerate(((0, "NC", 0), (1, "AD", 10))):
        params = draw_subject(np.random.default_rng([5, subject_number]), other)
        drawn = true_areas(slice_tissue(params, VIEWS["axial"].spacing_mm * k + params["lowest_z_mm"], "axial"), "axial")
        for tissue, pair in found.items():
            assert pair[0, i] == pytest.approx(truth[tissue][[0, 30][i]])
            assert pair[1, i] == pytest.approx(drawn[f"{tissue}_mm2"], rel=1e-3)  # the table is rounded


def test_only_phantoms_as_they_were_drawn_have_true_twins(folder, tmp_path):
    assert areas.true_twins([os.path.join(folder, "train", "AD", "no such slice.jpeg")]) is None
    assert areas.true_twins([str(tmp_path / "train" / "AD" / "000000_75.jpeg")]) is None
