"""README.md and docs/*.md: their command lines parse, and their flags, files, links and pictures exist."""

import contextlib
import functools
import glob
import importlib
import io
import os
import re
import shlex
import sys

import pytest
from conftest import ROOT

from predict import parse_args as parse_predict
from train import parse_args as parse_train
from training import recipes

PAGES = {}
for path in [os.path.join(ROOT, "README.md"), *sorted(glob.glob(os.path.join(ROOT, "docs", "*.md")))]:
    with open(path, encoding="utf-8") as file:
        PAGES[os.path.relpath(path, ROOT).replace(os.sep, "/")] = file.read()
CODE_BLOCK = r"^```\n(.*?)^```"
COMMAND = re.compile(r"python (-m [\w.]+|\w+\.py)")  # "train.py" or "-m analysis.areas"
COMMANDS = sorted({command for text in PAGES.values() for command in COMMAND.findall(text)})


def command_lines(text):
    """Lines of the code blocks, with continued lines joined, and the inline code that is a whole command."""
    blocks = re.findall(CODE_BLOCK, text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    inline = re.findall(r"`(python (?:-m [\w.]+|\w+\.py)\s[^`]*)`", re.sub(CODE_BLOCK, "", text, flags=re.DOTALL | re.MULTILINE))
    return lines + [" ".join(line.split()) for line in inline]


LINES = [(name, line) for name, text in PAGES.items() for line in command_lines(text)]


def split_command(line):
    """E.g. "srun torchrun --nnodes=2 train.py --classes AD" -> ("train.py", ["--classes", "AD"])."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["python", "-m"]:
        return f"-m {words[2]}", words[3:]
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[script], words[script + 1 :]


def flags_in(text):
    return set(re.findall(r"(?<![\w-])--[a-z]\w+", text, re.IGNORECASE))


@functools.cache
def help_of(command):
    """What `python <command> --help` prints."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", [command, "--help"])
        importlib.import_module(command.removeprefix("-m ").removesuffix(".py")).main()
    assert ended.value.code == 0
    return shown.getvalue()


def flags_of(command):
    return flags_in(help_of(command).split("examples:")[0])


def test_readme_has_at_most_200_lines():
    assert len(PAGES["README.md"].splitlines()) <= 200


@pytest.mark.parametrize(
    "line", ["python train.py --dataset_dir AD_NC/train --classes AD", "python predict.py --plot_umap True --AD_dir AD --NC_dir NC"]
)
def test_readme_has_the_two_main_commands(line):
    assert line in PAGES["README.md"].splitlines()


@pytest.mark.parametrize("name, line", [(name, line) for name, line in LINES if re.match(r"(python|torchrun|srun) ", line)])
def test_command_lines_parse(name, line):
    command, argv = split_command(line)
    parse = {"train.py": parse_train, "predict.py": parse_predict}.get(command)
    if "--help" in argv:
        assert flags_of(command)
    elif parse:
        parse(argv)  # raises UserError at a flag or value that it does not take
    else:
        assert flags_in(" ".join(argv)) <= flags_of(command), line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples(command):
    for line in help_of(command).split("examples:\n")[1].rstrip().split("\n"):
        assert split_command(line.strip())[0] == command and flags_in(line) <= flags_of(command), line


def test_recipes_of_the_page_on_training_are_those_of_the_code():
    assert recipes.markdown_table() in PAGES["docs/training.md"]


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_that_are_named_exist(name):
    with open(os.path.join(ROOT, "Makefile")) as file:
        targets = set(re.findall(r"^(\w+):", file.read(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make (\w+)", PAGES[name], re.MULTILINE))
    assert named <= targets and (name != "README.md" or {"demo", "quick", "test", "soak"} <= named)


def test_every_command_is_described():
    commands = {"train.py", "predict.py", "metrics.py", "prepare.py", "dataset.py", "phantom.py", "bench.py"}
    assert commands | {"-m training.augment", "-m analysis.areas", "-m tools.diagrams"} <= set(COMMANDS)


@pytest.mark.parametrize("name", PAGES)
def test_every_flag_exists(name):
    launchers = " ".join(line for _, line in LINES if re.match(r"#SBATCH|srun|torchrun", line))  # Slurm's and torchrun's
    known = set.union(*map(flags_of, COMMANDS), flags_in(launchers), {"--help", "--max_restarts", "--nproc_per_node"})
    assert flags_in(PAGES[name]) <= known


def anchors_of(text):
    """GitHub's anchors of the headings, without the comments of code blocks."""
    text = re.sub(CODE_BLOCK, "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]) if not link.startswith("https://")]
    for link in links:
        target, _, anchor = link.partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(name), target)).replace(os.sep, "/") if target else name
        assert os.path.exists(os.path.join(ROOT, target)), link
        assert not anchor or anchor in anchors_of(PAGES[target]), link


@pytest.mark.parametrize("name", PAGES)
def test_source_files_that_are_named_exist(name):
    named = re.findall(r"`((?:(?:analysis|docs|tests|training)/)[\w./]*|\w+\.py)`", PAGES[name])
    assert not [path for path in named if not os.path.exists(os.path.join(ROOT, path))]


def test_every_page_is_linked_from_the_readme():
    pages = {name for name in PAGES if name.startswith("docs/")}
    assert pages and pages <= {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", PAGES["README.md"])}


def test_every_picture_is_shown():
    shown = {name for text in PAGES.values() for name in re.findall(r"!\[[^\]]+\]\((?:\.\./)?model_images/([\w.]+)\)", text)}
    assert shown == set(os.listdir(os.path.join(ROOT, "model_images")))


def test_layout_names_every_module_and_folder():
    layout = PAGES["README.md"].split("## Layout")[1]
    modules = [name for name in os.listdir(ROOT) if name.endswith(".py")]
    assert not [name for name in (*modules, "data/", "training/", "analysis/", "tests/", "docs/") if f"`{name}`" not in layout]
