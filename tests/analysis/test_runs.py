"""Which runs predict.py works on: what is refused, which folders are taken, and that no two write the same files."""

import json
import os

import pytest
from conftest import change_weights

from analysis import runs
from analysis.models import share
from analysis.runs import choose_model, map_models
from report.samples import name_apart
from utils import UserError

# ---------------------------------------------------------------------------------------------------------------------
# The runs of the maps


@pytest.fixture(scope="module")
def map_folder(models, tmp_path_factory):
    """--model_dir with the runs of `models`; all, of both classes; control, a second NC model; copies of NC and of AD."""
    folder, ad, nc = tmp_path_factory.mktemp("maps") / "model", *(os.path.join(models, name) for name in ("AD", "NC"))
    folder.mkdir()
    for name in ("AD", "NC", "all-conditional"):
        os.symlink(os.path.join(models, name), folder / name)
    os.symlink(nc, folder / "link")
    change_weights(ad, folder / "all", 0.01, classes=["AD", "NC"])
    change_weights(nc, folder / "control", 0.01)
    change_weights(nc, folder / "copy")
    change_weights(ad, folder / "renamed", classes=["NC"])
    change_weights(nc, folder / "unknown", classes=None)
    share(nc, str(folder / "shared"))
    (folder / "damaged").mkdir()
    (folder / "damaged" / "generator.pt").write_bytes(b"no generator")
    return str(folder)


def mapped(model_dir, classes=None, **asked):
    models = map_models({f"{flag}_dir": run for flag, run in asked.items() if run}, classes, str(model_dir), "last", "cpu")
    return {flag: model.folder for flag, model in models.items()}


def test_models_of_maps_are_those_of_the_flags_with_the_folders_named(map_folder, tmp_path, monkeypatch, capsys):
    runs = mapped(map_folder, AD="AD", NC="NC", control="control")
    ad, nc, control, both = (os.path.join(map_folder, name) for name in ("AD", "NC", "control", "all-conditional"))
    assert runs == {"AD_dir": ad, "NC_dir": nc, "control_dir": control, "conditional": both}
    assert capsys.readouterr().err.splitlines() == [
        f"note: --AD_dir AD: the run in {ad}, trained on AD",
        f"note: --NC_dir NC: the run in {nc}, trained on NC",
        f"note: --control_dir control: the run in {control}, trained on NC",
        f"note: all-conditional: the run in {both}, trained on AD and NC",
    ]
    monkeypatch.chdir(tmp_path)
    os.symlink(nc, "AD")  # whose plain name means the run under --model_dir
    assert mapped(map_folder, AD="AD", NC="NC")["AD_dir"] == ad
    assert f"--AD_dir AD: the run in {ad}, trained on AD\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "ad, nc, control, expected",
    [
        ("NC", "NC", None, "--AD_dir NC: the run in .*NC was trained on NC, not on AD: give a run of train.py --classes AD"),
        ("AD", "AD", None, "--NC_dir AD: .* was trained on AD, not on NC"),
        ("AD", "NC", "AD", "--control_dir AD: .* was trained on AD, not on NC"),
        ("all", "NC", None, "--AD_dir all: .* was trained on AD and NC, not on AD alone"),
        ("AD", "all", None, "--NC_dir all: .* not on NC alone"),
        ("AD", "NC", "all", "--control_dir all: .* not on NC alone"),
        ("all-conditional", "NC", None, "--AD_dir all-conditional is a conditional model"),
        ("AD", "NC", "all-conditional", "--control_dir all-conditional is a conditional model"),
        ("AD", "NC", "NC", "--control_dir NC is the run of --NC_dir NC: .* hold the same weights; .* another --seed"),
        ("AD", "NC", "link", "--control_dir link is the run of --NC_dir NC"),
        ("AD", "NC", "copy", "--control_dir copy is the run of --NC_dir NC"),
        ("AD", "NC", "shared", "--control_dir shared is the run of --NC_dir NC"),
        ("AD", "shared", "copy", "--control_dir copy is the run of --NC_dir shared"),
        ("AD", "renamed", None, "--NC_dir renamed is the run of --AD_dir AD"),
        ("AD", "unknown", None, "--NC_dir unknown: .*does not record the classes"),
        ("AD", "NC", "damaged", "--control_dir damaged: .*not a generator that train.py saved"),
        ("AD", "CN", None, "--NC_dir: no run CN: .* did you mean NC?"),
    ],
)
def test_maps_of_wrong_runs_are_refused(map_folder, ad, nc, control, expected):
    with pytest.raises(UserError, match=expected):
        mapped(map_folder, AD=ad, NC=nc, control=control)


