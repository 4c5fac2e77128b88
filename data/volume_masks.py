"""Where the head is in a volume, where a given brain mask lies in it, and whether they look like a head and its brain.

    mask = head_mask(image)                         # a SimpleITK.Image, uint8, 0 or 1, of a volume with axes LPS
    mask = read_mask("I218391_mask.nii.gz", image)  # likewise, from a file of any grid
    check_found(image, mask, None, centred=True)

A wrong header, a mask of another scan, or a cut beside the brain would otherwise end in slices that are black, small or turned. The
limits are far outside of what adults have: 1.1 to 1.8 l within the skull, and 3 to 5 l in a head without its neck. Arrays are
[z, y, x], SimpleITK's sizes and points x, y, z.
"""

import numpy as np

from data.dicom import require, sitk
from data.volumes import read_path
from utils import UserError

HEAD_MM = 150  # a brain is within these from the top of the head; what is below is neck
MASK_VALUES = 256  # a mask may have labels, 0 outside; an image has more grey values
GREY_VALUES = 64  # a mask of more values up to 255 or 100 holds probabilities, not labels
ONE_PIECE = 0.95  # of a mask is in its largest piece; the rest, specks, is left out
CONSTANT = 0.8  # of the background has one value: the skull was removed, or what is around the head set to 0
OUTLIER = 3.0  # times the 99.5th percentile inside the head: no tissue or vessel is as bright
MIN_BRIGHT_SHARE = 0.03  # of a volume is above the threshold, where there is a head and not some voxels far brighter than it

LIMITS = {  # {what: ((least and most ml), (least and most mm of the sides of the box around it))}
    "head": ((500, 6500), (80, 280)),
    "brain mask": ((300, 2500), (70, 230)),
}
HOLLOW = 0.5  # of what a head or a brain mask encloses belongs to it at least
WITHIN = 0.85  # of a brain mask is inside the head
SHIFT_MM = 4.0  # voxels of about this size tell whether a mask is shifted
FITS = 0.3  # of the brain's brightness: the step at the edge of a mask that fits
CUT_OFF = {"top": 0.3, "left": 0.5, "right": 0.5, "front": 0.5, "back": 0.5}  # of the largest section, in the outermost slice
BRAIN_CUT_OFF = 0.15  # the same for each end of a brain mask
MIN_CM2 = 1.0  # of brain in a slice
# A volume of fewer values than LABELS, of which so many voxels in the head equal their neighbours, is a mask or a segmentation
LABELS, ALIKE = 64, 0.65

array_of = sitk.GetArrayViewFromImage  # which does not keep its image: that has to have a name


def like(array, image):
    """The array [z, y, x] as a SimpleITK.Image that lies where `image` does."""
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(image)
    return result


def largest_piece(mask):
    """(the largest connected piece of a mask, a SimpleITK.Image of 0 and 1; its share of all)."""
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(mask))  # numbered by size
    sizes = np.bincount(array_of(pieces).ravel(), minlength=2)[1:]
    return pieces == 1, sizes[0] / max(1, sizes.sum())


def head_mask(image, with_neck=False):
    """The head in a volume, as a mask (uint8, 0 or 1): the largest part above Otsu's threshold, with its holes filled.

    Where the background has one value throughout, as after the removal of the skull, all other voxels count. Without `with_neck`
    what is more than HEAD_MM below the top is left out.
    """
    voxels, bright = array_of(image), otsu(image)
    background, around = background_of(image)
    if background == voxels.min():  # not as in z-scores, where Otsu's threshold is somewhere within the brain
        around = voxels[array_of(bright) == 0]
    if (around == background).mean() > CONSTANT:
        bright = image != background
    piece, share = largest_piece(bright)
    require(share, "no head to be seen: nothing is above Otsu's threshold")
    mask = sitk.BinaryFillhole(piece)
    found, rest = array_of(mask) > 0, voxels[array_of(bright) == 0]
    if found.sum() < HOLLOW * between(found).sum() and rest.max() > rest.min():
        return head_mask(sitk.Clamp(image, upperBound=float(rest.max())), with_neck)  # fat becomes as bright as the rest
    if with_neck:
        return mask
    head = sitk.GetArrayFromImage(mask)
    head[: max(0, box(found)[0, 1] + 1 - round(HEAD_MM / image.GetSpacing()[2]))] = 0
    return like(head, mask)


