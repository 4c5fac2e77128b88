"""The report of dataset.py on folders whose contents are known, and the flags that it refuses."""

import numpy as np
import pytest
from PIL import Image
from synthetic import draw_heads, noise, save

from report import dataset_command


@pytest.fixture
def data(tmp_path):
    """AD_NC/train with five AD and seven NC slices of 32 x 32, each of another scan."""
    for name, count, first in (("AD", 5, 100), ("NC", 7, 200)):
        for i in range(count):
            save(tmp_path / f"AD_NC/train/{name}/{first + i}_7.png", noise(32, 32, first + i))
    return tmp_path / "AD_NC/train"


@pytest.fixture
def splits(data):
    """The same and AD_NC/test; one scan and one image are in both, one image is twice in train, one file is damaged."""
    for i, name in enumerate(("AD/300_1", "AD/301_1", "NC/203_9", "NC/401_1")):
        save(data.parent / f"test/{name}.png", noise(30, 32, 50 + i))
    save(data.parent / "test/NC/402_1.bmp", np.stack([noise(32, 32, 103)] * 3, -1))  # the pixels of train/AD/103_7.png
    save(data / "NC/299_1.png", noise(32, 32, 200))  # those of train/NC/200_7.png
    (data / "NC/broken.jpeg").write_bytes(b"")
    return data


def report(tmp_path, capsys, *flags):
    assert dataset_command.main([*map(str, flags), "--output_dir", str(tmp_path / "report"), "--resolution", "32"]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["train", "test", "."])
def test_report_of_two_splits_counts_files_and_what_they_share(splits, tmp_path, capsys, folder):
    text = report(tmp_path, capsys, "--dataset_dir", splits.parent / folder)
    train, test = text.index("train: 5 AD + 8 NC slices"), text.index("test: 2 AD + 3 NC slices")
    assert train < test
    assert "13 of 32 x 32" in text[train:test] and "1 of 32 x 32" in text[test:] and "4 of 30 x 32" in text[test:]
    assert "13 of L" in text[train:test] and "4 of L, 1 of RGB" in text[test:]
    assert "unreadable: 1 (NC/broken.jpeg)" in text[train:test] and "unreadable: 0" in text[test:]
    assert "more than once: 1" in text[train:test] and "more than once: 0" in text[test:]
    assert "pixel for pixel: 1 (test/NC/402_1.bmp = train/AD/103_7.png)" in text
    assert "\nscans: 13 in train, 5 in test, in both 1 (203)\npeople: unknown" in text and "give no scan" not in text
    assert "subject" not in text.replace("--subjects CSV would tell", "")


def test_report_draws_samples_of_each_class(splits, tmp_path, capsys):
    for name, level in (("AD", 60), ("NC", 180)):
        for path in (splits / name).glob("*.png"):
            save(path, np.full((32, 32), level, np.uint8))
    report(tmp_path, capsys, "--dataset_dir", splits)
    with Image.open(tmp_path / "report/samples.png") as image:
        pixels = np.asarray(image.convert("L"), int)
    upper, lower = np.array_split(pixels, 2)  # AD above NC
    share_of = {(name, level): (row == level).mean() for name, row in (("AD", upper), ("NC", lower)) for level in (60, 180)}
    assert share_of["AD", 60] > 0.4 and share_of["NC", 180] > 0.7  # 5 and 8 of 8 columns
    assert share_of["AD", 180] < 0.01 and share_of["NC", 60] < 0.01


def test_report_without_a_test_split_or_scans_in_file_names(data, tmp_path, capsys):
    text = report(tmp_path, capsys, "--dataset_dir", data)
    assert "only train is here" in text and "\nscans: 12 in train\npeople: unknown" in text
    for name in ("AD/scan1", "NC/scan2", "NC/5_1"):
        save(data.parent / f"test/{name}.png", noise(32, 32, 77))
    text = report(tmp_path, capsys, "--dataset_dir", data)
    assert "scans: 12 in train, 1 in test, in both 0" in text
    assert "give no scan (218391_78.jpeg is slice 78 of scan 218391): 2 (test/AD/scan1.png, test/NC/scan2.png)" in text


def people_lines(text):
    """The lines below "people:"."""
    return [line.strip() for line in text.partition("\npeople:\n")[2].partition("\nwindows")[0].strip().split("\n")]


def test_report_with_people_names_what_is_wrong(splits, tmp_path, capsys):
    save(splits / "AD/100_8.png", noise(32, 32, 1))  # a second slice of scan 100
    rows = ["Image Data ID,Subject,Group,Acq Date"]
    rows += [f"I{100 + i},ann,AD,{'1/2/2010' if i < 2 else f'1/3/201{i}'}" for i in range(4)]  # 100 and 101 on one day
    rows += ["I104,bob,CN,1/2/2010"]  # but in AD
    rows += [f"I{200 + i},carl{i},CN,1/2/2010" for i in range(6)]  # 206 and 299 are not in the table
    rows += ["I300,dora,Dementia,", "I301,ann,AD,1/2/2010", "I401,emil,MCI,", "I402,fay,NC,", "I999,gil,AD,"]
    (tmp_path / "people.csv").write_text("\n".join(rows))
    text = report(tmp_path, capsys, "--dataset_dir", splits, "--subjects", tmp_path / "people.csv")
    assert people_lines(text) == [
        "train AD: 2 people, 5 scans, 6 slices",
        "train NC: 6 people, 6 scans, 6 slices",
        "test AD: 2 people, 2 scans, 2 slices",
        "test NC: 3 people, 3 scans, 3 slices",
        "in both train and test: 2 (ann, carl3)",
        "scans that --subjects lacks: 2 (206, 299)",
        "scans whose folder contradicts their group: 2 (104 in AD but of group CN, 401 in NC but of group MCI)",
        "pairs of scans of one person on one day: 1 in train, 0 in test, 2 across (100 101 301 of ann on 2010-01-02)",
    ]
    assert "scans: 13 in train, 5 in test, in both 1 (203)" in text and "unknown" not in text


