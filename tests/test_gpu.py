"""What only a GPU can get wrong, against float64 on the CPU. Where there is none, the tests run on the CPU."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from plain_options import plain_options

from training.loss import LOSSES
from training.step import FLOAT32_UP_TO, Batch, TrainingState, update_critic, update_generator
from utils import pick_device

CPU = torch.device("cpu")
NETWORK = {
    "resolution": 64,
    "channel_base": 512,
    "channel_max": 32,
    "z_dim": 32,
    "w_dim": 32,
    "mapping_layers": 8,
    "num_classes": 2,
}
MISSING = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
ON_DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, MISSING])])
# Relative errors of a gradient come to about ten times the rounding error of one operation: 6e-8 in float32, 5e-4 in TF32, which
# must not go unnoticed, 4e-3 in bfloat16 and 5e-4 in float16.
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def same_numbers(monkeypatch):
    """torch.rand and torch.randn give the same numbers on every device and in every precision, from their start on."""

    def begin():
        rng = torch.Generator().manual_seed(0)

        def drawing(make):
            def draw(*size, device="cpu", generator=None):
                return make(*size, generator=rng, dtype=torch.float64).to(device, torch.get_default_dtype())

            return draw

        for name, make in makers.items():
            monkeypatch.setattr(torch, name, drawing(make))

    makers = {name: getattr(torch, name) for name in ("rand", "randn")}
    return begin


def error(found, expected):
    """The length of the difference of two lists of tensors, over that of the second list."""
    found, expected = (torch.cat([x.double().cpu().flatten() for x in tensors]) for tensors in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


def random_images(count):
    return torch.rand(count, 1, 64, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2 - 1


@ON_DEVICES
def test_float32_is_float32(device, settings_of_torch):
    device = pick_device(device)
    x, kernel, a = (torch.randn(*size, dtype=torch.float64) for size in ((4, 64, 32, 32), (64, 64, 3, 3), (512, 512)))
    for function, *tensors in ((F.conv2d, x, kernel), (torch.matmul, a, a)):
        found = function(*(tensor.to(device, torch.float32) for tensor in tensors))
        assert error([found], [function(*tensors)]) < 2e-6  # TF32: 3e-4


@ON_DEVICES
@pytest.mark.parametrize("dtype", LARGEST_ERROR)
@pytest.mark.parametrize("loss", ["wgan-gp", "logistic", "relativistic"])
def test_gradients_of_a_step_are_those_of_float64(device, loss, dtype, same_numbers, settings_of_torch):
    device = pick_device(device)
    options = plain_options(loss, augment="ada", style_mixing=0.5, path_length=1.0, lr=0.0, lr_critic=0.0)
    images, labels, found = random_images(8), torch.arange(8) % 2, []
    state = TrainingState(options, NETWORK, device, dtype)
    weights = {name: part.state_dict() for name, part in state.parts.items() if name in ("model", "critic")}
    with float64():
        exact = TrainingState(options, NETWORK, CPU, torch.float64)
        for name, saved in weights.items():
            exact.parts[name].load_state_dict(saved)
    for each, place, context in ((state, device, contextlib.nullcontext()), (exact, CPU, float64())):
        with context:
            same_numbers()
            each.augmentation.p = torch.tensor(0.3, device=place)
            batch = Batch(images.to(place, torch.get_default_dtype()), labels.to(place))
            terms = update_critic(each, 0, [batch])
            terms |= update_generator(each, 0, [batch], None, terms["critic_gradient"])
            found.append((terms, [[weight.grad for weight in part] for part in (each.critic_weights, each.model_weights)]))
    (terms, gradients), (exact_terms, exact_gradients) = found
    for ours, expected in zip(gradients, exact_gradients):
        assert error(ours, expected) < LARGEST_ERROR[dtype]
    for name in ("critic_loss", "generator_loss", "penalty", "gradient_norm", "path_length"):
        assert terms[name].item() == pytest.approx(exact_terms[name].item(), rel=LARGEST_ERROR[dtype], abs=1e-3), name


@ON_DEVICES
@pytest.mark.parametrize("dtype", LARGEST_ERROR)
def test_gradients_of_the_penalty_are_those_of_float64(device, dtype, settings_of_torch):
    device, gradients = pick_device(device), []
    critic = TrainingState(plain_options(), NETWORK, device, dtype).critic
    for place, precision, activations in ((device, torch.float32, dtype), (CPU, torch.float64, torch.float64)):
        critic.to(place, precision)
        images, fake = random_images(16).to(place, precision).chunk(2)

        def penalised(x, labels, groups=1, activations=activations):
            return critic(x, labels, activations, groups, float32_up_to=FLOAT32_UP_TO)

        labels = torch.arange(8, device=place) % 2
        penalty, _ = LOSSES["relativistic"].penalty(penalised, images, fake, labels)
        weights = [weight for weight in critic.parameters() if weight.requires_grad]
        gradients.append([g for g in torch.autograd.grad(penalty, weights, allow_unused=True) if g is not None])
    assert error(*gradients) < LARGEST_ERROR[dtype]
