"""The new split: no person on both sides, shares of every stratum, nothing lost, and what is refused."""

import csv
import errno
import os
from collections import Counter

import numpy as np
import pytest
from synthetic import noise, save

from data import split as new_split
from data.split import draw_test
from data.subjects import Scan, identify, read_subjects, slice_index
from report import dataset_command, split_report
from report.split_report import split_by_subject
from utils import UserError

PEOPLE = 24  # every other one has AD; person i has 1 + i % 3 scans of two slices


@pytest.fixture
def data(tmp_path):
    """(AD_NC, its table): scans of one person are in both of the old splits; scans 900 and 901 are not in the table."""
    rows = ["Image Data ID,Subject,Group,Sex,Age,Acq Date"]
    for i in range(PEOPLE):
        for k in range(1 + i % 3):
            image, label = 100 + 3 * i + k, ("AD", "NC")[i % 2]
            rows.append(f"I{image},p{i:02},{label},{'MF'[i // 2 % 2]},{60 + i + k},{k + 1}/1/2010")
            for number in (1, 2):
                save(tmp_path / f"AD_NC/{('train', 'test')[k % 2]}/{label}/{image}_{number}.png", noise(4, 4, 10 * image + number))
    for name in ("train/AD/900_1.png", "test/NC/901_1.png", "test/NC/unnamed.png"):
        save(tmp_path / "AD_NC" / name, noise(4, 4, 1))
    (tmp_path / "people.csv").write_text("\n".join(rows))
    return tmp_path / "AD_NC", str(tmp_path / "people.csv")


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.png")}


def test_split_by_subject_shares_no_person_and_loses_no_known_slice(data, tmp_path, capsys):
    folder, table = data
    flags = ["--split_by_subject", tmp_path / "new", "--test_share", 0.25, "--seed", 3]
    assert dataset_command.main([*map(str, ["--dataset_dir", folder / "train", "--subjects", table, *flags])]) == 0
    old = {"/".join(name.split("/")[1:]): path for name, path in files_below(folder).items()}
    new = {split: files_below(tmp_path / "new" / split) for split in ("train", "test")}
    assert sorted([*new["train"], *new["test"]]) == sorted(set(old) - {"AD/900_1.png", "NC/901_1.png", "NC/unnamed.png"})
    assert all(os.path.samefile(path, old[name]) for files in new.values() for name, path in files.items())
    people = {split: {scan.person for scan in identify(files, read_subjects(table))} for split, files in new.items()}
    assert not people["train"] & people["test"] and len(people["train"]) == 18 and len(people["test"]) == 6
    text = capsys.readouterr().out
    assert "left out: 3 slices; scans that --subjects lacks: 2 (900, 901)" in text
    counted = [int(line.split()[2]) for line in text.splitlines()[:4]]
    assert sum(counted) == PEOPLE and [line.split(":")[0] for line in text.splitlines()[:4]] == [
        "train AD", "train NC", "test AD", "test NC"
    ]  # fmt: skip


