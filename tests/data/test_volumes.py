"""Finding the scans of a download and reading them: positions against files written byte by byte, and every refusal."""

import gzip
import os
import re
import shutil
import struct

import numpy as np
import pytest

sitk = pytest.importorskip("SimpleITK")

from synthetic_volumes import head, write_dicom, write_enhanced, write_nifti  # noqa: E402

from data.dicom import LEFT_OUT, check_spacing  # noqa: E402
from data.phantom_volumes import same_locale  # noqa: E402
from data.volumes import Volume, find_volumes, image_id, read_path, read_volume  # noqa: E402
from utils import UserError  # noqa: E402


def read(path):
    """What `read_volume` makes of a NIfTI file or a folder of DICOM files."""
    if os.path.isdir(path):
        return read_volume(Volume("1", "DICOM", tuple(sorted(str(file) for file in path.iterdir()))))
    return read_path(str(path))


def refused(path):
    with pytest.raises(UserError) as error:
        read(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def nifti_bytes(voxels, affine, qform=0, sform=1, dims=None):
    """A NIfTI-1 file by its specification: float32 [x, y, z], and the affine (mm, RAS) from indices to positions."""
    dims = dims or voxels.shape
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(dims), *dims, *[1] * (7 - len(dims)))
    struct.pack_into("<2h", header, 70, 16, 32)  # float32
    struct.pack_into("<8f", header, 76, 1, *np.linalg.norm(affine[:3, :3], axis=0), 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    struct.pack_into("<f", header, 112, 1)
    header[123] = 2  # mm
    struct.pack_into("<2h", header, 252, qform, sform)
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header) + voxels.astype("<f4").tobytes(order="F")


def oblique_affine():
    a, b = 0.3, -0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.0, 1.5, 2.0])
    affine[:3, 3] = -11, 7, 30
    return affine


def random_voxels(*shape):
    return np.random.default_rng(0).normal(100, 10, shape).astype("f4")


# ---------------------------------------------------------------------------------------------------------------------
# Finding


@pytest.mark.parametrize(
    "path, is_dicom, image",
    [
        ("037_S_4001/MPRAGE/2011-03-05_08_00_00.0/I218391/ADNI_037_S_4001_MR_MPRAGE_br_raw_1_S104020_I218391.dcm", True, "218391"),
        ("037_S_4001/MPRAGE/2011/I218391/I10.dcm", True, "218391"),
        ("037_S_4001/MPRAGE/2011/S104020/ADNI_037_S_4001_S104020_I218391.dcm", True, "218391"),
        ("218391/0001.dcm", True, "218391"),
        ("series/0001.dcm", True, None),
        ("0001.dcm", True, None),
        ("037_S_4001/ADNI_037_S_4001_MR_MPR__GradWarp__B1_Correction_N3_Br_20110101_S104020_I218391.nii", False, "218391"),
        ("I00218391.nii.gz", False, "218391"),
        ("218391.nii.gz", False, "218391"),
        ("218391_brain.NII", False, "218391"),
        ("I218391/T1w.nii", False, "218391"),
        ("I218391/ADNI_I218393.nii", False, "218393"),
        ("037_S_4001.nii", False, None),
        ("sub-037S4001/ses-M00/anat/sub-037S4001_ses-M00_run-1_T1w.nii.gz", False, "sub-037S4001_ses-M00_run-1_T1w"),
        (
            "subjects/sub-ADNI037S4001/ses-M000/t1_linear/sub-ADNI037S4001_ses-M000_desc-Crop_res-1x1x1_T1w.nii.gz",
            False,
            "sub-ADNI037S4001_ses-M000_desc-Crop_res-1x1x1_T1w",
        ),
        ("sub-01_T1w_mask.nii.gz", False, "sub-01_T1w"),
        ("sub-01/I218391/sub-01_T1w.nii", False, "218391"),
        ("sub-01/func/sub-01_task-rest_bold.nii.gz", False, None),
        ("sub-01_T1wx.nii", False, None),
        ("MNI152.nii", False, None),
        ("I0.nii", False, "0"),
    ],
)
def test_image_id_is_found_in_files_and_folders(path, is_dicom, image):
    assert image_id(path, is_dicom) == image


