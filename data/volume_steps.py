"""From one volume to its slices: what prepare.py does with a scan.

    orient        axes swapped and flipped to the nearest of left, posterior, superior: no voxel changes
    mask          a brain mask, given or made (data/volume_strip.py), or the head (data/volume_masks.py)
    n4            the smooth bias field of the coil, estimated by N4 (Tustison et al. 2010), is divided out
    align         rigid or affine motion onto a template volume, by mutual information (Mattes et al. 2003)
    resample      one cubic B-spline interpolation to cubes along the scanner's or the template's axes, the motion with it
    scale         percentiles inside the mask become black and white
    cut           slices around the middle of the brain, cropped or padded to 256x240, never stretched

Arrays are [z, y, x], SimpleITK's sizes and points x, y, z.
"""

import functools
import importlib.util
import itertools
import os
from typing import NamedTuple

import numpy as np

from data.dicom import MAX_VOXELS, require, sitk
from data.volume_masks import array_of, check_found, check_slices, head_mask, like, middle, move_mask, read_mask, tame
from data.volumes import read_path

WIDTH, HEIGHT = 256, 240  # of the slices of AD_NC
MIDDLE = 90  # number of the slice in the middle of the brain, about that of AD_NC's sagittal slices
# Axes of a volume [z upwards, y backwards, x to the left] along which slices, rows and columns of a plane lead; those reversed.
PLANES = {"sagittal": ((2, 1, 0), (0, 1)), "axial": ((0, 1, 2), ()), "coronal": ((1, 0, 2), (1,))}
N4_MM, N4_ITERATIONS = 4.0, (50, 50, 50, 50)  # the field is smooth: voxels of this size are enough to estimate it
ALIGN_SAMPLES, ALIGN_BINS = 50_000, 50  # samples: of each level
ALIGN_MM = 4.0, 2.0, 1.0  # of the levels, from coarse to fine: voxels, and the smoothing of all but the last
MNI152 = "mni152"  # --template: the brain that nilearn has in its package, ICBM 2009a (Fonov et al. 2011)
MNI152_FILE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
MIN_OVERLAP = 0.7  # Dice of the masks after alignment; below it, the brain has been put beside the template


class Settings(NamedTuple):
    """The flags of prepare.py that change slices."""

    strip: str | None = None  # "deepbet"
    n4: bool = True
    template: str | None = None  # a file, or MNI152
    align: str = "rigid"  # or "affine" or "none"
    resample: float = 1.0  # mm; 0: the voxels stay (with a template, become the template's)
    scale: bool = True
    percentiles: tuple[float, float] = (0.5, 99.5)
    plane: str = "sagittal"  # of PLANES
    slices: tuple[float, float] = (-9, 10)
    slices_in: str = "mm"  # from the middle plane of the brain, or "index", of the volume
    num_slices: int = 20
    format: str = "jpeg"  # or "png", of 16 bits


FIELD = "bias field"  # title of the panel that shows the field itself


class Panel(NamedTuple):
    """What a picture shows of a volume after a step: its middle planes, rows downwards from front or top, columns from the person's
    right to left, or front to back."""

    title: str
    planes: list  # axial, coronal and sagittal, float [H, W] each
    outlines: list  # of a mask, bool [H, W] each, or None
    aspects: list  # height / width of a pixel


