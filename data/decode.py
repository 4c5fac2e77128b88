"""From an image file to a square grey slice: modes, orientation, and which values of deeper files are black and white.

    files = read_files(paths, lambda i, image, grey: np.asarray(pad_and_resize(grey, 256)))

What is black and white is known of files of 8 bits, but not of deeper ones (12 bits in 16, 32-bit integers, floats). It is decided
once for all files of one kind in a class's folder, by quantiles, so that neither a few hot pixels nor a few odd files decide.
"""

import contextlib
import os
import re
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage
from tqdm import tqdm

FORMATS = "BMP", "JPEG", "PNG", "TIFF"  # PIL recognises others by their first bytes, among them formats that run code
DEEP = "16-bit", "32-bit", "float"
KINDS = ("8-bit", *DEEP, *(f"{kind} MINISWHITE" for kind in DEEP))  # of files, by what their values mean
UNREADABLE, PAGES, FIRST_KIND = 1, 2, 3  # status of a file that is damaged, that holds several images, and that is of KINDS[0]
IMAGEJ_STACK = re.compile(r"ImageJ=.*\nimages=(?!1\n)", re.DOTALL)  # further images have no directory of their own
FULL_RANGE = 0, 65535  # black and white of integers, unless decided otherwise
BRIGHT = 0.995  # quantile of a slice's values that counts as its brightest; hot pixels are beyond
USUAL_WHITES = 1, 255, 4095, 65535
ORIENTATION, BITS, PHOTOMETRIC, DESCRIPTION, SAMPLE_FORMAT = 0x112, 258, 262, 270, 339  # numbers of Exif and TIFF tags


class SeveralPages(ValueError):
    """The file holds several images, of which only the first would be read."""


@contextlib.contextmanager
def open_slice(path):
    """Open the image at `path`, as a context manager; its pixels are not read yet.

    Raises PIL's errors for a damaged file, SeveralPages for a TIFF stack or an animation, and ValueError if `path` is not a
    regular file, the square that holds the image would have more than PIL's limit of pixels, or its 8 bits are signed.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would never end
        raise ValueError("not a regular file")
    # No path for PIL: it would map an uncompressed TIFF into memory, and garble one that is to be turned by 90 degrees.
    with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
        if max(image.size) ** 2 > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        tags = image.tag_v2 if image.format == "TIFF" else {}
        if getattr(image, "is_animated", False) or IMAGEJ_STACK.match(str(tags.get(DESCRIPTION))):
            raise SeveralPages(path)
        if image.mode == "L" and 2 in tags.get(SAMPLE_FORMAT, ()):
            raise ValueError("signed values of 8 bits, which PIL takes for unsigned ones")
        yield image


def kind_of(image):
    """Which of KINDS a PIL image is, as `open_slice` opens it. MINISWHITE: a TIFF whose zero is white, if PIL leaves that to us."""
    if image.mode[0] not in "FI":
        return KINDS[0]
    short = ";16" in image.mode or image.format == "PNG"  # older Pillows open 16-bit PNGs as I
    kind = "float" if image.mode == "F" else "16-bit" if short else "32-bit"
    return f"{kind} MINISWHITE" if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0 else kind


def upright(image):
    """The pixels of an opened image, turned and mirrored as its orientation tag says; 32-bit integers from 2^31 on as floats."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    image.load()
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # PIL raises nearly any error on damaged metadata, which say nothing then
        orientation = None
    image = ImageOps.exif_transpose(image) if orientation in range(2, 9) else image
    if image.mode == "I" and tags.get(BITS) == (32,) and 2 not in tags.get(SAMPLE_FORMAT, ()) and np.asarray(image).min() < 0:
        return Image.fromarray(np.asarray(image).astype(np.uint32).astype(np.float32))  # PIL takes them for signed ones
    return image


