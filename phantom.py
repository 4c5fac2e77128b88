"""Phantom brains: synthetic T1 slices in the layout of the ADNI AD_NC set, for anyone who has no access to the real ones.

    python phantom.py AD_NC --subjects 100 --seed 0
    python phantom.py AD_NC --subjects 4 --scans 2 --volumes True     # and the volumes of which prepare.py makes these slices

A subject is one three-dimensional anatomy (functions of x, y, z in mm) cut at 20 neighbouring axial levels, once for each of
its scans. AD and NC differ by overlapping distributions of ventricle size, sulcal width and cortical thickness. `subjects.csv`
lists each subject's parameters and the true areas in each slice, so that what a model learnt can be checked against the truth, and
says whose each scan is, of which age and sex: it serves as --subjects of dataset.py, metrics.py and predict.py. The phantoms are
nobody's brain and have no clinical meaning. Coordinates: x right, y forward and z up of the anterior commissure.
"""

import startup  # isort: skip

import contextlib
import csv
import functools
import itertools
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
from PIL import Image
from tqdm import tqdm

from analysis.shapes import draw_fold_waves, draw_waves, inside, smooth_min, tube, wave_field, wave_phases
from utils import CLASSES, ArgumentParser, Group, UserError, atomic_path, make_folder, number, reason, run_cli, usable_cores

HEIGHT, WIDTH = 240, 256
PIXEL_MM = 0.85
SLICES, FIRST_SLICE, SPACING_MM = 20, 75, 1.5
VOLUME_SLICES = 140  # numbered from 0: from below the brain to above it
SPLITS = "train", "test"
CENTRE_Y = -16.0  # the middle of the brain is behind the anterior commissure
WAVELENGTH_MM = 27.0  # of the cortical folds: two sulci each

# Mean and standard deviation of each parameter: those that differ between the classes, then those that do not (`noise` in
# grey levels, `bias` as a fraction of the signal).
DISEASE = {
    "ventricle_scale": {"AD": (1.40, 0.20), "NC": (1.05, 0.16)},  # times a young adult's radius
    "sulcal_width_mm": {"AD": (2.20, 0.45), "NC": (1.50, 0.35)},
    "cortical_thickness_mm": {"AD": (2.60, 0.22), "NC": (3.00, 0.22)},
}
SHARED = {
    "brain_width_mm": (138, 4),
    "brain_length_mm": (170, 4.5),
    "brain_height_mm": (76, 2.5),
    "fold_scale": (1, 0.06),
    "lowest_z_mm": (0, 1.5),
    "yaw_deg": (0, 2),
    "pitch_deg": (0, 2.5),
    "roll_deg": (0, 1),
    "shift_x_mm": (0, 1.5),
    "shift_y_mm": (0, 1.5),
    "bias": (0.06, 0.015),
    "noise": (3.5, 0.7),
}
AGE = {"AD": 77, "NC": 74}, 7  # years: means, and the standard deviation in either class
AGEING = {"ventricle_scale": 0.5, "sulcal_width_mm": 0.4, "cortical_thickness_mm": -0.4}  # correlation with age in either class
POSE = "lowest_z_mm", "yaw_deg", "pitch_deg", "roll_deg", "shift_x_mm", "shift_y_mm"  # new in each scan of a subject

# T1 signal of each tissue on the 8-bit scale.
SIGNAL = {
    "ventricle": 26,
    "sulcus": 26,
    "choroid": 80,
    "caudate": 116,
    "thalamus": 142,
    "pallidum": 156,
    "putamen": 128,
    "cortex": 96,
    "white": 190,
}
GREY = ("cortex", "caudate", "putamen", "pallidum", "thalamus")


def draw_subject(rng, label):
    """Draw the parameters of one subject of class `label` ("AD" or "NC"): a dict of names to numbers.

    Normal distributions, clipped at 2.5 standard deviations; `anatomy_seed` fixes the folds and all other individual shape.
    """
    ranges = {**{name: by_class[label] for name, by_class in DISEASE.items()}, **SHARED}
    params = {name: mean + sd * float(np.clip(rng.normal(), -2.5, 2.5)) for name, (mean, sd) in ranges.items()}
    return {**params, "anatomy_seed": int(rng.integers(2**31))}


