"""The README: its command lines parse, its flags and files exist."""

import functools
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from predict import parse_args as parse_predict
from train import parse_args as parse_train

with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
    README = file.read()
BLOCKS = re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
TABLES = re.findall(r"`(python \w+\.py [^`]*)`", README)
LINES = [re.sub(r"\\\n\s*", "", line) for block in BLOCKS for line in re.sub(r"\\\n\s*", " ", block).splitlines()] + TABLES
SCRIPTS = sorted(set(re.findall(r"python (\w+\.py)", README)))


def words_of(line):
    return shlex.split(line, comments=True)


@pytest.mark.parametrize("line", [line for line in LINES if re.match(r"(python|torchrun|srun) ", line.strip())])
def test_command_lines_parse(line):
    script, *argv = words_of(line)[next(i for i, word in enumerate(words_of(line)) if word.endswith(".py")) :]
    parse = {"train.py": parse_train, "predict.py": parse_predict}.get(script)
    if "--help" in argv:
        assert flags_of(script)
    elif parse:
        parse(argv)  # raises UserError at what it does not take
    else:
        assert flags_in(" ".join(argv)) <= flags_of(script), line


def flags_in(text):
    return set(re.findall(r"(?<![\w-])--[a-z]\w+", text, re.IGNORECASE))


@functools.cache
def help_of(script):
    done = subprocess.run([sys.executable, os.path.join(ROOT, script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def flags_of(script):
    return flags_in(help_of(script).split("examples:")[0])


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_ends_with_examples(script):
    lines = help_of(script).split("examples:\n")[1].rstrip().split("\n")
    for line in lines:
        assert words_of(line)[:2] == ["python", script] and flags_in(line) <= flags_of(script), line


def test_every_flag_it_names_exists():
    others = flags_in(" ".join(line for line in LINES if re.match(r"#SBATCH|srun|torchrun", line.strip()))) | {"--max_restarts"}
    known = set.union(*map(flags_of, SCRIPTS))
    assert flags_in(README) - known - others - {"--help"} == set()
    assert {"train.py", "predict.py", "metrics.py", "dataset.py", "phantom.py", "bench.py", "diagrams.py"} <= set(SCRIPTS)


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    files = [link for link in links if not link.startswith("http")]
    assert files and not [link for link in files if not os.path.exists(os.path.join(ROOT, link))]
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", README, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


def test_every_picture_is_shown():
    shown = set(re.findall(r"model_images/([\w.]+)", README))
    assert shown == set(os.listdir(os.path.join(ROOT, "model_images")))


def test_every_module_is_named():
    modules = {name for name in os.listdir(ROOT) if name.endswith(".py")}
    assert not [name for name in modules if f"`{name}`" not in README.split("## What lies where")[1]]
