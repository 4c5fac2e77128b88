"""Monitoring: statistics of activations and images against a second way of computing them, and every alert provoked."""

import math
import os

import numpy as np
import pytest
import torch
from conftest import LAYERS, NETWORK

from modules import build_networks
from training.monitor import ALERTS, IMAGE_STATISTICS, PATIENCE, ActivationMonitor, Alerts, image_statistics, memory_gib

# ---------------------------------------------------------------------------------------------------------------------
# Activations


@pytest.fixture
def networks():
    model, critic = build_networks(NETWORK)
    return model, critic, ActivationMonitor(model, critic)


def forward(model, critic):
    """{layer: its output} in one pass of new latents through generator and critic."""
    outputs, hooks, w = {}, [], model["mapping"](torch.randn(6, 16))
    for part, blocks in (("generator", model["generator"].blocks), ("critic", critic.blocks)):
        for i, block in enumerate(blocks):
            name = f"{part} {4 << i if part == 'generator' else 32 >> i}"
            hooks.append(block.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out})))
    image = model["generator"](w)
    score = critic(image)
    for hook in hooks:
        hook.remove()
    outputs = {name: out[0] * out[1][:, :, None, None] if isinstance(out, tuple) else out for name, out in outputs.items()}
    return {"w": w, "image": image, "score": score} | outputs


def test_monitor_records_the_deviation_of_every_layer_s_first_output(networks):
    model, critic, monitor = networks
    with monitor.recording():
        outputs = forward(model, critic)
        forward(model, critic)  # of a second pass nothing is recorded
    forward(model, critic)  # nor after it
    assert list(monitor.names) == LAYERS and set(monitor.recorded) == set(LAYERS) == set(outputs)
    for name, output in outputs.items():
        x = output.detach().double().numpy()
        assert monitor.deviations()[name] == pytest.approx(x.std(ddof=1), rel=1e-4), name


def test_monitor_records_only_in_its_context_and_again_each_time(networks):
    model, critic, monitor = networks
    forward(model, critic)
    with monitor.recording(False):
        forward(model, critic)
    assert monitor.recorded == {}
    with monitor.recording():
        forward(model, critic)
    first = dict(monitor.recorded)
    with monitor.recording(False):
        forward(model, critic)
    assert monitor.recorded == first
    with monitor.recording():
        forward(model, critic)
    assert all(not torch.equal(monitor.recorded[name], first[name]) for name in LAYERS)


def test_monitor_stops_recording_after_an_error(networks):
    model, critic, monitor = networks
    with pytest.raises(ZeroDivisionError), monitor.recording():
        raise ZeroDivisionError
    forward(model, critic)
    assert monitor.recorded == {}


# ---------------------------------------------------------------------------------------------------------------------
# Images


def test_image_statistics_in_closed_form():
    real = torch.full([2, 1, 10, 10], -1.0)
    real[0, 0, :4], real[1, 0, :4] = 0.2, 0.8  # 40 of 100 pixels are foreground, and those differ between the two images
    half, overbright = real.clone(), real.clone()
    half[:, :, 2:] = -1
    overbright[0, 0, 4], overbright[1, 0, 5], overbright[1, 0, 6] = 1.3, -1.3, 1.2  # 10 of 200 pixels above 1.25
    blacker_than_black = torch.where(real < -0.9, real - torch.rand_like(real), real)  # saved as black
    for fake, expected in (
        (real, [1, 1, 0]),
        (-1 + (real + 1) / 2, [0.5, 1, 0]),
        (real[:1].repeat(2, 1, 1, 1), [0, 1, 0]),
        (torch.full_like(real, -1), [0, 0, 0]),
        (half, [0.5, 0.5, 0]),
        (blacker_than_black, [1, 1, 0]),
    ):
        statistics = image_statistics(fake, real)
        assert tuple(statistics) == IMAGE_STATISTICS
        np.testing.assert_allclose(list(statistics.values()), expected, atol=1e-6)
    assert image_statistics(overbright, real)["overbright_fraction"].item() == pytest.approx(10 / 200)


def test_image_statistics_are_finite_for_black_images():
    black, grey = torch.full([2, 1, 10, 10], -1.0), torch.zeros(2, 1, 10, 10)
    assert all(value.isfinite() for fake in (black, grey) for value in image_statistics(fake, black).values())


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell")
def test_memory_of_this_process_is_between_what_torch_takes_and_a_terabyte():
    assert 0.05 < memory_gib(torch.device("cpu")) < 1000


