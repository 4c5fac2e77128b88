"""phantom_volumes.py: from volumes through the steps of prepare.py back to slices, in every format and orientation."""

# ruff: noqa: E402  (without SimpleITK nothing below can be imported)

import datetime
import io
import itertools
import locale
import pathlib

import numpy as np
import pytest
from conftest import read_image
from PIL import Image

sitk = pytest.importorskip("SimpleITK")
import phantom
import prepare
from data import phantom_anatomy, phantom_volumes, preparation, volume_steps
from data.phantom_anatomy import VIEWS, draw_subject
from data.phantom_volumes import ORIENTATIONS, make_image, variant, write_dicom
from data.volume_steps import Settings, cut_slices
from data.volumes import find_volumes, read_volume
from utils import UserError

SIZE, SPACING = (40, 44, 48), (1.0, 1.1, 1.2)  # of the test volumes, along x, y and z
# Gaussian blobs: centre (mm to the left, backwards, upwards) and height. The largest is on the person's right: the marker.
SIGMA_MM, BLOBS = 4.5, (((-5, 2, 3), 30_000), ((5, -4, -2), 12_000), ((1, 6, -6), 8_000))
AS_STORED = Settings(
    n4=False, resample=0, scale=False, plane="axial", slices=(5, 40), slices_in="index", num_slices=36, format="png"
)
EVERY_WAY = [(kind, *orientation) for kind in ("NIfTI", "DICOM") for orientation in ORIENTATIONS]
NAMES = ["-".join([kind, code, "oblique" if any(turned) else "straight"]) for kind, code, turned in EVERY_WAY]
LEBESGUE = (1 + 3 * 3**0.5) / 4  # of cubic spline interpolation at equidistant points: rounding grows by no more


def brightness(points):
    """The blobs at points [..., 3] (mm)."""
    return sum(height * np.exp(-((points - centre) ** 2).sum(-1) / (2 * SIGMA_MM**2)) for centre, height in BLOBS)


