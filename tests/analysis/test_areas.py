"""Areas measured from pictures against the truth that phantoms come with."""

import io

import numpy as np
import pytest
from PIL import Image

import phantom
from analysis import areas
from dataset import Slices, pad_and_resize
from utils import UserError


def subject(number, label="AD", **changes):
    return phantom.draw_subject(np.random.default_rng([77, number]), label) | {"roll_deg": 0.0, **changes}


def picture(params, z, noise=None):
    """A slice as uint8 [256, 256], and its true areas by the names of AMOUNT."""
    tissue = phantom.slice_tissue(params, z)
    image = np.asarray(pad_and_resize(Image.fromarray(phantom.render(params, tissue, z, noise)), 256))
    truth = phantom.measure_areas(tissue)
    return image, {name: truth[f"{name}_mm2"] for name in areas.AMOUNT}


@pytest.fixture(scope="module")
def some():
    """Slices of 12 subjects at four heights, uint8 [48, 256, 256], and the truth {tissue: [48]}."""
    rng = np.random.default_rng(0)
    drawn = [picture(subject(i, ("AD", "NC")[i % 2]), z, rng) for i in range(12) for z in (3.0, 10.0, 17.0, 24.0)]
    return np.stack([image for image, _ in drawn]), {name: np.array([truth[name] for _, truth in drawn]) for name in areas.AMOUNT}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("phantoms"))
    phantom.write_phantoms(folder, 4, 5)
    return folder


@pytest.mark.parametrize("tissue, correlation, bias", [("ventricle", 0.97, 0.08), ("grey", 0.93, 0.04), ("white", 0.96, 0.04)])
def test_areas_are_those_of_people_it_was_not_fitted_to(some, tissue, correlation, bias):
    pixels, truth = some
    measured = areas.measure_areas(pixels)[tissue]
    assert np.corrcoef(measured, truth[tissue])[0, 1] > correlation
    assert abs(measured.mean() / truth[tissue].mean() - 1) < bias


def test_larger_ventricles_measure_larger_by_as_much():
    drawn = [picture(subject(3, ventricle_scale=scale), 12.0) for scale in (0.8, 1.0, 1.2, 1.4, 1.6)]
    measured = areas.measure_areas(np.stack([image for image, _ in drawn]))["ventricle"]
    truth = np.array([truth["ventricle"] for _, truth in drawn])
    assert (np.diff(measured) > 0).all()
    assert np.polyfit(truth, measured, 1)[0] == pytest.approx(1, abs=0.2)


def test_a_thinner_cortex_measures_smaller():
    images = [picture(subject(3, cortical_thickness_mm=width), 20.0)[0] for width in (2.2, 2.6, 3.0, 3.4)]
    assert (np.diff(areas.measure_areas(np.stack(images))["grey"]) > 0).all()


def test_the_resolution_changes_little(some):
    def resized(side):
        return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.LANCZOS)) for one in some[0][:8]])

    at_256, at_128, at_64 = (areas.measure_areas(resized(side)) for side in (256, 128, 64))
    for tissue in areas.AMOUNT:
        np.testing.assert_allclose(at_64[tissue], at_256[tissue])  # the same reduction
        np.testing.assert_allclose(at_128[tissue], at_256[tissue], rtol=0.03, atol=20)


def test_shading_and_brightness_are_divided_out(some):
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    pixels = areas.reduced(some[0][:8])
    shaded = np.uint8(np.clip(pixels * 0.85 * (1 + 0.12 * x - 0.1 * y + 0.1 * x * x), 0, 255))
    plain, measured = areas.measure_areas(pixels), areas.measure_areas(shaded)
    for tissue in areas.AMOUNT:
        np.testing.assert_allclose(measured[tissue], plain[tissue], rtol=0.06, atol=40)
    assert np.median(areas.flatten(shaded)[pixels > 185]) == pytest.approx(areas.WHITE, rel=0.03)


def test_a_mirrored_slice_measures_the_same_and_parts_do_not_depend_on_each_other(some):
    pixels = areas.reduced(some[0][:6])
    plain, mirrored, alone = (areas.measure_areas(p) for p in (pixels, pixels[:, :, ::-1], pixels[2:3]))
    for tissue in areas.AMOUNT:
        np.testing.assert_allclose(mirrored[tissue], plain[tissue], rtol=1e-6)
        np.testing.assert_allclose(alone[tissue], plain[tissue][2:3], rtol=1e-6)


def test_the_ellipse_stands_in_the_middle_of_the_brain_wherever_that_is():
    flat = np.zeros((2, 64, 64))
    flat[0, 10:50, 20:40], flat[1, 14:54, 15:35] = 190, 190  # the same brain, moved
    within = areas.middle(flat)
    np.testing.assert_array_equal(within[1], np.roll(within[0], (4, -5), (0, 1)))
    across, along, back = areas.ELLIPSE
    assert within[0].sum() == pytest.approx(np.pi * across * 10 * along * 20, rel=0.06)
    y, x = np.nonzero(within[0])
    assert (y.mean(), x.mean()) == pytest.approx((29.5 + back * 20, 29.5), abs=0.6)


def test_pictures_without_a_brain_give_numbers_too():
    empty = np.stack([np.zeros((64, 64), np.uint8), np.full((64, 64), 255, np.uint8)])
    measured = areas.measure_areas(empty)
    assert all(np.isfinite(values).all() for values in measured.values())
    assert all(values[0] == 0 for values in measured.values())
    with pytest.raises(UserError, match="32 pixels are too small"):
        areas.measure_areas(empty[:, :32, :32])


def test_the_fit_finds_planted_amounts():
    rng = np.random.default_rng(0)
    parts, amount = rng.uniform(0, 1000, (200, 11)), np.linspace(-0.2, 1.3, 11)  # straight: smoothing leaves it alone
    np.testing.assert_allclose(areas.fit(parts, parts @ amount), amount, rtol=1e-9)


def test_the_table_of_phantoms_is_read_and_its_slices_measured(folder, capsys):
    truth = areas.read_truth(folder)
    assert len(truth["path"]) == 80 and set(truth["class"]) == {"AD", "NC"}
    chosen = (truth["split"] == "train") & (truth["class"] == "AD")
    slices = Slices(f"{folder}/train", "AD", 64)
    measured = areas.measure_areas(slices[np.arange(len(slices))])["ventricle"]  # both sorted by name
    assert np.corrcoef(measured, truth["ventricle"][chosen])[0, 1] > 0.95
    assert areas.main([folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(areas.AMOUNT)
    assert float(lines[1].split()[1]) > 0.9
    assert areas.main([folder, "--fit", "True"]) == 0
    ventricle = next(line for line in capsys.readouterr().out.splitlines() if "ventricle" in line)
    assert len(np.loadtxt(io.StringIO(ventricle.split("(")[1].rstrip("),")), delimiter=",")) == len(areas.LEVELS) - 1


def test_what_is_no_phantom_folder_is_refused(refused, tmp_path):
    assert "subjects.csv" in refused("areas.py", tmp_path)
    (tmp_path / "subjects.csv").write_text("path,split\n1,2\n")
    assert "not the table of phantom.py" in refused("areas.py", tmp_path)
