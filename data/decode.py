"""From an image file to a square grey slice: modes, orientation, and which value of 16-bit files is white.

    files = read_files(paths, lambda i, image, grey: np.asarray(pad_and_resize(grey, 256)))

White is known of files of 8 bits, but not of 16 (12 bits in 16, say). It is decided once for all such files in a class's folder, by
quantiles, so that neither a few hot pixels nor a few odd files decide.
"""

import contextlib
import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

FORMATS = "BMP", "JPEG", "PNG", "TIFF"  # PIL recognises others by their first bytes, among them formats that run code
KINDS = "8-bit", "16-bit"  # of files
# Status of a file: damaged; of several images; signed, of more than 16 bits, or with 0 for white in 16 bits; the first of KINDS
UNREADABLE, PAGES, VALUES, FIRST_KIND = 1, 2, 3, 4
FULL_WHITE = 65535  # of 16 bits, unless decided otherwise
BRIGHT = 0.995  # quantile of a slice's values that counts as its brightest; hot pixels are beyond
USUAL_WHITES = 255, 4095, 65535
ORIENTATION, PHOTOMETRIC, SAMPLE_FORMAT = 0x112, 262, 339  # numbers of Exif and TIFF tags


class Unusable(ValueError):
    """The file can be read, but is no slice; `status`, PAGES or VALUES, says why."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


class Light(NamedTuple):
    """How bright a slice is, in grey levels, 0 to 255."""

    bright: int  # its brightest parts but for hot pixels: the BRIGHT quantile
    edges: int  # of two opposite edges the darker one's median, if it is uniform, as a background is; 0 if not


# ----------------------------------------------------------------------------------------------------------------------
# One file


@contextlib.contextmanager
def open_slice(path):
    """Open the image at `path`, as a context manager; its pixels are not read yet.

    Raises PIL's errors for a damaged file, Unusable for a TIFF stack, an animation, and values that are not unsigned ones of 8 or
    16 bits, and ValueError if `path` is not a regular file, or the square that holds the image would have more than PIL's limit of
    pixels.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would never end
        raise ValueError("not a regular file")
    # No path for PIL: it would map an uncompressed TIFF into memory, and garble one that is to be turned by 90 degrees.
    with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
        if max(image.size) ** 2 > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        if getattr(image, "is_animated", False):
            raise Unusable(PAGES)
        tags = image.tag_v2 if image.format == "TIFF" else {}
        other = image.mode == "F" or image.mode.startswith("I") and image.format != "PNG" and ";16" not in image.mode
        if other or 2 in tags.get(SAMPLE_FORMAT, ()) or kind_of(image) == "16-bit" and tags.get(PHOTOMETRIC) == 0:
            raise Unusable(VALUES)
        yield image


def kind_of(image):
    """Which of KINDS a PIL image is, as `open_slice` opens it."""
    return KINDS[image.mode.startswith("I")]  # older Pillows open 16-bit PNGs as I


def upright(image):
    """The pixels of an opened image, turned and mirrored as its orientation tag says."""
    image.load()
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # PIL raises nearly any error on damaged metadata, which say nothing then
        orientation = None
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def to_grey(image, white=None):
    """Convert a PIL image of any mode to 8-bit grey (mode "L"); ValueError for a mode that PIL cannot convert (LAB).

    Colour becomes luma (ITU-R 601-2) and transparency is put over black. Grey of 16 bits (modes I;16, I;16B, I) is scaled so that
    `white` (None: FULL_WHITE) becomes 255, and clipped.
    """
    if kind_of(image) == "16-bit":
        grey = np.floor(np.asarray(image).astype(np.float64) * (255 / (white or FULL_WHITE)) + 0.5)
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L")