def panel_of(title, image, mask=None):
    """The Panel of a SimpleITK.Image."""

    def cut(volume):
        z, y, x = (n // 2 for n in volume.shape)
        return [plane.copy() for plane in (volume[z], volume[::-1, y], volume[::-1, :, x])]

    dx, dy, dz = image.GetSpacing()
    outlines = [None] * 3 if mask is None else cut(array_of(mask) > 0)
    return Panel(title, cut(array_of(image)), outlines, [dy / dx, dz / dx, dz / dy])


def bias_field(image, mask):
    """The bias field inside a volume, an image about 1 by which it is to be divided: N4, on voxels of about N4_MM."""
    factors = [max(1, round(N4_MM / side)) for side in image.GetSpacing()]
    small = [sitk.Shrink(part, factors) for part in (sitk.Clamp(image, lowerBound=1e-3), mask)]
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(N4_ITERATIONS)
    corrector.Execute(*small)
    log_field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    log_field -= log_field[array_of(mask) > 0].mean()
    return like(np.exp(log_field), image)


def align(image, mask, template, template_mask, kind="rigid"):
    """The motion that takes points of the template to those of the volume; UserError where the masks do not meet.

    kind: as `Settings.align`. An affine one, of 12 degrees of freedom, starts from the rigid one; "none": the volume lies there
    already.
    """
    motion = sitk.Transform()
    if kind != "none":
        motion = sitk.CenteredTransformInitializer(
            *(sitk.Cast(part, sitk.sitkFloat32) for part in (template_mask, mask)),
            sitk.Euler3DTransform(),
            sitk.CenteredTransformInitializerFilter.MOMENTS,
        )
        register(image, template, motion)
    if kind == "affine":
        rigid = sitk.Euler3DTransform(motion)
        motion = sitk.AffineTransform(rigid.GetMatrix(), rigid.GetTranslation(), rigid.GetCenter())
        register(image, template, motion)
    moved, target = (array_of(part) > 0 for part in (move_mask(mask, template, motion), template_mask))
    overlap = 2 * (moved & target).sum() / max(1, moved.sum() + target.sum())
    both = "do both show brains (--masks, --strip), or both heads?"
    require(overlap >= MIN_OVERLAP, f"alignment failed: brain and template overlap by {overlap:.0%}; {both}")
    return motion


def register(image, template, motion):
    """Improve a motion, in place, until the volume is most like the template."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(ALIGN_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    factors = [max(1, round(side / max(template.GetSpacing()))) for side in ALIGN_MM]
    shares = [min(1.0, ALIGN_SAMPLES * factor**3 / template.GetNumberOfPixels()) for factor in factors]
    method.SetMetricSamplingPercentagePerLevel(shares, 1)  # with a seed: repeatable
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.01, 300, relaxationFactor=0.8, gradientMagnitudeTolerance=1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(factors)
    method.SetSmoothingSigmasPerLevel([*ALIGN_MM[:-1], 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(motion, inPlace=True)
    method.Execute(template, image)


def cubes(image, side):
    """An empty image over the same part of space with cubic voxels of `side` mm along the scanner's axes.

    Its first voxel lies where the lowest corner of `image` does, so nothing moves where nothing has to.
    """
    ends = itertools.product(*((0, n - 1) for n in image.GetSize()))
    corners = np.array([image.TransformIndexToPhysicalPoint(end) for end in ends])
    low, high = corners.min(axis=0), corners.max(axis=0)
    size = np.floor((high - low) / side + 1e-3).astype(int) + 1
    text = f"{' x '.join(f'{n * side:g}' for n in size)} mm, as its header says, are too many cubes of {side:g} mm"
    require(np.prod(size, dtype=float) <= MAX_VOXELS, text)
    grid = sitk.Image(size.tolist(), sitk.sitkUInt8)
    grid.SetSpacing([side] * 3)
    grid.SetOrigin(low.tolist())
    return grid


def interpolate(image, grid, motion=None):
    """The volume on `grid` after `motion`, by cubic B-splines; 0 outside it, and nothing beyond its own darkest and brightest."""
    moved = sitk.Resample(image, grid, motion or sitk.Transform(), sitk.sitkBSpline, 0.0, sitk.sitkFloat32)
    return sitk.Clamp(moved, lowerBound=float(min(array_of(image).min(), 0)), upperBound=float(array_of(image).max()))


def scale(voxels, mask, percentiles):
    """Float [z, y, x] in [0, 1]: the two percentiles of the voxels inside the mask become 0 and 1."""
    low, high = np.percentile(voxels[mask], percentiles)
    require(low < high, f"percentiles {percentiles[0]:g} and {percentiles[1]:g} inside the brain are both {low:g}")  # or nan
    return np.clip((voxels - low) / (high - low), 0, 1)


def slice_numbers(settings, centre, spacing, count):
    """The indices of the slices in a volume of `count` slices `spacing` mm apart; UserError if it lacks one or one is twice.

    centre: the index of the middle plane, float; distances are counted from the slice nearest to it.
    """
    wanted = np.linspace(*settings.slices, settings.num_slices)
    if settings.slices_in == "mm":
        wanted = nearest(centre) + wanted / spacing
    indices = [nearest(index) for index in wanted]
    found = f"from {indices[0]} to {indices[-1]}"
    require(0 <= indices[0] and indices[-1] < count, f"--slices reach {found}, but the volume has slices 0 to {count - 1} only")
    close = f"{len(indices)} slices there would be less than {spacing:g} mm apart, which the voxels are"
    require(len(set(indices)) == len(indices), f"--slices: {close}")
    return indices


def nearest(index):
    """The whole number nearest to an index; the higher of two."""
    return int(np.floor(index + 0.5 + 1e-6))


def cut(plane, centre):
    """The part [240, 256] of a slice around `centre` (y, x, indices within it), with black beyond its edges."""
    padded = np.pad(plane, ((HEIGHT, HEIGHT), (WIDTH, WIDTH)))
    y, x = (int(np.floor(c + (n + 1) / 2 + 0.5)) for c, n in zip(centre, (HEIGHT, WIDTH)))
    return padded[y : y + HEIGHT, x : x + WIDTH]


def to_pixels(planes, scaled, image_format):
    """Slices as they are stored: uint8 for "jpeg", uint16 for "png"; those that are not scaled have to fit in as they are."""
    kind = np.uint8 if image_format == "jpeg" else np.uint16
    white = np.iinfo(kind).max
    planes = planes * white if scaled else planes
    text = f"values of {planes.min():g} to {planes.max():g} do not fit into a {image_format} file without --scale"
    require(scaled or (planes.max() <= white + 0.5 and planes.min() >= -0.5), text)
    return np.clip(np.floor(planes + 0.5), 0, white).astype(kind)


def template_file(name):
    """The path of a --template; UserError for MNI152 without nilearn, which is looked for, but need not be imported."""
    if name != MNI152:
        return name
    places = getattr(importlib.util.find_spec("nilearn"), "submodule_search_locations", None) or [""]
    path = os.path.join(places[0], MNI152_FILE)
    require(os.path.isfile(path), f"{MNI152}: the brain in nilearn, which is missing: pip install nilearn, or give a NIfTI file")
    return path


@functools.lru_cache(maxsize=1)
def load_template(name):
    """(image, head mask) of the template volume, axial."""
    path = template_file(name)
    image = sitk.DICOMOrient(read_path(path), "LPS")
    return image, head_mask(image)


def cut_slices(image, settings, mask_path=None, show=None, check=False):
    """All steps: (pixels uint8 or uint16 [N, 240, 256], their numbers) of a SimpleITK.Image; UserError where a step fails.

    A number is MIDDLE plus the voxels from the middle plane, or with slices_in "index" the index of the slice in the volume.
    show: called with (title, image, mask or None) after each step. check: reject what is no head or shows no brain.
    """
    show = show or (lambda *_: None)
    image, mask = correct(image, settings, mask_path, show, check)
    return take_slices(*resample(image, mask, settings, bool(mask_path), show), settings, check)


def correct(image, settings, mask_path, show, check):
    """Orient, mask, N4: (image, mask), the voxels where they were."""
    show("as stored", image, None)
    image = sitk.DICOMOrient(image, "LPS")
    show("orient", image, None)
    mask = read_mask(mask_path, image) if mask_path else head_mask(image)
    show("mask" if mask_path else "head (no mask)", image, mask)
    if check and not settings.strip:  # else `write_mask` has
        check_found(image, mask, mask_path, settings.slices_in == "mm")
    if settings.scale:
        image = tame(image, mask)
    if settings.n4:
        field = bias_field(image, mask)
        image = sitk.Cast(image / field, sitk.sitkFloat32)  # the quotient has 64 bits
        show(FIELD, field, mask)
        show("n4", image, None)
    if mask_path:  # before alignment: a brain is put onto a brain
        image = image * sitk.Cast(mask, sitk.sitkFloat32)
        show("brain", image, None)
    return image, mask


def resample(image, mask, settings, is_brain, show):
    """Align and resample: (image, mask, the mask in whose middle slices are counted: the template's, or the same)."""
    if not settings.template and not settings.resample:
        return image, mask, mask
    motion, target, like_grid = None, None, image
    if settings.template:
        like_grid, target = load_template(settings.template)
        motion = align(image, mask, like_grid, target, settings.align)
    grid = cubes(like_grid, settings.resample) if settings.resample else like_grid
    image, mask = interpolate(image, grid, motion), move_mask(mask, grid, motion)
    target = None if target is None else move_mask(target, grid)
    if is_brain:
        image = image * sitk.Cast(mask, sitk.sitkFloat32)
    show("align, resample" if motion else "resample", image, target)
    return image, mask, mask if target is None else target


def take_slices(image, mask, frame, settings, check):
    """Scale and cut: the pixels and numbers of `cut_slices`."""
    voxels, inside = sitk.GetArrayFromImage(image), array_of(mask) > 0
    require(inside.any(), "the brain mask is empty after resampling")
    if settings.scale:
        voxels = scale(voxels, inside, settings.percentiles)
    axes, reversed_axes = PLANES[settings.plane]
    voxels, inside, frame = (np.flip(part.transpose(axes), reversed_axes) for part in (voxels, inside, array_of(frame) > 0))
    depth, height, width = (image.GetSpacing()[2 - axis] for axis in axes)
    stretched = f"pixels of {width:g} x {height:g} mm would be stretched: give --resample a size"
    require(abs(width - height) <= 1e-3 * width, stretched)
    centre = (np.array(voxels.shape) - 1) / 2 if settings.slices_in == "index" else middle(frame)
    indices = slice_numbers(settings, centre[0], depth, len(voxels))
    names = indices if settings.slices_in == "index" else [MIDDLE + index - nearest(centre[0]) for index in indices]
    below = f"slice {MIDDLE} is in the middle, and {-names[0]} would be below 0; give --slices_in index"
    require(names[0] >= 0, f"--slices: {below}")
    planes = np.stack([cut(voxels[i], centre[1:]) for i in indices])
    if settings.plane != "sagittal":
        planes = planes[..., ::-1]  # the person's right is on the right
    pixels = to_pixels(planes, settings.scale, settings.format)
    if check:
        check_slices(pixels, np.stack([cut(inside[i], centre[1:]) for i in indices]), width, names)
    return pixels, names
