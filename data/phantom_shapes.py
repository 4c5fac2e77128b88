"""Shapes of which phantom.py builds its anatomies: smooth noise, distances, and what a sagittal slice has beside hemispheres.

Signed distances are in mm, negative inside. Points are (x, y, z) in mm: right, forward and up of the anterior commissure.
"""

import itertools

import numpy as np

CENTRE_Y = -16.0  # the middle of the brain is behind the anterior commissure
FOLD_MM = 16.5  # wavelength of the folds of the medial wall: two sulci each
SUBJECT_CALLOSUM_MM = 5.6  # thickness of the body of the corpus callosum for which the radii below hold

# y and z of the lowest points of the cerebrum: at the midline, along the parahippocampal gyri, and along the temporal lobes.
BASE = (-104, -88, -62, -42, -28, -14, 0, 8, 16, 28, 50, 72), (-8, -8, 4, 10, 3, -11, -14, -12, -17, -23, -24, -8)
MEDIAL_BASE = (-104, -62, -45, -34, -15, 4, 14, 26, 50, 72), (-4, 2, -3, -12, -20, -26, -21, -24, -23, -7)
LATERAL_BASE = (-104, -62, -45, -10, 18, 27, 50, 72), (-6, -4, -30, -38, -36, -25, -22, -6)
# y, z and radius of the knots of the corpus callosum, from the rostrum over genu and body to the splenium.
CALLOSUM = (
    (15, 26, 32, 29.5, 18, -2, -19, -29, -36, -35),
    (1, 1.5, 8, 17, 24.5, 28, 26, 21, 14, 10),
    (0.6, 1.7, 4.8, 4.2, 3.1, 2.8, 2.4, 3.0, 5.0, 4.2),
)
# Knots (x, y, z, radius) of tubes.
FORNIX = (1.5, -28, 20, 1.1), (1.5, -16, 21.5, 1.2), (1.5, -6, 19, 1.2), (1.5, 1, 13, 1.3), (1.5, 3, 5, 1.3), (2.5, -4, -7, 1.2)
STEM = (
    (0, -45, -60, 6),
    (0, -41, -52, 6.4),
    (0, -35, -40, 7.2),
    (0, -29, -30, 9),
    (0, -24, -18, 10),
    (0, -20, -6, 8.5),
    (0, -18, 0, 6),
)
PONS = (0, -17, -27, 9), (0, -14.5, -18, 8.5)
TECTUM = (0, -29, -7, 3.4), (0, -27, 1, 3.2)
PEDUNCLES = (6, -25, -23, 6), (14, -36, -25, 6.5), (20, -52, -27, 5)  # to the cerebellum
CRURA = (8, -15, -8, 5), (13, -9, 2, 5)  # to the internal capsule
FOURTH = (0, -44, -42, 0.5), (0, -38.5, -30, 1.7), (0, -36, -22, 2.2), (0, -31, -12, 0.9)
APEX = (0, -36.5, -24, 2.4), (0, -45, -22, 0.4)
AQUEDUCT = (0, -31, -12, 1.0), (0, -25.5, -4, 0.8), (0, -21, 0, 1.0)
VERMIS_ROOT = -46.0, -17.0  # (y, z) from which the white matter of the cerebellum branches


def draw_waves(rng, count, wavelength):
    """Plane waves for `wave_field` [count, 5]: wave vector (3, rad/mm), phase, and phase difference between left and right."""
    direction = rng.normal(size=(count, 3))
    direction *= 2 * np.pi / np.linalg.norm(direction, axis=1, keepdims=True)
    vector = direction / (wavelength * rng.uniform(0.8, 1.25, (count, 1)))
    return np.hstack([vector, rng.uniform(0, 2 * np.pi, (count, 1)), rng.normal(0, 0.8, (count, 1))])


def draw_fold_waves(rng, around, wavelength, count=12):
    """As `draw_waves`, but over (way around the hemisphere, distance from its core, z); `around` holds a whole number of waves."""
    turns = np.round(around / wavelength * rng.uniform(0.65, 1.35, count))
    rest = rng.normal(0, 0.09, count), rng.normal(0, 0.1, count), rng.uniform(0, 2 * np.pi, count), rng.normal(0, 0.8, count)
    return np.stack([2 * np.pi * turns / around, *rest], axis=1)


