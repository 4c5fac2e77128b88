"""DICOM series: the T1 scan among the files of a folder, one grey MR volume in slices that are all there, or why there is none.

    image = read_dicom(["I218391/001.dcm", "I218391/002.dcm", ...])     # a SimpleITK.Image with its position in the scanner

SimpleITK reads and decompresses the files; which of them make one whole volume is checked here, since its reader of series takes
gaps, localisers and repeated slices as they come. It is imported here, and in what prepare.py needs beside this file, nowhere else.
"""

import os
import re
from typing import NamedTuple

import numpy as np

from utils import UserError, plural, printable

try:
    import SimpleITK as sitk
except ImportError:
    raise UserError(
        "SimpleITK is not installed, and volumes cannot be read without it: pip install -r requirements-volumes.txt"
    ) from None

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's warnings are many lines a file; what matters is refused below

MIN_SIDE, MAX_VOXELS = 20, 2**27  # voxels: fewer are a localiser; more than 512 x 512 x 512 would need gigabytes
LOCALISER = re.compile(r"locali[sz]er|scout|survey|3.?plane|\bloc\b", re.IGNORECASE)
SCAN = re.compile(r"mp.?rage|spgr|tfl", re.IGNORECASE)  # named after how it was planned, such as "MPRAGE after loc"
NO_IMAGE = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(88|104|11|66|9)\.")  # reports, PDFs, presentation states, raw data
COMPRESSED = re.compile(rb"1\.2\.840\.10008\.1\.2\.4\.[0-9]+")  # transfer syntaxes; SimpleITK reads JPEG, JPEG-LS, JPEG 2000
CONVERT = "convert it to NIfTI, such as with dcm2niix"
PIXELS = b"\xe0\x7f\x10\0"  # tag of the voxels: what follows is no header
FRAME_TAGS = {  # of each frame of a multi-frame file, or of all: as a file with explicit value representations spells them
    "position": b"\x20\0\x32\0DS",
    "orientation": b"\x20\0\x37\0DS",
    "spacing": b"\x28\0\x30\0DS",
    "intercept": b"\x28\0\x52\x10DS",
    "slope": b"\x28\0\x53\x10DS",
}
LEFT_OUT = "left out"  # key of the metadata of an image: which files beside it were not read
TAGS = {  # of DICOM: one value each
    "class": "0008|0016",
    "file": "0008|0018",
    "series": "0020|000e",
    "description": "0008|103e",
    "type": "0008|0008",
    "frames": "0028|0008",
    "spacing": "0028|0030",
    "samples": "0028|0002",
    "colour": "0028|0004",
    "modality": "0008|0060",
    "person": "0010|0020",
    "name": "0010|0010",
    "instance": "0020|0013",
    "orientation": "0020|0037",
    "position": "0020|0032",
}


class Grid(NamedTuple):
    """A series that is whole: its files in order, and where its voxels lie, as SimpleITK takes it."""

    files: list  # that of a multi-frame series is repeated
    frames: list  # numbers of its frames in order, or None for each file
    voxels: int
    spacing: tuple
    origin: list
    direction: list


def reason(error):
    """What SimpleITK's error says, without the names of its source files."""
    lines = [line for line in map(str.strip, str(error).splitlines()) if line] or ["no reason given"]
    return printable(re.sub(r"^.*?(ERROR|Error): *(\w+\([0-9a-fx]+\): *)?", "", lines[-1]))[:200].rstrip(".")


def require(condition, problem):
    """UserError, with the text `problem`, unless a condition holds."""
    if not condition:
        raise UserError(problem)


def check_size(size):
    """UserError unless `size` (voxels along each axis) may be a whole head."""
    text = f"{' x '.join(map(str, size))} voxels"
    require(min(size) >= MIN_SIDE, f"a localiser or a part of a scan, with {text}; each side needs at least {MIN_SIDE}")
    require(np.prod(size, dtype=float) <= MAX_VOXELS, f"{text} are more than the {MAX_VOXELS} that are read; resample it first")


def numbers(text, count):
    """The `count` finite numbers in a DICOM value "1\\2\\3", or None."""
    try:
        values = np.array([float(part) for part in text.split("\\")])
    except ValueError:
        return None
    return values if len(values) == count and np.isfinite(values).all() else None