def test_split_csv_tells_where_every_scan_went_and_serves_as_subjects(data, tmp_path):
    folder, table = data
    split_by_subject(str(folder), "all", str(tmp_path / "new"), table)
    with open(tmp_path / "new/split.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert read_subjects(str(tmp_path / "new/split.csv")) == read_subjects(table)
    for row in rows:
        there = [name for name in files_below(tmp_path / "new" / row["split"] / row["class"]) if name.startswith(row["image"])]
        assert len(there) == int(row["slices"]) == 2
    assert sum(int(row["slices"]) for row in rows) == len(files_below(tmp_path / "new"))


def test_draw_test_takes_the_share_of_every_run_of_strata():
    rng = np.random.default_rng(0)
    strata = {f"p{i}": (("AD", "NC")[rng.integers(2)], "FM"[rng.integers(2)], int(rng.integers(-1, 3))) for i in range(500)}
    test, share = draw_test(strata, 0.3), 0.3
    assert abs(len(test) - share * 500) < 1
    for length in (1, 2, 3):
        for start in {stratum[:length] for stratum in strata.values()}:
            members = {person for person, stratum in strata.items() if stratum[:length] == start}
            assert abs(len(members & test) - share * len(members)) < 1


def test_draw_test_takes_every_person_with_the_same_probability():
    strata = {f"p{i}": ("AD", "", 0) if i < 3 else ("NC", "", 0) for i in range(7)}
    taken = np.array([[person in draw_test(strata, 0.3, seed) for person in strata] for seed in range(2000)])
    np.testing.assert_allclose(taken.mean(0), 0.3, atol=4 * (0.3 * 0.7 / 2000) ** 0.5)


def test_strata_are_of_the_first_scan_and_of_thirds_of_the_people(data):
    table = read_subjects(data[1])
    strata = new_split.strata_of([file for file in new_split.list_files(str(data[0]), "all", table) if file.scan.person])
    assert [strata[f"p{i:02}"] for i in (0, 1, 8, 23)] == [("AD", "M", 0), ("NC", "M", 0), ("AD", "M", 1), ("NC", "F", 2)]
    assert np.bincount([tercile for *_, tercile in strata.values()]).tolist() == [8, 8, 8]
    bare = [file._replace(scan=file.scan._replace(sex=None, age=None)) for file in new_split.list_files(str(data[0]), "AD", table)]
    assert set(new_split.strata_of(bare).values()) == {("AD", "", -1)}


def test_a_file_in_both_splits_counts_once_if_it_is_the_same(data, tmp_path):
    folder, table = data
    save(folder / "test/AD/100_1.png", noise(4, 4, 1001))  # the pixels of train/AD/100_1.png
    split_by_subject(str(folder), "AD", str(tmp_path / "new"), table)
    assert sum(name.endswith("/100_1.png") for name in files_below(tmp_path / "new")) == 1
    save(folder / "test/AD/100_1.png", noise(4, 4, 5))
    with pytest.raises(UserError, match="100_1.png have one name but differ"):
        split_by_subject(str(folder), "AD", str(tmp_path / "other"), table)


def test_links_are_copies_where_the_file_system_has_none(data, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    split_by_subject(str(data[0]), "all", str(tmp_path / "new"), data[1])
    name, path = next((name, path) for name, path in files_below(tmp_path / "new").items() if name.endswith("AD/100_1.png"))
    (old,) = [old for old_name, old in files_below(data[0]).items() if old_name.endswith("AD/100_1.png")]
    assert path.read_bytes() == old.read_bytes() and not os.path.samefile(path, old)


def test_what_stops_the_split_leaves_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setattr(split_report, "write_table", lambda *_: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        split_by_subject(str(data[0]), "all", str(tmp_path / "new"), data[1])
    assert not list((tmp_path / "new").iterdir())


def test_split_by_subject_refuses_in_one_line(data, tmp_path):
    folder, table = data
    (tmp_path / "others.csv").write_text("image,subject\n7,ann\n")
    (tmp_path / "few.csv").write_text("image,subject\n100,ann\n103,bob\n106,ann\n")
    for message, out, people in (
        ("AD_NC: not empty", folder, table),
        ("others.csv: has none of", tmp_path / "new", tmp_path / "others.csv"),
        ("--test_share 0.3: no one of 1 people of class", tmp_path / "new", tmp_path / "few.csv"),
        ("none.csv: cannot be read", tmp_path / "new", "none.csv"),
    ):
        with pytest.raises(UserError, match=message):
            split_by_subject(str(folder), "all", str(out), str(people))
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="also needs --subjects"):
        dataset_command.main(["--dataset_dir", str(folder), "--split_by_subject", str(tmp_path / "new")])


def test_damaged_scans_go_to_neither_side(tmp_path, capsys):
    rows, rng = ["image,subject"], np.random.default_rng(0)
    y, x = np.mgrid[-8:8, -8:8]
    for i in range(8):
        rows.append(f"{i},p{i}")
        for index in range(5):
            brain = np.uint8(rng.uniform(140, 160) * (np.hypot(x, y) < rng.uniform(5, 6)))
            save(tmp_path / f"AD_NC/train/{('AD', 'NC')[i % 2]}/{i}_{index}.png", brain // (50 if i == 3 else 1))
    (tmp_path / "people.csv").write_text("\n".join(rows))
    split_by_subject(str(tmp_path / "AD_NC"), "all", str(tmp_path / "new"), str(tmp_path / "people.csv"), test_share=0.5)
    scans = {name.split("/")[-1].split("_")[0] for name in files_below(tmp_path / "new")}
    assert scans == set("0124567")
    text = capsys.readouterr().out
    assert "left out: 0 slices; scans that --subjects lacks: 0" in text and "left out: 1 damaged scan: 3, " in text


# ---------------------------------------------------------------------------------------------------------------------
# Matched classes


@pytest.fixture
def windowed(tmp_path):
    """(AD_NC, its table): 22 people with AD and 40 without, of one to three scans of six slices; those of AD begin at 78, of NC at
    78 to 81, and people with AD are older."""
    rows, rng = ["image,subject,class,sex,age"], np.random.default_rng(0)
    for i in range(62):
        label = "AD" if i < 22 else "NC"
        sex, age, first = rng.choice(["F", "M"]), rng.integers(60, 85) + 5 * (i < 22), 78 + (label == "NC") * rng.integers(4)
        for k in range(1 + i % 3):
            image = 1000 + 3 * i + k
            rows.append(f"{image},p{i:02},{label},{sex},{age}")
            for index in range(first, first + 6):
                save(tmp_path / f"AD_NC/train/{label}/{image}_{index}.png", noise(4, 4, 100 * image + index))
    (tmp_path / "people.csv").write_text("\n".join(rows))
    return tmp_path / "AD_NC", str(tmp_path / "people.csv")


def counted(folder, of_file):
    """{class: Counter of of_file(name)} of the slices below `folder`."""
    return {label: Counter(map(of_file, files_below(folder / label))) for label in ("AD", "NC")}


@pytest.mark.slow
@pytest.mark.parametrize("match", [("position",), ("age", "sex"), ("position", "age", "sex")])
def test_match_leaves_as_many_ad_as_nc_slices_in_every_cell(windowed, tmp_path, capsys, match):
    folder, table = windowed
    strata = new_split.strata_of(new_split.list_files(str(folder), "all", read_subjects(table)))

    def cell(name):
        (scan,) = identify([name], read_subjects(table))
        _, sex, tercile = strata[scan.person]
        values = {"position": slice_index(name), "age": tercile, "sex": sex}
        return tuple(values[key] for key in match)

    flags = ["--split_by_subject", tmp_path / "new", "--test_share", 0.5, "--match", ",".join(match)]
    assert dataset_command.main([*map(str, ["--dataset_dir", folder, "--subjects", table, *flags])]) == 0
    left = 0
    for split in ("train", "test"):
        found = counted(tmp_path / "new" / split, cell)
        assert found["AD"] == found["NC"] and found["AD"]
        left += 2 * sum(found["AD"].values())
    total = len(files_below(folder))
    text = capsys.readouterr().out
    assert f"matched by {', '.join(match)}: {total - left} of {total} slices are left out" in text
    (line,) = [line for line in text.splitlines() if line.startswith("slice index alone")]
    assert "by a rule fitted to train: 0.7" in line
    assert (", 0.50 (0.50 to 0.50; " in line and line.endswith(") after matching")) == ("position" in match)
    with open(tmp_path / "new/split.csv", newline="") as file:
        assert sum(int(row["slices"]) for row in csv.DictReader(file)) == left


@pytest.mark.slow
def test_match_takes_no_more_than_it_must_and_depends_on_the_seed_alone(windowed, tmp_path):
    folder, table = windowed
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        split_by_subject(str(folder), "all", str(tmp_path / name), table, seed=seed, match=("position",))
    split_by_subject(str(folder), "all", str(tmp_path / "all"), table)
    assert set(files_below(tmp_path / "a")) == set(files_below(tmp_path / "b")) != set(files_below(tmp_path / "c"))
    for split in ("train", "test"):
        everyone, matched = (counted(tmp_path / name / split, slice_index) for name in ("all", "a"))
        assert matched["AD"] == everyone["AD"] & everyone["NC"]  # the smaller count at each index


def drawn(rng, shift, count=400, split="train"):
    """Files of `count` people of each class, three slices each; those of AD are `shift` years older."""
    people = [
        (label, f"{label}{i}", 70 + 8 * rng.normal() + shift * (label == "AD")) for label in ("AD", "NC") for i in range(count)
    ]
    return [
        new_split.File(
            "", f"{label}/{split}{person}_{i}.png", Scan(person, split + person, label, "MF"[rng.integers(2)], age), split
        )
        for label, person, age in people
        for i in (80, 81, 82)
    ]


def test_differences_are_those_of_a_known_shift_and_of_none():
    files = drawn(np.random.default_rng(0), 4.0)
    ad, nc = (np.array([file.scan.age for file in files if file.label == label]) for label in ("AD", "NC"))
    found = new_split.differences(files)
    np.testing.assert_allclose(found["train", "age"][:2], (ad.mean(), nc.mean()))
    error = (2 / 400) ** 0.5  # standard error of a standardised difference of 400 people each
    assert abs(found["train", "age"][2] - 4 / 8) < 4 * error  # SD 8 years
    assert found["train", "position"] == (81, 81, 0) and abs(found["train", "sex"][2]) < 4 * error
    for seed in range(5):
        null = new_split.differences(drawn(np.random.default_rng(seed), 0.0))
        assert max(abs(value[2]) for value in null.values()) < 4 * error
    assert new_split.differences([file for file in files if file.label == "AD"]) == {}


@pytest.mark.parametrize("shift", [6.0, 0.0])
def test_matching_takes_most_of_a_known_difference_away_and_costs_the_null_little(shift):
    """Thirds of a normal value remove about 79% of a bias (Cochran 1968)."""
    files = drawn(np.random.default_rng(1), shift) + drawn(np.random.default_rng(2), shift, 100, "test")
    kept = new_split.match_classes(files, new_split.strata_of(files), ("age",))
    before, after = (new_split.differences(part)["train", "age"] for part in (files, kept))
    if shift:
        assert 0.5 < 1 - (after[0] - after[1]) / (before[0] - before[1]) < 0.95 and len(kept) < 0.85 * len(files)
    else:
        assert len(kept) > 0.85 * len(files) and abs(after[2]) < 4 * (2 / 400) ** 0.5


def test_matching_csv_and_the_printed_lines_say_the_same(tmp_path, capsys):
    files = drawn(np.random.default_rng(3), 6.0, 30)
    kept = [file for file in files if file.scan.image not in ("AD0", "AD1", "NC2")]
    split_report.print_matching(files, kept, ("age",))
    split_report.write_matching(str(tmp_path / "matching.csv"), files, kept)
    text = capsys.readouterr().out
    assert "9 of 180 slices are left out (6 AD, 3 NC), and with them 2 of 30 AD and 1 of 30 NC people, so" in text
    with open(tmp_path / "matching.csv", newline="") as file:
        rows = {(row["matching"], row["value"]): row for row in csv.DictReader(file)}
    assert [rows[state, "age"]["AD people"] for state in ("before", "after")] == ["30", "28"]
    shown = [float(rows[state, "age"]["AD mean"]) - float(rows[state, "age"]["NC mean"]) for state in ("before", "after")]
    (line,) = [line for line in text.splitlines() if "in years" in line]
    found = [float(part.split(" (")[0]) for part in line.split(": ")[2].split(" before, ")]
    assert found == pytest.approx(shown, abs=0.006)  # two digits
    assert "slice index: +0.00 (+nan SD) before" not in text and "slice index: +0.00 (+0.00 SD) before" in text


def test_draw_over_people_takes_a_slice_of_each_before_a_second():
    files = [new_split.File("", f"AD/{i}_1.png", Scan(str(i), person)) for i, person in enumerate("aaaabbc")]
    for seed in range(20):
        taken = new_split.draw_over_people(files, 5, np.random.default_rng(seed))
        assert Counter(file.scan.person for file in taken) == {"a": 2, "b": 2, "c": 1}
    assert len({tuple(new_split.draw_over_people(files, 5, np.random.default_rng(seed))) for seed in range(20)}) > 5


@pytest.mark.slow
def test_slices_that_lack_what_is_matched_are_left_out_and_counted(windowed, tmp_path, capsys):
    folder, table = windowed
    save(folder / "train/AD/1000.png", noise(4, 4, 7))
    rows = (tmp_path / "people.csv").read_text().splitlines()
    rows = [",".join([*row.split(",")[:4], ""]) if row.split(",")[1] == "p00" else row for row in rows]
    (tmp_path / "people.csv").write_text("\n".join(rows))
    split_by_subject(str(folder), "all", str(tmp_path / "new"), table, match=("position", "age"))
    text = capsys.readouterr().out
    assert "age unknown: of 6 of " in text
    assert not [name for name in files_below(tmp_path / "new") if "/1000" in name]


@pytest.mark.slow
def test_match_refuses_in_one_line(windowed, tmp_path):
    folder, table = windowed
    rows = (tmp_path / "people.csv").read_text().splitlines()
    (tmp_path / "bare.csv").write_text("\n".join(",".join(row.split(",")[:2]) for row in rows))
    new = str(tmp_path / "new")
    for match in ("age", "sex"):
        with pytest.raises(UserError, match=f"--match {match}: unknown of all .* --subjects lacks it"):
            split_by_subject(str(folder), "all", new, str(tmp_path / "bare.csv"), match=(match,))
    for path in files_below(folder).values():
        if path.parent.name == "AD":
            path.rename(path.with_name(path.name.replace("_", "_9")))  # no index is left in common
    with pytest.raises(UserError, match="--match position: no AD slice in train/ has an NC slice that is equal"):
        split_by_subject(str(folder), "all", new, table, match=("position",))
    assert not os.path.exists(new)
    flags = ["--dataset_dir", str(folder), "--subjects", table]
    with pytest.raises(UserError, match="belongs to --split_by_subject"):
        dataset_command.main([*flags, "--match", "age"])
    with pytest.raises(UserError, match="leave out --classes AD"):
        dataset_command.main([*flags, "--split_by_subject", new, "--match", "age", "--classes", "AD"])
