"""The picture of the steps is drawn for every kind of step."""

import numpy as np
import pytest

sitk = pytest.importorskip("SimpleITK")

from conftest import read_image  # noqa: E402
from synthetic_volumes import head  # noqa: E402

from data.volume_steps import FIELD, Settings, cut_slices, panel_of  # noqa: E402
from report import volume_pictures  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 12])
def test_save_draws_every_step_and_slice(tmp_path, count):
    panels, image = [], sitk.Cast(head(), sitk.sitkFloat32)
    settings = Settings(n4=False, resample=4.0, num_slices=count, slices=(-24, 24))
    pixels, _ = cut_slices(image, settings, None, lambda *step: panels.append(panel_of(*step)))
    panels.append(panel_of(FIELD, image / 100 + 1, image > 60))
    path = tmp_path / "steps.png"
    volume_pictures.save(panels, pixels, "image 7", str(path))
    drawn = read_image(path)[..., :3].astype(int)
    height, width = drawn.shape[:2]
    assert width >= 175 * len(panels) - 1
    colours = np.ptp(drawn, axis=-1) > 60
    fields = colours[:, -width // len(panels) :]  # viridis, in the last column
    assert fields.mean() > 5 * colours[:, : width // len(panels)].mean()
    side = width // min(max(count, 4), 10)  # of a slice, with the gap beside it
    strip = drawn[-int(side * 240 / 256) * -(-count // 10) :]
    bright = (strip > 100).all(axis=-1)
    for i in range(count):  # every slice is there
        row, column = divmod(i, 10)
        place = bright[row * len(strip) // -(-count // 10) :, column * side : (column + 1) * side]
        assert place.any()
    assert not bright[:, count * side :].any()


def test_planes_from_side_to_side_show_the_persons_left_on_the_left_but_for_those_as_stored(tmp_path):
    voxels = np.zeros((40, 40, 40), "f4")
    voxels[:, :, 32:] = 100  # the person's left
    image = sitk.GetImageFromArray(voxels)
    panels = [panel_of(title, image) for title in ("as stored", "orient", "n4", "resample")]
    volume_pictures.save(panels, np.zeros((1, 240, 256), np.uint8), "", str(tmp_path / "x.png"))
    drawn = read_image(tmp_path / "x.png")[..., 0]
    for column, panel in enumerate(np.split(drawn, 4, axis=1)):
        for row in range(2):  # axial, coronal
            line = panel[150 + 175 * row]  # above the letters
            left = line[: len(line) // 2].mean() > line[len(line) // 2 :].mean()
            assert left == (column > 0), (column, row)
