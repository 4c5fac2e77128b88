"""Finding and loading runs, and generating images from them."""

import copy
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, change_weights

from analysis.models import draw_z, find_run, generate, list_runs, load_model, main, same_weights, share
from modules import MappingNetwork
from utils import UserError, load_tensors, save_tensors


def generated(model, count, **options):
    return np.concatenate(list(generate(model, count, options.pop("seed", 0), **options)))


def test_find_run_by_path_and_by_name(models, tmp_path):
    ad = os.path.join(models, "AD")
    assert find_run("AD", models) == find_run(ad, str(tmp_path)) == ad
    assert list_runs(models) == ["AD", "NC", "all-conditional"] and list_runs(str(tmp_path)) == []
    with pytest.raises(UserError, match="no run MCI: .*holds AD, NC, all-conditional"):
        find_run("MCI", models)


ODD_NAME = "a[b] *?%s #$x$ {0} 'q' \"é\" <b>&\nend"  # what patterns, formats, pages and Matplotlib read as something else
if os.name == "nt":
    ODD_NAME = "a[b] %s #$x$ {0} 'q' é &"


def test_find_run_takes_a_plain_name_under_model_dir_first_and_any_other_path_as_it_is(models, tmp_path, monkeypatch):
    for folder, source in (("model/AD", "AD"), ("AD", "NC"), ("control/NC", "NC"), ("model/control/NC", "AD"), ("only", "AD")):
        shutil.copytree(os.path.join(models, source), tmp_path / folder, ignore=shutil.ignore_patterns("*[!r].pt", "styles"))
    monkeypatch.chdir(tmp_path)
    os.symlink(os.path.join("model", "control"), "link")
    for name, expected in {
        "AD": "model/AD",
        "./AD": "AD",
        "AD/": "AD",
        "only": "only",
        "control/NC": "control/NC",
        "model/../AD": "AD",
        "link/../AD": "link/../AD",  # model/AD, and not what the path looks like
        str(tmp_path / "AD"): str(tmp_path / "AD"),
    }.items():
        assert find_run(name, "model").replace(os.sep, "/") == expected.replace(os.sep, "/")
    assert find_run("AD", ".") == "AD"
    with pytest.raises(UserError, match="--AD_dir: no run ad: .*; did you mean AD?"):
        find_run("ad", "model", "--AD_dir:")
    with pytest.raises(UserError, match="--model_dir model/AD is a run itself"):
        find_run("NC", "model/AD")


def test_adnis_word_for_nc_is_understood_in_the_message(models):
    with pytest.raises(UserError, match="--NC_dir: no run CN: .*; did you mean NC?"):
        find_run("CN", models, "--NC_dir:")


def test_runs_are_found_and_listed_in_folders_of_any_name(models, tmp_path):
    folder = str(tmp_path / ODD_NAME)
    for name in (ODD_NAME, "[AD]", ".hidden"):
        change_weights(os.path.join(models, "AD"), os.path.join(folder, name))
    assert list_runs(folder) == sorted([ODD_NAME, "[AD]"])
    for name in (ODD_NAME, "[AD]"):
        assert find_run(name, folder) == os.path.join(folder, name)
        assert load_model(find_run(name, folder), "cpu").name == name


def test_same_weights_are_those_of_a_copy_and_of_a_shared_one(models, tmp_path):
    nc = os.path.join(models, "NC")
    share(nc, str(tmp_path / "shared"))
    change_weights(nc, tmp_path / "copy", classes=["AD"])
    change_weights(nc, tmp_path / "other", 0.01)
    loaded = load_model(nc, "cpu")
    for name, same in (("shared", True), ("copy", True), ("other", False)):
        assert same_weights(loaded, load_model(str(tmp_path / name), "cpu")) == same
    assert not same_weights(loaded, load_model(os.path.join(models, "AD"), "cpu"))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"classes": None}, "does not record the classes.*copy it again, or continue its run"),
        ({"classes": ["CN"]}, "trained on \\['CN'\\], not on AD, NC or both"),
        ({"classes": "AD"}, "trained on AD, not on AD, NC or both"),
        ({"classes": []}, "not on AD, NC or both"),
        ({"classes": ["NC", "AD"]}, "not on AD, NC or both"),
        ({"fingerprints": [1, 2]}, "its fingerprints are no list of checksums"),
    ],
)
def test_load_model_refuses_a_generator_without_its_classes(models, tmp_path, changes, expected):
    folder = change_weights(os.path.join(models, "AD"), tmp_path / "run", **changes)
    with pytest.raises(UserError, match=expected):
        load_model(folder, "cpu")


