"""What a conditional model is told beside the class: how values enter the networks, whence they come, and that runs keep them."""

import csv
import os
import re

import numpy as np
import pytest
import torch
from conftest import checkpoint, leave_plots_out, refusal, same_checkpoints, start
from PIL import Image

import predict
from analysis.latents import move_value
from analysis.models import draw_z, load_model, style_vectors, synthesize
from analysis.values import check_values, follows, slice_values
from data.subject_tables import Scan
from data.subjects import identify
from modules import EXAMPLES, Discriminator, LabelEmbedding, MappingNetwork
from report.playground import told_values

# ---------------------------------------------------------------------------------------------------------------------
# Networks


def embedding():
    torch.manual_seed(0)
    told = LabelEmbedding(2, 8, num_values=2).double()
    told.mean.copy_(torch.tensor([80.0, 70.0]))
    told.std.copy_(torch.tensor([5.0, 8.0]))
    return told


def test_values_are_standardised_and_added_to_the_class_as_a_network_of_one_hidden_layer():
    told = embedding()
    labels = torch.tensor([[1, 85, 66], [0, 80, torch.nan]], dtype=torch.float64)
    inputs = np.array([[1, -0.5, 1, 1], [0, 0, 1, 0]])  # an unknown value is 0, and said to be unknown
    first, second, classes = (x.detach().numpy() for x in (told.hidden.weight, told.output.weight, told.weight))
    hidden = inputs @ first.T * np.sqrt(2 / 1.04) / np.sqrt(4)
    expected = classes[[1, 0]] + np.maximum(hidden, 0.2 * hidden) @ second.T / np.sqrt(8)
    np.testing.assert_allclose(told(labels).detach(), expected, rtol=1e-12)


def test_without_values_it_is_a_plain_embedding_with_the_same_random_numbers():
    torch.manual_seed(0)
    plain = torch.nn.Embedding(3, 8)
    torch.manual_seed(0)
    told, labels = LabelEmbedding(3, 8), torch.tensor([2, 0, 1])
    assert torch.equal(told(labels), plain(labels)) and told.state_dict().keys() == plain.state_dict().keys()


def test_critic_and_generator_depend_on_what_they_are_told():
    critic, mapping = Discriminator(16, 64, 4, 2, num_values=1), MappingNetwork(16, 16, 2, 2, num_values=1)
    images, z = torch.randn(4, 1, 16, 16), torch.randn(4, 16)
    labels = torch.tensor([[0.0, 1.0]]).repeat(4, 1)
    for network, x in ((critic, images), (mapping, z)):
        for other in ([0, 2.0], [1, 1.0], [0, torch.nan]):
            assert (network(x, labels) - network(x, torch.tensor([other]).repeat(4, 1))).abs().max() > 1e-4


@pytest.fixture
def mapping():
    """Examples of class 0 are 0 to 511, those of class 1 are 1000 to 1511."""
    mapping = MappingNetwork(16, 16, 2, 2, num_values=1)
    mapping.examples.copy_(torch.arange(EXAMPLES)[None, :, None] + torch.tensor([0, 1000])[:, None, None])
    return mapping


def test_a_latent_is_given_values_of_its_class_by_its_digits_alone(mapping):
    z = torch.randn(4096, 16)
    labels = mapping.labels_of(z, torch.arange(4096) % 2)
    classes, values = labels.T
    assert torch.equal(classes, torch.arange(4096) % 2) and torch.equal(values >= 1000, classes == 1)
    assert torch.equal(mapping.labels_of(z[100:116], torch.arange(16) % 2), labels[100:116])
    rows = (values % 1000).numpy()
    assert len(np.unique(rows)) > 0.95 * EXAMPLES  # of 4096 draws with equal chances all but 0.2 of 512 are expected
    for about_z in (z[:, 0], z[:, 0].abs()):
        assert abs(np.corrcoef(rows, about_z)[0, 1]) < 0.06  # four standard errors