def wave_phases(waves, point, side):
    """Yield the phase (rad) of each wave at `point`."""
    x, y, z = point
    for kx, ky, kz, phase, asymmetry in waves.tolist():  # Python floats keep the arrays in float32
        yield kx * x + ky * y + kz * z + (asymmetry * side + phase)


def wave_field(waves, point, side=0):
    """Smooth noise of unit variance at `point` (x, y, z arrays, mm); `side` (-1 left, 1 right) makes the halves differ."""
    return sum(np.cos(phase) for phase in wave_phases(waves, point, side)) * (2 / len(waves)) ** 0.5


def smooth_min(a, b, blend):
    """The smaller of two signed distances, rounded where they differ by less than `blend` (mm)."""
    gap = np.maximum(blend - np.abs(a - b), 0)
    return np.minimum(a, b) - gap * gap / (4 * blend)


def inside(distance, softness):
    """Fraction of a pixel that lies inside a surface at signed `distance` (mm, negative inside): 0 to 1."""
    t = np.clip(0.5 - distance / (2 * softness), 0, 1)
    return t * t * (3 - 2 * t)


def tube(point, knots, flatten):
    """Signed distance (mm) to a chain of cones through `knots` (x, y, z, radius).

    `flatten` scales heights: below 1 the tube is taller than wide, at 0 it is a sheet as tall as the brain.
    """
    x, y, z = point
    distance = None
    for (x0, y0, z0, radius0), (x1, y1, z1, radius1) in itertools.pairwise(knots):
        px, py, pz = x - x0, y - y0, flatten * (z - z0)
        dx, dy, dz = x1 - x0, y1 - y0, flatten * (z1 - z0)
        along = np.clip((px * dx + py * dy + pz * dz) / (dx * dx + dy * dy + dz * dz), 0, 1)
        cone = np.sqrt((px - along * dx) ** 2 + (py - along * dy) ** 2 + (pz - along * dz) ** 2)
        cone -= radius0 + along * (radius1 - radius0)
        distance = cone if distance is None else np.minimum(distance, cone)
    return distance


def thicker(knots, factor):
    """Knots with radii that are `factor` times as large."""
    return [(x, y, z, factor * radius) for x, y, z, radius in knots]


def outer_depth(params, point, rng):
    """Approximate distance (mm) from the outer surface of the cerebrum, positive inside: a superellipsoid above BASE."""
    x, y, z = point
    forward = (y - CENTRE_Y) / (params["brain_length_mm"] / 2)
    half_width = params["brain_width_mm"] / 2 * (1 - 0.04 * forward - 0.08 * np.maximum(forward, 0) ** 2)
    scaled = np.abs(x) / half_width, np.abs(forward), np.abs(z - 2) / (params["brain_height_mm"] - 2)
    radius = sum(part**2.3 for part in scaled) ** (1 / 2.3)
    axes = half_width, params["brain_length_mm"] / 2, params["brain_height_mm"] - 2
    slope = np.sqrt(sum(((part / np.maximum(radius, 0.05)) ** 1.3 / axis) ** 2 for part, axis in zip(scaled, axes)))
    depth = (1 - radius) / np.maximum(slope, 1e-3)
    depth -= 3.5 * np.exp(-((x / 5) ** 2)) * np.clip((z - 20) / 40, 0, 1)  # the hemispheres part at the top
    depth += 1.0 * wave_field(draw_waves(rng, 10, 24.0), point) + 0.5 * wave_field(draw_waves(rng, 12, 9.0), point)
    return smooth_min(depth, 0.85 * (z - base_height(point)), 10.0)


def base_height(point):
    """z (mm) of the lower surface of the cerebrum below or above each point."""
    x, y, _ = point
    lateral = np.abs(x)
    height = np.interp(y, *BASE).astype(np.float32)
    for start, end, knots in ((9, 19, MEDIAL_BASE), (24, 34, LATERAL_BASE)):
        share = inside((start + end) / 2 - lateral, (end - start) / 2)
        height += share * (np.interp(y, *knots).astype(np.float32) - height)
    return height