def to_grey(image, black=FULL_RANGE[0], white=FULL_RANGE[1]):
    """Convert a PIL image to 8-bit grey (mode "L"); ValueError for a mode that PIL cannot convert (LAB).

    Colour becomes luma (ITU-R 601-2), transparency black. Deeper grey (modes I;16, I;16B, I, F) is scaled from `black` (which may
    be the greater one) to `white` and clipped; what is not finite becomes black, and so does a `filling` where black is negative.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        if black < 0:
            filled = np.pad(values == filling(values), 1, constant_values=True)
            values[ndimage.label(filled)[0][1:-1, 1:-1] == 1] = black  # 1: what is around the brain; within it 0 is a value
        with np.errstate(invalid="ignore", over="ignore"):
            grey = np.floor((values - black) * (255 / (white - black)) + 0.5).clip(0, 255)
        return Image.fromarray(np.where(np.isfinite(values), grey, 0).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L")


def pad_and_resize(image, resolution):
    """Centre an "L" image on a black square (an odd margin is wider at the right or bottom) and resize that to `resolution` a side
    with an antialiasing filter; if its longer side is `resolution`, every pixel is kept."""
    side = max(image.size)
    square = Image.new("L", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((resolution, resolution), Image.Resampling.LANCZOS)  # a copy if the size is right


def decode(path, resolution, levels=None):
    """Read the image at `path` as uint8 [resolution, resolution], with the `levels` of its folder as in `Files` (None: integers of
    full range); raises the errors of `open_slice` and PIL."""
    with open_slice(path) as image:
        black_and_white = (levels or {}).get(kind_of(image), FULL_RANGE)
        return np.asarray(pad_and_resize(to_grey(upright(image), *black_and_white), resolution))


class Light(NamedTuple):
    """How bright a slice is, in grey levels, 0 to 255."""

    bright: int  # its brightest parts but for hot pixels: the BRIGHT quantile
    edges: int  # of two opposite edges the darker one's median, if it is uniform, as a background is; 0 if not


def light_of(pixels):
    """The Light of a slice uint8 [H, W]."""
    counts = np.bincount(pixels.ravel(), minlength=256).cumsum()
    bright = int(np.searchsorted(counts, BRIGHT * pixels.size))
    edges = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    middle_and_high = (np.sort(edge)[[len(edge) // 2, len(edge) * 9 // 10]].astype(int) for edge in edges)
    top, bottom, left, right = (middle if high <= 1.1 * middle else 0 for middle, high in middle_and_high)
    return Light(bright, int(max(min(top, bottom), min(left, right))))


def range_of(image):
    """(low, high) quantiles of the finite values of a deep image but for a `filling`; (0, 0) if there are none."""
    values = np.asarray(image).astype(np.float64)
    return limits(values[values != filling(values)])


def limits(values):
    """(low, high) quantiles of the finite ones of `values`; (0, 0) if there are none."""
    values = values[np.isfinite(values)]
    return tuple(np.quantile(values, (1 - BRIGHT, BRIGHT))) if values.size else (0.0, 0.0)


def filling(values):
    """The value of [H, W] that fills what is around the brain and is not on the scale of the others: the one that most pixels at
    the edges have, if it is 0 among values that are clearly negative, too (z-scores of the brain alone), or far below all others
    (-1000, -3.4e38). nan if there is none."""
    edges, counts = np.unique(np.concatenate((values[0], values[-1], values[:, 0], values[:, -1])), return_counts=True)
    value = edges[counts.argmax()]
    if counts.max() * 2 > counts.sum() and (value == 0 or value < -1):
        low, high = limits(values[values != value])
        if low < -0.1 * abs(high) if value == 0 else low - value > 4 * max(high - low, -0.1 * value):
            return value
    return np.nan


def choose_levels(kind, ranges):
    """(black, white) of all files of one kind in a folder, from the `range_of` each; files of one value have no say.

    White is what a tenth of the files reach, or one of USUAL_WHITES near that; black is 0, or the lowest value if that is clearly
    negative; values from -1 to 1 keep that range. MINISWHITE: the other way round.
    """
    lows, highs = np.array([(low, high) for low, high in ranges if low < high] or ranges, float).T
    low, high = np.quantile(lows, 0.1, method="higher"), np.quantile(highs, 0.9, method="lower")
    black = float(low) if low < -0.1 * abs(high) else 0.0
    white = usual_white(high) if high > 0 else float(black == 0)  # 1: all values are 0
    if abs(low + 1) < 0.01 and high <= 1.1:
        black, white = -1.0, 1.0
    return (white, black) if kind.endswith("MINISWHITE") else (black, white)


def usual_white(value):
    """The one of USUAL_WHITES that `value` is near to, else `value`; in between something between, so that AD and NC cannot be torn
    apart by a limit."""
    white = next((white for white in USUAL_WHITES if 0.4 * white < value < 1.3 * white), None)
    return float(value if white is None else white * np.interp(value / white, (0.4, 0.7, 1.1, 1.3), (0.4, 1, 1, 1.3)))


class Files(NamedTuple):
    """What `read_files` has read."""

    results: list  # [N] of work(), None for a file that was not read
    status: np.ndarray  # uint8 [N]: UNREADABLE, PAGES, or FIRST_KIND + the index of the file's kind in KINDS
    levels: dict  # {kind: (black, white)} of the deep kinds among them


def read_files(paths, work, num_workers=None, label=None, folder=()):
    """Read the images at `paths`, of one class: `Files` with work(i, image, grey) of each.

    i: the path's index; image: PIL's, upright; grey: the same in mode "L", with black and white as decided for all `paths`
    together, or for all of `folder`, if `paths` are a sample of these. num_workers, label: of `for_each`. Only deep files are read
    twice.
    """

    def read(i, levels=None):
        """(kind, result of `work`), but (kind, `range_of`) of a deep file while levels are unknown."""
        try:
            with open_slice(paths[i]) as image:
                kind, image = kind_of(image), upright(image)
                if kind in KINDS[1:] and levels is None:
                    return kind, range_of(image)
                return kind, work(i, image, to_grey(image, *(levels or {}).get(kind, FULL_RANGE)))
        except SeveralPages:
            return PAGES, None

    def measure(path):
        with open_slice(path) as image:
            return (kind_of(image), range_of(upright(image))) if kind_of(image) in KINDS[1:] else None

    found = [one or (None, None) for one in for_each(read, range(len(paths)), num_workers, label)]
    deep, ranges = [i for i, (kind, _) in enumerate(found) if kind in KINDS[1:]], {}
    others = for_each(measure, sorted(set(folder) - set(paths)), num_workers, label) if deep else []
    for kind, values in filter(None, [found[i] for i in deep] + others):
        ranges.setdefault(kind, []).append(values)
    levels = {kind: choose_levels(kind, ranges[kind]) for kind in KINDS if kind in ranges}
    for i, again in zip(deep, for_each(lambda i: read(i, levels), deep, num_workers, label)):
        found[i] = again or (None, None)
    status = [kind if kind == PAGES else UNREADABLE if kind is None else code_of(kind) for kind, _ in found]
    return Files([result for _, result in found], np.array(status, np.uint8), levels)


def code_of(kind):
    """The status of a readable file of this kind."""
    return FIRST_KIND + KINDS.index(kind)


def for_each(work, items, num_workers=None, label=None):
    """Return [work(item) for item in items], with None where it raised, using `num_workers` threads (None: one per core).

    PIL decodes without holding Python's lock, so threads use all cores. label: of a progress bar; None shows no bar.
    """

    def attempt(item):
        try:
            return work(item)
        except Exception:  # PIL raises nearly any error on a damaged file
            return None

    workers = min(16, os.cpu_count() or 1) if num_workers is None else max(1, num_workers)
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # PIL warns about odd metadata in every file
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            hidden = None if label else True  # None: hidden unless stderr is a terminal
            return list(tqdm(pool.map(attempt, items), label, len(items), unit=" images", disable=hidden))
        except BaseException:  # Ctrl-C must not wait for thousands of queued items
            pool.shutdown(wait=False, cancel_futures=True)
            raise
