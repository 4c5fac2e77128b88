"""What is watched: statistics against a second way of computing them, every trouble provoked, real slices as generated ones."""

import math
import os

import numpy as np
import pytest
import torch
from conftest import checkpoint, read_table, start
from torch import nn

import train
from analysis import figures, validation
from analysis.validation import Validation, mean_score
from dataset import to_float
from modules import Generator
from training import monitor as health
from training.monitor import SIGNS, Probe, Watch, picture_statistics
from utils import UserError

NETWORK = {"resolution": 32, "channel_base": 128, "channel_max": 8, "z_dim": 16, "w_dim": 16, "num_classes": 0}


# ---------------------------------------------------------------------------------------------------------------------
# Inside the networks


@pytest.fixture
def networks():
    torch.manual_seed(0)
    model, critic = train.build_networks(NETWORK)
    return model, critic, Probe(model, critic)


def draw(model, critic):
    """{name: what the layer of that name puts out} in one pass of new latents through generator and critic."""
    outputs, hooks, w = {}, [], model["mapping"](torch.randn(6, 16))
    for part, stages in (("generator", model["generator"].blocks), ("critic", critic.blocks)):
        for i, block in enumerate(stages):
            name = f"{part} {4 << i if part == 'generator' else 32 >> i}"
            hooks.append(block.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out})))
    image = model["generator"](w)
    score = critic(image)
    for hook in hooks:
        hook.remove()
    outputs = {name: out[0] * out[1][:, :, None, None] if isinstance(out, tuple) else out for name, out in outputs.items()}
    return {"w": w, "image": image, "score": score} | outputs


NAMES = ["w", "generator 4", "generator 8", "generator 16", "generator 32", "image", "critic 32", "critic 16", "critic 8", "score"]