def otsu(image):
    """Where a volume is above Otsu's threshold: that between head and background, not one to a few voxels of other values."""
    voxels, clipped = array_of(image), image
    for _ in range(20):
        bright = sitk.OtsuThreshold(clipped, 0, 1)
        above = array_of(bright) > 0
        if above.mean() < MIN_BRIGHT_SHARE:  # as bright as the brightest of all others
            clipped = sitk.Clamp(clipped, upperBound=float(voxels[~above].max()))
        elif above.mean() > 1 - MIN_BRIGHT_SHARE:
            clipped = sitk.Clamp(clipped, lowerBound=float(voxels[above].min()))
        else:
            break
    return bright


def background_of(image):
    """(median, values) of the voxels on the faces of a volume."""
    around = np.concatenate([array_of(image).take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
    return float(np.median(around)), around


def tame(image, mask):
    """A volume without values that would spoil the steps after it.

    A constant background becomes as dark as the darkest inside the mask; negative values (z-scores) are moved so that this is 0,
    since N4 divides; what is brighter than OUTLIER times the brain is cut, since cubic splines carry it through the volume.
    """
    voxels = sitk.GetArrayFromImage(image)
    inside, outside = voxels[array_of(mask) > 0], array_of(mask) == 0
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
    voxels = array_of(stored)
    fractions = np.abs(voxels - np.round(voxels)).max() > 1e-3
    values = len(np.unique(voxels[::3, ::3, ::3] if fractions else np.round(voxels[voxels > 0.5])))
    grey = values > MASK_VALUES or (not fractions and values > GREY_VALUES and voxels.max() <= 255)
    require(not grey, f"{path}: holds {values} different values or more, so it is an image, not a mask of 0 and 1")
    found = f"holds values from {voxels.min():g} to {voxels.max():g}"
    require(not fractions and voxels.min() >= -0.5, f"{path}: {found}, such as probabilities, not 0 and 1 only")
    mask = move_mask(stored > 0.5, image)
    require(array_of(mask).any(), f"{path}: no voxel of this mask lies in the volume")
    same = sitk.DICOMOrient(stored, sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()))
    apart = np.linalg.norm(np.subtract(same.GetOrigin(), image.GetOrigin()))
    if same.GetSize() == image.GetSize() and np.allclose(same.GetSpacing(), image.GetSpacing(), rtol=1e-3) and apart > 2:
        wrong = f"has the voxels of the volume, but lies {apart:.0f} mm beside it by its header (another qform or sform?)"
        raise UserError(f"{path}: {wrong}; make it again")
    piece, share = largest_piece(mask)
    require(share >= ONE_PIECE, f"{path}: this mask is in pieces, the largest {share:.0%} of it; is it of another scan?")
    return piece


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
    voxels, inside, what = array_of(image), array_of(mask) > 0, "brain mask" if mask_path else "head"
    values = len(np.unique(voxels))
    if values < LABELS and (voxels[..., 1:] == voxels[..., :-1])[inside[..., 1:]].mean() > ALIKE:
        raise UserError(f"implausible: it has {values} values in large patches, as a mask or a segmentation; the scan is needed")
    try:
        check_head(inside, image.GetSpacing()[::-1], what)
        if centred:
            check_whole_head(inside, what)
    except UserError as error:
        raise UserError(f"implausible: the {what} {error}") from None
    if mask_path:
        check_mask(mask_path, inside, sitk.GetArrayFromImage(head_mask(image, True)) > 0, image)


def check_head(mask, spacing, what="head"):
    """UserError unless a mask, bool [z, y, x], may be what LIMITS name; spacing: (z, y, x) mm."""
    (least, most), (shortest, longest) = LIMITS[what]
    if what == "brain mask":
        corners = mask[:: mask.shape[0] - 1, :: mask.shape[1] - 1, :: mask.shape[2] - 1].sum()
        require(corners < 4, "is inverted: the corners of the volume are inside it, and 0 should be outside")
        hollow = mask.sum() < HOLLOW * between(mask).sum()
        require(not hollow, "is hollow: it is of what is around the brain, or of parts of it")
    ml = mask.sum() * np.prod(spacing) / 1000
    require(least <= ml <= most, f"has {ml:.0f} ml, not {least} to {most}")
    sides = height, length, width = [float(side) for side in (np.ptp(box(mask), axis=1) + 1) * spacing]
    text = f"is {width:.0f} x {length:.0f} x {height:.0f} mm, and each side should be {shortest} to {longest}"
    require(shortest <= min(sides) and max(sides) <= longest, text)
    text = f"is {width:.0f} mm wide and {length:.0f} mm long; are the axes in its header right?"
    require(width <= 1.15 * length, text)
    require(height >= 0.5 * length, f"is {height:.0f} mm high and {length:.0f} mm long; is it whole?")


def check_whole_head(mask, what="head"):
    """UserError where a mask [z upwards, y backwards, x to the left] of what LIMITS name is cut off by the edge of its volume: its
    middle, from which slices are counted, would lie elsewhere."""
    for axis, names in enumerate((("bottom", "top"), ("front", "back"), ("right", "left"))):
        sections = mask.sum(axis=tuple({0, 1, 2} - {axis}))
        for name, section in zip(names, sections[[0, -1]]):
            if section > (BRAIN_CUT_OFF if what == "brain mask" else CUT_OFF.get(name, 1.0)) * sections.max():
                raise UserError(f"is cut off by the edge of the volume at its {name}")


def check_mask(path, mask, head, image):
    """UserError unless a brain mask fits the head: both bool [z, y, x], on the grid of `image`, a SimpleITK.Image."""
    within = (mask & between(head)).sum() / mask.sum()
    require(within >= WITHIN, f"{path}: {1 - within:.0%} of this mask lies outside of the head: shifted, or of another scan")
    factors = [max(1, round(SHIFT_MM / side)) for side in image.GetSpacing()]
    small = sitk.GetArrayFromImage(sitk.BinShrink(image, factors))
    inside = sitk.GetArrayFromImage(sitk.BinShrink(sitk.GetImageFromArray(mask.astype(np.float32)), factors)) > 0.5
    small = np.minimum(small, np.percentile(small[inside], 90))  # fat may be brighter than the brain
    bright = small[inside].mean() - np.percentile(small, 1)

    def eroded(mask):
        return sitk.GetArrayFromImage(sitk.BinaryErode(sitk.GetImageFromArray(mask.astype(np.uint8)), [1] * 3)) > 0

    def contrast(mask, axis=0, steps=(0,)):
        """By how much the volume is brighter just inside of the mask's edge than outside, with the mask moved along an axis."""
        rim = mask & ~eroded(mask), ~mask & ~eroded(~mask)
        for step in steps:
            edge, around = (np.roll(part, step, axis) for part in rim)
            yield float(small[edge].mean() - small[around].mean())

    margins = [inside]  # a mask may have a wide margin, of bone
    while len(margins) < 4 and (smaller := eroded(margins[-1])).any():
        margins.append(smaller)
    here, elsewhere = max(value for part in margins for value in contrast(part)), {}
    moves = [sign * step for sign in (-1, 1) for step in (2, 3, 4, 5, 6, 8, 10, 12)]
    for axis, factor in enumerate(factors[::-1]):
        side = factor * image.GetSpacing()[2 - axis]
        elsewhere |= dict(zip(contrast(inside, axis, moves), (abs(step) * side for step in moves)))
    best = max(elsewhere)
    if best > FITS * bright and best - here > FITS / 2 * bright:
        raise UserError(f"{path}: this mask would fit better {elsewhere[best]:.0f} mm away: shifted, or of another scan")


def check_slices(planes, inside, pixel_mm, names):
    """UserError where slices, pixels [N, height, width] and the same parts of the mask (bool), show no brain."""
    areas = inside.sum(axis=(1, 2)) * pixel_mm**2 / 100
    black = [str(name) for name, area, plane in zip(names, areas, planes) if area < MIN_CM2 or not plane.any()]
    require(not black, f"--slices: {len(black)} of {len(names)} slices would show no brain: {', '.join(black[:5])}")
