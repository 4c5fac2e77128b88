"""Volumes of an ADNI download: which files belong to which scan, and reading them, or saying why they are no whole scan.

    volumes, nameless = find_volumes("ADNI")        # {"218391": [Volume("218391", "DICOM", (".../001.dcm", ...))], ...}, [files]
    image = read_volume(volumes["218391"][0])       # a SimpleITK.Image, float32, with its position in the scanner

LONI's downloads are trees such as ADNI/<subject>/<description>/<date>/I218391/*.dcm or *.nii: the Image Data ID is in the name of
the file or of a folder above it. SimpleITK is imported here and in what prepare.py needs beside this file, nowhere else.
"""

import functools
import gzip
import hashlib
import os
import re
import zlib
from typing import NamedTuple

import numpy as np

from utils import UserError, printable, walk

try:
    import SimpleITK as sitk
except ImportError:
    raise UserError(
        "SimpleITK is not installed, and volumes cannot be read without it: pip install -r requirements-volumes.txt"
    ) from None

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's warnings are many lines a file; what matters is refused below

NIFTI = ".nii", ".nii.gz"
DICOM = ".dcm", ".ima"
MIN_SIDE, MAX_VOXELS = 20, 2**27  # voxels: fewer are a localiser; more than 512 x 512 x 512 would need gigabytes
LOCALISER = re.compile(r"locali[sz]er|scout|survey|3.?plane|\bloc\b", re.IGNORECASE)
TAGS = {  # of DICOM: one value each
    "series": "0020|000e",
    "description": "0008|103e",
    "type": "0008|0008",
    "frames": "0028|0008",
    "spacing": "0028|0030",
    "orientation": "0020|0037",
    "position": "0020|0032",
}


class Volume(NamedTuple):
    """The files of one scan."""

    image: str  # Image Data ID without the leading I and zeros
    format: str  # "NIfTI" or "DICOM"
    files: tuple[str, ...]

    @property
    def place(self):
        """Its file, or the folder of its files."""
        return self.files[0] if self.format == "NIfTI" else os.path.dirname(self.files[0])

    def size(self):
        """(number of files, bytes): quick to compare with those of an earlier run."""
        return [len(self.files), sum(os.path.getsize(path) for path in self.files)]

    def checksum(self):
        """SHA-256, in hex, of the contents of its files, in order of their names."""
        return file_checksum(*self.files)


def file_checksum(*paths):
    """SHA-256, in hex, of the contents of files, one after the other."""
    sha = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while part := file.read(2**20):
                sha.update(part)
    return sha.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Finding


def image_id(path, is_dicom=False):
    """The Image Data ID in a path below the download, or None: I218391 in its file's name or a folder's, else a plain number.

    DICOM files may have any name, I10 among them: of these a folder's counts first. A plain number is that of a NIfTI file, as in
    218391.nii.gz or 218391_brain.nii.gz, or of a DICOM file's folder.
    """
    *folders, file = path.replace(os.sep, "/").split("/")
    file = re.sub(r"(\.nii|\.dcm|\.ima)?(\.gz)?$", "", file, flags=re.IGNORECASE)
    folders.reverse()
    for name in [*folders, file] if is_dicom else [file, *folders]:
        if found := re.findall(r"(?<![A-Za-z0-9])I([0-9]+)(?![A-Za-z0-9])", name):
            return found[-1].lstrip("0") or "0"
    plain = re.fullmatch(r"([0-9]+)", folders[0] if folders else "") if is_dicom else re.match(r"([0-9]+)(?!_S_)(?![0-9])", file)
    return plain and (plain[1].lstrip("0") or "0")


def find_volumes(folder, flag="--volumes"):
    """({image: [Volume, ...]}, files and folders without an Image Data ID) of the NIfTI and DICOM files below `folder`.

    UserError, which names `flag`, if it is none, or holds no such files. Hidden files are left out.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{flag} {folder}: no such folder; it should hold NIfTI files or folders of DICOM files")
    found, nameless = {}, set()
    for root, names in walk(folder, flag):
        series = {}
        for path in (os.path.join(root, name) for name in names):
            is_nifti = path.lower().endswith(NIFTI)
            if os.path.isfile(path) and (is_nifti or is_dicom(path)):  # reading a pipe would never end
                image = image_id(os.path.relpath(path, folder), not is_nifti)
                if image is None:
                    nameless.add(path if is_nifti else root)
                elif is_nifti:
                    found.setdefault(image, []).append(Volume(image, "NIfTI", (path,)))
                else:
                    series.setdefault(image, []).append(path)
        for image, files in series.items():
            found.setdefault(image, []).append(Volume(image, "DICOM", tuple(files)))
    if not found and not nameless:
        raise UserError(f"{flag} {folder}: neither NIfTI files ({', '.join(NIFTI)}) nor DICOM files in it, at any depth")
    return found, sorted(nameless)


def is_dicom(path):
    """Whether a file is called, or begins like, a DICOM file."""
    if path.lower().endswith(DICOM):
        return True
    if path.lower().endswith((".csv", ".xml", ".json", ".txt", ".png", ".jpeg", ".jpg", ".zip", ".gz")):
        return False
    try:
        if os.path.getsize(path) < 132:  # of some files in /proc, which have no size, reading would never end
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_volume(volume):
    """The Volume as a SimpleITK.Image, float32, three-dimensional; voxels that are not finite become 0.

    UserError in one line: unreadable; a 4-D series; a localiser; mixed series; missing slices; no orientation; voxels all alike.
    """
    try:
        image = read_nifti(volume.files[0]) if volume.format == "NIfTI" else read_dicom(volume.files)
    except RuntimeError as error:  # SimpleITK's
        raise UserError(f"{volume.place}: cannot be read ({reason(error)})") from None
    voxels = sitk.GetArrayViewFromImage(image)
    if not np.isfinite(voxels).all():
        clean = sitk.GetImageFromArray(np.nan_to_num(voxels, posinf=0, neginf=0))
        clean.CopyInformation(image)
        image, voxels = clean, sitk.GetArrayViewFromImage(clean)
    if voxels.min() == voxels.max():
        raise UserError(f"{volume.place}: every voxel is {voxels.min():g}, so there is no brain in it")
    return image


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


def read_nifti(path):
    """Read one NIfTI file; the errors are those of `read_volume`."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(path)
    reader.ReadImageInformation()
    size = reader.GetSize()
    if np.prod(size[3:]) > 1:
        raise UserError(f"{path}: a 4-D series of {np.prod(size[3:])} volumes; only single volumes can be used")
    if reader.GetNumberOfComponents() > 1:
        raise UserError(f"{path}: {reader.GetNumberOfComponents()} values a voxel (colour or vectors), which is no T1 scan")
    check_size(path, (*size[:3], 1)[:3] if len(size) < 3 else size[:3])
    if all(reader.GetMetaData(code).strip() == "0" for code in ("qform_code", "sform_code")):
        raise UserError(
            f"{path}: no orientation (qform and sform codes are 0): nobody could tell left from right; convert it again"
        )
    check_whole(
        path, int(reader.GetMetaData("vox_offset").split(".")[0]), int(np.prod(size)) * int(reader.GetMetaData("bitpix")) // 8
    )
    image = reader.Execute()
    while image.GetDimension() > 3:
        image = sitk.Extract(image, (*image.GetSize()[:-1], 0), [0] * image.GetDimension())
    return sitk.Cast(image, sitk.sitkFloat32)