def test_find_volumes_groups_files_into_scans(tmp_path):
    write_dicom(tmp_path / "a" / "I1", head(), keep=range(3))
    write_dicom(tmp_path / "b" / "I1" / "again", head(), keep=range(2))
    write_dicom(tmp_path / "both", head(), names="x_I2_{}.dcm", keep=range(2))
    for path in write_dicom(tmp_path / "both" / "x", head(), names="x_I3_{}.dcm", keep=range(2)).iterdir():
        path.rename(tmp_path / "both" / path.stem)  # DICOM without its extension
    for name in ("I4.nii", "c/I4.nii.gz", "nameless.nii", ".hidden/I5.nii"):
        write_nifti(tmp_path / name, head())
    (tmp_path / "I4.nii").with_name(".I6.nii").write_bytes(b"")
    (tmp_path / "a" / "I1" / "report.xml").write_text("x" * 200)
    (tmp_path / "a" / "I1" / "notes").write_text("x" * 200)
    found, nameless = find_volumes(str(tmp_path))
    counts = {image: [(volume.format, len(volume.files)) for volume in there] for image, there in found.items()}
    assert counts == {
        "1": [("DICOM", 3), ("DICOM", 2)],
        "2": [("DICOM", 2)],
        "3": [("DICOM", 2)],
        "4": [("NIfTI", 1), ("NIfTI", 1)],
    }
    assert nameless == [str(tmp_path / "nameless.nii")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_of_bids_the_scan_itself_is_read_and_no_derivative(tmp_path):
    places = "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w_brain.nii.gz", "sub-02/anat/sub-02_T1w_brain.nii.gz"
    for place in (*places, "derivatives/x/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", "sub-01/func/sub-01_bold.nii.gz"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"")
    found, nameless = find_volumes(str(tmp_path))
    paths = {image: [os.path.relpath(volume.place, tmp_path) for volume in there] for image, there in found.items()}
    assert paths == {"sub-01_T1w": [places[0]], "sub-02_T1w": [places[2]]}
    assert nameless == [str(tmp_path / "sub-01/func/sub-01_bold.nii.gz")]


def test_find_volumes_follows_links_once_and_never_opens_a_pipe(tmp_path):
    write_nifti(tmp_path / "elsewhere" / "I1.nii", head())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "data")
    os.mkfifo(tmp_path / "data" / "I2.nii")
    os.mkfifo(tmp_path / "data" / "I3.dcm")
    found, nameless = find_volumes(str(tmp_path / "data"))
    assert list(found) == ["1"] and len(found["1"]) == 1 and nameless == []


def test_checksum_is_of_all_files_and_the_stamp_changes_with_their_times_sizes_and_names(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"de")
    volume = Volume("1", "DICOM", (str(tmp_path / "a"), str(tmp_path / "b")))
    assert volume.place == str(tmp_path)
    assert volume.checksum() == "36bbe50ed96841d10443bcb670d6554f0a34b761be67ec9c4a8ad2c0c44ca42c"  # sha256sum of abcde
    before = volume.stamp()
    assert volume.stamp() == before
    os.utime(tmp_path / "a", ns=(0, 10**18))
    assert (later := volume.stamp()) != before
    (tmp_path / "c").write_bytes(b"ab")
    assert volume._replace(files=(str(tmp_path / "c"), volume.files[1])).stamp() not in (before, later)


# ---------------------------------------------------------------------------------------------------------------------
# NIfTI


@pytest.mark.parametrize("affine", [np.diag([-2.0, 2, 2, 1]), np.diag([2.0, 2, 2, 1]), oblique_affine()])
def test_nifti_voxels_lie_where_the_affine_puts_them(tmp_path, affine):
    voxels = random_voxels(20, 22, 24)
    (tmp_path / "x.nii").write_bytes(nifti_bytes(voxels, affine))
    image = read(tmp_path / "x.nii")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels.transpose(2, 1, 0))
    for index in ((0, 0, 0), (3, 5, 7), (19, 21, 23)):
        position = affine @ [*index, 1]
        there = image.TransformIndexToPhysicalPoint(index)  # LPS: x and y the other way round
        np.testing.assert_allclose(there, position[:3] * [-1, -1, 1], atol=1e-3)  # the header has float32