def draw_age_and_sex(rng, params, label):
    """{"age": years, "sex": "F" or "M"} given the anatomy, which they change in truth: the joint distribution is the same.

    Age and the parameters of AGEING are jointly normal in a class; the brains of men are 140 mm wide, of women 136 (SD 12^0.5).
    """
    ageing = sum(r * (params[name] - DISEASE[name][label][0]) / DISEASE[name][label][1] for name, r in AGEING.items())
    age = AGE[0][label] + AGE[1] * (ageing + (1 - sum(r * r for r in AGEING.values())) ** 0.5 * rng.normal())
    return {"age": round(age, 1), "sex": "M" if rng.random() < 1 / (1 + np.exp((138 - params["brain_width_mm"]) / 3)) else "F"}


def brain_point(params, z, rng):
    """Position of each pixel of the slice at height `z` in the subject's brain: x, y, z in mm, float32 [240, 256] each."""
    across = (np.arange(WIDTH) - (WIDTH - 1) / 2)[None, :] * PIXEL_MM - params["shift_x_mm"]
    up = ((HEIGHT - 1) / 2 - np.arange(HEIGHT))[:, None] * PIXEL_MM - params["shift_y_mm"]
    yaw, pitch, roll = (np.radians(params[name]) for name in ("yaw_deg", "pitch_deg", "roll_deg"))
    x = np.cos(yaw) * across + np.sin(yaw) * up
    y = np.cos(yaw) * up - np.sin(yaw) * across
    point = [np.float32(part) for part in (x, y + CENTRE_Y, z + np.tan(pitch) * y + np.tan(roll) * x)]
    warp = [wave_field(draw_waves(rng, 6, 90.0), point) for _ in range(3)]
    near_midline = np.minimum(np.abs(point[0]) / 30, 1)  # the fissure stays nearly straight
    return point[0] + (0.4 + 1.2 * near_midline) * warp[0], point[1] + 1.6 * warp[1], point[2] + 2 * warp[2]


def depth_below_surface(params, point):
    """Approximate distance (mm) of each pixel of a slice from the outer surface of the brain, positive inside."""
    x, y, z = point
    forward = (y - CENTRE_Y) / (params["brain_length_mm"] / 2)
    half_width = params["brain_width_mm"] / 2 * (1 - 0.04 * forward - 0.08 * np.maximum(forward, 0) ** 2)
    outward = np.abs(x) / half_width
    radius = (outward**2.4 + np.abs(forward) ** 2.4 + np.abs(z / params["brain_height_mm"]) ** 2.4) ** (1 / 2.4)
    radius += 0.035 * np.abs(forward) * np.exp(-((x / 7) ** 2))  # notches of the longitudinal fissure
    radius += 0.05 * outward**2 * np.exp(-(((y - 24) / 9) ** 2) - (np.maximum(z, 0) / 14) ** 2)  # between frontal and temporal lobe
    slope = np.hypot(*np.gradient(radius, PIXEL_MM))
    return (1 - radius) / np.maximum(slope, 1e-3)


