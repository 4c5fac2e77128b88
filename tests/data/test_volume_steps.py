"""The steps from a volume to slices: each against a second way of computing it, and the scan that fails."""

import itertools

import numpy as np
import pytest

sitk = pytest.importorskip("SimpleITK")

from synthetic_volumes import head, write_nifti  # noqa: E402

from data import volume_steps  # noqa: E402
from data.volume_masks import like  # noqa: E402
from data.volume_steps import Settings, cut_slices, panel_of  # noqa: E402
from utils import UserError  # noqa: E402

PLAIN = Settings(n4=False, resample=0, plane="axial", num_slices=3, slices=(-8, 8))  # no interpolation


def array(image):
    return sitk.GetArrayFromImage(image).astype(float)


def grid(n=40, spacing=1.0):
    """An image of n**3 voxels of 0, and the positions z, y, x (mm) of its voxels."""
    image = sitk.Image([n] * 3, sitk.sitkFloat32)
    image.SetSpacing([spacing] * 3)
    return image, np.mgrid[:n, :n, :n] * spacing


# ---------------------------------------------------------------------------------------------------------------------
# Bias field, motion, interpolation


@pytest.mark.slow
def test_n4_takes_out_most_of_a_known_field():
    image = sitk.Cast(head(noise=1), sitk.sitkFloat32)
    x = np.linspace(-1, 1, 40)
    field = np.exp(0.25 * x + 0.15 * x[:, None] ** 2 - 0.2 * x[:, None, None])
    mask = volume_steps.head_mask(image)
    inside = array(mask) > 0
    found = array(volume_steps.bias_field(like((array(image) * field).astype("f4"), image), mask))
    left = np.log(found[inside] / field[inside])
    assert left.std() < 0.3 * np.log(field[inside]).std()
    assert np.log(found[inside]).mean() == pytest.approx(0, abs=1e-5)  # float32


@pytest.mark.slow
def test_align_finds_a_known_motion():
    template = sitk.Cast(head(noise=1), sitk.sitkFloat32)
    known = sitk.Euler3DTransform()
    known.SetRotation(0.1, -0.15, 0.2)
    known.SetTranslation((6, -9, 12))
    moved = sitk.Resample(template, template, known.GetInverse(), sitk.sitkLinear, 0.0)
    masks = [volume_steps.head_mask(image, with_neck=True) for image in (moved, template)]
    found = volume_steps.align(moved, masks[0], template, masks[1])
    for point in itertools.product((-50, 50), repeat=3):  # corners of the brain
        assert np.linalg.norm(np.subtract(found.TransformPoint(point), known.TransformPoint(point))) < 2  # mm: half a voxel


@pytest.mark.slow
def test_affine_alignment_finds_a_known_scale_and_shear_that_a_rigid_one_cannot():
    template = sitk.Cast(head(noise=1), sitk.sitkFloat32)
    known = sitk.AffineTransform(np.array([[1.12, 0.05, 0], [0, 0.92, 0.04], [0.03, 0, 1.06]]).ravel().tolist(), (5, -7, 4))
    moved = sitk.Resample(template, template, known.GetInverse(), sitk.sitkLinear, 0.0)
    masks = [volume_steps.head_mask(image, with_neck=True) for image in (moved, template)]
    off = {}
    for kind in ("rigid", "affine"):
        found = volume_steps.align(moved, masks[0], template, masks[1], kind)
        points = itertools.product((-45, 45), repeat=3)
        off[kind] = max(np.linalg.norm(np.subtract(found.TransformPoint(p), known.TransformPoint(p))) for p in points)
    assert off["affine"] < 3 < off["rigid"]  # mm; voxels have 4


def test_without_alignment_nothing_moves_and_what_lies_elsewhere_is_refused():
    template = sitk.Cast(head(noise=1), sitk.sitkFloat32)
    mask = volume_steps.head_mask(template)
    assert volume_steps.align(template, mask, template, mask, "none").TransformPoint((1.0, 2.0, 3.0)) == (1, 2, 3)
    far = like(np.roll(array(mask), 15, axis=1).astype(np.uint8), mask)
    with pytest.raises(UserError, match="alignment failed: brain and template overlap by"):
        volume_steps.align(template, far, template, mask, "none")


@pytest.mark.slow
def test_align_refuses_what_does_not_overlap():
    template = sitk.Cast(head(noise=1), sitk.sitkFloat32)
    mask = volume_steps.head_mask(template)
    small = like(np.pad(array(mask)[18:22, 10:30, 10:30], ((18, 18), (10, 10), (10, 10))).astype(np.uint8), template)
    with pytest.raises(UserError, match="alignment failed: brain and template overlap by"):
        volume_steps.align(template, small, template, mask)