def test_voxels_that_are_not_finite_are_0(tmp_path):
    voxels = random_voxels(20, 20, 20)
    voxels[:3], voxels[7, 8, 9] = np.nan, np.inf
    (tmp_path / "x.nii").write_bytes(nifti_bytes(voxels, np.eye(4)))
    expected = np.where(np.isfinite(voxels), voxels, 0).transpose(2, 1, 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(tmp_path / "x.nii")), expected)


def test_a_4d_file_of_one_volume_is_read(tmp_path):
    voxels = random_voxels(20, 20, 20)
    (tmp_path / "x.nii").write_bytes(nifti_bytes(voxels, np.eye(4), dims=(20, 20, 20, 1)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(tmp_path / "x.nii")), voxels.transpose(2, 1, 0))


@pytest.mark.parametrize(
    "content, part",
    [
        (nifti_bytes(random_voxels(20, 20, 40), np.eye(4), dims=(20, 20, 20, 2)), "4-D series of 2 volumes"),
        (nifti_bytes(random_voxels(20, 20, 3), np.eye(4)), "a localiser or a part of a scan, with 20 x 20 x 3 voxels"),
        (nifti_bytes(random_voxels(20, 20), np.eye(4)), "with 20 x 20 x 1 voxels"),
        (nifti_bytes(random_voxels(20, 20, 20), np.eye(4), sform=0), "no orientation"),
        (nifti_bytes(np.full((20, 20, 20), np.nan), np.eye(4)), "every voxel is 0"),
        (nifti_bytes(random_voxels(20, 20, 20), np.eye(4))[:-4], "cut off, or not what its header says: 32348 bytes, but the"),
        (nifti_bytes(random_voxels(20, 20, 20), np.eye(4))[:300], "cannot be read"),
        (nifti_bytes(random_voxels(2), np.eye(4), dims=(1000, 1000, 1000)), "1000 x 1000 x 1000 voxels are more than"),
        (b"", "cannot be read"),
    ],
)
def test_nifti_files_that_are_no_whole_scan_are_refused(tmp_path, content, part):
    (tmp_path / "x.nii").write_bytes(content)
    assert part in refused(tmp_path / "x.nii")


@pytest.mark.parametrize("change", [gzip.decompress, lambda packed: packed[:-2000]])
def test_what_is_not_gzipped_or_cut_off_within_is_refused(tmp_path, change):
    (tmp_path / "x.nii.gz").write_bytes(change(gzip.compress(patched())))
    assert "damaged, or not gzipped" in refused(tmp_path / "x.nii.gz")


