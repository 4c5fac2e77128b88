"""Anatomies of phantom.py: what a subject is drawn from, and the tissues and the image of a slice of it.

A subject is one three-dimensional anatomy: functions of x, y, z in mm, right, forward and up of the anterior commissure.
"""

from typing import NamedTuple

import numpy as np

from data.phantom_shapes import (
    CENTRE_Y,
    base_height,
    cerebellum,
    draw_fold_waves,
    draw_waves,
    inside,
    medial_cortex,
    midline_structures,
    outer_depth,
    smooth_min,
    thicker,
    tube,
    wave_field,
    wave_phases,
)

HEIGHT, WIDTH = 240, 256
CENTRE_ROW, CENTRE_COLUMN = 103, 121  # of a sagittal slice: where the middle of the brain and the height of z = 0 lie
WAVELENGTH_MM = 27.0  # of the cortical folds: two sulci each


# Mean and standard deviation of each parameter, in AD and in NC where they differ (`noise` in grey levels, `bias` as a fraction of
# the signal). Those of MIDLINE, of sagittal slices alone, have random numbers of their own.
PARAMETERS = {
    "ventricle_scale": {"AD": (1.40, 0.20), "NC": (1.05, 0.16)},  # times a young adult's radius
    "sulcal_width_mm": {"AD": (2.20, 0.45), "NC": (1.50, 0.35)},
    "cortical_thickness_mm": {"AD": (2.60, 0.22), "NC": (3.00, 0.22)},
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
MIDLINE = {  # sizes, and how the head lies in the picture
    "callosum_thickness_mm": {"AD": (4.70, 0.75), "NC": (5.70, 0.75)},  # of its body
    "stem_scale": (1, 0.05),
    "cerebellum_scale": (1, 0.04),
    "up_mm": (0, 3.5),
    "forward_mm": (0, 4),
    "nod_deg": (0, 4),
}
POSE = "lowest_z_mm", "yaw_deg", "pitch_deg", "roll_deg", "shift_x_mm", "shift_y_mm", "up_mm", "forward_mm", "nod_deg"  # of a scan
AGE = {"AD": (77, 7), "NC": (74, 7)}  # years
AGEING = {"ventricle_scale": 0.5, "sulcal_width_mm": 0.4, "cortical_thickness_mm": -0.4}  # correlation with age in either class

# T1 signal of each tissue on the 8-bit scale in axial slices (None: not in them) and in sagittal ones, as in 3 T scans without a
# correction of their coils' field; and the matter that it counts as.
TISSUES = {
    "ventricle": (26, 30, ""),
    "sulcus": (26, 32, ""),
    "choroid": (80, 80, ""),
    "caudate": (116, 125, "grey"),
    "thalamus": (142, 178, "grey"),
    "pallidum": (156, 156, "grey"),
    "putamen": (128, 128, "grey"),
    "cortex": (96, 118, "grey"),
    "white": (190, 186, "white"),
    "hypothalamus": (None, 148, "grey"),
    "septum": (None, 110, "white"),
    "callosum": (None, 238, "white"),
    "fornix": (None, 180, "white"),
    "stem": (None, 204, "white"),
    "cerebellar_sulcus": (None, 42, ""),
    "cerebellar_cortex": (None, 130, "grey"),
    "cerebellar_white": (None, 188, "white"),
}
SIGNAL = {name: axial for name, (axial, _, _) in TISSUES.items() if axial}
SAGITTAL_SIGNAL = {name: sagittal for name, (_, sagittal, _) in TISSUES.items()}
GREY, WHITE = ([name for name, (_, _, counted) in TISSUES.items() if counted == matter] for matter in ("grey", "white"))
NUCLEI = {"caudate": 0.9, "thalamus": 1.5, "pallidum": 1.2, "putamen": 1.0}  # softness of their borders, mm


class View(NamedTuple):
    """How slices are cut: sides of a pixel and distance of slices in mm, number of the slice at position 0, slices a volume."""

    pixel_mm: float
    spacing_mm: float
    zero: int
    volume_slices: int
    signal: dict
    noise: float  # times the subject's, as is the next
    bias: float
    blur: float  # weight of either neighbour of a pixel in the scanner's point spread


VIEWS = {
    "sagittal": View(1.0, 1.0, 90, 181, SAGITTAL_SIGNAL, 0.6, 0.6, 0.15),
    "axial": View(0.85, 1.5, 75, 140, SIGNAL, 1.0, 1.0, 0.25),
}


def draw_subject(rng, label, disease=1.0):
    """The parameters of a subject of class `label`, {name: number}, drawn from normal distributions clipped at 2.5 SD.

    disease: share of the difference between the classes, 0 to 1. `anatomy_seed` fixes the folds and all other individual shape.
    """

    def draw(rng, table):
        ranges = {name: between(entry, label, disease) for name, entry in table.items()}
        return {name: mean + sd * float(np.clip(rng.normal(), -2.5, 2.5)) for name, (mean, sd) in ranges.items()}

    params = draw(rng, PARAMETERS)
    params["anatomy_seed"] = int(rng.integers(2**31))
    return params | draw(np.random.default_rng([params["anatomy_seed"], 2]), MIDLINE)


def between(entry, label, disease):
    """(mean, standard deviation) of an entry of PARAMETERS, moved to the middle of both classes as far as `disease` is below 1."""
    if not isinstance(entry, dict):
        return entry
    share = {name: (1 + disease) / 2 if name == label else (1 - disease) / 2 for name in entry}
    return tuple(sum(share[name] * values[i] for name, values in entry.items()) for i in range(2))


def twin_of(params, label, disease=1.0):
    """The same subject, of class `label`, in the other class: each parameter as many standard deviations from that one's mean."""
    twin = dict(params)
    for name, entry in (PARAMETERS | MIDLINE).items():
        (own, sd), (other, other_sd) = (between(entry, of, disease) for of in (label, "NC" if label == "AD" else "AD"))
        twin[name] = other + (params[name] - own) / sd * other_sd
    return twin


def draw_age_and_sex(rng, params, label, disease=1.0):
    """{"age": years, "sex": "F" or "M"} given the anatomy, which they change in truth: the joint distribution is the same.

    Age and the parameters of AGEING are jointly normal in a class; the brains of men are 140 mm wide, of women 136 (SD 12^0.5).
    """
    ranges = {name: between(PARAMETERS[name], label, disease) for name in AGEING}
    ageing = sum(r * (params[name] - ranges[name][0]) / ranges[name][1] for name, r in AGEING.items())
    mean, sd = between(AGE, label, disease)
    age = mean + sd * (ageing + (1 - sum(r * r for r in AGEING.values())) ** 0.5 * rng.normal())
    return {"age": round(age, 1), "sex": "M" if rng.random() < 1 / (1 + np.exp((138 - params["brain_width_mm"]) / 3)) else "F"}


def plane(params, position, view):
    """Where the pixels of a slice lie in the scanner: mm to the right, forward and up, arrays that broadcast to [240, 256].

    position: mm above the anterior commissure, or right of the middle plane, in slices that are turned as in AD_NC.
    """
    if view == "axial":
        right = (np.arange(WIDTH) - (WIDTH - 1) / 2)[None, :] * VIEWS[view].pixel_mm
        forward = ((HEIGHT - 1) / 2 - np.arange(HEIGHT))[:, None] * VIEWS[view].pixel_mm
        return right - params["shift_x_mm"], forward - params["shift_y_mm"], position
    forward = (np.arange(HEIGHT) - CENTRE_ROW)[:, None] * VIEWS[view].pixel_mm - params["forward_mm"]
    up = (np.arange(WIDTH) - CENTRE_COLUMN)[None, :] * VIEWS[view].pixel_mm - params["up_mm"]
    nod = np.radians(params["nod_deg"])
    turned = np.cos(nod) * forward - np.sin(nod) * up, np.cos(nod) * up + np.sin(nod) * forward
    return position - params["shift_x_mm"], *turned


def brain_point(params, position, view, rng):
    """Position of each pixel of a slice (of `plane`) in the subject's brain: x, y, z in mm, float32 [240, 256] each."""
    across, up, z = plane(params, position, view)
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
    slope = np.hypot(*np.gradient(radius, VIEWS["axial"].pixel_mm))
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
    front = (11.5 + push, 28, 5, 3.5), (8 + 0.6 * push, 19, 10, 5)
    body = (5.2 + 0.3 * push, 4, 15, 5.4), (7 + 0.5 * push, -12, 18, 5.5)
    back = (12.5 + push, -28, 17, 5.5), (22 + push, -40, 10, 6.5), (25 + push, -55, 5, 2.5)
    horns = tube((lateral + 0.4 * rough_x, y + 0.4 * rough_y, z), thicker([*front, *body, *back], scale), 0.6)
    # The nuclei bulge into the horns; nothing lateral of them belongs to a ventricle.
    caudate_wall = tube((np.minimum(lateral - push, 14), y, z), caudate_knots, 0.8)
    thalamus_wall = tube((np.minimum(lateral - 0.5 * push, 13), y, z), thalamus_knots, 0.8)
    horns = -smooth_min(-horns, smooth_min(caudate_wall, thalamus_wall, 2.0), 4.0)
    third = tube((lateral, y, z), [(0, 4, 0, 0.6 + 1.2 * scale), (0, -22, 2, 0.4 + 1.4 * scale)], 0.22)
    return {
        "horns": horns,  # before the septum pellucidum parts them
        "third": third,
        "choroid": tube((lateral - push + 1.5 * rough_x, y + rough_y, z), [(15, -27, 15, 1.5), (21, -38, 8, 2.5)], 1),
        "cistern": tube((lateral + 0.6 * rough_x, y + rough_y, z), [(0, -33, -2, 5), (7, -36, -4, 1.5)], 0.6),
        "caudate": tube((lateral - push, y, z), caudate_knots, 0.8),
        "thalamus": tube((lateral - 0.5 * push, y, z), thalamus_knots, 0.8),
        "pallidum": tube((lateral, y, z), [(18, 5, 1, 2.5), (19.5, -4, 1, 3.5)], 0.5),
        "putamen": tube((lateral + 0.3 * rough_x, y, z), [(21.5, 16, 4, 4), (26, 3, 4, 5.5), (28.5, -12, 4, 2.5)], 0.55),
    }


def slice_tissue(params, position, view="sagittal"):
    """Cut the subject `params` at `position` (mm, of `plane`): {tissue: fraction of each pixel that it fills, float32 [240, 256]}.

    The tissues are those of SIGNAL that the view has; their fractions add up to 1 inside the brain and to 0 outside it.
    """
    seed = params["anatomy_seed"]
    rng = np.random.default_rng(seed if view == "axial" else [seed, 1])
    point = brain_point(params, position, view, rng)
    depth = depth_below_surface(params, point) if view == "axial" else outer_depth(params, point, rng)
    cut = axial_layers if view == "axial" else sagittal_layers
    within, layers, rest = cut(params, point, depth, rng)
    tissue = {}
    for name, fraction in layers.items():  # each fills its fraction of what the layers before it left
        tissue[name] = np.zeros((HEIGHT, WIDTH), np.float32)
        tissue[name][within] = rest * fraction
        rest = rest * (1 - fraction)
    return tissue


def axial_layers(params, point, depth, rng):
    """(pixels that may be brain, bool [240, 256]; {tissue: fraction of what the tissues before it left}; fraction of brain)."""
    within = depth > -1  # computing only these pixels is twice as fast
    point, depth = [part[within] for part in point], depth[within]
    pial, thickness = cortex_depth(params, point, depth, np.tanh(point[0] / 2), rng)
    distance = deep_structures(params, point, rng)
    horns = np.maximum(distance["horns"], 0.8 - np.abs(point[0]))  # septum pellucidum
    ventricle, choroid = inside(np.minimum(horns, distance["third"]), 0.6), inside(distance["choroid"], 1.0)
    layers = {
        "choroid": ventricle * choroid,
        "ventricle": ventricle,
        "sulcus": np.maximum(inside(pial, 0.8), inside(distance["cistern"], 1.5)),
        **{name: inside(distance[name], soft) for name, soft in NUCLEI.items()},
        "cortex": inside(pial - thickness, 1.4),
        "white": 1,
    }
    return within, layers, inside(-depth, 0.6)


def sagittal_layers(params, point, depth, rng):
    """As `axial_layers`, with the midline structures."""
    near = np.maximum(depth, 3 - np.maximum(np.abs(point[1] + 52) - 45, np.abs(point[2] + 30) - 40)) > -4
    point, depth = [part[near] for part in point], depth[near]
    side = np.tanh(point[0] / 2)
    distance = deep_structures(params, point, rng)
    added = midline_structures(params, point, rng)
    whole, folia, white = cerebellum(params, point, base_height(point), side, rng)
    whole = np.maximum(whole, 1.0 - added["stem"])
    distance["thalamus"] = smooth_min(distance["thalamus"], added["adhesion"], 2.0)
    # The gaps between cerebrum, brain stem and cerebellum are filled with fluid; what juts out of the three is not.
    outer = smooth_min(smooth_min(-depth, added["stem"], 20.0), whole, 20.0)
    outer = np.minimum(outer, added["cistern"])
    pial, thickness = medial_cortex(params, point, depth, added["callosum"], side, rng)
    third = np.maximum(added["third"], -added["adhesion"])
    ventricle = inside(np.minimum(np.minimum(np.maximum(distance["horns"], 0.4 - np.abs(point[0])), third), added["fourth"]), 0.6)
    within_cerebellum = inside(whole, 0.6)
    layers = {
        "callosum": inside(added["callosum"], 0.7),
        "fornix": inside(added["fornix"], 0.8),
        "choroid": ventricle * inside(distance["choroid"], 1.0),
        "ventricle": ventricle,
        "septum": inside(np.minimum(distance["horns"], added["septum"]), 0.8),
        "cerebellar_sulcus": within_cerebellum * inside(folia, 0.7),
        "cerebellar_cortex": within_cerebellum * inside(white, 1.0),
        "cerebellar_white": within_cerebellum,
        **{name: inside(distance[name], soft) for name, soft in NUCLEI.items()},
        "hypothalamus": inside(added["hypothalamus"], 1.5),
        "stem": inside(added["stem"], 0.8),
        "sulcus": np.maximum(inside(pial, 0.8), inside(distance["cistern"], 1.5)),
        "cortex": inside(pial - thickness, 1.4),
        "white": 1,
    }
    return near, layers, inside(outer, 0.6)


def add_rician_noise(image, sigma, rng):
    """The magnitude of `image` after Gaussian noise of standard deviation `sigma` in its real and imaginary channels."""
    return np.hypot(image + rng.normal(0, sigma, image.shape), rng.normal(0, sigma, image.shape))


def render(params, tissue, position, rng=None, view="sagittal"):
    """The T1 image of `tissue` (from `slice_tissue` at the same `position`): uint8 [240, 256]; without noise if `rng` is None.

    Blurred by the scanner's point spread, shaded by its bias field, noisy, and black outside the brain (skull-stripped).
    """
    image = sum(VIEWS[view].signal[name] * fraction for name, fraction in tissue.items())
    blur = VIEWS[view].blur
    for _ in range(2):  # both axes
        image[1:-1] = blur * image[:-2] + (1 - 2 * blur) * image[1:-1] + blur * image[2:]
        image = image.T
    x = np.linspace(-1, 1, WIDTH, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, HEIGHT, dtype=np.float32)[:, None]
    shape = np.random.default_rng(params["anatomy_seed"] + 1)
    a, b, c, d, e, f = shape.normal(0, params["bias"] * VIEWS[view].bias, 6).tolist()
    image = image * (1 + a * x + b * y + c * x * y + d * x * x + e * y * y + f * position / 50)
    side = VIEWS[view].pixel_mm
    image *= 1 + 0.02 * wave_field(draw_waves(shape, 16, 15.0), (WIDTH / 2 * side * x, HEIGHT / 2 * side * y, position))
    if rng is not None:
        image = add_rician_noise(image, params["noise"] * VIEWS[view].noise, rng)
    brain = sum(tissue.values()) > 0.4
    return np.uint8(np.clip(np.where(brain, image, 0) + 0.5, 0, 255))


def true_areas(tissue, view="sagittal"):
    """{column of subjects.csv: mm^2} in `tissue`: ventricles (with choroid plexus), CSF around the brain, grey and white matter.

    Of sagittal slices also the corpus callosum and the cerebellum, whose grey and white matter count in all of those as well.
    """
    area = {name: float(fraction.sum(dtype=np.float64)) * VIEWS[view].pixel_mm ** 2 for name, fraction in tissue.items()}
    areas = {
        "ventricle_mm2": area["ventricle"] + area["choroid"],
        "sulcal_csf_mm2": area["sulcus"] + area.get("cerebellar_sulcus", 0),
        "grey_mm2": sum(area.get(name, 0) for name in GREY),
        "white_mm2": sum(area.get(name, 0) for name in WHITE),
    }
    if view == "sagittal":
        areas |= {"callosum_mm2": area["callosum"], "cerebellum_mm2": area["cerebellar_cortex"] + area["cerebellar_white"]}
    return areas