def pad_and_resize(image, resolution):
    """Centre an "L" image on a black square and resize that to `resolution` x `resolution`, without stretching it.

    If its longer side is `resolution`, every pixel is kept (an odd margin is wider by one pixel at the right or bottom);
    otherwise it is resized with an antialiasing filter.
    """
    side = max(image.size)
    square = Image.new("L", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((resolution, resolution), Image.Resampling.LANCZOS)  # a copy if the size is right


def decode(path, resolution, white=None):
    """Read the image at `path` as uint8 [resolution, resolution]; raises the errors of `open_slice` and PIL.

    white: of the 16-bit files in its folder, as in `Files`; None: FULL_WHITE.
    """
    with open_slice(path) as image:
        return np.asarray(pad_and_resize(to_grey(upright(image), white), resolution))


def light_of(pixels):
    """The Light of a slice uint8 [H, W]."""
    counts = np.bincount(pixels.ravel(), minlength=256).cumsum()
    bright = int(np.searchsorted(counts, BRIGHT * pixels.size))
    edges = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    middle_and_high = (np.sort(edge)[[len(edge) // 2, len(edge) * 9 // 10]].astype(int) for edge in edges)
    top, bottom, left, right = (middle if high <= 1.1 * middle else 0 for middle, high in middle_and_high)
    return Light(bright, int(max(min(top, bottom), min(left, right))))


# ----------------------------------------------------------------------------------------------------------------------
# White of 16 bits


def brightest(image):
    """The BRIGHT quantile of the values of a 16-bit image; 0 if nearly all are equal."""
    low, high = np.quantile(np.asarray(image), (1 - BRIGHT, BRIGHT))
    return float(high) if low < high else 0.0


def choose_white(values):
    """White of all 16-bit files in a folder, from the `brightest` of each: what a tenth reach, or one of USUAL_WHITES near that.

    Files of one value, such as black ones, have no say.
    """
    values = [value for value in values if value > 0]
    return usual_white(np.quantile(values, 0.9, method="lower")) if values else 1.0


def usual_white(value):
    """The one of USUAL_WHITES that `value` is near to, else `value`; in between something between, so that AD and NC cannot be torn
    apart by a limit."""
    white = next((white for white in USUAL_WHITES if 0.4 * white < value < 1.3 * white), None)
    return float(value if white is None else white * np.interp(value / white, (0.4, 0.7, 1.1, 1.3), (0.4, 1, 1, 1.3)))


# ----------------------------------------------------------------------------------------------------------------------
# Many files


class Files(NamedTuple):
    """What `read_files` has read."""

    results: list  # [N] of work(), None for a file that was not read
    status: np.ndarray  # uint8 [N]: UNREADABLE, PAGES, VALUES, or FIRST_KIND + the index of the file's kind in KINDS
    white: float | None  # of the 16-bit files among them; None without


def read_files(paths, work, num_workers=None, label=None, folder=()):
    """Read the images at `paths`, of one class: `Files` with work(i, image, grey) of each.

    i: the path's index; image: PIL's, upright; grey: the same in mode "L", with white as decided for all `paths` together, or for
    all of `folder`, if `paths` are a sample of these. num_workers, label: of `for_each`. Only 16-bit files are read twice.
    """

    def read(i):
        try:
            with open_slice(paths[i]) as image:
                kind, image = kind_of(image), upright(image)
                return code_of(kind), brightest(image) if kind == "16-bit" else work(i, image, to_grey(image))
        except Unusable as error:
            return error.status, None

    def measure(path):
        with open_slice(path) as image:
            return brightest(upright(image)) if kind_of(image) == "16-bit" else None

    def read_deep(i):
        with open_slice(paths[i]) as image:
            image = upright(image)
            return work(i, image, to_grey(image, white))

    found = [one or (UNREADABLE, None) for one in for_each(read, range(len(paths)), num_workers, label)]
    status, results = (list(column) for column in zip(*found)) if found else ([], [])
    deep, white = [i for i, code in enumerate(status) if code == code_of("16-bit")], None
    if deep:
        others = for_each(measure, sorted(set(folder) - set(paths)), num_workers, label)
        white = choose_white([results[i] for i in deep] + [value for value in others if value is not None])
    for i, result in zip(deep, for_each(read_deep, deep, num_workers, label)):
        results[i] = result
        if result is None:
            status[i] = UNREADABLE
    return Files(results, np.array(status, np.uint8), white)


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
