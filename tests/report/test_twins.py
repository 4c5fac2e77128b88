"""Tables of twins: intervals over the draws, a row for each slice, and numbers as text."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.bootstrap import Interval
from analysis.counterfactual import Twins
from report import twins as report


@pytest.fixture
def twins():
    """Two slices with 101 draws; the ventricle of the first grows by 0 to 20 of 100 mm^2, the other is 50 and stays."""
    before = np.array([[100.0, 50.0]] * 101)
    after = before + np.c_[np.linspace(0, 20, 101), np.zeros(101)]
    called, rng = np.array([[True, True], [False, True], [False, False]]), np.random.default_rng(0)
    images = rng.integers(0, 255, (1, 2, 16, 16)).astype(np.uint8)
    parts = np.zeros((3, 2, 4), np.float32), np.zeros((5, 2, 8, 8), np.uint8), called, {"ventricle": np.stack([before, after])}
    return Twins(np.array([0, 1]), *parts, images, np.ones((1, 16, 16), np.float32), np.full((1, 16, 16), 0.4, np.float32))


def test_changes_have_the_percentiles_of_the_draws(twins):
    change, low, high = report.relative_change(twins, "ventricle")
    np.testing.assert_allclose([change[0], low[0], high[0]], [0.1, 0.005, 0.195])
    np.testing.assert_allclose([change[1], low[1], high[1]], 0)


def test_every_slice_has_its_row(twins, tmp_path):
    targets = SimpleNamespace(files=["AD/1_2.png", "3.png"], labels=np.array([0, -1]))
    report.save_rows(twins, targets, np.array([0.5, 2.0]), tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["class"], second["class"], second["taken for"]) == ("AD", "", "NC")
    assert [first[f"probe: {of}"] for of in ("real", "encoded", "twin")] == ["AD", "NC", "NC"]
    assert [float(first[f"ventricle, {of}"]) for of in ("encoded", "twin", "change", "low", "high")] == [
        100,
        110,
        0.1,
        0.005,
        0.195,
    ]
    assert second["ventricle, twin"] == "50" and first["outside"] == "0.500"


def test_numbers_have_the_digits_that_they_need():
    assert report.value_text(Interval(0.123, 0.1, 0.15)) == "0.12 (0.10 to 0.15)"
    assert report.value_text(Interval(12.34, 9.0, 15.0)) == "12.3 (9.0 to 15.0)"
    assert report.percent(-0.26, -0.28, 0.0) == "-26% (-28% to +0%)"
    assert (report.value_text(Interval(7.25, 7.25, 7.25)), report.percent(0.1, 0.1, 0.1)) == ("7.2", "+10%")  # of one person


def test_tables_name_the_directions(twins):
    changes = {0: {"ventricle": (100.0, Interval(-0.2, -0.3, -0.1))}, 1: {"ventricle": (50.0, Interval(0.2, 0.1, 0.3))}}
    assert [row[:3] for row in report.change_table(changes).rows] == [
        ["AD to NC", "ventricle", 100.0],
        ["NC to AD", "ventricle", 50.0],
    ]
    truth = {0: {"ventricle": (90.0, Interval(-0.4, -0.5, -0.3))}, 1: {"ventricle": (60.0, Interval(0.5, 0.4, 0.6))}}
    table = report.change_table(changes, truth)
    assert table.columns[-1] == "in the true twin" and [row[-1].value for row in table.rows] == [-0.4, 0.5]
