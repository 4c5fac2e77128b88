"""NIfTI files by their specification: what ITK reads over in silence is refused here.

    image = read_nifti(["I218391.nii.gz"])      # a SimpleITK.Image, float32; a UserError in one line for what is no single volume

ITK takes the voxels' sizes from pixdim and their directions from qform or sform, whatever the other fields say (with both, from
the sform if its code is 1, the scanner, else from the qform), and fills up what lacks of a file.
Fields: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h (and nifti2.h).
"""

import functools
import gzip
import itertools
import os
import shutil
import struct
import tempfile
import zlib
from typing import NamedTuple

import numpy as np

from data.dicom import check_size, sitk
from utils import UserError, printable

PAIR = ".hdr", ".hdr.gz"  # headers of pairs, each with its .img
GZIP = b"\x1f\x8b"
# Fields of the header: (offset, how struct reads it) in version 1, of 348 bytes, and in version 2, of 540.
FIELDS = {
    "dim": ((40, "8h"), (16, "8q")),
    "type": ((70, "2h"), (12, "2h")),
    "pixdim": ((76, "8f"), (104, "8d")),
    "offset": ((108, "f"), (168, "q")),
    "units": ((123, "b"), (500, "i")),
    "codes": ((252, "2h"), (344, "2i")),
    "quaternion": ((256, "3f"), (352, "3d")),
    "shift": ((268, "3f"), (376, "3d")),
    "rows": ((280, "12f"), (400, "12d")),
    "magic": ((344, "4s"), (4, "4s")),
}
LENGTHS = 348, 540
BITS = {2: 8, 4: 16, 8: 32, 16: 32, 32: 64, 64: 64, 128: 24, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64, 1536: 128, 1792: 128}
BITS |= {2048: 256, 2304: 32}
COMPONENTS = {32: 2, 128: 3, 1792: 2, 2048: 2, 2304: 4}  # complex numbers and colours: values a voxel
SPACING_TOLERANCE = 0.01  # by which the sizes of voxels in sform and pixdim may differ: both are rounded
TRANSFORM_MM = 2.0  # by which a qform and a sform of one space may differ anywhere in the volume
# By which they may differ where one leads to the scanner and the other to an aligned scan, an atlas, ...: sizes and turn
OTHER_SPACE_SCALE, OTHER_SPACE_DEGREES = 1.5, 45


class Header(NamedTuple):
    """What is read of a header."""

    size: tuple[int, ...]  # voxels along each axis, three or more
    components: int  # values a voxel
    bits: int  # a voxel
    offset: int  # where the voxels begin in their file, bytes
    spacing: np.ndarray  # [3], mm
    qform: np.ndarray | None  # [3, 4]: from indices to mm; None: not given
    sform: np.ndarray | None
    codes: tuple[int, int]  # the spaces to which they lead: 1 the scanner, 2 another scan, 3 Talairach, 4 MNI, ...; 0: not given
    floats: str  # the voxels as NumPy names them, if they may be NaN or infinite; else ""


def read_nifti(files):
    """Read a NIfTI file, or a pair of header and voxels; the errors are those of `data.volumes.read_volume`."""
    path, data = files[0], files[-1]
    header = read_header(path)
    if (count := int(np.prod(header.size[3:]))) > 1:
        raise UserError(f"{path}: a 4-D series of {count} volumes; only single volumes can be used")
    if header.components > 1:
        raise UserError(f"{path}: {header.components} values a voxel (colour, vectors or complex numbers), which is no T1 scan")
    check_size(path, header.size[:3])
    check_transforms(path, header)
    if path == data and path.lower().endswith(PAIR):
        raise UserError(f"{path}: its voxels are missing, which a file .img beside it should hold")
    check_length(data, header)
    with tempfile.TemporaryDirectory() as folder:
        if path == data and is_gzip(path) != path.lower().endswith(".gz"):  # ITK goes by the name
            path = os.path.join(folder, "x.nii")
            with open_content(data) as packed, open(path, "wb") as plain:
                shutil.copyfileobj(packed, plain)
        image = sitk.ReadImage(path, sitk.sitkFloat32, "NiftiImageIO")
    while image.GetDimension() > 3:
        image = sitk.Extract(image, (*image.GetSize()[:-1], 0), [0] * image.GetDimension())
    return keep_not_finite(image, header, data)


