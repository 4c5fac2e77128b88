"""NIfTI-1 files by their specification (https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h).

Headers are read here, not by ITK, which takes the voxels' sizes from pixdim and their directions from qform or sform, whatever the
other fields say (with both, from the sform if its code is 1, the scanner, else from the qform), and pads a file that is cut off.
"""

import functools
import gzip
import itertools
import zlib

import numpy as np
from scipy.spatial.transform import Rotation

from data.dicom import check_size, require, sitk
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
CONTRADICTION = "its header contradicts itself"


def read_nifti(path):
    """Read a NIfTI file; UserError, without its path, if it is no whole volume."""
    header, length = read_header(path)
    size = header["dim"][1 : 1 + header["dim"][0]].astype(int)
    several = header["type"] in SEVERAL_VALUES or size[4:].prod() > 1
    require(not several, "several values a voxel (colour, vectors or complex numbers), which is no T1 scan")
    count, size = size[3:].prod(), np.append(size, [1, 1])[:3]
    require(count == 1, f"a 4-D series of {count} volumes; only single volumes can be used")
    check_size(size)
    check_transforms(header, size)
    begin, voxels = float(header["offset"]), int(size.prod()) * int(header["bits"]) // 8
    require(begin >= LENGTH + 4, f"its header says that voxels begin at byte {begin:g}, inside of it; convert it again")  # or nan
    end = f"{length} bytes, but the {' x '.join(map(str, size))} voxels of its header end at {begin + voxels:.0f}"
    whole = begin + voxels <= length < begin + voxels + voxels // size[2]
    require(whole, f"cut off, or not what its header says: {end}; download it again")
    image = sitk.ReadImage(path, sitk.sitkFloat32, "NiftiImageIO")
    while image.GetDimension() > 3:
        image = sitk.Extract(image, (*image.GetSize()[:-1], 0), [0] * image.GetDimension())
    return image


def read_header(path):
    """(FIELDS of a NIfTI-1 file, a NumPy record; its length in bytes, decompressed); UserError for anything else."""
    try:
        with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
            start = file.read(LENGTH)
            length = len(start) + sum(map(len, iter(functools.partial(file.read, 2**20), b"")))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        why = printable(str(error))
        raise UserError(f"damaged, or not gzipped ({why}); download it again, or remove .gz from its name") from None
    order = {LENGTH.to_bytes(4, "little"): "<", LENGTH.to_bytes(4, "big"): ">"}.get(start[:4])
    if order is None or len(start) < LENGTH:
        shown = printable(start[:12].decode("latin-1"))
        raise UserError(f"cannot be read: it begins with {shown!r}, not as a NIfTI-1 file does; download it again")
    header = np.frombuffer(start, np.dtype(FIELDS).newbyteorder(order))[0]
    lost = "an Analyze file does not tell left from right; convert the original to NIfTI"
    require(header["magic"] == b"n+1", f"no orientation: {lost}")
    dimensions, *size = header["dim"]
    shown = f"{dimensions} dimensions, {' x '.join(map(str, size[:dimensions]))} voxels"
    require(1 <= dimensions <= 7 and min(size[:dimensions]) > 0, f"its header says {shown}; convert it again")
    return header, length


def check_transforms(header, size):
    """UserError unless the sizes and directions of voxels are finite, perpendicular, and fit together in all fields of a header.

    qform and sform may lead to different spaces (their codes), as after registration; then neither may mirror the other.
    """
    spacing, (qform_code, sform_code) = header["pixdim"][1:4].astype(float), header["codes"]
    sizes = " x ".join(f"{side:.4g}" for side in spacing)
    require(np.isfinite(spacing).all() and spacing.min() > 0, f"its header says voxels of {sizes} mm (pixdim); convert it again")
    require(max(qform_code, sform_code) > 0, "no orientation (qform and sform codes are 0): left and right would be a guess")
    qform = quaternion_transform(header) if qform_code > 0 else None
    sform = header["rows"].astype(float) if sform_code > 0 else None
    for name, form in ("sform", sform), ("qform", qform):
        fine = form is None or np.isfinite(form).all() and np.linalg.norm(form[:, :3], axis=0).min() > 0
        require(fine, f"its header has a {name} that is no transform; convert it again")
    if sform is None:
        return
    sides, other_space = np.linalg.norm(sform[:, :3], axis=0), qform is not None and qform_code != sform_code
    equal = other_space or np.abs(sides / spacing - 1).max() <= SPACING_TOLERANCE
    others = " x ".join(f"{side:.4g}" for side in sides)
    require(equal, f"{CONTRADICTION}: voxels of {sizes} mm (pixdim) and of {others} mm (sform); convert it again")
    axes = sform[:, :3] / sides
    right_angle = np.abs(axes.T @ axes - np.eye(3)).max() <= 0.01 or (sform_code != 1 and other_space)
    require(right_angle, "sheared: the axes of its sform are not perpendicular; resample it first")
    if qform is None:
        return
    mirrored = np.linalg.det(sform[:, :3]) * np.linalg.det(qform[:, :3]) <= 0
    require(not mirrored, f"{CONTRADICTION}: qform and sform are mirrored; remove the wrong one")
    corners = np.array([[*end, 1] for end in itertools.product(*((0, n - 1) for n in size))])
    apart = np.linalg.norm(corners @ (qform - sform).T, axis=1).max()
    near = other_space or apart <= TRANSFORM_MM
    require(near, f"{CONTRADICTION}: qform and sform put voxels {apart:.0f} mm apart; remove the wrong one")


def quaternion_transform(header):
    """[3, 4] of the qform: from indices to mm (nifti1.h, method 2)."""
    vector = header["quaternion"].astype(float)
    rest = 1 - vector @ vector
    require(rest > -0.01, f"{CONTRADICTION}: the quaternion of its qform is no rotation; convert it again")  # or nan
    sides = header["pixdim"][1:4] * [1, 1, -1 if header["pixdim"][0] < 0 else 1]
    return np.column_stack([Rotation.from_quat([*vector, max(rest, 0) ** 0.5]).as_matrix() * sides, header["shift"]])
