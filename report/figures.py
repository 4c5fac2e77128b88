"""How pictures are drawn: grids, tables and animations of images, and the curves of a training run.

Images come as uint8 or as float in [-1, 1]. Every file is written completely or not at all.
"""

import math
import textwrap

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image, ImageDraw, ImageFont

from dataset import resize, spread, to_uint8
from utils import atomic_path

REAL, FAKE, CRITIC, PENALTY, NEUTRAL, NORM = "#2a6f97", "#c8553d", "#444444", "#7a5195", "#888888", "#ef9b20"
MARGIN, GAP, CAPTION = 16, 2, 34  # pixels: around the figure, between tiles, height of the caption above a grid


def save_figure(figure, path):
    """Write a matplotlib figure as PNG."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


# ---------------------------------------------------------------------------------------------------------------------
# Grids, tables and animations of images


def tile(images, columns):
    """uint8 [N, R, R] -> one uint8 image with `columns` tiles per row; tiles below 128 pixels are upscaled, not smoothed."""
    zoom = max(1, 128 // images.shape[-1])
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    step, rows = images.shape[-1] + GAP, math.ceil(len(images) / columns)
    canvas = np.zeros((rows * step - GAP, columns * step - GAP), np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * step, i % columns * step
        canvas[y : y + step - GAP, x : x + step - GAP] = image
    return canvas


def save_grids(grids, path, columns=4):
    """Write grids side by side, each below its caption. grids: {caption: uint8 [N, R, R]}."""
    tiles = {caption: Image.fromarray(tile(images, columns)) for caption, images in grids.items()}
    width = sum(grid.width for grid in tiles.values()) + MARGIN * (len(tiles) + 1)
    height = max(grid.height for grid in tiles.values()) + CAPTION + MARGIN
    canvas = Image.new("L", (width, height), 255)
    draw, x = ImageDraw.Draw(canvas), MARGIN
    for caption, grid in tiles.items():
        draw.text((x, CAPTION // 2), caption, fill=0, anchor="lm", font=ImageFont.load_default(size=18))
        canvas.paste(grid, (x, CAPTION))
        x += grid.width + MARGIN
    save_png(canvas, path)


def save_png(image, path):
    """Write a Pillow image."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def save_fake_and_real(fake, slices, caption, path):
    """Write generated images, float [N, 1, R, R], beside as many real ones at the same resolution."""
    fake = to_uint8(fake).cpu().numpy()
    save_grids({f"generated: {caption}": fake, "real": resize(spread(slices, len(fake)), fake.shape[-1])}, path)


