"""NIfTI-1 files by their specification: what ITK reads over in silence is refused here.

    image = read_nifti("I218391.nii.gz")        # a SimpleITK.Image, float32; a UserError in one line for what is no single volume

ITK takes the voxels' sizes from pixdim and their directions from qform or sform, whatever the other fields say (with both, from
the sform if its code is 1, the scanner, else from the qform), fills up what lacks of a file, and reads NaN as 0.
Fields: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

import functools
import gzip
import itertools
import zlib

import numpy as np
from scipy.spatial.transform import Rotation

from data.dicom import check_size, sitk
from utils import UserError, printable

LENGTH = 348  # of the header, bytes
FIELDS = {  # of the header: (how NumPy reads it, offset)
    "dim": ("8i2", 40),
    "type": ("i2", 70),
    "bits": ("i2", 72),
    "pixdim": ("8f4", 76),
    "offset": ("f4", 108),
    "codes": ("2i2", 252),  # the spaces to which qform and sform lead: 1 the scanner, 3 Talairach, 4 MNI, ...; 0: not given
    "quaternion": ("3f4", 256),
    "shift": ("3f4", 268),
    "rows": ("(3,4)f4", 280),
    "magic": ("S4", 344),
}
SEVERAL_VALUES = 32, 128, 1792, 2048, 2304  # types of voxels: complex numbers and colours
SPACING_TOLERANCE = 0.01  # by which the sizes of voxels in sform and pixdim may differ: both are rounded
TRANSFORM_MM = 2.0  # by which a qform and a sform of one space may differ anywhere in the volume


def read_nifti(path):
    """Read a NIfTI file; the errors are those of `data.volumes.read_volume`."""
    header = read_header(path)
    size = header["dim"][1 : 1 + header["dim"][0]].astype(int)
    if header["type"] in SEVERAL_VALUES or size[4:].prod() > 1:
        raise UserError(f"{path}: several values a voxel (colour, vectors or complex numbers), which is no T1 scan")
    if (count := size[3:].prod()) > 1:
        raise UserError(f"{path}: a 4-D series of {count} volumes; only single volumes can be used")
    size = np.append(size, [1, 1])[:3]
    check_size(path, size)
    check_transforms(path, header, size)
    check_length(path, header, size)
    image = sitk.ReadImage(path, sitk.sitkFloat32, "NiftiImageIO")
    while image.GetDimension() > 3:
        image = sitk.Extract(image, (*image.GetSize()[:-1], 0), [0] * image.GetDimension())
    return image


def open_content(path):
    """The file, binary, decompressed where its name ends in .gz."""
    return gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb")


def read_header(path):
    """The FIELDS of a NIfTI-1 file, a NumPy record; UserError for anything else."""
    try:
        with open_content(path) as file:
            content = file.read(LENGTH)
    except gzip.BadGzipFile:
        raise UserError(f"{path}: not gzipped, although its name says so; remove .gz from the name, or download it again") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({printable(str(error))}); download it again") from None
    order = {LENGTH.to_bytes(4, "little"): "<", LENGTH.to_bytes(4, "big"): ">"}.get(content[:4])
    if order is None or len(content) < LENGTH:
        start = printable(content[:12].decode("latin-1"))
        raise UserError(f"{path}: cannot be read: it begins with {start!r}, not as a NIfTI-1 file does; download it again")
    header = np.frombuffer(content, np.dtype(FIELDS).newbyteorder(order))[0]
    if header["magic"] != b"n+1":
        raise UserError(f"{path}: no orientation: an Analyze file does not tell left from right; convert the original to NIfTI")
    dimensions, *size = header["dim"]
    if not 1 <= dimensions <= 7 or min(size[:dimensions]) < 1:
        shown = " x ".join(map(str, size[:dimensions]))
        raise UserError(f"{path}: its header says {dimensions} dimensions, {shown} voxels; convert it again")
    return header


def check_transforms(path, header, size):
    """UserError unless the sizes and directions of voxels are finite, perpendicular, and fit together in all fields of a header.

    qform and sform may lead to different spaces (their codes), as after registration; then neither may mirror the other.
    """
    spacing, (qform_code, sform_code) = header["pixdim"][1:4].astype(float), header["codes"]
    if not (np.isfinite(spacing).all() and spacing.min() > 0):
        shown = " x ".join(f"{side:g}" for side in spacing)
        raise UserError(f"{path}: its header says voxels of {shown} mm (pixdim); convert it again")
    if qform_code <= 0 and sform_code <= 0:
        raise UserError(
            f"{path}: no orientation (qform and sform codes are 0): nobody could tell left from right; convert it again"
        )
    sform, qform = header["rows"].astype(float), quaternion_transform(path, header) if qform_code > 0 else None
    for name, form in ("sform", sform if sform_code > 0 else None), ("qform", qform):
        if form is not None and not (np.isfinite(form).all() and np.linalg.norm(form[:, :3], axis=0).min() > 0):
            raise UserError(f"{path}: its header has a {name} that is no transform; convert it again")
    if sform_code <= 0:
        return
    sides = np.linalg.norm(sform[:, :3], axis=0)
    other_space = qform is not None and qform_code != sform_code
    if not other_space and np.abs(sides / spacing - 1).max() > SPACING_TOLERANCE:
        sizes, others = (" x ".join(f"{side:.4g}" for side in values) for values in (spacing, sides))
        raise UserError(
            f"{path}: its header contradicts itself: voxels of {sizes} mm (pixdim) and of {others} mm (sform); convert it again"
        )
    axes = sform[:, :3] / sides
    if np.abs(axes.T @ axes - np.eye(3)).max() > 0.01 and (sform_code == 1 or not other_space):
        raise UserError(f"{path}: sheared: the axes of its sform are not perpendicular; resample it first")
    if qform is None:
        return
    if np.linalg.det(sform[:, :3]) * np.linalg.det(qform[:, :3]) <= 0:
        raise UserError(f"{path}: its header contradicts itself: qform and sform are mirrored; remove the wrong one")
    corners = np.array([[*end, 1] for end in itertools.product(*((0, n - 1) for n in size))])
    apart = np.linalg.norm(corners @ (qform - sform).T, axis=1).max()
    if not other_space and apart > TRANSFORM_MM:
        raise UserError(
            f"{path}: its header contradicts itself: qform and sform put voxels {apart:.0f} mm apart; remove the wrong one"
        )


def quaternion_transform(path, header):
    """[3, 4] of the qform: from indices to mm (nifti1.h, method 2)."""
    vector = header["quaternion"].astype(float)
    rest = 1 - vector @ vector
    if not rest > -0.01:  # or nan
        raise UserError(f"{path}: its header contradicts itself: the quaternion of its qform is no rotation; convert it again")
    sides = header["pixdim"][1:4] * [1, 1, -1 if header["pixdim"][0] < 0 else 1]
    return np.column_stack([Rotation.from_quat([*vector, max(rest, 0) ** 0.5]).as_matrix() * sides, header["shift"]])


def check_length(path, header, size):
    """UserError unless a file holds as many bytes as its header says: ITK fills up what lacks."""
    begin, length = float(header["offset"]), int(size.prod()) * int(header["bits"]) // 8
    if not begin >= LENGTH + 4:  # or nan
        raise UserError(f"{path}: its header says that voxels begin at byte {begin:g}, inside of it; convert it again")
    try:
        with open_content(path) as file:
            there = sum(map(len, iter(functools.partial(file.read, 2**20), b"")))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged ({printable(str(error))}); download it again") from None
    if there < begin + length:
        raise UserError(f"{path}: cut off, with {there} of {begin + length:.0f} bytes; download it again")
    if there >= begin + length + length // size[2]:
        shown = " x ".join(map(str, size))
        raise UserError(f"{path}: holds {there} bytes, but the {shown} voxels of its header end at {begin + length:.0f}")
