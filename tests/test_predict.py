"""What predict.py draws and exports, which run it takes, and the neighbour share in closed form."""
import copy
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from flags import parse_predict
from modules import MappingNetwork
from utils import UserError


@pytest.fixture(scope="module")
def model(models):
    return predict.load_model(os.path.join(models, "AD"), "cpu")


def pictures(model, count, **options):
    return np.concatenate(list(predict.generate(model, count, options.pop("seed", 0), **options)))


def read(path):
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


# ---------------------------------------------------------------------------------------------------------------------
# Generating

def test_same_seed_same_pictures_however_many(model):
    twenty = pictures(model, 20)
    assert twenty.shape == (20, 32, 32) and twenty.dtype == np.uint8
    np.testing.assert_array_equal(pictures(model, 20), twenty)
    np.testing.assert_array_equal(pictures(model, 3), twenty[:3])
    assert (pictures(model, 3, seed=1) != twenty[:3]).mean() > 0.1


def test_pictures_come_from_the_averaged_weights(model, models):
    saved = torch.load(os.path.join(models, "AD", "checkpoint.pt"), weights_only=True)["averaged"]
    for key, value in model.generator.state_dict().items():
        assert torch.equal(value, saved[f"generator.{key}"]), key


def test_truncation_draws_together(model):
    model = copy.deepcopy(model)
    for block in model.generator.blocks:
        for style in block.styles:
            torch.nn.init.zeros_(style.noise_strength)                  # which no truncation touches
    spreads = [pictures(model, 32, truncation=psi).astype(float).std(0).mean() for psi in (0., 0.5, 1.)]
    assert spreads[0] < 0.5 * spreads[1] < 0.8 * spreads[2]


