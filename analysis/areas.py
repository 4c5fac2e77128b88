"""Areas of ventricles, corpus callosum, grey and white matter, measured from the image of a slice alone, generated or real.

    python -m analysis.areas AD_NC                       # phantoms of phantom.py: measured areas compared with the truth
    python -m analysis.areas AD_NC --generated out/all-conditional    # mean areas of generated slices, and the true ones

Every image is reduced to 64x64, so that a slice measures the same at any resolution. The scanner's shading is divided out of
axial slices, so that white matter is 190 everywhere; of sagittal ones, in which less white matter is in one piece, the brightness
alone is. Then each pixel adds an area of tissue that depends on its grey level and on the REGIONS in which it lies: AMOUNT,
interpolated between LEVELS, was fitted to the true areas of training phantoms of the same view by least squares, smooth over the
levels. On other scans the grey levels differ and the unit is nominal: there the areas compare sets of slices.
"""

import csv
import os

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.decode import decode, for_each, pad_and_resize
from data.phantom_anatomy import MIDLINE, PARAMETERS, slice_tissue, true_areas, twin_of
from data.view import find_view
from dataset import Slices
from utils import CLASSES, ArgumentParser, UserError, run_cli

WIDTH, WHITE = 256, 190  # of phantom.py's slices: pixels across, grey level of white matter in axial ones
SIDE = 64  # pixels; every slice is measured at this resolution
PIXEL_MM = {"axial": 0.85, "sagittal": 1.0}  # of phantom.py's slices
# Ellipses in units of half the brain's bounding box: the centre across and along, the half axes, and degrees of turn.
REGIONS = {
    "axial": {"ventricle": (0, 0.1, 0.55, 0.7, 0)},
    "sagittal": {
        "ventricle": (0.15, 0.07, 0.29, 0.46, 17),
        "callosum": (0.22, 0.15, 0.43, 0.55, 38),
        "genu": (0.1, 0.55, 0.25, 0.2, 0),
        "splenium": (0.2, -0.3, 0.2, 0.2, 0),
        "stem": (-0.4, -0.2, 0.35, 0.25, 20),
    },
}
LEVELS = {
    "axial": (0, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200, 255),
    "sagittal": (0, 20, 40, 60, 80, 100, 120, 140, 155, 170, 185, 200, 215, 230),
}
BRIGHTNESS = 155  # of a sagittal slice: the mean of the eighth powers of the foreground, as a level
# Pixels of tissue per pixel at LEVELS[1:], for each region that counts ("slice": all of it); a black pixel holds none.
AMOUNT = {
    "axial": {
        "ventricle": {"ventricle": (1.292, 0.845, 0.476, 0.237, 0.147, 0.148, 0.094, 0.023, -0.037, -0.050, -0.052)},
        "grey": {"slice": (-0.635, -0.003, 0.521, 0.898, 0.967, 0.869, 0.825, 0.549, 0.066, -0.260, -0.531)},
        "white": {"slice": (0.342, 0.043, -0.086, -0.056, 0.064, 0.123, 0.101, 0.368, 0.915, 1.292, 1.561)},
    },
    "sagittal": {
        "ventricle": {
            "ventricle": (1.110, 0.865, 0.574, 0.311, 0.076, -0.050, -0.109, -0.158, -0.192, -0.130, -0.162, -0.196, -0.177),
            "stem": (0.670, 0.417, 0.141, -0.045, -0.103, 0.003, 0.126, 0.154, 0.082, -0.038, -0.040, -0.020, -0.003),
            "slice": (0.100, -0.013, -0.017, 0.003, 0.011, -0.007, 0.008, 0.017, 0.059, 0.068, 0.089, 0.028, -0.032),
        },
        "callosum": {
            "callosum": (0.147, 0.087, 0.039, -0.004, 0.001, 0.026, 0.096, 0.061, -0.032, -0.040, 0.298, 0.701, 0.978),
            "genu": (0.128, 0.011, -0.080, -0.105, -0.090, -0.120, -0.154, -0.157, -0.134, -0.042, 0.174, 0.326, 0.362),
            "splenium": (-0.317, -0.194, -0.114, -0.088, -0.100, -0.073, -0.038, -0.024, 0.016, 0.160, 0.419, 0.677, 0.889),
            "stem": (0.142, 0.092, 0.049, 0.003, -0.004, 0.038, 0.069, 0.112, 0.201, 0.191, -0.039, -0.362, -0.685),
            "slice": (-0.042, 0.002, -0.022, -0.014, -0.013, -0.056, -0.030, 0.003, 0.034, 0.076, 0.388, 0.751, 1.003),
        },
        "grey": {"slice": (-0.256, 0.063, 0.206, 0.536, 0.980, 0.904, 0.458, 0.059, 0.002, 0.332, 0.021, -0.144, -0.366)},
        "white": {"slice": (0.071, -0.019, -0.008, 0.062, -0.050, -0.182, 0.370, 0.971, 1.126, 0.901, 1.402, 2.856, 4.418)},
    },
}


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def known_view(pixels, where):
    """The view of slices uint8 [N, R, R], in which areas can be measured; UserError, which begins with `where`, for any other."""
    view = find_view(pixels)
    found = {"mixed": "the slices are of more than one view", "unknown": "the view of the slices cannot be told"}.get(view.name)
    if view.name == "axial" and view.upright < view.symmetric / 2:
        found = "heads lie on their side"
    if found:
        raise UserError(f"{where}: {found}, so areas cannot be measured; they are known for {' and '.join(AMOUNT)} slices")
    return view.name


