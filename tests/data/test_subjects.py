"""Scans from file names, the people of slices, and the table that a data set has."""

import json
import os
import re

import pytest

from data import subject_tables
from data.subjects import (
    Scan,
    contradictions,
    find_subjects,
    identify,
    read_subjects,
    resampled_text,
    resampling_groups,
    scan_id,
    shared_text,
    slice_index,
)
from utils import UserError

SCANS = {
    "218391": Scan("218391", "037_S_4001", "AD", "M", 71.5, "2011-05-03"),
    "218393": Scan("218393", "037_S_4001", "AD", "M", 71.5, "2011-05-03"),
    "45108": Scan("45108", "002_S_0295", "CN", "F", 84.0, "2006-04-18"),
}


def table(tmp_path, content):
    path = tmp_path / "people.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    "name, image",
    [
        ("218391_78.jpeg", "218391"),
        ("AD/deep/218391_78.PNG", "218391"),
        ("000003_75.jpeg", "3"),
        ("000_1.png", "0"),
        ("218391.jpeg", None),
        ("mild_12.jpg", None),
        ("²_1.png", None),
    ],
)
def test_scan_id_reads_the_number_before_the_underscore(name, image):
    assert scan_id(name) == image


@pytest.mark.parametrize(
    "name, index",
    [
        ("AD/218391_78.jpeg", 78),
        ("sub-01_ses-02_T1w_90.jpeg", 90),
        ("mild_0.png", 0),
        ("218391_78", None),
        ("218391_-1.png", None),
        ("1_" + "9" * 5000 + ".png", None),
    ],
)
def test_slice_index_is_the_number_after_the_last_underscore(name, index):
    assert slice_index(name) == index


def test_read_subjects_merges_rows_of_one_image(tmp_path):
    found = read_subjects(table(tmp_path, "path,subject,class,age\nAD/5_1.png,x,AD,\nAD/5_2.png,x,,71\nAD/5_3.png,x,N/A,71.0\n"))
    assert found == {"5": Scan("5", "x", "AD", None, 71.0)}


def test_read_subjects_refuses_what_never_ends(monkeypatch, tmp_path):
    text = "image,subject\n1,ann\n"
    for limit, path in ((2**26, "/dev/zero"), (len(text) - 1, table(tmp_path, text))):
        monkeypatch.setattr(subject_tables, "MAX_TABLE", limit)
        if os.path.exists(path):
            with pytest.raises(UserError, match="too large for a table"):
                read_subjects(str(path))
    monkeypatch.setattr(subject_tables, "MAX_TABLE", len(text))
    assert read_subjects(str(table(tmp_path, text)))["1"].person == "ann"


def test_read_subjects_takes_the_table_of_phantoms(phantoms):
    found = read_subjects(str(phantoms / "subjects.csv"))
    assert {image: (scan.person, scan.group) for image, scan in found.items()} == {
        "0": ("0", "AD"), "1": ("1", "NC"), "2": ("2", "AD"), "3": ("3", "NC")
    }  # fmt: skip
    names = [str(path) for path in phantoms.rglob("*.jpeg")]
    assert len(names) == 80 and {scan.person for scan in identify(names, found)} == set("0123")


def test_identify_keeps_the_scan_of_a_file_that_the_table_lacks():
    names = ["AD/218391_78.jpeg", "NC/99_1.jpeg", "NC/mild.jpeg"]
    assert identify(names, SCANS) == [SCANS["218391"], Scan("99"), Scan()]
    assert identify(names) == [Scan("218391"), Scan("99"), Scan()]


def test_resampling_groups_are_people_where_known_then_scans_then_slices():
    names = ["218391_1.png", "218393_1.png", "45108_3.png", "9_1.png", "9_2.png", "a.png", "b.png"]

    def partition(scans):  # the number of the group that each slice belongs to
        groups, unit = resampling_groups(scans)
        return [groups.tolist().index(group) for group in groups], unit

    assert partition(identify(names[:3], SCANS)) == ([0, 0, 2], "people")
    assert partition(identify(names[:5])) == ([0, 1, 2, 3, 3], "scans")
    assert partition(identify(names[5:])) == ([0, 1], "slices")
    assert partition(identify(names, SCANS)) == ([0, 0, 2, 3, 3, 5, 6], "people and scans and slices")
    assert partition([Scan("7"), Scan("8", "7")])[0] == [0, 1]  # a person named like another's scan