def is_gzip(path):
    """Whether a file is compressed by gzip, whatever it is called."""
    with open(path, "rb") as file:
        return file.read(2) == GZIP


def open_content(path):
    """The file, binary, decompressed where it is compressed, whatever it is called."""
    return gzip.open(path) if is_gzip(path) else open(path, "rb")


def read_header(path):
    """The Header in a NIfTI file; UserError for anything else, and where a field contradicts itself."""
    try:
        with open_content(path) as file:
            content = file.read(540)
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}: cannot be read ({printable(str(error))})") from None
    order, length = "<", 0
    for order in "<", ">":
        length = struct.unpack(f"{order}i", content[:4].ljust(4, b"\0"))[0]
        if length in LENGTHS:
            break
    if length not in LENGTHS or len(content) < length:
        start = printable(content[:12].decode("latin-1"))
        raise UserError(f"{path}: cannot be read: it begins with {start!r}, not as a NIfTI file does; download or convert it again")
    version = LENGTHS.index(length)
    field = {name: struct.unpack_from(order + places[version][1], content, places[version][0]) for name, places in FIELDS.items()}
    if field["magic"][0][:2] not in (b"n+", b"ni"):
        raise UserError(f"{path}: no orientation: an Analyze file does not tell left from right; convert the original to NIfTI")
    dimensions, *size = field["dim"]
    size = size[:dimensions]
    if not 1 <= dimensions <= 7 or min(size) < 1:
        shown = " x ".join(map(str, size or field["dim"]))
        raise UserError(f"{path}: its header says {dimensions} dimensions, {shown} voxels; convert it again")
    kind, bits = field["type"]
    if BITS.get(kind) != bits:
        raise UserError(f"{path}: its header contradicts itself: voxels of type {kind} with {bits} bits; convert it again")
    components = COMPONENTS.get(kind, 1)
    if dimensions >= 5:  # vectors are along the fifth axis
        components *= size.pop(4)
    offset = field["offset"][0]
    single = field["magic"][0][:2] == b"n+"
    if not np.isfinite(offset) or offset < (length + 4 if single else 0):
        raise UserError(f"{path}: its header says that voxels begin at byte {offset:g}, inside of it; convert it again")
    qform_code, sform_code = field["codes"]
    spacing = np.array(field["pixdim"][1:4])
    if not (np.isfinite(spacing).all() and spacing.min() > 0):
        shown = " x ".join(f"{side:g}" for side in spacing)
        raise UserError(f"{path}: its header says voxels of {shown} mm (pixdim); convert it again")
    sform = np.reshape(field["rows"], (3, 4)) if sform_code > 0 else None
    qform = quaternion_transform(path, field, spacing) if qform_code > 0 else None
    unit = {1: 1000.0, 3: 0.001}.get(field["units"][0] & 7, 1.0)  # metres, micrometres; nearly all say mm, or nothing
    transforms = [form if form is None else form * unit for form in (qform, sform)]
    floats = {16: f"{order}f4", 64: f"{order}f8"}.get(kind, "")
    size = tuple(size) + (1,) * (3 - len(size))
    bits *= max(1, components // COMPONENTS.get(kind, 1))
    return Header(size, components, bits, int(offset), spacing * unit, *transforms, field["codes"], floats)


def quaternion_transform(path, field, spacing):
    """[3, 4] of the qform: from indices to mm (nifti1.h, method 2)."""
    b, c, d = field["quaternion"]
    rest = 1 - (b * b + c * c + d * d)
    if not rest > -0.01:  # or nan
        raise UserError(f"{path}: its header contradicts itself: the quaternion of its qform is no rotation; convert it again")
    a = max(rest, 0) ** 0.5
    turn = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ]
    sides = spacing * [1, 1, -1 if field["pixdim"][0] < 0 else 1]
    return np.column_stack([np.array(turn) * sides, field["shift"]])


