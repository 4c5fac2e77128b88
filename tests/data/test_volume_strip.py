"""Brain masks by deepbet: a stand-in shows what it is given and what becomes of its answer; the real one runs where installed."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

sitk = pytest.importorskip("SimpleITK")

from synthetic_volumes import head, write_nifti  # noqa: E402

from data import volume_strip  # noqa: E402
from data.volume_jobs import Job, prepare_scan  # noqa: E402
from data.volume_masks import like  # noqa: E402
from data.volume_steps import MNI152, Settings, load_template, template_file  # noqa: E402
from data.volume_strip import DEEPBET, STRIPPED, deepbet_mask, stripped_before, write_mask  # noqa: E402
from data.volumes import Volume, read_path  # noqa: E402
from utils import UserError  # noqa: E402

BIG = 5.0  # mm: the head of 40 x 40 x 40 voxels then has a brain of 1,160 ml
PLAIN = Settings(strip="deepbet", n4=False, resample=0, plane="axial", num_slices=3, slices=(-10, 10))


def big_head(**options):
    return sitk.Cast(head(spacing=BIG, **options), sitk.sitkFloat32)


def array(image):
    return sitk.GetArrayFromImage(image)


def inner(_):
    """The inner ellipsoid of `head`, in an array [x, y, z] from the right, the back and below, or from their opposites."""
    i, j, k = np.mgrid[-1:1:40j, -1:1:40j, -1:1:40j]
    return ((i / 0.6) ** 2 + (j / 0.7) ** 2 + (k / 0.65) ** 2 < 1).astype(np.float32)


@pytest.fixture
def answer(monkeypatch):
    """Set what deepbet makes of an array [x, y, z]: `inner` at first; returns the list of arrays that it was given."""
    given, answers = [], [inner]

    def run_model(x):
        given.append(x)
        return answers[-1](x)

    monkeypatch.setattr(volume_strip, "network", lambda: SimpleNamespace(run_model=run_model))
    return SimpleNamespace(set=answers.append, given=given)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "ASL"])
def test_deepbet_is_given_right_anterior_superior_and_its_mask_lies_where_it_saw_it(answer, orientation):
    answer.set(lambda x: (x > 180).astype(np.float32))  # the marker, on the person's left, in front
    image = big_head(noise=0)
    image.SetOrigin((3, -7, 20))
    image = sitk.DICOMOrient(sitk.DICOMOrient(image, orientation), "LPS")
    mask = deepbet_mask(image)
    x, y, z = np.nonzero(answer.given[0] > 180)
    assert x.mean() < 15 and y.mean() > 25 and answer.given[0].dtype == np.float32 and answer.given[0].flags.c_contiguous
    assert mask.GetOrigin() == image.GetOrigin() and mask.GetDirection() == image.GetDirection()
    np.testing.assert_array_equal(array(mask), array(image) > 180)


def test_the_mask_is_written_and_read_again_as_it_is(answer, tmp_path):
    path, image = str(tmp_path / "7_mask.nii.gz"), big_head()
    assert write_mask(image, path) == (DEEPBET, None)
    np.testing.assert_array_equal(array(read_path(path)), inner(None).transpose(2, 1, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["7_mask.nii.gz"]


def test_a_brain_is_recognised_and_a_head_is_not(answer, tmp_path):
    image = big_head()
    brain = like(array(image) * inner(None).transpose(2, 1, 0), image)
    assert write_mask(brain, str(tmp_path / "7_mask.nii.gz")) == (STRIPPED, None) and not answer.given
    np.testing.assert_array_equal(array(stripped_before(brain)) > 0, array(brain) > 0)
    assert stripped_before(image) is None  # its background is noise
    defaced = like(array(big_head(noise=0)), image)
    defaced.SetSpacing([6.5] * 3)  # 4,300 ml with a background of 0
    assert stripped_before(defaced) is None


def with_speck(x):
    mask = inner(x)
    mask[:3, :3, :3] = 1
    mask[-14:, -10:, -10:] = 1
    return mask


def with_hole(x):
    mask = inner(x)
    mask[17:23, 17:23, 17:23] = 0
    return mask


def cut_off(x):
    i, j, k = np.mgrid[-1:1:40j, -1:1:40j, -1:1:40j]
    return ((i / 0.6) ** 2 + (j / 0.7) ** 2 + ((k + 0.5) / 0.65) ** 2 < 1).astype(np.float32)


@pytest.mark.parametrize(
    "made, part",
    [
        (lambda x: (x > 180).astype(np.float32), " ml, not 900 to 2100"),
        (lambda x: np.ones_like(x), "8000 ml, not 900 to 2100"),
        (with_speck, "in pieces, the largest "),
        (with_hole, "has holes, 3% of it"),
        (lambda x: np.roll(inner(x), (-8, 8), (0, 2)), "touches the edge of the volume (top, left)"),
        (cut_off, "the brain mask is cut off by the edge of the volume at its bottom"),
    ],
)
def test_what_may_be_no_brain_is_doubtful_and_its_mask_is_there_to_be_seen(answer, tmp_path, made, part):
    answer.set(made)
    path = tmp_path / "7_mask.nii.gz"
    _, doubt = write_mask(big_head(), str(path))
    assert part in doubt and path.exists()


@pytest.mark.parametrize("nothing", [lambda x: np.zeros_like(x), lambda x: np.array([]).argmax()])
def test_no_brain_at_all_is_refused(answer, tmp_path, nothing):
    answer.set(nothing)
    with pytest.raises(UserError, match="deepbet finds no brain"):
        write_mask(big_head(), str(tmp_path / "7_mask.nii.gz"))


def test_a_doubtful_scan_is_skipped_or_kept(answer, tmp_path):
    for name in ("out", "masks"):
        (tmp_path / name).mkdir()
    path = write_nifti(tmp_path / "I7.nii", head(spacing=BIG))
    job = Job(Volume("7", "NIfTI", (str(path),)), str(tmp_path / "masks/7_mask.nii.gz"), str(tmp_path / "out"), None, PLAIN)
    fine = prepare_scan(job)
    assert fine["strip"] == DEEPBET and "doubt" not in fine and len(fine["slices"]) == 3
    answer.set(with_hole)
    error = prepare_scan(job)["error"]
    assert error.startswith(f"doubtful mask, see {job.mask}: deepbet's mask has holes") and "--keep_doubtful True" in error
    assert not list((tmp_path / "out").iterdir())
    kept = prepare_scan(job._replace(keep_doubtful=True))
    assert "has holes" in kept["doubt"] and len(kept["slices"]) == 3 and kept["mask"] == fine["mask"]  # as the hole was filled


def test_missing_packages_are_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepbet", None)
    volume_strip.network.cache_clear()
    with pytest.raises(UserError, match="^--strip deepbet: pip install deepbet, or give --masks"):
        volume_strip.network()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="^mni152: the brain in nilearn, which is missing: pip install nilearn, or give a NIfTI file"
    ):
        template_file(MNI152)
    assert template_file("brain.nii") == "brain.nii"


@pytest.mark.slow
def test_deepbet_itself_finds_the_brain_in_a_skull_around_the_template(tmp_path):
    pytest.importorskip("deepbet")
    pytest.importorskip("nilearn")
    from scipy import ndimage

    template, brain = load_template(MNI152)
    template, brain = (sitk.ConstantPad(part, [30] * 3, [30] * 3, 0.0) for part in (template, brain))
    inside = array(brain) > 0
    away = ndimage.distance_transform_edt(~inside)  # mm
    voxels = np.select([inside, away <= 3, away <= 9, away <= 15], [array(template), 60, 25, 230], 0)
    voxels += np.abs(np.random.default_rng(0).normal(0, 5, voxels.shape))
    path = str(tmp_path / "mask.nii.gz")
    assert write_mask(like(voxels.astype(np.float32), template), path) == (DEEPBET, None)
    found = array(read_path(path)) > 0
    assert 2 * (found & inside).sum() / (found.sum() + inside.sum()) > 0.95
    assert write_mask(template, path) == (STRIPPED, None)
