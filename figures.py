"""Every picture that training and prediction write, and nothing that decides what is in them.

Images come as uint8 or as float in [-1, 1]; pictures are PNG, written whole or not at all.
"""
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image, ImageDraw, ImageFont

from dataset import to_uint8
from utils import atomic_path

CLASS_COLOURS = {"AD": "#c8553d", "NC": "#2a6f97"}
MARGIN, GAP, CAPTION = 16, 2, 34        # pixels around the picture, between tiles, and for the line above a grid


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
        picture[y:y + side - GAP, x:x + side - GAP] = image
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


# ---------------------------------------------------------------------------------------------------------------------
# Style vectors

def plot_panels(lines, path, note):
    """Scatter plots in lines of panels, each (title, {class name: [n, 2]}, share of alike neighbours), above a note."""
    columns, rows = max(map(len, lines)), len(lines)
    figure = Figure(figsize=(max(7, 3.6 * columns), 3.9 * rows + 0.7), layout="constrained")
    for axes, (title, sets, alike) in zip(figure.subplots(rows, columns, squeeze=False).flat, _padded(lines, columns)):
        axes.set(xticks=[], yticks=[])
        for name, points in sets.items():
            axes.scatter(*points.T, s=6, alpha=0.6, linewidths=0, color=CLASS_COLOURS.get(name, "#555555"), label=name)
        if sets:
            axes.set_title(f"{title}\nneighbours of the same class: {alike:.0%}", fontsize=10)
            axes.legend(loc="best", frameon=False, markerscale=2)
        else:
            axes.axis("off")
    figure.supxlabel(note, fontsize=8 if columns < 3 else 9)
    save_figure(figure, path)


def _padded(lines, columns):
    """Empty panels at the end of short lines."""
    return [panel for line in lines for panel in [*line, *[("", {}, 0)] * (columns - len(line))]]


# ---------------------------------------------------------------------------------------------------------------------
# The course of a training

REAL, FAKE, CRITIC, PENALTY, NEUTRAL = "#2a6f97", "#c8553d", "#444444", "#7a5195", "#888888"


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
    for column, label, colour in (("score_train", "training slices", CRITIC), ("score_test", "unseen slices", REAL),
                                  ("score_generated", "generated slices", FAKE)):
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
    panels[0, 0].set_xlim(0, 1.02 * max(kimg.max(), *points, 0))                         # of all, which share it
    facts = (f"{losses['epoch'][-1]:.1f} epochs, {losses['seconds'][-1] / 60:.1f} minutes, "
             f"{np.nanmean(losses['images_per_second']):.1f} images/s, {losses['memory_gib'][-1]:.1f} GiB, "
             f"{losses['skipped'][-1]:.0f} steps left out")
    figure.supxlabel(f"thousand real slices shown (kimg); {facts}")
    save_figure(figure, path)


def plot_loss_proportion(losses, path):
    """loss_proportion.png: the shares of |Wasserstein estimate|, penalty and |generator loss| in their sum over training."""
    terms = np.abs(np.nan_to_num([losses["wasserstein"], losses["penalty"], losses["generator_loss"]]))
    terms = np.array([_smooth(term) for term in terms])
    terms = np.c_[terms[:, :1], terms]                  # from 0 on, so that even one row is an area
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.stackplot(np.r_[0, losses["images"] / 1000], terms / np.maximum(terms.sum(0), 1e-12), colors=[REAL, PENALTY, FAKE],
                   labels=["critic (Wasserstein)", "gradient penalty", "generator"], alpha=0.85)
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
