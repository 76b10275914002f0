"""How every command here begins and ends: refused requests, missing packages, Ctrl-C."""

from __future__ import annotations

import argparse
import functools
import logging
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

OURS = ("callbacks", "datamodules", "experiments", "lightning_modules")
P = ParamSpec("P")
# Exit statuses of a shell: 128 + the signal's number.
BY_CTRL_C, BY_USR1, BY_SIGTERM = 130, 138, 143


def build_parser(
    command: str, description: str, places: str = "RUN_DIR"
) -> argparse.ArgumentParser:
    """A parser whose positional words are ``places`` and ``key=value``; see :func:`parse`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{command}", description=description
    )
    parser.add_argument("words", nargs="*", metavar=f"{places} | key=value")
    return parser


def parse(
    parser: argparse.ArgumentParser, words: list[str] | None
) -> tuple[argparse.Namespace, list[str], list[str]]:
    """The options, the places (runs, files) and the settings (``key=value``) of a command line.

    A word is a setting by its form alone, whatever files there are: write ``./a=b`` for a folder.
    """
    options = parser.parse_intermixed_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    settings = [word for word in options.words if re.match(r"[A-Za-z_][\w.]*=", word)]
    return options, [word for word in options.words if word not in settings], settings


def run(
    main: Callable[[], int],
    *,
    undone_by_sigterm: bool = False,
    by_ctrl_c: str = "stopped; nothing is lost, the same command goes on",
) -> int:
    """Run a command and return its exit status; Ctrl-C and missing packages end it with a line.

    With ``undone_by_sigterm`` so does SIGTERM, and what is half written is removed. Not for
    training, which hears SIGTERM itself.
    """
    if undone_by_sigterm:
        signal.signal(signal.SIGTERM, _end)
    try:
        return main()
    except KeyboardInterrupt:
        print(f"\n{by_ctrl_c}", file=sys.stderr)
        return BY_CTRL_C
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in OURS:
            raise
        print(f"error: {error}; {install()}", file=sys.stderr)
        return 2


def answered(main: Callable[P, int]) -> Callable[P, int]:
    """Let a command that cannot be carried out say why, in a line, and return status 2.

    All but the project's own errors, a loss that is no number any more and what the system refuses
    is a fault and keeps its traceback.
    """

    @functools.wraps(main)
    def answer(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (ValueError, FloatingPointError) as error:
            kind = type(error)  # ConfigError, DataError, RunError, not a ValueError of a library
            if isinstance(error, ValueError) and kind.__module__.partition(".")[0] not in OURS:
                raise
            print(f"error: {error}", file=sys.stderr)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2

    return answer


def _end(number: int, _: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one would stop the removing
    print("\nSIGTERM: stopped, nothing is left half written", file=sys.stderr)
    sys.exit(BY_SIGTERM)


def install() -> str:
    """What to do in this environment when a package is missing."""
    return f"install what is missing: make setup PYTHON={sys.executable}, or let make use its .venv"