def test_export_writes_what_generate_gives(model, models, tmp_path, script):
    done = script("predict.py", "--model_dir", models, "--classes", "AD", "--export", 18, "--output_dir", tmp_path,
                  "--seed", 5, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    names = sorted(os.listdir(tmp_path / "AD"))
    assert names == [f"{i:06d}.png" for i in range(18)]
    expected = pictures(model, 18, seed=5)
    for name, image in zip(names, expected):
        mode, written = read(tmp_path / "AD" / name)
        assert mode == "L"
        assert np.abs(written.astype(int) - image).max() <= 1       # another process may round otherwise


def test_smaller_export_does_not_mix_with_a_larger_one(models, tmp_path, refused, script):
    flags = ["--model_dir", models, "--classes", "NC", "--output_dir", tmp_path, "--device", "cpu"]
    assert script("predict.py", *flags, "--export", 5).returncode == 0
    assert script("predict.py", *flags, "--export", 5).returncode == 0
    assert "2 PNGs beyond --export 3" in refused("predict.py", *flags, "--export", 3)


def test_conditional_export_has_a_folder_a_class(models, tmp_path):
    assert predict.main(["--model_dir", models, "--classes", "all-conditional", "--export", "2", "--device", "cpu",
                         "--output_dir", str(tmp_path)]) == 0
    ad, nc = (read(tmp_path / "all-conditional" / name / "000000.png")[1] for name in ("AD", "NC"))
    assert not np.array_equal(ad, nc)


def test_grids_and_real_beside_fake(models, slices_dir, tmp_path, capsys):
    assert predict.main(["--dataset_dir", slices_dir, "--model_dir", models, "--classes", "AD", "--device", "cpu",
                         "--output_dir", str(tmp_path), "--num_images", "9"]) == 0
    generated, beside = (read(tmp_path / f"AD_{name}.png")[1] for name in ("generated", "fake_vs_real"))
    assert capsys.readouterr().out.split() == [str(tmp_path / f"AD_{name}.png") for name in ("generated", "fake_vs_real")]
    assert beside.shape[0] == generated.shape[0] and beside.shape[1] > 1.8 * generated.shape[1]
    np.testing.assert_array_equal(beside[40:, :generated.shape[1] - 20], generated[40:, :-20])


# ---------------------------------------------------------------------------------------------------------------------
# Which run

def chosen(*flags):
    return predict.choose_runs(parse_predict([str(flag) for flag in flags]))


def test_which_run_is_drawn(models, tmp_path):
    ad = os.path.join(models, "AD")
    assert chosen("--model_dir", ad) == [ad]                                        # a run itself
    assert chosen("--model_dir", models, "--classes", "AD") == [ad]
    assert chosen("--model_dir", tmp_path, "--classes", ad) == [ad]                 # by path
    with pytest.raises(UserError, match="AD, NC, all-conditional: say which with --classes"):
        chosen("--model_dir", models)
    os.symlink(ad, tmp_path / "only")
    assert chosen("--model_dir", tmp_path) == [str(tmp_path / "only")]              # the only one there
    os.symlink(ad, tmp_path / "all")
    assert chosen("--model_dir", tmp_path) == [str(tmp_path / "all")]               # all, among several
    with pytest.raises(UserError, match="no run MCI: .*all, only"):
        chosen("--model_dir", tmp_path, "--classes", "MCI")


@pytest.fixture
def two_states(models, tmp_path):
    """--model_dir with a run whose last generator is that of AD and whose best one is that of NC."""
    run = tmp_path / "models/run"
    run.mkdir(parents=True)
    for name, source in (("generator.pt", "AD"), ("best.pt", "NC")):
        shutil.copy(os.path.join(models, source, "generator.pt"), run / name)
    return str(run.parent)


def test_best_and_last_generator(models, two_states, tmp_path):
    def drawn(model_dir, name, *flags):
        assert predict.main(["--model_dir", model_dir, "--classes", name, "--output_dir", str(tmp_path), "--num_images", "4",
                             "--device", "cpu", *flags]) == 0
        return read(tmp_path / f"{name}_generated.png")[1][40:]         # below the caption
    last, best = drawn(models, "AD"), drawn(models, "NC")
    np.testing.assert_array_equal(drawn(two_states, "run", "--which", "best"), best)
    np.testing.assert_array_equal(drawn(two_states, "run", "--which", "last"), last)
    assert (last != best).any()


def test_umap_takes_the_styles_of_the_best_generator_too(models, two_states):
    for which, source in (("last", "AD"), ("best", "NC")):
        expected, _ = predict.style_vectors(predict.load_model(os.path.join(models, source), "cpu").mapping,
                                            predict.draw_z(512, 256, 0))
        found = predict.style_sets({"it": os.path.join(two_states, "run")}, which, 0, "cpu")
        np.testing.assert_array_equal(found["it"], expected.numpy())


def test_run_without_a_best_generator_is_drawn_as_it_is_and_says_so_once(models, tmp_path, capsys):
    folder = tmp_path / "models/NC"
    folder.mkdir(parents=True)
    shutil.copy(os.path.join(models, "NC", "generator.pt"), folder)
    assert not os.path.exists(os.path.join(models, "NC", "best.pt"))
    assert predict.main(["--model_dir", str(folder.parent), "--which", "best", "--output_dir", str(tmp_path),
                         "--device", "cpu"]) == 0
    predict.style_sets({"it": str(folder)}, "best", 0, "cpu")
    done = capsys.readouterr()
    assert done.err.count("\n") == 1 and done.err.startswith(f"note: {folder} holds no best.pt")
    assert "NC_generated.png" in done.out
    predict.load_model(str(folder), "cpu", "last")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flags, expected", [
    (["--which", "worst"], "--which"),
    (["--plot_umap", "True"], "--AD_dir and --NC_dir"),
    (["--plot_umap", "--AD_dir", "AD"], "--NC_dir"),
    (["--plot_umap", "True", "--AD_dir", "AD", "--NC_dir", "CN"], "no run CN"),
    (["--plot_umap", "--AD_dir", "AD", "--NC_dir", "all-conditional"], "all-conditional is a conditional model"),
    (["--model_dir", "nowhere"], "nowhere holds no run"),
    (["--truncation", "-1"], "--truncation"),
    (["--classes", "AD", "--num_images", "0"], "--num_images"),
    (["--classes", "AD", "--dataset_dir", "nowhere"], "nowhere"),
    (["--classes", "AD", "--output_dir", __file__], "--output_dir")])