def patched(*patches, affine=None):
    """A NIfTI file whose qform and sform agree, after (offset, format, values) were written into its header."""
    content = bytearray(nifti_bytes(random_voxels(20, 20, 20), np.diag([2.0, 2, 2, 1]) if affine is None else affine, qform=1))
    for offset, form, *values in patches:
        struct.pack_into(f"<{form}", content, offset, *values)
    return bytes(content)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "content, part",
    [
        (patched((80, "f", 0.0)), "voxels of 0 x 2 x 2 mm (pixdim)"),
        (patched((80, "f", -2.0)), "voxels of -2 x 2 x 2 mm (pixdim)"),
        (patched((84, "f", NAN)), "voxels of 2 x nan x 2 mm (pixdim)"),
        (patched((88, "f", INF)), "voxels of 2 x 2 x inf mm (pixdim)"),
        (patched((80, "3f", 1, 1, 1), (252, "h", 0)), "voxels of 1 x 1 x 1 mm (pixdim) and of 2 x 2 x 2 mm (sform)"),
        (patched((280, "f", -2.0)), "qform and sform are mirrored"),
        (patched((292, "f", 30.0)), "qform and sform put voxels 30 mm apart"),
        (patched((292, "f", NAN)), "a sform that is no transform"),
        (patched((280, "12f", *[0] * 12)), "a sform that is no transform"),
        (patched((252, "h", 0), (280, "12f", 2, 0.5, 0, 0, 0, (4 - 0.25) ** 0.5, 0, 0, 0, 0, 2, 0)), "sheared"),
        (patched((256, "3f", 1, 1, 1)), "the quaternion of its qform is no rotation"),
        (patched((268, "f", NAN)), "a qform that is no transform"),
        (
            nifti_bytes(random_voxels(20, 20, 40), np.eye(4), dims=(20, 20, 20)),
            "64352 bytes, but the 20 x 20 x 20 voxels of its header end at 32352",
        ),
        (patched((42, "h", -20)), "3 dimensions, -20 x 20 x 20 voxels"),
        (patched((40, "h", 9)), "9 dimensions"),
        (patched((40, "h", 0)), "0 dimensions"),
        (patched((72, "h", 8)), "32352 bytes, but the 20 x 20 x 20 voxels of its header end at 8352"),
        (patched((108, "f", 0.0)), "voxels begin at byte 0"),
        (patched((70, "2h", 32, 64)), "several values a voxel"),
        (patched((344, "4s", b"\0\0\0\0")), "an Analyze file does not tell left from right"),
        (b"<html>" + bytes(400), r"it begins with '<html>"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it begins with 'version http', not as a NIfTI-1 file does"),
        (gzip.compress(gzip.compress(patched())), "not as a NIfTI-1 file does"),
    ],
)
def test_nifti_headers_that_contradict_themselves_are_refused(tmp_path, content, part):
    (tmp_path / "x.nii").write_bytes(content)
    assert part in refused(tmp_path / "x.nii")


def in_two_spaces(qform, sform, motion, shift=0.0):
    """A NIfTI file with voxels of 2 mm whose qform is diagonal and whose sform, in another space, comes from it by `motion`."""
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3] = np.column_stack([np.array(motion) @ affine[:3, :3], [shift] * 3])
    return patched((252, "2h", qform, sform), (280, "12f", *affine[:3].ravel()))


TILT = [[1, 0, 0], [0, 0.9, -(0.19**0.5)], [0, 0.19**0.5, 0.9]]  # by 26 degrees


@pytest.mark.parametrize("codes", [(1, 2), (1, 3), (1, 4), (2, 4), (2, 1)])
@pytest.mark.parametrize("motion, shift", [(np.eye(3), 40), (TILT, 0), (np.diag([1.1, 1.15, 1.3]) + 0.04, 9)])
def test_qform_and_sform_of_different_spaces_may_differ_and_the_scanners_counts(tmp_path, codes, motion, shift):
    """As after registration by SPM, or of an atlas; ITK takes the sform if it is the scanner's, and only rigid ones of these."""
    (tmp_path / "x.nii").write_bytes(in_two_spaces(*codes, motion, shift))
    if codes[1] == 1 and not np.allclose(np.transpose(motion) @ motion, np.eye(3)):
        assert "sheared" in refused(tmp_path / "x.nii")
        return
    image = read(tmp_path / "x.nii")
    expected = np.column_stack([motion, [shift] * 3]) if codes[1] == 1 else np.eye(3, 4)
    np.testing.assert_allclose(image.GetOrigin(), expected[:, 3] * [-1, -1, 1], atol=1e-4)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), np.diag([-1, -1, 1]) @ expected[:, :3], atol=1e-4)


@pytest.mark.parametrize(
    "codes, motion, part",
    [
        ((1, 2), np.diag([-1, 1, 1]), "qform and sform are mirrored"),
        ((1, 4), np.diag([-1.1, 1, 1]), "qform and sform are mirrored"),
        ((2, 2), TILT, "qform and sform put voxels"),
    ],
)
def test_qform_and_sform_that_cannot_be_of_one_head_are_refused(tmp_path, codes, motion, part):
    (tmp_path / "x.nii").write_bytes(in_two_spaces(*codes, motion))
    assert part in refused(tmp_path / "x.nii")