# ---------------------------------------------------------------------------------------------------------------------
# Alerts

HEALTHY = {
    "diversity": 0.9,
    "foreground_fraction": 1.1,
    "overbright_fraction": 0.02,
    "separation": 0.9,
    "images": 60_000,
}  # of losses.csv
EVALUATED = {"overfitting": 0.1, "precision": 0.6, "recall": 0.5}  # of evaluations.csv
LOSS_PROBLEMS = {
    "generator collapsed": {"diversity": 0.05},
    "generator black": {"foreground_fraction": 0.02},
    "generator saturated": {"overbright_fraction": 0.5},
    "critic won": {"separation": 0.9999},
    "critic lost": {"separation": -0.25},
}
EVALUATION_PROBLEMS = {"critic overfits": {"overfitting": 0.62}, "low diversity": {"precision": 0.9, "recall": 0.05}}
MESSAGES = {
    "generator collapsed": "0.05 of the real spread",
    "generator black": "0.02 of the real foreground",
    "generator saturated": "50% of its pixels",
    "critic won": "every generated slice",
    "critic lost": "generated slices above real ones",
    "critic overfits": "62% of the way",
    "low diversity": "precision 0.90.*recall 0.05",
}


def test_every_alert_is_provoked_below():
    assert set(LOSS_PROBLEMS) | set(EVALUATION_PROBLEMS) == set(ALERTS) == set(MESSAGES)


@pytest.mark.parametrize(
    "row",
    [
        HEALTHY,
        HEALTHY | {"diversity": 0.15, "foreground_fraction": 0.15, "overbright_fraction": 0.2, "separation": 0.99},
        HEALTHY | {"images": 50_000, "separation": 1.0},  # at the start, also where training goes well
        HEALTHY | {"separation": -0.15},  # it cannot tell them apart
        HEALTHY | dict.fromkeys(HEALTHY, math.nan),
        EVALUATED,
        EVALUATED | {"overfitting": 0.4, "recall": 0.15},
        EVALUATED | {"precision": 0.4, "recall": 0.05},
        dict.fromkeys(EVALUATED, math.nan),
        EVALUATED | {"overfitting": -0.2},
    ],
)
def test_no_alert_while_training_is_healthy(row):
    alerts = Alerts()
    assert all(alerts.check(row) == [] for _ in range(10 * PATIENCE))


def assert_alert(lines, name):
    (line,) = lines
    assert line.startswith(name + ": ") and "\n" not in line and "{" not in line
    assert np.all([part in line for part in MESSAGES[name].split(".*")]), line


@pytest.mark.parametrize("name", LOSS_PROBLEMS)
def test_a_problem_in_the_losses_is_reported_once_when_it_lasts(name):
    alerts, row = Alerts(), HEALTHY | LOSS_PROBLEMS[name]
    for _ in range(3):  # it begins, is reported, ends, and begins again
        reports = [alerts.check(row) for _ in range(4 * PATIENCE)]
        assert [i for i, lines in enumerate(reports) if lines] == [PATIENCE - 1]
        assert_alert(reports[PATIENCE - 1], name)
        assert alerts.check(HEALTHY) == []
    for _ in range(10):  # never lasting
        assert not any(alerts.check(row) for _ in range(PATIENCE - 1)) and alerts.check(HEALTHY) == []


@pytest.mark.parametrize("name", EVALUATION_PROBLEMS)
def test_a_problem_in_an_evaluation_is_reported_once_and_at_once(name):
    alerts, row = Alerts(), EVALUATED | EVALUATION_PROBLEMS[name]
    for _ in range(3):
        assert_alert(alerts.check(row), name)
        for _ in range(2 * PATIENCE):
            assert alerts.check(HEALTHY) == [] == alerts.check(row)  # rows of losses.csv say nothing about it
        assert alerts.check(EVALUATED) == []


def test_evaluations_between_rows_do_not_hide_a_problem_in_the_losses():
    alerts, lines = Alerts(), []
    for _ in range(PATIENCE):
        lines += alerts.check(HEALTHY | LOSS_PROBLEMS["generator black"]) + alerts.check(EVALUATED)
    assert_alert(lines, "generator black")
