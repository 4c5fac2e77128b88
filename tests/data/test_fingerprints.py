"""Fingerprints: people that were trained on are known by their slices or by the table, whatever the names; others are not."""

import shutil

import numpy as np
import pytest

from data import fingerprints as module
from data.fingerprints import are_known, file_checksums, fingerprints, merge_records, person_checksums, training_record
from data.subjects import Scan, identify, resampling_groups


@pytest.fixture
def files(tmp_path):
    """Paths of 6 scans of 5 slices, each file with bytes of its own."""
    paths = [tmp_path / f"{100 + scan}_{i}.png" for scan in range(6) for i in range(5)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return [str(path) for path in paths]


def groups_of(scans):
    return resampling_groups(scans)[0]


def test_scans_are_known_by_their_bytes_under_other_names(files, tmp_path):
    record = training_record(files[:15], identify(files[:15]))
    assert len(record) == 3 and record.dtype == np.int32
    renamed = []
    for path in files:  # 100_0.png becomes copies/900_0.png
        renamed.append(str(tmp_path / "copies" / ("9" + path[-8:].lstrip("/1"))))
        (tmp_path / "copies").mkdir(exist_ok=True)
        shutil.copy(path, renamed[-1])
    scans = identify(renamed)
    known = are_known(record, *fingerprints(renamed, scans), groups_of(scans))
    np.testing.assert_array_equal(known, np.arange(30) < 15)
    with open(renamed[0], "wb") as file:  # the slice of the first scan that the record holds
        file.write(b"another slice")
    assert not are_known(record, *fingerprints(renamed, scans), groups_of(scans))[:5].any()


def test_other_scans_of_a_person_are_known_by_the_table(files):
    table = {str(100 + i): Scan(str(100 + i), f"p{i // 2}", None, "F", 70.0 + i) for i in range(6)}  # two scans each
    train = [path for path in files if "100_" in path or "102_" in path]
    record, scans = training_record(train, identify(train, table), table), identify(files, table)
    assert len(record) == 4  # two scans and two people
    np.testing.assert_array_equal(are_known(record, *fingerprints(files, scans, table), groups_of(scans)), np.arange(30) < 20)
    without = identify(files)
    known = are_known(record, *fingerprints(files, without), groups_of(without))
    np.testing.assert_array_equal(known, np.isin([scan.image for scan in without], ["100", "102"]))


def test_a_person_of_the_same_name_in_another_set_is_another():
    ours, theirs = ({"1": Scan("1", "sub-01", "AD", "F", age)} for age in (71.5, 64.0))
    assert person_checksums(ours.values(), ours) != person_checksums(theirs.values(), theirs)
    assert list(person_checksums([Scan("1")], ours)) == [0] and list(person_checksums([Scan("1")], None)) == [0]


def test_no_checksum_is_no_match(tmp_path, files):
    missing = str(tmp_path / "none.png")
    assert list(file_checksums([missing])) == [0]
    record = training_record([missing], identify([missing]))
    assert len(record) == 0
    assert not are_known(np.array([0, 5], np.int32), *fingerprints([missing], [Scan()]), ["slices 0"]).any()


def test_records_are_limited_and_merged(files, monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 4)
    record = training_record(files, identify(files))
    assert len(record) == 4 and np.isin(record, file_checksums(files[::5])).all()
    merged = merge_records(record, record[:2], np.array([7, 0], np.int32))
    assert len(merged) == 5 and 7 in merged and 0 not in merged
