"""Is this a head, is that its brain, and do the slices show it? What a volume and a mask have to look like.

A header that is wrong although no field contradicts another, a mask of another scan, or a cut beside the brain would otherwise end
in slices that are black, small or turned, of a scan that counts as done. The limits are far outside of what adults have: 1.1 to
1.8 l within the skull, and 3 to 5 l in a head without its neck.
"""

import numpy as np

from data.dicom import sitk
from utils import UserError

HEAD_ML, HEAD_SIDES = (500, 6500), (80, 280)  # volume, and the sides of the box around it, mm
BRAIN_ML, BRAIN_SIDES = (300, 2500), (70, 230)
HOLLOW = 0.5  # of what a head or a brain mask encloses belongs to it at least
WITHIN = 0.85  # of a brain mask is inside the head
SHIFT_MM = 4.0  # voxels of about this size tell whether a mask is shifted
FITS = (
    0.3  # of the brain's brightness: the step at the edge of a mask that fits; one with a wide margin has a smaller step anywhere
)
CUT_OFF = {"top": 0.3, "left": 0.5, "right": 0.5, "front": 0.5, "back": 0.5}  # of the largest section, in the outermost slice
BRAIN_CUT_OFF = 0.15  # the same for each end of a brain mask
MIN_CM2 = 1.0  # of brain in a slice
# A volume of fewer values than LABELS, of which so many voxels in the head equal their neighbours, is a mask or a segmentation
LABELS, ALIKE = 64, 0.65


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


def check_grey(voxels, mask):
    """UserError where a volume [z, y, x] is a mask or a segmentation: few values, and the same one in most neighbours in `mask`."""
    values = len(np.unique(voxels))
    alike = (voxels[..., 1:] == voxels[..., :-1])[mask[..., 1:]].mean()
    if values < LABELS and alike > ALIKE:
        raise UserError(f"implausible: it has {values} values in large patches, as a mask or a segmentation; the scan is needed")


def check_head(mask, spacing, is_brain, oriented):
    """UserError unless a mask, bool [z, y, x], may be a head, or, is_brain, a brain.

    spacing: (z, y, x) mm. oriented: the axes lead upwards, backwards and to the left.
    """
    what, limits, sides = ("brain mask", BRAIN_ML, BRAIN_SIDES) if is_brain else ("head", HEAD_ML, HEAD_SIDES)
    if is_brain and mask[:: mask.shape[0] - 1, :: mask.shape[1] - 1, :: mask.shape[2] - 1].sum() >= 4:
        raise UserError("implausible: the brain mask is inverted: the corners of the volume are inside it, and 0 should be outside")
    if is_brain and mask.sum() < HOLLOW * between(mask).sum():
        raise UserError("implausible: the brain mask is hollow: it is of what is around the brain, or of parts of it")
    ml = mask.sum() * np.prod(spacing) / 1000
    if not limits[0] <= ml <= limits[1]:
        raise UserError(f"implausible: the {what} has {ml:.0f} ml, not {limits[0]} to {limits[1]}")
    spans = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    height, length, width = (float((span[-1] - span[0] + 1) * side) for span, side in zip(spans, spacing))
    if not (sides[0] <= min(height, length, width) and max(height, length, width) <= sides[1]):
        text = f"{width:.0f} x {length:.0f} x {height:.0f}"
        raise UserError(f"implausible: the {what} is {text} mm, and each side should be {sides[0]} to {sides[1]}")
    if oriented and width > 1.15 * length:
        raise UserError(
            f"implausible: the {what} is {width:.0f} mm wide and {length:.0f} mm long; does its header name the axes rightly?"
        )
    if oriented and height < 0.5 * length:
        raise UserError(
            f"implausible: the {what} is {height:.0f} mm high and {length:.0f} mm long; is it whole, and its header right?"
        )


def check_whole_head(mask, is_brain):
    """UserError where a mask [z upwards, y backwards, x to the left] is cut off by the edge of its volume.

    Its middle, from which slices are counted, would lie elsewhere.
    """
    ends = {
        "top": mask[-1],
        "bottom": mask[0],
        "front": mask[:, 0],
        "back": mask[:, -1],
        "left": mask[..., -1],
        "right": mask[..., 0],
    }
    for (name, end), axis in zip(ends.items(), (0, 0, 1, 1, 2, 2)):
        limit = BRAIN_CUT_OFF if is_brain else CUT_OFF.get(name, 1.0)
        largest = mask.sum(axis=tuple({0, 1, 2} - {axis})).max()
        if end.sum() > limit * largest:
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
