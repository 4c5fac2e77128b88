"""README.md, docs/ and models/README.md: commands parse, what they name exists, tables and code are those of the project."""

import contextlib
import functools
import importlib
import io
import os
import re
import shlex
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

import modules
from predict import parse_args as parse_predict
from tools import tables
from train import parse_args as parse_train

PAGES = {path.relative_to(tables.ROOT).as_posix(): path.read_text(encoding="utf-8") for path in tables.PAGES}
CODE_BLOCK = r"^```\w*\n(.*?)^```$"
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
    """E.g. "torchrun --nnodes=2 train.py --classes AD" -> ("train.py", ["--classes", "AD"])."""
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
        module = command.removeprefix("-m ").removesuffix(".py")
        importlib.import_module({"dataset": "report.dataset_command"}.get(module, module)).main()
    assert ended.value.code == 0
    return shown.getvalue()


def flags_of(command):
    return flags_in(help_of(command).split("examples:")[0])


def test_pages_are_short():
    words = {name: len(text.split()) for name, text in PAGES.items()}
    assert words["README.md"] <= 1200 and len(PAGES["README.md"].splitlines()) <= 150
    assert sum(words.values()) <= 8500


@pytest.mark.parametrize(
    "line", ["python train.py --dataset_dir AD_NC/train --classes AD", "python predict.py --plot_umap True --AD_dir AD --NC_dir NC"]
)
def test_readme_has_the_two_main_commands(line):
    assert line in PAGES["README.md"].splitlines()


@pytest.mark.parametrize("name, line", [(name, line) for name, line in LINES if re.match(r"(python|torchrun) ", line)])
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


# ---------------------------------------------------------------------------------------------------------------------
# Tables, figures and code


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_those_of_the_runs_and_of_the_code(name):
    assert PAGES[name] == tables.with_tables(PAGES[name], *tables.made_tables()), "run python -m tools.tables"


def test_every_decision_and_table_of_the_code_is_on_one_page():
    cells = [tables.first_cell(line) for text in PAGES.values() for line in text.split("\n") if line.startswith("|")]
    compared, of_code = tables.made_tables()
    assert {name: cells.count(name) for name in (*compared, *of_code)} == dict.fromkeys((*compared, *of_code), 1)


def test_rows_of_runs_are_complete():
    for run in tables.read_runs():
        assert re.match(r"python (train|predict|bench)\.py ", run["command"]) and run["seed"].isdecimal(), run
        assert re.match(r"[0-9a-f]{7}\b", run["commit"]) and run["machine"] and run["note"]
        assert not run["compares"] or (int(run["images"]) > 0 and -100 < float(run["KID"]) < 10_000), run
        assert all(0 <= float(run[name] or 0) <= 1 for name in tables.SHARES)


def test_figures_are_kids_and_mean_shares():
    """By hand: of two runs, one of which has no coverage."""
    runs = [
        {"compares": "A: a; B: b", "KID": "67", "precision": "0.5", "recall": "0.25", "coverage": "0.5"},
        {"compares": "A: a", "KID": "90", "precision": "0.7", "recall": "0.35", "coverage": ""},
        {"compares": "A: c", "KID": "8", "precision": "0", "recall": "1", "coverage": "1"},
    ]
    compared = tables.compare_runs(runs)
    assert compared == {"A": ("a<br>c", "67, 90; 0.60/0.30/-<br>8; 0.00/1.00/1.00"), "B": ("b", "67; 0.50/0.25/0.50")}
    page = "text\n| A | | | verdict |\n| other | x | y | |"
    filled = "text\n| A | a<br>c | 67, 90; 0.60/0.30/-<br>8; 0.00/1.00/1.00 | verdict |\n| other | x | y | |"
    assert tables.with_tables(page, compared, {}) == filled


def test_style_block_of_the_page_on_networks_is_that_of_the_code():
    names = {"torch": torch, "F": F, "NOISE_LR": modules.NOISE_LR}
    exec(next(code for code in re.findall(CODE_BLOCK, PAGES["docs/networks.md"], re.DOTALL | re.MULTILINE) if "def" in code), names)
    block = modules.StyleBlock(6, 4, resolution=8, w_dim=5).double().requires_grad_(False)
    block.bias.normal_()
    x, w, noise = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 6, 8, 8), (3, 5), (3, 1, 8, 8)))
    fast, scale = block(x, torch.ones(3, 6, dtype=torch.float64), w, noise)
    torch.testing.assert_close(fast * scale[:, :, None, None], names["style_block"](block, x, w, noise), rtol=1e-9, atol=1e-12)