def test_load_model_refuses_a_conditional_generator_of_one_class(models, tmp_path):
    folder = change_weights(os.path.join(models, "all-conditional"), tmp_path / "run", classes=["NC"])
    with pytest.raises(UserError, match="conditional, but trained on one class"):
        load_model(folder, "cpu")


def test_share_of_a_folder_without_a_run_names_the_file(tmp_path):
    with pytest.raises(UserError, match="nowhere.generator.pt: no such file"):
        main([str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_load_model_takes_the_averaged_weights(model, models):
    saved = torch.load(os.path.join(models, "AD", "checkpoint.pt"), weights_only=True)["averaged"]
    for key, value in model.generator.state_dict().items():
        assert torch.equal(value, saved[f"generator.{key}"]), key


def test_load_model_best_falls_back_to_the_last_generator_with_a_note(models, tmp_path, capsys):
    folder = tmp_path / "NC"
    folder.mkdir()
    shutil.copy(os.path.join(models, "NC", "generator.pt"), folder)  # and no best.pt
    last, best = (load_model(str(folder), "cpu", which) for which in ("last", "best"))
    assert capsys.readouterr().err.startswith(f"note: {folder} holds no best.pt")
    assert torch.equal(best.generator.constant, last.generator.constant)


def test_load_model_refuses_files_that_hold_no_generator(models, tmp_path):
    path = tmp_path / "generator.pt"
    saved = torch.load(os.path.join(models, "AD", "generator.pt"), weights_only=True)
    for change in ({"classes": ["MCI"]}, {"network": saved["network"] | {"resolution": 64}}, {"weights": {}}):
        torch.save(saved | change, path)
        with pytest.raises(UserError, match="generator.pt: not a generator that train.py saved"):
            load_model(str(tmp_path), "cpu")
    path.write_bytes(b"not a network")
    with pytest.raises(UserError, match="generator.pt: not a generator that train.py saved"):
        load_model(str(tmp_path), "cpu")


def test_load_model_refuses_a_changed_byte(models, tmp_path):
    """PyTorch itself does not check the checksums of its zip files."""
    with open(os.path.join(models, "AD", "generator.pt"), "rb") as file:
        content = bytearray(file.read())
    weights = load_model(os.path.join(models, "AD"), "cpu").generator.blocks[0].styles[0].conv.weight
    content[content.index(weights.permute(0, 2, 3, 1).numpy().tobytes()[:16])] ^= 1
    (tmp_path / "generator.pt").write_bytes(content)
    with pytest.raises(UserError, match="the checksum differs"):
        load_model(str(tmp_path), "cpu")


def test_share_halves_the_size_and_hardly_changes_images(models, tmp_path, capsys):
    run, shared = os.path.join(models, "all-conditional"), str(tmp_path / "shared" / "all-conditional")
    assert main([run, shared]) == 0
    assert "predict.py --model_dir " + str(tmp_path / "shared") in capsys.readouterr().out
    size, shared_size = (os.path.getsize(os.path.join(folder, "generator.pt")) for folder in (run, shared))
    assert os.listdir(shared) == ["generator.pt"] and shared_size < 0.6 * size  # these runs have no checkpoint
    original, copied = (generated(load_model(folder, "cpu"), 8, label=1) for folder in (run, shared))
    assert abs(original.astype(int) - copied).mean() < 0.5  # grey levels; float16 keeps 11 bits
    with pytest.raises(UserError, match="generator.pt exists: name another folder"):
        share(run, shared)


def test_the_last_generator_is_shared_with_the_critic_that_it_was_trained_with(models, tmp_path):
    run, critic = tmp_path / "run", {"score.weight": torch.tensor([[1.0, 2**-30]])}
    shutil.copytree(os.path.join(models, "AD"), run)
    shutil.copy(run / "generator.pt", run / "best.pt")
    checkpoint = {"critic": critic, "stage": {"resolution": load_model(str(run), "cpu").resolution}, "fade": {}}
    checkpoint |= {"images": 3000, "images_before": 5000}
    save_tensors(checkpoint, run / "checkpoint.pt")
    for name, source, which in (("copy", run, "last"), ("copied", tmp_path / "copy", "last"), ("best", run, "best")):
        share(str(source), str(tmp_path / name), which)
    copied = [load_tensors(tmp_path / name / "generator.pt") for name in ("copy", "copied")]
    for saved in copied:
        assert torch.equal(saved["critic"]["score.weight"], torch.tensor([[1.0, 0.0]], dtype=torch.float16))
        assert saved["images"] == 8000
    for name, other in (("lower", {"stage": {"resolution": 8}}), ("fading", {"fade": {"resolution": 8}})):
        save_tensors(checkpoint | other, run / "checkpoint.pt")
        share(str(run), str(tmp_path / name))
    assert not [name for name in ("best", "lower", "fading") if "critic" in load_tensors(tmp_path / name / "generator.pt")]
    (run / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(UserError, match="checkpoint.pt: damaged .*; continue the run"):
        share(str(run), str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["models", "models/axial"])
def test_the_bundled_models_draw_brains_of_both_classes(name):
    folder = find_run("all-conditional", os.path.join(ROOT, name))
    sizes = {file: os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder)}
    assert sizes.keys() == {"generator.pt", "encoder.pt"} and sum(sizes.values()) < 4.2e6
    model = load_model(folder, "cpu")
    ad, nc = (generated(model, 2, label=label) for label in model.labels)
    assert ad.shape == nc.shape == (2, 256, 256) and (ad != nc).any()
    for images in (ad, nc):  # bright in the middle, nearly black in the corners
        assert images[:, 96:160, 96:160].mean() > 5 * images[:, :16, :16].mean()


def test_generate_gives_the_same_images_for_a_seed_and_any_count(model):
    twenty = generated(model, 20)
    assert twenty.shape == (20, 32, 32) and twenty.dtype == np.uint8
    np.testing.assert_array_equal(generated(model, 20), twenty)
    np.testing.assert_array_equal(generated(model, 3), twenty[:3])
    assert (generated(model, 3, seed=1) != twenty[:3]).mean() > 0.1


def test_generate_with_truncation_reduces_variety(model):
    model = copy.deepcopy(model)
    for block in model.generator.blocks:
        for style in block.styles:
            torch.nn.init.zeros_(style.noise_strength)  # which no truncation touches
    spreads = [generated(model, 32, truncation=psi).astype(float).std(0).mean() for psi in (0.0, 0.5, 1.0)]
    assert spreads[0] < 0.5 * spreads[1] < 0.8 * spreads[2]


def test_generate_from_a_later_batch_gives_the_same_images(model):
    later = np.concatenate(list(generate(model, 35, 0, start=1)))
    np.testing.assert_array_equal(later, generated(model, 35)[16:])


def test_draw_z_is_independent_of_the_weights_of_a_model_with_the_same_seed():
    """Otherwise the latents equal rows of its first weights, and their w are twice as far from the mean as others."""
    torch.manual_seed(3)
    mapping = MappingNetwork().eval()
    with torch.no_grad():
        ours, others = (mapping(draw_z(256, 256, seed)) for seed in (3, 4))
    spread = [(w - others.mean(0)).norm(dim=1).mean().item() for w in (ours, others)]
    assert spread[0] == pytest.approx(spread[1], rel=0.05)
    rows = torch.nn.functional.normalize(mapping.layers[0].weight.detach())
    assert (torch.nn.functional.normalize(draw_z(256, 256, 3)) @ rows.T).abs().max() < 0.4
