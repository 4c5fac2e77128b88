"""Volumes of phantoms as LONI hands out those of people: a folder a scan, NIfTI or DICOM, with voxels in one of several orders.

    OUT/volumes/000_S_0003/MPRAGE/2010-01-01_09_00_00.0/I000006/000_S_0003_I000006.nii.gz, or ..._001.dcm, ..._002.dcm, ...
    OUT/masks/000_S_0003_I000006_mask.nii.gz                of its brain, for --masks of prepare.py

Points are SimpleITK's and DICOM's: x to the person's left, y backwards, z upwards, in mm.
"""

import contextlib
import locale
import os

import numpy as np

from data.volumes import sitk

# How the voxels of a scan are stored: where its columns, rows and slices lead (sagittal slices for "PIR", as in most scans of
# ADNI), and by how many degrees the head and its slices are turned in the scanner, about x, y and z.
ORIENTATIONS = ("RAS", (0, 0, 0)), ("PIR", (0, 0, 0)), ("LPS", (0, 0, 0)), ("RAS", (6, -4, 5))
SERIES = "MPRAGE"
UID = "2.25."  # the root of unique identifiers that nobody has to register


def make_image(planes, spacing, orientation="LPS", turned=(0, 0, 0)):
    """Axial slices [z upwards, y backwards, x to the person's right] as a SimpleITK.Image, its middle voxel at the origin.

    spacing: (x, y, z) mm. orientation, turned: as in ORIENTATIONS. No voxel is interpolated.
    """
    image = sitk.GetImageFromArray(np.ascontiguousarray(planes[:, :, ::-1]))
    image.SetSpacing(spacing)
    turn = sitk.Euler3DTransform((0, 0, 0), *np.radians(turned).tolist())
    image.SetDirection(turn.GetMatrix())
    middle = [(size - 1) / 2 * side for size, side in zip(image.GetSize(), spacing)]
    image.SetOrigin([-side for side in turn.TransformPoint(middle)])
    return sitk.DICOMOrient(image, orientation)


@contextlib.contextmanager
def same_locale():
    """A context after which the locale is what it was: GDCM's writer sets it to "C", and Python then reads text as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@same_locale()
def write_dicom(image, prefix, tags=None, number=1):
    """Write a SimpleITK.Image of integers in [0, 65535] as a DICOM series, the files `prefix`001.dcm, 002, ...

    tags: {"gggg|eeee": text} for all files. number: makes the identifiers unique. Equal calls write equal bytes.
    """
    row, column, _ = np.reshape(image.GetDirection(), (3, 3)).T
    thickness = decimals(image.GetSpacing()[2])
    shared = {
        "0008|0016": "1.2.840.10008.5.1.4.1.1.4",  # MR Image Storage
        "0008|0020": "20000101",  # study date and time, which would else be those of writing
        "0008|0030": "090000",
        "0008|0060": "MR",
        "0018|0050": thickness,
        "0018|0088": thickness,  # spacing between slices
        "0020|000d": f"{UID}{number}",  # study
        "0020|000e": f"{UID}{number}.1",  # series
        "0020|0037": decimals(*row, *column),  # Image Orientation
        "0020|0052": f"{UID}{number}.2",  # frame of reference
        **(tags or {}),
    }
    image = sitk.Cast(image, sitk.sitkUInt16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i in range(image.GetSize()[2]):
        plane = image[:, :, i]
        own = {
            "0008|0018": f"{UID}{number}.1.{i + 1}",  # this file
            "0020|0013": str(i + 1),  # instance number
            "0020|0032": decimals(*image.TransformIndexToPhysicalPoint((0, 0, i))),  # Image Position
        }
        for tag, text in (shared | own).items():
            plane.SetMetaData(tag, text)
        writer.SetFileName(f"{prefix}{i + 1:03d}.dcm")
        writer.Execute(plane)


def decimals(*values):
    """Numbers as DICOM's decimal strings, of at most 16 characters each."""
    return "\\".join(f"{value:.10g}" for value in values)


def variant(subject, scan):
    """(format, orientation, turned) of a scan, all eight in turn; alike for both classes, whose subjects are even and odd."""
    turn = subject // 2 + scan
    return "NIfTI" if (turn + turn // len(ORIENTATIONS)) % 2 == 0 else "DICOM", *ORIENTATIONS[turn % len(ORIENTATIONS)]


def write_scan(folder, planes, spacing, subject, scan, image, sex, day):
    """Write a scan (uint8 [z upwards, y backwards, x to the right], black around the brain) and its mask below `folder`.

    spacing: (x, y, z) mm. image: the scan's Image Data ID, a number. day: its datetime.date.
    """
    kind, *orientation = variant(subject, scan)
    volume, mask = (make_image(np.uint8(voxels), spacing, *orientation) for voxels in (planes, planes > 0))
    person, date = f"000_S_{subject:04d}", str(day)
    place = os.path.join(folder, "volumes", person, SERIES, f"{date}_09_00_00.0", f"I{image:06d}")
    os.makedirs(place)
    os.makedirs(os.path.join(folder, "masks"), exist_ok=True)
    sitk.WriteImage(mask, os.path.join(folder, "masks", f"{person}_I{image:06d}_mask.nii.gz"), useCompression=True)
    prefix = os.path.join(place, f"{person}_I{image:06d}")
    if kind == "NIfTI":
        sitk.WriteImage(volume, f"{prefix}.nii.gz", useCompression=True)
        return
    tags = {"0010|0010": f"Phantom^{subject}", "0010|0020": person, "0010|0040": sex, "0008|103e": SERIES, "0020|0011": "1"}
    tags |= dict.fromkeys(("0008|0020", "0008|0021", "0008|0022"), date.replace("-", ""))  # of study, series and acquisition
    write_dicom(volume, f"{prefix}_", tags, image + 1)
