"""Executables in place of programs, which write down what they are asked to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

CODE = """#!{python} -IS
import json, os, pathlib, shutil, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], dict(os.environ)]) + "\\n")
"""


def stand_in(path: Path, behaviour: str = "") -> Path:
    """Write the executable; ``behaviour``: Python that it runs afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CODE.format(python=sys.executable, log=f"{path}.calls") + behaviour)
    path.chmod(0o755)
    return path


def calls_of(path: Path) -> list[tuple[list[str], dict[str, str]]]:
    """The words and the environment of each call, in order."""
    log = Path(f"{path}.calls")
    lines = log.read_text().splitlines() if log.exists() else []
    return [tuple(json.loads(line)) for line in lines]
