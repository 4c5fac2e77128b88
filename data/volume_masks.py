"""Where the head is in a volume, and where a given brain mask lies in it.

    mask = head_mask(image)                         # a SimpleITK.Image, uint8, 0 or 1, of a volume with axes LPS
    mask = read_mask("I218391_mask.nii.gz", image)  # likewise, from a file of any grid

Arrays are [z, y, x], SimpleITK's sizes and points x, y, z.
"""

import numpy as np

from data.dicom import sitk
from data.volume_checks import HOLLOW, between, largest_piece
from data.volumes import Volume, open_volume, read_volume
from utils import UserError

HEAD_MM = 150  # a brain is within these from the top of the head; what is below is neck
MASK_VALUES = 256  # a mask may have labels, 0 outside; an image has more grey values
GREY_VALUES = 64  # a mask of more values up to 255 or 100 holds probabilities, not labels
ONE_PIECE = 0.95  # of a mask is in its largest piece; the rest, specks, is left out
CONSTANT = 0.8  # of the background has one value: the skull was removed, or what is around the head set to 0
OUTLIER = 3.0  # times the 99.5th percentile inside the head: no tissue or vessel is as bright
FEWEST_BRIGHT = 0.03  # of a volume is above the threshold, where there is a head and not some voxels far brighter than it


def like(array, image):
    """The array [z, y, x] as a SimpleITK.Image that lies where `image` does."""
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(image)
    return result


def head_mask(image, oriented=True):
    """The head in a volume, as a mask (uint8, 0 or 1): above Otsu's threshold, the largest part of it, with its holes filled.

    A few voxels far brighter than all others do not count for the threshold, nor does fat around a darker brain. Where the
    background has one value throughout, as after the removal of the skull, all other voxels are above it. oriented: the third axis
    points upwards, so that all below HEAD_MM from the top can be left out.
    """
    voxels, bright = sitk.GetArrayViewFromImage(image), otsu(image)
    background, around = background_of(image)
    if background > voxels.min():  # z-scores, say: Otsu's threshold is somewhere within the brain
        constant = (around == background).mean()
    else:
        constant = (voxels[sitk.GetArrayViewFromImage(bright) == 0] == background).mean()
    if constant > CONSTANT:
        bright = image != background
    parts = sitk.ConnectedComponent(bright)
    labels = sitk.GetArrayViewFromImage(parts)
    if not labels.any():
        raise UserError("no head to be seen: nothing is above Otsu's threshold")
    mask = sitk.BinaryFillhole(parts == int(np.bincount(labels.ravel())[1:].argmax() + 1))
    found, rest = sitk.GetArrayViewFromImage(mask) > 0, voxels[sitk.GetArrayViewFromImage(bright) == 0]
    if found.sum() < HOLLOW * between(found).sum() and rest.max() > rest.min():
        return head_mask(
            sitk.Clamp(image, upperBound=float(rest.max())), oriented
        )  # fat becomes as bright as the brightest of the rest
    if not oriented:
        return mask
    voxels = sitk.GetArrayFromImage(mask)
    top = np.flatnonzero(voxels.any(axis=(1, 2)))[-1]
    voxels[: max(0, top + 1 - round(HEAD_MM / image.GetSpacing()[2]))] = 0
    return like(voxels, mask)


def otsu(image):
    """Where a volume is above Otsu's threshold: that between head and background, not one to a few voxels of other values."""
    clipped, threshold = image, sitk.OtsuThresholdImageFilter()
    threshold.SetInsideValue(0)
    threshold.SetOutsideValue(1)
    voxels = sitk.GetArrayViewFromImage(image)
    for _ in range(20):
        bright = threshold.Execute(clipped)
        above = sitk.GetArrayViewFromImage(bright) > 0
        if above.mean() < FEWEST_BRIGHT:  # as bright as the brightest of all others
            clipped = sitk.Clamp(clipped, upperBound=float(voxels[~above].max()))
        elif above.mean() > 1 - FEWEST_BRIGHT:
            clipped = sitk.Clamp(clipped, lowerBound=float(voxels[above].min()))
        else:
            break
    return bright


def background_of(image):
    """(median, values) of the voxels on the faces of a volume."""
    voxels = sitk.GetArrayViewFromImage(image)
    around = np.concatenate([voxels.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
    return float(np.median(around)), around


def tame(image, mask):
    """A volume without values that would spoil the steps after it; the order of all others stays as it is.

    A constant background, whatever its value, becomes as dark as the darkest inside the mask. Negative values, such as z-scores:
    all is moved so that this is 0, since N4 divides, and what is outside of a brain mask becomes 0. A few voxels far brighter than
    the brain: cut at OUTLIER times its brightest, since cubic splines carry them through the volume.
    """
    voxels = sitk.GetArrayFromImage(image)
    inside, outside = voxels[sitk.GetArrayViewFromImage(mask) > 0], sitk.GetArrayViewFromImage(mask) == 0
    low, background = min(0.0, float(np.percentile(inside, 0.1))), background_of(image)[0]
    if outside.any() and (voxels[outside] == background).mean() > CONSTANT:
        voxels[outside & (voxels == background)] = low
    if voxels.min() < 0:
        voxels, inside = np.maximum(voxels - np.float32(low), 0), inside - low
    return like(np.minimum(voxels, np.float32(OUTLIER * np.percentile(inside, 99.5))), image)


def move_mask(mask, grid, transform=None):
    """A mask on `grid` (a SimpleITK.Image): a voxel belongs to it where linear interpolation gives more than a half."""
    moved = sitk.Resample(sitk.Cast(mask, sitk.sitkFloat32), grid, transform or sitk.Transform(), sitk.sitkLinear, 0.0)
    return moved > 0.5


def read_mask(path, image):
    """The brain mask in a file, its largest piece, on the grid of `image`; UserError where it is no mask, empty or elsewhere."""
    stored = read_volume(open_volume(path) or Volume("", "NIfTI", (path,)))
    voxels = sitk.GetArrayViewFromImage(stored)
    fractions = np.abs(voxels - np.round(voxels)).max() > 1e-3
    values = len(np.unique(voxels[::3, ::3, ::3] if fractions else np.round(voxels[voxels > 0.5])))
    if values > MASK_VALUES or (not fractions and values > GREY_VALUES and voxels.max() <= 255):
        raise UserError(f"{path}: holds {values} different values or more, so it is an image, not a mask of 0 and 1")
    if fractions or voxels.min() < -0.5:
        raise UserError(f"{path}: holds values from {voxels.min():g} to {voxels.max():g}, such as probabilities, not 0 and 1 only")
    mask = move_mask(stored > 0.5, image)
    if not sitk.GetArrayViewFromImage(mask).any():
        raise UserError(f"{path}: no voxel of this mask lies in the volume")
    same = sitk.DICOMOrient(stored, sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()))
    apart = np.linalg.norm(np.subtract(same.GetOrigin(), image.GetOrigin()))
    if same.GetSize() == image.GetSize() and np.allclose(same.GetSpacing(), image.GetSpacing(), rtol=1e-3) and apart > 2:
        raise UserError(
            f"{path}: has the voxels of the volume, but lies {apart:.0f} mm beside it by its header "
            "(another qform or sform?); make it again"
        )
    piece, share = largest_piece(sitk.GetArrayViewFromImage(mask) > 0)
    if share < ONE_PIECE:
        raise UserError(f"{path}: this mask is in pieces, the largest {share:.0%} of it; is it of another scan?")
    return like(piece.astype(np.uint8), mask)
