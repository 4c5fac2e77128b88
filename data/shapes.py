"""Smooth noise and signed distances, of which phantom.py builds its anatomies. A point is (x, y, z), arrays in mm."""

import itertools

import numpy as np


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
