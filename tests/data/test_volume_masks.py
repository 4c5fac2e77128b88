"""What is no head, no mask of this head, or no slice of a brain: each limit from both sides."""

import numpy as np
import pytest

sitk = pytest.importorskip("SimpleITK")

from synthetic_volumes import head, write_nifti  # noqa: E402

from data import volume_masks  # noqa: E402
from data.volume_masks import check_head, check_mask, check_slices, check_whole_head  # noqa: E402
from data.volume_steps import Settings, cut_slices  # noqa: E402
from utils import UserError  # noqa: E402

SIDES = (4.0, 4.0, 4.0)
PLAIN = Settings(n4=False, resample=0, num_slices=3, slices=(-8, 8))


def ball(z=0.65, y=0.7, x=0.6, side=40):
    """An ellipsoid, bool [40, 40, 40]: with these sides the brain of `synthetic_volumes.head`."""
    places = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j, -1 : 1 : side * 1j]
    return sum((place / half) ** 2 for place, half in zip(places, (z, y, x))) < 1


def array(image):
    return sitk.GetArrayFromImage(image)


def image_of(voxels, image=None):
    return volume_masks.like(voxels, image or head())


@pytest.mark.parametrize(
    "mask, spacing, part",
    [
        (ball(), (2.0,) * 3, "has 68 ml, not 500"),
        (ball(), (9.3,) * 3, "has 6802 ml, not 500 to 6500"),
        (ball(0.3, 0.95, 0.95), SIDES, "is 144 x 144 x 48 mm, and each side should be 80 to 280"),
        (ball(0.6, 0.5, 0.9), SIDES, "is 144 mm wide and 80 mm long"),
        (ball(0.55, 0.95, 0.7), (4, 5, 4), "is 88 mm high and 180 mm long"),
    ],
)
def test_what_is_no_head_is_refused_with_its_size(mask, spacing, part):
    with pytest.raises(UserError, match=part):
        check_head(mask, spacing)


def test_heads_and_brains_pass_and_an_inverted_mask_does_not():
    check_head(ball(0.8, 0.85, 0.7), SIDES)
    check_head(ball(), SIDES, "brain mask")
    for what, part in (("brain mask", "is inverted"), ("head", "has")):
        with pytest.raises(UserError, match=part):
            check_head(~ball(), (8.0,) * 3, what)


