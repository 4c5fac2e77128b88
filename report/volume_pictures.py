"""A picture of the steps of prepare.py for one scan: three planes through the volume after each, and the slices below."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data.volume_steps import FIELD
from utils import atomic_path

PLANES = "axial", "coronal", "sagittal"  # of a Panel, from above
MAX_COLUMNS = 10  # of slices
INCHES, TITLE = 1.75, 0.5  # of a plane, and above them all


def save(panels, pixels, title, path):
    """Draw Panels (data/volume_steps.py), a column each, and the slices uint8 or uint16 [N, 240, 256], into the PNG at `path`."""
    strip_columns = min(max(len(pixels), 4), MAX_COLUMNS)
    rows, width = -(-len(pixels) // strip_columns), INCHES * max(len(panels), 4)
    slice_height = width / strip_columns * pixels.shape[1] / pixels.shape[2]
    figure = Figure((width, TITLE + 3 * INCHES + 0.3 + rows * slice_height), facecolor="black")
    FigureCanvasAgg(figure)
    edges = {"left": 0.005, "right": 0.995, "bottom": 0.005, "top": 1 - TITLE / figure.get_figheight()}
    heights = 3 * INCHES, rows * slice_height
    above, below = figure.add_gridspec(2, 1, height_ratios=heights, hspace=0.3 / (INCHES + slice_height), **edges)
    grid = above.subgridspec(3, len(panels), wspace=0.03, hspace=0.03)
    for column, panel in enumerate(panels):
        draw_panel(figure, [grid[row, column] for row in range(3)], panel)
    strip = below.subgridspec(rows, strip_columns, wspace=0.02, hspace=0.02)
    for i, plane in enumerate(pixels):
        axes = figure.add_subplot(strip[divmod(i, strip_columns)])
        axes.set_axis_off()
        axes.imshow(plane, cmap="gray", vmin=0, vmax=np.iinfo(pixels.dtype).max)
    title += "   L: the person's left"
    figure.text(0.005, 1 - 0.1 / figure.get_figheight(), title, color="white", fontsize=8, va="top")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png", facecolor="black")


def draw_panel(figure, cells, panel):
    """Draw the three planes of a Panel into the cells of a grid, with the outline of its mask and the letter of a side."""
    planes, outlines, text, colours = panel.planes, panel.outlines, panel.title, "gray"
    shown = np.concatenate([plane.ravel() for plane in planes])
    low, high = min(0, shown.min()), max(np.percentile(shown, 99.8), 1e-6)
    if panel.title == FIELD:  # which is known inside the mask alone
        planes, outlines = [np.where(inside, plane, np.nan) for plane, inside in zip(planes, outlines)], [None] * 3
        shown = np.concatenate([plane.ravel() for plane in planes])
        colours, low, high = "viridis", np.nanmin(shown), np.nanmax(shown)
        text = f"{panel.title}\n{low:.2f} to {high:.2f}"
    for name, cell, plane, outline, aspect in zip(PLANES, cells, planes, outlines, panel.aspects):
        axes = figure.add_subplot(cell)
        axes.set_axis_off()
        side_by_side = name != "sagittal" and panel.title != "as stored"  # columns run from side to side
        step = -1 if side_by_side else 1
        axes.imshow(plane[:, ::step], cmap=colours, vmin=low, vmax=high, aspect=aspect)
        if outline is not None and 0 < outline.mean() < 1:
            axes.contour(outline[:, ::step], [0.5], colors=["#ef9b20"], linewidths=0.8)
        if side_by_side:
            axes.text(0.02, 0.5, "L", color="white", fontsize=7, va="center", transform=axes.transAxes)
    place = cells[0].get_position(figure)  # all titles at one height, whatever the shape of the planes
    figure.text((place.x0 + place.x1) / 2, place.y1, text, color="white", fontsize=8, ha="center", va="center")
