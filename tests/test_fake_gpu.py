"""Everything that runs on a GPU, on one of which only devices and shapes exist (fake_gpu.py): no operation mixes two devices."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NETWORK
from fake_gpu import fake_gpu
from plain_options import plain_options

import dataset
from analysis import latents, projector
from analysis.distances import Features, kid, prdc
from analysis.models import Model, generate, synthesize
from analysis.quality import measure_quality
from modules import build_networks
from ops import resample
from report.samples import Samples
from training import validation
from training.augment import AugmentationStrength, augment, score_separation
from training.growth import Fade
from training.loss import LOSSES, clip_images
from training.monitor import image_statistics
from training.slices import RunSlices
from training.step import TrainingState, mix_styles, update_average
from utils import random_stream

pytestmark = pytest.mark.slow  # fake operations take milliseconds
CONDITIONAL = NETWORK | {"num_classes": 2}


@pytest.fixture
def gpu():
    """A fake GPU; derivatives, which it has none of, are off."""
    with fake_gpu() as device, torch.no_grad():
        yield device


def images_on(device, count=4):
    return torch.zeros(count, 1, 32, 32, device=device)


def new_state(device, network=NETWORK, dtype=torch.float32, **options):
    return TrainingState(plain_options(batch_size=4, **options), network, device, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# The fake GPU itself


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.zeros(4, 1),
        lambda x: F.conv2d(x[None, None], torch.zeros(1, 1, 3, 3)),
        lambda x: F.linear(x, torch.zeros(2, 4)),
        lambda x: torch.cat([x, torch.zeros(4, 4)]),
        lambda x: torch.where(torch.zeros(4, dtype=torch.bool), x, x),
        lambda x: torch._foreach_lerp_([x], [torch.zeros(4, 4)], 0.5),
        lambda x: torch.randn(4, device=x.device, generator=torch.Generator()),
        lambda x: x.cpu().normal_(generator=random_stream("noise", 0, x.device)),
        lambda x: x.numpy(),
    ],
)
def test_fake_gpu_refuses_a_second_device(gpu, mix):
    with pytest.raises(RuntimeError, match="device|on (cpu|cuda)"):
        mix(torch.zeros(4, 4, device=gpu))


def test_fake_gpu_allows_what_a_gpu_does(gpu):
    x = torch.zeros(4, 4, device=gpu)
    assert (x + torch.ones([])).device == x[torch.zeros(2, dtype=torch.long)].device == gpu
    assert torch.zeros(4, 4).copy_(x).device.type == "cpu" and x.copy_(torch.ones(4, 4)).device == gpu
    assert x.sum().item() == 1 and x.cpu().numpy().shape == (4, 4) and x[x[0] > 1].shape == (4, 4)
    assert torch.rand(3, device=gpu, generator=random_stream("noise", 0, gpu)).device == gpu


def test_a_weight_that_stays_on_the_cpu_is_noticed(gpu):
    state = new_state(gpu)
    state.critic(images_on(gpu))
    state.critic.linear.bias = torch.nn.Parameter(torch.zeros(8))
    with pytest.raises(RuntimeError, match="device|on cpu"):
        state.critic(images_on(gpu))


# ---------------------------------------------------------------------------------------------------------------------
# Training, up to its derivatives


@pytest.mark.parametrize("network", [NETWORK, CONDITIONAL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_run_on_a_gpu(gpu, network, dtype):
    state = new_state(gpu, network, dtype)
    labels = torch.zeros(4, dtype=torch.long, device=gpu) if network["num_classes"] else None
    mapping, generator = state.model["mapping"], state.model["generator"]
    z = torch.zeros(4, mapping.z_dim, device=gpu)
    ws = mix_styles(mapping, z, labels, generator.num_ws, 0.5, state.rng)
    for noise in ("random", "fixed", "none"):
        images = generator(ws, noise, state.rng, dtype)
        assert images.device == gpu and images.dtype == torch.float32
    assert mapping.truncate(ws[:, 0], 0.5, labels).device == gpu
    mapping.update_w_mean(mapping.class_sums(ws[:, 0], labels))
    for float32_up_to in (4, 16):
        score = state.critic(torch.cat([images, images]), None if labels is None else labels.repeat(2), dtype, 2, float32_up_to)
        assert score.device == gpu and score.dtype == torch.float32


def test_a_fading_critic_runs_on_a_gpu(gpu):
    critic, lower = (build_networks(NETWORK | {"resolution": size})[1].to(gpu) for size in (32, 16))
    critic.fade = Fade(16, lower.from_image)
    critic.fade.alpha = 0.5
    assert critic(images_on(gpu)).device == gpu


@pytest.mark.parametrize("loss", ["wgan-gp", "logistic", "relativistic"])
def test_losses_and_statistics_run_on_a_gpu(gpu, loss):
    scores, images = torch.zeros(4, device=gpu), images_on(gpu)
    terms = [LOSSES[loss].critic(scores, scores), LOSSES[loss].generator(scores, scores), score_separation(scores, scores)]
    terms += image_statistics(images, images).values()
    assert {term.device for term in [*terms, clip_images(images)]} == {gpu}


def test_augmentation_and_its_controller_run_on_a_gpu(gpu):
    strength = AugmentationStrength("ada", gpu)
    images = augment(images_on(gpu), strength.p, random_stream("training", 0, gpu))
    terms = dict.fromkeys(("separation", "wasserstein", "held_out"), torch.zeros([], device=gpu))
    strength.update(terms, 4)
    strength.load_state_dict({name: value.cpu() for name, value in strength.state_dict().items()})
    assert images.device == strength.p.device == gpu


def test_average_is_updated_on_a_gpu(gpu):
    state = new_state(gpu)
    update_average(state, 24)
    assert {x.device for x in state.averaged.state_dict().values()} == {gpu}


@pytest.mark.parametrize("resolution", [8, 32, 128])
def test_resample_runs_on_a_gpu(gpu, resolution):
    assert resample(images_on(gpu), resolution).device == gpu


@pytest.mark.parametrize("resident", [False, True])
def test_batches_reach_a_gpu(gpu, resident):
    slices = type("Slices", (), {"resolution": 32, "__len__": lambda self: 6})()
    type(slices).told = lambda self, rows=slice(None): np.zeros(6, np.int64)[rows]
    type(slices).__getitem__ = lambda self, rows: np.zeros((len(rows), 32, 32), np.uint8)
    data = dataset.batches(slices, 4, gpu, 0, resident=resident)
    for _ in range(2):
        images, labels = next(data)
        assert images.device == labels.device == gpu and images.shape == (4, 1, 32, 32)
    data.close()


def test_steps_and_projection_run_on_a_gpu_with_all_their_derivatives():
    pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch cannot add a kind of device")
    worker = os.path.join(os.path.dirname(__file__), "fake_gpu_worker.py")
    done = subprocess.run([sys.executable, worker], capture_output=True, text=True, timeout=300)
    trained = [f"trained with {loss}" for loss in ("wgan-gp", "logistic", "relativistic")]
    assert done.stdout.splitlines()[:-1] == [*trained, "projected"], done.stderr
    assert done.stdout.splitlines()[-1] == "refused: convolution_backward of tensors on cpu and fakegpu", done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Looking into a model


@pytest.fixture(params=[NETWORK, CONDITIONAL], ids=["plain", "conditional"])
def gpu_model(gpu, request):
    networks, _ = build_networks(request.param)
    networks.to(gpu)
    labels = list(range(request.param["num_classes"])) or [None]
    return Model("model", networks["mapping"], networks["generator"], ["AD", "NC"], labels, "model")


def test_images_of_a_model_are_made_on_a_gpu(gpu, gpu_model):
    label = gpu_model.labels[-1]
    assert np.concatenate(list(generate(gpu_model, 20, 0, 0.7, label))).shape == (20, 32, 32)
    ws = torch.zeros(3, gpu_model.generator.num_ws, NETWORK["w_dim"], device=gpu)
    assert synthesize(gpu_model, ws).shape == (3, 32, 32)


def test_figures_of_a_model_are_computed_on_a_gpu(gpu, gpu_model, monkeypatch, tmp_path):
    monkeypatch.setattr(latents, "DIRECTION_LATENTS", 64)
    samples = Samples(gpu_model, 0, 0.7, str(tmp_path))
    assert {w.device for w in samples.w} == {gpu}
    assert latents.noise_statistics(gpu_model, samples.w[0], 2, random_stream("noise map", 0, gpu))[0].shape[1:] == (32, 32)
    assert [side for side, *_ in latents.resolution_pyramid(gpu_model, samples.w[0])] == [4, 8, 16, 32]
    assert latents.truncation_sweep(gpu_model, *samples.untruncated[-1], (0.0, 1.0)).shape[1:] == (2, 32, 32)
    assert len(latents.interpolate_loop(samples.w[0], 2)) == 2 * len(samples.w[0])
    for method in latents.METHODS:
        assert latents.find_directions(gpu_model, 2, 0, method).vectors.device == gpu
    if len(gpu_model.labels) == 2:
        assert latents.morph(gpu_model, samples.latents(4), 2).means.shape == (2, 32, 32)


@pytest.mark.parametrize("kind, network", [("plain", NETWORK), ("conditional", CONDITIONAL)])
def test_validation_runs_on_a_gpu(gpu, monkeypatch, kind, network):
    monkeypatch.setattr(validation, "VALIDATED", 16)
    slices = {}
    for count in (8, 12):
        told = {"told": lambda self, rows, n=count: (np.arange(n) % 2)[rows]}
        slices[count] = type("Slices", (), {**told, "__len__": lambda self, n=count: n})()
        type(slices[count]).__getitem__ = lambda self, rows: np.zeros((len(rows), 32, 32), np.uint8)
    state = new_state(gpu, network)
    found = RunSlices(slices[8], np.arange(8), slices[12], np.arange(12), "", {"validation": {"counts": {}}}, False)
    measure = validation.Validation(found, network["z_dim"], network["num_classes"], gpu)
    assert measure(state.averaged, state.critic, 4).keys() == set(validation.VALIDATION)


def test_features_distances_and_quality_run_on_a_gpu(gpu):
    extract = Features(gpu)
    assert next(extract.network.parameters()).device == gpu
    images = np.zeros((16, 32, 32), np.uint8)
    features = extract(images)
    assert features.device.type == "cpu"
    assert isinstance(kid(features, features), float)  # nan, since a GPU that is none counts one image everywhere
    assert np.isfinite(list(prdc(features, features).values())).all()
    values = measure_quality(images, images, device=gpu).values
    assert {"kid_x1000", "swd_x1000_32", "floor_recall"} <= values.keys()


def test_distance_of_projections_runs_on_a_gpu(gpu):
    distance = projector.Distance(gpu)
    assert distance.embed(images_on(gpu)).device == gpu
    maps = [torch.zeros(4, 1, side, side, device=gpu) for side in (4, 8, 32)]
    projector.normalise(maps)
    assert projector.noise_structure(maps).device == gpu