def rotation(degrees):
    """[3, 3]: about y, then x, then z."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    about_x, about_y = [[1, 0, 0], [0, cx, -sx], [0, sx, cx]], [[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]
    return np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ about_x @ about_y


def voxel_points(turned, size=SIZE, spacing=SPACING):
    """Where the voxels [z upwards, y backwards, x to the right] of `make_image` lie: mm to the left, backwards, upwards."""
    right, back, up = ((np.arange(n) - (n - 1) / 2) * side for n, side in zip(size, spacing))
    z, y, x = np.meshgrid(up, back, -right, indexing="ij")
    return np.stack([x, y, z], -1) @ rotation(turned).T


def stored(folder, planes, kind, orientation, turned, spacing=SPACING):
    """The volume of `planes` after it was written as scan 7 below `folder`, found and read."""
    image = make_image(planes, spacing, orientation, turned)
    place = folder / "I7"
    place.mkdir(parents=True)
    sitk.WriteImage(image, str(place / "7.nii.gz")) if kind == "NIfTI" else write_dicom(image, str(place / "7_"))
    (volume,) = find_volumes(str(folder))[0]["7"]
    assert volume.format == kind
    return read_volume(volume)


def scanner_slices(points, side, indices):
    """Points [N, 240, 256, 3] of slices along the scanner's axes, cubes of `side` mm: the person's right is on the right.

    The first voxel lies at the lowest corner of `points`, and the middle of the volume in the middle of a slice.
    """
    corners = points[tuple(np.meshgrid(*[[0, -1]] * 3, indexing="ij"))].reshape(-1, 3)
    low, high = corners.min(0), corners.max(0)
    middle = np.floor((high - low) / side + 1e-3) / 2  # of the voxels' indices along x, y, z
    column, row = (np.arange(n) + np.floor(c - (n - 1) / 2 + 0.5) for n, c in zip((256, 240), middle))
    z, y, x = np.meshgrid(indices, row, column[::-1], indexing="ij")
    return low + side * np.stack([x, y, z], -1)


@pytest.mark.parametrize("kind, orientation, turned", EVERY_WAY, ids=NAMES)
def test_slices_equal_those_of_the_volume_exactly_without_resampling(tmp_path, kind, orientation, turned):
    planes = np.uint16(np.random.default_rng(0).integers(0, 65536, SIZE[::-1]))
    planes[20:30, 10:20, 30:] = 65535  # so that there is a head; on the person's right
    pixels, indices = cut_slices(stored(tmp_path, planes, kind, orientation, turned, (1, 1, 1.2)), AS_STORED)
    assert indices == list(range(5, 41)) and pixels.dtype == np.uint16
    assert (pixels[:, 98:142, 108:148] == planes[5:41]).all()
    assert (np.delete(np.delete(pixels, np.s_[98:142], 1), np.s_[108:148], 2) == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind, orientation, turned", EVERY_WAY, ids=NAMES)
def test_resampled_slices_equal_the_function_that_was_scanned_within_the_error_of_cubic_splines(
    tmp_path, kind, orientation, turned
):
    points = voxel_points(turned)
    image = stored(tmp_path, np.uint16(np.round(brightness(points))), kind, orientation, turned)
    pixels, indices = cut_slices(image, AS_STORED._replace(resample=1.0, slices=(15, 40), num_slices=6))
    wanted = scanner_slices(points, 1.0, indices)
    voxel = np.einsum("...i,ij->...j", wanted, rotation(turned)) / SPACING  # x, y, z around the middle of the volume
    well_inside = (np.abs(voxel) < (np.array(SIZE) - 1) / 2 - 5).all(-1)  # the influence of an edge falls to 0.27 of it a voxel
    # An axis adds at most 5/384 h^4 max|f''''| (Hall and Meyer 1976); for a Gaussian |f''''| <= 3 / sigma^4. What an axis adds or
    # rounding added, the next axis may multiply by LEBESGUE. NIfTI's single precision shifts voxels by less than 1e-5 mm.
    total = sum(height for _, height in BLOBS)
    each = sorted(5 / 384 * side**4 * 3 * total / SIGMA_MM**4 for side in SPACING)
    splines = sum(error * LEBESGUE**i for i, error in enumerate(each))
    bound = splines + 0.5 * LEBESGUE**3 + 0.5 + 1e-5 * total / SIGMA_MM
    assert well_inside.sum() > 2_000 and bound < 0.001 * total
    assert np.abs(pixels - brightness(wanted))[well_inside].max() < bound
    assert pixels[..., 128:].max() > 29_000 > 20_000 > pixels[..., :128].max()  # the marker is on the right


def test_text_is_read_in_the_same_encoding_after_dicom_was_written(tmp_path):
    before = locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(False)
    write_dicom(make_image(np.uint8(np.zeros((20, 20, 20))), (1, 1, 1)), str(tmp_path / "x"))
    assert (locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(False)) == before


def test_every_format_and_orientation_comes_in_turn_in_either_class():
    for parity in (0, 1):
        ways = [variant(subject, 0) for subject in range(parity, 16, 2)]
        assert len(set(ways)) == len(EVERY_WAY) and set(ways) == set(EVERY_WAY)
    assert variant(0, 1) == variant(2, 0) != variant(0, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Phantoms


@pytest.fixture
def small(monkeypatch):
    """Phantoms and slices of 64x60 pixels, four times as wide."""
    for module in (phantom_anatomy, volume_steps):
        monkeypatch.setattr(module, "WIDTH", 64)
        monkeypatch.setattr(module, "HEIGHT", 60)
    monkeypatch.setattr(phantom_anatomy, "CENTRE_ROW", 26)
    monkeypatch.setattr(phantom_anatomy, "CENTRE_COLUMN", 30)
    for name, view in VIEWS.items():
        monkeypatch.setitem(VIEWS, name, view._replace(pixel_mm=4 * view.pixel_mm))


def make_folders(folder):
    for split, label in itertools.product(phantom.SPLITS, phantom.CLASSES):
        (folder / split / label).mkdir(parents=True)
    return str(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).rglob("*.jpeg")}


def write_subject(folder, view, write_volume=None):
    """Write subject 3 of four, with two scans, below `folder`."""
    settings = phantom.Settings(4, 0, scans=2, view=view)
    make_folders(folder)
    phantom.write_subject(str(folder), settings, 3, phantom.plan_scans(settings)[3], write_volume)


def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.mark.slow
def test_prepare_cuts_volumes_in_every_plane_to_the_bytes_of_slices_cut_directly(tmp_path, small, monkeypatch):
    """Voxels [z upwards, y backwards, x to the right] cut by hand, against prepare.py with flags that leave them as they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preparation, "run_jobs", lambda jobs, _, work: (work(job) for job in jobs))
    params, places = draw_subject(np.random.default_rng(0), "AD"), 4.0 * np.arange(-22, 24)  # mm
    sagittal = [phantom.render(params, phantom.slice_tissue(params, x), x, np.random.default_rng(0)) for x in places]
    voxels, _ = phantom.volume_of(np.stack(sagittal), "sagittal")  # [64, 60, 46]
    for subject in (0, 6):
        phantom_volumes.write_scan(".", voxels, (4.0, 4.0, 4.0), subject, 0, subject, "F", datetime.date(2010, 1, 1))
    assert [volume.format for (volume,) in find_volumes("volumes")[0].values()] == ["NIfTI", "DICOM"]  # the latter is oblique
    (tmp_path / "table.csv").write_text("image,subject,group\n0,ann,AD\n6,bob,AD\n")
    cuts = {
        "sagittal": lambda i: sagittal[i],  # as it was drawn: front below, top of the head on the right
        "axial": lambda i: np.pad(voxels[i], ((0, 0), (9, 9))),
        "coronal": lambda i: np.pad(voxels[::-1, i][2:62], ((0, 0), (9, 9))),
    }
    for plane, first, last in (("sagittal", 14, 31), ("axial", 20, 45), ("coronal", 15, 45)):
        flags = f"--volumes volumes --masks masks --subjects table.csv --output_dir {plane} --plane {plane} --n4 False --resample 0"
        flags += f" --slices_in index --slices {first} {last} --num_slices {last - first + 1} --scale False"
        assert prepare.main([*flags.split(), "--test_share", "0", "--pictures", "0"]) == 0
        assert contents(plane) == {f"{n}_{i}.jpeg": jpeg(cuts[plane](i)) for n in (0, 6) for i in range(first, last + 1)}


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_volumes_of_a_phantom_hold_its_slices(tmp_path, small, view):
    """Sagittal ones with the front below and the top of the head on the right, numbered to the person's right; as good as JPEG."""
    write_subject(tmp_path / "with", view, phantom_volumes.write_scan)
    write_subject(tmp_path / "without", view)
    own = contents(tmp_path / "without")
    assert contents(tmp_path / "with") == own  # drawing volumes takes no random number from what the slices are drawn with
    for number, (volume,) in find_volumes(f"{tmp_path}/with/volumes")[0].items():
        image = read_volume(volume)
        slices = {int(name[7:].removesuffix(".jpeg")): name for name in own if name.startswith(f"00000{number}_")}
        voxels = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))  # [z upwards, y backwards, x to the left]
        assert len(slices) == 20 and voxels.shape[0 if view == "axial" else 2] == VIEWS[view].volume_slices
        for index, name in slices.items():
            stored_slice = read_image(next((tmp_path / "without").rglob(name)))
            cut = voxels[index][:, ::-1] if view == "axial" else voxels[:, ::-1, ::-1][:, :, index].T
            assert np.abs(cut.astype(float) - stored_slice).mean() < 3