def view_or_note(pixels, where):
    """As `known_view`, but None and a printed note where that refuses, or None alone where slices are too small to measure."""
    if pixels.shape[-1] < SIDE:
        return None
    try:
        return known_view(pixels, where)
    except UserError as error:
        print(f"note: {error}")
        return None


def measure_areas(pixels, view, label=None):
    """{tissue of AMOUNT[view]: mm^2, float64 [N]} of slices uint8 [N, R, R], R >= 64; `label` names a progress bar."""
    area = area_by_level(pixels, view, label)
    amounts = AMOUNT[view].items()
    return {tissue: sum(area[region] @ amount for region, amount in regions.items()) for tissue, regions in amounts}


def area_by_level(pixels, view, label=None):
    """{region: mm^2 at each of LEVELS[view][1:], float64 [N, L]} of slices uint8 [N, R, R]; AMOUNT weights them.

    A pixel between two levels counts partly at either. The regions are those of REGIONS and "slice", the whole of it.
    """
    if pixels.shape[-1] < SIDE:
        raise UserError(f"slices of {pixels.shape[-1]} pixels are too small to measure areas in: {SIDE} are needed")
    levels, found = LEVELS[view], {region: [] for region in ("slice", *REGIONS[view])}
    for start in tqdm(range(0, len(pixels), 256), label, disable=None if label else True):
        reduced = reduce_to_side(pixels[start : start + 256])
        flat = remove_shading(reduced) if view == "axial" else equalise_brightness(reduced)
        masks = {"slice": np.True_} | {region: ellipse(flat, *shape) for region, shape in REGIONS[view].items()}
        shares = [np.interp(flat, levels, peak) for peak in np.eye(len(levels))[1:]]  # [n, 64, 64] per level
        for region, mask in masks.items():
            found[region].append(np.stack([(share * mask).sum((1, 2)) for share in shares], 1))
    area = (PIXEL_MM[view] * WIDTH / SIDE) ** 2
    return {region: area * np.concatenate(parts) for region, parts in found.items()}


def reduce_to_side(pixels):
    """uint8 [N, R, R] -> [N, 64, 64], as dataset.py would have read them; smaller slices stay as they are."""
    if pixels.shape[-1] <= SIDE:
        return pixels
    return np.stack([np.asarray(pad_and_resize(Image.fromarray(image), SIDE)) for image in pixels])


def remove_shading(pixels):
    """Slices with the scanner's shading divided out: uint8 [N, 64, 64] -> float64, white matter at 190.

    The shading is a quadratic in x and y, fitted three times to the pixels within an eighth of it: to white matter.
    """
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1).reshape(-1, 6)  # [P, 6]
    products = (terms[:, :, None] * terms[:, None]).reshape(-1, 36)
    v = pixels.reshape(len(pixels), -1).astype(float)  # [N, P]
    foreground = v > 0.2 * v.max(1, keepdims=True)
    shading = np.stack([np.quantile(row[mask], 0.85) if mask.any() else 1.0 for row, mask in zip(v, foreground)])[:, None]
    for _ in range(3):
        white = (np.abs(v / shading - 1) < 0.125).astype(float)
        normal = (white @ products).reshape(-1, 6, 6) + 1e-6 * np.eye(6)
        quadratic = np.linalg.solve(normal, ((white * v) @ terms)[:, :, None])[:, :, 0] @ terms.T
        median = np.median(shading, 1, keepdims=True)
        shading = np.clip(quadratic, 0.7 * median, 1.4 * median)
    return (v * WHITE / shading).reshape(pixels.shape)