def test_resampled_text_says_where_intervals_are_too_small():
    assert resampled_text("people") == "Intervals and standard errors resample people."
    assert "--subjects" in resampled_text("scans") and "too small" in resampled_text("people and scans")
    assert "too small, since slices" in resampled_text("scans and slices")


def test_shared_text_counts_people_or_else_scans_in_both_and_says_when_people_are_unknown():
    ann, bob, eve = (Scan(str(i), name) for i, name in enumerate(("ann", "bob", "eve")))
    assert shared_text([ann, bob], [Scan("9", "ann"), bob, bob, eve]).startswith("2 of 3 people of the test slices are")
    assert shared_text([ann, bob], [eve, eve]) == "No person of the test slices is in the training set."
    assert shared_text([Scan("7"), ann], [Scan("7"), Scan("8")]).startswith("1 of 2 scans of the test slices are")
    for train, held_out in (([ann], [Scan("8")]), ([Scan("8")], [ann]), ([Scan()], [Scan()])):
        assert "is not known" in shared_text(train, held_out)


def test_identify_tells_people_by_bids_names_and_sessions_before_people():
    names = ["AD/sub-01_ses-2_T1w_90.png", "AD/sub-01_ses-1_90.png", "sub-01_90.png", "sub-02_T1w_9.png"]
    people = {"sub-01": Scan("sub-01", "sub-01", "depr", age=39.0), "sub-01_ses-2": Scan("sub-01_ses-2", "sub-01", age=41.0)}
    assert identify(names, people) == [
        Scan("sub-01_ses-2_T1w", "sub-01", age=41.0),
        Scan("sub-01_ses-1", "sub-01", "depr", age=39.0),
        Scan("sub-01", "sub-01", "depr", age=39.0),
        Scan("sub-02_T1w", "sub-02"),
    ]
    assert identify(names[:1]) == [Scan("sub-01_ses-2_T1w", "sub-01")]