def test_held_values_are_equal_for_both_classes_and_come_from_both(mapping):
    z = torch.randn(256, 16)
    ad, nc = (mapping.labels_of(z, torch.full([256], label), held=True) for label in (0, 1))
    assert torch.equal(ad[:, 1], nc[:, 1]) and (ad[:, 0] == 0).all() and (nc[:, 0] == 1).all()
    assert 0.35 < (ad[:, 1] >= 1000).float().mean() < 0.65


# ---------------------------------------------------------------------------------------------------------------------
# Where values come from

NAMES = ["AD/1_78.jpeg", "NC/2_80.jpeg", "NC/odd.jpeg"]
TABLE = {"1": Scan("1", "a", sex="F", age=71.5), "2": Scan("2", "b", sex="M")}


def test_values_of_slices_are_those_of_their_names_and_of_the_table(capsys):
    values = slice_values(NAMES, ["position", "age", "sex"], identify(NAMES, TABLE))
    np.testing.assert_array_equal(values, np.float32([[78, 71.5, 0], [80, np.nan, 1], [np.nan] * 3]))
    check_values(values, ["position", "age", "sex"])
    notes = capsys.readouterr().err.splitlines()
    assert [note.split(":")[1] for note in notes] == [
        " position unknown of 1 of 3 slices",
        " age unknown of 2 of 3 slices",
        " sex unknown of 1 of 3 slices",
    ]


@pytest.mark.parametrize(
    "name, names, source", [("position", NAMES[2:], "file names do not give it"), ("age", NAMES, "--subjects lacks")]
)
def test_a_value_that_no_slice_has_is_refused(name, names, source):
    line = refusal(lambda wanted: check_values(slice_values(names, wanted, identify(names)), wanted), name)
    assert f"--conditional {name}: unknown of all {len(names)} slices: " in line and source in line


