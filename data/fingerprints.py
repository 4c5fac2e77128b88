"""Whose slices a model was trained on: checksums that its generator.pt keeps, and whether other slices are of the same people.

    record = training_record(paths, scans, table)               # int32 [K], of the training slices
    known = are_known(record, *fingerprints(paths, scans, table), groups)      # bool [N], of others

A model repeats what it was trained on, so encodings of these people may separate AD and NC in a set without any difference. Of
every scan one file is kept, by its bytes, so that new names and folders change nothing, and every person that a table tells, so
that other scans of the same people are known, too. The checksums have 32 bits: without the files or the table they name nobody.
"""

import contextlib
import zlib

import numpy as np

LIMIT = 4096  # files in a record, spread over the set where file names tell no scans


def as_int32(checksums):
    return np.array(checksums, np.uint32).view(np.int32)


def file_checksums(paths):
    """CRC-32 of the bytes of files, int32 [N]; 0 where one cannot be read."""
    found = np.zeros(len(paths), np.uint32)
    for i, path in enumerate(paths):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            found[i] = zlib.crc32(file.read())
    return as_int32(found)


def person_checksums(scans, table):
    """CRC-32 of all that a table {image: Scan} of `find_subjects` says of the person of each of N Scans, int32 [N]; 0 if unknown.

    All of it, since many data sets have a person 1.
    """
    rows = {}
    for scan in (table or {}).values():
        rows.setdefault(scan.person, []).append(repr(scan))
    checksums = {person: zlib.crc32("\n".join(sorted(said)).encode()) for person, said in rows.items() if person}
    return as_int32([checksums.get(scan.person, 0) for scan in scans])


def fingerprints(paths, scans, table=None):
    """(int32 [N] of files, int32 [N] of people) of slices with these `subjects.Scan`s; 0 where unknown."""
    return file_checksums(paths), person_checksums(scans, table)


def training_record(paths, scans, table=None):
    """The fingerprints of a training set, int32 [K], sorted: the first file of each scan, at most LIMIT, and all known people."""
    first = {}
    for path, scan in sorted(zip(paths, scans)):
        first.setdefault(scan.image or path, path)
    chosen = list(first.values())
    chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, min(LIMIT, len(chosen))).round().astype(int))]
    return merge_records(file_checksums(chosen), person_checksums(scans, table))


def merge_records(*records):
    """The union of records, int32 [K], sorted."""
    found = np.unique(np.concatenate(records))
    return found[found != 0]


def are_known(record, files, people, groups):
    """Which slices belong to a group [N] (a person, a scan) of which a file or the person is in a record: bool [N]."""
    record = record[record != 0]
    found = np.isin(files, record) | np.isin(people, record)
    return np.isin(groups, np.unique(np.asarray(groups)[found]))
