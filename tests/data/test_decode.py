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
    choose_levels,
    filling,
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


def test_to_grey_clips_what_exceeds_the_range():
    grey = to_grey(Image.fromarray(np.array([[-500, 0, 65535, 70000]], np.int32)))
    assert grey.mode == "L" and np.asarray(grey).tolist() == [[0, 0, 255, 255]]
    grey = to_grey(Image.fromarray(np.array([[1e6, 65535, 65407, 65406, 0]], np.float32)))  # 254.502 and 254.498 of 255
    assert grey.mode == "L" and np.asarray(grey).tolist() == [[255, 255, 255, 254, 0]]


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_to_grey_of_floats_is_between_black_and_white(white):
    values = np.array([[0, 0.25, 0.5, 1]], np.float32) * white
    assert np.asarray(to_grey(Image.fromarray(values), 0, white)).tolist() == [[0, 64, 128, 255]]
    assert np.asarray(to_grey(Image.fromarray(values), white, 0)).tolist() == [[255, 191, 128, 0]]
    broken = np.array([[np.nan, -white, white, np.inf, -np.inf]], np.float32)
    assert np.asarray(to_grey(Image.fromarray(broken), -white, white)).tolist() == [[0, 0, 255, 0, 0]]


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
    return found.levels


DEEP = BRAIN.astype(np.uint16) * 16  # 12 bits


@pytest.mark.parametrize(
    "content, kind",
    [
        (png(DEEP), "16-bit"),
        (png(BRAIN.astype(np.uint16) * 257), "16-bit"),
        (png(BRAIN.astype(np.uint16)), "16-bit"),
        (tiff(DEEP), "16-bit"),
        (tiff(big_endian(DEEP)), "16-bit"),
        (tiff(DEEP.astype(np.int16) - np.int16(2)), "32-bit"),
        (tiff(big_endian(DEEP.astype(np.int16))), "32-bit"),
        (tiff(BRAIN.astype(np.int32)), "32-bit"),
        (tiff(BRAIN.astype(np.uint32) * 257), "32-bit"),
        (tiff((BRAIN / 255).astype(np.float32)), "float"),
        (tiff(big_endian((BRAIN / 255).astype(np.float32))), "float"),
        (tiff(BRAIN.astype(np.float32)), "float"),
        (tiff((BRAIN * 16.0).astype(np.float32)), "float"),
        (tiff((BRAIN * 257.0).astype(np.float32)), "float"),
        (tiff((BRAIN / 127.5 - 1).astype(np.float32)), "float"),
        (tiff(65535 - BRAIN.astype(np.uint16) * 257, photometric=0), "16-bit MINISWHITE"),
        (tiff(4095 - DEEP, photometric=0), "16-bit MINISWHITE"),
        (tiff((1 - BRAIN / 255).astype(np.float32), photometric=0), "float MINISWHITE"),
        (tiff(255 - BRAIN, photometric=0), "8-bit"),
    ],
)
def test_values_of_every_depth_and_sign_give_the_same_slice(tmp_path, content, kind):
    assert_read(tmp_path, [content] * 3, kind)


@pytest.mark.parametrize(
    "scale, dtype, kind",
    [(6.5, "<f4", "float"), (1e-5, "<f4", "float"), (1e8, "<f4", "float"), (5000, "<i4", "32-bit"), (5, "<u2", "16-bit")],
)
def test_values_of_no_usual_range_are_scaled_to_the_brightest(tmp_path, scale, dtype, kind):
    levels = assert_read(
        tmp_path, [tiff((BRAIN.astype(float) * scale).astype(dtype))] * 3, kind, 3, (BRAIN * (255 / 223)).clip(0, 255)
    )
    ((black, white),) = levels.values()
    assert black == 0 and white == pytest.approx(223 * scale, rel=0.02)


def test_signed_values_keep_their_black(tmp_path):
    levels = assert_read(tmp_path, [tiff(DEEP.astype(np.int16) - np.int16(2048))] * 3, "32-bit", 2, BRAIN * (255 / 223))
    assert levels["32-bit"][0] == -2048
    wide = (BRAIN - BRAIN.mean()) / BRAIN.std()  # z-scores
    assert_read(tmp_path, [tiff(wide.astype(np.float32))] * 3, "float", 2, BRAIN * (255 / 223))


def test_one_white_for_all_files_of_a_kind(tmp_path):
    """Maxima of 0.95 and 1.05 by turns, as resampling leaves them: white is 1 for all."""
    factors = [0.95, 1.05] * 6
    found = read(tmp_path, [tiff((BRAIN / 223 * factor).astype(np.float32)) for factor in factors])
    assert found.levels == {"float": (0, 1)}
    for pixels, factor in zip(found.results, factors):
        np.testing.assert_allclose(pixels.astype(int), (BRAIN / 223.0 * factor * 255).clip(0, 255), atol=1)


def test_neither_hot_pixels_nor_odd_files_decide(tmp_path):
    hot = DEEP.copy()
    hot[0, :8] = 65535
    levels = assert_read(tmp_path, [png(hot)] * 3 + [png(DEEP)], "16-bit", rows=slice(3, None))
    assert levels == {"16-bit": (0, 4095)}
    assert_read(tmp_path, [png(DEEP)] * 11 + [png(DEEP * 18)], "16-bit", rows=slice(11))
    assert_read(tmp_path, [png(DEEP)] * 11 + [png(DEEP * 0)], "16-bit", rows=slice(11))


