"""The recorder's bookkeeping, on any machine; the CUDA graphs themselves, where there is a GPU, against plain steps."""

import numpy as np
import pytest
import torch
from conftest import TINY
from torch.utils._python_dispatch import TorchDispatchMode

import graphs
import train
from train import parse_args as parse_train
from train import settle
from utils import UserError

CPU = torch.device("cpu")
STEPS = 14
FLAGS = {
    "wgan-gp": [],
    "conditional relativistic": ["--loss", "relativistic", "--gp_every", 2, "--conditional", True, "--style_mixing", 0.9],
    "path length, ada": ["--path_length", 2, "--augment", "ada"],
}


class Again(graphs.Tape):
    """A tape that does the work again: on the batch and with the flags of the step that was recorded, as a graph would."""

    def __init__(self, work, parameters, rng, pool):
        self.work, self.parameters = work, parameters

    def replay(self):
        for p in self.parameters:
            p.grad = None
        return self.work(), [p.grad for p in self.parameters]


def training(flags, device=CPU):
    args = settle(parse_train([*TINY, "--dataset_dir", "unused", *map(str, flags)]), device)
    classes = 2 if args.conditional else 0
    network = {"resolution": 32, "channel_base": 128, "channel_max": 8, "z_dim": 256, "w_dim": 256, "num_classes": classes}
    return train.Training(args, network, device, torch.float32)


def run(training, steps=STEPS):
    """The terms of `steps` steps on slices and labels that change, the first steps watched, every fourth with unseen slices."""
    numbers, found = torch.Generator().manual_seed(1), []
    for k in range(steps):
        real, unseen = torch.rand(2, 8, 1, 32, 32, generator=numbers).mul(2).sub(1).to(training.rng.device)
        labels = torch.randint(2, (8,), generator=numbers).to(real.device) if training.args.conditional else None
        with training.probe.watching(k % 5 == 0):
            found.append(training.step(k, real, labels, *((unseen, labels) if k % 4 == 0 else (None, None))))
    return found


def assert_alike(a, b, **bounds):
    assert [term.keys() for term in a] == [term.keys() for term in b]
    for one, other in zip(a, b):
        torch.testing.assert_close(one, other, **bounds)


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_replayed_steps_are_plain_steps(flags):
    plain, replayed = training(flags), training(flags)
    replayed.recorder = graphs.Recorder(replayed.rng, Again)
    replays, replay = [], replayed.recorder.replay
    replayed.recorder.replay = lambda part, parameters: replays.append(part) or replay(part, parameters)
    assert_alike(run(plain), run(replayed), rtol=0, atol=0)
    assert replays[:2] == ["critic_half", "generator_half"] and len(replays) >= 6 and not replayed.recorder.fault
    for one, other in zip(plain.parts.values(), replayed.parts.values()):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert torch.equal(plain.rng.get_state(), replayed.rng.get_state())


class Wrong(Again):
    def replay(self):
        results, gradients = super().replay()
        return results, [1.2 * gradient for gradient in gradients]


class Impossible(Again):
    def __init__(self, *_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


@pytest.mark.parametrize(
    "tape, why", [(Wrong, "the critic_half's gradients are off by 20%"), (Impossible, "operation not permitted")]
)
def test_training_goes_on_without_tapes_that_differ_or_fail(tape, why):
    plain, recorded = training([]), training([])
    recorded.recorder = graphs.Recorder(recorded.rng, tape)
    assert_alike(run(plain), run(recorded), rtol=0, atol=0)
    assert recorded.recorder.fault.startswith(why) and "\n" not in recorded.recorder.fault and not recorded.recorder.whole


def test_gradients_that_are_not_finite_put_recording_off(monkeypatch):
    recorded = training([])
    recorded.recorder = graphs.Recorder(recorded.rng, Again)
    derive = recorded.derive
    spoilt = iter([False] * 2 * graphs.WARM_UP + [True])

    def spoil(half, turn):
        term = derive(half, turn)
        if next(spoilt, False):
            for p in recorded.critic.parameters():
                p.grad.mul_(torch.nan)
        return term

    monkeypatch.setattr(recorded, "derive", spoil)
    found = [recorded.step(k, torch.zeros(8, 1, 32, 32), None) for k in range(graphs.WARM_UP + 3)]
    finite = [bool(term["critic_gradient"].isfinite()) for term in found]
    assert finite == [True] * graphs.WARM_UP + [False, True, True]
    assert recorded.recorder.whole and not recorded.recorder.fault


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_a_step_never_looks_at_a_number(flags):
    """A graph could not; and every look would wait for the GPU."""

    class Blind(TorchDispatchMode):
        looks = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if torch.Tag.data_dependent_output in function.tags or torch.Tag.dynamic_output_shape in function.tags:
                self.looks.append(str(function))
            return function(*args, **(kwargs or {}))

    with Blind() as blind:
        torch.ones(1).item(), torch.ones(1).nonzero()
        assert len(blind.looks) == 2  # it does see them
        blind.looks.clear()
        run(training(flags), 5)
    assert not blind.looks


def test_what_tapes_read_stays_where_it_is():
    strength = training(["--augment", "ada"]).strength
    place, term = strength.p.data_ptr(), {"separation": torch.tensor(1.0)}
    strength.update(term, 100)
    strength.load_state_dict({name: value.clone() for name, value in strength.state_dict().items()})
    assert strength.p.item() == pytest.approx(100 * strength.speed) and strength.p.data_ptr() == place


@pytest.mark.parametrize("flags", [[], ["--grad_accum", 2]])
def test_cuda_graphs_are_refused_where_they_cannot_be(flags):
    with pytest.raises(UserError, match="--cuda_graph True: only on a GPU"):
        training(["--cuda_graph", True, *flags])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_cuda_graphs_are_plain_steps(flags):
    device = torch.device("cuda", 0)
    plain, recorded = training(flags, device), training([*flags, "--cuda_graph", True], device)
    assert_alike(run(plain), run(recorded), rtol=0.05, atol=0.05)
    assert recorded.recorder.tapes and not recorded.recorder.fault
    ours, theirs = (np.concatenate([p.detach().cpu().flatten() for p in one.model.parameters()]) for one in (plain, recorded))
    assert np.abs(ours - theirs).mean() < 0.05 * np.abs(ours).mean()