def cortex_depth(params, point, depth, side, rng):
    """Signed distance (mm) into the tissue from the folded pial surface, and the local cortical thickness (mm)."""
    x, y, z = point
    lateral = np.abs(x)
    jitter_x, jitter_y = (wave_field(draw_waves(rng, 10, 24.0), point, side) for _ in range(2))
    wide = 1 + 0.6 * wave_field(draw_waves(rng, 8, 22.0), point, side)
    half_width = params["sulcal_width_mm"] / 2

    # The interhemispheric fissure is a sheet at x = 0 outside the arch of the corpus callosum.
    arch = 24 * (1 - np.sqrt(((y + 5) / 37) ** 2 + ((z - 7) / 23) ** 2))
    fissure = np.hypot(x + 0.9 * jitter_x, np.maximum(arch, 0))

    # The Sylvian fissure: a sheet over the insula, and a stem to the surface that runs backwards as it rises.
    jittered = (lateral + 1.8 * jitter_x, y + 1.8 * jitter_y)
    insula = tube((*jittered, z), [(37.5, 19, 0, 0), (40, 5, 0, 0), (40, -9, 0, 0)], 0)
    stem = tube((jittered[0], jittered[1] - 10 + 1.1 * z, z), [(40, 0, 0, 0), (80, -8, 0, 0)], 0)
    sylvian = np.hypot(np.minimum(insula, stem), np.maximum(np.maximum(z - 19, -6 - z), 0))

    # Sulci run inwards from the surface: waves along the way around a core line at x = 28 in each hemisphere.
    back, front, radius = -60.0, 26.0, 36.0
    around = 2 * (front - back) + 2 * np.pi * radius
    out, along = lateral - 28 + 2.6 * jitter_x, y + 2.6 * jitter_y
    on_core = np.clip(along, back, front)
    core = np.hypot(out, along - on_core)
    angle = np.arctan2(along - on_core, out)
    way = radius * angle + np.where(np.abs(angle) < np.pi / 2, on_core, 2 * np.where(angle >= 0, front, back) - on_core)
    way += wave_field(draw_waves(rng, 10, 11.0), point, side) + 5 * wave_field(draw_waves(rng, 8, 60.0), point, side)
    wavelength = WAVELENGTH_MM * params["fold_scale"]
    real = imaginary = 0
    for phase in wave_phases(draw_fold_waves(rng, around, wavelength), (way, core, z), side):
        real, imaginary = real + np.cos(phase), imaginary + np.sin(phase)
    # A sulcus is where the real part is zero; the phase gives the distance to it, even where waves cancel.
    crowding = np.where(along == on_core, 1, radius / np.maximum(core, 14)) ** 0.5
    sheet = np.arctan2(np.abs(real), np.abs(imaginary)) * (wavelength / (2 * np.pi)) / crowding
    every_other = imaginary / np.hypot(real, imaginary)  # deep and shallow sulci alternate
    reach = np.clip(20 + 4.5 * every_other + 5 * wave_field(draw_waves(rng, 10, 38.0), point, side), 5, 30)
    start = np.minimum(np.minimum(depth, 1.3 * fissure), 2.2 * sylvian)
    centre = 6 + 24 * (1 - np.sqrt(((y + 5) / 37) ** 2 + ((z - 7) / 19) ** 2 + (x / 28) ** 2))
    beyond = np.maximum(np.maximum(start - reach, centre), np.maximum(14 - core, 0))
    sulcus = np.hypot(sheet, beyond)

    pial = sulcus - half_width * wide * (0.3 + 1.3 * np.exp(-start / 5))
    pial = smooth_min(pial, depth - 0.8 * half_width * wide, 1.0)
    pial = smooth_min(pial, fissure - 0.4 - 0.5 * half_width, 1.0)
    pial = smooth_min(pial, sylvian - 1.2 * half_width * wide, 1.5)
    on_callosum = inside(-arch - 3, 2.0) * inside(lateral - 12, 3.0)
    thickness = params["cortical_thickness_mm"] * (0.8 + 0.2 * wide) * (1 - 0.9 * on_callosum)
    return pial, thickness


