"""Areas of ventricles, corpus callosum, grey and white matter, measured from the image of a slice alone, generated or real.

    python -m analysis.areas AD_NC                       # phantoms of phantom.py: measured areas compared with the truth
    python -m analysis.areas AD_NC --generated out/all-conditional    # mean areas of generated slices, and the true ones
    python -m analysis.areas AD_NC --fit True            # the constants below, fitted anew to train/

Every image is reduced to 64x64, so that a slice measures the same at any resolution. The scanner's shading is divided out, so
that white matter is 190 everywhere. Then each pixel adds an area of tissue that depends on its grey level: AMOUNT, interpolated
between LEVELS, was fitted to the true areas of training phantoms of the same view by least squares (negative amounts correct for
pixels on borders). Ventricles and corpus callosum are looked for in ELLIPSES around them. On other scans than phantoms the grey
levels differ and the unit is nominal: there the areas serve to compare sets of slices, not as anatomy.
"""

import csv
import os

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset import Slices, decode, for_each, pad_and_resize
from utils import CLASSES, RESOLUTIONS, ArgumentParser, UserError, boolean, run_cli

PIXEL_MM, WIDTH, WHITE = 0.85, 256, 190  # of phantom.py's slices: mm and pixels across, grey level of white matter
SIDE = 64  # pixels; every slice is measured at this resolution
PIXEL_AREA = (PIXEL_MM * WIDTH / SIDE) ** 2  # mm^2
# Half axes across and along, and the centre's shift to the back: shares of half the brain's width and length.
ELLIPSE = 0.55, 0.7, 0.1
LEVELS = 0, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200, 255
SMOOTH = 100.0  # weight of AMOUNT's second differences against the error, in mm^2
AMOUNT = {  # pixels of tissue per pixel at LEVELS[1:]; a black pixel holds none
    "ventricle": (1.292, 0.845, 0.476, 0.237, 0.147, 0.148, 0.094, 0.023, -0.037, -0.050, -0.052),
    "grey": (-0.635, -0.003, 0.521, 0.898, 0.967, 0.869, 0.825, 0.549, 0.066, -0.260, -0.531),
    "white": (0.342, 0.043, -0.086, -0.056, 0.064, 0.123, 0.101, 0.368, 0.915, 1.292, 1.561),
}


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def measure_areas(pixels, label=None):
    """{"ventricle", "grey", "white": mm^2, float64 [N]} of slices uint8 [N, R, R], R >= 64; `label` names a progress bar."""
    return {tissue: area @ AMOUNT[tissue] for tissue, area in area_by_level(pixels, label).items()}


def area_by_level(pixels, label=None):
    """{tissue: mm^2 at each of LEVELS[1:], float64 [N, L]} of slices uint8 [N, R, R]; AMOUNT weights them.

    A pixel between two levels counts partly at either. Only the ellipse counts for ventricles, the whole slice for the others.
    """
    if pixels.shape[-1] < SIDE:
        raise UserError(f"slices of {pixels.shape[-1]} pixels are too small to measure areas in: {SIDE} are needed")
    everywhere, within = [], []
    for start in tqdm(range(0, len(pixels), 256), label, disable=None if label else True):
        flat = remove_shading(reduce_to_side(pixels[start : start + 256]))
        ellipse = central_ellipse(flat)
        shares = [np.interp(flat, LEVELS, peak) for peak in np.eye(len(LEVELS))[1:]]  # [n, 64, 64] per level
        everywhere.append(PIXEL_AREA * np.stack([share.sum((1, 2)) for share in shares], 1))
        within.append(PIXEL_AREA * np.stack([(share * ellipse).sum((1, 2)) for share in shares], 1))
    everywhere = np.concatenate(everywhere)
    return {"ventricle": np.concatenate(within), "grey": everywhere, "white": everywhere}


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
    lit = v > 0.2 * v.max(1, keepdims=True)
    shading = np.stack([np.quantile(row[mask], 0.85) if mask.any() else 1.0 for row, mask in zip(v, lit)])[:, None]
    for _ in range(3):
        white = (np.abs(v / shading - 1) < 0.125).astype(float)
        normal = (white @ products).reshape(-1, 6, 6) + 1e-6 * np.eye(6)
        quadratic = np.linalg.solve(normal, ((white * v) @ terms)[:, :, None])[:, :, 0] @ terms.T
        median = np.median(shading, 1, keepdims=True)
        shading = np.clip(quadratic, 0.7 * median, 1.4 * median)
    return (v * WHITE / shading).reshape(pixels.shape)


def central_ellipse(flat):
    """Pixels in ELLIPSE, placed by the bounding box of the brain: bool [N, 64, 64], of slices from `remove_shading`."""
    across, along, back = ELLIPSE
    brain = flat > 0.15 * WHITE

    def position(lit):  # bool [N, 64] -> position of each row or column in the bounding box, -1 to 1
        first, last = lit.argmax(1), SIDE - 1 - lit[:, ::-1].argmax(1)
        return (2 * np.arange(SIDE) - (first + last)[:, None]) / (last - first + 1)[:, None]

    x, y = position(brain.any(1))[:, None, :], position(brain.any(2))[:, :, None]
    return (x / across) ** 2 + ((y - back) / along) ** 2 < 1


# ---------------------------------------------------------------------------------------------------------------------
# The truth that phantoms come with