def test_kinds_of_a_folder_have_levels_of_their_own(tmp_path):
    contents = [
        png(BRAIN),
        png(DEEP),
        tiff((BRAIN / 255).astype(np.float32)),
        tiff(4095 - DEEP, photometric=0),
        tiff(BRAIN.astype(np.int32)),
    ]
    found = read(tmp_path, contents)
    assert found.levels == {"16-bit": (0, 4095), "32-bit": (0, 255), "float": (0, 1), "16-bit MINISWHITE": (4095, 0)}
    for pixels in found.results:
        np.testing.assert_allclose(pixels.astype(int), BRAIN, atol=1)


def test_levels_of_a_sample_are_those_of_the_folder(tmp_path):
    whole = read(tmp_path, [tiff((BRAIN * (6.0 + i)).astype(np.float32)) for i in range(9)])
    paths = [str(tmp_path / f"{i:03}.tif") for i in range(9)]
    part = read_files(paths[:2], lambda i, image, grey: np.asarray(grey), folder=paths)
    assert part.levels == whole.levels and all((a == b).all() for a, b in zip(part.results, whole.results))


def test_values_without_any_light_are_black(tmp_path):
    for content in (tiff(DEEP * 0), tiff(np.full((9, 9), np.nan, np.float32)), tiff(np.full((9, 9), -5, np.int16))):
        found = read(tmp_path, [content])
        assert found.results[0].max() == 0


def test_choose_levels():
    assert choose_levels("16-bit", [(0, 3000), (0, 3500), (0, 65535)]) == (0, 4095)
    assert choose_levels("16-bit", [(0, 1500)]) == (0, 1500)
    assert choose_levels("float", [(-1, 1.05)]) == choose_levels("float", [(-1, 0.5)]) == (-1, 1)
    assert choose_levels("float", [(-0.9, 3.2)]) == (-0.9, 3.2)
    assert choose_levels("float", [(-0.02, 0.9)]) == (0, 1)  # ringing
    assert choose_levels("16-bit MINISWHITE", [(200, 65535)]) == (65535, 0)
    assert choose_levels("32-bit", [(0, 0)]) == (0, 1)


def test_usual_white_has_no_steps():
    """Classes that differ by one per cent are never scaled by factors that differ by more than twice that."""
    for white in (1, 255, 4095, 65535):
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
        (tiff((deep / 4080).astype(np.float32), orientation=orientation), 1),
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


def test_fillings_around_the_brain_are_black_and_have_no_say(tmp_path):
    """z-scores of the brain alone, in which 0 is what was not measured, and values of which none can be measured."""
    brain = BRAIN[BRAIN > 0].astype(float)
    scores = (BRAIN - brain.mean() - 0.5) / brain.std()
    low, high = np.quantile(scores[BRAIN > 0], (0.005, 0.995))
    truth = np.where(BRAIN > 0, ((scores - low) / (high - low) * 255).clip(0, 255), 0)
    for fill in (0, -1000, -3.4e38, np.nan):
        levels = assert_read(tmp_path, [tiff(np.where(BRAIN > 0, scores, fill).astype("<f4"))] * 3, "float", 2, truth)
        assert levels["float"] == pytest.approx((low, high), rel=0.01)
    for dtype in ("<i2", "<i4"):
        assert_read(tmp_path, [tiff(np.where(BRAIN > 0, scores * 500, 0).astype(dtype))] * 3, "32-bit", 2, truth)
        assert_read(tmp_path, [tiff(np.where(BRAIN > 0, BRAIN.astype(int), -2000).astype(dtype))] * 3, "32-bit")
    within = np.where(BRAIN > 0, scores, 0)
    within[18:22, 20:28] = 0  # a value, which is not black
    (pixels,) = read(tmp_path, [tiff(within.astype("<f4"))]).results
    assert (pixels[18:22, 20:28] == np.floor(-low / (high - low) * 255 + 0.5)).all() and not pixels[BRAIN == 0].any()
    for values in (BRAIN, BRAIN / 127.5 - 1, DEEP.astype(int) - 2048, BRAIN - 5.0, scores, BRAIN * np.nan):
        assert np.isnan(filling(np.asarray(values, float)))


def test_large_unsigned_integers_of_32_bits(tmp_path):
    """Beyond 2^31, where Pillow has negative values."""
    full = BRAIN.astype(np.uint32) * 16843009
    assert_read(tmp_path, [tiff(full)] * 3, "32-bit", 2, (BRAIN * (255 / 223)).clip(0, 255))


def test_signed_values_of_8_bits_are_not_read(tmp_path):
    """Pillow takes -1 for 255."""
    assert read(tmp_path, [tiff((BRAIN.astype(int) - 128).astype(np.int8))]).status.tolist() == [UNREADABLE]


@pytest.mark.parametrize("images, status", [(1, FIRST_KIND), (5, PAGES), (13, PAGES)])
def test_stacks_of_imagej_are_left_out(tmp_path, images, status):
    """Their further images follow the first without directories of their own."""
    text = f"ImageJ=1.53t\nimages={images}\nslices={images}\n"
    content = encoded(Image.fromarray(BRAIN), "TIFF", description=text)
    assert read(tmp_path, [content]).status.tolist() == [status]


@pytest.mark.parametrize("width, height", [(400, 200), (40, 80), (99, 50)])
def test_pad_and_resize_does_not_stretch(width, height):
    y, x = np.mgrid[:height, :width]
    radius = min(width, height) * 0.4
    disc = ((x - (width - 1) / 2) ** 2 + (y - (height - 1) / 2) ** 2 <= radius**2).astype(np.uint8) * 255
    result = np.asarray(pad_and_resize(Image.fromarray(disc), 128)) > 127
    expected = 2 * radius * 128 / max(width, height)
    assert abs(np.ptp(np.flatnonzero(result.any(0))) + 1 - expected) < 3
    assert abs(np.ptp(np.flatnonzero(result.any(1))) + 1 - expected) < 3
