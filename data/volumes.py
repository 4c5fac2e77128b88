"""Volumes of an ADNI download: which files belong to which scan, and reading them, or saying why they are no whole scan.

    volumes, nameless = find_volumes("ADNI")        # {"218391": [Volume("218391", "DICOM", (".../001.dcm", ...))], ...}, [files]
    image = read_volume(volumes["218391"][0])       # a SimpleITK.Image, float32, with its position in the scanner

LONI's downloads are trees such as ADNI/<subject>/<description>/<date>/I218391/*.dcm or *.nii: the Image Data ID is in the name of
the file or of a folder above it. In BIDS and in CAPS, the name of a file that ends in _T1w.nii.gz is its scan's. Other formats are
named, with what to do (UNREAD).
"""

import hashlib
import os
import re
from typing import NamedTuple

from data.dicom import CONVERT, read_dicom, reason, sitk
from data.nifti import read_nifti
from utils import UserError, printable, walk

NIFTI = ".nii", ".nii.gz"
DICOM = ".dcm", ".ima"
NO_DICOM = ".csv", ".xml", ".json", ".txt", ".png", ".jpeg", ".jpg", ".zip", ".gz"
ARCHIVES = ".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst"
BIDS_T1 = re.compile(r"(sub-[A-Za-z0-9+-]+(?:_[A-Za-z0-9+-]+)*_T1w)(?![A-Za-z0-9+-])")  # also of CAPS, such as in t1_linear
DERIVED = "derivatives", "sourcedata"  # folders in one of BIDS
UNREAD = {  # endings of volumes that are named but not read: what to do
    **dict.fromkeys((".mgz", ".mgh", ".mif", ".mif.gz", ".mnc", ".mnc.gz"), "convert it to NIfTI (mri_convert, mnc2nii)"),
    **dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd", ".gipl"), "its format need not tell left from right; convert it to NIfTI"),
    **dict.fromkeys((".head", ".brik", ".brik.gz", ".par", ".rec"), "convert it to NIfTI (3dAFNItoNIFTI, dcm2niix)"),
    **dict.fromkeys((".hdr", ".hdr.gz", ".img", ".img.gz"), "convert the pair of .hdr and .img to one NIfTI file"),
    **dict.fromkeys(ARCHIVES, "unpack it"),
}


