"""DICOM series: one grey MR scan in slices that are all there, or the reason why not.

    image = read_dicom(["I218391/001.dcm", "I218391/002.dcm", ...])     # a SimpleITK.Image with its position in the scanner

SimpleITK is imported here, and in what prepare.py needs beside this file, nowhere else.
"""

import os
import re
from collections import Counter

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
TAGS = {  # of DICOM: one value each
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


def reason(error):
    """What SimpleITK's error says, without the names of its source files."""
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    if not lines:
        return "no reason given"
    return printable(re.sub(r"^.*?(ERROR|Error): *(\w+\([0-9a-fx]+\): *)?", "", lines[-1]))[:200].rstrip(".")


def check_size(place, size):
    """UserError unless `size` (voxels along each axis) may be a whole head."""
    text = " x ".join(map(str, size))
    if min(size) < MIN_SIDE:
        raise UserError(
            f"{place}: a localiser or a part of a scan, with {text} voxels; at least {MIN_SIDE} are needed along each axis"
        )
    if np.prod(size, dtype=float) > MAX_VOXELS:
        raise UserError(f"{place}: {text} voxels are more than the {MAX_VOXELS} that are read; resample it first")


def read_headers(files):
    """The values of TAGS, "" where missing, and the sizes of DICOM files: a list of dicts."""
    reader, headers = sitk.ImageFileReader(), []
    reader.SetImageIO("GDCMImageIO")
    for path in files:
        reader.SetFileName(path)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise UserError(f"{path}: damaged, or no DICOM image ({reason(error)})") from None
        header = {name: reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else "" for name, tag in TAGS.items()}
        headers.append({**header, "size": reader.GetSize()[:2]})
    return headers


def numbers(text, count):
    """The `count` finite numbers in a DICOM value "1\\2\\3", or None."""
    try:
        values = np.array([float(part) for part in text.split("\\")])
    except ValueError:
        return None
    return values if len(values) == count and np.isfinite(values).all() else None


def read_dicom(files):
    """Read the DICOM files of one series, in any order; the errors are those of `read_volume`."""
    place, headers = os.path.dirname(files[0]), read_headers(files)
    first = headers[0]
    check_series(place, headers)
    axes = [numbers(header["orientation"], 6) for header in headers]
    positions = [numbers(header["position"], 3) for header in headers]
    if any(value is None for value in (*axes, *positions)):
        raise UserError(f"{place}: no orientation (Image Orientation and Position) in its files: nobody could tell left from right")
    if np.ptp(axes, axis=0).max() > 0.01:
        raise UserError(f"{place}: a localiser, or mixed series: its slices lie in several directions")
    if len({(header["size"], header["spacing"]) for header in headers}) > 1:
        raise UserError(f"{place}: mixed series: its slices have several sizes")
    row, column = np.split(np.mean(axes, axis=0), 2)
    if abs(row @ column) > 0.01 or not np.allclose([row @ row, column @ column], 1, atol=0.01):
        raise UserError(f"{place}: no orientation: Image Orientation has no two perpendicular directions")
    sides = numbers(first["spacing"], 2)  # of rows, of columns
    if sides is None or sides.min() <= 0:
        raise UserError(f"{place}: no Pixel Spacing ({printable(first['spacing']) or 'missing'}), so sizes would be a guess")
    normal = np.cross(row, column)
    heights = np.array(positions) @ normal
    order = np.argsort(heights, kind="stable")
    step = check_spacing(place, heights[order])
    check_count(place, headers)
    across = np.array(positions)[order] @ np.stack([row, column]).T
    if np.ptp(across, axis=0).max() > 0.1 * step * len(files):
        raise UserError(f"{place}: sheared: its slices are shifted against each other; correct the gantry tilt first")
    check_size(place, (*first["size"], len(files)))
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([files[i] for i in order])
    reader.SetOutputPixelType(sitk.sitkFloat32)
    image = reader.Execute()
    image.SetSpacing((sides[1], sides[0], step))
    image.SetOrigin(positions[order[0]].tolist())
    image.SetDirection(np.stack([row, column, normal], axis=1).ravel().tolist())
    return image


def check_series(place, headers):
    """UserError unless DICOM headers are of one grey MR series of one person, and not of a localiser."""
    if len(people := {(header["person"], header["name"]) for header in headers}) > 1:
        raise UserError(f"{place}: files of {len(people)} people are mixed in this folder; give each a folder of their own")
    series = Counter(header["series"] for header in headers)
    if len(series) > 1:
        called = {header["series"]: printable(header["description"])[:40] or "no description" for header in headers}
        shown = ", ".join(f"{called[name]}: {count} files" for name, count in series.most_common(3))
        raise UserError(f"{place}: {len(series)} series are mixed in this folder ({shown}); give each a folder of its own")
    for header in headers:
        description = header["description"]
        if LOCALISER.search(header["type"]) or LOCALISER.search(description) and not SCAN.search(description):
            raise UserError(f"{place}: a localiser ({printable(description or header['type'])[:60]})")
        if header["modality"] not in ("", "MR"):
            raise UserError(f"{place}: its modality is {printable(header['modality'])[:20]}, not MR")
        if header["samples"] not in ("", "1") or header["colour"] not in ("", "MONOCHROME2"):
            shown = printable(header["colour"] or f"{header['samples']} samples a pixel")
            raise UserError(f"{place}: in colour, or inverted ({shown}), which is no T1 scan; download the original series")
    if headers[0]["frames"] not in ("", "1"):
        raise UserError(f"{place}: a multi-frame DICOM file; convert it to NIfTI first, such as with dcm2niix")


def check_count(place, headers):
    """UserError where Instance Numbers say that there are more slices; they may begin above their count."""
    count = len(headers)
    instances = {int(value[0]) for header in headers if (value := numbers(header["instance"], 1)) is not None}
    first = min(instances, default=1)
    if len(instances) == count and (missing := max(instances) - (first if first > count else min(1, first)) + 1 - count) > 0:
        raise UserError(
            f"{place}: {missing} missing slices: {count} files, Instance Numbers up to {max(instances)}; download it again"
        )


def check_spacing(place, heights):
    """The distance of slices at sorted `heights` (mm); UserError if some lie at one height, or some are missing."""
    if len(heights) == 1:
        raise UserError(f"{place}: a single slice; the whole series is needed")
    gaps = np.diff(heights)
    if gaps.min() < 1e-3:
        distinct = 1 + int((gaps >= 1e-3).sum())
        raise UserError(
            f"{place}: a 4-D series, several echoes, or a slice twice: {len(heights)} files at {distinct} positions; "
            "keep one file for each"
        )
    step = float(np.median(gaps))
    if missing := int(np.round(gaps / step - 1).sum()):
        raise UserError(f"{place}: {plural(missing, 'missing slice')}: gaps up to {gaps.max():g} mm, others {step:g} mm")
    if np.abs(gaps - step).max() > 0.1 * step:
        raise UserError(f"{place}: slices are unevenly spaced, {gaps.min():g} to {gaps.max():g} mm")
    return float(gaps.mean())
