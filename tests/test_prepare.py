"""prepare.py as a command: what it writes, how it resumes, whom it leaves out, what it refuses, and what kills do to it."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, make_once, read_image, refusal

sitk = pytest.importorskip("SimpleITK")
pytestmark = pytest.mark.slow  # each runs the command, most of them twice

from synthetic_volumes import head, write_dicom, write_download, write_nifti  # noqa: E402

import prepare  # noqa: E402
from data import preparation, volume_jobs, volume_strip  # noqa: E402
from data.subjects import identify, read_subjects  # noqa: E402
from data.volumes import file_checksum  # noqa: E402

QUICK = "--n4 False --resample 4 --pictures 0 --num_slices 3 --slices -8 8 --num_workers 1".split()


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A download of four people, two AD and two CN, two scans each."""
    return make_once(tmp_path_factory, "download", lambda folder: write_download(folder, scans=2))


@pytest.fixture
def download(made, tmp_path, monkeypatch):
    """A copy of it, in the working folder; scans are prepared in this process."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preparation, "run_jobs", lambda jobs, _, work: (work(job) for job in jobs))
    return tmp_path


def flags(*more):
    return [*"--volumes ADNI --subjects adni.csv --output_dir out".split(), *QUICK, *map(str, more)]


def run(*more):
    return prepare.main(flags(*more))


def record():
    with open("out/provenance.json") as file:
        return json.load(file)


def rows_of(name):
    with open(f"out/{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def slices():
    """{path below out: modification time in ns}."""
    found = {}
    for root, _, names in os.walk("out"):
        for name in names:
            if name.endswith((".jpeg", ".png")):
                path = os.path.join(root, name)
                found[os.path.relpath(path, "out")] = os.stat(path).st_mtime_ns
    return found


def add_scan(image, subject, group):
    """Add a NIfTI volume and its row; returns its path."""
    with open("adni.csv", "a") as file:
        file.write(f"I{image},{subject},{group},F,70,1/1/2012\n")
    return write_nifti(Path("ADNI") / subject / f"I{image}" / f"I{image}.nii", head(image))


# ---------------------------------------------------------------------------------------------------------------------
# What it writes


def test_prepare_writes_slices_that_dataset_reads_with_no_person_on_both_sides(download):
    assert run("--test_share", 0.5) == 0
    found = slices()
    assert len(found) == 8 * 3 and {read_image(f"out/{path}").shape for path in found} == {(240, 256)}
    table = read_subjects("adni.csv")
    people = {
        split: {scan.person for scan in identify([p for p in found if p.startswith(split)], table)} for split in ("train", "test")
    }
    assert len(people["train"]) == len(people["test"]) == 2 and not people["train"] & people["test"]
    for path, scan in zip(found, identify(found, table)):
        assert path.split("/")[1] == {"AD": "AD", "CN": "NC"}[scan.group]
    assert read_subjects("out/scans.csv") == table and {row["slices"] for row in rows_of("scans")} == {"3"}


def test_provenance_has_the_checksums_of_inputs_and_slices(download):
    run()
    scans = record()["scans"]
    assert len(scans) == 8
    for image, entry in scans.items():
        (place,) = [root for root, _, names in os.walk("ADNI") if root.endswith(f"I{image}")]
        content = b"".join(path.read_bytes() for path in sorted(Path(place).iterdir()))
        assert (
            entry["sha256"] == hashlib.sha256(content).hexdigest()
            and entry["voxels"] == [40, 40, 40]
            and entry["spacing"] == [4, 4, 4]
        )
        assert len(entry["slices"]) == 3
        for name, checksum in entry["slices"].items():
            assert name.startswith(f"{image}_") and file_checksum(f"out/{entry['folder']}/{name}") == checksum
    assert record()["runs"][0]["versions"]["SimpleITK"] == sitk.Version.VersionString()
    assert record()["runs"][0]["command"].startswith("prepare.py --volumes ADNI") and record()["flags"]["n4"] is False


GROUPS = {"01": "AD", "02": "CN", "03": "AD", "04": "CN"}
SESSIONS = "ses-M000", "ses-M012"


def write_layout(layout):
    """Write a tree of GROUPS, two scans each, and the table `people`, as they come; returns the IDs of the images."""
    rows, images = [], []
    for k, (person, group) in enumerate(GROUPS.items()):
        for j, session in enumerate(SESSIONS):
            stem, place = f"sub-{person}_{session}", Path(f"tree/sub-{person}/{session}/anat")
            if layout == "CAPS":
                place = Path(f"tree/subjects/sub-{person}/{session}/t1_linear")
                stem += "_space-MNI152NLin2009cSym_desc-Crop_res-1x1x1"
            image = f"{stem}_T1w"
            if layout == "LONI":
                image = str(700 + 2 * k + j)
                place = Path(f"tree/0{person}_S_00{person}/Accelerated_Sagittal_MPRAGE/2023-0{j + 1}-07_11_02_33.0/I{image}")
                stem = f"ADNI_0{person}_S_00{person}_MR_Accelerated_Sagittal_MPRAGE_Br_20230{j + 1}07_S1_I{image}"
            if layout == "LONI" and k == 0:
                write_dicom(place, head(10 * k + j))
            else:
                write_nifti(place / (f"{stem}.nii" if layout == "LONI" else f"{stem}_T1w.nii.gz"), head(10 * k + j))
            images.append(image)
            rows.append({"BIDS": f"sub-{person}\t{group}\tF\t70", "CAPS": f"sub-{person}\t{session}\t{group}"}.get(layout)
                        or f'"{image}";"0{person}_S_00{person}";"1/{10 + j}/2023";"{group}"')  # fmt: skip
    header = {"BIDS": "participant_id\tgroup\tsex\tage", "CAPS": "participant_id\tsession_id\tdiagnosis"}
    text = "\n".join([header.get(layout, "image_id;subject_id;image_date;research_group"), *dict.fromkeys(rows)]) + "\n"
    Path("people").write_bytes(text.encode("utf-8-sig"))
    return images


@pytest.mark.parametrize("layout", ["BIDS", "CAPS", "LONI"])
def test_layouts_as_they_come_are_prepared_and_resumed(tmp_path, monkeypatch, layout):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preparation, "run_jobs", lambda jobs, _, work: (work(job) for job in jobs))
    images = write_layout(layout)
    write_nifti(Path("tree/derivatives/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"), head())
    command = [*"--volumes tree --subjects people --output_dir out --test_share 0.5".split(), *QUICK]
    assert prepare.main(command) == 0
    before, scans = slices(), {row["image"]: row for row in rows_of("scans")}
    assert set(scans) == set(images) and len(before) == 3 * len(images) and not rows_of("skipped")
    assert {name: row["group"] for row in scans.values() for name in [row["subject"][-2:]]} == GROUPS
    assert scans[images[1]]["date"] == ("2023-01-11" if layout == "LONI" else "")
    people = {split: {row["subject"] for row in scans.values() if row["split"] == split} for split in ("train", "test")}
    assert len(people["train"]) == len(people["test"]) == 2 and not people["train"] & people["test"]
    assert {scan.person for scan in identify(before, read_subjects("out/scans.csv"))} == {row["subject"] for row in scans.values()}
    assert prepare.main(command) == 0 and slices() == before and record()["runs"][-1]["prepared"] == 0
    text = Path("people").read_text(encoding="utf-8")
    Path("people").write_text(text.replace("CN", "MCI", 1 if layout == "BIDS" else 2))  # of one person
    assert prepare.main(command) == 0 and len(slices()) == 3 * (len(images) - 2)
    with open("people", "a") as file:
        file.write({"BIDS": "sub-09\tAD\n", "CAPS": "sub-09\tses-M000\tAD\n"}.get(layout, "999;009_S_0009;1/1/2023;AD\n"))
    assert prepare.main(command) == 3 and [row["group"] for row in rows_of("skipped")] == ["AD"]


def test_stripped_scans_are_resumed_and_lost_or_changed_masks_made_again(download, monkeypatch, capsys):
    def run_model(x):
        i, j, k = np.mgrid[-1:1:40j, -1:1:40j, -1:1:40j]
        return ((i / 0.6) ** 2 + (j / 0.7) ** 2 + (k / 0.65) ** 2 < 1).astype("f4")

    monkeypatch.setattr(volume_strip, "network", lambda: SimpleNamespace(run_model=run_model))
    monkeypatch.setattr(preparation, "network", lambda: None)
    monkeypatch.setattr(volume_strip, "BRAIN_ML", (400, 1000))  # heads of 4 mm are small
    assert run("--strip", "deepbet", "--pictures", 1) == 0
    before, masks = slices(), sorted(os.listdir("out/masks"))
    assert masks == [f"{image}_mask.nii.gz" for image in range(100, 108)]
    assert {entry["strip"] for entry in record()["scans"].values()} == {"deepbet"}
    assert run("--strip", "deepbet") == 0 and slices() == before
    os.unlink("out/masks/101_mask.nii.gz")
    Path("out/masks/104_mask.nii.gz").write_bytes(b"")
    assert run("--strip", "deepbet") == 0 and record()["runs"][-1]["prepared"] == 2
    assert "another --strip, or without" in refusal(prepare.main, *flags())
    monkeypatch.setattr(volume_strip, "BRAIN_ML", (900, 2100))
    os.unlink("out/masks/101_mask.nii.gz")
    assert run("--strip", "deepbet") == 3
    (row,) = rows_of("skipped")
    assert row["image"] == "101" and "ml, not 900 to 2100" in row["reason"]
    assert run("--strip", "deepbet", "--keep_doubtful") == 0
    assert "note: 101: kept with a doubtful mask: deepbet's mask has " in capsys.readouterr().err
    for more, part in ((["--masks", "out/masks"], "leave out one"), (["--align", "none"], "--align none: give --template")):
        assert part in refusal(prepare.main, *flags("--strip", "deepbet", *more))


def test_a_record_of_before_there_were_these_flags_is_resumed(download):
    run()
    before, old = slices(), record()
    for name in ("strip", "align"):
        del old["flags"][name]
    Path("out/provenance.json").write_text(json.dumps(old))
    assert run() == 0 and slices() == before


def test_an_empty_class_on_a_side_is_noted(download, capsys):
    run("--test_share", 0)
    assert "note: nothing in test/AD, test/NC;" in capsys.readouterr().out
    assert all(path.startswith("train/") for path in slices())


def test_pictures_are_drawn_of_so_many_scans_and_added_by_a_second_run(download):
    assert run("--pictures", 2) == 0
    assert len(os.listdir("out/steps")) == 2
    assert read_image("out/steps/" + os.listdir("out/steps")[0]).shape[2] >= 3
    before = slices()
    run("--pictures", 0)
    assert slices() == before


# ---------------------------------------------------------------------------------------------------------------------
# Resuming


def test_lost_and_damaged_slices_a_changed_volume_and_a_changed_mask_are_done_again(download):
    for image in range(100, 108):
        write_nifti(download / "masks" / f"{image}.nii", sitk.Cast(head(image, noise=0) > 60, sitk.sitkUInt8))
    run("--masks", "masks")
    before = slices()
    lost = next(path for path in before if "/101_" in path)
    os.unlink(f"out/{lost}")
    damaged = Path("out", next(path for path in before if "/106_" in path))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    changed = next(os.path.join(root, name) for root, _, names in os.walk("ADNI") for name in names if "I103" in name)
    with open(changed, "ab") as file:
        file.write(b"\0")
    write_nifti(download / "masks" / "105.nii", sitk.Cast(head(105, noise=0) > 120, sitk.sitkUInt8))
    assert run("--masks", "masks") == 0
    assert {path.split("/")[2].split("_")[0] for path, time in slices().items() if before[path] != time} == {
        "101",
        "103",
        "105",
        "106",
    }
    assert set(slices()) == set(before) and record()["runs"][-1]["prepared"] == 4


def flip(path):
    """Swap left and right of a NIfTI volume; returns its size and times (ns) before."""
    before = os.stat(path)
    image = sitk.ReadImage(path)
    flipped = sitk.GetImageFromArray(np.ascontiguousarray(sitk.GetArrayFromImage(image)[..., ::-1]))
    flipped.CopyInformation(image)
    sitk.WriteImage(flipped, path)
    assert os.path.getsize(path) == before.st_size
    return before


def path_of(image):
    return next(os.path.join(root, name) for root, _, names in os.walk("ADNI") for name in names if f"I{image}" in name)


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_volume_replaced_by_one_of_the_same_size_is_done_again(download, keep_times):
    """As after a corrected swap of left and right; with cp -p, or touch -r, also the time is an old one."""
    run("--plane", "axial")
    before = {path: read_image(f"out/{path}") for path in slices() if "/103_" in path}
    old = flip(path_of(103))
    if keep_times:
        os.utime(path_of(103), ns=(old.st_atime_ns, old.st_mtime_ns))
    assert run("--plane", "axial") == 0 and record()["runs"][-1]["prepared"] == 1
    for path, pixels in before.items():
        assert (read_image(f"out/{path}") != pixels).any()
    assert run("--plane", "axial") == 0 and record()["runs"][-1]["prepared"] == 0


def test_a_volume_of_another_time_or_place_with_the_same_content_is_not_done_again(download):
    run()
    before, stamps = slices(), {image: entry["stamp"] for image, entry in record()["scans"].items()}
    for image in (102, 103):
        os.utime(path_of(image), ns=(10**18, 10**18))
    shutil.copytree("ADNI", "copy")
    shutil.rmtree("ADNI")
    os.rename("copy", "ADNI")
    assert run() == 0 and slices() == before
    assert {image: entry["stamp"] for image, entry in record()["scans"].items()} != stamps  # the next run is quick again


def test_a_scan_whose_volume_is_gone_keeps_its_slices_and_is_named(download, capsys):
    run()
    before = slices()
    os.unlink(path_of(103))
    assert run() == 3 and slices() == before
    (row,) = rows_of("skipped")
    assert row["image"] == "103" and row["reason"].endswith("has this Image Data ID")
    assert "1 AD and CN scans cannot be prepared (103)" in capsys.readouterr().err


@pytest.mark.parametrize("gone", [False, True])
def test_slices_follow_the_table_when_class_or_person_is_corrected(download, gone):
    run("--test_share", 0.5)
    old = record()
    person = old["scans"]["103"]["scan"]["person"]
    other = next(name for name, side in old["people"].items() if side != old["people"][person])
    if gone:
        os.unlink(path_of(103))
        os.unlink(path_of(102))
    text = Path("adni.csv").read_text()
    rows = [line.split(",") for line in text.splitlines()]
    for row in rows:
        if row[0] == "I103":
            row[1], row[2] = other, {"AD": "CN", "CN": "AD"}[row[2]]
        if row[0] == "I102":
            row[2] = "MCI"
    Path("adni.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    assert run("--test_share", 0.5) == (3 if gone else 0)
    split, label = old["scans"]["103"]["folder"].split("/")
    folder = f"{({'train', 'test'} - {split}).pop()}/{({'AD', 'NC'} - {label}).pop()}"
    assert [os.path.dirname(path) for path in slices() if "/103_" in path] == ([] if gone else [folder] * 3)
    assert [row["class"] for row in rows_of("scans") if row["image"] == "103"] == ([] if gone else [folder[-2:]])
    assert not [path for path in slices() if "/102_" in path]


def test_new_scans_are_added_and_nobody_changes_sides(download):
    run()
    before, sides = slices(), record()["people"]
    for i in range(12):
        add_scan(900 + i, f"new{i}", ("AD", "CN")[i % 2])
    add_scan(920, "001_S_0001", "CN")
    assert run() == 0
    assert {path: slices()[path] for path in before} == before
    people = record()["people"]
    assert sides.items() <= people.items() and {people[f"new{i}"] for i in range(12)} == {"train", "test"}
    assert record()["scans"]["920"]["folder"] == f"{sides['001_S_0001']}/NC"


def test_slices_of_a_scan_no_longer_in_the_table_stay_and_are_named(download, capsys):
    run()
    before = slices()
    with open("adni.csv") as file:
        lines = file.readlines()
    with open("adni.csv", "w") as file:
        file.writelines(line for line in lines if "I107" not in line)
    assert run() == 0
    assert slices() == before and "1 of these scans are of earlier runs" in capsys.readouterr().out


def test_other_flags_are_rejected_with_their_name(download):
    run()
    line = refusal(prepare.main, *flags("--resample", 2))
    assert line == "--output_dir out: its slices were made with --resample 4.0; choose a new folder, or the same flag"
    assert "--slices -8.0 8.0" in refusal(prepare.main, *flags("--slices", -4, 8))
    assert "another --masks, or without" in refusal(prepare.main, *flags("--masks", "ADNI"))
    assert "--seed" in refusal(prepare.main, *flags("--seed", 1))


def test_a_damaged_record_and_a_folder_of_other_files_are_refused(download):
    os.mkdir("out")
    (download / "out" / "thesis.txt").write_text("x")
    assert "thesis.txt" in refusal(prepare.main, *flags())
    assert os.listdir("out") == ["thesis.txt"]
    for content in ("{", "[]", "{}"):
        (download / "out" / "provenance.json").write_text(content)
        assert "provenance.json" in refusal(prepare.main, *flags())


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(format=1),
        lambda record: record.update(flags=[]),
        lambda record: record["people"].update(someone="../.."),
        lambda record: record["scans"]["100"].update(folder="../ADNI"),
        lambda record: record["scans"]["100"].update(slices={"../../../adni.csv": ""}),
        lambda record: record["scans"]["100"]["scan"].update(shoe=44),
        lambda record: record["scans"].update({"../x": record["scans"]["100"]}),
    ],
)
def test_a_record_that_was_tampered_with_is_refused_and_deletes_nothing(download, change):
    run()
    changed = record()
    change(changed)
    (download / "out" / "provenance.json").write_text(json.dumps(changed))
    before = slices()
    assert "provenance.json: cannot be read" in refusal(prepare.main, *flags())
    assert slices() == before and os.path.exists("adni.csv")


def test_half_written_files_of_a_killed_run_are_removed(download):
    run()
    (download / "out/train/AD/.tmp-x.jpeg").write_bytes(b"half")
    (download / "out/.tmp-other").write_bytes(b"not ours")
    run()
    assert not os.path.exists("out/train/AD/.tmp-x.jpeg") and os.path.exists("out/.tmp-other")


# ---------------------------------------------------------------------------------------------------------------------
# Scans that become no slices


def test_scans_that_fail_are_named_and_the_others_done(download, capsys):
    os.remove(next(os.path.join(root, name) for root, _, names in os.walk("ADNI") for name in names if "I102" in name))
    add_scan(110, "p1", "MCI")
    add_scan(111, "p2", "AD").write_bytes(b"no NIfTI")
    add_scan(112, "p3", "AD")
    write_nifti(download / "ADNI" / "again_I112.nii", head())
    add_scan(113, "p4", "")
    write_nifti(download / "ADNI" / "I114.nii", head())
    write_dicom(download / "ADNI" / "unknown", head())
    assert run() == 3
    reasons = {row["image"]: row["reason"] for row in rows_of("skipped")}
    assert [row["where"] for row in rows_of("skipped") if not row["image"]] == ["ADNI/unknown"]
    assert set(reasons) == {"102", "111", "112", "114", ""}
    assert "no volume" in reasons["102"] and "cannot be read" in reasons["111"] and "2 volumes" in reasons["112"]
    assert "--subjects" in reasons["114"] and "no Image Data ID" in reasons[""]
    out, err = capsys.readouterr()
    assert "left out: 1 scan of group MCI" in out and "left out: 1 scan without a group" in out
    assert "3 AD and CN scans cannot be prepared (102, 112, 111)" in err and "skipped 111" in err
    assert len(record()["scans"]) == 7


def test_what_lies_beside_a_dicom_series_is_named_and_recorded(download, capsys):
    (folder,) = Path("ADNI").rglob("I100")
    write_dicom(folder, head(), names="loc{}.dcm", keep=range(3), t0020_000e="1.9", t0008_103e="localizer")
    assert run() == 0 and len([name for name in slices() if "/100_" in name]) == 3
    text = "localizer, 3 files (a localiser (localizer))"
    assert f"note: 100: left out beside the scan: {text}\n" in capsys.readouterr().err
    assert {image: entry.get("left_out") for image, entry in record()["scans"].items() if "left_out" in entry} == {"100": text}


def test_a_scan_that_failed_is_tried_again_and_leaves_no_slices(download):
    run()
    path = next(os.path.join(root, name) for root, _, names in os.walk("ADNI") for name in names if "I103" in name)
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[:5000])
    assert run() == 3 and not [name for name in slices() if "/103_" in name] and "103" not in record()["scans"]
    with open(path, "wb") as file:
        file.write(content)
    assert run() == 0 and len([name for name in slices() if "/103_" in name]) == 3


def test_a_full_disk_stops_the_run_and_keeps_what_is_done(download, monkeypatch):
    real, written = volume_jobs.write_slices, []

    def write(job, *rest):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(job.volume.image)
        return real(job, *rest)

    monkeypatch.setattr(volume_jobs, "write_slices", write)
    assert "No space left" in refusal(prepare.main, *flags())
    assert list(record()["scans"]) == written and len(written) == 3
    assert {row["image"] for row in rows_of("scans")} == set(written)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals of the whole run


@pytest.mark.parametrize(
    "table, part",
    [
        ("image,subject\n100,a\n", "no column Group"),
        ("image,subject,group\n100,a,MCI\n101,b,EMCI\n", "no scan of the groups AD, CN or NC among 2: 1 scan of group EMCI"),
        ("image,subject,group\n999,a,AD\n", "none of the 1 AD and CN scans in --subjects adni.csv can be used; 999: no volume"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(download, table, part):
    (download / "adni.csv").write_text(table)
    assert part in refusal(prepare.main, *flags())
    assert not os.path.exists("out")


@pytest.mark.parametrize(
    "more, part",
    [
        (["--volumes", "nowhere"], "--volumes nowhere: no such folder"),
        (["--volumes", "empty"], "--volumes empty: neither NIfTI"),
        (["--template", "nowhere.nii"], "--template nowhere.nii: no such file"),
        (["--template", "adni.csv"], "--template adni.csv: cannot be read"),
        (["--slices", 5, 4], "--slices 5 4"),
        (["--slices", 5], "--slices"),
        (["--output_dir", "adni.csv"], "adni.csv"),
        (["--test_share", 0.95], "--test_share"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(download, more, part):
    os.mkdir("empty")
    assert part in refusal(prepare.main, *flags(*more))
    assert not os.path.exists("out")


def test_missing_simpleitk_is_one_line(download, script, tmp_path):
    (tmp_path / "SimpleITK.py").write_text("raise ImportError")
    done = script("prepare.py", *flags(), env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2 and done.stderr.startswith("error: SimpleITK is not installed") and done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------------
# Kills


def start(*more):
    command = [sys.executable, os.path.join(ROOT, "prepare.py"), *flags(*more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


def wait_for_slices(process, count=1):
    for _ in range(600):
        if len(slices()) >= count or process.poll() is not None:
            return
        time.sleep(0.1)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_is_resumed_and_ends_as_one_that_was_not(download, signum):
    assert run() == 0
    whole = {path: read_image(f"out/{path}") for path in slices()}
    shutil.rmtree("out")
    os.mkdir("out")
    process = start()
    wait_for_slices(process)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if signum == signal.SIGINT else -9) and "Traceback" not in err
    done = len(record()["scans"])
    assert run() == 0
    assert {path: read_image(f"out/{path}").tobytes() for path in slices()} == {path: p.tobytes() for path, p in whole.items()}
    assert record()["runs"][-1]["prepared"] == 8 - done
    assert len(rows_of("scans")) == 8


def test_a_second_run_at_the_same_time_is_rejected(download):
    os.mkdir("out")
    with preparation.only_here("out"):
        assert "another prepare.py" in refusal(prepare.main, *flags())