def check_whole(path, offset, length):
    """UserError unless a NIfTI file has `length` bytes of voxels behind `offset`: ITK reads what is there, and says nothing."""
    try:
        if not path.lower().endswith(".gz"):
            there = os.path.getsize(path)
        else:
            with gzip.open(path) as file:
                there = sum(map(len, iter(functools.partial(file.read, 2**20), b"")))
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}: damaged ({printable(str(error))}); download it again") from None
    if there < offset + length:
        raise UserError(f"{path}: cut off, with {there} of {offset + length} bytes; download it again")


def read_headers(files):
    """The values of TAGS, None where missing, and the sizes of DICOM files: a list of dicts."""
    reader, headers = sitk.ImageFileReader(), []
    reader.SetImageIO("GDCMImageIO")
    for path in files:
        reader.SetFileName(path)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise UserError(f"{path}: damaged, or no DICOM image ({reason(error)})") from None
        header = {name: reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else None for name, tag in TAGS.items()}
        headers.append({**header, "size": reader.GetSize()[:2]})
    return headers


def numbers(text, count):
    """The `count` finite numbers in a DICOM value "1\\2\\3", or None."""
    try:
        values = np.array([float(part) for part in (text or "").split("\\")])
    except ValueError:
        return None
    return values if len(values) == count and np.isfinite(values).all() else None


def read_dicom(files):
    """Read the DICOM files of one series, in any order; the errors are those of `read_volume`."""
    place, headers = os.path.dirname(files[0]), read_headers(files)
    first = headers[0]
    described = " ".join(first[name] or "" for name in ("description", "type"))
    if LOCALISER.search(described):
        raise UserError(f"{place}: a localiser ({printable(first['description'] or first['type'])[:60]})")
    if (first["frames"] or "1") != "1":
        raise UserError(f"{place}: a multi-frame DICOM file; convert it to NIfTI first, such as with dcm2niix")
    if len(series := {header["series"] for header in headers}) > 1:
        raise UserError(f"{place}: {len(series)} series are mixed in this folder; give each a folder of its own")
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
    normal = np.cross(row, column)
    heights = np.array(positions) @ normal
    order = np.argsort(heights, kind="stable")
    step = check_spacing(place, heights[order])
    across = np.array(positions)[order] @ np.stack([row, column]).T
    if np.ptp(across, axis=0).max() > 0.1 * step * len(files):
        raise UserError(f"{place}: sheared: its slices are shifted against each other; correct the gantry tilt first")
    check_size(place, (*first["size"], len(files)))
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([files[i] for i in order])
    reader.SetOutputPixelType(sitk.sitkFloat32)
    image = reader.Execute()
    image.SetSpacing((*image.GetSpacing()[:2], step))
    image.SetOrigin(positions[order[0]].tolist())
    image.SetDirection(np.stack([row, column, normal], axis=1).ravel().tolist())
    return image


def check_spacing(place, heights):
    """The distance of slices at sorted `heights` (mm); UserError if some lie at one height, or some are missing."""
    if len(heights) == 1:
        raise UserError(f"{place}: a single slice; the whole series is needed")
    gaps = np.diff(heights)
    if gaps.min() < 1e-3:
        distinct = 1 + int((gaps >= 1e-3).sum())
        raise UserError(f"{place}: a 4-D series, or a slice twice: {len(heights)} files at {distinct} positions")
    step = float(np.median(gaps))
    if missing := int(np.round(gaps / step - 1).sum()):
        raise UserError(f"{place}: {missing} missing slice{'s' * (missing > 1)}: gaps up to {gaps.max():g} mm, others {step:g} mm")
    if np.abs(gaps - step).max() > 0.1 * step:
        raise UserError(f"{place}: slices are unevenly spaced, {gaps.min():g} to {gaps.max():g} mm")
    return float(gaps.mean())