def medial_sheet(params, point, side, rng):
    """Distance (mm) to the nearest sulcus of a winding pattern of them, all perpendicular to the surface of the hemisphere.

    A point is moved outwards to the surface of its hemisphere, where the sulci are the zeros of a random field. Its waves run
    around the corpus callosum rather than away from it. Also returns the distance from the core of the hemisphere (mm).
    """
    x, y, z = point
    dx = np.abs(x) - 30
    away = np.maximum(1, np.hypot((y + 12) / 62, (z - 14) / 36))
    dy, dz = ((y + 12) * (1 - 1 / away), (z - 14) * (1 - 1 / away))
    distance = np.sqrt(dx * dx + dy * dy + dz * dz)
    stretch = 30 / np.maximum(distance, 6)
    forward, up = y + 12 + (stretch - 1) * dy, z - 10 + (stretch - 1) * dz
    radius = np.hypot(forward, up)
    surface = 30 + stretch * dx, 52 * np.arctan2(-forward, up), radius  # the seam lies below the brain
    directions = rng.normal(size=(14, 3)) * (0.5, 1, 0.5)
    directions *= 2 * np.pi / (FOLD_MM * params["fold_scale"]) / np.linalg.norm(directions, axis=1, keepdims=True)
    directions *= rng.uniform(0.8, 1.25, (14, 1))
    value, slope = 0, [0, 0, 0]
    phases, asymmetries = rng.uniform(0, 2 * np.pi, 14).tolist(), rng.normal(0, 0.8, 14).tolist()
    for vector, phase, asymmetry in zip(directions.tolist(), phases, asymmetries):
        angle = sum(k * part for k, part in zip(vector, surface)) + (asymmetry * side + phase)
        value, sine = value + np.cos(angle), np.sin(angle)
        slope = [part + k * sine for part, k in zip(slope, vector)]
    slope[1] = slope[1] * (52 / np.maximum(radius, 15))
    steepness = np.sqrt(sum(part * part for part in slope) + 0.15)
    return np.abs(value) / steepness / stretch**0.5, distance


def medial_cortex(params, point, depth, callosum, side, rng):
    """Signed distance (mm) into the tissue from the folded pial surface, and the local cortical thickness (mm)."""
    x, y, z = point
    lateral = np.abs(x)
    jitter_x, jitter_y = (wave_field(draw_waves(rng, 10, 20.0), point, side) for _ in range(2))
    wide = np.maximum(1 + 0.6 * wave_field(draw_waves(rng, 8, 16.0), point, side), 0.2)
    half_width = params["sulcal_width_mm"] / 2
    arch = np.hypot((y + 4) / 40, (z - 7) / np.where(z > 7, 25, 15).astype(np.float32))  # of the corpus callosum
    outside = (arch - 1) * 25
    fissure = np.hypot(x + 1.4 * jitter_x, np.maximum(-outside, 0))
    sheet, distance = medial_sheet(params, point, side, rng)
    reach = np.clip(18 + 6 * wave_field(draw_waves(rng, 10, 30.0), point, side), 6, 32)
    start = np.minimum(0.8 * depth, fissure)
    beyond = np.maximum(np.maximum(start - reach, 8 - outside), 9 - distance)
    sulcus = np.hypot(sheet, np.maximum(beyond, 0))
    # The cingulate sulcus runs around the corpus callosum; it turns upwards behind.
    cingulate = np.abs(outside - 12 - 2.2 * jitter_y - 0.02 * np.maximum(-14 - y, 0) ** 2)
    cingulate = np.hypot(cingulate, np.maximum(np.maximum(start - 20, 5 - z), -40 - y))
    sulcus = np.minimum(sulcus, cingulate)
    pial = sulcus - half_width * wide * (0.3 + 0.8 * np.exp(-start / 5))
    pial = smooth_min(pial, depth - 0.8 * half_width * wide, 1.0)
    pial = smooth_min(pial, fissure - 0.2 - 0.35 * half_width, 1.0)
    # The sulcus of the corpus callosum follows its upper surface; further from the midline its fibres pass into white matter.
    around = np.hypot(np.maximum(callosum, 0), np.maximum(np.maximum(lateral - 8, 0), -4 - outside))
    pial = np.minimum(pial, around - 0.5 - 0.3 * half_width)
    on_callosum = inside(callosum - 4, 2.0) * inside(8 - lateral, 3.0)
    medial = 1 + 0.25 * np.exp(-((x / 6) ** 2))
    return pial, medial * params["cortical_thickness_mm"] * (0.8 + 0.2 * wide) * (1 - 0.9 * on_callosum)


