"""colab.ipynb: its commands are README.md's, and its cells run from top to bottom, twice, without Colab, on tiny slices."""

import ast
import json
import os
import re
import shlex
import sys
import types

import pytest
from conftest import ROOT, TINY, checkpoint, read_image
from test_readme import PAGES, command_lines

import predict
import train

with open(os.path.join(ROOT, "colab.ipynb"), encoding="utf-8") as file:
    NOTEBOOK = json.load(file)
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
OWN_FLAGS = r" --(model_dir|output_dir|max_minutes) \S+"  # where Drive is, and how long a session lasts


def test_notebook_is_stored_without_outputs():
    assert NOTEBOOK["nbformat"] == 4 and len(CELLS) >= 5
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_commands_are_those_of_the_readme():
    lines = re.findall(r"^\s*!(pip .*|python .*)$", "\n".join(CELLS), re.MULTILINE)
    known = {line.partition("#")[0].strip() for line in command_lines(PAGES["README.md"])}
    combined = "python predict.py --classes all-conditional --draw grid,morph"  # README.md draws with the bundled models
    assert len(lines) == 5 and {re.sub(OWN_FLAGS, "", line) for line in lines} <= known | {combined}


@pytest.fixture
def colab(monkeypatch, tmp_path, slices_dir, quick, unplotted):
    """Run all cells as IPython does, with Drive in tmp_path, discs in place of a hundred phantoms, and tiny networks for one step a
    session; returns the command lines and the pictures that were displayed."""
    commands, shown = [], []
    monkeypatch.chdir(tmp_path)
    os.symlink(os.path.dirname(slices_dir), "AD_NC")
    drive, display = types.ModuleType("google.colab"), types.ModuleType("IPython.display")
    drive.drive = types.SimpleNamespace(mount=lambda path: shown.append(path))
    display.Image = lambda path: shown.append(read_image(path).shape)
    monkeypatch.setitem(sys.modules, "google.colab", drive)
    monkeypatch.setitem(sys.modules, "IPython.display", display)

    def command(line):
        commands.append(line)
        words = shlex.split(line)
        if words[:2] == ["python", "train.py"]:
            assert train.main([*words[2:], *TINY, "--epochs", "1000", "--max_minutes", "1e-9"]) == 0
        elif words[:2] == ["python", "predict.py"]:
            assert predict.main([*words[2:], "--device", "cpu"]) == 0

    def run():
        names = {"command": command}
        for cell in CELLS:
            source = re.sub(r"^( *)[!%](.*)$", r'\1command(f"\2")', cell, flags=re.MULTILINE)
            source = source.replace('"/content/drive/MyDrive/brains"', repr(str(tmp_path / "drive")))
            exec(compile(ast.parse(source), "colab.ipynb", "exec"), names)
        return commands, shown

    return run


@pytest.mark.slow
def test_cells_run_and_resume_in_the_next_session(colab, tmp_path):
    for session in (1, 2):
        commands, shown = colab()
        assert checkpoint(tmp_path / "drive/model/all-conditional")["images"] == 4 * session
    half = len(commands) // 2
    assert commands[:half] == commands[half:] and shown[::2] == 2 * ["/content/drive"] and min(shown[1][:2]) > 200
    assert [re.split(r" (?=-|/|h)", line)[0] for line in commands[:3]] == ["git clone", "cd", "pip install"]
    assert "python phantom.py AD_NC --subjects 100 --seed 0" in commands
    assert (tmp_path / "drive/out/report.html").stat().st_size > 100_000


def test_own_slices_in_drive_are_unpacked_instead_of_phantoms(tmp_path):
    (cell,) = [cell for cell in CELLS if "phantom.py" in cell]
    lines = []
    (tmp_path / "AD_NC.zip").touch()
    exec(re.sub(r"^( *)!(.*)$", r'\1run(f"\2")', cell, flags=re.MULTILINE), {"run": lines.append, "KEPT": str(tmp_path)})
    assert lines == [f"unzip -q -o {tmp_path}/AD_NC.zip"]
