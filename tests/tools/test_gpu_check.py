"""python -m tools.gpu_check: what it keeps, what it does without a GPU, and its parts at a tiny size on the CPU."""

import json
import time

import pytest
import torch
from conftest import refusal
from fake_graphs import fake_graphs

import bench
from tools import gpu_check
from tools.gpu_check import Results, main

MACHINE = {"device": "a GPU"}
CPU = "--device", "cpu"


def saved(folder):
    return json.loads((folder / "gpu.json").read_text())


@pytest.fixture
def results(tmp_path):
    made = Results(str(tmp_path), MACHINE)
    made.deadline = time.monotonic() + 60
    return made


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path):
    assert "--device cuda:0: cannot be used here" in refusal(main, "--part", 2, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", [[], ["--part", 3], ["--part", 4]])
def test_parts_that_train_need_slices(part):
    assert "--dataset_dir" in refusal(main, *CPU, *part)


def test_analysis_needs_the_model_of_part_3(tmp_path, slices_dir):
    line = refusal(main, *CPU, "--part", 4, "--dataset_dir", slices_dir, "--output_dir", tmp_path)
    assert "--part 4 needs the model of part 3" in line


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


def test_every_measurement_is_written_at_once(results, tmp_path):
    results.add("bench", {"images/s": 123.456789, "unit": "x"})
    assert saved(tmp_path) == {"machine": MACHINE, "bench": {"images/s": 123.456789, "unit": "x"}}


def test_measurements_of_earlier_calls_stay_unless_they_are_of_another_machine(results, tmp_path):
    results.add("bench", {"images/s": 1.0})
    assert "bench" in Results(str(tmp_path), MACHINE).measured
    assert "bench" not in Results(str(tmp_path), {"device": "another"}).measured


@pytest.mark.parametrize("damaged", ["", "[]", "{", '{"bench": {}}'])
def test_damaged_measurements_are_begun_again(tmp_path, damaged):
    (tmp_path / "gpu.json").write_text(damaged)
    assert Results(str(tmp_path), MACHINE).measured == saved(tmp_path) == {"machine": MACHINE}


@pytest.mark.slow
def test_failing_commands_are_recorded_with_their_last_line(results, tmp_path):
    assert gpu_check.run(results, "a b", "-c", "print('why'); raise SystemExit(3)") is None
    assert saved(tmp_path)["a b"] == {"failed": "exit status 3", "last line": "why", "log": str(tmp_path / "a_b.log")}
    results.deadline = time.monotonic()
    assert gpu_check.run(results, "slow", "-c", "import time; time.sleep(60)") is None
    assert "time of this part" in saved(tmp_path)["slow"]["failed"]
    results.deadline = time.monotonic() + 60
    assert gpu_check.run(results, "good", "-c", "print('text')").startswith("text\n")
    assert "good" not in saved(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The parts


@pytest.mark.parametrize("total, begun", [(gpu_check.TOTAL, [1, 2, 3, 5, 4]), (gpu_check.LEAST - 1, [])])
def test_all_parts_are_run_in_order_while_there_is_time(tmp_path, monkeypatch, capsys, total, begun):
    called, limits = [], []

    def part(number):
        def call(results, *_):
            called.append(number)
            limits.append(results.deadline - time.monotonic())

        return call

    monkeypatch.setattr(gpu_check, "PARTS", {number: part(number) for number in gpu_check.PARTS})
    monkeypatch.setattr(gpu_check, "TOTAL", total)
    assert main([*CPU, "--dataset_dir", "x", "--output_dir", str(tmp_path)]) == 0
    assert called == begun and sum(limits[:4]) <= 14 * 60 and all(limit <= total for limit in limits)
    assert capsys.readouterr().out.count("no time is left") == 5 - len(begun)


def test_each_call_of_part_3_does_the_first_run_that_is_missing(tmp_path, slices_dir, monkeypatch, capsys):
    commands = []

    def run(results, name, *command):
        commands.append(command)
        folder = tmp_path / name.replace(" ", "_") / "AD"
        folder.mkdir(parents=True)
        rows = [f"{60 * minute},{minute},{minute / 10},0,0,{1000 * minute}" for minute in (1, 2.2, 3.9, 5)]
        (folder / "evaluations.csv").write_text("\n".join(["seconds,kid,kid_train,precision,recall,images", *rows]))
        (folder / "losses.csv").write_text("images_per_second,memory_gib\n1,1\n1,1\n4,2\n6,3\n")
        return "done"

    monkeypatch.setattr(gpu_check, "run", run)
    for _ in range(3):
        assert main([*CPU, "--part", "3", "--dataset_dir", slices_dir, "--output_dir", str(tmp_path)]) == 0
    assert ["--grow" in command for command in commands] == [False, True] and "part 3 is done" in capsys.readouterr().out
    figures = saved(tmp_path)["training without growing"]
    assert [figures[f"kid at {minutes} minutes"] for minutes in ("2.2", "3.9", "5.0")] == [2.2, 3.9, 5.0]
    assert figures["images/s, mean of the second half"] == 5 and figures["peak memory, GiB"] == 3


@pytest.fixture
def quick_measurements(monkeypatch, capsys):
    """One loss is timed in a process of its own, as always in use; the others in this one, which has PyTorch imported."""
    run = gpu_check.run

    def run_here(results, name, script, *flags):
        if name == "bench relativistic":
            return run(results, name, script, *flags)
        capsys.readouterr()
        assert script == "bench.py" and bench.main([*map(str, flags)]) == 0
        return capsys.readouterr().out

    monkeypatch.setattr(gpu_check, "run", run_here)
    monkeypatch.setattr(gpu_check, "PROFILED_STEPS", 2)  # the first of which has a penalty


@pytest.mark.slow
def test_speed_and_profile_at_a_tiny_size(tmp_path, quick_measurements):
    assert main([*CPU, "--part", "2", "--output_dir", str(tmp_path)]) == 0
    found = saved(tmp_path)
    for loss in gpu_check.LOSSES:
        assert found[f"bench {loss}"]["train.py's step, images/s"] > 0
        shares = list(found[f"profile {loss}"].values())[3:]
        assert len(shares) == gpu_check.PROFILED_KERNELS and 10 < sum(shares) <= 100 and shares == sorted(shares, reverse=True)


@pytest.mark.slow
def test_steps_with_and_without_graphs_end_at_the_same_weights(monkeypatch):
    monkeypatch.setattr(gpu_check, "GRAPH_STEPS", 1)
    with fake_graphs():
        found = gpu_check.graphs("wgan-gp", gpu_check.SIZES["cpu"]._replace(resolution=8), torch.device("cpu"))
    assert list(found.values())[1::2] == [0, 0, 0] and min(list(found.values())[::2]) > 0


@pytest.mark.slow
def test_memory_at_a_tiny_size(tmp_path):
    assert main([*CPU, "--part", "5", "--output_dir", str(tmp_path)]) == 0
    found = saved(tmp_path)["memory relativistic, batch 4, float32"]
    assert found["peak / estimate"] == pytest.approx(found["peak, GiB"] / found["estimate, GiB"]) and found["estimate, GiB"] > 0


def test_part_4_maps_its_two_runs_of_one_class_without_predict(tmp_path, slices_dir, monkeypatch):
    commands = {}
    monkeypatch.setattr(gpu_check, "run", lambda results, name, *command: commands.update({name: command}))
    runs = [tmp_path / name / "AD" for name in ("training", "training_without_growing")]
    for run in runs:
        run.mkdir(parents=True)
        (run / "generator.pt").touch()
    assert main([*CPU, "--part", "4", "--dataset_dir", slices_dir, "--output_dir", str(tmp_path)]) == 0
    assert {name: command[0] for name, command in commands.items() if name != "map of styles"} == dict.fromkeys(
        ("projection", "export", "report"), "predict.py"
    )
    assert commands["map of styles"] == ("-c", gpu_check.MAP, *map(str, runs), str(tmp_path / "predictions"), "cpu")