def equalise_brightness(pixels):
    """Slices at one brightness, BRIGHTNESS: uint8 [N, 64, 64] -> float64.

    The eighth power, so that the bright tissues decide: how much fluid and grey matter there is differs from slice to slice.
    """
    v = pixels.reshape(len(pixels), -1).astype(float)
    foreground = v > 0.2 * v.max(1, keepdims=True)
    mean = np.sum(np.where(foreground, v, 0) ** 8, 1, keepdims=True) / np.maximum(foreground.sum(1, keepdims=True), 1)
    return (v * BRIGHTNESS / np.maximum(mean, 1) ** (1 / 8)).reshape(pixels.shape)


def ellipse(flat, across, along, half_across, half_along, degrees):
    """Pixels in one of REGIONS, placed by the bounding box of the brain: bool [N, 64, 64], of slices at one brightness."""
    brain = flat > 0.15 * WHITE

    def position(foreground):  # bool [N, 64] -> position of each row or column in the bounding box, -1 to 1
        first, last = foreground.argmax(1), SIDE - 1 - foreground[:, ::-1].argmax(1)
        return (2 * np.arange(SIDE) - (first + last)[:, None]) / (last - first + 1)[:, None]

    x, y = position(brain.any(1))[:, None, :] - across, position(brain.any(2))[:, :, None] - along
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return ((cos * x + sin * y) / half_across) ** 2 + ((cos * y - sin * x) / half_along) ** 2 < 1


# ---------------------------------------------------------------------------------------------------------------------
# The truth that phantoms come with


def read_truth(folder):
    """subjects.csv of phantoms: {"view": str, "path", "split", "class": str [N], tissue: mm^2 [N]}, without damaged scans.

    UserError if it cannot be read.
    """
    path = os.path.join(folder, "subjects.csv")
    try:
        with open(path, newline="") as file:
            rows = [row for row in csv.DictReader(file) if not row.get("damaged")]
        (view,) = {row.get("view", "axial") for row in rows} or {""}  # tables of before there were sagittal phantoms tell none
        if view not in AMOUNT:
            raise ValueError(f"view {view!r}" if rows else "empty")
        truth = {tissue: np.array([float(row[f"{tissue}_mm2"]) for row in rows]) for tissue in AMOUNT[view]}
        if not all(np.isfinite(column).all() for column in truth.values()):
            raise ValueError("not finite")
        return truth | {name: np.array([str(row[name]) for row in rows]) for name in ("path", "split", "class")} | {"view": view}
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not the table of phantom.py ({error}); python phantom.py draws phantoms") from None


def true_means(train_dir, classes, view):
    """{class: {tissue: mean mm^2}} of the training slices of phantoms of that view; None if no table beside train_dir tells.

    The class "all" is both together.
    """
    try:
        truth = read_truth(os.path.dirname(os.path.abspath(train_dir)))
    except UserError:  # no table, or one of real people
        return None
    in_class = {name: (truth["split"] == "train") & ((truth["class"] == name) | (name == "all")) for name in classes}
    if truth["view"] != view or not all(rows.any() for rows in in_class.values()):
        return None
    return {name: {tissue: float(truth[tissue][rows].mean()) for tissue in AMOUNT[view]} for name, rows in in_class.items()}