def test_cubes_cover_the_volume_with_voxels_of_the_side():
    image = sitk.DICOMOrient(head(), "LPS")
    a = 0.3
    image.SetDirection([np.cos(a), -np.sin(a), 0, np.sin(a), np.cos(a), 0, 0, 0, 1])
    cubes = volume_steps.cubes(image, 3.0)
    assert cubes.GetSpacing() == (3, 3, 3) and cubes.GetDirection() == tuple(np.eye(3).ravel())
    for corner in itertools.product((0, 39), repeat=3):
        index = cubes.TransformPhysicalPointToContinuousIndex(image.TransformIndexToPhysicalPoint(corner))
        assert all(-1e-6 <= i < n for i, n in zip(index, cubes.GetSize()))


def test_cubes_refuse_a_grid_that_no_memory_holds():
    image = head()
    image.SetSpacing((4000.0, 4000, 4000))
    with pytest.raises(UserError, match="156001 x 156001 x 156001 mm"):
        volume_steps.cubes(image, 1.0)


def test_interpolate_keeps_voxels_reproduces_a_smooth_function_and_overshoots_nothing():
    image, (z, y, x) = grid(30)

    def smooth(z, y, x):
        return 100 + 20 * np.sin(z / 5) + 10 * np.cos(x / 4) + y

    volume = like(smooth(z, y, x).astype("f4"), image)
    np.testing.assert_allclose(array(volume_steps.interpolate(volume, image)), array(volume), rtol=1e-5)  # float32
    fine = volume_steps.cubes(volume, 0.5)
    found, wanted = array(volume_steps.interpolate(volume, fine)), smooth(*np.mgrid[:59, :59, :59] * 0.5)
    middle = (slice(12, -12),) * 3  # away from the mirrored edges
    assert np.abs(found - wanted)[middle].max() < 0.05  # a cubic B-spline: below h^4 / 384 times the fourth derivative, and more
    step = like(np.where(x < 15, 0, 100).astype("f4"), image)
    assert 0 <= array(volume_steps.interpolate(step, fine)).min() and array(volume_steps.interpolate(step, fine)).max() <= 100
    far = sitk.TranslationTransform(3, (1000.0, 0, 0))
    assert array(volume_steps.interpolate(volume, image, far)).max() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Grey values and slices


def test_scale_makes_percentiles_inside_the_mask_black_and_white():
    voxels = np.random.default_rng(0).normal(50, 10, (10, 10, 10))
    mask = np.zeros(voxels.shape, bool)
    mask.ravel()[:101] = True
    inside = np.sort(voxels[mask])
    scaled = volume_steps.scale(voxels, mask, (10, 90))  # of 101 values: number 10 and number 90
    np.testing.assert_allclose(scaled, ((voxels - inside[10]) / (inside[90] - inside[10])).clip(0, 1))
    for bad in (np.zeros_like(voxels), np.full_like(voxels, np.nan)):
        with pytest.raises(UserError, match="percentiles 10 and 90"):
            volume_steps.scale(bad, mask, (10, 90))


@pytest.mark.parametrize(
    "settings, centre, spacing, expected",
    [
        (Settings(slices=(-10, 28), num_slices=20), 50.0, 1.0, list(range(40, 80, 2))),
        (Settings(slices=(-10, 10), num_slices=3), 50.4, 2.0, [45, 50, 55]),
        (Settings(slices=(-10, 10), num_slices=3), 50.5, 2.0, [46, 51, 56]),
        (Settings(slices=(10, 12), num_slices=3, slices_in="index"), 50.0, 2.0, [10, 11, 12]),
        (Settings(slices=(0, 99), num_slices=2, slices_in="index"), 50.0, 2.0, [0, 99]),
        (Settings(slices=(5, 5), num_slices=1), 50.0, 1.0, [55]),
    ],
)
def test_slice_numbers_are_the_nearest(settings, centre, spacing, expected):
    assert volume_steps.slice_numbers(settings, centre, spacing, 100) == expected


def test_slice_numbers_outside_the_volume_or_twice_are_refused():
    for slices, part in (((-60, 0), "from -10 to 50"), ((0, 60), "from 50 to 110"), ((0, 3), "less than 1 mm apart")):
        with pytest.raises(UserError, match=part):
            volume_steps.slice_numbers(Settings(slices=slices), 50.0, 1.0, 100)


@pytest.mark.parametrize("shape", [(300, 300), (100, 90), (240, 256), (1, 1), (241, 255), (100, 400)])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 1.0])
def test_cut_takes_the_part_around_the_centre_with_black_beyond_the_edges(shape, place):
    plane = np.random.default_rng(0).uniform(1, 2, shape)
    centre = np.array([(n - 1) * place for n in shape])
    padded = np.pad(plane, 400)
    y, x = (int(np.floor(c - (n - 1) / 2 + 0.5)) + 400 for c, n in zip(centre, (240, 256)))
    np.testing.assert_array_equal(volume_steps.cut(plane, centre), padded[y : y + 240, x : x + 256])


