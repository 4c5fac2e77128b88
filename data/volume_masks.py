"""Where the head is in a volume, where a given brain mask lies in it, and whether they look like a head and its brain.

    mask = head_mask(image)                         # a SimpleITK.Image, uint8, 0 or 1, of a volume with axes LPS
    mask = read_mask("I218391_mask.nii.gz", image)  # likewise, from a file of any grid
    check_found(image, mask, None, centred=True)

A wrong header, a mask of another scan, or a cut beside the brain would otherwise end in slices that are black, small or turned. The
limits are far outside of what adults have: 1.1 to 1.8 l within the skull, and 3 to 5 l in a head without its neck. Arrays are
[z, y, x], SimpleITK's sizes and points x, y, z.
"""

import numpy as np

from data.dicom import sitk
from data.volumes import read_path
from utils import UserError

HEAD_MM = 150  # a brain is within these from the top of the head; what is below is neck
MASK_VALUES = 256  # a mask may have labels, 0 outside; an image has more grey values
GREY_VALUES = 64  # a mask of more values up to 255 or 100 holds probabilities, not labels
ONE_PIECE = 0.95  # of a mask is in its largest piece; the rest, specks, is left out
CONSTANT = 0.8  # of the background has one value: the skull was removed, or what is around the head set to 0
OUTLIER = 3.0  # times the 99.5th percentile inside the head: no tissue or vessel is as bright
MIN_BRIGHT_SHARE = 0.03  # of a volume is above the threshold, where there is a head and not some voxels far brighter than it

HEAD_ML, HEAD_SIDES = (500, 6500), (80, 280)  # volume, and the sides of the box around it, mm
BRAIN_ML, BRAIN_SIDES = (300, 2500), (70, 230)
HOLLOW = 0.5  # of what a head or a brain mask encloses belongs to it at least
WITHIN = 0.85  # of a brain mask is inside the head
SHIFT_MM = 4.0  # voxels of about this size tell whether a mask is shifted
FITS = 0.3  # of the brain's brightness: the step at the edge of a mask that fits
CUT_OFF = {"top": 0.3, "left": 0.5, "right": 0.5, "front": 0.5, "back": 0.5}  # of the largest section, in the outermost slice
BRAIN_CUT_OFF = 0.15  # the same for each end of a brain mask
MIN_CM2 = 1.0  # of brain in a slice
# A volume of fewer values than LABELS, of which so many voxels in the head equal their neighbours, is a mask or a segmentation
LABELS, ALIKE = 64, 0.65


# ---------------------------------------------------------------------------------------------------------------------
# Masks


def like(array, image):
    """The array [z, y, x] as a SimpleITK.Image that lies where `image` does."""
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(image)
    return result


def head_mask(image, with_neck=False):
    """The head in a volume, as a mask (uint8, 0 or 1): the largest part above Otsu's threshold, with its holes filled.

    Where the background has one value throughout, as after the removal of the skull, all other voxels count. Without `with_neck`
    what is more than HEAD_MM below the top is left out.
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
        return head_mask(sitk.Clamp(image, upperBound=float(rest.max())), with_neck)  # fat becomes as bright as the rest
    if with_neck:
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
        if above.mean() < MIN_BRIGHT_SHARE:  # as bright as the brightest of all others
            clipped = sitk.Clamp(clipped, upperBound=float(voxels[~above].max()))
        elif above.mean() > 1 - MIN_BRIGHT_SHARE:
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
    """A volume without values that would spoil the steps after it.

    A constant background becomes as dark as the darkest inside the mask; negative values (z-scores) are moved so that this is 0,
    since N4 divides; what is brighter than OUTLIER times the brain is cut, since cubic splines carry it through the volume.
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
    stored = read_path(path)
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


def largest_piece(mask):
    """(bool array of the largest connected piece of a mask [z, y, x], its share of all); zeros and 0.0 of an empty one."""
    parts = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)))
    sizes = np.bincount(sitk.GetArrayViewFromImage(parts).ravel())[1:]
    if not len(sizes):
        return np.zeros_like(mask), 0.0
    return sitk.GetArrayViewFromImage(parts) == sizes.argmax() + 1, sizes.max() / sizes.sum()


def between(mask):
    """Where a mask lies on both sides along two axes: the mask with its holes, also those that lead outside, as sinuses do."""
    axes = np.zeros(mask.shape, np.uint8)
    for axis in range(3):
        after = np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis), axis)
        axes += np.logical_or.accumulate(mask, axis) & after
    return axes >= 2


def box(mask):
    """The first and last index of a mask along z, y and x: int [3, 2]."""
    return np.array([np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)])


