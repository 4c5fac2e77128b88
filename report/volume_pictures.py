"""A picture of the steps of prepare.py for one scan: three planes through the volume after each, and the slices below."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data.volumes import sitk
from utils import atomic_path

VIEWS = "axial", "coronal", "sagittal"
MAX_COLUMNS = 10  # of slices
FIELD = "bias field"


def views(title, image, mask):
    """(title, [(plane, outline or None, height / width of a pixel), ...]): the planes through the middle of a volume [z, y, x].

    Rows run downwards from front or top, as after `orient`; columns from the person's right to left, or front to back.
    """
    volumes = [sitk.GetArrayViewFromImage(part) for part in (image, mask) if part is not None]
    z, y, x = (n // 2 for n in volumes[0].shape)
    dx, dy, dz = image.GetSpacing()
    cuts = [((z,), 1, dy / dx), ((slice(None), y), -1, dz / dx), ((slice(None), slice(None), x), -1, dz / dy)]
    return title, [(*([part[at][::step].copy() for part in volumes] + [None])[:2], aspect) for at, step, aspect in cuts]


def save(panels, pixels, name, view, path):
    """Draw what `views` made of each step, a column each, and the slices uint8 or uint16 [N, 240, 256], into the PNG at `path`.

    view: "neurological" or "radiological"; None: the volume was not oriented, so nobody knows which side is which.
    """
    columns, strip_columns = len(panels), min(max(len(pixels), 4), MAX_COLUMNS)
    rows = -(-len(pixels) // strip_columns)
    width = 1.75 * max(columns, 4)
    slice_height = width / strip_columns * pixels.shape[1] / pixels.shape[2]
    figure = Figure((width, 0.5 + 3 * 1.75 + 0.3 + rows * slice_height), facecolor="black")
    FigureCanvasAgg(figure)
    above, below = figure.add_gridspec(
        2,
        1,
        height_ratios=(3 * 1.75, rows * slice_height),
        left=0.005,
        right=0.995,
        bottom=0.005,
        top=1 - 0.5 / figure.get_figheight(),
        hspace=0.3 / (1.75 + slice_height),
    )
    grid = above.subgridspec(3, columns, wspace=0.03, hspace=0.03)
    for column, (title, planes) in enumerate(panels):
        shown = np.concatenate([plane.ravel() for plane, *_ in planes])
        if title == FIELD:
            planes = [(np.where(mask, plane, np.nan), None, aspect) for plane, mask, aspect in planes]
            shown = np.concatenate([plane[np.isfinite(plane)] for plane, *_ in planes])
        limits = (shown.min(), shown.max()) if title == FIELD else (min(0, shown.min()), max(np.percentile(shown, 99.8), 1e-6))
        for row, (plane, outline, aspect) in enumerate(planes):
            axes = figure.add_subplot(grid[row, column])
            axes.set_axis_off()
            across = VIEWS[row] != "sagittal" and view and title != "as stored"  # columns run from side to side
            step = -1 if across and view == "neurological" else 1
            axes.imshow(
                plane[:, ::step], cmap="viridis" if title == FIELD else "gray", vmin=limits[0], vmax=limits[1], aspect=aspect
            )
            if outline is not None and 0 < outline.mean() < 1:
                axes.contour(outline[:, ::step], [0.5], colors=["#ef9b20"], linewidths=0.8)
            if across:
                side = "L" if view == "neurological" else "R"
                axes.text(0.02, 0.5, side, color="white", fontsize=7, va="center", transform=axes.transAxes)
            if row == 0:
                text = f"{title}\n{limits[0]:.2f} to {limits[1]:.2f}" if title == FIELD else title
                cell = grid[row, column].get_position(figure)  # all titles at one height, whatever the shape of the planes
                figure.text((cell.x0 + cell.x1) / 2, cell.y1, text, color="white", fontsize=8, ha="center", va="center")
    strip = below.subgridspec(rows, strip_columns, wspace=0.02, hspace=0.02)
    for i, plane in enumerate(pixels):
        axes = figure.add_subplot(strip[divmod(i, strip_columns)])
        axes.set_axis_off()
        axes.imshow(plane, cmap="gray", vmin=0, vmax=np.iinfo(pixels.dtype).max)
    name += {None: "", "neurological": "   L: the person's left", "radiological": "   R: the person's right"}[view]
    figure.text(0.005, 1 - 0.1 / figure.get_figheight(), name, color="white", fontsize=8, va="top")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png", facecolor="black")