def deep_structures(params, point, rng):
    """{structure: signed distance (mm, negative inside)} of ventricles, choroid plexus, cistern and nuclei."""
    x, y, z = point
    lateral, scale = np.abs(x), params["ventricle_scale"]
    rough_x, rough_y = (wave_field(draw_waves(rng, 6, 35.0), point) for _ in range(2))
    push = 4 * (scale - 1)  # mm by which large ventricles shift the structures beside them
    caudate_knots = [(13.5, 22, 4, 5.5), (14.5, 8, 12, 4.5), (15.5, -8, 18, 2.5), (20, -21, 18, 1.5)]
    thalamus_knots = [(7.5, -4, 3, 6), (13, -19, 2, 8.5)]
    knots = [
        (11.5 + push, 28, 5, 3.5),
        (8 + 0.6 * push, 19, 10, 5),
        (5.2 + 0.3 * push, 4, 15, 5.4),
        (7 + 0.5 * push, -12, 18, 5.5),
        (12.5 + push, -28, 17, 5.5),
        (22 + push, -40, 10, 6.5),
        (25 + push, -55, 5, 2.5),
    ]
    scaled = [(kx, ky, kz, scale * radius) for kx, ky, kz, radius in knots]
    horns = tube((lateral + 0.4 * rough_x, y + 0.4 * rough_y, z), scaled, 0.6)
    # The nuclei bulge into the horns; nothing lateral of them belongs to a ventricle.
    wall = smooth_min(
        tube((np.minimum(lateral - push, 14), y, z), caudate_knots, 0.8),
        tube((np.minimum(lateral - 0.5 * push, 13), y, z), thalamus_knots, 0.8),
        2.0,
    )
    horns = -smooth_min(-horns, wall, 4.0)
    horns = np.maximum(horns, 0.8 - lateral)  # septum pellucidum
    third = tube((lateral, y, z), [(0, 4, 0, 0.6 + 1.2 * scale), (0, -22, 2, 0.4 + 1.4 * scale)], 0.22)
    return {
        "ventricle": np.minimum(horns, third),
        "choroid": tube((lateral - push + 1.5 * rough_x, y + rough_y, z), [(15, -27, 15, 1.5), (21, -38, 8, 2.5)], 1),
        "cistern": tube((lateral + 0.6 * rough_x, y + rough_y, z), [(0, -33, -2, 5), (7, -36, -4, 1.5)], 0.6),
        "caudate": tube((lateral - push, y, z), caudate_knots, 0.8),
        "thalamus": tube((lateral - 0.5 * push, y, z), thalamus_knots, 0.8),
        "pallidum": tube((lateral, y, z), [(18, 5, 1, 2.5), (19.5, -4, 1, 3.5)], 0.5),
        "putamen": tube((lateral + 0.3 * rough_x, y, z), [(21.5, 16, 4, 4), (26, 3, 4, 5.5), (28.5, -12, 4, 2.5)], 0.55),
    }


def slice_tissue(params, z):
    """Cut the subject `params` at height `z` (mm): {tissue: fraction of each pixel that it fills, float32 [240, 256]}.

    The tissues are those of SIGNAL; their fractions add up to 1 inside the brain and to 0 outside it.
    """
    rng = np.random.default_rng(params["anatomy_seed"])
    point = brain_point(params, z, rng)
    depth = depth_below_surface(params, point)
    within = depth > -1  # computing only these pixels is twice as fast
    point, depth = [part[within] for part in point], depth[within]
    pial, thickness = cortex_depth(params, point, depth, np.tanh(point[0] / 2), rng)
    distance = deep_structures(params, point, rng)
    ventricle, choroid = inside(distance["ventricle"], 0.6), inside(distance["choroid"], 1.0)
    layers = {
        "choroid": ventricle * choroid,
        "ventricle": ventricle,
        "sulcus": np.maximum(inside(pial, 0.8), inside(distance["cistern"], 1.5)),
        "caudate": inside(distance["caudate"], 0.9),
        "thalamus": inside(distance["thalamus"], 1.5),
        "pallidum": inside(distance["pallidum"], 1.2),
        "putamen": inside(distance["putamen"], 1.0),
        "cortex": inside(pial - thickness, 1.4),
        "white": 1,
    }
    tissue, rest = {}, inside(-depth, 0.6)
    for name, fraction in layers.items():  # each fills its fraction of what the layers before it left
        tissue[name] = np.zeros((HEIGHT, WIDTH), np.float32)
        tissue[name][within] = rest * fraction
        rest = rest * (1 - fraction)
    return tissue


def add_rician_noise(image, sigma, rng):
    """The magnitude of `image` after Gaussian noise of standard deviation `sigma` in its real and imaginary channels."""
    return np.hypot(image + rng.normal(0, sigma, image.shape), rng.normal(0, sigma, image.shape))