def middle(mask):
    """The centre z, y, x (indices, float) of the box around a mask."""
    return box(mask).mean(axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# Plausible?


def check_found(image, mask, mask_path, centred):
    """UserError unless the mask may be that of the brain in a volume, or, without `mask_path`, of the head.

    centred: slices are counted from the middle of the mask.
    """
    inside, is_brain = sitk.GetArrayViewFromImage(mask) > 0, bool(mask_path)
    check_grey(sitk.GetArrayViewFromImage(image), inside)
    check_head(inside, image.GetSpacing()[::-1], is_brain)
    if is_brain:
        check_mask(mask_path, inside, sitk.GetArrayViewFromImage(head_mask(image, True)) > 0, image)
    if centred:
        check_whole_head(inside, is_brain)


def check_grey(voxels, mask):
    """UserError where a volume [z, y, x] is a mask or a segmentation: few values, and the same one in most neighbours in `mask`."""
    values = len(np.unique(voxels))
    alike = (voxels[..., 1:] == voxels[..., :-1])[mask[..., 1:]].mean()
    if values < LABELS and alike > ALIKE:
        raise UserError(f"implausible: it has {values} values in large patches, as a mask or a segmentation; the scan is needed")


def check_head(mask, spacing, is_brain):
    """UserError unless a mask, bool [z, y, x], may be a head, or, is_brain, a brain.

    spacing: (z, y, x) mm.
    """
    what, limits, sides = ("brain mask", BRAIN_ML, BRAIN_SIDES) if is_brain else ("head", HEAD_ML, HEAD_SIDES)
    if is_brain and mask[:: mask.shape[0] - 1, :: mask.shape[1] - 1, :: mask.shape[2] - 1].sum() >= 4:
        raise UserError("implausible: the brain mask is inverted: the corners of the volume are inside it, and 0 should be outside")
    if is_brain and mask.sum() < HOLLOW * between(mask).sum():
        raise UserError("implausible: the brain mask is hollow: it is of what is around the brain, or of parts of it")
    ml = mask.sum() * np.prod(spacing) / 1000
    if not limits[0] <= ml <= limits[1]:
        raise UserError(f"implausible: the {what} has {ml:.0f} ml, not {limits[0]} to {limits[1]}")
    height, length, width = map(float, (np.ptp(box(mask), axis=1) + 1) * spacing)
    if not (sides[0] <= min(height, length, width) and max(height, length, width) <= sides[1]):
        text = f"{width:.0f} x {length:.0f} x {height:.0f}"
        raise UserError(f"implausible: the {what} is {text} mm, and each side should be {sides[0]} to {sides[1]}")
    if width > 1.15 * length:
        raise UserError(
            f"implausible: the {what} is {width:.0f} mm wide and {length:.0f} mm long; are the axes in its header right?"
        )
    if height < 0.5 * length:
        raise UserError(f"implausible: the {what} is {height:.0f} mm high and {length:.0f} mm long; is it whole?")


def check_whole_head(mask, is_brain):
    """UserError where a mask [z upwards, y backwards, x to the left] is cut off by the edge of its volume.

    Its middle, from which slices are counted, would lie elsewhere.
    """
    for axis, names in enumerate((("bottom", "top"), ("front", "back"), ("right", "left"))):
        sections = mask.sum(axis=tuple({0, 1, 2} - {axis}))
        for name, section in zip(names, sections[[0, -1]]):
            if section > (BRAIN_CUT_OFF if is_brain else CUT_OFF.get(name, 1.0)) * sections.max():
                what = "brain mask" if is_brain else "head"
                raise UserError(f"implausible: the {what} is cut off by the edge of the volume at its {name}")


def check_mask(path, mask, head, image):
    """UserError unless a brain mask fits the head: both bool [z, y, x], on the grid of `image`, a SimpleITK.Image."""
    within = (mask & between(head)).sum() / mask.sum()
    if within < WITHIN:
        raise UserError(f"{path}: {1 - within:.0%} of this mask lies outside of the head: shifted, or of another scan")
    factors = [max(1, round(SHIFT_MM / side)) for side in image.GetSpacing()]
    small = sitk.GetArrayFromImage(sitk.BinShrink(image, factors))
    inside = sitk.GetArrayFromImage(sitk.BinShrink(sitk.GetImageFromArray(mask.astype(np.float32)), factors)) > 0.5
    small = np.minimum(small, np.percentile(small[inside], 90))  # fat may be brighter than the brain
    bright = small[inside].mean() - np.percentile(small, 1)

    def contrast(rim, axis=0, steps=0):
        """By how much the volume is brighter just inside of the mask's edge than outside, with the mask moved along an axis."""
        edge, around = (np.roll(part, steps, axis) for part in rim)
        return float(small[edge].mean() - small[around].mean())

    margins = [inside]  # a mask may have a wide margin, of bone
    while len(margins) < 4 and (smaller := eroded(margins[-1])).any():
        margins.append(smaller)
    here, elsewhere = max(contrast(rim_of(part)) for part in margins), {}
    rim = rim_of(inside)
    for axis, factor in enumerate(factors[::-1]):
        side = factor * image.GetSpacing()[2 - axis]
        for steps in (-12, -10, -8, -6, -5, -4, -3, -2, 2, 3, 4, 5, 6, 8, 10, 12):
            elsewhere[contrast(rim, axis, steps)] = abs(steps) * side
    best = max(elsewhere)
    if best > FITS * bright and best - here > FITS / 2 * bright:
        raise UserError(f"{path}: this mask would fit better {elsewhere[best]:.0f} mm away: shifted, or of another scan")


def eroded(mask):
    """A mask, bool [z, y, x], without its outermost voxels."""
    return sitk.GetArrayFromImage(sitk.BinaryErode(sitk.GetImageFromArray(mask.astype(np.uint8)), [1] * 3)) > 0


def rim_of(mask):
    """The voxels of a mask at its edge and those next to it outside: two bool arrays [z, y, x]."""
    return mask & ~eroded(mask), ~mask & ~eroded(~mask)


def check_slices(planes, inside, pixel_mm, names):
    """UserError where slices, pixels [N, height, width] and the same parts of the mask (bool), show no brain."""
    areas = inside.sum(axis=(1, 2)) * pixel_mm**2 / 100
    black = [str(name) for name, area, plane in zip(names, areas, planes) if area < MIN_CM2 or not plane.any()]
    if black:
        raise UserError(f"--slices: {len(black)} of {len(names)} slices would show no brain: {', '.join(black[:5])}")
