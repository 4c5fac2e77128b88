"""Small heads as volumes, and downloads of them as LONI lays them out, for the tests of prepare.py and what it is made of."""

import numpy as np
import SimpleITK as sitk

from data.phantom_volumes import same_locale

SIDE, SPACING = 40, 4.0  # voxels and mm: 160 mm


def head(seed=0, side=SIDE, spacing=SPACING, noise=2.0):
    """A SimpleITK.Image, int16, oriented LPS: an ellipsoid with two ventricles and a marker on the person's left, in front."""
    z, y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j, -1 : 1 : side * 1j]
    rng = np.random.default_rng(seed)
    voxels = np.where(np.sqrt((x / 0.7) ** 2 + (y / 0.85) ** 2 + (z / 0.8) ** 2) < 1, 100.0, 0)
    voxels += np.where(np.sqrt((x / 0.6) ** 2 + (y / 0.7) ** 2 + (z / 0.65) ** 2) < 1, rng.uniform(40, 60), 0)
    voxels[(abs(abs(x) - 0.2) < 0.1) & (abs(y) < 0.35) & (abs(z) < 0.3)] = 20
    voxels[(abs(x - 0.3) < 0.08) & (abs(y + 0.45) < 0.08) & (abs(z) < 0.5)] = 220  # +x is left, -y in front
    image = sitk.GetImageFromArray((voxels + rng.normal(0, noise, voxels.shape)).clip(0).astype(np.int16))
    image.SetSpacing([spacing] * 3)
    image.SetOrigin([-spacing * (side - 1) / 2] * 3)
    return image


def write_nifti(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


@same_locale()
def write_dicom(folder, image, names="{:03}.dcm", keep=None, **tags):
    """Write the slices of `image` as DICOM files; `tags` such as t0008_103e="MPRAGE" are of all; keep: numbers of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.reshape(image.GetDirection(), (3, 3))
    header = {"0020|000e": "1.2.3.4", "0008|0060": "MR", "0008|0008": "ORIGINAL\\PRIMARY", "0008|103e": "MPRAGE", "0018|0050": "1"}
    header |= {name[1:].replace("_", "|"): value for name, value in tags.items()}
    for i in range(image.GetDepth()) if keep is None else keep:
        plane = image[:, :, i]
        position = image.TransformIndexToPhysicalPoint((0, 0, i))
        own = {
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "\\".join(f"{value:.8f}" for value in direction[:, :2].T.ravel()),
            "0020|0013": str(i + 1),
            "0008|0018": f"1.2.3.4.{i + 1}",
        }
        for tag, value in (own | header).items():
            if value is not None:
                plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / names.format(i)))
        writer.Execute(plane)
    return folder


def element(tag, kind, value):
    """The bytes of a DICOM element, tag "gggg|eeee", with explicit value representation; a list is a sequence of such bytes."""
    number = b"".join(int(part, 16).to_bytes(2, "little") for part in tag.split("|"))
    if isinstance(value, list):
        value = b"".join(b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item for item in value)
    elif isinstance(value, str):
        value = value.encode()
    value += (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
    long = kind in ("SQ", "OW", "OB")
    length = b"\0\0" + len(value).to_bytes(4, "little") if long else len(value).to_bytes(2, "little")
    return number + kind.encode() + length + value


def write_enhanced(path, image, order=None, slopes=("1",)):
    """Write `image` as one file of Enhanced MR Image Storage: its frames in `order`, their slopes those of `slopes` in turn."""
    order = list(range(image.GetDepth()) if order is None else order)
    axes = np.reshape(image.GetDirection(), (3, 3))[:, :2].T.ravel()
    pixels = sitk.GetArrayFromImage(image).astype("<u2")[order]
    frames = []
    for n, i in enumerate(order):
        place = image.TransformIndexToPhysicalPoint((0, 0, i))
        spacing = element("0028|0030", "DS", "\\".join(f"{side:g}" for side in image.GetSpacing()[1::-1]))
        groups = {
            "0020|9113": element("0020|0032", "DS", "\\".join(f"{x:.6f}" for x in place)),  # Plane Position
            "0020|9116": element("0020|0037", "DS", "\\".join(f"{x:.8f}" for x in axes)),  # Plane Orientation
            "0028|9110": element("0018|0050", "DS", "3") + spacing,  # Pixel Measures
            "0028|9145": element("0028|1052", "DS", "0") + element("0028|1053", "DS", slopes[n % len(slopes)]),
        }
        frames.append(b"".join(element(tag, "SQ", [group]) for tag, group in groups.items()))
    storage, syntax = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.1.2.1"
    meta = element("0002|0001", "OB", b"\0\1") + element("0002|0002", "UI", storage)
    meta += element("0002|0003", "UI", "1.2.3.4.1") + element("0002|0010", "UI", syntax)
    body = [element("0008|0008", "CS", "ORIGINAL\\PRIMARY"), element("0008|0016", "UI", storage)]
    body += [element("0008|0018", "UI", "1.2.3.4.1"), element("0008|0060", "CS", "MR"), element("0008|103e", "LO", "MPRAGE")]
    body += [element("0020|000e", "UI", "1.2.3.4"), element("0028|0002", "US", (1).to_bytes(2, "little"))]
    body += [element("0028|0004", "CS", "MONOCHROME2"), element("0028|0008", "IS", str(len(order)))]
    numbers = (("0010", pixels.shape[1]), ("0011", pixels.shape[2]), ("0100", 16), ("0101", 16), ("0102", 15), ("0103", 0))
    body += [element(f"0028|{name}", "US", value.to_bytes(2, "little")) for name, value in numbers]
    body += [element("5200|9230", "SQ", frames), element("7fe0|0010", "OW", pixels.tobytes())]
    path.parent.mkdir(parents=True, exist_ok=True)
    header = element("0002|0000", "UL", len(meta).to_bytes(4, "little")) + meta
    path.write_bytes(bytes(128) + b"DICM" + header + b"".join(body))
    return path.parent


def write_download(folder, groups=("AD", "CN"), people=4, scans=1):
    """Write `folder`/ADNI and `folder`/adni.csv: person i is of group i modulo their number; the first scan of each is DICOM."""
    rows = ["Image Data ID,Subject,Group,Sex,Age,Acq Date"]
    for i in range(people):
        for k in range(scans):
            image, subject, group = 100 + scans * i + k, f"{i:03}_S_{i:04}", groups[i % len(groups)]
            place = folder / "ADNI" / subject / "MPRAGE" / f"2010-0{k + 1}-01" / f"I{image}"
            if i == 0:
                write_dicom(place, head(image))
            else:
                write_nifti(place / f"ADNI_{subject}_MR_MPRAGE_br_raw_S7_I{image}.nii", head(image))
            rows.append(f"I{image},{subject},{group},{'MF'[i // 2 % 2]},{60 + i + k},{k + 1}/1/2010")
    (folder / "adni.csv").write_text("\n".join(rows) + "\n")
    return folder