def render(params, tissue, z, rng=None):
    """The T1 image of `tissue` (from `slice_tissue` at the same `z`): uint8 [240, 256]; without noise if `rng` is None.

    Blurred by the scanner's point spread, shaded by its bias field, noisy, and black outside the brain (skull-stripped).
    """
    image = sum(SIGNAL[name] * fraction for name, fraction in tissue.items())
    for _ in range(2):  # both axes
        image[1:-1] = 0.25 * image[:-2] + 0.5 * image[1:-1] + 0.25 * image[2:]
        image = image.T
    x = np.linspace(-1, 1, WIDTH, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, HEIGHT, dtype=np.float32)[:, None]
    shape = np.random.default_rng(params["anatomy_seed"] + 1)
    a, b, c, d, e, f = shape.normal(0, params["bias"], 6).tolist()
    image = image * (1 + a * x + b * y + c * x * y + d * x * x + e * y * y + f * z / 50)
    image *= 1 + 0.02 * wave_field(draw_waves(shape, 16, 15.0), (WIDTH / 2 * PIXEL_MM * x, HEIGHT / 2 * PIXEL_MM * y, z))
    if rng is not None:
        image = add_rician_noise(image, params["noise"], rng)
    brain = sum(tissue.values()) > 0.4
    return np.uint8(np.clip(np.where(brain, image, 0) + 0.5, 0, 255))


def true_areas(tissue):
    """{column of subjects.csv: mm^2} of ventricles (with choroid plexus), sulcal CSF, grey and white matter in `tissue`."""
    area = {name: float(fraction.sum(dtype=np.float64)) * PIXEL_MM**2 for name, fraction in tissue.items()}
    return {
        "ventricle_mm2": area["ventricle"] + area["choroid"],
        "sulcal_csf_mm2": area["sulcus"],
        "grey_mm2": sum(area[name] for name in GREY),
        "white_mm2": area["white"],
    }