@pytest.mark.parametrize("patches", [(), [(252, "h", 0)], [(254, "h", 0)], [(112, "2f", NAN, NAN)], [(108, "f", 352.0)]])
def test_nifti_headers_that_agree_are_read(tmp_path, patches):
    (tmp_path / "x.nii").write_bytes(patched(*patches) + bytes(100))
    image = read(tmp_path / "x.nii")
    assert image.GetSize() == (20, 20, 20) and image.GetSpacing() == (2, 2, 2)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), random_voxels(20, 20, 20).transpose(2, 1, 0))


@pytest.mark.parametrize("name, pack", [("X.NII", bytes), ("x.nii.gz", gzip.compress), ("X.NII.GZ", gzip.compress)])
def test_nifti_files_may_be_compressed(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(patched()))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(tmp_path / name)), random_voxels(20, 20, 20).transpose(2, 1, 0))


@pytest.mark.parametrize(
    "name, part",
    [
        ("I1/mri/T1.mgz", "not read as it is; convert it to NIfTI .mri_convert"),
        ("I1.nrrd", "need not tell left from right"),
        ("I1+orig.HEAD", "3dAFNItoNIFTI"),
        ("I1.nii.bz2", "unpack it"),
        ("I1.hdr", "convert the pair"),
    ],
)
def test_formats_that_are_not_read_are_named_unless_the_scan_is_there_in_another(tmp_path, name, part):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(500))
    (volume,) = find_volumes(str(tmp_path))[0]["1"]
    with pytest.raises(UserError, match=part):
        read_volume(volume)
    write_nifti(tmp_path / "I1_converted.nii", head())
    (volume,) = find_volumes(str(tmp_path))[0]["1"]
    assert volume.format == "NIfTI"


def test_archives_without_an_id_are_named_only_where_there_is_nothing_else(tmp_path):
    (tmp_path / "ADNI_download.zip").write_bytes(bytes(500))
    with pytest.raises(UserError, match="neither NIfTI .*; unpack .*ADNI_download.zip first"):
        find_volumes(str(tmp_path))
    write_nifti(tmp_path / "I1.nii", head())
    assert find_volumes(str(tmp_path))[1] == []