def read_dicom(files):
    """Read the series in the DICOM files of a folder, given in any order; UserError, without the folder, where none is whole.

    Of several series that are whole it is the one called as T1 scans are, of original rather than derived images, of most voxels.
    The metadata of the image under LEFT_OUT name the others, files without an image, and copies.
    """
    series, left_out = sort_files(files)
    grids, problems = {}, {}
    for key, headers in series.items():
        try:
            grids[key] = grid_of(headers)
        except UserError as error:
            problems[key] = str(error)
    if not grids:
        raise UserError(problems[max(series, key=lambda key: len(series[key]))] if series else "no file holds an image")

    def rank(key):
        first = series[key][0]
        return bool(SCAN.search(first["description"])), "DERIVED" not in first["type"], grids[key].voxels

    chosen = max(grids, key=rank)
    for key in series.keys() - {chosen}:
        called = printable(series[key][0]["description"])[:40] or "no description"
        left_out.append(f"{called}, {plural(len(series[key]), 'file')} ({problems.get(key, 'another series')})")
    grid = grids[chosen]
    image = sitk.ReadImage(grid.files if grid.frames[0] is None else grid.files[0], sitk.sitkFloat32, "GDCMImageIO")
    if grid.frames[0] is not None:
        image = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[grid.frames])
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    if left_out:
        image.SetMetaData(LEFT_OUT, "; ".join(sorted(left_out)))
    return image


def sort_files(files):
    """({series: [values of TAGS and the path and size of each of its files]}, [what is no image or a copy, as text]).

    UserError for a damaged file, or files of several people.
    """
    reader, series, left_out, known = sitk.ImageFileReader(), {}, [], set()
    reader.SetImageIO("GDCMImageIO")
    people, copies = set(), 0
    for path in files:
        reader.SetFileName(path)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            with open(path, "rb") as file:
                start = file.read(2**12)
                if not NO_IMAGE.search(start):
                    if packed := COMPRESSED.search(start):
                        why = f"{os.path.basename(path)}: damaged, or a compression that is not read ({packed[0].decode()})"
                        raise UserError(f"{why}; {CONVERT}") from None
                    raise UserError(f"{os.path.basename(path)}: damaged, or no DICOM image ({reason(error)})") from None
            left_out.append(f"{printable(os.path.basename(path))} (no image)")
            continue
        header = {name: reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else "" for name, tag in TAGS.items()}
        people.add((header["person"], header["name"]))
        identity = tuple(header[name] for name in ("series", "file", "instance", "position"))
        if header["file"] and identity in known:
            copies += 1
        else:
            key = header["series"], header["class"], header["modality"]
            series.setdefault(key, []).append({**header, "path": path, "size": reader.GetSize()[:2]})
        known.add(identity)
    require(len(people) < 2, f"files of {len(people)} people are mixed in this folder; give each a folder of their own")
    return series, left_out + ([plural(copies, "repeated file")] if copies else [])


def grid_of(headers):
    """The Grid of the files of a series, in any order; UserError if it is no whole T1 volume."""
    check_kind(headers)
    headers = [frame for header in headers for frame in frames_of(header)]
    require(len({header["path"] for header in headers}) in (1, len(headers)), f"several multi-frame DICOM files; {CONVERT}")
    axes = [numbers(header["orientation"], 6) for header in headers]
    positions = [numbers(header["position"], 3) for header in headers]
    known = all(value is not None for value in (*axes, *positions))
    require(known, "no orientation (Image Orientation and Position) in its files: left and right would be a guess")
    require(np.ptp(axes, axis=0).max() <= 0.01, "a localiser, or mixed series: its slices lie in several directions")
    sizes = {(header["size"], header["spacing"]) for header in headers}
    require(len(sizes) == 1, "mixed series: its slices have several sizes")
    row, column = np.split(np.mean(axes, axis=0), 2)
    right_angle = abs(row @ column) <= 0.01 and np.allclose([row @ row, column @ column], 1, atol=0.01)
    require(right_angle, "no orientation: Image Orientation has no two perpendicular directions")
    sides = numbers(headers[0]["spacing"], 2)  # of rows, of columns
    if sides is None or sides.min() <= 0:
        raise UserError(f"no Pixel Spacing ({printable(headers[0]['spacing']) or 'missing'}), so sizes would be a guess")
    normal = np.cross(row, column)
    heights = np.array(positions) @ normal
    order = np.argsort(heights, kind="stable")
    step = check_spacing(heights[order])
    count, instances = len(headers), {int(of[0]) for header in headers if (of := numbers(header["instance"], 1)) is not None}
    if len(instances) == count:  # which may begin above the count of slices
        first, last = min(instances), max(instances)
        missing = last - (first if first > count else min(1, first)) + 1 - count
        require(missing <= 0, f"{missing} missing slices: {count} files, Instance Numbers up to {last}; download it again")
    across = np.ptp(np.array(positions) @ np.stack([row, column]).T, axis=0).max()
    require(across <= 0.1 * step * count, "sheared: its slices are shifted against each other; correct the gantry tilt first")
    size = *headers[0]["size"], count
    check_size(size)
    direction = np.stack([row, column, normal], axis=1).ravel().tolist()
    paths, frames = ([headers[i].get(name) for i in order] for name in ("path", "frame"))
    return Grid(paths, frames, int(np.prod(size)), (sides[1], sides[0], step), positions[order[0]].tolist(), direction)


