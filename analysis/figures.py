"""Every picture that training and prediction write, and nothing that decides what is in them.

Images come as uint8 or as float in [-1, 1]; pictures are PNG, written whole or not at all.
"""

import math
import textwrap
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image, ImageDraw, ImageFont

from dataset import to_uint8
from utils import atomic_path

CLASS_COLOURS = {"AD": "#c8553d", "NC": "#2a6f97"}
REAL, FAKE, CRITIC, PENALTY, NEUTRAL = "#2a6f97", "#c8553d", "#444444", "#7a5195", "#888888"
MARGIN, GAP, CAPTION = 16, 2, 34  # pixels around the picture, between tiles, and for the line above a grid


def save_array(array, path):
    """Write `array` as a .npy file, whole or not at all."""
    with atomic_path(path) as temporary:
        np.save(temporary, array)


def save_figure(figure, path):
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


# ---------------------------------------------------------------------------------------------------------------------
# Grids of slices


def tile(images, columns):
    """uint8 [N, R, R] -> one uint8 picture with `columns` tiles a row; tiles under 128 pixels are enlarged, unsmoothed."""
    zoom = max(1, 128 // images.shape[-1])
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    side, rows = images.shape[-1] + GAP, -(-len(images) // columns)
    picture = np.zeros((rows * side - GAP, columns * side - GAP), np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * side, i % columns * side
        picture[y : y + side - GAP, x : x + side - GAP] = image
    return picture


def save_grids(grids, path, columns=4):
    """Write grids side by side, each under its caption. grids: {caption: uint8 [N, R, R]}."""
    tiles = {caption: Image.fromarray(tile(images, columns)) for caption, images in grids.items()}
    width = sum(picture.width for picture in tiles.values()) + MARGIN * (len(tiles) + 1)
    height = max(picture.height for picture in tiles.values()) + CAPTION + MARGIN
    canvas = Image.new("L", (width, height), 255)
    draw, x = ImageDraw.Draw(canvas), MARGIN
    for caption, picture in tiles.items():
        draw.text((x, CAPTION // 2), caption, fill=0, anchor="lm", font=ImageFont.load_default(size=18))
        canvas.paste(picture, (x, CAPTION))
        x += picture.width + MARGIN
    with atomic_path(path) as temporary:
        canvas.save(temporary, format="PNG")


def spread(slices, count):
    """`count` of the slices, spread evenly over the set (so over both classes), uint8 [count, R, R]."""
    return slices[np.linspace(0, len(slices) - 1, count).round().astype(int)]


def save_fake_and_real(fake, slices, caption, path):
    """Generated slices, float [N, 1, R, R], beside as many real ones."""
    fake = to_uint8(fake).cpu().numpy()
    save_grids({f"generated: {caption}": fake, "real": spread(slices, len(fake))}, path)


def save_table(cells, path, rows, columns, note="", least=128):
    """Write a table of pictures with a caption for every row and column, above a note.

    cells: [rows, columns, R, R] uint8, or [.., 3] in colour; a list of rows may hold None where nothing is to be drawn.
    least: pixels a side below which pictures are enlarged, unsmoothed; those of the first row set the size of all.
    """

    def text_width(text):
        return math.ceil(max(font.getlength(line) for line in text.split("\n")))

    font, side = ImageFont.load_default(size=15), next(len(cell) for cell in reversed(cells[0]) if cell is not None)
    side *= max(1, least // side)
    wide = [max(side, text_width(column) + 8) + GAP for column in columns]
    x = np.cumsum([MARGIN + max(map(text_width, rows)) + 8, *wide])  # left edge of every column
    top = 10 + 20 * max(column.count("\n") + 1 for column in columns) if any(columns) else MARGIN
    bottom = top + len(cells) * (side + GAP)
    height = bottom + MARGIN // 2 + (10 + 20 * (note.count("\n") + 1) if note else 0)
    canvas = Image.new("RGB", (int(max(x[-1], MARGIN + text_width(note))) + MARGIN, height), "white")
    draw = ImageDraw.Draw(canvas)
    for left, width, caption in zip(x, wide, columns):
        draw.multiline_text((left + width // 2, top - 6), caption, fill="black", anchor="md", align="center", font=font)
    for y, caption, row in zip(range(top, bottom, side + GAP), rows, cells):
        draw.multiline_text((x[0] - 8, y + side // 2), caption, fill="black", anchor="rm", align="right", font=font)
        for left, width, cell in zip(x, wide, row):
            if cell is not None:
                picture = Image.fromarray(cell).resize((side, side), Image.Resampling.NEAREST)
                canvas.paste(picture, (int(left + (width - side) // 2), y))
    draw.multiline_text((MARGIN, bottom + 6), note, fill="#444444", font=font)
    with atomic_path(path) as temporary:
        canvas.save(temporary, format="PNG")


def colour(values, limit, name="RdBu_r"):
    """Float maps [..., R, R] -> uint8 [..., R, R, 3]: -limit to limit over a diverging colour map, 0 to limit over another."""
    low = -limit if name == "RdBu_r" else 0.0
    return (255 * colormaps[name](np.clip((values - low) / max(limit - low, 1e-12), 0, 1))[..., :3]).round().astype(np.uint8)


def save_gif(frames, path, milliseconds=80):
    """Write frames [T, H, W] uint8, or [T, H, W, 3], as an endless GIF; slices under 256 pixels are enlarged."""
    zoom = max(1, 256 // frames[0].shape[0])
    pictures = [
        Image.fromarray(frame).resize((frame.shape[1] * zoom, frame.shape[0] * zoom), Image.Resampling.NEAREST) for frame in frames
    ]
    with atomic_path(path) as temporary:
        pictures[0].save(temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)


# ---------------------------------------------------------------------------------------------------------------------
# Style vectors


class Panel(NamedTuple):
    """A map of style vectors, and how far its sets lie apart."""

    title: str
    sets: dict  # {legend: [n, 2]}
    measures: dict  # {"neighbours alike": (value, low, high), ...}, each 0.5 by chance; drawn below


def plot_styles(panels, path, note):
    """Write maps side by side, each above its measures with their intervals and the level of chance, above a note."""
    width = max(8.4, 4.2 * len(panels))
    note = wrapped(note, width)
    figure = Figure(figsize=(width, 5.9 + 0.17 * note.count("\n")), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, height_ratios=[5.2, 1])
    for (scatter, strip), panel in zip(axes.T, panels):
        _scatter(scatter, panel.sets)
        scatter.set_title(panel.title, fontsize=10)
        for y, (name, (value, low, high)) in zip((1, 0), panel.measures.items()):
            strip.plot([low, high], [y, y], color=CRITIC, linewidth=2.5, solid_capstyle="butt")
            strip.plot(value, y, "o", color=CRITIC, markersize=5)
            strip.text(
                0,
                y + 0.28,
                f"{name}: {value:.2f} ({low:.2f} to {high:.2f})",
                fontsize=8,
                transform=strip.get_yaxis_transform(),
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
        strip.axvline(0.5, color=FAKE, linestyle=":", linewidth=1.2)
        strip.set(
            xlim=(0.35, 1.02), ylim=(-0.4, 1.7), xticks=[0.5, 0.75, 1], xticklabels=["0.5\nchance", "0.75", "1\napart"], yticks=[]
        )
        strip.tick_params(labelsize=8, length=0)
        for side in ("top", "right", "left"):
            strip.spines[side].set_visible(False)
    figure.supxlabel(note, fontsize=9)
    save_figure(figure, path)


def wrapped(note, inches):
    """Paragraphs of text in size 9, broken into lines for a picture of this width."""
    return "\n".join(textwrap.fill(line, int(14 * inches)) for line in note.split("\n"))


def plot_epochs(lines, path, note):
    """Write maps over the epochs: lines {title: [(epoch, {legend: [n, 2]}, share of alike neighbours)]}, above a note."""
    columns = max(map(len, lines.values()))
    figure = Figure(figsize=(max(7, 3.6 * columns), 3.9 * len(lines) + 0.7), layout="constrained")
    for row, (title, maps) in zip(figure.subplots(len(lines), columns, squeeze=False), lines.items()):
        for axes in row[len(maps) :]:
            axes.axis("off")
        for axes, (epoch, sets, alike) in zip(row, maps):
            _scatter(axes, sets)
            axes.set_title(f"{title}, epoch {epoch}\nneighbours alike: {alike:.0%}", fontsize=10)
    figure.supxlabel(wrapped(note, figure.get_figwidth()), fontsize=9)
    save_figure(figure, path)


def epoch_frames(lines):
    """Frames [T, H, W, 3] of maps over the epochs, {title: [(epoch, sets, alike)]}: a panel a title, at its t-th epoch."""
    frames, bounds = [], {title: _bounds(maps) for title, maps in lines.items()}
    for t in range(max(map(len, lines.values()))):
        figure = Figure(figsize=(4 * len(lines), 4.3), layout="constrained", dpi=80)
        for axes, (title, maps) in zip(figure.subplots(1, len(lines), squeeze=False)[0], lines.items()):
            epoch, sets, alike = maps[min(t, len(maps) - 1)]
            _scatter(axes, sets)
            axes.set(**bounds[title])
            axes.set_title(f"{title}, epoch {epoch}\nneighbours alike: {alike:.0%}", fontsize=10)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return np.stack(frames)


def _scatter(axes, sets):
    axes.set(xticks=[], yticks=[])
    for name, points in sets.items():
        real = name.startswith("real")
        axes.scatter(
            *np.asarray(points).T,
            s=26 if real else max(1, min(6, 6000 / len(points))),
            alpha=0.9 if real else 0.6,
            linewidths=0.7 if real else 0,
            edgecolors="black",
            label=name,
            color=CLASS_COLOURS.get(name.removeprefix("real "), "#b8860b"),
        )
    axes.legend(
        loc="best",
        frameon=True,
        framealpha=0.7,
        edgecolor="none",
        fontsize=8,
        markerscale=1 if any(name.startswith("real") for name in sets) else 2,
    )


def _bounds(maps):
    """Limits that hold all maps of a title, so that the frames of a GIF do not jump."""
    points = np.concatenate([points for _, sets, _ in maps for points in sets.values()])
    low, high = points.min(0), points.max(0)
    margin = 0.05 * (high - low)
    return {"xlim": (low[0] - margin[0], high[0] + margin[0]), "ylim": (low[1] - margin[1], high[1] + margin[1])}


# ---------------------------------------------------------------------------------------------------------------------
# The course of a training


def table(rows, columns):
    """{column: float array [rows]} from the rows of a run's table."""
    return dict(zip(columns, np.array(rows, dtype=float).reshape(-1, len(columns)).T))


def plot_dashboard(losses, evaluations, path):
    """losses.png from the columns of losses.csv and evaluations.csv: is it learning, is it well, does it overfit."""
    figure = Figure(figsize=(15, 11), layout="constrained")
    panels = figure.subplots(3, 3, sharex=True)
    kimg, points = losses["images"] / 1000, evaluations["images"] / 1000

    axes = _panel(panels[0, 0], "Losses")
    _line(axes, kimg, losses["critic_loss"], "critic, without penalty", CRITIC)
    _line(axes, kimg, losses["generator_loss"], "generator", FAKE)
    axes = _panel(panels[0, 1], "critic(real) - critic(generated)")
    _line(axes, kimg, losses["wasserstein"], "Wasserstein estimate", REAL)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes = _panel(panels[0, 2], "Gradient penalty")
    _line(axes, kimg, losses["penalty"], "penalty (weighted)", PENALTY)
    _line(axes, kimg, losses["gradient_norm"], "mean norm of the critic's gradient", "#ef9b20")
    both = np.r_[losses["penalty"], losses["gradient_norm"]]
    if np.isfinite(both).any():
        axes.set_ylim(0, max(0.1, 1.2 * np.nanquantile(both, 0.98)))

    axes = _panel(panels[1, 0], "KID x 1000 of the averaged generator")
    _points(axes, points, evaluations["kid"], "against training slices", CRITIC)
    _points(axes, points, evaluations["kid_test"], "against unseen slices", REAL)
    _log_if_wide(axes)
    axes = _panel(panels[1, 1], "Critic's mean score")
    for column, label, colour in (
        ("score_train", "training slices", CRITIC),
        ("score_test", "unseen slices", REAL),
        ("score_generated", "generated slices", FAKE),
    ):
        _points(axes, points, evaluations[column], label, colour)
    axes = _panel(panels[1, 2], "Overfitting")
    _line(axes, kimg, losses["separation"], "separation of a batch, 2 AUC - 1", NEUTRAL)
    _line(axes, kimg, losses["augment_p"], "augmentation p", PENALTY)
    _points(axes, points, evaluations["overfitting"], "unseen slices: 0 as training's, 1 as generated", REAL)
    axes.set_ylim(-0.25, 1.05)

    for axes, part in ((panels[2, 0], "generator"), (panels[2, 1], "critic")):
        _panel(axes, f"Standard deviation after each block, {part}")
        columns = [name for name in losses if name.startswith(f"std {part} ")]
        for i, name in enumerate(columns):
            _line(axes, kimg, losses[name], name.split()[-1], _viridis(i / max(1, len(columns) - 1)))
    _line(panels[2, 0], kimg, losses["std image"], "image", FAKE)
    axes = _panel(panels[2, 2], "Norm of the gradient by the weights")
    _line(axes, kimg, losses["critic_gradient"], "critic", CRITIC)
    _line(axes, kimg, losses["generator_gradient"], "generator", FAKE)

    for axes in panels[2]:
        _log_if_wide(axes)
    for axes in panels.flat:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", frameon=False, fontsize=8, ncols=2 if "block" in axes.get_title() else 1)
        else:
            axes.text(0.5, 0.5, "none yet", transform=axes.transAxes, ha="center", va="center", color="grey")
            axes.set_yticks([])
    panels[0, 0].set_xlim(0, 1.02 * max(kimg.max(), *points, 0))  # of all, which share it
    facts = (
        f"{losses['epoch'][-1]:.1f} epochs, {losses['seconds'][-1] / 60:.1f} minutes, "
        f"{np.nanmean(losses['images_per_second']):.1f} images/s, {losses['memory_gib'][-1]:.1f} GiB, "
        f"{losses['skipped'][-1]:.0f} steps left out"
    )
    figure.supxlabel(f"thousand real slices shown (kimg); {facts}")
    save_figure(figure, path)


def plot_loss_proportion(losses, path):
    """loss_proportion.png: the shares of |Wasserstein estimate|, penalty and |generator loss| in their sum over training."""
    terms = np.abs(np.nan_to_num([losses["wasserstein"], losses["penalty"], losses["generator_loss"]]))
    terms = np.array([_smooth(term) for term in terms])
    terms = np.c_[terms[:, :1], terms]  # from 0 on, so that even one row is an area
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.stackplot(
        np.r_[0, losses["images"] / 1000],
        terms / np.maximum(terms.sum(0), 1e-12),
        colors=[REAL, PENALTY, FAKE],
        labels=["critic (Wasserstein)", "gradient penalty", "generator"],
        alpha=0.85,
    )
    axes.set(xlabel="thousand real slices shown (kimg)", ylabel="share of the loss, by absolute value", ylim=(0, 1))
    axes.margins(x=0)
    axes.legend(loc="lower right", framealpha=0.9)
    save_figure(figure, path)


def _panel(axes, title):
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.2)
    return axes


def _line(axes, x, y, label, colour):
    """The values faint, their running mean strong, dotted while they are few; nothing if there is no value."""
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(y):
        axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(x, _smooth(y), color=colour, linewidth=1.6, label=label, marker="o" if len(y) < 10 else None, markersize=3)


def _points(axes, x, y, label, colour):
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(y):
        axes.plot(x, y, "o-", color=colour, markersize=4, linewidth=1.2, label=label)


def _log_if_wide(axes):
    """A logarithmic y axis, in plain numbers, if all that is drawn is positive and spans more than a factor of three."""
    values = [y for line in axes.lines for y in line.get_ydata()]
    if values and 0 < 3 * min(values) < max(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _viridis(share):
    return colormaps["viridis"](0.9 * share)


def _smooth(y):
    """Centred running mean over a fiftieth of the rows."""
    width = max(1, len(y) // 50) | 1
    kernel = np.ones(width)
    return np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same")
