"""Layout: imports go one way and never in a circle, and no file grows beyond one thought."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = {"startup", "utils", "lock", "ops", "modules", "dataset"}
DATA = {"data.cache", "data.checks", "data.decode"}
COMMANDS = {"train", "predict", "metrics", "phantom", "bench", "prepare"}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for pattern in ("*.py", "data/*.py", "training/*.py", "analysis/*.py")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "__init__.py"
}
MAX_LINES = 450


def import_names(node):
    """Names that an import statement refers to; `from a import b` may mean the module a or a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imported(name, everywhere=False):
    """Modules of this project that module `name` imports when it is imported itself; `everywhere`: also inside of functions."""

    def walk(node):
        for child in ast.iter_child_nodes(node):
            yield from import_names(child)
            if everywhere or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield from walk(child)

    return set(walk(ast.parse(FILES[name].read_text()))) & set(FILES)


def in_folder(name, folder):
    return name.startswith(folder + ".")


def test_every_module_has_a_known_place():
    top = {name for name in FILES if "." not in name}
    assert top == BASE | COMMANDS
    assert {"training.step", "training.loss", "analysis.figures", "analysis.quality"} <= set(FILES)


def test_imports_are_found(tmp_path, monkeypatch):
    """The reader of imports itself: nested blocks count, functions only with `everywhere`."""
    source = tmp_path / "example.py"
    source.write_text(
        "import ops as o\nfrom training import step\nfrom analysis.figures import tile\nimport torch\n"
        "if True:\n    try:\n        import dataset\n    except ImportError:\n        pass\n"
        "class A:\n    import modules\n    def f(self):\n        from utils import CLASSES\n"
    )
    monkeypatch.setitem(FILES, "example", source)
    direct = {"ops", "training.step", "analysis.figures", "dataset", "modules"}
    assert imported("example") == direct and imported("example", everywhere=True) == direct | {"utils"}


@pytest.mark.parametrize("name", sorted(BASE))
def test_base_modules_import_neither_folder_nor_a_command(name):
    assert imported(name) <= BASE | DATA


@pytest.mark.parametrize("name", sorted(DATA))
def test_reading_slices_needs_utils_alone(name):
    assert imported(name, everywhere=True) <= DATA | {"utils"}


@pytest.mark.parametrize("name", ["startup", "lock", "ops", "utils", "modules"])
def test_networks_need_no_data_and_nothing_above_them(name):
    assert imported(name, everywhere=True) <= {"ops", "utils", "startup"} - {name}


@pytest.mark.parametrize("name", [name for name in FILES if in_folder(name, "training")])
def test_training_imports_no_command_and_only_figures_from_analysis(name):
    allowed = BASE | DATA | {"analysis.figures"}
    assert {other for other in imported(name, everywhere=True) if not in_folder(other, "training")} <= allowed


@pytest.mark.parametrize("name", [name for name in FILES if in_folder(name, "analysis")])
def test_analysis_imports_neither_training_nor_a_command(name):
    assert {other for other in imported(name, everywhere=True) if not in_folder(other, "analysis")} <= BASE | DATA


def test_imports_have_no_circles():
    visited = {}

    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in visited:
            for other in sorted(imported(name)):
                visit(other, [*path, name])
            visited[name] = True

    for name in FILES:
        visit(name, [])
    assert set(visited) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name):
    lines = FILES[name].read_text().count("\n")
    assert lines <= MAX_LINES, f"{FILES[name].name} has {lines} lines: does it hold two thoughts?"