def check_kind(headers):
    """UserError unless headers are of one grey MR series, of a slice each, and not of a localiser."""
    for header in headers:
        description, kind, colour = (printable(header[name])[:60] for name in ("description", "type", "colour"))
        localiser = LOCALISER.search(kind) or LOCALISER.search(description) and not SCAN.search(description)
        require(not localiser, f"a localiser ({description or kind})")
        require(header["modality"] in ("", "MR"), f"its modality is {printable(header['modality'])[:20]}, not MR")
        grey = header["samples"] in ("", "1") and colour in ("", "MONOCHROME2")
        require(grey, f"in colour, or inverted ({colour or 'several samples a pixel'}); download the original series")


def frames_of(header):
    """[header] of a file of one slice; of a multi-frame file, one for each frame. UserError unless it is plain where they lie.

    GDCM does not give what differs between frames, so it is taken from the bytes above the voxels (PS3.3, C.7.6.16).
    """
    if header["frames"] in ("", "1"):
        return [header]
    with open(header["path"], "rb") as file:
        content = file.read().split(PIXELS)[0]
    values = {name: texts_of(content, tag) for name, tag in FRAME_TAGS.items()}
    count = numbers(header["frames"], 1)
    problem = f"a multi-frame DICOM file that does not say plainly where its frames lie; {CONVERT}"
    require(count is not None and len(values["position"]) == count[0], problem)
    require(all(len(values[name]) in (1, count[0]) for name in ("orientation", "spacing")), problem)
    scaled = len(set(values["slope"])) > 1 or len(set(values["intercept"])) > 1
    require(not scaled, f"a multi-frame DICOM file whose frames have grey levels of their own; {CONVERT}")
    require(len(set(values["spacing"])) == 1, problem)
    orientation = values["orientation"] * (int(count[0]) // len(values["orientation"]))
    own = {"spacing": values["spacing"][0], "instance": ""}
    return [
        {**header, **own, "position": place, "orientation": axes, "frame": i}
        for i, (place, axes) in enumerate(zip(values["position"], orientation))
    ]


def texts_of(content, tag):
    """The values, text, of a tag with explicit value representation, wherever it stands in a header."""
    parts = content.split(tag)[1:]
    return [part[2 : 2 + int.from_bytes(part[:2], "little")].decode("ascii", "replace").strip("\0 ") for part in parts]


def check_spacing(heights):
    """The distance of slices at sorted `heights` (mm); UserError if some lie at one height, or some are missing."""
    require(len(heights) > 1, "a single slice; the whole series is needed")
    gaps = np.diff(heights)
    shown = f"{len(heights)} files at {1 + int((gaps >= 1e-3).sum())} positions"
    require(gaps.min() >= 1e-3, f"a 4-D series, several echoes, or a slice twice: {shown}; keep one file for each")
    step = float(np.median(gaps))
    missing = int(np.round(gaps / step - 1).sum())
    require(missing == 0, f"{plural(missing, 'missing slice')}: gaps up to {gaps.max():g} mm, others {step:g} mm")
    uneven = np.abs(gaps - step).max() > 0.1 * step
    require(not uneven, f"slices are unevenly spaced, {gaps.min():g} to {gaps.max():g} mm")
    return float(gaps.mean())
