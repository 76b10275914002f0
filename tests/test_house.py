"""The rules of the house: which room may import which, how large each may be, what is pinned."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
ROOMS = ("datamodules", "lightning_modules", "callbacks", "experiments")
OUTER = ROOMS[:3]  # these never import one another
# Rooms of experiments from top to bottom: each may import those below it, and OUTER.
FLOORS = (
    {"commands"},
    {"cluster", "reporting", "prediction", "audit"},
    {"evaluation", "annotation", "training"},
    {"build"},
    {"runs"},
    {"config"},
    {"command"},
)
GROUND = set().union(*FLOORS[3:])
# Lines of Python, blank ones and docstrings included, that a room may have at most.
LINES = {
    "datamodules": 2688,
    "datamodules/annotations": 1335,
    "datamodules/phantom": 1128,
    "lightning_modules": 1714,
    "callbacks": 629,
    "experiments": 1855,
    "experiments/annotation": 1113,
    "experiments/audit": 606,
    "experiments/cluster": 532,
    "experiments/evaluation": 1898,
    "experiments/prediction": 974,
    "experiments/reporting": 401,
    "experiments/training": 714,
}
PRODUCT, TESTS, FILES = 15_590, 12_280, 114
FILE, TEST_FILE, FUNCTION, PARAMETERS = 320, 330, 60, 7
WORDS, README, PAGES = 9_000, 900, 10


def files_of(room: str) -> list[Path]:
    return sorted((HOUSE / room).rglob("*.py"))


def product() -> list[Path]:
    return [path for room in ROOMS for path in files_of(room)]


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def imported(path: Path, root: Path = HOUSE) -> set[str]:
    """Dotted names that a file imports, anywhere in it and also relatively; of our rooms only."""
    names: set[str] = set()
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name in ("import_module", "__import__"):
                names.add(str(node.args[0].value))
    return {name for name in names if name.split(".")[0] in ROOMS}


@cache
def graph() -> dict[str, set[str]]:
    """Which module of ours imports which; a name that is no module stands for its module."""
    modules = {".".join(path.relative_to(HOUSE).with_suffix("").parts): path for path in product()}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}

    def module_of(name: str) -> str:
        return name if name in modules else name.rpartition(".")[0]

    return {
        name: {module_of(other) for other in imported(path)} - {name}
        for name, path in modules.items()
    }


def place(module: str) -> str:
    """The room of a module: one of OUTER, or a name in FLOORS."""
    first, _, rest = module.partition(".")
    if first in OUTER:
        return first
    inner = rest.partition(".")[0]
    rooms = set().union(*FLOORS)
    return inner if inner in rooms else "commands"


def allowed(one: str, other: str) -> bool:
    """Whether a module of place ``one`` may import one of place ``other``."""
    if one in OUTER or other in OUTER:
        return other in OUTER and one in (other, *set().union(*FLOORS))
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    if one == other:
        return one != "commands"  # no command imports a command
    return floor[one] < floor[other] or {one, other} <= FLOORS[-1]


def test_imports_run_one_way():
    wrong = sorted(
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if other != "experiments" and not allowed(place(module), place(other))
    )
    assert wrong == []


def test_no_circle():
    rest = {module: set(others) for module, others in graph().items()}
    while free := [module for module, others in rest.items() if not others & rest.keys()]:
        for module in free:
            del rest[module]
    assert sorted(rest) == [], "these import one another"


@pytest.mark.parametrize(
    ("one", "other", "right"),
    [
        ("datamodules", "lightning_modules", False),
        ("callbacks", "experiments.config", False),
        ("experiments.report", "experiments.evaluate", False),
        ("experiments.reporting.page", "experiments.prediction.network", False),
        ("experiments.evaluation.run", "experiments.audit.audit", False),
        ("experiments.build", "experiments.evaluation.run", False),
        ("experiments.reporting.page", "experiments.evaluation.run", True),
        ("experiments.runs", "callbacks.checkpoints", True),
        ("experiments.report", "experiments.reporting.page", True),
    ],
)
def test_directions(one, other, right):
    assert allowed(place(one), place(other)) is right


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import experiments.config", {"experiments.config"}),
        ("from lightning_modules.losses import x", {"lightning_modules.losses.x"}),
        ("def f():\n    from callbacks import panels", {"callbacks.panels"}),
        ("from ..callbacks import panels", {"callbacks.panels"}),
        ("from . import index", {"datamodules.index"}),
        ("import importlib\nimportlib.import_module('experiments.runs')", {"experiments.runs"}),
        ("import torch\nname = 'experiments'", set()),
    ],
)
def test_imports_are_found(tmp_path, code, names):
    path = tmp_path / "datamodules" / "new.py"
    path.parent.mkdir()
    path.write_text(code)
    assert imported(path, tmp_path) == names


def test_every_room_says_what_it_is_for():
    bare = [
        str(path.relative_to(HOUSE))
        for path in product()
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert bare == []


@pytest.mark.parametrize("room", LINES)
def test_a_room_keeps_its_size(room):
    inner = [HOUSE / other for other in LINES if other.startswith(f"{room}/")]
    paths = [path for path in files_of(room) if not {*path.parents} & {*inner}]
    assert sum(map(lines_of, paths)) <= LINES[room], "the best change removes lines"


def test_the_house_keeps_its_size():
    assert sum(map(lines_of, product())) <= PRODUCT
    assert len(product()) <= FILES
    assert sum(map(lines_of, files_of("tests"))) <= TESTS


def test_no_file_is_long():
    limits = dict.fromkeys((*product(), HOUSE / "Makefile"), FILE)
    limits |= dict.fromkeys(files_of("tests"), TEST_FILE)
    long = {path: lines_of(path) for path, limit in limits.items() if lines_of(path) > limit}
    assert long == {}


def test_no_function_is_long_or_takes_many_arguments():
    wrong = []
    for path in product():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([name for name in arguments if name.arg not in ("self", "cls")])
                if (node.end_lineno or 0) - node.lineno + 1 > FUNCTION or count > PARAMETERS:
                    wrong.append(f"{path.relative_to(HOUSE)}:{node.lineno} {node.name}")
    assert wrong == []


def test_docs_are_short():
    pages = sorted((HOUSE / "docs").glob("*.md"))
    words = [len(path.read_text().split()) for path in (HOUSE / "README.md", *pages)]
    assert words[0] <= README
    assert len(pages) <= PAGES
    assert sum(words) <= WORDS


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
