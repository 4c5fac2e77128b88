"""Areas of ventricles, grey and white matter, measured from the picture of a slice alone, generated or real.

    python areas.py AD_NC                       # phantoms, as phantom.py writes them: measured against the truth
    python areas.py AD_NC --fit True            # the constants below, fitted anew on train/

The scanner's shading is divided out, so that white matter is 190 everywhere. Then each pixel counts as so much of a tissue as its
grey level says: AMOUNT, interpolated between a few LEVELS, was fitted to the true areas of training phantoms by least squares
(negative where it takes back what pixels on a border seem to hold). Ventricles are what is dark within an ellipse in the middle of
the brain. Every picture is first brought to 64x64, so that a slice measures the same whatever resolution it came in. On other
scans than phantoms the unit is nominal and the grey levels differ: there the numbers compare sets of slices, and are no anatomy.
"""

import csv
import os

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset import decode, for_each, pad_and_resize
from phantom import PIXEL_MM, SIGNAL, WIDTH
from utils import CLASSES, RESOLUTIONS, ArgumentParser, UserError, boolean, run_cli

SIDE = 64  # at which all is measured
PIXEL = (PIXEL_MM * WIDTH / SIDE) ** 2  # mm^2
WHITE = SIGNAL["white"]
# Half axes across and along, and how far back its centre lies: shares of half the brain's width and length.
ELLIPSE = 0.55, 0.7, 0.1
LEVELS = 0, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200, 255
SMOOTH = 100.0  # weight of AMOUNT's second differences against the error, in mm^2
AMOUNT = {  # at LEVELS[1:]; black is nothing
    "ventricle": (1.292, 0.845, 0.476, 0.237, 0.147, 0.148, 0.094, 0.023, -0.037, -0.050, -0.052),
    "grey": (-0.635, -0.003, 0.521, 0.898, 0.967, 0.869, 0.825, 0.549, 0.066, -0.260, -0.531),
    "white": (0.342, 0.043, -0.086, -0.056, 0.064, 0.123, 0.101, 0.368, 0.915, 1.292, 1.561),
}


def flatten(pixels):
    """Divide the shading out: uint8 [N, 64, 64] -> float64, white matter at 190.

    The shading is a quadratic in x and y, fitted to the pixels within an eighth of it: to white matter.
    """
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1).reshape(-1, 6)  # [P, 6]
    products = (terms[:, :, None] * terms[:, None]).reshape(-1, 36)
    v = pixels.reshape(len(pixels), -1).astype(float)
    lit = v > 0.2 * v.max(1, keepdims=True)
    shading = np.stack([np.quantile(one[those], 0.85) if those.any() else 1.0 for one, those in zip(v, lit)])[:, None]
    for _ in range(3):
        white = (np.abs(v / shading - 1) < 0.125).astype(float)
        normal = (white @ products).reshape(-1, 6, 6) + 1e-6 * np.eye(6)
        quadratic = np.linalg.solve(normal, ((white * v) @ terms)[:, :, None])[:, :, 0] @ terms.T
        shading = np.clip(quadratic, 0.7 * np.median(shading, 1, keepdims=True), 1.4 * np.median(shading, 1, keepdims=True))
    return (v * WHITE / shading).reshape(pixels.shape)


def middle(flat):
    """Which pixels lie in ELLIPSE, placed by the bounding box of the brain: bool [N, 64, 64]."""
    across, along, back = ELLIPSE
    brain = flat > 0.15 * WHITE

    def place(lit):  # [N, 64]: each pixel's place between the ends, -1 to 1
        first, last = lit.argmax(1), SIDE - 1 - lit[:, ::-1].argmax(1)
        return (2 * np.arange(SIDE) - (first + last)[:, None]) / (last - first + 1)[:, None]

    x, y = place(brain.any(1))[:, None, :], place(brain.any(2))[:, :, None]
    return (x / across) ** 2 + ((y - back) / along) ** 2 < 1


def reduced(pixels):
    """uint8 [N, R, R] -> [N, 64, 64], as dataset.py would have read them; smaller ones are left alone."""
    if pixels.shape[-1] <= SIDE:
        return pixels
    return np.stack([np.asarray(pad_and_resize(Image.fromarray(one), SIDE)) for one in pixels])