def read_truth(folder):
    """subjects.csv of phantoms: {"path", "split", "class": str [N], tissue: mm^2 [N]}; UserError if it cannot be read."""
    path = os.path.join(folder, "subjects.csv")
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        truth = {tissue: np.array([float(row[f"{tissue}_mm2"]) for row in rows]) for tissue in AMOUNT}
        if not rows or not all(np.isfinite(column).all() for column in truth.values()):
            raise ValueError("empty, or not finite")
        return truth | {name: np.array([str(row[name]) for row in rows]) for name in ("path", "split", "class")}
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not the table of phantom.py ({error}); python phantom.py draws phantoms") from None


def true_means(train_dir, classes):
    """{class: {tissue: mean mm^2}} of the training slices of phantoms; None if no subjects.csv beside train_dir tells.

    The class "all" is both together.
    """
    folder = os.path.dirname(os.path.abspath(train_dir))
    if not os.path.isfile(os.path.join(folder, "subjects.csv")):
        return None
    truth = read_truth(folder)
    in_class = {name: (truth["split"] == "train") & ((truth["class"] == name) | (name == "all")) for name in classes}
    if not all(rows.any() for rows in in_class.values()):
        return None
    return {name: {tissue: float(truth[tissue][rows].mean()) for tissue in AMOUNT} for name, rows in in_class.items()}


def fit_amount(area, truth):
    """AMOUNT of one tissue from `area_by_level` [N, L] and true areas [N]: least squares, smooth over the levels."""
    bend = np.diff(np.eye(area.shape[1]), 2, axis=0) * SMOOTH * len(area) ** 0.5
    return np.linalg.lstsq(np.r_[area, bend], np.r_[truth, np.zeros(len(bend))], rcond=None)[0]


def accuracy_table(measured, truth):
    """Lines that compare measured areas {tissue: mm^2 [N]} with `read_truth`: correlation, RMS error, and bias by class."""
    lines = [f"{'':10} correlation    error, RMS   bias of the mean, by class"]
    classes = {name: truth["class"] == name for name in CLASSES}
    for tissue in AMOUNT:
        true, error = truth[tissue], measured[tissue] - truth[tissue]
        with np.errstate(all="ignore"):  # constant areas have no correlation: nan
            correlation, rms = np.corrcoef(measured[tissue], true)[0, 1], np.sqrt((error**2).mean())
            bias = [f"{name} {error[rows].mean() / true[rows].mean():+.1%}" for name, rows in classes.items() if rows.any()]
        lines.append(f"{tissue:10} {correlation:11.4f} {rms:9.0f} mm2   {'   '.join(bias)}")
    return "\n".join(lines)


def generated_table(folder, phantoms):
    """Lines that compare mean areas of the slices in folder/AD and folder/NC, mm^2, with the true ones of training phantoms."""
    truth, means = true_means(os.path.join(phantoms, "train"), CLASSES), {}
    if truth is None:
        raise UserError(f"{phantoms}: subjects.csv lists no slices in train/ of both classes; draw the phantoms anew")
    for name in CLASSES:
        try:
            slices = Slices(folder, name, SIDE)
        except UserError as error:
            raise UserError(str(error).replace("--dataset_dir", "--generated")) from None
        means[name] = {tissue: area.mean() for tissue, area in measure_areas(slices[np.arange(len(slices))]).items()}
    lines = [f"{'':10} generated: AD    NC   AD / NC    true: AD    NC   AD / NC"]
    for tissue in AMOUNT:
        (a, b), (true_a, true_b) = ([values[name][tissue] for name in CLASSES] for values in (means, truth))
        lines.append(f"{tissue:10} {a:13.0f} {b:5.0f} {a / b:9.3f} {true_a:11.0f} {true_b:5.0f} {true_a / true_b:9.3f}")
    return "\n".join(lines)


def main(argv=None):
    parser = ArgumentParser("Measure areas in phantoms and compare them with the truth.", "-m analysis.areas AD_NC")
    parser.prog = "-m analysis.areas"
    parser.add_argument("folder", help="phantoms, as phantom.py writes them")
    parser.add_argument("--resolution", type=int, choices=RESOLUTIONS[1:], default=SIDE, help="at which slices are read")
    parser.add_argument(
        "--generated", metavar="DIR", help="AD/ and NC/ of predict.py --export: their mean areas, and the true ones"
    )
    parser.add_argument(
        "--fit", type=boolean, default=False, metavar="True|False", help="print AMOUNT, fitted to train/; else measure test/"
    )
    args = parser.parse_args(argv)
    truth = read_truth(args.folder)
    if args.generated:
        print(generated_table(args.generated, args.folder))
        return 0
    split = "train" if args.fit else "test"
    rows = truth["split"] == split
    if not rows.any():
        raise UserError(f"{args.folder}: subjects.csv lists no slices in {split}/; draw the phantoms anew")
    truth = {name: column[rows] for name, column in truth.items()}
    slices = for_each(lambda path: decode(os.path.join(args.folder, path), args.resolution), truth["path"], label="reading")
    if any(pixels is None for pixels in slices):
        raise UserError(f"{args.folder}: slices of subjects.csv are missing or unreadable; draw the phantoms anew")
    slices = np.stack(slices)
    if args.fit:
        for tissue, area in area_by_level(slices, "measuring").items():
            print(f'    "{tissue}": ({", ".join(f"{value:.3f}" for value in fit_amount(area, truth[tissue]))}),')
    else:
        print(accuracy_table(measure_areas(slices, "measuring"), truth))
    return 0


if __name__ == "__main__":
    run_cli(main)