class Volume(NamedTuple):
    """The files of one scan."""

    image: str  # Image Data ID without the leading I and zeros, or a BIDS name
    format: str  # "NIfTI", "DICOM", or "" for one of UNREAD
    files: tuple[str, ...]

    @property
    def place(self):
        """Its file, or the folder of its files."""
        return os.path.dirname(self.files[0]) if self.format == "DICOM" else self.files[0]

    def stamp(self):
        """SHA-256, in hex, of the names, sizes and times of its files, which a run compares before it reads them again."""
        stats = [(os.path.basename(path), os.stat(path)) for path in self.files]
        text = repr([(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

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


def image_id(path, is_dicom=False):
    """The Image Data ID in a path below the download, or None: I218391 in its file's name or a folder's (of DICOM files, which may
    be called I10, a folder's first), else the name of a T1 scan in BIDS (sub-01_ses-02_T1w), else the plain number of a NIfTI file
    (218391_brain.nii.gz) or of a DICOM file's folder."""
    *folders, file = path.replace(os.sep, "/").split("/")
    file = file[: len(file) - len(ending(file))]
    folders.reverse()
    for name in [*folders, file] if is_dicom else [file, *folders]:
        if found := re.findall(r"(?<![A-Za-z0-9])I([0-9]+)(?![A-Za-z0-9])", name):
            return found[-1].lstrip("0") or "0"
    if not is_dicom and (named := BIDS_T1.match(file)):
        return named[1]
    plain = re.fullmatch(r"([0-9]+)", folders[0] if folders else "") if is_dicom else re.match(r"([0-9]+)(?!_S_)(?![0-9])", file)
    return plain and (plain[1].lstrip("0") or "0")


def ending(path):
    """The part of a path that tells its format, such as ".nii.gz"; "" for one that is not known."""
    known = (*NIFTI, *DICOM, *UNREAD)
    return path[len(path) - max((len(end) for end in known if path.lower().endswith(end)), default=0) :]


def find_volumes(folder, flag="--volumes", derived=False):
    """({image: [Volume, ...]}, files and folders without an Image Data ID) of the volumes below `folder`.

    Volumes that are not read (UNREAD) are listed where there is no other of their image. UserError, which names `flag`, if
    `folder` is none, or holds no volumes. Hidden files and DICOMDIR are left out; unless `derived`, so are folders of DERIVED, and
    files such as sub-01_T1w_brain.nii.gz where there is sub-01_T1w.nii.gz.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{flag} {folder}: no such folder; it should hold NIfTI files or folders of DICOM files")
    found, nameless, unread, archives = {}, set(), {}, []
    for root, names in walk(folder, flag):
        if not derived and set(os.path.relpath(root, folder).split(os.sep)) & set(DERIVED):
            continue
        series = {}
        for path in (os.path.join(root, name) for name in names if name.upper() != "DICOMDIR"):
            if (kind := format_of(path)) is None:
                continue
            image = image_id(os.path.relpath(path, folder), kind == "DICOM")
            volume = Volume(image, kind, (path,))
            if image is None and ending(path).lower() in ARCHIVES:
                archives.append(path)
            elif image is None:
                nameless.add(volume.place)
            elif kind == "DICOM":
                series.setdefault(image, []).append(path)
            else:
                (found if kind else unread).setdefault(image, []).append(volume)
        for image, files in series.items():
            found.setdefault(image, []).append(Volume(image, "DICOM", tuple(files)))
    for image, there in found.items():
        plain = [volume for volume in there if os.path.basename(volume.place).startswith(f"{image}.")]
        found[image] = plain if plain and image.startswith("sub-") and not derived else there
    if not (found or unread or nameless):
        packed = f"; unpack {printable(archives[0])} first" if archives else ""
        raise UserError(f"{flag} {folder}: neither NIfTI files ({', '.join(NIFTI)}) nor DICOM files in it, at any depth{packed}")
    return {image: volumes[:1] for image, volumes in unread.items()} | found, sorted(nameless)


def format_of(path):
    """The format of a Volume that a file is, or is a part of; None if it is none. By its name, else by how it begins."""
    end = ending(path).lower()
    if not os.path.isfile(path):  # reading a pipe would never end
        return None
    if end in NIFTI or end in DICOM:
        return "NIfTI" if end in NIFTI else "DICOM"
    try:
        if not path.lower().endswith(NO_DICOM) and os.path.getsize(path) >= 132:  # files in /proc have no size, and no end
            with open(path, "rb") as file:
                if file.read(132)[128:] == b"DICM":
                    return "DICOM"
    except OSError:
        pass
    return "" if end in UNREAD else None


def read_path(path):
    """The volume in a file, by `read_volume`; a NIfTI file may have any name."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file")
    kind = format_of(path)
    return read_volume(Volume("", "NIfTI" if kind is None else kind, (path,)))


def read_volume(volume):
    """The Volume as a SimpleITK.Image, float32, three-dimensional; NaN and infinite voxels of NIfTI files are 0.

    UserError in one line: unreadable; contradictions in its header; a 4-D series; a localiser; mixed series; missing slices; no
    orientation; colour; voxels that are all alike.
    """
    try:
        if not volume.format:
            raise UserError(f"not read as it is; {UNREAD[ending(volume.place).lower()]}")
        image = read_nifti(volume.place) if volume.format == "NIfTI" else read_dicom(volume.files)
        voxels = sitk.GetArrayViewFromImage(image)
        if voxels.min() == voxels.max():
            raise UserError(f"every voxel is {voxels.min():g}, so there is no brain in it")
    except UserError as error:
        raise UserError(f"{volume.place}: {error}") from None
    except (RuntimeError, OSError) as error:  # RuntimeError: SimpleITK's
        advice = f"; {CONVERT}" if volume.format == "DICOM" else ""
        raise UserError(f"{volume.place}: cannot be read ({getattr(error, 'strerror', None) or reason(error)}){advice}") from None
    return image