def true_twins(paths):
    """{tissue of AMOUNT: mm^2 [2, N]} of phantoms' slices, and of the same anatomies in the other class; None of other slices.

    paths: <folder>/train/AD/000007_81.jpeg, ..., beside whose folder's subjects.csv they still lie.
    """
    folder, found = os.path.dirname(os.path.abspath(paths[0])), []
    root = os.path.dirname(os.path.dirname(folder))
    try:
        view = read_truth(root)["view"]
        with open(os.path.join(root, "subjects.csv"), newline="") as file:
            rows = {os.path.join(root, row["path"]): row for row in csv.DictReader(file)}
        for row in (rows[os.path.abspath(path)] for path in tqdm(paths, "true twins", disable=None)):
            params = {name: float(row[name]) for name in (*PARAMETERS, *MIDLINE)} | {"anatomy_seed": int(row["anatomy_seed"])}
            twin, position = twin_of(params, row["class"], float(row["disease"])), row["z_mm" if view == "axial" else "x_mm"]
            found.append((row, true_areas(slice_tissue(twin, float(position), view), view)))
    except (UserError, KeyError, ValueError, TypeError):  # not the phantoms as they were drawn
        return None
    return {tissue: np.array([[float(of[f"{tissue}_mm2"]) for of in pair] for pair in found]).T for tissue in AMOUNT[view]}


def accuracy_table(measured, truth):
    """Lines that compare measured areas {tissue: mm^2 [N]} with `read_truth`: correlation, RMS error, and bias by class."""
    lines = [f"{'':10} correlation    error, RMS   bias of the mean, by class"]
    classes = {name: truth["class"] == name for name in CLASSES}
    for tissue in measured:
        true, error = truth[tissue], measured[tissue] - truth[tissue]
        with np.errstate(all="ignore"):  # constant areas have no correlation: nan
            correlation, rms = np.corrcoef(measured[tissue], true)[0, 1], np.sqrt((error**2).mean())
            bias = [f"{name} {error[rows].mean() / true[rows].mean():+.1%}" for name, rows in classes.items() if rows.any()]
        lines.append(f"{tissue:10} {correlation:11.4f} {rms:9.0f} mm2   {'   '.join(bias)}")
    return "\n".join(lines)


def generated_table(folder, phantoms):
    """Lines that compare mean areas of the slices in folder/AD and folder/NC, mm^2, with the true ones of training phantoms."""
    view, slices = read_truth(phantoms)["view"], {}
    truth = true_means(os.path.join(phantoms, "train"), CLASSES, view)
    if truth is None:
        raise UserError(f"{phantoms}: subjects.csv lists no slices in train/ of both classes; draw the phantoms again")
    for name in CLASSES:
        members = Slices(folder, name, SIDE, flag="--generated")
        slices[name] = members[np.arange(len(members))]
    found = find_view(np.concatenate(list(slices.values()))).name
    if found not in (view, "unknown"):  # slices of a poor model may look like nothing, but the phantoms' view is known
        raise UserError(f"--generated {folder}: {found} slices, while the phantoms of {phantoms} are {view}")
    means = {name: {tissue: area.mean() for tissue, area in measure_areas(pixels, view).items()} for name, pixels in slices.items()}
    lines = [f"{'':10} generated: AD    NC   AD / NC    true: AD    NC   AD / NC"]
    for tissue in AMOUNT[view]:
        (a, b), (true_a, true_b) = ([values[name][tissue] for name in CLASSES] for values in (means, truth))
        lines.append(f"{tissue:10} {a:13.0f} {b:5.0f} {a / b:9.3f} {true_a:11.0f} {true_b:5.0f} {true_a / true_b:9.3f}")
    return "\n".join(lines)


def main(argv=None):
    parser = ArgumentParser("Measure areas in phantoms and compare them with the truth.", "-m analysis.areas AD_NC")
    parser.prog = "-m analysis.areas"
    parser.add_argument("folder", help="phantoms, as phantom.py writes them")
    text = "AD/ and NC/ of predict.py --export: their mean areas, and the true ones"
    parser.add_argument("--generated", metavar="DIR", help=text)
    args = parser.parse_args(argv)
    if args.generated:
        print(generated_table(args.generated, args.folder))
        return 0
    truth = read_truth(args.folder)
    view, rows = truth.pop("view"), truth["split"] == "test"
    truth = {name: column[rows] for name, column in truth.items()}
    slices = for_each(lambda path: decode(os.path.join(args.folder, path), SIDE), truth["path"], label="reading")
    if not slices or any(pixels is None for pixels in slices):
        raise UserError(f"{args.folder}: slices of subjects.csv in test/ are missing or unreadable; draw the phantoms again")
    print(accuracy_table(measure_areas(np.stack(slices), view, "measuring"), truth))
    return 0


if __name__ == "__main__":
    run_cli(main)
