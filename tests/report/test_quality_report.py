"""The table and the figures of metrics.py."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from synthetic import brains

from analysis import distances, quality
from report import quality_report


def test_quality_table_shows_every_value_beside_its_floor():
    values = {"kid_x1000": 12.3456, "kid_x1000_error": 1.5, "precision": 0.5, "recall": 0.25, "density": 1.0, "coverage": 0.75}
    values |= {"swd_x1000_32": 3.0, "swd_x1000_16": 2.0, "swd_x1000": 2.5, "spectrum_db": 0.125, "lost": 0.25}

    def measured(values):
        return quality.Quality(values, None, None, None, "training slices", 0)

    lines = quality_report.quality_table(measured(values | {"floor_kid_x1000": -0.5})).splitlines()
    assert lines[1].split() == ["KID", "x", "1000", "12.346", "-0.500"]
    assert lines[-2].split() == ["spectrum,", "dB", "0.125", "-"] and lines[-1].split() == ["lost,", "share", "0.250", "0.000"]
    assert len({len(line) for line in lines}) == 1  # columns are aligned
    memorised = {"memorised": 0.1, "memorised_low": 0.05, "memorised_high": 0.2, "floor_memorised": 0.02}
    memorised |= {"nearest_fake": 0.8, "floor_nearest_fake": 0.9}
    lines = quality_report.quality_table(measured(values | memorised)).splitlines()
    expected = [["0.100", "0.020"], ["0.050", "-"], ["0.200", "-"], ["0.800", "0.900"]]
    assert [line.split()[-2:] for line in lines[-4:]] == expected


def test_save_nearest_pairs_copies_with_their_originals(tmp_path, monkeypatch):
    train, fake = brains(60, 0), brains(24, 2)
    fake[5], fake[9] = train[20], train[31, :, ::-1]
    memory = distances.memorisation(brains(30, 1), fake, train, mirror=True)
    monkeypatch.setattr(quality_report.figures, "save_grids", lambda grids, path: drawn.append((grids, path)))
    drawn = []
    quality_report.save_nearest(fake, train, memory, "nearest.png", count=2)
    ((grids, path),) = drawn
    generated, nearest = grids.values()
    assert path == "nearest.png" and {bytes(image) for image in generated} == {bytes(fake[5]), bytes(fake[9])}
    np.testing.assert_array_equal(generated, nearest)


def test_plot_of_memorisation_marks_the_first_percentile_of_held_out_images():
    held_out = torch.arange(101, dtype=torch.float64) / 200 + 0.4
    memory = distances.Memorisation(None, held_out, held_out, torch.arange(101), torch.zeros(101, dtype=torch.bool))
    axes = Figure().subplots()
    quality_report._draw_memorisation(axes, memory)
    (line,) = axes.lines
    assert list(line.get_xdata()) == pytest.approx([0.405] * 2)