def test_probe_notes_what_every_block_puts_out(networks):
    model, critic, probe = networks
    with probe.watching(True):
        seen = draw(model, critic)
        draw(model, critic)  # of a second pass nothing is noted
    draw(model, critic)  # nor after it
    assert list(probe.layers) == NAMES and set(probe.noted) == set(NAMES)
    for name, x in seen.items():
        x = x.detach().double().numpy()
        expected = [x.min(), x.max(), x.mean(), x.std(ddof=1)]
        np.testing.assert_allclose(probe.noted[name].numpy(), expected, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(probe.deviations().numpy(), [seen[name].std().item() for name in NAMES], rtol=1e-4)


def test_probe_that_does_not_watch_notes_nothing(networks):
    model, critic, probe = networks
    draw(model, critic)
    with probe.watching(False):
        draw(model, critic)
    assert probe.noted == {}
    with probe.watching(True):
        draw(model, critic)
    kept = dict(probe.noted)
    with probe.watching(False):
        draw(model, critic)
    assert probe.noted == kept
    with probe.watching(True):
        draw(model, critic)
    assert all(not torch.equal(probe.noted[name], kept[name]) for name in NAMES)  # anew


def test_table_has_a_line_a_block_and_its_numbers(networks):
    model, critic, probe = networks
    with probe.watching(True):
        draw(model, critic)
    head, *lines = probe.table().splitlines()
    assert head.split() == list(health.STATISTICS)
    for name, line in zip(probe.noted, lines, strict=True):
        assert line.startswith(name)
        np.testing.assert_allclose([float(x) for x in line[len(name) :].split()], probe.noted[name], atol=1e-4)


def test_picture_statistics_in_closed_form():
    real = torch.full([2, 1, 10, 10], -1.0)
    real[0, 0, :4], real[1, 0, :4] = 0.2, 0.8  # 40 of 100 pixels lit, and those differ
    np.testing.assert_allclose(picture_statistics(real, real), [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(picture_statistics(-1 + (real + 1) / 2, real), [0.5, 1, 0], atol=1e-6)
    np.testing.assert_allclose(picture_statistics(real[:1].repeat(2, 1, 1, 1), real), [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(picture_statistics(torch.full_like(real, -1), real), [0, 0, 0], atol=1e-6)
    half = real.clone()
    half[:, :, 2:] = -1
    np.testing.assert_allclose(picture_statistics(half, real), [0.5, 0.5, 0], atol=1e-6)
    beyond = real.clone()
    beyond[0, 0, 4], beyond[1, 0, 5], beyond[1, 0, 6] = 1.3, -1.3, 1.2  # 10 of 200; 1.2 is within
    assert picture_statistics(beyond, real)[2].item() == pytest.approx(10 / 200)
    deep = torch.where(real < -0.9, real - torch.rand_like(real), real)  # blacker than black: saved as black
    np.testing.assert_allclose(picture_statistics(deep, real), [1, 1, 0], atol=1e-6)
    assert picture_statistics(real, torch.full_like(real, -1)).isfinite().all()  # real slices that are all black


# ---------------------------------------------------------------------------------------------------------------------
# Trouble

WELL = {"diversity": 0.9, "lit": 1.1, "beyond": 0.02, "separation": 0.9, "images": 50_000}
ILL = {
    "generator collapsed": {"diversity": 0.05},
    "generator black": {"lit": 0.02},
    "generator saturated": {"beyond": 0.5},
    "critic won": {"separation": 0.9999},
}


def test_every_sign_is_provoked_below():
    assert set(ILL) | {"critic overfits", "generator narrows"} == set(SIGNS)


def test_watch_is_quiet_while_all_is_well():
    watch = Watch()
    rows = [
        WELL,
        WELL | {"diversity": 0.15, "lit": 0.15, "beyond": 0.2, "separation": 0.99},
        WELL | {"images": 10_000, "separation": 1.0},
        WELL | dict.fromkeys(WELL, math.nan),
        {"overfitting": 0.4},
        {"overfitting": math.nan},
        {"overfitting": -0.2},
    ]
    assert all(watch.check(row) == [] for _ in range(20) for row in rows)
    assert all(watch.check(row) == [] for _ in range(10 * health.PATIENCE) for row in rows[:1])


@pytest.mark.parametrize("name", ILL)
def test_watch_names_a_trouble_when_it_lasts_and_once(name):
    watch, ill = Watch(), WELL | ILL[name]
    for _ in range(3):  # it comes, is named, goes, and comes again
        said = [watch.check(ill) for _ in range(4 * health.PATIENCE)]
        assert [i for i, lines in enumerate(said) if lines] == [health.PATIENCE - 1]
        (line,) = said[health.PATIENCE - 1]
        assert line.startswith(name + ": ") and "\n" not in line and "{" not in line
        assert watch.check(WELL) == []
    for _ in range(10):  # never lasting
        assert not any(watch.check(ill) for _ in range(health.PATIENCE - 1)) and watch.check(WELL) == []


def test_watch_tells_overfitting_at_the_first_evaluation_that_shows_it():
    watch = Watch()
    (line,) = watch.check({"overfitting": 0.62})
    assert line.startswith("critic overfits: ") and "62%" in line
    assert watch.check({"overfitting": 0.7}) == [] == watch.check(WELL)  # rows between say nothing of it
    assert watch.check({"overfitting": 0.8}) == [] == watch.check({"overfitting": 0.1})
    assert len(watch.check({"overfitting": 0.8})) == 1


def test_evaluations_do_not_interrupt_what_rows_show():
    watch, said = Watch(), []
    for _ in range(health.PATIENCE):
        said += watch.check(WELL | ILL["generator black"]) + watch.check({"overfitting": 0.0})
    assert len(said) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Against real slices


class Discs:
    """Stands for Slices: blurred discs of random place and size; the corner's brightness tells what they are."""

    def __init__(self, count, seed, corner):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:32, :32]
        radius, top, left = (rng.uniform(low, high, (count, 1, 1)) for low, high in ((5, 10), (12, 20), (12, 20)))
        self.pixels = (220 / (1 + np.exp(np.hypot(y - top, x - left) - radius))).astype(np.uint8)
        self.pixels[:, 0, 0] = corner
        self.labels = np.arange(count) % 3 // 2  # 0, 0, 1, 0, 0, 1, ...

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, indices):
        return self.pixels[indices]


class Drawn(nn.Module):
    """Stands for a generator: gives slices of its own, one after the other, however many are asked for."""

    def __init__(self, pixels):
        super().__init__()
        self.images, self.place = to_float(torch.from_numpy(pixels)), 0

    def forward(self, w, rng=None):
        first, self.place = self.place, self.place + len(w)
        return self.images[first : self.place]


class Mapping(nn.Module):
    def forward(self, z, labels=None):
        self.z, self.labels = z, labels
        return z


class Corner(nn.Module):
    """Stands for a critic: the score is the corner's brightness in [0, 1], or the label where there are classes."""

    def __init__(self, classes=False):
        super().__init__()
        self.embedding, self.sizes, self.told = classes or None, [], []

    def forward(self, images, labels=None):
        self.sizes.append(len(images))
        assert (labels is None) == (self.embedding is None)
        if labels is None:
            return (images[:, 0, 0, 0] + 1) / 2
        self.told += labels.tolist()
        return labels.float()


def drawing(pixels):
    return nn.ModuleDict({"mapping": Mapping(), "generator": Drawn(pixels)})


def test_slices_of_the_same_kind_have_no_distance_and_others_have(monkeypatch):
    monkeypatch.setattr(validation, "VALIDATED", 60)
    evaluator = Validation(Discs(70, 0, 0), Discs(70, 1, 0), 8, 0, torch.device("cpu"))
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32), dtype=np.uint8)
    alike, far, one = (
        evaluator(drawing(pixels), Corner(), 20) for pixels in (Discs(60, 2, 0).pixels, noise, Discs(70, 0, 0)[[3] * 60])
    )
    assert set(alike) == set(validation.VALIDATION)
    for name in ("kid", "kid_test"):
        assert far[name] > 100 and abs(alike[name]) < 0.03 * far[name], (name, alike[name], far[name])
        assert one[name] > 10 * abs(alike[name])  # collapsed: good, but all the same
    assert alike["precision"] > 0.8 and alike["recall"] > 0.8
    assert far["precision"] == far["recall"] == 0
    assert one["precision"] == 1 and one["recall"] < 0.2


@pytest.fixture
def few(monkeypatch):
    """Few slices an evaluation, and features that cost nothing, for what is not about them."""
    monkeypatch.setattr(validation, "VALIDATED", 100)
    monkeypatch.setattr(validation, "Features", lambda *_: lambda pixels: torch.as_tensor(pixels[:, ::8, ::8]).flatten(1).float())


def evaluate(train_corner, test_corner, fake, batch_size=20, classes=0, critic=None, count=130):
    test = None if test_corner is None else Discs(count, 1, test_corner)
    evaluator = Validation(Discs(count, 0, train_corner), test, 8, classes, torch.device("cpu"))
    model = drawing(fake)
    return evaluator(model, critic or Corner(bool(classes)), batch_size), model


@pytest.mark.parametrize("test_corner, overfitting", [(250, 0), (50, 1), (150, 0.5), (0, 1.25)])
def test_overfitting_is_the_place_of_unseen_slices_between_training_and_generated(few, test_corner, overfitting):
    found, _ = evaluate(250, test_corner, Discs(100, 2, 50).pixels)
    assert found["score_train"] == pytest.approx(250 / 255) and found["score_generated"] == pytest.approx(50 / 255)
    assert found["score_test"] == pytest.approx(test_corner / 255)
    assert found["overfitting"] == pytest.approx(overfitting, abs=1e-5)


def test_what_cannot_be_told_is_nan(few):
    unseen = {"kid_test", "score_test", "overfitting"}
    found, _ = evaluate(250, None, Discs(100, 2, 50).pixels)
    assert {name for name, value in found.items() if math.isnan(value)} == unseen
    found, _ = evaluate(50, 100, Discs(100, 2, 250).pixels)  # a critic that likes generated slices better
    assert {name for name, value in found.items() if math.isnan(value)} == {"overfitting"}


def test_few_slices_have_no_precision_but_the_rest(few):
    found, _ = evaluate(250, 250, Discs(100, 2, 50).pixels, count=4)
    assert {name for name, value in found.items() if math.isnan(value)} == {"precision", "recall"}


def test_classes_are_told_evenly_to_the_generator_and_truly_to_the_critic(few):
    critic = Corner(classes=True)
    found, model = evaluate(0, 0, Discs(100, 2, 0).pixels, batch_size=50, classes=2, critic=critic, count=100)
    assert model["mapping"].labels.tolist() == [0, 1] * 25
    generated, real, unseen = np.reshape(critic.told, (3, 100))
    assert generated.mean() == 0.5 and real.mean() == unseen.mean() == pytest.approx(0.33)
    assert [found[f"score_{kind}"] for kind in ("generated", "train", "test")] == [0.5] * 3  # classes count alike


def test_only_whole_batches_are_scored_where_there_is_one(few):
    critic = Corner()
    evaluate(0, 0, Discs(100, 2, 0).pixels, batch_size=30, critic=critic)
    assert critic.sizes == [30] * 9  # three of each 100
    critic = Corner()
    evaluate(0, 0, Discs(100, 2, 0).pixels, batch_size=64, critic=critic, count=20)
    assert sorted(critic.sizes) == [20, 20, 64]


def test_evaluations_use_the_same_latents_and_slices_every_time(few):
    torch.manual_seed(0)
    model, critic = train.build_networks(NETWORK)
    evaluator = Validation(Discs(130, 0, 0), Discs(60, 1, 0), 16, 0, torch.device("cpu"))
    first = evaluator(model.eval(), critic, 25)
    torch.manual_seed(1)
    assert evaluator(model, critic, 25) == first
    assert Validation(Discs(130, 0, 0), Discs(60, 1, 0), 16, 0, torch.device("cpu"))(model, critic, 25) == first


def test_memory_of_this_process_is_between_what_torch_takes_and_a_terabyte():
    assert os.name == "nt" or 0.05 < health.memory_gib(torch.device("cpu")) < 1000


# ---------------------------------------------------------------------------------------------------------------------
# Provoked in training


@pytest.fixture
def unplotted(monkeypatch):
    """Runs without their plots, which take longer than tiny steps; and how many steps a row has."""
    monkeypatch.setattr(figures, "plot_dashboard", lambda *_: None)
    monkeypatch.setattr(figures, "plot_loss_proportion", lambda *_: None)
    return lambda steps: monkeypatch.setattr(train, "LOG_STEPS", steps)


def told(folder):
    """Lines of a run's trouble.txt."""
    path = os.path.join(str(folder), "trouble.txt")
    return open(path).read().splitlines() if os.path.exists(path) else []


def finite(folder):
    state = checkpoint(folder)
    return all(
        torch.as_tensor(value).isfinite().all()
        for part in ("model", "critic", "averaged", "strength", "path_length")
        for value in state[part].values()
    )


@pytest.mark.parametrize(
    "name, spoil",
    [
        (None, lambda images: images.tanh()),
        ("generator collapsed", lambda images: images.mean(0, keepdim=True).expand_as(images)),
        ("generator black", lambda images: 0.01 * images - 1),
        ("generator saturated", lambda images: 100 * images),
    ],
)
def test_ill_generators_are_named(tmp_path, slices_dir, monkeypatch, unplotted, capsys, name, spoil):
    unplotted(1)
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, *args, **kwargs: spoil(forward(self, *args, **kwargs)))
    assert start(slices_dir, tmp_path, "--epochs", 4) == 0  # eight steps, so eight rows
    lines = told(tmp_path / "AD")
    if name is None:
        assert lines == []
    else:
        assert [line.startswith(name) for line in lines].count(True) == 1
        assert f"{tmp_path}/AD: {name}: " in capsys.readouterr().out  # says whose trouble it is