def save_image_table(cells, path, rows, columns, note="", min_side=128):
    """Write a table of images with a caption per row and per column and a note below.

    cells: [rows, columns, R, R] uint8, or [..., 3] in colour; in a list of rows, None leaves a cell empty.
    min_side: images with a smaller side, in pixels, are upscaled, not smoothed. The last image of the first row sets the
    size for all.
    """
    font = ImageFont.load_default(size=15)

    def text_width(text):
        return math.ceil(max(font.getlength(line) for line in text.split("\n")))

    def text_height(text):
        return 10 + 20 * (text.count("\n") + 1)

    side = next(len(cell) for cell in reversed(cells[0]) if cell is not None)
    side *= max(1, min_side // side)
    widths = [max(side, text_width(column) + 8) + GAP for column in columns]
    lefts = np.cumsum([MARGIN + max(map(text_width, rows)) + 8, *widths]).tolist()  # of the columns, and where the last ends
    top = max(map(text_height, columns)) - 10 + MARGIN // 2 if any(columns) else MARGIN
    bottom = top + len(cells) * (side + GAP)
    height = bottom + MARGIN // 2 + (text_height(note) if note else 0)
    canvas = Image.new("RGB", (max(lefts[-1], MARGIN + text_width(note)) + MARGIN, height), "white")
    draw = ImageDraw.Draw(canvas)
    for left, width, caption in zip(lefts, widths, columns):
        draw.multiline_text((left + width // 2, top - 6), caption, fill="black", anchor="md", align="center", font=font)
    for y, caption, row in zip(range(top, bottom, side + GAP), rows, cells):
        draw.multiline_text((lefts[0] - 8, y + side // 2), caption, fill="black", anchor="rm", align="right", font=font)
        for left, width, cell in zip(lefts, widths, row):
            if cell is not None:
                image = Image.fromarray(cell).resize((side, side), Image.Resampling.NEAREST)
                canvas.paste(image, (left + (width - side) // 2, y))
    draw.multiline_text((MARGIN, bottom + 6), note, fill="#444444", font=font)
    save_png(canvas, path)


def colour(values, limit, name="RdBu_r"):
    """Float maps [..., R, R] -> uint8 [..., R, R, 3] in a colour map: RdBu_r from -limit to limit, any other from 0 to limit."""
    low = -limit if name == "RdBu_r" else 0.0
    return (255 * colormaps[name](np.clip((values - low) / max(limit - low, 1e-12), 0, 1))[..., :3]).round().astype(np.uint8)


def save_gif(frames, path, milliseconds=80):
    """Write frames uint8 [T, H, W] or [T, H, W, 3] as an endless GIF; frames below 256 pixels are upscaled, not smoothed."""
    zoom = max(1, 256 // frames[0].shape[0])
    size = frames[0].shape[1] * zoom, frames[0].shape[0] * zoom
    images = [Image.fromarray(frame).resize(size, Image.Resampling.NEAREST) for frame in frames]
    with atomic_path(path) as temporary:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)


def wrap(note, inches):
    """Break paragraphs in font size 9 into lines for a figure of this width."""
    return "\n".join(textwrap.fill(line, int(14 * inches)) for line in note.split("\n"))


# ---------------------------------------------------------------------------------------------------------------------
# Training

# {title of a panel: its curves as (column, legend, colour)}; columns of losses.csv become lines, those of evaluations.csv points
DASHBOARD = {
    "Losses": [("critic_loss", "critic, without penalty", CRITIC), ("generator_loss", "generator", FAKE)],
    "critic(real) - critic(generated)": [("wasserstein", "Wasserstein estimate", REAL)],
    "Gradient penalty": [("penalty", "penalty (weighted)", PENALTY), ("gradient_norm", "mean norm of the critic's gradient", NORM)],
    "KID x 1000 of the averaged generator": [("kid_train", "training slices", CRITIC), ("kid", "validation slices if any", REAL)],
    "Critic's mean score": [
        ("score_train", "training slices", CRITIC),
        ("score_validation", "validation slices", REAL),
        ("score_generated", "generated slices", FAKE),
    ],
    "Overfitting": [
        ("separation", "separation of a batch, 2 AUC - 1", NEUTRAL),
        ("augment_p", "augmentation p", PENALTY),
        ("overfitting", "validation slices scored: 0 like training, 1 like generated", REAL),
    ],
}
# Margins and gaps as shares of the figure and of a panel; Matplotlib's own layout would take as long again as drawing.
PANELS = {"left": 0.05, "right": 0.99, "bottom": 0.06, "top": 0.97, "wspace": 0.18, "hspace": 0.12}
GRADIENTS = [("critic_gradient", "critic", CRITIC), ("generator_gradient", "generator", FAKE)]


def columns(rows, names):
    """Rows of a run's table as {name of column: float array [rows]}."""
    return dict(zip(names, np.array(rows, dtype=float).reshape(-1, len(names)).T))


def plot_dashboard(losses, evaluations, path):
    """Write losses.png from the columns of losses.csv and evaluations.csv: progress, stability and overfitting at a glance."""
    figure = Figure(figsize=(15, 11))
    panels = figure.subplots(3, 3, sharex=True, gridspec_kw=PANELS)
    curves_of = DASHBOARD | {
        "Standard deviation after each block, generator": [*_block_curves(losses, "generator"), ("std image", "image", FAKE)],
        "Standard deviation after each block, critic": _block_curves(losses, "critic"),
        "Norm of the gradient of the weights": GRADIENTS,
    }
    for axes, (title, curves) in zip(panels.flat, curves_of.items()):
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.2)
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))  # longer labels would not fit the margins
        for column, label, colour in curves:
            if column in losses:
                _plot_line(axes, losses["images"] / 1000, losses[column], label, colour)
            else:
                _plot_points(axes, evaluations["images"] / 1000, evaluations[column], label, colour)

    panels[0, 1].axhline(0, color="grey", linewidth=0.5)
    penalties = np.r_[losses["penalty"], losses["gradient_norm"]]
    if np.isfinite(penalties).any():
        panels[0, 2].set_ylim(0, max(0.1, 1.2 * np.nanquantile(penalties, 0.98)))
    panels[1, 2].set_ylim(-0.25, 1.25)
    for axes in (panels[1, 0], *panels[2]):
        _log_if_wide(axes)
    for axes in panels.flat:
        _mark_stages(axes, losses)
        if axes.get_legend_handles_labels()[0]:
            several = "block" in axes.get_title()
            axes.legend(loc="best", framealpha=0.7, edgecolor="none", fontsize=8, ncols=2 if several else 1)
        else:
            axes.text(0.5, 0.5, "none yet", transform=axes.transAxes, ha="center", va="center", color="grey")
            axes.set_yticks([])
    panels[0, 0].set_xlim(0, 1.02 * max(*losses["images"], *evaluations["images"], 0) / 1000)  # shared by all
    facts = (
        f"{losses['epoch'][-1]:.1f} epochs, {losses['seconds'][-1] / 60:.1f} minutes, "
        f"{np.nanmean(losses['images_per_second']):.1f} images/s, {losses['memory_gib'][-1]:.1f} GiB, "
        f"{losses['skipped'][-1]:.0f} steps skipped"
    )
    figure.supxlabel(f"thousand real slices shown (kimg); {facts}")
    save_figure(figure, path)


def _mark_stages(axes, losses):
    """Lines where the stages of a run that grows begin (training/growth.py), each with its resolution at the top."""
    resolutions, images = losses.get("resolution", np.zeros(0)), losses["images"] / 1000
    changes = np.flatnonzero(np.diff(resolutions))
    for row in (-1, *changes) if len(changes) else ():
        x = images[row] if row >= 0 else 0.0
        axes.axvline(x, color=NEUTRAL, linewidth=0.8, linestyle=":")
        text = f" {resolutions[row + 1]:.0f}"
        axes.text(x, 0.99, text, transform=axes.get_xaxis_transform(), va="top", color=NEUTRAL, fontsize=8)


def _block_curves(losses, part):
    names = [name for name in losses if name.startswith(f"std {part} ")]
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    return [(name, name.split()[-1], shade) for name, shade in zip(names, shades)]


def plot_loss_proportion(losses, path):
    """Write loss_proportion.png: |Wasserstein estimate|, penalty and |generator loss| as shares of their sum over training."""
    terms = [_smooth(np.abs(np.nan_to_num(losses[name]))) for name in ("wasserstein", "penalty", "generator_loss")]
    terms = np.c_[np.array(terms)[:, :1], terms]  # start at 0, so that even one row makes an area
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes, x, shares = figure.subplots(), np.r_[0, losses["images"] / 1000], terms / np.maximum(terms.sum(0), 1e-12)
    labels = ["critic (Wasserstein)", "gradient penalty", "generator"]
    axes.stackplot(x, shares, colors=[REAL, PENALTY, FAKE], labels=labels, alpha=0.85)
    axes.set(xlabel="thousand real slices shown (kimg)", ylabel="share of the loss, by absolute value", ylim=(0, 1))
    axes.margins(x=0)
    axes.legend(loc="lower right", framealpha=0.9)
    save_figure(figure, path)


def _plot_line(axes, x, y, label, colour):
    """Draw the finite values faintly and their running mean strongly, with markers while there are few."""
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(y):
        axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
        axes.plot(x, _smooth(y), color=colour, linewidth=1.6, label=label, marker="o" if len(y) < 10 else None, markersize=3)


def _plot_points(axes, x, y, label, colour):
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(y):
        axes.plot(x, y, "o-", color=colour, markersize=4, linewidth=1.2, label=label)


def _log_if_wide(axes):
    """Make the y axis logarithmic, in plain numbers, if all values are positive and span more than a factor of three."""
    values = [y for line in axes.lines for y in line.get_ydata()]
    if values and 0 < 3 * min(values) < max(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _smooth(y):
    """Centred running mean over a fiftieth of the rows."""
    width = max(1, len(y) // 50) | 1
    kernel = np.ones(width)
    return np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same")