@pytest.mark.parametrize("flag", ["True", "False"])
def test_the_command_writes_volumes_if_it_is_asked_to(tmp_path, monkeypatch, flag):
    def write_subject(folder, settings, subject, scans, write_volume):
        if write_volume:
            write_volume(folder, np.full((20, 20, 20), 9, np.uint8), (1, 1, 1), subject, 0, subject, "F", scans[0].date)
        row = {"seed": settings.seed, "subject": subject, "view": settings.view, "traps": "", "disease": settings.disease}
        return [row] * phantom.SLICES

    monkeypatch.setattr(phantom, "write_subject", write_subject)
    argv = [str(tmp_path / "out"), "--subjects", "4", "--num_workers", "1", "--volumes"]
    phantom.main([*argv, flag])
    masks = [path.name[-15:-12] for path in sorted(tmp_path.rglob("*_mask.nii.gz"))]
    assert masks == (["000", "001", "002", "003"] if flag == "True" else [])
    phantom.main([*argv, flag])  # there already
    with pytest.raises(UserError, match="phantoms of other flags"):
        phantom.main([*argv, "False" if flag == "True" else "True"])


@pytest.mark.parametrize("subject", [1, 7])  # NIfTI as it is, DICOM oblique
def test_the_mask_of_a_phantom_is_its_brain_inside_which_the_percentiles_are_taken(tmp_path, subject):
    planes = np.zeros((30, 24, 24), np.uint8)
    planes[5:25, 4:20, 6:15] = np.random.default_rng(0).integers(1, 256, (20, 16, 9))
    phantom_volumes.write_scan(str(tmp_path), planes, (1, 1, 1.5), subject, 0, 12, "F", datetime.date(2010, 1, 1))
    (volume,) = find_volumes(str(tmp_path / "volumes"))[0]["12"]
    (mask,) = (tmp_path / "masks").iterdir()
    assert mask.name == f"000_S_{subject:04d}_I000012_mask.nii.gz"
    settings = AS_STORED._replace(scale=True, percentiles=(10, 90), slices=(5, 24), num_slices=20)
    pixels, _ = cut_slices(read_volume(volume), settings, str(mask))
    low, high = np.percentile(planes[planes > 0], (10, 90))
    expected = 65535 * np.clip((planes[5:25].astype(float) - low) / (high - low), 0, 1)
    # Half a grey level is lost in rounding, and single precision has 24 bits.
    assert np.abs(pixels[:, 108:132, 116:140] - expected).max() < 0.5 + 65535 * 2.0**-22