def test_overfitting_critic_is_named(tmp_path, slices_dir, monkeypatch, unplotted):
    class Stub:
        def __init__(self, *_):
            pass

        def __call__(self, *_):
            return dict.fromkeys(validation.VALIDATION, 0.0) | {"overfitting": 0.75}

    monkeypatch.setattr(train, "Validation", Stub)
    start(slices_dir, tmp_path, "--epochs", 3, "--eval_every", 1)
    (line,) = told(tmp_path / "AD")
    assert line.startswith("critic overfits") and "75%" in line
    assert len(read_table(tmp_path / "AD/evaluations.csv")) == 3


def test_narrow_generator_is_named(few):
    """Two training slices over and over: both real, and most training slices unlike either."""
    found, _ = evaluate(250, None, Discs(130, 0, 250)[[3, 4] * 50])
    (line,) = [line for line in Watch().check(found) if line.startswith("generator narrows")]
    assert f"recall {found['recall']:.2f}" in line and found["recall"] < 0.1
    whole, _ = evaluate(250, None, Discs(100, 2, 250).pixels)
    assert Watch().check(whole) == []


def test_step_with_a_gradient_that_is_not_finite_never_was():
    def network():
        torch.manual_seed(0)
        return nn.Linear(3, 1)

    network, spared = network(), network()
    optimizers = [torch.optim.Adam(n.parameters(), 0.1, (0.0, 0.99), fused=True) for n in (network, spared)]
    batches = torch.randn(6, 5, 3)
    for i, x in enumerate(batches):
        bad = {2: math.nan, 3: math.inf}.get(i)
        loss = network(x).square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        (loss * bad if bad else loss).backward()
        norm = train.adam_step(optimizers[0])
        assert norm.isfinite() == (bad is None)
        if bad is None:
            spared(x).square().mean().backward()
            other = train.adam_step(optimizers[1])
            expected = torch.cat([p.grad.flatten() for p in spared.parameters()]).norm()
            assert norm.item() == other.item() == pytest.approx(expected.item(), rel=1e-5)
        assert torch.equal(network.weight, spared.weight) and torch.equal(network.bias, spared.bias)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(*(o.state.values() for o in optimizers)) for key in a)


