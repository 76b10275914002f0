"""How every command here begins and ends: missing packages, Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable

OURS = ("callbacks", "datamodules", "experiments", "lightning_modules")
BY_CTRL_C = 130  # exit status of a shell: 128 + the signal's number


def run(main: Callable[[], int]) -> int:
    """Run a command and return its exit status.

    Ctrl-C, at any moment, ends it with a line and not with a traceback; so does an environment
    without the packages, which ``main`` must import itself.
    """
    try:
        return main()
    except KeyboardInterrupt:
        print("\nstopped; nothing is lost, the same command goes on", file=sys.stderr)
        return BY_CTRL_C
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in OURS:
            raise
        print(f"error: {error}; {install()}", file=sys.stderr)
        return 2


def install() -> str:
    """What to do in this environment when a package is missing."""
    return f"install what is missing: make setup PYTHON={sys.executable}, or let make use its .venv"
