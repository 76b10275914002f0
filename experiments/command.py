"""How every command here begins and ends: missing packages, Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

OURS = ("callbacks", "datamodules", "experiments", "lightning_modules")
# Exit statuses of a shell: 128 + the signal's number.
BY_CTRL_C, BY_USR1, BY_SIGTERM = 130, 138, 143


def run(main: Callable[[], int], *, undone_by_sigterm: bool = False) -> int:
    """Run a command and return its exit status.

    Ctrl-C, at any moment, ends it with a line and not with a traceback; so does an environment
    without the packages, which ``main`` must import itself.

    Args:
        main: The command.
        undone_by_sigterm: SIGTERM ends it with its own status and removes what is half written,
            as Ctrl-C does. Not for training, which hears SIGTERM itself.
    """
    if undone_by_sigterm:
        signal.signal(signal.SIGTERM, _end)
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


def _end(number: int, _: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one would stop the removing
    print("\nSIGTERM: stopped, nothing is left half written", file=sys.stderr)
    sys.exit(BY_SIGTERM)


def install() -> str:
    """What to do in this environment when a package is missing."""
    return f"install what is missing: make setup PYTHON={sys.executable}, or let make use its .venv"
