"""The folder of a run: the files in it, and how runs resume, are locked, refused and renamed."""

import csv
import functools
import glob
import json
import os
import re
import shutil
import socket
import types

import numpy as np
import pytest
import torch
from conftest import LAYERS, NETWORK, checkpoint, read_table, same_checkpoints, start
from PIL import Image
from plain_options import plain_options

import train
from report import figures
from training import step as training_step
from training import validation
from training.augment import AugmentationStrength
from training.run_folder import NAMES, RunFolder, check_same_run, find_run, lock_folder, read_run, rename_run, restore_random_stream
from training.step import TrainingState
from utils import UserError

# ---------------------------------------------------------------------------------------------------------------------
# The files of a run


def files(run):
    return {os.path.relpath(path, run) for path in glob.glob(run + "/**", recursive=True) if os.path.isfile(path)}


def test_files_of_a_run(models):
    always = {"config.json", "checkpoint.pt", "previous.pt", "lock", "generator.pt", "losses.csv", "evaluations.csv"}
    always |= {f"fake_vs_real/epoch_000{i}.png" for i in range(3)} | {f"styles/epoch_000{i}.npy" for i in range(3)}
    assert files(os.path.join(models, "AD")) - {"alerts.log"} == always | {"best.pt", "losses.png", "loss_proportion.png"}
    assert files(os.path.join(models, "NC")) - {"alerts.log"} == always  # without evaluations, and here without plots


def test_losses_of_a_run(models):
    rows = read_table(os.path.join(models, "AD", "losses.csv"))
    assert tuple(rows[0]) == train.LOSS_COLUMNS + tuple(f"std {name}" for name in LAYERS)
    assert [row["images"] for row in rows] == [8, 16] and [row["epoch"] for row in rows] == [1, 2]
    sometimes = "penalty", "gradient_norm", "path_length", "held_out"  # not at every step, or never
    assert all(np.isfinite(value) for row in rows for name, value in row.items() if name not in sometimes)
    assert all(row["skipped"] == 0 and row["lr"] > 0 and 0.05 < row["memory_gib"] < 1000 for row in rows)


def test_generator_file_holds_the_averaged_weights(models):
    run = os.path.join(models, "AD")
    saved = torch.load(os.path.join(run, "generator.pt"), weights_only=True)
    assert saved["images"] == 16 and saved["classes"] == ["AD"]
    assert same_checkpoints(saved["weights"], checkpoint(run)["averaged"])


def test_config_says_what_the_run_was_started_with(models):
    configs = {}
    for run in ("AD", "all-conditional"):
        with open(os.path.join(models, run, "config.json")) as file:
            configs[run] = json.load(file)
    assert configs["AD"]["data"]["counts"] == {"AD": 9} and configs["AD"]["network"]["num_classes"] == 0
    conditional = configs["all-conditional"]
    assert conditional["network"]["num_classes"] == 2 and conditional["data"]["counts"] == {"AD": 9, "NC": 11}
    assert conditional["flags"]["batch_size"] == 4 and conditional["torch"] == torch.__version__


def test_conditional_run_saves_an_embedding_in_each_network(models):
    state = checkpoint(os.path.join(models, "all-conditional"))
    assert "embedding.weight" in state["critic"] and "mapping.embedding.weight" in state["model"]


def test_evaluations_of_a_run(models):
    rows = read_table(os.path.join(models, "AD", "evaluations.csv"))
    assert tuple(rows[0]) == train.EVALUATION_COLUMNS and [row["images"] for row in rows] == [8, 16]
    assert all(np.isfinite(value) for row in rows for name, value in row.items() if name != "overfitting")
    best = torch.load(os.path.join(models, "AD", "best.pt"), weights_only=True)
    assert best["images"] == min(rows, key=lambda row: row["kid"])["images"]
    assert len(read_table(os.path.join(models, "all-conditional", "evaluations.csv"))) == 1
    assert read_table(os.path.join(models, "NC", "evaluations.csv")) == []


