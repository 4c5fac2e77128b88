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