def check_transforms(path, header):
    """UserError unless the sizes and directions of voxels are finite, perpendicular, and fit together in all fields of a Header.

    qform and sform may lead to different spaces (their codes): ITK then takes the sform if it leads to the scanner, else the qform.
    The other one may be any affine map that keeps the head about upright; a mirrored one would leave open which side is left.
    """
    if header.qform is None and header.sform is None:
        raise UserError(
            f"{path}: no orientation (qform and sform codes are 0): nobody could tell left from right; convert it again"
        )
    for name, form in ("sform", header.sform), ("qform", header.qform):
        if form is not None and not (np.isfinite(form).all() and np.linalg.norm(form[:, :3], axis=0).min() > 0):
            raise UserError(f"{path}: its header has a {name} that is no transform; convert it again")
    if header.sform is None:
        return
    other_space = header.qform is not None and header.codes[0] != header.codes[1]
    sides = np.linalg.norm(header.sform[:, :3], axis=0)
    unlike = np.exp(np.abs(np.log(sides / header.spacing)).max())
    if unlike > (OTHER_SPACE_SCALE if other_space else 1 + SPACING_TOLERANCE):
        sizes, others = (" x ".join(f"{side:.4g}" for side in values) for values in (header.spacing, sides))
        raise UserError(
            f"{path}: its header contradicts itself: voxels of {sizes} mm (pixdim) and of {others} mm (sform); convert it again"
        )
    axes = header.sform[:, :3] / sides
    if np.abs(axes.T @ axes - np.eye(3)).max() > 0.01 and (header.codes[1] == 1 or not other_space):
        raise UserError(f"{path}: sheared: the axes of its sform are not perpendicular; resample it first")
    if other_space:
        check_upright(path, header)
    elif header.qform is not None:
        corners = np.array([[*end, 1] for end in itertools.product(*((0, n - 1) for n in header.size[:3]))])
        apart = np.linalg.norm(corners @ (header.qform - header.sform).T, axis=1).max()
        if apart > TRANSFORM_MM:
            raise UserError(
                f"{path}: its header contradicts itself: qform and sform put voxels {apart:.0f} mm apart; remove the wrong one"
            )


def check_upright(path, header):
    """UserError where the qform and the sform of a Header, of different spaces, are mirrored or turned against each other."""
    motion = header.sform[:, :3] @ np.linalg.pinv(header.qform[:, :3])
    left, _, right = np.linalg.svd(motion)
    turned = np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1)))
    what = "mirrored" if np.linalg.det(motion) <= 0 else f"turned by {turned:.0f} degrees" if turned > OTHER_SPACE_DEGREES else ""
    if what:
        raise UserError(
            f"{path}: its header contradicts itself: qform and sform are {what} against each other; remove the wrong one"
        )


def check_length(data, header):
    """UserError unless the file `data` holds as many bytes as a Header says: ITK fills up what lacks."""
    size = int(np.prod(header.size)) * header.bits // 8
    try:
        with open_content(data) as file:
            there = sum(map(len, iter(functools.partial(file.read, 2**20), b""))) if is_gzip(data) else os.path.getsize(data)
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{data}: damaged ({printable(str(error))}); download it again") from None
    if there < header.offset + size:
        raise UserError(f"{data}: cut off, with {there} of {header.offset + size} bytes; download it again")
    plane = size // header.size[2]
    if there >= header.offset + size + plane:
        shown = " x ".join(map(str, header.size))
        raise UserError(
            f"{data}: holds {there} bytes, but the {shown} voxels of its header end at {header.offset + size}; convert it again"
        )


def keep_not_finite(image, header, data):
    """The image with the voxels of the file `data` that are NaN or infinite: ITK reads 0 there."""
    if not header.floats:
        return image
    with open_content(data) as file:
        file.seek(header.offset)
        stored = np.frombuffer(file.read(int(np.prod(header.size)) * header.bits // 8), header.floats)
    where = np.flatnonzero(~np.isfinite(stored))
    if not len(where):
        return image
    voxels = sitk.GetArrayFromImage(image)
    voxels.flat[where] = stored[where]
    whole = sitk.GetImageFromArray(voxels)
    whole.CopyInformation(image)
    return whole
