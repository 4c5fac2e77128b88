"""Grey pixels against a second computation, and what is black and white in files of all depths."""

import numpy as np
import pytest
from PIL import Image
from synthetic import noise, save

from data.decode import pad_and_resize, to_grey

# Grey -----------------------------------------------------------------------------------------------------------------


def luma(rgb):
    return np.asarray(rgb, np.float64) @ [0.299, 0.587, 0.114]


def close(image, expected, tolerance=1):
    assert image.mode == "L"
    np.testing.assert_allclose(np.asarray(image, np.float64), expected, atol=tolerance)


def test_to_grey_of_8_bit_modes_is_their_luma():
    grey = noise(9, 7)
    assert (np.asarray(to_grey(Image.fromarray(grey))) == grey).all()
    assert (np.asarray(to_grey(Image.fromarray(np.stack([grey] * 3, -1)))) == grey).all()
    assert (np.asarray(to_grey(Image.fromarray(grey > 127))) == np.where(grey > 127, 255, 0)).all()
    rgb = np.random.default_rng(1).integers(0, 256, (7, 9, 3), np.uint8)
    close(to_grey(Image.fromarray(rgb)), luma(rgb))
    cmyk = np.random.default_rng(2).integers(0, 256, (7, 9, 4)).astype(np.uint8)
    ink = cmyk / 255
    close(to_grey(Image.fromarray(cmyk, "CMYK")), luma(255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])), 2)


def test_to_grey_puts_palettes_and_transparency_over_black():
    palette, index = np.random.default_rng(3).integers(0, 256, (256, 3)).astype(np.uint8), noise(9, 7)
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    close(to_grey(image), luma(palette[index]))
    alpha = np.arange(256, dtype=np.uint8)
    image.info["transparency"] = alpha.tobytes()
    close(to_grey(image), luma(palette[index]) * alpha[index] / 255, 2)
    image = Image.fromarray(index, "P")  # its own, since converting changes the palette's alpha
    image.putpalette(palette.tobytes())
    image.info["transparency"] = int(index[0, 0])
    close(to_grey(image), luma(palette[index]) * (index != index[0, 0]), 1)
    rgba = np.random.default_rng(4).integers(0, 256, (7, 9, 4), np.uint8)
    close(to_grey(Image.fromarray(rgba)), luma(rgba[..., :3]) * rgba[..., 3] / 255, 2)
    close(to_grey(Image.fromarray(rgba[..., :2].copy(), "LA")), rgba[..., 0] / 255 * rgba[..., 1], 1)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_to_grey_scales_16_bit_modes_without_clipping(mode):
    values = np.linspace(0, 65535, 256 * 16).round().astype(np.int64).reshape(64, 64)
    raw = values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode])
    image = Image.frombytes(mode, (64, 64), raw.tobytes())
    assert (np.asarray(to_grey(image)) == np.floor(values / 257 + 0.5)).all()


def test_to_grey_scales_16_bit_files(tmp_path):
    values = noise(40, 24, high=65536, dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        save(tmp_path / name, values)
        with Image.open(tmp_path / name) as image:
            assert (np.asarray(to_grey(image)) == np.floor(values / 257 + 0.5)).all()


def test_to_grey_clips_integers_beyond_16_bit():
    grey = to_grey(Image.fromarray(np.array([[-500, 0, 65535, 70000]], np.int32)))
    assert grey.mode == "L" and np.asarray(grey).tolist() == [[0, 0, 255, 255]]


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_to_grey_of_floats_guesses_white_from_the_maximum(white):
    values = np.array([[0, 0.25, 0.5, 1]], np.float32) * white
    assert np.abs(np.asarray(to_grey(Image.fromarray(values)), int) - [[0, 64, 127, 255]]).max() <= 1
    broken = np.array([[np.nan, -white, white, np.inf, -np.inf]], np.float32)
    assert np.asarray(to_grey(Image.fromarray(broken))).tolist() == [[0, 0, 255, 0, 0]]


def test_to_grey_of_floats_clips_what_exceeds_every_range():
    grey = to_grey(Image.fromarray(np.array([[1e6, 65535, 65407, 65406, 0]], np.float32)))  # 254.502 and 254.498 of 255
    assert grey.mode == "L" and np.asarray(grey).tolist() == [[255, 255, 255, 254, 0]]


# Squares --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, height", [(256, 240), (240, 256), (256, 256), (256, 241), (1, 256)])
def test_pad_and_resize_keeps_every_pixel_at_the_right_size(width, height):
    pixels = noise(width, height)
    expected = np.zeros((256, 256), np.uint8)
    left, top = (256 - width) // 2, (256 - height) // 2
    expected[top : top + height, left : left + width] = pixels
    assert (np.asarray(pad_and_resize(Image.fromarray(pixels), 256)) == expected).all()
    if (width, height) == (256, 240):
        assert top == 8 and not expected[:8].any() and not expected[-8:].any()


@pytest.mark.parametrize("width, height", [(400, 200), (40, 80), (99, 50)])
def test_pad_and_resize_does_not_stretch(width, height):
    y, x = np.mgrid[:height, :width]
    radius = min(width, height) * 0.4
    disc = ((x - (width - 1) / 2) ** 2 + (y - (height - 1) / 2) ** 2 <= radius**2).astype(np.uint8) * 255
    result = np.asarray(pad_and_resize(Image.fromarray(disc), 128)) > 127
    expected = 2 * radius * 128 / max(width, height)
    assert abs(np.ptp(np.flatnonzero(result.any(0))) + 1 - expected) < 3
    assert abs(np.ptp(np.flatnonzero(result.any(1))) + 1 - expected) < 3


def test_pad_and_resize_is_antialiased():
    checkerboard = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    result = np.asarray(pad_and_resize(Image.fromarray(checkerboard), 32), int)
    assert np.abs(result[2:-2, 2:-2] - 127.5).max() < 4


def test_pad_and_resize_is_by_lanczos():
    """The filter with three lobes on either side: at twice the size, its response to a step as a sum over the pixels."""
    step = np.zeros((32, 32), np.uint8)
    step[:, 16:] = 200
    place = (np.arange(64) + 0.5) / 2 - 0.5
    distance = place[:, None] - np.arange(32)
    weight = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    expected = (weight / weight.sum(1, keepdims=True)) @ step[0]
    np.testing.assert_allclose(np.asarray(pad_and_resize(Image.fromarray(step), 64))[32], expected.clip(0, 255), atol=1)