def test_contradictions_are_of_known_diagnoses_only():
    groups = {"1": "AD", "2": "Dementia", "3": "CN", "4": "hc", "5": "MCI", "6": "patient", "7": None, "8": "AD", "9": "MCI"}
    table = {image: Scan(image, "p", group) for image, group in groups.items()}
    places = {image: {"AD"} for image in "1234567"} | {"8": {"AD", "NC"}, "9": set(), "10": {"NC"}}
    assert contradictions(places, table) == [
        "3 in AD but of group CN", "4 in AD but of group hc", "5 in AD but of group MCI", "8 in AD and NC but of group AD"
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The table of a data set


@pytest.fixture
def study(tmp_path):
    """ADNI/AD_NC/{train,test}/{AD,NC} with empty files, and ADNI/meta_data_with_label.json: 2 is AD but lies in NC, 9 is MCI."""
    for name in ("train/AD/1_7.png", "train/NC/2_7.png", "train/NC/deep/3_7.png", "test/AD/4_7.png", "test/CN/5_7.png"):
        (tmp_path / "ADNI/AD_NC" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ADNI/AD_NC" / name).touch()
    labels = {"1": 2, "2": 2, "3": 0, "4": 2, "5": 0, "9": 1}
    entries = {image: {"raw": f"ADNI_002_S_000{image}_20110503.nii", "label": label} for image, label in labels.items()}
    (tmp_path / "ADNI/meta_data_with_label.json").write_text(json.dumps(entries))
    return tmp_path / "ADNI"


@pytest.mark.parametrize(
    "place", ["AD_NC", "AD_NC/train", "AD_NC/train/NC", "AD_NC/test/CN/", "AD_NC/test/AD/4_7.png", "AD_NC/train/../test"]
)
def test_find_subjects_finds_adnis_metadata_above_the_data_set(study, place, capsys):
    assert find_subjects(None, f"{study}/{place}")["1"] == Scan("1", "002_S_0001", "AD", date="2011-05-03")
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith(f"note: {study / 'meta_data_with_label.json'} tells whose the slices are (6 people, 6 scans)")
    assert [line.partition("group")[2] for line in err[1:]] == ([" (1): 2 in NC but of group AD"] if "test" not in place else [])
    assert find_subjects(None, f"{study}/{place}", quiet=True) and not capsys.readouterr().err


def test_find_subjects_looks_beside_and_inside_but_no_higher_than_the_folder_above(study, capsys):
    metadata = study / "meta_data_with_label.json"
    for place in (study / "AD_NC", study / "AD_NC/train"):
        found = metadata.rename(place / metadata.name)
        assert find_subjects(None, str(study / "AD_NC/train")) and f"note: {found} " in capsys.readouterr().err
        metadata = found
    metadata.rename(study.parent / metadata.name)
    assert find_subjects(None, str(study / "AD_NC/train")) is find_subjects(None, None) is find_subjects(None, "none") is None
    assert not capsys.readouterr().err


@pytest.mark.parametrize("place", ["AD_NC", "AD_NC/train", "."])
def test_find_subjects_finds_the_table_of_phantoms_beside_or_above_the_slices(study, place, capsys):
    (study / "meta_data_with_label.json").unlink()
    (study / place / "subjects.csv").write_text("path,subject,class,age\ntrain/AD/1_7.png,ann,AD,70\n")
    assert find_subjects(None, str(study / "AD_NC/train")) == {"1": Scan("1", "ann", "AD", age=70.0)}
    assert f"note: {study / place / 'subjects.csv'} tells whose the slices are (1 people, 1 scans)" in capsys.readouterr().err


def test_an_explicit_table_wins_and_says_if_it_knows_no_scan(study, capsys):
    people = table(study, "image,subject,group\n1,ann,AD\n5,bob,AD\n")
    assert find_subjects(people, str(study / "AD_NC"))["1"].person == "ann"
    assert capsys.readouterr().err == (
        f"warning: {people}: scans whose folder contradicts their group (1): 5 in NC but of group AD\n"
    )
    people = table(study, "image,subject\n77,ann\n")
    assert find_subjects(people, str(study / "AD_NC")) == {"77": Scan("77", "ann")} == find_subjects(people, None)
    assert capsys.readouterr().err == f"warning: --subjects {people} has none of the 5 scans in {study / 'AD_NC'}\n"
    with pytest.raises(UserError, match="none.csv: cannot be read"):
        find_subjects("none.csv", str(study / "AD_NC"))


@pytest.mark.parametrize(
    "content, message", [("{", "warning: .*JSON.* so it is not used"), ('{"7": {"raw": "1_002_S_0001"}}', "note: .* not used")]
)
def test_a_table_that_was_found_but_does_not_serve_is_not_used(study, content, message, capsys):
    (study / "meta_data_with_label.json").write_text(content)
    assert find_subjects(None, str(study / "AD_NC")) is None
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


def test_bids_names_need_no_table_and_find_participants(tmp_path, capsys):
    for name in ("AD/sub-01_T1w_9.png", "NC/sub-02_T1w_9.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).touch()
    scans = {f"sub-0{i}_T1w": Scan(f"sub-0{i}_T1w", f"sub-0{i}") for i in (1, 2)}
    assert find_subjects(None, str(tmp_path / "data")) == scans and not capsys.readouterr().err
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tgroup\nsub-01\t30\tdepr\nsub-02\t31\tcontrol\n")
    found = find_subjects(None, str(tmp_path / "data"))
    assert identify(["AD/sub-01_T1w_9.png"], found) == [Scan("sub-01_T1w", "sub-01", "depr", age=30.0)]
    assert f"note: {tmp_path / 'participants.tsv'} " in capsys.readouterr().err