def test_bad_input_is_one_line(refused, models, tmp_path, flags, expected):
    assert expected in refused("predict.py", "--model_dir", models, "--output_dir", tmp_path, "--device", "cpu", *flags)


def test_broken_generator_is_one_line(refused, tmp_path):
    (tmp_path / "AD").mkdir()
    (tmp_path / "AD/generator.pt").write_bytes(b"not a network")
    assert "AD/generator.pt: not a generator" in refused("predict.py", "--model_dir", tmp_path)
    torch.save({"network": 1}, tmp_path / "AD/generator.pt")
    assert "AD/generator.pt: not a generator" in refused("predict.py", "--model_dir", tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# UMAP

def test_neighbours_alike():
    rng, classes = np.random.default_rng(0), np.repeat([0, 1], 300)
    one_cloud = rng.normal(size=(600, 5))
    assert predict.neighbours_alike(one_cloud, classes) == pytest.approx(0.5, abs=0.04)
    assert predict.neighbours_alike(one_cloud + 100 * classes[:, None], classes) == 1
    line = np.array([[0.], [1.], [2.1], [3.3]])                     # nearest: 1, 0, 1, 2
    assert predict.neighbours_alike(line, np.array([0, 0, 1, 1]), k=1) == 0.75


def test_untrained_mapping_networks_of_two_seeds_lie_apart():
    sets, z = [], predict.draw_z(256, 256, 0)
    for seed in (0, 1):
        torch.manual_seed(seed)
        sets.append(MappingNetwork().eval()(z).detach().numpy())
    assert predict.neighbours_alike(np.concatenate(sets), np.repeat([0, 1], 256)) > 0.99


def test_models_of_one_seed_start_as_equals(models):
    history = predict.style_history({name: os.path.join(models, name) for name in ("AD", "NC")})
    assert [epoch for epoch, _ in history] == [0, 1, 2]
    for epoch, sets in history:
        assert np.array_equal(sets["AD"], sets["NC"]) == (epoch == 0)
    (_, start), *_ = predict.style_history(os.path.join(models, "all-conditional"))
    assert start["AD"].shape == (512, 256) and not np.allclose(start["AD"], start["NC"])


def test_epochs_to_show():
    assert predict.epochs_to_show(range(0, 81, 5)) == [0, 5, 30, 80]
    assert predict.epochs_to_show([0]) == [0]
    assert predict.epochs_to_show([0, 1, 2]) == [0, 1, 2]


def test_umap_of_both_models_and_over_epochs(models, tmp_path, script):
    done = script("predict.py", "--plot_umap", "True", "--AD_dir", "AD", "--NC_dir", os.path.join(models, "NC"),
                  "--model_dir", models, "--output_dir", tmp_path, "--device", "cpu", "--control_dir", "NC")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["AD_generated.png", "NC_generated.png", "umap.png", "umap_epochs.png"]
    for name in ("umap.png", "umap_epochs.png"):
        picture = read(tmp_path / name)[1]
        for colour in ((222, 153, 138), (127, 169, 193)):           # the dots of AD and of NC, over white, are on it
            assert (np.abs(picture[..., :3].astype(int) - colour).sum(-1) < 60).sum() > 100, name


def test_latents_of_a_seed_are_as_good_as_any_to_a_model_of_that_seed():
    """They were once the rows of its first weights, and their styles lay twice as far from the mean as all others."""
    torch.manual_seed(3)
    mapping = MappingNetwork().eval()
    with torch.no_grad():
        ours, others = (mapping(predict.draw_z(256, 256, seed)) for seed in (3, 4))
    spread = [(w - others.mean(0)).norm(dim=1).mean().item() for w in (ours, others)]
    assert spread[0] == pytest.approx(spread[1], rel=0.05)
    rows = torch.nn.functional.normalize(mapping.layers[0].weight.detach())
    assert (torch.nn.functional.normalize(predict.draw_z(256, 256, 3)) @ rows.T).abs().max() < 0.4
