"""Grey pixels against a second computation, orientation, and what is black and white in files of all depths."""

import io

import numpy as np
import pytest
from PIL import Image
from synthetic import noise
from tiff import big_endian, tiff

from data.decode import (
    FIRST_KIND,
    KINDS,
    PAGES,
    UNREADABLE,
    VALUES,
    choose_white,
    light_of,
    pad_and_resize,
    read_files,
    to_grey,
    usual_white,
)

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


def test_to_grey_of_16_bits_is_scaled_to_white_and_clipped():
    image = Image.fromarray(np.array([[0, 1000, 2047, 2048, 4095, 70]], np.uint16))
    assert np.asarray(to_grey(image, 4095)).tolist() == [[0, 62, 127, 128, 255, 4]]
    assert np.asarray(to_grey(image, 1000)).tolist() == [[0, 255, 255, 255, 255, 18]]


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


# Files of all depths --------------------------------------------------------------------------------------------------

Y, X = np.mgrid[:40, :48]
BRAIN = np.where(np.hypot((X - 24) / 18, (Y - 20) / 16) < 1, 100 + 3 * X, 0).astype(np.uint8)  # up to 223 of 255


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(pixels, **options):
    return encoded(Image.fromarray(pixels), "PNG", **options)


def read(tmp_path, contents):
    paths = []
    for i, content in enumerate(contents):
        paths.append(str(tmp_path / f"{i:03}.tif"))
        (tmp_path / f"{i:03}.tif").write_bytes(content)
    return read_files(paths, lambda i, image, grey: np.asarray(grey))


def assert_read(tmp_path, contents, kind, tolerance=1, truth=BRAIN, rows=slice(None)):
    """All are of one kind, and their grey levels are those of `truth`."""
    found = read(tmp_path, contents)
    assert set(found.status.tolist()) == {FIRST_KIND + KINDS.index(kind)}
    for pixels in found.results[rows]:
        np.testing.assert_allclose(pixels.astype(int), truth, atol=tolerance)
    return found.white


DEEP = BRAIN.astype(np.uint16) * 16  # 12 bits


@pytest.mark.parametrize(
    "content, kind",
    [
        (png(DEEP), "16-bit"),
        (png(BRAIN.astype(np.uint16) * 257), "16-bit"),
        (png(BRAIN.astype(np.uint16)), "16-bit"),
        (tiff(DEEP), "16-bit"),
        (tiff(big_endian(DEEP)), "16-bit"),
        (tiff(255 - BRAIN, photometric=0), "8-bit"),
    ],
)
def test_values_of_every_depth_give_the_same_slice(tmp_path, content, kind):
    assert_read(tmp_path, [content] * 3, kind)


@pytest.mark.parametrize(
    "content",
    [
        tiff(BRAIN.astype(np.int8)),
        tiff(DEEP.astype(np.int16)),
        tiff(big_endian(DEEP.astype(np.int16))),
        tiff(BRAIN.astype(np.int32)),
        tiff(BRAIN.astype(np.uint32) * 257),
        tiff((BRAIN / 255).astype(np.float32)),
        tiff(4095 - DEEP, photometric=0),
    ],
)
def test_values_of_which_pillow_does_not_say_what_they_mean_are_left_out(tmp_path, content):
    found = read(tmp_path, [content, png(DEEP)])
    assert found.status.tolist() == [VALUES, FIRST_KIND + 1] and found.results[0] is None and found.white == 4095


def test_values_of_no_usual_range_are_scaled_to_the_brightest(tmp_path):
    white = assert_read(tmp_path, [png(BRAIN.astype(np.uint16) * 5)] * 3, "16-bit", 3, (BRAIN * (255 / 223)).clip(0, 255))
    assert white == pytest.approx(223 * 5, rel=0.02)


def test_one_white_for_all_files_of_a_folder(tmp_path):
    """Maxima of 0.95 and 1.05 of 12 bits by turns, as resampling leaves them: white is 4095 for all."""
    factors = [0.95, 1.05] * 6
    found = read(tmp_path, [png((BRAIN * (4095 / 223 * factor)).round().astype(np.uint16)) for factor in factors])
    assert found.white == 4095
    for pixels, factor in zip(found.results, factors):
        np.testing.assert_allclose(pixels.astype(int), (BRAIN / 223.0 * factor * 255).clip(0, 255), atol=1)


def test_neither_hot_pixels_nor_odd_files_decide(tmp_path):
    hot = DEEP.copy()
    hot[0, :8] = 65535
    assert assert_read(tmp_path, [png(hot)] * 3 + [png(DEEP)], "16-bit", rows=slice(3, None)) == 4095
    assert_read(tmp_path, [png(DEEP)] * 11 + [png(DEEP * 18)], "16-bit", rows=slice(11))
    assert_read(tmp_path, [png(DEEP)] * 11 + [png(DEEP * 0)], "16-bit", rows=slice(11))


