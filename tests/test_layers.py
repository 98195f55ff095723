"""Imports only go down, and what must start fast imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "tercet"

ROWS = (
    ("__main__",),
    ("cli",),
    ("pipeline", "plan", "export", "chat", "doctor"),
    ("stages",),
    ("judge", "report"),
    ("label", "world", "rollout"),
    ("model",),
    ("data",),
    ("rundir", "config"),
    ("records", "objectives", "statistics"),
)
HEIGHT = {room: -row for row, rooms in enumerate(ROWS) for room in rooms}

# The one step inside a row: a run's folder holds the config as TOML.
WITHIN_A_ROW = {("rundir", "config")}


def room_of(file: Path, package: Path) -> str:
    return file.relative_to(package).parts[0].removesuffix(".py")


def tercet_imports(file: Path, package: Path) -> list[tuple[int, str]]:
    """(line, dotted name below tercet) of every import in a file, lazy ones too."""
    found = []
    # level 1 is the file's own package
    here = ("tercet", *file.relative_to(package).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [
            (node.lineno, n.removeprefix("tercet.")) for n in names if n.startswith("tercet.")
        ]
    return found


def faults(package: Path) -> list[str]:
    """Every import that goes up or sideways, as "file:line name"."""
    result = []
    for file in sorted(package.rglob("*.py")):
        room = room_of(file, package)
        if file == package / "__init__.py":
            continue
        if room not in HEIGHT:
            result.append(f"{file.relative_to(package)}: in no row of the architecture")
            continue
        for line, name in tercet_imports(file, package):
            target = name.split(".")[0]
            sibling = target == room and room != "stages"
            down = target in HEIGHT and HEIGHT[target] < HEIGHT[room]
            allowed = target == "__version__" or (room, target) in WITHIN_A_ROW
            if not (sibling or down or allowed):
                result.append(f"{file.relative_to(package)}:{line} imports {name}")
    return result


def test_imports_only_go_down():
    assert faults(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("model/tree.py", "from tercet.rollout.engine import generate"),  # up
        ("objectives.py", "from tercet import records"),  # sideways
        ("data/clean.py", "def f():\n    from tercet.model import load"),  # up, lazily
        ("data/clean.py", "from ..model import load"),  # up, relative
        ("stages/ppo.py", "from tercet.stages import sft"),  # between stages
        ("helpers.py", ""),  # no room of the house
    ],
)
def test_a_wrong_import_is_found(tmp_path, file, line):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line)
    assert len(faults(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("model/tree.py", "from tercet.model import attention\nfrom . import load"),
        ("stages/ppo.py", "from tercet.model.tree import pack"),
        ("cli.py", "from tercet import __version__, pipeline"),
    ],
)
def test_a_right_import_is_not(tmp_path, file, line):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line)
    assert faults(tmp_path) == []


LIGHT = ["cli", "label", "label.commands", "label.server", "label.web.app", "records", "config"]
LIGHT += ["rundir", "statistics"]


@pytest.mark.parametrize("room", LIGHT)
def test_light_rooms_import_no_torch(room):
    code = f"import sys, tercet.{room}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