def contributions(pixels):
    """{tissue: float64 [N, len(LEVELS) - 1], mm^2 that lie at each level} of uint8 [N, R, R]; AMOUNT makes areas of them."""
    if pixels.shape[-1] < SIDE:
        raise UserError(f"slices of {pixels.shape[-1]} pixels are too small to measure areas in: {SIDE} are needed")
    flat = flatten(reduced(pixels))
    within = middle(flat)
    shares = [np.interp(flat, LEVELS, hat) for hat in np.eye(len(LEVELS))[1:]]  # between two levels each gets a part
    everywhere = PIXEL * np.stack([share.sum((1, 2)) for share in shares], 1)
    return {
        "ventricle": PIXEL * np.stack([(share * within).sum((1, 2)) for share in shares], 1),
        "grey": everywhere,
        "white": everywhere,
    }


def in_parts(pixels, label=None):
    """`contributions`, 256 slices at a time; `label` names a progress bar."""
    starts = tqdm(range(0, len(pixels), 256), label, disable=None if label else True)
    parts = [contributions(pixels[i : i + 256]) for i in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in AMOUNT}


def measure_areas(pixels, label=None):
    """{"ventricle", "grey", "white": mm^2, float64 [N]} of uint8 [N, R, R], R >= 64; `label` names a progress bar."""
    return {name: part @ AMOUNT[name] for name, part in in_parts(pixels, label).items()}


# ---------------------------------------------------------------------------------------------------------------------
# Against the truth


def read_truth(folder):
    """subjects.csv of phantoms, {"path", "split", "class": str [N], tissue: mm^2 [N]}; UserError where there is none."""
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


def fit(parts, truth):
    """AMOUNT of one tissue from `contributions` [N, L] and true areas [N]: least squares, smooth over the levels."""
    bend = np.diff(np.eye(parts.shape[1]), 2, axis=0) * SMOOTH * len(parts) ** 0.5
    return np.linalg.lstsq(np.r_[parts, bend], np.r_[truth, np.zeros(len(bend))], rcond=None)[0]


def main(argv=None):
    parser = ArgumentParser("Measure areas in phantoms, and hold them against the truth.", "areas.py AD_NC")
    parser.add_argument("folder", help="phantoms, as phantom.py writes them")
    parser.add_argument("--resolution", type=int, choices=RESOLUTIONS[1:], default=SIDE, help="that slices are read at")
    parser.add_argument(
        "--fit", type=boolean, default=False, metavar="True|False", help="print AMOUNT, fitted to train/; else measure test/"
    )
    args = parser.parse_args(argv)
    truth = read_truth(args.folder)
    split = "train" if args.fit else "test"
    chosen = truth["split"] == split
    if not chosen.any():
        raise UserError(f"{args.folder}: subjects.csv tells of no slices in {split}/; draw the phantoms anew")
    truth = {name: column[chosen] for name, column in truth.items()}
    pixels = for_each(lambda path: decode(os.path.join(args.folder, path), args.resolution), truth["path"], label="reading")
    if any(one is None for one in pixels):
        raise UserError(f"{args.folder}: slices of subjects.csv are missing or unreadable; draw the phantoms anew")
    pixels = np.stack(pixels)
    if args.fit:
        parts = in_parts(pixels, "measuring")
        for name in AMOUNT:
            amount = fit(parts[name], truth[name])
            print(f'    "{name}": ({", ".join(f"{value:.3f}" for value in amount)}),')
        return 0
    measured = measure_areas(pixels, "measuring")
    print(f"{'':10} correlation    error, RMS   mean less the truth's, by class")
    for name in AMOUNT:
        true, error = truth[name], measured[name] - truth[name]
        bias = "   ".join(
            f"{one} {error[truth['class'] == one].mean() / true[truth['class'] == one].mean():+.1%}" for one in CLASSES
        )
        print(f"{name:10} {np.corrcoef(measured[name], true)[0, 1]:11.4f} {np.sqrt((error**2).mean()):9.0f} mm2   {bias}")
    return 0


if __name__ == "__main__":
    run_cli(main)