@pytest.fixture
def poison(monkeypatch):
    """poison(calls): real slices are nan in the training steps of these numbers, counted from now over all steps taken."""

    def poison(calls):
        count, step = iter(range(10**6)), train.Training.step

        def poisoned(self, k, real, *others):
            return step(self, k, real * math.nan if next(count) in calls else real, *others)

        monkeypatch.setattr(train.Training, "step", poisoned)

    return poison


@pytest.mark.parametrize(
    "flags",
    [
        ["--loss", "wgan-gp", "--augment", "ada"],
        ["--loss", "logistic", "--path_length", 2],
        ["--loss", "relativistic", "--augment", "fixed", "--augment_p", 0.5],
    ],
)
def test_bad_step_is_left_out_and_told(tmp_path, slices_dir, unplotted, poison, flags):
    unplotted(2)
    poison({4})
    assert start(slices_dir, tmp_path, "--epochs", 4, *flags) == 0
    assert [row["skipped"] for row in read_table(tmp_path / "AD/losses.csv")] == [0, 0, 1, 1]
    (line,) = told(tmp_path / "AD")
    assert line == "1 of the 2 steps before 6 left out: their gradients are not finite"
    assert finite(tmp_path / "AD") and checkpoint(tmp_path / "AD")["images"] == 32
    # of eight steps Adam has seen seven: what came after the bad one did count
    assert all(state["step"] == 7 for state in checkpoint(tmp_path / "AD")["c"]["state"].values())
    assert all(math.isfinite(row["critic_loss"]) for row in read_table(tmp_path / "AD/losses.csv"))