@pytest.mark.slow
def test_best_is_the_average_with_the_lowest_kid_also_across_a_resume(tmp_path, slices_dir, validations):
    kids, averages = validations

    def best():
        saved = torch.load(tmp_path / "AD/best.pt", weights_only=True)
        return saved["images"], [same_checkpoints(saved["weights"], averaged) for averaged in averages]

    kids += [5.0, 2.0, 9.0]
    start(slices_dir, tmp_path, "--epochs", 3, "--eval_every", 1)
    assert best() == (16, [False, True, False])
    kids += [3.0]
    start(slices_dir, tmp_path, "--epochs", 4, "--eval_every", 1)
    assert best() == (16, [False, True, False, False])
    kids += [1.5]
    start(slices_dir, tmp_path, "--epochs", 5, "--eval_every", 1)
    assert best() == (40, [False] * 4 + [True])
    assert [row["kid"] for row in read_table(tmp_path / "AD/evaluations.csv")] == [5, 2, 9, 3, 1.5]


def test_styles_and_images_use_the_same_latents_every_time(models):
    first, last = (np.load(os.path.join(models, "NC", "styles", f"epoch_000{i}.npy")) for i in (0, 2))
    assert first.shape == (512, 256) and first.dtype == np.float32
    other = np.load(os.path.join(models, "AD", "styles", "epoch_0000.npy"))
    np.testing.assert_array_equal(first, other)  # same seed, same start
    assert np.abs(first - last).max() > 0  # and it learns
    assert np.load(os.path.join(models, "all-conditional", "styles", "epoch_0002.npy")).shape == (2, 512, 256)
    with Image.open(os.path.join(models, "NC", "fake_vs_real", "epoch_0002.png")) as picture:
        assert picture.mode == "L" and picture.width > 1000


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
def test_plots_can_be_drawn_from_few_rows_without_evaluations(tmp_path, rows):
    columns = train.LOSS_COLUMNS + tuple(f"std {name}" for name in LAYERS)
    values = np.random.default_rng(0).uniform(0.1, 9, (rows, len(columns)))
    values[:, columns.index("images")] = 64 * np.arange(1, rows + 1)
    values[0, columns.index("penalty")] = values[:, columns.index("path_length")] = np.nan
    losses, none = figures.columns(values, columns), figures.columns([], train.EVALUATION_COLUMNS)
    figures.plot_dashboard(losses, none, tmp_path / "losses.png")
    figures.plot_loss_proportion(losses, tmp_path / "proportion.png")
    with Image.open(tmp_path / "proportion.png") as picture:  # the proportions fill the plot even from one row
        assert (np.asarray(picture)[..., :3].min(2) < 230).mean() > 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Resuming