@pytest.mark.parametrize(
    "subjects, train, test, found",
    [
        ("ann ann bob carl", "13", "24", "1 of the 2 people"),  # ann, with two scans
        ("ann ann bob carl", "12", "34", None),
        ("", "13", "14", "1 of the 2 scans"),
        ("", "12", "34", None),
    ],
)
def test_people_in_both_splits_are_warned_of_in_one_line_or_scans_where_people_are_unknown(
    tmp_path, capsys, subjects, train, test, found
):
    for split, scans in (("train", train), ("test", test)):
        for name, scan in zip(("AD", "NC"), scans):
            save(tmp_path / f"set/{split}/{name}/{scan}_7.png", noise(32, 32, int(scan)))
    if subjects:
        rows = [f"{i + 1},{person}" for i, person in enumerate(subjects.split())]
        (tmp_path / "set/subjects.csv").write_text("\n".join(["image,subject", *rows]))
    assert dataset_command.main(["--dataset_dir", str(tmp_path / "set"), "--output_dir", str(tmp_path / "report")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "too good" in line]
    start = f"warning: {tmp_path / 'set'}: {found} of test/ are in train/ too, so results on test/ are too good; dataset.py --split"
    assert [line[: len(start)] for line in lines] == ([start] if found else [])


@pytest.fixture
def heads(tmp_path):
    """AD_NC/train with seven scans of three sagittal slices in each class, AD from index 70, NC from 80; NC scan 203 is black."""
    for name, first, index in (("AD", 100, 70), ("NC", 200, 80)):
        for i, image in enumerate(draw_heads(21, False, first)):
            black = name == "NC" and i // 3 == 3
            save(tmp_path / f"AD_NC/train/{name}/{first + i // 3}_{index + i % 3}.png", image // (100 if black else 1))
    return tmp_path / "AD_NC/train"


@pytest.mark.slow
def test_report_names_the_view_damaged_scans_and_what_the_slice_index_tells(heads, tmp_path, capsys):
    text = report(tmp_path, capsys, "--dataset_dir", heads)
    places = [
        text.index(start) for start in ("train: 21 AD", "  width", "  unreadable", "  view: ", "  damaged", "scans: ", "windows")
    ]
    assert places == sorted(places)
    assert "\n  view: sagittal: slices are unlike their own mirror images (" in text
    assert "\n  damaged scans: 1\n    203: black (mean grey level " in text
    windows = "AD from 70, 3 slices a scan; NC from 80, 3 slices a scan"
    assert f"windows, the first slice index of a scan as median (range): {windows}\n" in text
    assert "slice index alone, AUC of AD against NC: 1.00 (1.00 to 1.00; 80% power from " in text
    assert ") over scans: the position of a slice tells AD from NC" in text
    assert "--keep_damaged True" in text
    with Image.open(tmp_path / "report/damaged.png") as image:
        pixels = np.asarray(image.convert("L"), int)
    black, full, sound = (pixels[-134:-14, -402 + 130 * i :][:, :120] for i in range(3))
    assert (black > 20).mean() < 0.02 < 0.1 < (full > 20).mean() and (sound > 20).mean() > 0.1
    for path in heads.glob("NC/203_*.png"):
        path.unlink()
    assert "damaged scans: 0" in report(tmp_path, capsys, "--dataset_dir", heads)
    assert not (tmp_path / "report/damaged.png").exists()


@pytest.mark.slow
def test_report_names_scans_whose_head_touches_the_upper_edge(heads, tmp_path, capsys):
    assert "\n  scans whose head touches the upper edge: 0\n" in report(tmp_path, capsys, "--dataset_dir", heads)
    for index in (80, 82):
        with Image.open(heads / f"NC/205_{index}.png") as image:
            pixels = np.asarray(image)
        save(heads / f"NC/205_{index}.png", np.roll(pixels, -np.flatnonzero(pixels.max(1) > 100)[0] - 4, 0))
    text = report(tmp_path, capsys, "--dataset_dir", heads)
    assert "\n  scans whose head touches the upper edge: 1\n    205: in 2 of 3 slices; perhaps cut off there\n" in text
    assert "\n  damaged scans: 1\n    203: black" in text


@pytest.mark.slow
def test_report_where_the_slice_index_tells_nothing(heads, tmp_path, capsys):
    for path in sorted(heads.glob("NC/*.png")):
        scan, index = path.stem.split("_")
        path.rename(path.with_name(f"{scan}_{int(index) - 10}.png"))
    text = report(tmp_path, capsys, "--dataset_dir", heads)
    assert "over scans: not shown to tell them apart (0.5 is chance)" in text
    (heads / "AD/other.png").write_bytes((heads / "AD/100_70.png").read_bytes())
    text = report(tmp_path, capsys, "--dataset_dir", heads)
    assert "slice index unknown: 1 of 43 file names give none (AD/other.png" in text
    assert "slice index alone" not in report(tmp_path, capsys, "--dataset_dir", heads, "--classes", "AD")
