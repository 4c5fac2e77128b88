"""What is drawn: the right pixels in the right place, and every column of a run in its panel."""

import numpy as np
import pytest
import torch
from conftest import read_image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from dataset import spread
from report import figures

LOSSES = ("images", "epoch", "seconds", "critic_loss", "generator_loss", "wasserstein", "penalty", "gradient_norm", "separation")
LOSSES += ("augment_p", "critic_gradient", "generator_gradient", "images_per_second", "memory_gib", "skipped")
LOSSES += ("std generator 4x4", "std generator 8x8", "std critic 8x8", "std critic 4x4", "std image")
EVALUATIONS = ("images", "kid", "kid_train", "score_train", "score_validation", "score_generated", "overfitting")


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that would be written, by name of file."""
    saved = {}
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: saved.update({path: figure}))
    return saved


def constant_images(*values, side=128):
    return np.stack([np.full((side, side), value, np.uint8) for value in values])


# ---------------------------------------------------------------------------------------------------------------------
# Images


def test_tile_fills_rows_first_and_leaves_gaps_black():
    tiled = figures.tile(constant_images(10, 20, 30), columns=2)
    assert tiled.shape == (2 * 128 + figures.GAP, 2 * 128 + figures.GAP)
    assert (tiled[:128, :128] == 10).all() and (tiled[:128, -128:] == 20).all() and (tiled[-128:, :128] == 30).all()
    assert (tiled[-128:, 128:] == 0).all() and (tiled[128:-128] == 0).all()


def test_tile_upscales_small_images_without_smoothing():
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32), dtype=np.uint8)
    np.testing.assert_array_equal(figures.tile(image, 1), np.kron(image[0], np.ones((4, 4), np.uint8)))


@pytest.mark.parametrize("count, expected", [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10)))])
def test_spread_covers_the_whole_set_evenly(count, expected):
    assert spread(np.arange(10), count).tolist() == expected


def test_save_fake_and_real_shows_both_at_the_same_size(tmp_path):
    fake = torch.full((2, 1, 32, 32), -0.5)
    figures.save_fake_and_real(fake, constant_images(200, 210, 220, side=32), "epoch 1", tmp_path / "a.png")
    shown = read_image(tmp_path / "a.png")
    half = shown.shape[1] // 2
    body = shown[figures.CAPTION : figures.CAPTION + 128]
    assert (body[:, :half] == 64).sum() == 2 * 128**2  # -0.5 is grey 64
    assert (body[:, half:] == 200).sum() == (body[:, half:] == 220).sum() == 128**2


def test_save_image_table_places_every_cell_below_its_column(tmp_path):
    red, blue = (np.broadcast_to(np.array(rgb, np.uint8), (32, 32, 3)) for rgb in ((255, 0, 0), (0, 0, 255)))
    figures.save_image_table(
        [[red, blue], [None, red]], tmp_path / "a.png", ["row", "row\ntwo"], ["a", "b\nc"], "a note\nof two lines"
    )
    shown = read_image(tmp_path / "a.png")
    (red_y, red_x), (blue_y, blue_x) = (np.nonzero((shown == rgb).all(2)) for rgb in ((255, 0, 0), (0, 0, 255)))
    assert len(red_y) == 2 * 128**2 and len(blue_y) == 128**2
    assert red_y.min() == blue_y.min() and red_x.max() == blue_x.max() and red_x.min() < blue_x.min()
    figures.save_image_table([[red, blue]], tmp_path / "b.png", [""], ["", ""])  # no captions and no note: no room for them
    height, width = 128 + figures.GAP + 3 * figures.MARGIN // 2, 2 * 130 + 2 * figures.MARGIN + 8
    assert read_image(tmp_path / "b.png").shape[:2] == (height, width)


def test_colour_is_symmetric_around_white_or_starts_at_black():
    diverging = figures.colour(np.array([[-2.0, 0, 2, 9]]), 2).astype(int)
    assert (diverging[0, 1] > 240).all() and diverging[0, 0, 2] > diverging[0, 0, 0] and diverging[0, 2, 0] > diverging[0, 2, 2]
    np.testing.assert_array_equal(diverging[0, 2], diverging[0, 3])  # values beyond the limit are clipped
    assert figures.colour(np.array([[0.0]]), 1, "inferno").max() < 5


def test_save_gif_keeps_all_frames_and_upscales_small_ones(tmp_path):
    figures.save_gif(list(constant_images(0, 128, 255, side=64)), tmp_path / "a.gif", 500)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3 and image.size == (256, 256) and image.info["duration"] == 500 and image.info["loop"] == 0
        for frame, value in enumerate((0, 128, 255)):
            image.seek(frame)
            assert (np.asarray(image.convert("L")) == value).all()


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_columns_turns_rows_into_arrays():
    table = figures.columns([(1, 2.5), (3, float("nan"))], ("a", "b"))
    assert table["a"].tolist() == [1, 3] and table["b"][0] == 2.5 and np.isnan(table["b"][1])
    assert {name: len(column) for name, column in figures.columns([], ("a", "b")).items()} == {"a": 0, "b": 0}


def test_plot_dashboard_draws_every_column_in_its_panel(drawn):
    rng = np.random.default_rng(0)
    losses = figures.columns(rng.uniform(1, 2, (5, len(LOSSES))), LOSSES)
    evaluations = figures.columns(rng.uniform(1, 2, (3, len(EVALUATIONS))), EVALUATIONS)
    losses["generator_loss"][2] = np.nan
    figures.plot_dashboard(losses, evaluations, "a.png")
    curves = {line.get_label(): line for axes in drawn["a.png"].axes for line in axes.lines if not line.get_label().startswith("_")}
    labels = [text.get_text() for axes in drawn["a.png"].axes for text in axes.get_legend().texts]
    assert len(labels) == len(LOSSES) + len(EVALUATIONS) - 7  # images twice, epoch, seconds, speed, memory and skipped
    np.testing.assert_allclose(curves["Wasserstein estimate"].get_ydata(), losses["wasserstein"])  # 5 rows: not smoothed
    np.testing.assert_allclose(
        curves["validation slices scored: 0 like training, 1 like generated"].get_ydata(), evaluations["overfitting"]
    )
    shown = next(line for line in drawn["a.png"].axes[0].lines if line.get_label() == "generator")
    np.testing.assert_allclose(shown.get_xdata(), np.delete(losses["images"], 2) / 1000)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-6, -0.012, 1, -1500, 1e6])
def test_plot_dashboard_has_room_for_the_labels_of_any_values(drawn, scale):
    rng = np.random.default_rng(0)
    losses, evaluations = (figures.columns(rng.uniform(1, 1.02, (5, len(names))), names) for names in (LOSSES, EVALUATIONS))
    for values in (losses, evaluations):
        values |= {name: (abs(scale) if name.startswith("std") else scale) * values[name] for name in values.keys() - {"epoch"}}
        values["images"] = np.linspace(1e4, 2e6, len(values["images"]))
    figures.plot_dashboard(losses, evaluations, "a.png")
    figure = drawn["a.png"]
    FigureCanvasAgg(figure).draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    for left, right in ((left, right) for row in (boxes[:3], boxes[3:6], boxes[6:]) for left, right in zip(row, row[1:])):
        assert left.x1 < right.x0


def test_plot_loss_proportion_stacks_shares_that_sum_to_one(drawn):
    values = {"images": [1000, 2000], "wasserstein": [-1, 2], "penalty": [1, np.nan], "generator_loss": [2, -6]}
    figures.plot_loss_proportion({name: np.array(column, float) for name, column in values.items()}, "a.png")
    (axes,) = drawn["a.png"].axes
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in axes.collections]
    np.testing.assert_allclose(tops, [0.25, 0.5, 1], atol=1e-9)  # shares 1/4, 1/4, 1/2, then 1/4, 0, 3/4