def test_model_card_begins_with_the_front_matter_of_the_hub():
    head = re.match(r"---\n((?:\w+: \S.*\n)+)---\n# ", PAGES["models/README.md"])[1]
    facts = dict(line.split(": ", 1) for line in head.splitlines())
    assert facts.keys() >= {"license", "library_name", "pipeline_tag", "tags"}
    assert (tables.ROOT / "LICENSE").read_text(encoding="utf-8").casefold().startswith(facts["license"])


@pytest.mark.parametrize("name", PAGES)
def test_no_commit_is_named_in_prose(name):
    text = re.sub(r"https://\S+", "", PAGES[name])
    assert not [word for word in re.findall(r"\b[0-9a-f]{7,40}\b", text) if re.search("[a-f]", word) and re.search("[0-9]", word)]


# ---------------------------------------------------------------------------------------------------------------------
# What is named exists


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_that_are_named_exist(name):
    with open(os.path.join(ROOT, "Makefile")) as file:
        targets = set(re.findall(r"^(\w+):", file.read(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make (\w+)", PAGES[name], re.MULTILINE))
    assert named <= targets and (name != "README.md" or {"demo", "quick", "test", "soak"} <= named)


def test_every_command_is_described():
    commands = {"train.py", "predict.py", "metrics.py", "prepare.py", "dataset.py", "phantom.py", "bench.py"}
    modules = {"analysis.areas", "analysis.models", "tools.diagrams", "tools.gpu_check", "tools.tables"}
    assert commands | {f"-m {name}" for name in modules} <= set(COMMANDS)


@pytest.mark.parametrize("name", PAGES)
def test_every_flag_exists(name):
    foreign = "--nproc_per_node --nnodes --rdzv_backend --rdzv_endpoint --signals --shutdown --max_restarts"  # torchrun's
    slurm = "--partition --gres --cpus --time --signal --output --nodes --ntasks"
    known = set.union(*map(flags_of, COMMANDS), {"--help"}, foreign.split(), slurm.split())
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
    named = re.findall(r"`((?:(?:analysis|data|docs|report|tests|tools|training)/)[\w./]*|\w+\.py)`", PAGES[name])
    assert not [path for path in named if not os.path.exists(os.path.join(ROOT, path))]


def test_names_of_the_page_on_extending_are_in_the_files_of_their_row():
    rows = [line for line in PAGES["docs/extend.md"].split("\n") if line.startswith("| a")]
    assert len(rows) >= 5  # a loss, an alert, a data format, a picture, a metric
    for row in rows:
        quoted = re.findall(r"`([^`]+)`", row)
        sources = "".join((tables.ROOT / name).read_text(encoding="utf-8") for name in quoted if name.endswith(".py"))
        missing = [name for name in quoted if name.isidentifier() and not re.search(rf"\b{name}\b", sources)]
        assert sources and not missing, row


@pytest.mark.parametrize("name", PAGES)
def test_tests_that_are_named_exist(name):
    tests = "".join(path.read_text(encoding="utf-8") for path in tables.ROOT.glob("tests/**/test_*.py"))
    assert not [test for test in re.findall(r"`(test_\w+)`", PAGES[name]) if f"def {test}(" not in tests]


def test_every_page_is_linked_from_the_readme():
    pages = {name for name in PAGES if name.startswith("docs/")}
    assert pages and pages <= {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", PAGES["README.md"])}


def test_every_picture_is_shown():
    shown = {name for text in PAGES.values() for name in re.findall(r"!\[[^\]]+\]\((?:\.\./)?model_images/([\w.]+)\)", text)}
    assert shown == set(os.listdir(os.path.join(ROOT, "model_images")))


def test_layout_names_every_module_and_folder():
    layout = PAGES["README.md"].split("## Layout")[1]
    modules = [name for name in os.listdir(ROOT) if name.endswith(".py")]
    rooms = "data/", "training/", "analysis/", "report/", "tools/", "tests/", "docs/"
    assert not [name for name in (*modules, *rooms) if f"`{name}`" not in layout]


def test_pyproject_names_the_packages_of_requirements_txt():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((tables.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == (tables.ROOT / "requirements.txt").read_text(encoding="utf-8").split()