def test_files_of_8_and_16_bits_are_mixed(tmp_path):
    found = read(tmp_path, [png(BRAIN), png(DEEP)])
    assert found.white == 4095 and read(tmp_path, [png(BRAIN)]).white is None
    for pixels in found.results:
        np.testing.assert_allclose(pixels.astype(int), BRAIN, atol=1)


def test_white_of_a_sample_is_that_of_the_folder(tmp_path):
    whole = read(tmp_path, [png((BRAIN * (6.0 + i)).astype(np.uint16)) for i in range(9)])
    paths = [str(tmp_path / f"{i:03}.tif") for i in range(9)]
    part = read_files(paths[:2], lambda i, image, grey: np.asarray(grey), folder=paths)
    assert part.white == whole.white and all((a == b).all() for a, b in zip(part.results, whole.results))


def test_values_without_any_light_are_black(tmp_path):
    assert read(tmp_path, [png(DEEP * 0)]).results[0].max() == 0


def test_choose_white():
    assert choose_white([3000, 3500, 65535]) == 4095 and choose_white([0, 1500]) == 1500 and choose_white([0]) == 1


def test_usual_white_has_no_steps():
    """Classes that differ by one per cent are never scaled by factors that differ by more than twice that."""
    for white in (255, 4095, 65535):
        for share in (0.7, 0.9, 1, 1.1):
            assert usual_white(share * white) == white
        for share in (0.2, 0.4, 1.3, 2):
            assert usual_white(share * white) == pytest.approx(share * white)
    values = np.geomspace(1e-3, 1e6, 2100)  # by 1% each
    factors = np.diff(np.log([usual_white(value) for value in values]))
    assert factors.min() > -1e-9 and factors.max() < 0.025


def test_stacks_and_animations_are_left_out(tmp_path):
    """Only their first image would be read."""
    first, more = Image.fromarray(BRAIN), {"save_all": True, "append_images": [Image.fromarray(BRAIN // 2)]}
    found = read(tmp_path, [encoded(first, "TIFF", **more), encoded(first, "PNG", **more), png(BRAIN), b"damaged"])
    assert found.status.tolist() == [PAGES, PAGES, FIRST_KIND, UNREADABLE]
    assert [result is None for result in found.results] == [True, True, False, True]


TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # what the tag undoes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags_are_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    turned = Image.fromarray(BRAIN)
    turned = turned.transpose(TURNED[orientation]) if orientation in TURNED else turned
    deep = np.asarray(turned).astype(np.uint16) * 16
    for content, tolerance in (
        (encoded(turned, "JPEG", exif=exif, quality=98), 8),
        (encoded(turned, "PNG", exif=exif), 0),
        (encoded(turned.convert("P"), "PNG", exif=exif), 0),
        (png(deep, exif=exif), 1),
        (tiff(np.asarray(turned), orientation=orientation), 0),
        (tiff(deep, orientation=orientation), 1),
        (tiff(big_endian(deep), orientation=orientation), 1),
        (encoded(turned, "TIFF", tiffinfo={274: orientation}, compression="tiff_lzw"), 0),
    ):
        (pixels,) = read(tmp_path, [content]).results
        assert pixels.shape == BRAIN.shape
        np.testing.assert_allclose(pixels.astype(int), BRAIN, atol=tolerance)


def test_damaged_metadata_do_not_matter(tmp_path):
    content = encoded(Image.fromarray(BRAIN), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(9))
    plain = encoded(Image.fromarray(BRAIN), "JPEG")
    assert (read(tmp_path, [content]).results[0] == read(tmp_path, [plain]).results[0]).all()


def test_brightness_is_that_of_the_brightest_parts():
    pixels = BRAIN.copy()
    pixels[0, :5] = 255
    assert light_of(pixels).bright == int(np.quantile(pixels, 0.995, method="higher")) < 224
    assert light_of(BRAIN * 0) == (0, 0) and light_of(BRAIN * 0 + 255) == (255, 255)


def test_light_of_edges():
    assert light_of(255 - BRAIN).edges == 255 and light_of(BRAIN).edges == 0
    padded = np.asarray(pad_and_resize(Image.fromarray(255 - BRAIN), 48))
    assert light_of(padded).edges == 255  # left and right
    pixels = BRAIN.copy()
    pixels[-9:] = 180  # a neck
    assert light_of(pixels).edges == 0 and light_of(noise(48, 40)).edges == 0
