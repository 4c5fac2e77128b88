"""Maps of style vectors, drawn: every set, measure and value, the epochs that are shown, the section and the table of points."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.bootstrap import Interval
from analysis.encoded_maps import EncodedMap, EncodedSet, RealSlices, known_values
from analysis.models import Model
from analysis.style_maps import EpochMap, MapSettings, StyleMap, map_specs
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


def a_map(spec, points):
    return StyleMap(spec, {}, points, SEPARATION)


def test_plot_maps_draws_every_set_and_measure(drawn):
    points = np.random.default_rng(0).normal(size=(40, 2))
    shown = {"AD": points, "NC": points[:3]}
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


@pytest.fixture
def encoded():
    """Two people of each class with three slices; the age of one is unknown, and no sex is known."""
    rng = np.random.default_rng(0)
    names = [f"{'AD' if i < 2 else 'NC'}/{i}_{at}.png" for i in range(4) for at in (12, 10, 11)]
    scans = identify(names, {str(i): Scan(str(i), f"p{i}", None, None, None if i == 3 else 60.0 + i) for i in range(4)})
    real = RealSlices(np.zeros((12, 8, 8), np.uint8), np.repeat([0, 1], 6), names, scans)
    sets = {
        name: EncodedSet(np.zeros((n, 8, 8), np.uint8), rng.normal(size=(n, 3)), rng.normal(size=(n, 2)))
        for name, n in (("AD", 5), ("NC", 5), ("real AD", 6), ("real NC", 6))
    }
    position = {"slice index alone": Interval(0.6, 0.5, 0.7), "position-stratified": None, "known": 12, "unknown": ""}
    mixing, refused = Interval(0.55, 0.5, 0.6), np.arange(12) == 0
    return EncodedMap(SECOND_NC, sets, real, known_values(real), refused, mixing, SEPARATION, position, None)


def test_encoded_maps_show_what_is_known_of_real_slices_over_generated_ones(drawn, encoded, monkeypatch):
    monkeypatch.setattr(maps, "JUMP", 10)
    maps.plot_encoded(encoded, "e.png", "note")
    panels = {axes.get_title(): axes for axes in drawn["e.png"].axes if axes.get_title()}
    assert list(panels) == ["class", "person: lines through neighbouring slices", "slice index", "age, years"]
    real = np.concatenate([encoded.sets[f"real {name}"].points for name in ("AD", "NC")])
    for axes in panels.values():
        np.testing.assert_array_equal(axes.collections[0].get_offsets()[:5], encoded.sets["AD"].points)
    lines = panels["person: lines through neighbouring slices"].lines
    assert len(lines) == 4
    np.testing.assert_array_equal(np.array(lines[1].get_data()).T, real[[4, 5, 3]])  # in the order 10, 11, 12
    np.testing.assert_array_equal(panels["slice index"].collections[1].get_array(), np.tile([12, 10, 11], 4))
    unknown, known = panels["age, years"].collections[1:]
    np.testing.assert_array_equal(unknown.get_offsets(), real[9:])
    np.testing.assert_array_equal(known.get_array(), np.repeat([60, 61, 62], 3))
    labels = [text.get_text() for text in panels["class"].get_legend().texts]
    assert labels == ["generated", "real AD (6)", "real NC (6)"]


def test_lines_of_people_are_broken_where_neighbouring_slices_lie_far_apart():
    axes = Figure().subplots()
    points = np.array([[0.0, 0], [1, 0], [2, 0], [50, 0], [51, 0], [100, 100]])
    maps._draw_people(axes, points, np.repeat(["a", "b"], [5, 1]), np.array([2, 1, 0, 3, 4, 0]))
    x = axes.lines[0].get_xdata()
    np.testing.assert_array_equal(x, [2, 1, 0, np.nan, 50, 51])
    assert [len(line.get_xdata()) for line in axes.lines] == [6, 1]


def test_draw_encoded_writes_every_point_with_its_values(drawn, encoded, tmp_path):
    section = maps.draw_encoded(encoded, MapSettings("pca", 15, 0.1, 6, 0), str(tmp_path))
    assert list(drawn) == [str(tmp_path / "pca_NC 2.png")] == [figure.path for figure in section.figures]
    with open(tmp_path / "pca_NC 2.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows] == ["AD"] * 5 + ["NC"] * 5 + ["real AD"] * 6 + ["real NC"] * 6
    assert (rows[10]["file"], rows[10]["refused"], rows[10]["age"]) == ("AD/0_12.png", "True", "60.0")
    assert [float(rows[-1][axis]) for axis in "xy"] == encoded.sets["real NC"].points[-1].tolist()
    (table,) = section.tables
    assert table.rows[0][5:] == [encoded.position["slice index alone"], None] and section.numbers["refused"] == 1 / 12


@pytest.mark.parametrize("trained, title, cell", [(None, "", ""), (0, "", "False"), (6, "WARNING: 50% of the real slices", "True")])
def test_maps_of_people_that_were_trained_on_say_so_above_the_panels(drawn, encoded, tmp_path, trained, title, cell):
    encoded = encoded._replace(trained=None if trained is None else np.arange(12) < trained)
    section = maps.draw_encoded(encoded, MapSettings("pca", 15, 0.1, 6, 0), str(tmp_path))
    (figure,) = drawn.values()
    assert figure.get_suptitle().startswith(title) and bool(figure.get_suptitle()) == bool(title)
    assert section.numbers.get("trained_on") == (None if trained is None else trained / 12)
    with open(tmp_path / "pca_NC 2.csv", newline="") as file:
        assert list(csv.DictReader(file))[10]["trained on"] == cell


def test_epoch_frames_show_the_last_map_of_a_shorter_history():
    rng = np.random.default_rng(0)
    lines = {"one": [EpochMap(epoch, {"AD": rng.normal(size=(9, 2))}, 0.5) for epoch in (1, 2, 3)]}
    lines["two"] = [EpochMap(epoch, {"NC": rng.normal(size=(9, 2))}, 0.75) for epoch in (1, 3)]
    frames = maps.epoch_frames(lines)
    assert frames.shape[0] == 3 and frames.dtype == np.uint8 and frames.shape[3] == 3
    half = frames.shape[2] // 2
    assert (frames[1, :, half + 20 :] == frames[2, :, half + 20 :]).all() and (frames[0] != frames[1]).any()


def test_draw_maps_writes_the_table_and_points_of_every_separation(tmp_path, drawn):
    points = {"AD": np.array([[1.0, 2.0], [3.0, 4.0]]), "NC": np.array([[5.0, 6.0]])}
    shown = [a_map(PAIR, points), a_map(CONDITIONAL, points)]
    section = maps.draw_maps(shown, MapSettings("pca", 15, 0.1, 6, 0), str(tmp_path))
    with open(tmp_path / "pca.csv", newline="") as file:
        header, *rows = csv.reader(file)
    places = [["AD", "0", "1.0", "2.0"], ["AD", "1", "3.0", "4.0"], ["NC", "0", "5.0", "6.0"]]
    assert header == ["panel", "set", "number", "x", "y"]
    assert rows == [[title, *place] for title in ("AD and NC", "one conditional model") for place in places]
    assert [row[0] for row in section.tables[0].rows] == ["AD and NC", "one conditional model"]
    assert section.numbers["AD and NC"] == SEPARATION._asdict() and list(drawn) == [str(tmp_path / "pca.png")]