RUNS = {
    "wgan-gp": ("--loss wgan-gp --augment ada --set style_mixing=0.9".split(), (1, 5, 9)),
    "logistic": ("--loss logistic --set gp_every=4 n_critic=3 path_length=2".split(), (1, 5, 9)),
    "conditional": ("--loss relativistic --set path_length=1 style_mixing=0.5 --conditional".split(), (1, 2, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_resumed_run_equals_one_that_never_stopped(tmp_path, slices_dir, unplotted, monkeypatch, name):
    class Growing(AugmentationStrength):
        """Meets scores of held-out images as a critic that overfits gives them, so that p grows."""

        def update(self, terms, images):
            if "held_out" in terms:
                terms = terms | {"held_out": terms["held_out"].abs() + 9 * terms["wasserstein"].abs()}
            super().update(terms, images)

    monkeypatch.setattr(training_step, "AugmentationStrength", functools.partial(Growing, speed_kimg=0.05))
    monkeypatch.setattr(validation, "VALIDATED", 16)
    monkeypatch.setattr(validation, "Features", lambda *_: lambda pixels: torch.as_tensor(pixels[:, ::8, ::8]).flatten(1).float())
    flags, stops = RUNS[name]
    flags = [*flags, "--validation_dir", os.path.join(os.path.dirname(slices_dir), "test")]
    if name == "conditional":
        flags = [*flags, "--classes", "all"]
    assert start(slices_dir, tmp_path / "one", "--epochs", stops[-1], *flags) == 0
    for epochs in stops:  # evaluations and saves change nothing either
        assert start(slices_dir, tmp_path / "two", "--epochs", epochs, "--eval_every", 2, "--save_every", 3, *flags) == 0
    folder = "all-conditional" if "all" in flags else "AD"
    one, two = checkpoint(tmp_path / "one" / folder), checkpoint(tmp_path / "two" / folder)
    assert one["images"] == two["images"] == stops[-1] * (20 if "all" in flags else 8)
    assert same_checkpoints(one, two) and one["lr_scale"] == one["lr_decay"] == 1
    assert (one["augmentation"]["p"] > 0.1) == ("ada" in flags)
    assert (one["augmentation"]["gap_held_out"] > 0) == ("ada" in flags)
    assert (one["path_length"]["mean"] > 0) == any(str(flag).startswith("path_length") for flag in flags)


@pytest.mark.slow
def test_rows_after_the_checkpoint_are_cut_on_resume(tmp_path, slices_dir, validations):
    validations[0].extend([3.0, 2.0])
    start(slices_dir, tmp_path, "--epochs", 1, "--eval_every", 1)
    for name in ("losses", "evaluations"):  # as a run killed after logging leaves behind
        path = tmp_path / f"AD/{name}.csv"
        with open(path, newline="") as file:
            columns, row = csv.reader(file)
        row[columns.index("images")] = "12"
        with open(path, "a") as file:
            file.write(",".join(row) + "\n" + ",".join(row)[:9])
    start(slices_dir, tmp_path, "--epochs", 2, "--eval_every", 1)
    for name in ("losses", "evaluations"):
        assert [row["images"] for row in read_table(tmp_path / f"AD/{name}.csv")] == [8, 16], name


def new_state(rank=0, size=1):
    """A TrainingState on tiny networks, of one process among `size`."""
    processes = types.SimpleNamespace(rank=rank, size=size, leading=rank == 0)
    return TrainingState(plain_options(seed=3), NETWORK, torch.device("cpu"), torch.float32, processes)


def random_state(seed):
    return torch.Generator().manual_seed(seed).get_state()


def test_each_of_as_many_processes_continues_its_own_stream_of_random_numbers():
    streams = [random_state(10), random_state(11)]
    for rank in (0, 1):
        state = new_state(rank, size=2)
        restore_random_stream(state, {"rng": streams, "rng_device": "cpu", "images": 64})
        assert torch.equal(state.rng.get_state(), streams[rank])


@pytest.mark.parametrize(
    "saved", [{"rng": [random_state(10)]}, {"rng": [random_state(i) for i in range(3)]}, {"rng_device": "cuda"}]
)
def test_other_processes_or_another_device_begin_new_streams(saved):
    saved = {"rng": [random_state(10), random_state(11)], "rng_device": "cpu", "images": 64} | saved
    drawn = []
    for rank, images in ((0, 64), (1, 64), (0, 128)):
        state = new_state(rank, size=2)
        before = state.rng.get_state()
        restore_random_stream(state, saved | {"images": images})
        assert not any(torch.equal(state.rng.get_state(), old) for old in [before, *saved["rng"]])
        drawn.append(torch.randn(1000, generator=state.rng))
        restore_random_stream(state, saved | {"images": images})
        assert torch.equal(torch.randn(1000, generator=state.rng), drawn[-1])  # the same when resumed again
    assert (torch.corrcoef(torch.stack(drawn)) - torch.eye(3)).abs().max() < 0.2  # apart, by process and place in the run


def test_read_table_drops_rows_that_are_damaged_or_newer_than_the_checkpoint(tmp_path):
    columns = "images", "kid", "held_out"
    run, path = RunFolder(str(tmp_path), {}, {"losses": columns}, new_state().processes), tmp_path / "losses.csv"
    assert run.read_table("losses", 100) == []
    path.write_text("images,kid,held_out\n50,1.5,7\n100,nan,7\n101,2,7\n60,1e300,7\n70,inf,7\n80\n90,1,7,2\n")
    rows = run.read_table("losses", 100)
    assert rows[0] == [50, 1.5, 7] and rows[1][0] == 100 and np.isnan(rows[1][1]) and len(rows) == 2
    path.write_text("images,kid,held_out\n50,1.5,7\nabc,2,7\n60,3,7\n")
    assert run.read_table("losses", 100) == [[50, 1.5, 7]]  # from the first that is not of numbers on
    for other in ("", "step,kid\n50,1.5\n", "\n"):
        path.write_text(other)
        assert run.read_table("losses", 100) == []


# ---------------------------------------------------------------------------------------------------------------------
# Which run a folder holds


def test_a_second_lock_is_refused_and_names_the_holder(tmp_path):
    held = lock_folder(str(tmp_path))
    for _ in range(2):  # a refusal does not erase the holder's name
        with pytest.raises(UserError, match=f"another train.py .*process {os.getpid()} on {socket.gethostname()}.*--model_dir"):
            lock_folder(str(tmp_path))
    held.release()
    lock_folder(str(tmp_path)).release()


@pytest.mark.skipif(os.name == "nt", reason="Windows lets few users make links")
def test_lock_folder_removes_temporary_files_but_not_through_links(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (run / "styles", elsewhere):
        folder.mkdir(parents=True)
        (folder / ".tmp-left.npy").touch()
        (folder / "kept.npy").touch()
    (run / ".tmp-checkpoint.pt").touch()
    (run / "linked").symlink_to(elsewhere)
    lock_folder(str(run)).release()
    assert os.listdir(run / "styles") == ["kept.npy"] and not (run / ".tmp-checkpoint.pt").exists()
    assert sorted(os.listdir(elsewhere)) == [".tmp-left.npy", "kept.npy"]


@pytest.mark.slow
def test_changed_network_or_data_is_refused_by_name(tmp_path, slices_dir, unplotted):
    start(slices_dir, tmp_path, "--epochs", 1)
    before = checkpoint(tmp_path / "AD")
    expected = r"--channel_base 256 \(was 128\), --channel_max 4 \(was 8\), --set mapping_layers=3 \(was 8\)"
    with pytest.raises(UserError, match=expected):
        start(slices_dir, tmp_path, "--channel_base", 256, "--channel_max", 4, "--set", "mapping_layers=3")
    other = tmp_path / "other/AD"
    other.mkdir(parents=True)
    Image.new("L", (30, 32), 90).save(other / "1_1.png")
    with pytest.raises(UserError, match="--dataset_dir .*other"):
        start(str(other.parent), tmp_path, "--epochs", 3)
    assert same_checkpoints(before, checkpoint(tmp_path / "AD"))
    start(slices_dir, tmp_path, "--epochs", 2, "--lr", 0.01, "--lambda_gp", 5)  # these may change
    assert checkpoint(tmp_path / "AD")["images"] == 16
    assert checkpoint(tmp_path / "AD")["model_optimizer"]["param_groups"][0]["lr"] == 0.01


def test_check_same_run_names_changed_flags_and_another_pytorch(models):
    run = os.path.join(models, "AD")
    with open(os.path.join(run, "config.json")) as file:
        config = json.load(file)
    assert check_same_run(run, config) == []
    flags = config["flags"] | {"lr": 1e-3, "loss": "logistic", "gp_every": 3, "epochs": 999, "save_every": 7}
    changed = check_same_run(run, config | {"flags": flags, "torch": "1.0"})
    assert changed == [
        "--loss logistic (was wgan-gp)",
        "--lr 0.001 (was 0.002)",
        "--set gp_every=3 (was 1)",
        f"PyTorch 1.0 (was {torch.__version__})",
    ]


UNREADABLE = [
    ("", "Expecting value"),
    ("[]", ""),
    ("{", ""),
    ("[" * 100_000, ""),
    ('{"torch": "2"}', "it lacks 'flags'"),
    (None, "No such file or directory"),
    (("network", "mapping_layers"), "it lacks 'mapping_layers'"),  # as in runs of earlier versions
    (("network", "resolution", 33), "resolution 33"),
    (("network", 3), ""),
    (("flags", "mirror"), "it lacks 'mirror'"),
    (("flags", "mirror", "yes"), "out of range"),
    (("flags", "loss", "hinge"), "out of range"),
    (("flags", "loss", []), "unhashable"),
    (("flags", "lr", -1), "above 0"),
    (("flags", "lr", "0.1"), ""),
    (("flags", "n_critic", 1.5), ""),
    (("flags", "batch_size", True), ""),
    (("flags", "validation_dir"), "it lacks 'validation_dir'"),
    (("data", "fingerprint"), "it lacks 'fingerprint'"),
    (("data", "damaged", ["102"]), "out of range"),
    (("data", "validation", 3), ""),
    (("data", "validation", {"scans": ["1"]}), "it lacks 'counts'"),
    (("data", "validation", {"counts": {}, "fingerprint": "", "scans": [1, None]}), "out of range"),
]


@pytest.mark.parametrize("change, expected", UNREADABLE)
def test_a_run_whose_config_is_damaged_or_of_another_version_is_refused_in_one_line(models, tmp_path, change, expected):
    """change: text of the file, or what is left out of a good one, or replaced by the last value."""
    with open(os.path.join(models, "AD", "config.json")) as file:
        config = json.load(file)
    if isinstance(change, str):
        (tmp_path / "config.json").write_text(change)
    elif change is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert read_run(str(tmp_path)) == config
        *places, last = change
        if len(places) == 2:
            config[places[0]][places[1]] = last
        elif isinstance(last, str):
            del config[places[0]][last]
        else:
            config[places[0]] = last
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"config.json is damaged, .*{re.escape(expected)}.*--resume False") as refused:
        read_run(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_rename_run_takes_the_first_free_name(tmp_path, capsys):
    for name in ("AD", "AD.1", "AD.2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    (tmp_path / "AD.1").rename(tmp_path / "AD.3")
    rename_run(str(tmp_path / "AD"))
    assert {path.name: (path / "which").read_text() for path in tmp_path.iterdir()} == {
        "AD.1": "AD",
        "AD.2": "AD.2",
        "AD.3": "AD.1",
    }
    assert f"{tmp_path}/AD is now {tmp_path}/AD.1" in capsys.readouterr().out


def contents(folder):
    return {os.path.relpath(path, folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lay(run, name):
    """A file of this name in the run's folder, or in the folder of this name there; none of it can be read."""
    path = run / name if "." in name or name == "lock" else run / name / "epoch_0001.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"trained for days")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("checkpoint.pt", "previous.pt")])
def test_any_file_of_a_run_without_a_checkpoint_is_never_overwritten(tmp_path, slices_dir, name):
    run = tmp_path / "AD"
    lay(run, name)
    lay(run, "notes.txt")  # no file of a run
    before = contents(run)
    for flags in ([], ["--dry_run"], ["--start_from", str(tmp_path)]):
        with pytest.raises(UserError, match=f"AD holds {name} of a run but no checkpoint.*--model_dir.*--resume False") as refused:
            start(slices_dir, tmp_path, *flags)
        assert "\n" not in str(refused.value) and contents(run) == before
    assert find_run(str(run), resume=False) == "rename"


@pytest.mark.skipif(os.name == "nt", reason="Windows lets few users make links")
def test_links_to_files_that_are_missing_count(tmp_path):
    (tmp_path / "generator.pt").symlink_to(tmp_path / "scratch that was emptied")
    with pytest.raises(UserError, match="generator.pt of a run but no checkpoint"):
        find_run(str(tmp_path), resume=True)


@pytest.mark.parametrize("first", ["generator.pt", "checkpoint.pt"])  # of the bundled model's kind; damaged
def test_resume_false_renames_whatever_there_is_of_a_run(tmp_path, slices_dir, unplotted, capsys, first):
    run = tmp_path / "AD"
    lay(run, first)
    lay(run, "styles")
    before = contents(run)
    assert start(slices_dir, tmp_path, "--resume", "False", "--dry_run") == 0
    assert f"{run} (new; the old one will be renamed)" in capsys.readouterr().out and contents(run) == before
    assert start(slices_dir, tmp_path, "--resume", "False", "--epochs", 1) == 0
    assert f"the run in {run} is now {run}.1" in capsys.readouterr().out
    old = contents(tmp_path / "AD.1")
    old.pop("lock")
    assert old == before and checkpoint(run)["images"] == 8


def test_folder_without_files_of_a_run_is_taken_as_it_is(tmp_path, slices_dir, unplotted, capsys):
    """What a run that was killed before its first save leaves, and what others put there, such as Slurm's log."""
    run = tmp_path / "AD"
    for name in ("lock", ".tmp-x1.pt", "slurm-1.out"):
        lay(run, name)
    (run / "styles").mkdir()
    for resume in ("True", "False"):
        assert start(slices_dir, tmp_path, "--resume", resume, "--dry_run") == 0
        assert f"{run} (new)" in capsys.readouterr().out
    assert start(slices_dir, tmp_path, "--resume", "False", "--epochs", 1) == 0
    assert (run / "slurm-1.out").read_bytes() == b"trained for days" and sorted(os.listdir(tmp_path)) == ["AD"]
    assert not (run / ".tmp-x1.pt").exists()


@pytest.mark.slow
def test_run_killed_at_any_moment_of_its_first_save_starts_again(tmp_path, slices_dir, unplotted, monkeypatch):
    replace = os.replace
    for failing in range(1, 99):
        calls = iter(range(1, 99))

        def crash(source, target, failing=failing, calls=calls):
            replace(source, target)
            if next(calls) == failing:
                raise KeyboardInterrupt

        folder = tmp_path / str(failing)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash)
            try:
                start(slices_dir, folder, "--epochs", 1, "--max_minutes", 1e-9)
            except KeyboardInterrupt:
                pass
            else:
                break
            if failing > 8:  # of the save after the first step
                break
        assert start(slices_dir, folder, "--epochs", 1) == 0
        names = {name for name in files(str(folder / "AD")) if not name.startswith(("fake_vs_real", "styles"))}
        assert names - {"alerts.log"} == {
            *("config.json", "checkpoint.pt", "previous.pt", "lock", "generator.pt", "losses.csv", "evaluations.csv")
        }
        states = checkpoint(tmp_path / "1" / "AD"), checkpoint(folder / "AD")
        assert same_checkpoints(states[0] | {"done": 0}, states[1] | {"done": 0}) and states[1]["images"] == 8
    assert failing > 7


def test_run_among_slices_is_refused(tmp_path, slices_dir):
    data = tmp_path / "data"
    shutil.copytree(os.path.dirname(slices_dir), data)
    os.symlink(data, tmp_path / "link")
    before = contents(data)
    for model_dir, flag in (
        (data / "train", "--dataset_dir"),
        (tmp_path / "link/train", "--dataset_dir"),
        (data / "train/NC/model", "--dataset_dir"),
        (data / "test", "--validation_dir"),
        (data / "test/AD/model", "--validation_dir"),
    ):
        for resume in ("True", "False"):
            with pytest.raises(UserError, match=f"--model_dir: the run's folder would be .*{flag}.*choose another"):
                start(str(data / "train"), model_dir, "--validation_dir", data / "test", "--resume", resume)
    (tmp_path / "model").mkdir()
    os.rename(data, tmp_path / "model/AD")  # --resume False would take the slices away
    (tmp_path / "model/AD/generator.pt").touch()
    with pytest.raises(UserError, match="--dataset_dir"):
        start(str(tmp_path / "model/AD/train"), tmp_path / "model", "--resume", "False")
    (tmp_path / "model/AD/generator.pt").unlink()
    assert contents(tmp_path / "model/AD") == before


@pytest.mark.skipif(os.name == "nt", reason="Windows lets few users make links")
def test_run_behind_a_link_is_resumed_and_renamed_as_it_is(tmp_path, slices_dir, unplotted):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "AD").symlink_to(tmp_path / "scratch")
    assert start(slices_dir, tmp_path, "--epochs", 1) == 0
    assert start(slices_dir, tmp_path, "--epochs", 2) == 0
    before = checkpoint(tmp_path / "scratch")
    assert before["images"] == 16
    os.symlink("nowhere", tmp_path / "AD.1")  # a name that is taken
    assert start(slices_dir, tmp_path, "--epochs", 1, "--resume", "False") == 0
    assert same_checkpoints(before, checkpoint(tmp_path / "AD.2")) and checkpoint(tmp_path / "AD")["images"] == 8


def test_run_may_start_from_the_one_whose_place_it_takes(tmp_path, slices_dir, unplotted):
    start(slices_dir, tmp_path, "--epochs", 1)
    before = checkpoint(tmp_path / "AD")
    assert start(slices_dir, tmp_path, "--epochs", 1, "--resume", "False", "--start_from", tmp_path / "AD") == 0
    assert same_checkpoints(before, checkpoint(tmp_path / "AD.1")) and checkpoint(tmp_path / "AD")["images"] == 8


@pytest.mark.slow
def test_resume_false_keeps_the_old_run(tmp_path, slices_dir, unplotted):
    start(slices_dir, tmp_path, "--epochs", 2)
    before = checkpoint(tmp_path / "AD")
    start(slices_dir, tmp_path, "--epochs", 1, "--resume", "false", "--channel_max", 4)
    assert same_checkpoints(before, checkpoint(tmp_path / "AD.1"))
    assert checkpoint(tmp_path / "AD")["images"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint.pt", "generator.pt"])
def test_a_file_of_another_run_is_not_resumed_or_overwritten(tmp_path, slices_dir, unplotted, name):
    """A run of NC's file in the folder of one of AD."""
    for classes in ("AD", "NC"):
        assert start(slices_dir, tmp_path, "--epochs", 1, "--classes", classes) == 0
    shutil.copy(tmp_path / "NC" / name, tmp_path / "AD" / name)
    before = (tmp_path / "AD" / name).read_bytes()
    with pytest.raises(UserError, match=f"{name} was trained on NC, so one of them was copied here"):
        start(slices_dir, tmp_path, "--epochs", 2)
    assert (tmp_path / "AD" / name).read_bytes() == before


@pytest.mark.slow
def test_a_generator_that_is_newer_than_the_checkpoint_is_not_overwritten(tmp_path, slices_dir, unplotted):
    """Such as one that was trained on elsewhere, and copied without its checkpoint."""
    assert start(slices_dir, tmp_path / "here", "--epochs", 1) == 0
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert start(slices_dir, tmp_path / "there", "--epochs", 3) == 0
    shutil.copy(tmp_path / "there" / "AD" / "generator.pt", tmp_path / "here" / "AD" / "generator.pt")
    with pytest.raises(UserError, match=r"generator.pt is newer \(0.0 kimg\) than checkpoint.pt \(0.0\)"):
        start(slices_dir, tmp_path / "here", "--epochs", 2)