def test_a_conditional_model_alone_is_mapped_where_it_can_be_told(map_folder, models, tmp_path):
    both = os.path.join(models, "all-conditional")
    assert (
        mapped(map_folder) == mapped(map_folder, "all-conditional") == {"conditional": os.path.join(map_folder, "all-conditional")}
    )
    assert mapped(both) == {"conditional": both}  # a run itself
    os.symlink(both, tmp_path / "only")
    assert mapped(tmp_path) == {"conditional": str(tmp_path / "only")}


def test_maps_need_a_pair_or_a_conditional_model(map_folder, tmp_path):
    for run in ("AD", "all", "control"):
        with pytest.raises(UserError, match=f"also needs --AD_dir and --NC_dir.*{run} is not conditional"):
            mapped(map_folder, run)
    for name in ("AD", "NC"):
        os.symlink(os.path.join(map_folder, name), tmp_path / name)
    with pytest.raises(UserError, match="also needs --AD_dir and --NC_dir"):
        mapped(tmp_path)


def test_maps_of_a_pair_do_without_a_run_that_is_only_called_conditional(map_folder, tmp_path):
    for name in ("AD", "NC"):
        os.symlink(os.path.join(map_folder, name), tmp_path / name)
    os.symlink(os.path.join(map_folder, "all"), tmp_path / "all-conditional")
    assert list(mapped(tmp_path, AD="AD", NC="NC")) == ["AD_dir", "NC_dir"]


def test_runs_of_one_network_one_set_of_slices_one_loss_and_one_seed_are_the_same(model, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "same_weights", lambda *_: False)

    def written(name, **changes):
        flags = {"seed": 1, "loss": "wgan-gp", "epochs": 5} | changes
        config = {"network": {"resolution": 64}, "data": {"fingerprint": changes.get("slices", "x")}, "flags": flags}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return model._replace(folder=str(tmp_path / name))

    run, longer, nowhere = written("run"), written("longer", epochs=50), model._replace(folder=str(tmp_path / "nowhere"))
    assert "have the same slices, network, loss and --seed" in runs.same_run(run, longer)
    for name, change in {"seed": 2, "loss": "relativistic", "slices": "y"}.items():
        assert runs.same_run(run, written(name, **{name: change})) is None
    assert runs.same_run(run, nowhere) is runs.same_run(nowhere, nowhere) is None


def test_choose_model_takes_the_named_the_only_or_the_one_called_all(models, tmp_path):
    def chosen(name, model_dir):
        return choose_model(name, str(model_dir), "last", "cpu").folder

    ad = os.path.join(models, "AD")
    assert chosen(None, ad) == ad  # a run itself
    assert chosen("AD", models) == chosen(ad, tmp_path) == ad
    with pytest.raises(UserError, match="AD, NC, all-conditional: say which with --classes"):
        chosen(None, models)
    os.symlink(ad, tmp_path / "only")
    assert chosen(None, tmp_path) == str(tmp_path / "only")
    os.symlink(ad, tmp_path / "all")
    assert chosen(None, tmp_path) == str(tmp_path / "all")
    with pytest.raises(UserError, match="no run MCI: .*all, only"):
        chosen("MCI", tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Names of files


def test_runs_of_one_name_get_files_of_different_names(model):
    def names(*folders):
        return [named.name for named in name_apart([model._replace(folder=folder) for folder in folders])]

    assert names("/x/AD", "/x/NC") == ["AD", "NC"] and names("/x/a/run") == ["run"]
    assert names("/x/a/run", "/x/b/run", "/x/c/RUN", "/x/c/other") == ["a_run", "b_run", "c_RUN", "other"]
    assert names("/x/a/run", "/y/a/run") == ["x_a_run", "y_a_run"]