def place(subject):
    """Split and class of subject number `subject`: classes alternate, every fifth subject of each is for testing."""
    return SPLITS[subject // 2 % 5 == 1], CLASSES[subject % 2]


def draw_slice(params, number_in_scan, rng):
    """Height (mm), tissue (of `slice_tissue`) and image (of `render`) of a slice of a subject's scan."""
    z = params["lowest_z_mm"] + SPACING_MM * (number_in_scan - FIRST_SLICE)
    tissue = slice_tissue(params, z)
    return z, tissue, render(params, tissue, z, rng)


def write_subject(folder, seed, scans, subject, write_volume=None):
    """Draw `scans` scans of subject number `subject` of `seed`, write their slices below `folder`; returns rows of subjects.csv.

    write_volume (analysis/phantom_volumes.py): called with each scan's whole volume, in which a slice's index is its number.
    """
    split, label = place(subject)
    rng = np.random.default_rng([seed, subject])
    params, rows = draw_subject(rng, label), []
    age_and_sex = draw_age_and_sex(np.random.default_rng([seed, subject, 1]), params, label)  # anatomy and noise stay as they were
    for scan in range(scans):
        if scan:
            params |= {name: value for name, value in draw_subject(rng, label).items() if name in POSE}
        image, planes = subject * scans + scan, {}
        for number_in_scan in range(FIRST_SLICE, FIRST_SLICE + SLICES):
            z, tissue, planes[number_in_scan] = draw_slice(params, number_in_scan, rng)
            path = f"{split}/{label}/{image:06d}_{number_in_scan}.jpeg"
            with atomic_path(os.path.join(folder, path)) as temporary:
                Image.fromarray(planes[number_in_scan]).save(temporary, quality=95)
            numbers = {name: round(value, 4) for name, value in {"z_mm": z, **true_areas(tissue), **params}.items()}
            whose = {"path": path, "seed": seed, "subject": subject, "split": split, "class": label, **age_and_sex}
            rows.append({**whose, "slice": number_in_scan, "pixel_mm": PIXEL_MM, **numbers})
        if write_volume:
            rest = np.random.default_rng([seed, subject, 2, scan])
            volume = np.stack([planes[i] if i in planes else draw_slice(params, i, rest)[2] for i in range(VOLUME_SLICES)])
            spacing = PIXEL_MM, PIXEL_MM, SPACING_MM
            write_volume(folder, volume, spacing, subject, scan, image, age_and_sex["sex"])
    return rows


def write_subjects(folder, subjects, seed, scans, num_workers, write_volume=None):
    """Yield the rows of each subject in order; `num_workers` processes draw them."""
    write = functools.partial(write_subject, folder, seed, scans, write_volume=write_volume)
    num_workers = min(num_workers, subjects, 61)  # the most that Windows can wait for
    if num_workers == 1:
        yield from map(write, range(subjects))
        return
    # The workers ignore Ctrl-C: this process handles it and ends them.
    pool = functools.partial(multiprocessing.get_context("spawn").Pool, num_workers, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    with startup.start_workers(pool) as pool:
        yield from pool.imap(write, range(subjects))


def already_written(folder, subjects, seed, scans=1, volumes=False):
    """True if `folder` holds exactly these phantoms, False if it is empty; UserError if it holds anything else."""
    rows = None
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        if "subjects.csv" in names:
            with open(os.path.join(folder, "subjects.csv"), newline="") as file:
                rows = [(row.get("seed"), row.get("subject")) for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{folder}: cannot be read ({error}); choose another folder") from None
    if not names:
        return False
    if rows is None:
        raise UserError(f"{folder}: holds other files ({names[0]}, ...) and is left as it is; choose another folder")
    same = len(rows) == subjects * scans * SLICES and set(rows) == {(str(seed), str(subject)) for subject in range(subjects)}
    if not same or ("volumes" in names) != volumes:
        flag = "--subjects, --scans or --seed" if not same else "--volumes"
        raise UserError(f"{folder}: holds phantoms of other {flag} and is left as it is; choose another folder")
    return True


def write_phantoms(folder, subjects, seed, num_workers=1, scans=1, volumes=False):
    """Write `folder`/{train,test}/{AD,NC}/<scan>_<slice>.jpeg and, when all are there, `folder`/subjects.csv.

    volumes: also write `folder`/volumes and `folder`/masks (analysis/phantom_volumes.py), which needs SimpleITK.

    On one machine, equal `subjects`, `seed` and `scans` (of each subject) give equal bytes, whatever `num_workers`. Returns the
    number of slices written: 0 if they were there before. Below 4 subjects, some folders stay empty. UserError if `folder` cannot
    be written or holds other files; whatever stops it half way, the slices written so far are removed.
    """
    write_scan = None
    if volumes:
        from analysis.phantom_volumes import write_scan
    make_folder(folder, "folder")
    if already_written(folder, subjects, seed, scans, volumes):
        return 0
    rows = []
    try:
        for split, label in itertools.product(SPLITS, CLASSES):
            make_folder(os.path.join(folder, split, label), "folder")
        with (
            tqdm(total=subjects * scans * SLICES, desc="drawing", unit=" slices", disable=None) as bar,
            contextlib.closing(write_subjects(folder, subjects, seed, scans, num_workers, write_scan)) as drawn,
        ):
            for subject_rows in drawn:
                rows += subject_rows
                bar.update(len(subject_rows))
        with atomic_path(os.path.join(folder, "subjects.csv")) as path, open(path, "w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    except BaseException as error:
        for name in (*SPLITS, "volumes", "masks"):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"folder {folder}: cannot write there ({reason(error)}); choose another") from None
        raise
    return len(rows)


def main(argv=None):
    parser = ArgumentParser("Draw phantom brains in the layout of the ADNI AD_NC set.", "phantom.py AD_NC --subjects 300")
    parser.add_argument("folder", help="where to write train/, test/ and subjects.csv; new or empty")
    parser.add_argument("--subjects", type=number(int, 4, 10**6), default=100, help="people; a fifth are for testing")
    parser.add_argument("--scans", type=number(int, 1, 100), default=1, help="of each subject, 20 slices each")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="other seeds give other people")
    Group(parser, "volumes").add_bool("--volumes", False, "also each scan's volume and brain mask, for prepare.py")
    parser.add_argument("--num_workers", type=number(int, 1), default=usable_cores(), help="processes")
    args = parser.parse_args(argv)
    start = time.monotonic()
    written = write_phantoms(args.folder, args.subjects, args.seed, args.num_workers, args.scans, args.volumes)
    if not written:
        print(f"{args.folder} already holds these {args.subjects} phantoms of seed {args.seed}; nothing to do")
        return
    rate = written / (time.monotonic() - start)
    print(f"wrote {written} slices of {args.subjects} phantoms and subjects.csv to {args.folder}: {rate:.0f} slices a second")


if __name__ == "__main__":
    run_cli(main)