def test_to_pixels_rounds_and_fills_the_range():
    planes = np.array([0, 0.5 / 255, 1.5 / 255 - 1e-9, 1.0])
    assert volume_steps.to_pixels(planes, True, "jpeg").tolist() == [0, 1, 1, 255]
    assert volume_steps.to_pixels(planes, True, "png").tolist() == [0, 129, 385, 65535]  # 128.5 and 385.5 - 7e-5
    assert volume_steps.to_pixels(np.array([0.4, 254.6, 300]), False, "png").dtype == np.uint16
    for values in ([0, 256.0], [-1.0, 5]):
        with pytest.raises(UserError, match="do not fit into a jpeg file without --scale"):
            volume_steps.to_pixels(np.array(values), False, "jpeg")


# ---------------------------------------------------------------------------------------------------------------------
# All of them


UNSCALED = PLAIN._replace(scale=False, format="png")


@pytest.mark.parametrize("size", [(40, 40, 40), (41, 38, 43)])
def test_slices_of_every_plane_are_those_of_the_volume_in_the_documented_order(size):
    """The volume [z upwards, y backwards, x to the left] has random voxels; its middle voxels lie in the middle of the pictures."""
    voxels = np.random.default_rng(0).integers(1, 60_000, size[::-1]).astype("f4")
    image = sitk.GetImageFromArray(voxels)
    last = [n - 1 for n in voxels.shape]
    for plane, count in (("sagittal", size[0]), ("axial", size[2]), ("coronal", size[1])):
        settings = UNSCALED._replace(plane=plane, slices=(0, count - 1), slices_in="index", num_slices=count)
        pixels, numbers = cut_slices(image, settings)
        assert numbers == list(range(count)) and pixels.shape == (count, 240, 256)
        for number, picture in zip(numbers, pixels):
            if plane == "sagittal":  # rows forwards, columns upwards; numbers rise to the right: against x
                expected = voxels[:, ::-1, last[2] - number].T
            elif plane == "axial":  # rows backwards
                expected = voxels[number][:, ::-1]
            else:  # rows downwards; numbers rise backwards
                expected = voxels[::-1, number][:, ::-1]
            rows, columns = np.flatnonzero(picture.any(axis=1)), np.flatnonzero(picture.any(axis=0))
            np.testing.assert_array_equal(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], expected)
            for line, length in ((rows, 240), (columns, 256)):
                assert abs((line[0] + line[-1]) / 2 - (length - 1) / 2) <= 0.5


def test_numbers_are_equal_for_volumes_of_other_sizes_and_places():
    image = sitk.Cast(head(), sitk.sitkFloat32)
    settings = Settings(n4=False, resample=0, slices=(-8, 8), num_slices=5)
    wanted = cut_slices(image, settings)
    for padded in (sitk.ConstantPad(image, (7, 0, 0), (0, 3, 0)), sitk.ConstantPad(image, (0, 5, 0), (10, 0, 2))):
        pixels, numbers = cut_slices(padded, settings)
        assert numbers == wanted[1] == [88, 89, 90, 91, 92]
        np.testing.assert_array_equal(pixels, wanted[0])


def test_numbers_below_0_are_refused():
    image = sitk.Cast(head(side=200, spacing=0.8), sitk.sitkFloat32)
    with pytest.raises(UserError, match="slice 90 is in the middle, and 5 would be below 0"):
        cut_slices(image, Settings(n4=False, resample=0, slices=(-76, 0), num_slices=2, plane="coronal"))


def test_voxels_that_are_not_square_are_refused_unless_resampled():
    image = sitk.Cast(head(), sitk.sitkFloat32)
    image.SetSpacing((4, 5, 4))
    with pytest.raises(UserError, match="pixels of 4 x 5 mm would be stretched: give --resample a size"):
        cut_slices(image, PLAIN)
    assert cut_slices(image, PLAIN._replace(resample=4.0))[0].shape == (3, 240, 256)


@pytest.mark.slow
def test_with_a_template_slices_of_a_turned_head_are_those_of_the_template(tmp_path):
    template = sitk.DiscreteGaussian(sitk.Cast(head(noise=1), sitk.sitkFloat32), 36.0)  # smooth, as its voxels are large: 6 mm
    path = write_nifti(tmp_path / "template.nii", template)
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.25, 0.2, -0.2)
    turn.SetTranslation((5, -7, 8))
    moved = sitk.Resample(template, template, turn.GetInverse(), sitk.sitkLinear, 0.0)
    settings = PLAIN._replace(format="png")
    wanted = cut_slices(template, settings)[0].astype(float)
    off = [np.abs(cut_slices(moved, settings._replace(template=t))[0] - wanted).mean() for t in (None, str(path))]
    assert off[1] < 0.3 * off[0]


def test_panels_hold_the_planes_through_the_middle_with_the_top_above():
    voxels = np.random.default_rng(0).normal(size=(6, 8, 10)).astype("f4")  # z, y, x
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1, 2, 3))
    panel = panel_of("step", image, image > 0)
    assert panel.title == "step" and panel.aspects == [2, 3, 1.5]
    for plane, outline, expected in zip(panel.planes, panel.outlines, (voxels[3], voxels[::-1, 4], voxels[::-1, :, 5])):
        np.testing.assert_array_equal(plane, expected)
        np.testing.assert_array_equal(outline, expected > 0)
