"""Every picture that training and prediction write, and nothing that decides what is in them.

Images come as uint8 or as float in [-1, 1]; pictures are PNG, written whole or not at all.
"""
import numpy as np
from matplotlib.figure import Figure
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
# Loss curves

def plot_losses(rows, columns, path):
    """losses.png from the rows of losses.csv: losses, Wasserstein estimate, penalty with the critic's gradient norm."""
    table = dict(zip(columns, np.array(rows, dtype=float).T))
    kimg = table["images"] / 1000
    figure = Figure(figsize=(9, 8), layout="constrained")
    losses, wasserstein, penalty = figure.subplots(3, 1, sharex=True)
    _line(losses, kimg, table["critic_loss"], "critic", "#444444")
    _line(losses, kimg, table["generator_loss"], "generator", "#c8553d")
    losses.set_ylabel("loss")
    _line(wasserstein, kimg, table["wasserstein"], "critic(real) - critic(generated)", "#2a6f97")
    wasserstein.set_ylabel("Wasserstein estimate")
    wasserstein.axhline(0, color="grey", linewidth=0.5)
    _line(penalty, kimg, table["penalty"], "penalty (weighted)", "#7a5195")
    _line(penalty, kimg, table["gradient_norm"], "mean gradient norm (1 is the goal)", "#ef9b20")
    penalty.axhline(1, color="grey", linewidth=0.5)
    penalty.set_ylabel("gradient penalty")
    penalty.set_ylim(0, max(1.5, 1.2 * np.quantile(np.r_[table["penalty"], table["gradient_norm"]], 0.98)))
    penalty.set_xlabel(f"thousand real slices shown (kimg); {table['epoch'][-1]:.1f} epochs, {table['seconds'][-1] / 60:.1f} "
                       "minutes")
    for axes in (losses, wasserstein, penalty):
        axes.legend(loc="upper right", frameon=False)
        axes.grid(alpha=0.2)
    save_figure(figure, path)


def plot_loss_proportion(rows, columns, path):
    """loss_proportion.png: the shares of |Wasserstein estimate|, penalty and |generator loss| in their sum over training."""
    table = dict(zip(columns, np.array(rows, dtype=float).T))
    terms = np.abs([table["wasserstein"], table["penalty"], table["generator_loss"]])
    terms = np.array([_smooth(term) for term in terms])
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.stackplot(table["images"] / 1000, terms / np.maximum(terms.sum(0), 1e-12), colors=["#2a6f97", "#7a5195", "#c8553d"],
                   labels=["critic (Wasserstein)", "gradient penalty", "generator"], alpha=0.85)
    axes.set(xlabel="thousand real slices shown (kimg)", ylabel="share of the loss, by absolute value", ylim=(0, 1))
    axes.margins(x=0)
    axes.legend(loc="lower right", framealpha=0.9)
    save_figure(figure, path)


def _line(axes, x, y, label, colour):
    """The values faint, their running mean strong."""
    axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(x, _smooth(y), color=colour, linewidth=1.6, label=label)


def _smooth(y):
    """Centred running mean over a fiftieth of the rows."""
    width = max(1, len(y) // 50) | 1
    kernel = np.ones(width)
    return np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same")