def test_bad_path_length_is_left_out(tmp_path, slices_dir, unplotted, monkeypatch):
    """The images of its half batch alone are not finite: only the generator's step is left out, and the mean length stays."""
    unplotted(1)
    plain, calls = train.PathLength.forward, []

    def spoilt(self, images, ws, rng=None):
        calls.append(len(images))
        return plain(self, images * (math.nan if len(calls) == 2 else 1), ws, rng)

    monkeypatch.setattr(train.PathLength, "forward", spoilt)
    monkeypatch.setattr(train, "PATH_EVERY", 2)
    start(slices_dir, tmp_path, "--epochs", 3, "--path_length", 2)
    assert calls == [2, 2, 2] and finite(tmp_path / "AD")
    assert [row["skipped"] for row in read_table(tmp_path / "AD/losses.csv")] == [0, 0, 1, 1, 1, 1]
    state = checkpoint(tmp_path / "AD")
    assert {s["step"].item() for s in state["g"]["state"].values()} == {5}
    assert {s["step"].item() for s in state["c"]["state"].values()} == {6}


# 20 steps of two an epoch, saved every eight; six after the first eight are bad, the first time; in rows of eight or of two
@pytest.mark.parametrize("row", [8, 2])
def test_many_bad_steps_go_back_to_the_checkpoint_with_half_the_rate(tmp_path, slices_dir, unplotted, poison, capsys, row):
    unplotted(row)
    poison(range(8, 8 + train.MAX_SKIPPED + 1))
    assert start(slices_dir, tmp_path, "--epochs", 10, "--save_every", 4, "--lr", 0.004) == 0
    (bad,) = [line for line in told(tmp_path / "AD") if "gone back" in line]
    assert "not finite: gone back to 0.0 kimg and on with half the learning rate" in bad
    rows = read_table(tmp_path / "AD/losses.csv")
    assert [r["step"] for r in rows] == ([8, 16, 20] if row == 8 else list(range(2, 21, 2)))  # none twice, none missing
    assert [r["lr"] for r in rows] == [0.004 if r["step"] <= 8 else 0.002 for r in rows]
    assert finite(tmp_path / "AD") and all(r["skipped"] == 0 for r in rows)
    assert capsys.readouterr().out.count("gone back") == 1
    state = checkpoint(tmp_path / "AD")
    assert state["images"] == 80 and state["g"]["param_groups"][0]["lr"] == state["c"]["param_groups"][0]["lr"] == 0.002
    start(slices_dir, tmp_path, "--epochs", 11, "--lr", 0.004)  # and so when it goes on another day
    assert read_table(tmp_path / "AD/losses.csv")[-1]["lr"] == 0.002
    assert checkpoint(tmp_path / "AD")["g"]["param_groups"][0]["lr"] == 0.002


