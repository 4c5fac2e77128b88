"""The picture of the steps: which planes it shows, and that it is drawn for every kind of step."""

import numpy as np
import pytest

sitk = pytest.importorskip("SimpleITK")

from conftest import read_image  # noqa: E402
from synthetic_volumes import head  # noqa: E402

from analysis import volume_pictures  # noqa: E402
from analysis.volume_steps import Settings, cut_slices  # noqa: E402


def test_views_are_the_planes_through_the_middle_with_the_top_above():
    voxels = np.random.default_rng(0).normal(size=(6, 8, 10)).astype("f4")  # z, y, x
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1, 2, 3))
    title, planes = volume_pictures.views("step", image, image > 0)
    assert title == "step" and [aspect for *_, aspect in planes] == [2, 3, 1.5]
    for (plane, outline, _), expected in zip(planes, (voxels[3], voxels[::-1, 4], voxels[::-1, :, 5])):
        np.testing.assert_array_equal(plane, expected)
        np.testing.assert_array_equal(outline, expected > 0)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_save_draws_every_step_and_slice(tmp_path, count):
    panels, image = [], sitk.Cast(head(), sitk.sitkFloat32)
    settings = Settings(n4=False, resample=4.0, num_slices=count, slices=(-24, 24))
    pixels, _ = cut_slices(image, settings, None, lambda *panel: panels.append(volume_pictures.views(*panel)))
    panels.append(volume_pictures.views(volume_pictures.FIELD, image / 100 + 1, image > 60))
    path = tmp_path / "steps.png"
    volume_pictures.save(panels, pixels, "image 7", "neurological", str(path))
    drawn = read_image(path)[..., :3].astype(int)
    height, width = drawn.shape[:2]
    assert width >= 175 * len(panels) - 1
    colours = np.ptp(drawn, axis=-1) > 60
    fields = colours[:, -width // len(panels) :]  # viridis, in the last column
    assert fields.mean() > 5 * colours[:, : width // len(panels)].mean()
    bottom = drawn[-height // 8 :]
    assert bottom.max() > 200  # slices


def test_axial_planes_are_mirrored_for_the_neurological_view_but_not_as_stored(tmp_path):
    image = sitk.Cast(head(noise=0), sitk.sitkFloat32)
    found = {}
    for view in ("neurological", "radiological"):
        panels = [volume_pictures.views(title, image, None) for title in ("as stored", "orient")]
        volume_pictures.save(panels, np.zeros((1, 240, 256), np.uint8), "x", view, str(tmp_path / f"{view}.png"))
        found[view] = read_image(tmp_path / f"{view}.png")[..., :3].astype(int)
    differs = (found["neurological"] != found["radiological"]).any(axis=(0, 2))
    width = len(differs) // 4
    assert not differs[: width // 2].any() or not differs[:width].any()
    assert differs.any()
