"""Maps of style vectors, drawn: every set, measure and value, the epochs that are shown, the section and the table of points."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.age_probe import age_probe
from analysis.bootstrap import Interval
from analysis.models import Model
from analysis.style_maps import EpochMap, MapSettings, RealSlices, StyleMap, map_specs
from analysis.style_space import StyleSeparation
from data.subjects import Scan, identify
from report import maps

SEPARATION = StyleSeparation(Interval(0.6, 0.55, 0.66), Interval(0.9, 0.85, 0.97))
SIZE = SimpleNamespace(w_dim=3)  # stands for a mapping network
AD, NC, SECOND_NC = (Model(name, SIZE, None, [name[:2]], [None], name) for name in ("AD", "NC", "NC 2"))
PAIR, CONTROL, CONDITIONAL = map_specs(AD, NC, SECOND_NC, Model("both", SIZE, None, ["AD", "NC"], [0, 1], "both"))


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that would be written, by name of file."""
    saved = {}
    monkeypatch.setattr(maps, "save_figure", lambda figure, path: saved.update({path: figure}))
    return saved


def a_map(spec, points, values=None, **others):
    return StyleMap(spec, {}, points, SEPARATION, values or {}, **others)


def test_plot_maps_draws_every_set_and_measure(drawn):
    points = np.random.default_rng(0).normal(size=(40, 2))
    shown = {"AD": points, "real AD": points[:3]}
    maps.plot_maps([a_map(PAIR, shown), a_map(CONTROL, shown)], "a.png", "note " * 60)
    *panels, strip, _ = drawn["a.png"].axes
    assert [axes.get_title() for axes in panels] == ["AD and NC", "control: NC twice"]
    for scatter, expected in zip(panels[0].collections, (points, points[:3]), strict=True):
        np.testing.assert_allclose(scatter.get_offsets(), expected)
    assert [text.get_text() for text in strip.texts] == [
        "same-class k-NN fraction: 0.60 (0.55 to 0.66)",
        "AUC of a linear probe: 0.90 (0.85 to 0.97)",
    ]
    assert [list(line.get_xdata()) for line in strip.lines[:6:3]] == [[0.55, 0.66], [0.85, 0.97]]


def test_plot_maps_colours_points_by_values_and_counts_unknown_ones(drawn):
    points = np.random.default_rng(0).normal(size=(40, 2))
    sets, ages = {"AD": points, "real AD": points[:3], "real NC": points[:2]}, np.array([60.0, np.nan, 80.0])
    by_age = a_map(PAIR, sets, {"real AD": ages, "real NC": np.array([70.0, 75.0])})
    by_sex = a_map(PAIR, sets, {"real AD": np.array(["F", "M", ""]), "real NC": np.array(["F", "F"])})
    maps.plot_maps([by_age], "age.png", "note", "age, years")
    maps.plot_maps([by_sex], "sex.png", "note", "sex")
    axes, _, bar = drawn["age.png"].axes
    assert bar.get_ylabel() == "age, years" and bar.get_ylim() == tuple(np.quantile([60, 80, 70, 75], (0.02, 0.98)))
    _, known, unknown, nc = axes.collections
    np.testing.assert_array_equal(known.get_offsets(), points[[0, 2]])
    np.testing.assert_array_equal(known.get_array(), [60, 80])
    np.testing.assert_array_equal(unknown.get_offsets(), points[[1]])
    assert len(unknown.get_facecolor()) == 0  # hollow
    assert [text.get_text() for text in axes.get_legend().texts] == ["AD", "real AD", "real AD, unknown (1)", "real NC"]
    axes, _ = drawn["sex.png"].axes
    labels = ["AD", "real AD, F (1)", "real AD, M (1)", "real AD, unknown (1)", "real NC, F (2)"]
    assert [text.get_text() for text in axes.get_legend().texts] == labels
    colours = [tuple(collection.get_facecolor()[0, :3]) for collection in axes.collections if len(collection.get_facecolor())]
    assert colours[1] == colours[3] != colours[2] and colours[0] not in colours[1:]  # F, F, M; generated ones are grey


def test_epoch_frames_show_the_last_map_of_a_shorter_history():
    rng = np.random.default_rng(0)
    lines = {"one": [EpochMap(epoch, {"AD": rng.normal(size=(9, 2))}, 0.5) for epoch in (1, 2, 3)]}
    lines["two"] = [EpochMap(epoch, {"NC": rng.normal(size=(9, 2))}, 0.75) for epoch in (1, 3)]
    frames = maps.epoch_frames(lines)
    assert frames.shape[0] == 3 and frames.dtype == np.uint8 and frames.shape[3] == 3
    half = frames.shape[2] // 2
    assert (frames[1, :, half + 20 :] == frames[2, :, half + 20 :]).all() and (frames[0] != frames[1]).any()


@pytest.mark.parametrize("colour", ["class", "sex"])
def test_save_points_writes_every_point_and_its_value(tmp_path, colour):
    values = {"NC": np.array(["F"])} if colour == "sex" else {}
    a = a_map(PAIR, {"AD": np.array([[1.0, 2.0], [3.0, 4.0]]), "NC": np.array([[5.0, 6.0]])}, values)
    maps.save_points([a], str(tmp_path / "map.csv"), colour)
    with open(tmp_path / "map.csv", newline="") as file:
        header, *rows = csv.reader(file)
    places = [["AD", "0", "1.0", "2.0"], ["AD", "1", "3.0", "4.0"], ["NC", "0", "5.0", "6.0"]]
    if colour == "class":
        assert header == ["panel", "set", "number", "x", "y"] and rows == [["AD and NC", *place] for place in places]
    else:
        assert header == ["panel", "set", "number", "x", "y", "sex"]
        assert rows == [["AD and NC", *place, value] for place, value in zip(places, ("", "", "F"))]


def test_draw_maps_gives_tables_and_numbers_of_every_separation(tmp_path, drawn):
    rng = np.random.default_rng(0)
    names = [f"AD/{i}_1.png" for i in range(6)] + [f"NC/{i}_1.png" for i in range(6, 12)]
    scans = identify(names, {str(i): Scan(str(i), f"p{i}", None, "F", 70.0 + i) for i in range(12)})
    real = RealSlices({}, names, scans, {"real AD": rng.normal(size=(6, 3)), "real NC": rng.normal(size=(6, 3))})
    points = {name: rng.normal(size=(6, 2)) for name in ("AD", "NC", *real.w)}
    position = {"slice index alone": Interval(0.6, 0.5, 0.7), "position-stratified": None, "known": 12, "unknown": ""}
    age = age_probe(real.points, np.repeat([0, 1], 6), scans)
    both = a_map(CONDITIONAL, points, real=real, real_separation=SEPARATION, position=position, age=age)
    section = maps.draw_maps([a_map(PAIR, points), both], MapSettings("pca", 15, 0.1, 6, 0), str(tmp_path))
    table = section.tables[0]
    assert [row[0] for row in table.rows] == ["AD and NC", "one conditional model", "real slices in one conditional model"]
    assert [row[4] for row in table.rows] == [None, None, position["slice index alone"]]
    assert section.numbers["real slices in one conditional model"] == SEPARATION._asdict() | position
    assert section.numbers["age"] is age and any(sentence.startswith("Age: a linear probe") for sentence in section.text)
    assert [figure.path for figure in section.figures] == [str(tmp_path / "pca.png")] == list(drawn)