@pytest.mark.parametrize(
    "name, part", [("top", np.s_[:20]), ("front", np.s_[:, 20:]), ("left", np.s_[..., :20]), ("right", np.s_[..., 20:])]
)
def test_a_head_or_brain_cut_off_by_the_volume_is_refused_but_a_neck_is_not(name, part):
    for what in volume_masks.LIMITS:
        check_whole_head(ball(), what)
        with pytest.raises(UserError, match=f"is cut off by the edge of the volume at its {name}"):
            check_whole_head(ball()[part], what)
    check_whole_head(ball()[20:])
    with pytest.raises(UserError, match="at its bottom"):
        check_whole_head(ball()[20:], "brain mask")


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("mm", [-32, -20, -12, 12, 20, 32])
def test_a_mask_that_is_shifted_is_refused(axis, mm):
    image = sitk.Cast(head(), sitk.sitkFloat32)
    inside = ball(0.8, 0.85, 0.7)
    check_mask("m", ball(), inside, image)
    with pytest.raises(UserError, match="m: .*: shifted, or of another scan"):
        check_mask("m", np.roll(ball(), mm // 4, axis), inside, image)


def test_a_mask_is_within_a_head_that_is_found_with_its_holes_open_to_the_outside():
    """Bone is as dark as air, and sinuses lead outside: threshold and filled holes leave out what is between brain and skin."""
    head_with_sinus = ball(0.9, 0.9, 0.9) & ~ball(0.8, 0.8, 0.8) | ball()
    head_with_sinus[:, 35:, 18:22] = False
    check_mask("m", ball(0.75, 0.78, 0.72), head_with_sinus, sitk.Cast(head(), sitk.sitkFloat32))
    with pytest.raises(UserError, match="outside of the head"):
        check_mask("m", np.roll(ball(), 14, 2), ball(0.8, 0.85, 0.7), sitk.Cast(head(), sitk.sitkFloat32))


def test_a_hollow_mask_is_no_brain():
    check_head(ball() & ~ball(0.4, 0.4, 0.4), SIDES, "brain mask")
    with pytest.raises(UserError, match="hollow"):
        check_head(ball(0.75, 0.8, 0.7) & ~ball(0.65, 0.7, 0.6), SIDES, "brain mask")


@pytest.mark.parametrize("values, part", [([0, 1], "2 values"), ([0, 255], "2 values"), ([0, 2, 3, 41, 42], "5 values")])
def test_a_mask_or_segmentation_in_place_of_the_scan_is_refused(values, part):
    voxels = np.zeros((40, 40, 40), "f4")
    for i, value in enumerate(values[1:]):
        voxels[ball(0.65 - i / 10, 0.7 - i / 10, 0.6 - i / 10)] = value
    with pytest.raises(UserError, match=f"it has {part} in large patches, as a mask or a segmentation"):
        cut_slices(image_of(voxels), PLAIN, check=True)


def test_scans_of_few_grey_levels_are_no_segmentations():
    cut_slices(image_of(np.float32(array(head()) // 8)), PLAIN, check=True)


def test_a_wide_margin_is_not_taken_for_a_shift():
    """Brain, then fluid and bone that are dark, then bright skin: a mask that is 4 mm too wide has no step at its edge anywhere."""
    places = np.mgrid[-1:1:40j, -1:1:40j, -1:1:40j]
    radius = np.sqrt(sum((place / half) ** 2 for place, half in zip(places, (0.65, 0.7, 0.6))))
    voxels = np.select([radius < 1, radius < 1.2, radius < 1.35], [100.0, 10.0, 120.0], 0.0)
    image = image_of((voxels + np.random.default_rng(0).normal(0, 2, voxels.shape)).astype("f4"))
    for mask in (radius < 1, radius < 1.08, radius < 0.93, radius < 1.2):
        check_mask("m", mask, radius < 1.35, image)


def test_slices_that_show_no_brain_are_named():
    pixels, inside = np.ones((3, 240, 256), np.uint8), np.zeros((3, 240, 256), bool)
    inside[:, 100:120, 100:120] = True
    check_slices(pixels, inside, 1.0, [89, 90, 91])
    inside[0, :, 101:] = False  # 0.2 cm2
    pixels[2] = 0
    with pytest.raises(UserError, match="2 of 3 slices would show no brain: 89, 91"):
        check_slices(pixels, inside, 1.0, [89, 90, 91])


def empty(n=40, spacing=1.0):
    """An image of n**3 voxels of 0, and the positions z, y, x (mm) of its voxels."""
    image = sitk.Image([n] * 3, sitk.sitkFloat32)
    image.SetSpacing([spacing] * 3)
    return image, np.mgrid[:n, :n, :n] * spacing


def test_head_mask_is_the_largest_bright_part_with_its_holes_filled_and_no_neck():
    image, (z, y, x) = empty(40, 10.0)  # 400 mm high
    ball = np.sqrt((z - 300) ** 2 + (y - 200) ** 2 + (x - 200) ** 2) < 80
    hole = np.sqrt((z - 300) ** 2 + (y - 200) ** 2 + (x - 200) ** 2) < 30
    neck = (z < 300) & (np.hypot(y - 200, x - 200) < 35)
    voxels = np.where((ball | neck) & ~hole, 100.0, 1.0)
    voxels[:3, :3, :3] = 200  # something bright beside the head
    mask = array(volume_masks.head_mask(volume_masks.like(voxels.astype("f4"), image)))
    top = np.flatnonzero(ball.any(axis=(1, 2)))[-1]
    expected = ball | neck
    expected[: top + 1 - 15] = False  # 150 mm
    np.testing.assert_array_equal(mask, expected)
    whole = array(volume_masks.head_mask(volume_masks.like(voxels.astype("f4"), image), with_neck=True))
    np.testing.assert_array_equal(whole, ball | neck)


def test_move_mask_keeps_a_mask_on_its_own_grid_and_halves_follow_the_nearer_voxel():
    image, (z, y, x) = empty(20)
    ball = (z - 9) ** 2 + (y - 9) ** 2 + (x - 9) ** 2 < 36
    mask = volume_masks.like(ball.astype(np.uint8), image)
    np.testing.assert_array_equal(array(volume_masks.move_mask(mask, image)), ball)
    shift = sitk.TranslationTransform(3, (0.4, 0, 0))
    np.testing.assert_array_equal(array(volume_masks.move_mask(mask, image, shift)), ball)
    shift = sitk.TranslationTransform(3, (1.4, 0, 0))  # towards lower x
    np.testing.assert_array_equal(array(volume_masks.move_mask(mask, image, shift))[..., :-1], ball[..., 1:])


def test_read_mask_is_put_onto_the_grid_of_the_volume_and_refused_elsewhere(tmp_path):
    image = head()
    mask = sitk.Cast(image > 60, sitk.sitkUInt8)
    path = write_nifti(tmp_path / "mask.nii", sitk.DICOMOrient(mask, "SAL"))
    np.testing.assert_array_equal(array(volume_masks.read_mask(str(path), image)), array(mask))
    write_nifti(path, sitk.DiscreteGaussian(sitk.Cast(image, sitk.sitkFloat32)))
    with pytest.raises(UserError, match="mask.nii: holds .* different values or more, so it is an image"):
        volume_masks.read_mask(str(path), image)
    mask.SetOrigin((1000, 0, 0))
    write_nifti(path, mask)
    with pytest.raises(UserError, match="no voxel of this mask lies in the volume"):
        volume_masks.read_mask(str(path), image)


# ---------------------------------------------------------------------------------------------------------------------
# Heads among odd values


def hot(count, value, seed=0):
    """A head with `count` voxels of `value` at random places."""
    voxels = array(head()).astype("f4")
    voxels.flat[np.random.default_rng(seed).choice(voxels.size, count, replace=False)] = value
    return voxels


@pytest.mark.parametrize("value", [2000, 60_000, 1e9])
def test_a_few_voxels_far_brighter_do_not_change_the_head(value):
    wanted = array(volume_masks.head_mask(sitk.Cast(head(), sitk.sitkFloat32)))
    for count in (1, 30, 150):
        found = array(volume_masks.head_mask(image_of(hot(count, value))))
        assert (found != wanted).sum() <= 2 * count
    edge = array(head()).astype("f4")
    edge[0, :8, :20] = value
    np.testing.assert_array_equal(array(volume_masks.head_mask(image_of(edge))), wanted)


@pytest.mark.parametrize("factor", [2, 4])
def test_fat_far_brighter_than_the_brain_is_not_all_of_the_head(factor):
    """Otsu's threshold is then between fat and all else, and the brain would be black."""
    skin = ball(0.85, 0.9, 0.8) & ~ball(0.75, 0.8, 0.7)
    skin[:, :, 20:22] &= ball(0.5, 0.5, 0.5)[:, :, 20:22]  # open, as at sinuses and the neck
    voxels = np.where(skin, np.float32(factor * 150), array(head()).astype("f4"))
    voxels[ball(0.75, 0.8, 0.7) & ~ball()] = 1
    assert (array(volume_masks.head_mask(image_of(voxels)))[ball()] > 0).mean() > 0.9


def test_one_hot_voxel_inside_changes_the_slices_near_it_only():
    plain = PLAIN._replace(resample=3.0, num_slices=9, slices=(-24, 24), format="png")
    voxels = array(head()).astype("f4")
    wanted = cut_slices(image_of(voxels), plain)[0].astype(float)
    voxels[20, 20, 24] = 1e9
    found = cut_slices(image_of(voxels), plain)[0].astype(float)
    assert np.abs(found - wanted)[-3:].max() < 0.01 * 65535  # 28 mm away and more


def test_a_brain_without_its_skull_is_found_whole_with_its_dark_parts():
    brain = ball()
    voxels = np.where(brain, array(head()) + 1, 0)  # ventricles of about 20
    np.testing.assert_array_equal(array(volume_masks.head_mask(image_of(voxels.astype("f4")))), brain)
    z_scores = np.where(brain, (voxels - voxels[brain].mean()) / voxels[brain].std(), 0)
    np.testing.assert_array_equal(array(volume_masks.head_mask(image_of(z_scores.astype("f4")))), brain)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("background", [0.0, -10.0, 3.0, 1000.0])
def test_outside_of_a_brain_of_z_scores_slices_are_black(tmp_path, with_mask, background):
    brain = ball()
    voxels = array(head()).astype("f4")
    z_scores = np.where(brain, (voxels - voxels[brain].mean()) / voxels[brain].std(), np.float32(background))
    path = write_nifti(tmp_path / "mask.nii", image_of(brain.astype(np.uint8)))
    pixels, _ = cut_slices(image_of(z_scores), PLAIN, str(path) if with_mask else None, check=True)
    inside, _ = cut_slices(image_of(np.float32(1000 * brain)), PLAIN._replace(scale=False, format="png"))
    assert (pixels[inside == 0] == 0).all() and np.median(pixels[inside > 0]) > 60


# ---------------------------------------------------------------------------------------------------------------------
# Files of masks


@pytest.mark.parametrize(
    "voxels, part",
    [
        (np.float32(0.5) * ball(), "such as probabilities, not 0 and 1 only"),
        (-1.0 * ball(), "not 0 and 1 only"),
        (
            np.uint8(np.minimum(255, 400 * np.maximum(0, 1 - np.linalg.norm(np.mgrid[-1:1:40j, -1:1:40j, -1:1:40j], axis=0)))),
            "different values",
        ),
        (np.uint8(np.roll(ball(), 9, 2) & ball() | np.roll(ball(0.2, 0.2, 0.2), -12, 2)), "in pieces, the largest"),
    ],
)
def test_what_is_no_mask_of_one_piece_is_refused(tmp_path, voxels, part):
    path = write_nifti(tmp_path / "mask.nii.gz", image_of(voxels))
    with pytest.raises(UserError, match=f"mask.nii.gz: .*{part}"):
        volume_masks.read_mask(str(path), head())


def test_labels_float_masks_nan_outside_and_specks_are_masks(tmp_path):
    specks = np.uint8(ball())
    specks[2, 2, 2] = specks[37, 37, 37] = 1
    for i, voxels in enumerate(
        (
            np.int16(ball() * np.arange(1, 41)),
            np.float32(ball()),
            np.float32(ball() + np.random.default_rng(0).normal(0, 1e-5, ball().shape)),
            np.where(ball(), 1, np.nan).astype("f4"),
            specks,
            np.uint8(255 * ball()),
        )
    ):
        path = write_nifti(tmp_path / f"{i}.nii.gz", image_of(voxels))
        np.testing.assert_array_equal(array(volume_masks.read_mask(str(path), head())), ball())


def test_a_mask_of_the_same_voxels_that_lies_elsewhere_by_its_header_is_refused(tmp_path):
    mask = image_of(np.uint8(ball()))
    mask.SetOrigin(np.add(mask.GetOrigin(), (0, 5, 0)).tolist())
    with pytest.raises(UserError, match="has the voxels of the volume, but lies 5 mm beside it"):
        volume_masks.read_mask(str(write_nifti(tmp_path / "mask.nii", mask)), head())
