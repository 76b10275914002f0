"""The rules of the house: which room may import which, how long a file may be, what is pinned."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
ROOMS = ("datamodules", "lightning_modules", "callbacks", "experiments")
FORBIDDEN = {room: set(ROOMS) - {room} for room in ROOMS[:3]} | {"experiments": set()}


def files_of(room: str) -> list[Path]:
    return sorted((HOUSE / room).rglob("*.py"))


def imported_rooms(path: Path, root: Path = HOUSE) -> set[str]:
    """The rooms that a file imports, anywhere in it and also relatively."""
    found = set()
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1]
            found.add(above[0] if above else (node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name in ("import_module", "__import__"):
                found.add(str(node.args[0].value).split(".")[0])
    return found & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_do_not_import_one_another(room):
    files = files_of(room)
    assert files
    wrong = {
        str(path.relative_to(HOUSE)): sorted(imported_rooms(path) & FORBIDDEN[room])
        for path in files
        if imported_rooms(path) & FORBIDDEN[room]
    }
    assert not wrong, "rooms meet in the batch and in what Lightning hands a callback"


@pytest.mark.parametrize(
    ("code", "rooms"),
    [
        ("import experiments.config", {"experiments"}),
        ("from lightning_modules.losses import x", {"lightning_modules"}),
        ("def f():\n    from callbacks import panels", {"callbacks"}),
        ("from ..callbacks import panels", {"callbacks"}),
        ("from . import index", {"datamodules"}),
        ("import importlib\nimportlib.import_module('experiments.runs')", {"experiments"}),
        ("import torch\nname = 'experiments'", set()),
    ],
)
def test_imports_are_found(tmp_path, code, rooms):
    path = tmp_path / "datamodules" / "new.py"
    path.parent.mkdir()
    path.write_text(code)
    assert imported_rooms(path, tmp_path) == rooms


def test_no_file_over_400_lines():
    files = [path for room in (*ROOMS, "tests") for path in files_of(room)]
    files += [HOUSE / "Makefile", *(HOUSE / "experiments").glob("*.yaml")]
    lengths = {str(path.relative_to(HOUSE)): len(path.read_text().splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_every_requirement_gives_its_reason():
    text = (HOUSE / "pyproject.toml").read_text()
    requirements = re.findall(r'^ {4}"[\w.-]+[<>=~!][^"]*",.*$', text, re.MULTILINE)
    assert len(requirements) > 15
    assert [line for line in requirements if not re.search(r'",  # \S', line)] == []


def test_constraints_pin_every_direct_dependency_and_no_path():
    text = (HOUSE / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    direct = {name.lower() for name in re.findall(r'^ {4}"([\w-]+)', block, re.MULTILINE)}
    lines = [
        line
        for line in (HOUSE / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    pins = [
        re.fullmatch(r'([\w.-]+)==[\w.]+( ; python_version >= "3\.\d+")?', line) for line in lines
    ]
    assert all(pins), "only name==version: a path or an address works on one machine"
    assert direct <= {pin[1] for pin in pins if pin}