# ---------------------------------------------------------------------------------------------------------------------
# DICOM


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A series in a sagittal, oblique orientation."""
    image = sitk.DICOMOrient(head(), "PIR")[2:, :, 5:30]  # 38 x 40 x 25 voxels
    a = 0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    image.SetDirection((turn @ np.reshape(image.GetDirection(), (3, 3))).ravel().tolist())
    image.SetSpacing((1.25, 1.5, 3.0))
    return image, write_dicom(tmp_path_factory.mktemp("series") / "I7", image)


def copied(series, tmp_path):
    return shutil.copytree(series[1], tmp_path / "I7")


def test_dicom_series_is_read_with_its_position_whatever_its_files_are_called(series, tmp_path):
    folder = copied(series, tmp_path)
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{i * 7 % 25:03}.ima")
    image, original = read(folder), series[0]
    step = np.argmax(np.abs(np.reshape(image.GetDirection(), (3, 3)).T @ np.reshape(original.GetDirection(), (3, 3))), axis=1)
    assert step.tolist() == [0, 1, 2]
    for index in ((0, 0, 0), (5, 11, 17), (37, 39, 24)):
        there = original.TransformIndexToPhysicalPoint(index)
        same = image.TransformPhysicalPointToIndex(there)
        assert image[same] == original[index]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(same), there, atol=1e-3)  # mm; headers have 6 digits


@pytest.mark.parametrize(
    "options, part",
    [
        ({"t0008_103e": "3 Plane Localizer"}, "a localiser (3 Plane Localizer)"),
        ({"t0008_103e": "AAHScout_MPR"}, "a localiser (AAHScout_MPR)"),
        ({"t0008_0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "a localiser"),
        ({"keep": range(3, 25)}, "3 missing slices: 22 files, Instance Numbers up to 25"),
        ({"t0020_0032": "0\\0\\0"}, "a 4-D series, several echoes, or a slice twice: 25 files at 1 positions; keep one"),
        ({"keep": [*range(10), *range(12, 25)]}, "2 missing slices: gaps up to 9 mm, others 3 mm"),
        ({"keep": range(12)}, "a localiser or a part of a scan, with 38 x 40 x 12 voxels"),
    ],
)
def test_dicom_series_that_are_no_whole_scan_are_refused(series, tmp_path, options, part):
    assert part in refused(write_dicom(tmp_path / "x", series[0], **options))


def replaced(folder, old, new):
    """Replace bytes, once, in every DICOM file of a folder by as many others."""
    assert len(old) == len(new)
    for path in folder.iterdir():
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))
    return folder


@pytest.mark.parametrize(
    "old, new, part",
    [
        (b"\x20\0\x32\0", b"\x21\0\x32\0", "no orientation"),  # no Image Position: an unknown tag in its place
        (b"\x20\0\x37\0", b"\x21\0\x37\0", "no orientation"),
        (b"\x28\0\x30\0", b"\x29\0\x30\0", "no Pixel Spacing (missing), so sizes would be a guess"),
        (b"1.5\\1.25", b"0.0\\1.25", "no Pixel Spacing (0.0\\1.25)"),
        (b"MONOCHROME2", b"MONOCHROME1", "inverted (MONOCHROME1)"),
    ],
)
def test_dicom_without_what_tells_places_and_grey_levels_is_refused(series, tmp_path, old, new, part):
    assert part in refused(replaced(copied(series, tmp_path), old, new))


def test_dicom_with_directions_that_are_not_perpendicular_is_refused(series, tmp_path):
    folder = copied(series, tmp_path)
    for path in folder.iterdir():
        content = path.read_bytes()
        at = content.index(b"\x20\0\x37\0") + 8  # behind the tag and the length of its value
        length = int.from_bytes(content[at - 4 : at], "little")
        path.write_bytes(content[:at] + b"1\\0\\0\\1\\0\\0".ljust(length) + content[at + length :])
    assert "no orientation" in refused(folder)


@pytest.mark.parametrize(
    "other, options, part",
    [
        (lambda image: sitk.DICOMOrient(head(), "LPS"), {}, "several directions"),
        (lambda image: image[:30], {}, "several sizes"),
        (lambda image: image, {"t0010_0020": "000_S_0009", "t0020_000e": "1.9"}, "files of 2 people are mixed"),
    ],
)
def test_files_that_cannot_be_told_apart_are_refused(series, tmp_path, other, options, part):
    names = {"names": "b{}.dcm", "keep": range(2), "t0008_0018": "1.7"}
    assert part in refused(write_dicom(copied(series, tmp_path), other(series[0]), **names, **options))


def test_dicom_in_colour_or_of_another_modality_is_refused(series, tmp_path):
    colour = sitk.Compose([sitk.Cast(series[0], sitk.sitkUInt8)] * 3)
    assert "in colour, or inverted (RGB)" in refused(write_dicom(tmp_path / "colour", colour))
    assert "its modality is PT, not MR" in refused(write_dicom(tmp_path / "pet", series[0], t0008_0060="PT"))


@pytest.mark.parametrize("options", [{"t0020_0013": "1"}, {"t0020_0013": None}, {"t0008_103e": "MPRAGE after loc"}])
def test_dicom_series_that_are_whole_by_their_headers_are_read(series, tmp_path, options):
    image = read(write_dicom(tmp_path / "x", series[0], **options))
    assert image.GetSize()[2] == 25 and not image.HasMetaDataKey(LEFT_OUT)


def test_instance_numbers_may_begin_anywhere_but_a_slice_is_there_once(series, tmp_path):
    for i in range(25):
        write_dicom(tmp_path / "x", series[0], keep=[i], t0020_0013=str(1001 + i))
    assert read(tmp_path / "x").GetSize()[2] == 25
    write_dicom(tmp_path / "x", series[0], names="again{}.dcm", keep=[4], t0008_0018="1.7", t0020_0013="2000")
    assert "a slice twice: 26 files at 25 positions" in refused(tmp_path / "x")


def test_a_dicomdir_is_no_slice(series, tmp_path):
    (copied(series, tmp_path) / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(300))
    (volume,) = find_volumes(str(tmp_path))[0]["7"]
    assert read_volume(volume).GetSize()[2] == 25


def report():
    """A DICOM file of the class Basic Text SR, explicit little endian, without pixels."""

    def element(group, number, kind, value):
        value += b"\0" * (len(value) % 2)
        return struct.pack("<2H2sH", group, number, kind, len(value)) + value

    sr = b"1.2.840.10008.5.1.4.1.1.88.11"
    meta = element(2, 2, b"UI", sr) + element(2, 3, b"UI", b"1.2.3") + element(2, 16, b"UI", b"1.2.840.10008.1.2.1")
    length = struct.pack("<2H2sHI", 2, 0, b"UL", 4, len(meta))
    return bytes(128) + b"DICM" + length + meta + element(8, 0x16, b"UI", sr) + element(8, 0x60, b"CS", b"SR")


def test_the_scan_is_read_beside_localisers_captures_reports_and_copies_which_are_named(series, tmp_path):
    folder = copied(series, tmp_path)
    expected = sitk.GetArrayFromImage(read(folder))
    (folder / "report.dcm").write_bytes(report())
    write_dicom(folder, series[0], names="loc{}.dcm", keep=range(3), t0020_000e="1.8", t0008_103e="localizer")
    capture = sitk.Compose([sitk.Cast(series[0], sitk.sitkUInt8)] * 3)
    write_dicom(folder, capture, names="zz{}.dcm", keep=[0], t0020_000e="1.9", t0008_103e="screen", t0008_0060="OT")
    for path in list(folder.glob("01*.dcm")):
        shutil.copy(path, folder / f"{path.stem} (1).dcm")
    image = read(folder)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)
    assert image.GetMetaData(LEFT_OUT) == (
        "10 repeated files; localizer, 3 files (a localiser (localizer)); report.dcm (no image); "
        "screen, 1 file (its modality is OT, not MR)"
    )


def test_of_several_whole_series_the_original_t1_scan_of_most_voxels_is_read(series, tmp_path):
    image = series[0]
    folder = write_dicom(tmp_path / "x", image, names="a{}.dcm", t0020_000e="1.1", t0008_103e="FLAIR")
    write_dicom(folder, image[:, :, :22] + 1, names="b{}.dcm", t0020_000e="1.2")
    write_dicom(folder, image[:, :, :23] + 2, names="c{}.dcm", t0020_000e="1.3", t0008_103e="IR-SPGR")
    write_dicom(folder, image + 3, names="d{}.dcm", t0020_000e="1.4", t0008_0008="DERIVED\\SECONDARY\\MPR")
    found = read(folder)
    assert found.GetSize()[2] == 23 and found.GetMetaData(LEFT_OUT).count("another series") == 3
    expected = sitk.GetArrayFromImage(image[:, :, :23]) + 2
    assert sorted(sitk.GetArrayFromImage(found).ravel()) == sorted(expected.ravel())


def test_where_no_series_is_whole_the_reason_is_that_of_the_one_with_most_files(series, tmp_path):
    folder = write_dicom(tmp_path / "x", series[0], keep=[*range(10), *range(12, 25)])
    write_dicom(folder, series[0], names="0{}.dcm", keep=range(3), t0020_000e="1.8", t0008_103e="localizer")
    assert "2 missing slices: gaps up to 9 mm" in refused(folder)
    for path in folder.iterdir():
        path.write_bytes(report())
    assert "no file holds an image" in refused(folder)


def test_a_sheared_series_is_refused(series, tmp_path):
    image = series[0]
    folder = tmp_path / "tilted"
    for i in range(image.GetDepth()):
        position = np.array(image.TransformIndexToPhysicalPoint((0, 0, i))) + [0, 0, 0.4 * i]  # along the rows: 8 degrees
        write_dicom(folder, image, keep=[i], t0020_0032="\\".join(map(str, position)))
    assert "sheared" in refused(folder)


def test_damaged_dicom_files_are_refused(series, tmp_path):
    folder = copied(series, tmp_path)
    path = folder / "007.dcm"
    whole = path.read_bytes()
    for content in (b"", whole[:200], bytes(132) + b"DICM" + bytes(100), whole[:-1000]):
        path.write_bytes(content)
        assert "007.dcm: damaged" in refused(folder)


@pytest.mark.parametrize("order", [None, range(24, -1, -1), np.random.default_rng(0).permutation(25).tolist()])
def test_frames_of_an_enhanced_file_lie_where_their_own_positions_say(series, tmp_path, order):
    image, original = read(write_enhanced(tmp_path / "I7" / "1.dcm", series[0], order)), series[0]
    for index in ((0, 0, 0), (5, 11, 17), (37, 39, 24)):
        there = original.TransformIndexToPhysicalPoint(index)
        same = image.TransformPhysicalPointToIndex(there)
        assert image[same] == original[index]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(same), there, atol=1e-3)  # mm; headers have 6 digits


def test_enhanced_files_that_are_not_plain_are_refused_and_dcm2niix_named(series, tmp_path):
    place = tmp_path / "I7" / "1.dcm"
    assert "2 missing slices" in refused(write_enhanced(place, series[0], [*range(10), *range(12, 25)]))
    assert "a 4-D series" in refused(write_enhanced(place, series[0], [*range(25), *range(25)]))
    assert "grey levels of their own; convert it" in refused(write_enhanced(place, series[0], slopes=("1", "2")))
    folder = write_enhanced(place, series[0])
    place.write_bytes(place.read_bytes().replace(b"\x20\0\x32\0DS", b"\x20\0\x33\0DS", 1))  # a position is lost
    assert "where its frames lie; convert it to NIfTI, such as with dcm2niix" in refused(folder)
    write_enhanced(place, series[0])
    other = write_enhanced(tmp_path / "b" / "2.dcm", series[0], range(5)) / "2.dcm"
    (folder / "2.dcm").write_bytes(other.read_bytes().replace(b"1.2.3.4.1", b"1.2.3.4.2"))
    assert "several multi-frame DICOM files" in refused(folder)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_losslessly_compressed_series_are_read_and_other_compressions_named(series, tmp_path, compressor):
    folder = copied(series, tmp_path)
    plain = sitk.GetArrayFromImage(read(folder))
    for path in folder.iterdir():
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetUseCompression(True)
        writer.SetCompressor(compressor)
        writer.SetFileName(str(path))
        with same_locale():
            writer.Execute(sitk.ReadImage(str(path), sitk.sitkUInt16))
        assert b"1.2.840.10008.1.2.4." in path.read_bytes()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(folder)), plain)
    for path in folder.iterdir():
        path.write_bytes(re.sub(rb"(1\.2\.840\.10008\.1\.2\.4\.)[0-9]+", rb"\g<1>99", path.read_bytes()))
    assert "a compression that is not read (1.2.840.10008.1.2.4.99); convert it to NIfTI" in refused(folder)


def test_check_spacing_returns_the_mean_distance_and_refuses_gaps():
    assert check_spacing(np.arange(30) * 1.2 + 5) == pytest.approx(1.2)
    for heights, part in (
        ([0, 1, 2, 4, 5], "1 missing slice: gaps up to 2 mm, others 1 mm"),
        ([0, 1, 1, 2], "4 files at 3 positions"),
        ([0, 1, 2, 3.3, 4.3], "unevenly spaced, 1 to 1.3 mm"),
        ([7], "a single slice"),
    ):
        with pytest.raises(UserError, match=part):
            check_spacing(np.array(heights, float))
