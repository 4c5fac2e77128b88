"""The picture of what augmentation shows the critic."""

import pytest
import torch
from PIL import Image

from report.augmentation import main, strongest


def test_strongest_takes_the_draw_that_changes_each_image_most():
    images = torch.zeros(2, 1, 4, 4)
    draws = torch.stack([images + 0.1, images - 0.5, images + 0.2])
    draws[0, 1] = 0.9
    assert strongest(draws, images)[:, 0, 0, 0].tolist() == pytest.approx([-0.5, 0.9])


def test_command_draws_the_operations(slices_dir, tmp_path):
    flags = ["--dataset_dir", slices_dir, "--output_dir", str(tmp_path / "new"), "--resolution", "32", "--rows", "2"]
    assert main(flags) == 0
    with Image.open(tmp_path / "new" / "augment.png") as picture:
        assert picture.width > 1000 and len(picture.convert("L").getcolors()) > 50