# ---------------------------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Discs as bright as their slice index says, of AD 20 to 28 and of NC 40 to 50; ages.csv has ages of all but one scan."""
    folder = tmp_path_factory.mktemp("values")
    y, x = np.mgrid[-16:16, -16:16]
    with open(folder / "ages.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "subject", "age"])
        for name, first, count in (("AD", 20, 9), ("NC", 40, 11)):
            (folder / "train" / name).mkdir(parents=True)
            for i in range(count):
                image = (np.hypot(y, x) < 10) * (first + i) * 4
                Image.fromarray(image.astype(np.uint8)).save(folder / "train" / name / f"{first + i}_{first + i}.png")
                table.writerow([first + i, f"p{first + i}", "" if first + i == 20 else 60 + i])
    return folder


def train(data, folder, *flags, told="class,position,age"):
    common = ["--classes", "all", "--conditional", told, "--subjects", data / "ages.csv", "--save_every", 1]
    return start(str(data / "train"), folder, *common, *flags)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    with pytest.MonkeyPatch.context() as patch:
        leave_plots_out(patch)
        assert train(data, folder, "--epochs", 3) == 0
    return folder / "all-conditional"


@pytest.mark.slow
def test_a_run_keeps_how_values_are_standardised_and_examples_of_each_class(run):
    weights = checkpoint(run)["averaged"]
    positions = np.r_[20:29, 40:51]
    ages = np.r_[61:69, 60:71]
    assert weights["mapping.embedding.mean"].tolist() == pytest.approx([positions.mean(), ages.mean()])
    assert weights["mapping.embedding.std"].tolist() == pytest.approx([positions.std(), ages.std()])
    examples = weights["mapping.examples"]
    assert set(examples[0, :, 0].tolist()) == set(range(20, 29)) and set(examples[1, :, 0].tolist()) == set(range(40, 51))
    assert examples[0, :, 1].isnan().any() and torch.equal(examples[0, :, 1].isnan(), examples[0, :, 0] == 20)
    assert torch.equal(checkpoint(run)["critic"]["embedding.mean"], weights["mapping.embedding.mean"])


@pytest.mark.slow
def test_a_stopped_run_equals_one_that_never_stopped(run, data, tmp_path, unplotted):
    assert train(data, tmp_path, "--epochs", 1) == 0
    assert train(data, tmp_path, "--epochs", 3) == 0
    assert same_checkpoints(checkpoint(tmp_path / "all-conditional"), checkpoint(run))


@pytest.mark.slow
def test_a_run_that_is_told_something_else_is_refused(run, data, tmp_path):
    for told in ("class,position", "True"):
        with pytest.raises(Exception, match=r"differs in --conditional class(,position)? \(was class,position,age\)"):
            train(data, run.parent, "--epochs", 3, told=told)
        with pytest.raises(Exception, match="it is told class,position,age; so must the new run be"):
            train(data, tmp_path / "new", "--start_from", run, told=told)


@pytest.mark.slow
def test_a_run_that_starts_from_another_is_asked_for_the_values_of_its_own_slices(run, data, tmp_path, unplotted):
    older = tmp_path / "older"
    older.mkdir()
    os.symlink(data / "train", older / "train")
    with open(data / "ages.csv") as file, open(older / "ages.csv", "w") as copy:
        copy.writelines(re.sub(r"(\d+)$", lambda age: str(int(age[0]) + 20), line) for line in file)
    assert train(older, tmp_path, "--epochs", 1, "--start_from", run) == 0
    before, after = (checkpoint(folder)["averaged"] for folder in (run, tmp_path / "all-conditional"))
    ages = after["mapping.examples"][..., 1]
    assert np.nanmin(ages) >= 80 > np.nanmax(before["mapping.examples"][..., 1])
    assert torch.equal(before["mapping.embedding.mean"], after["mapping.embedding.mean"])  # to which the weights belong


@pytest.mark.slow
def test_a_value_is_moved_with_all_else_held(run):
    model = load_model(str(run), "cpu")
    assert model.values == ("position", "age")
    z = draw_z(3, model.mapping.z_dim, 0)
    images, asked = move_value(model, z, "position", steps=4)
    assert images.shape == (2, 3, 4, 32, 32)
    positions = model.mapping.examples[..., 0].flatten().numpy()
    np.testing.assert_allclose(asked, np.linspace(*np.quantile(positions, [0.025, 0.975]), 4), rtol=1e-5)
    for label in (0, 1):
        labels = style_vectors(model.mapping, z, label, held=True)[1]
        labels[:, 1] = asked[2]
        with torch.no_grad():
            expected = synthesize(model, model.mapping(z, labels))
        assert np.abs(expected.astype(int) - images[label, :, 2]).max() <= 1


@pytest.mark.slow
def test_sliders_of_the_playground_go_through_the_values_of_training_and_start_at_their_means(run):
    model = load_model(str(run), "cpu")
    told = told_values(model)
    assert [one["name"] for one in told] == ["position", "age"]
    for k, one in enumerate(told):
        known = model.mapping.examples[..., k].numpy()
        low, high = np.nanquantile(known, [0.025, 0.975]).round()
        assert (one["low"], one["high"]) == (low, high) and low <= one["start"] <= high
        assert one["mean"] == pytest.approx(np.nanmean(known), abs=3) and one["std"] == float(model.mapping.embedding.std[k])


@pytest.mark.slow
def test_pictures_of_values_are_drawn_and_refused_of_models_that_are_told_none(run, models, tmp_path, capsys):
    assert predict.main(["--model_dir", str(run), "--draw", "values", "--output_dir", str(tmp_path)]) == 0
    for name in ("position", "age"):
        assert os.path.isfile(tmp_path / f"all-conditional_values_{name}.png")
    line = refusal(predict.main, "--model_dir", models, "--classes", "all-conditional", "--draw", "values")
    assert "--draw values needs a model that is told some" in line


# ---------------------------------------------------------------------------------------------------------------------
# Does a model follow what it is told?


def discs(brightness, radius):
    """Discs float [N, 32, 32] in [0, 255], of brightness and radius [N]."""
    y, x = np.mgrid[-16:16, -16:16]
    return brightness[:, None, None] / (1 + np.exp(np.hypot(y, x) - radius[:, None, None]))


class ToldMapping(MappingNetwork):
    """w: what the generator is told, and a number of the latent's."""

    def forward(self, z, labels):
        return torch.cat([labels[:, 1:], z[:, :1]], 1)

    def truncate(self, w, psi, labels):
        return w


class Discs:
    """Stands for a Model that is told position and age: discs as bright as the position says, unless it is deaf to that, and as
    large as the age says; with the radius the position says, too, if it is confused."""

    def __init__(self, positions, ages, deaf=False, confused=False):
        self.values, self.labels, self.device = ("position", "age"), [0, 1], "cpu"
        self.mapping = ToldMapping(4, 3, 2, 1, num_values=2)
        self.mapping.examples.copy_(torch.stack([torch.tensor(np.stack([positions, ages], 1)).repeat(EXAMPLES, 1)[:EXAMPLES]] * 2))
        self.deaf, self.confused = deaf, confused

    def generator(self, w, noise, rng):
        position, age, z = w.double().numpy().T
        radius = (position / 2 if self.confused else age) / 10
        return torch.tensor(discs(80 + 20 * z if self.deaf else position, radius) / 127.5 - 1)[:, None].float()


@pytest.mark.parametrize("fault", [None, "deaf", "confused"])
def test_follows_tells_whether_a_model_does_what_it_is_told(fault):
    rng = np.random.default_rng(0)
    positions, ages = rng.uniform(100, 200, 240), rng.uniform(50, 90, 240)
    groups = np.array([f"people {i // 4}" for i in range(240)])
    real = discs(positions, ages / 10).astype(np.uint8)
    model = Discs(positions, ages, **({fault: True} if fault else {}))
    found = follows(model, real, np.stack([positions, ages], 1), groups)
    assert found["position"].real > 0.97 and found["age"].real > 0.97
    if fault == "deaf":
        assert abs(found["position"].generated) < 0.2
    else:
        assert found["position"].generated > 0.95
    if fault == "confused":
        assert abs(found["age"].generated) < 0.2 and abs(found["position"].others["age"]) > 1
    else:
        assert found["age"].generated > 0.95 and abs(found["position"].others["age"]) < 0.3


def test_a_position_that_a_slice_tells_but_for_its_side_is_measured_by_its_distance_from_the_middle():
    rng = np.random.default_rng(0)
    positions, ages = rng.uniform(100, 200, 240), rng.uniform(50, 90, 240)
    groups = np.array([f"people {i // 4}" for i in range(240)])
    model = Discs(positions, ages)
    model.generator = lambda w, noise, rng: torch.tensor(symmetric(w[:, 0].numpy()) / 127.5 - 1)[:, None].float()

    def symmetric(position):
        return discs(60 + 2 * np.abs(position - 150), np.full(len(position), 8.0))

    found = follows(model, symmetric(positions).astype(np.uint8), np.stack([positions, ages], 1), groups)["position"]
    assert found.measured.startswith("distance from slice 1") and abs(int(found.measured.split()[-1]) - 150) <= 8
    assert found.generated > 0.9 and found.real > 0.9


def test_a_value_of_few_people_is_not_judged():
    positions = np.linspace(100, 200, 40)
    values = np.stack([positions, np.where(np.arange(40) < 10, 70, np.nan)], 1)
    found = follows(Discs(positions, positions / 2), discs(positions, positions / 20).astype(np.uint8), values, np.arange(40) // 4)
    assert set(found) == {"position"}
