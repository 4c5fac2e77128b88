"""phantom_shapes.py: signed distances against geometry, noise against its moments and its symmetry."""

import numpy as np
import pytest

from data.phantom_shapes import draw_fold_waves, draw_waves, inside, smooth_min, tube, wave_field

POINTS = np.random.default_rng(0).uniform(-30, 30, (3, 2000))


def test_wave_field_has_zero_mean_and_unit_variance():
    rng = np.random.default_rng(1)
    values = np.array([wave_field(draw_waves(rng, 8, 20.0), (0.0, 0.0, 0.0)) for _ in range(4000)])
    assert values.mean() == pytest.approx(0, abs=4 / 4000**0.5)  # four standard errors
    assert values.var() == pytest.approx(1, abs=4 * (2 / 4000) ** 0.5)


def test_wave_field_differs_between_the_sides_by_the_phase_of_each_wave_only():
    waves = draw_waves(np.random.default_rng(2), 6, 25.0)
    left, right = (wave_field(waves, POINTS, side) for side in (-1, 1))
    assert not np.allclose(left, right)
    waves[:, 4] = 0
    assert (wave_field(waves, POINTS, -1) == wave_field(waves, POINTS, 1)).all()


def test_draw_waves_draws_wavelengths_within_a_quarter_of_the_one_asked_for():
    vectors = draw_waves(np.random.default_rng(3), 500, 20.0)[:, :3]
    lengths = 2 * np.pi / np.linalg.norm(vectors, axis=1)
    assert lengths.min() >= 16 and lengths.max() <= 25 and lengths.max() - lengths.min() > 8


def test_fold_waves_close_around_the_hemisphere():
    waves = draw_fold_waves(np.random.default_rng(4), 300.0, 27.0)
    start, end = (wave_field(waves, (way, 5.0, 3.0)) for way in (0.0, 300.0))
    assert end == pytest.approx(start, abs=1e-9)


def test_smooth_min_is_the_minimum_where_distances_differ_and_rounds_by_a_quarter_of_blend_where_they_meet():
    a, b = POINTS[0], POINTS[1]
    apart = np.abs(a - b) >= 2.0
    assert (smooth_min(a, b, 2.0)[apart] == np.minimum(a, b)[apart]).all() and 100 < (~apart).sum() < 1000
    assert smooth_min(np.float64(3), np.float64(3), 2.0) == 3 - 2.0 / 4
    assert (smooth_min(a, b, 2.0) <= np.minimum(a, b)).all()


def test_inside_falls_from_one_to_zero_over_twice_the_softness():
    distance = np.linspace(-3, 3, 121)
    fraction = inside(distance, 1.5)
    assert (fraction[distance <= -1.5] == 1).all() and (fraction[distance >= 1.5] == 0).all()
    assert fraction[60] == 0.5 and fraction + fraction[::-1] == pytest.approx(1) and (np.diff(fraction) <= 0).all()


def test_tube_is_the_distance_to_its_axis_less_its_radius():
    knots = [(-10, 0, 0, 2), (10, 0, 0, 2), (10, 15, 5, 2)]
    ways = np.linspace(0, 1, 4001)[:, None, None]
    axis = [np.array(a[:3]) + ways * (np.array(b[:3]) - np.array(a[:3])) for a, b in zip(knots, knots[1:])]
    nearest = np.min([np.linalg.norm(part - POINTS.T[None, :100], axis=2).min(axis=0) for part in axis], axis=0)
    assert tube(POINTS[:, :100], knots, 1) == pytest.approx(nearest - 2, abs=1e-3)


def test_a_tube_flattened_to_zero_is_a_sheet_of_any_height():
    x, y, z = POINTS
    knots = [(-10, 0, 3, 1), (10, 4, -3, 3)]
    assert (tube((x, y, z), knots, 0) == tube((x, y, z + 50), knots, 0)).all()