def test_a_few_bad_steps_are_no_reason_to_go_back(tmp_path, slices_dir, unplotted, poison):
    unplotted(1)
    poison(set(range(1, 8)) - {3})  # two, a good one, four
    start(slices_dir, tmp_path, "--epochs", 4)
    rows = read_table(tmp_path / "AD/losses.csv")
    assert [row["skipped"] for row in rows] == [0, 1, 2, 2, 3, 4, 5, 6] and rows[-1]["lr"] == rows[0]["lr"]


def test_going_back_takes_up_the_same_batches_and_latents(tmp_path, slices_dir, unplotted, poison):
    """What follows equals a run that was stopped at the checkpoint and went on with half the rate."""
    start(slices_dir, tmp_path / "a", "--epochs", 4, "--lr", 0.004)
    start(slices_dir, tmp_path / "a", "--epochs", 8, "--lr", 0.002)
    poison(range(8, 16))
    start(slices_dir, tmp_path / "b", "--epochs", 8, "--save_every", 4, "--lr", 0.004)
    one, other = (checkpoint(tmp_path / name / "AD") for name in "ab")
    assert all(torch.equal(one[part][key], other[part][key]) for part in ("model", "critic", "averaged") for key in one[part])


def test_bad_again_ends_the_run_and_keeps_the_checkpoint(tmp_path, slices_dir, unplotted, poison):
    unplotted(8)
    start(slices_dir, tmp_path, "--epochs", 4)
    before = (tmp_path / "AD/checkpoint.pt").read_bytes(), (tmp_path / "AD/generator.pt").read_bytes()
    poison(range(10**6))
    with pytest.raises(UserError, match="not finite again, after going back once .* saved at 0.0 kimg is kept, .* lower --lr"):
        start(slices_dir, tmp_path, "--epochs", 20, "--save_every", 4)
    assert before == ((tmp_path / "AD/checkpoint.pt").read_bytes(), (tmp_path / "AD/generator.pt").read_bytes())
    assert [row["step"] for row in read_table(tmp_path / "AD/losses.csv")] == [8]


def test_run_that_went_back_once_ends_at_the_next_trouble_even_on_another_day(tmp_path, slices_dir, unplotted, poison):
    unplotted(8)
    poison(range(8, 16))
    start(slices_dir, tmp_path, "--epochs", 8, "--save_every", 4)
    poison(range(10**6))
    with pytest.raises(UserError, match="not finite again"):
        start(slices_dir, tmp_path, "--epochs", 16, "--save_every", 4)
    assert finite(tmp_path / "AD") and checkpoint(tmp_path / "AD")["images"] == 64


def test_mean_score_of_a_conditional_critic_does_not_depend_on_the_mixture():
    class Conditional:
        embedding = "of labels"

    class Plain:
        embedding = None

    labels = torch.tensor([0, 0, 0, 1, 1, 0])
    scores = torch.tensor([5.0, 6.0, 7.0, -2.0, -4.0])  # of whole batches: the last slice was left out
    assert mean_score(scores, labels, Conditional) == pytest.approx((6 - 3) / 2)
    assert mean_score(scores, labels, Plain) == pytest.approx(scores.mean().item())
    assert mean_score(scores[:3], labels, Conditional) == pytest.approx(6)  # one class alone
