"""What is said of slices that are dark, of several kinds, or unlike in brightness; and that nothing is said of others."""

import numpy as np
import pytest

from data.checks import check_brightness, warn, warn_of_kinds, warn_once
from data.decode import FIRST_KIND, PAGES, Light
from utils import UserError


@pytest.fixture(autouse=True)
def forget():
    warn_once.cache_clear()


def check(values):
    """values: {class: its slices' brightest grey levels}."""
    check_brightness("data", {name: [Light(value, 0) for value in brightest] for name, brightest in values.items()})


def said(capsys, values):
    check(values)
    return capsys.readouterr().err


def test_a_class_that_is_nearly_black_is_rejected():
    for dark in ([0] * 9, [3, 14, 15, 9], [0], [0] * 11 + [200], [0] * 6 + [200] * 5):
        with pytest.raises(UserError, match="--dataset_dir data: NC is nearly black: .* of 255; save") as refused:
            check({"AD": [200] * 9, "NC": dark})
        assert "\n" not in str(refused.value)


def test_a_dark_class_is_named(capsys):
    dark = {"AD": [40, 41, 39], "NC": [64, 70, 75]}
    assert said(capsys, dark) == "warning: data: AD is dark: the brightest parts of its slices are at 41 of 255\n"


def test_slices_far_darker_than_others_of_their_class_are_counted(capsys):
    """As of a folder of which half has been scaled to 12 bits and half to 8."""
    assert "40% of the slices of AD are black or far darker" in said(capsys, {"AD": [14, 220, 222, 13, 221], "NC": [220] * 5})
    assert said(capsys, {"AD": [120, 220, 222, 110, 221], "NC": [220] * 5}) == ""


def test_slices_whose_background_is_not_black_are_counted(capsys):
    """As inverted ones have; not the few that touch the edges."""
    plain, inverted = Light(220, 0), Light(255, 255)
    check_brightness("data", {"AD": [plain] * 9 + [inverted], "NC": [plain] * 40 + [inverted]})
    line = capsys.readouterr().err
    assert line.startswith("warning: data: 10% of the slices of AD have a background that is not black") and line.count("\n") == 1


def test_of_the_processes_of_torchrun_only_the_first_warns(capsys, monkeypatch):
    for rank, shown in (("0", "a\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        warn("a")
        assert capsys.readouterr().err == shown


def test_classes_that_brightness_tells_apart_are_named(capsys):
    rng = np.random.default_rng(0)
    dark, bright = rng.normal(110, 6, 41), rng.normal(220, 6, 41)
    for ad, nc in ((dark, bright), (bright, dark)):
        text = said(capsys, {"AD": ad, "NC": nc})
        assert f"AD and NC differ in brightness ({np.median(ad):.0f} and {np.median(nc):.0f} of 255)" in text
        assert text.startswith("warning: data: ") and text.count("\n") == 1


def test_classes_alike_in_brightness_are_not_named(capsys):
    """Two sets of one distribution, and sets that differ a little or overlap."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        assert said(capsys, {"AD": rng.normal(200, 20, 6), "NC": rng.normal(200, 20, 6)}) == ""
    assert said(capsys, {"AD": rng.normal(224, 1, 40), "NC": rng.normal(200, 1, 40)}) == ""  # 12%
    assert said(capsys, {"AD": rng.normal(140, 40, 60), "NC": rng.normal(190, 40, 60)}) == ""
    assert said(capsys, {"AD": [110] * 3, "NC": [220] * 3}) == ""  # too few to say


def kinds(capsys, status, levels):
    warn_of_kinds("data", {name: np.array(codes, np.uint8) + FIRST_KIND for name, codes in status.items()}, levels)
    return capsys.readouterr().err.splitlines()


def test_levels_and_kinds_are_named_by_class(capsys):
    assert kinds(capsys, {"AD": [0, 0], "NC": [0]}, {"AD": {}, "NC": {}}) == []
    assert kinds(capsys, {"AD": [1], "NC": [1]}, dict.fromkeys(("AD", "NC"), {"16-bit": (0, 65535)})) == []
    lines = kinds(capsys, {"AD": [0, 0, 0], "NC": [1, 1]}, {"AD": {}, "NC": {"16-bit": (0.0, 4095.0)}})
    assert lines == [
        "warning: data: values read as black and white, decided for each folder: NC 0 and 4095 (16-bit)",
        "warning: data: files of several kinds, which may differ in brightness: AD 3 8-bit; NC 2 16-bit",
    ]
    (line,) = kinds(capsys, {"AD": [3], "NC": [3]}, {"AD": {"float": (-1.25, 1.0)}, "NC": {"float": (0.0, 1.0)}})
    assert "AD -1.25 and 1 (float); NC 0 and 1 (float)" in line


def test_files_of_several_images_are_counted(capsys):
    warn_of_kinds("data", {"AD": np.array([PAGES, FIRST_KIND, PAGES])}, {"AD": {}})
    assert "2 files with several images cannot be used" in capsys.readouterr().err