def cerebellum(params, point, base, side, rng):
    """Signed distances (mm) of the cerebellum, and into its tissue from the surface of its folia and from its white matter."""
    x, y, z = point
    lateral, size = np.abs(x), params["cerebellum_scale"]
    beside = np.clip(lateral / 20, 0, 1) ** 2
    parts = (y + 59) / ((25 + 4 * beside) * size), (z + 19 + 8 * beside) / (28.5 * size), lateral / 54
    radius = sum(np.abs(part) ** 2.8 for part in parts) ** (1 / 2.8)
    whole = np.maximum((radius - 1) * 20 * size, 0.9 * (z - base + 2.0))
    jitter = wave_field(draw_waves(rng, 8, 16.0), point, side)
    dy, dz = y - VERMIS_ROOT[0], z - VERMIS_ROOT[1]
    way = np.hypot(dy, dz)
    angle = np.arctan2(dz, -dy) + 0.06 * jitter
    lobules, phase, depth = int(rng.integers(13, 16)), rng.uniform(0, 2 * np.pi), -whole
    turn = lobules * angle + phase
    main = np.abs(np.arcsin(np.sin(turn / 2))) * 2 / lobules * way  # distance from the fissures between the lobules
    main = np.hypot(main, np.maximum(8 + 8 * beside - way, 0))
    fine = np.abs(np.arcsin(np.sin(1.5 * turn + 0.7 * jitter))) * 2 / (3 * lobules) * way
    fine = np.hypot(fine, np.maximum(depth - 6 - jitter, 0))
    folia = smooth_min(np.minimum(main - 0.55, fine - 0.3), depth - 0.4, 0.5)
    white = np.minimum(np.minimum(main - np.minimum(0.16 * way, 3.4), fine - 1.8), depth - 3)
    return whole, folia, white


def midline_structures(params, point, rng):
    """{structure: signed distance} of corpus callosum, fornix, brain stem, and the third and fourth ventricles' additions."""
    x, y, z = point
    lateral, scale, stem = np.abs(x), params["ventricle_scale"], params["stem_scale"]
    rough = wave_field(draw_waves(rng, 6, 30.0), point)
    thickness = params["callosum_thickness_mm"] / SUBJECT_CALLOSUM_MM
    lifted = 5 * (scale - 1)  # by which large ventricles lift the body
    line = [(0, ky, kz + lifted * np.clip((kz - 8) / 16, 0, 1), thickness * radius) for ky, kz, radius in zip(*CALLOSUM)]
    callosum = tube((np.float32(0), y + 0.5 * rough, z + 0.5 * rough), line, 1)
    body = smooth_min(tube((0.55 * x, y, z), thicker(STEM, stem), 1), tube((0.45 * x, y, z), thicker(PONS, stem), 1), 4.0)
    for knots, flat in ((TECTUM, 0.5), (PEDUNCLES, 1), (CRURA, 1)):
        body = smooth_min(body, tube((flat * lateral, y, z), knots, 1), 3.0)
    wide = 0.55 + 0.45 * scale
    fourth = np.minimum(*(tube((0.4 * x, y, z), thicker(knots, wide), 1) for knots in (FOURTH, APEX)))
    third = tube((2.8 * x / wide, y, z), [(0, 2, -2, 3.4), (0, -9, 3, 6.0), (0, -19, 3, 3.0)], 1)
    third = smooth_min(third, tube((2.0 * x / wide, y, z), [(0, 3, -3, 2.4), (0, 5, -10, 1.4)], 1), 2.0)
    return {
        "callosum": np.maximum(callosum, lateral - 13),
        "fornix": tube((lateral, y, z), [(kx, ky, kz + 0.6 * lifted, radius) for kx, ky, kz, radius in FORNIX], 1),
        "stem": body,
        "third": third,
        "fourth": np.minimum(fourth, tube(point, AQUEDUCT, 1)),
        "adhesion": tube((0.3 * x, y, z), [(0, -8, 4, 3.6), (0, -11, 4, 3.6)], 1),
        "hypothalamus": tube((lateral, y, z), [(8, 15, -3, 5), (4, 6, -7, 5), (3.5, -7, -8, 4)], 1),
        "septum": tube((0.5 * x, y, z), [(0, 22, 12, 5), (0, 4, 18, 6), (0, -18, 20, 4)], 1),
        "cistern": tube((0.3 * x, y, z), [(0, -40, 4, 7), (0, -40, -6, 6)], 1),
    }
