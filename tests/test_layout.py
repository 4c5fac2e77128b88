"""Layout: imports go one way and never in a circle, and no file grows beyond one thought."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = {"startup", "utils", "lock", "ops", "modules", "dataset"}
COMMANDS = {"train", "predict", "metrics", "phantom", "bench", "prepare"}
ROOMS = "data", "training", "analysis", "report", "tools"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for pattern in ("*.py", *(f"{room}/*.py" for room in ROOMS))
    for path in sorted(ROOT.glob(pattern))
    if path.name != "__init__.py"
}
BELOW = {  # what the files of each room may import beside its own; BASE may import data/
    "data": {"startup", "utils", "lock"},
    "analysis": BASE | {"data"},
    "training": BASE | {"data", "analysis"},
    "report": BASE | {"data", "analysis", "training"},
    "tools": BASE | {"data", "analysis", "training", "report"},
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


def is_command_block(node):
    """Whether a statement is `if __name__ == "__main__":`; what is imported there belongs to the command, not to the module."""
    return isinstance(node, ast.If) and "__main__" in ast.dump(node.test)


def imported(name):
    """Modules of this project that module `name` imports anywhere, inside of functions too."""

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if not is_command_block(child):
                yield from import_names(child)
                yield from walk(child)

    return set(walk(ast.parse(FILES[name].read_text()))) & set(FILES)


def room(name):
    """The room of a module, or its own name if it is at the top level."""
    return name.split(".")[0]


def test_every_module_has_a_known_place():
    top = {name for name in FILES if "." not in name}
    assert top == BASE | COMMANDS
    assert {"training.step", "training.loss", "report.figures", "analysis.quality"} <= set(FILES)


def test_imports_are_found(tmp_path, monkeypatch):
    """The reader of imports itself: nested blocks and functions count, the block of a command does not."""
    source = tmp_path / "example.py"
    source.write_text(
        "import ops as o\nfrom training import step\nfrom report.figures import tile\nimport torch\n"
        "if True:\n    try:\n        import dataset\n    except ImportError:\n        pass\n"
        "class A:\n    import modules\n    def f(self):\n        from utils import CLASSES\n"
        "if __name__ == '__main__':\n    import predict\n"
    )
    monkeypatch.setitem(FILES, "example", source)
    assert imported("example") == {"ops", "training.step", "report.figures", "dataset", "modules", "utils"}


@pytest.mark.parametrize("name", sorted(BASE))
def test_base_modules_import_only_each_other_and_data(name):
    assert {room(other) for other in imported(name)} <= BASE | {"data"}


@pytest.mark.parametrize("name", ["startup", "lock", "ops", "utils", "modules"])
def test_networks_need_no_data(name):
    assert imported(name) <= {"ops", "utils", "startup"} - {name}


@pytest.mark.parametrize("name", [name for name in FILES if "." in name])
def test_rooms_import_only_what_lies_below_them(name):
    assert {room(other) for other in imported(name)} <= BELOW[room(name)] | {room(name)}


@pytest.mark.parametrize("name", [name for name in FILES if room(name) not in {"report", "tools"}])
def test_only_report_and_tools_draw(name):
    names = [name for node in ast.walk(ast.parse(FILES[name].read_text())) for name in import_names(node)]
    assert not [name for name in names if room(name) == "matplotlib"]


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
