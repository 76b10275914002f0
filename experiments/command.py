"""How every command here begins and ends: its words, refused requests, missing packages, Ctrl-C."""

import argparse
import errno
import functools
import logging
import re
import sys
from collections.abc import Callable
from typing import ParamSpec

OURS = ("callbacks", "datamodules", "experiments", "lightning_modules")
P = ParamSpec("P")
# Exit statuses of a shell: 128 + the signal's number.
BY_CTRL_C, BY_USR1, BY_SIGTERM = 130, 138, 143


def build_parser(
    command: str, description: str, places: str | None = "RUN_DIR"
) -> argparse.ArgumentParser:
    """A parser whose positional words are ``places`` and ``key=value``; see :func:`parse`."""
    prog = f"python -m experiments.{command}"
    parser = argparse.ArgumentParser(prog=prog, description=description)
    if places:
        parser.add_argument("words", nargs="*", metavar=f"{places} | key=value")
    return parser


def parse(
    parser: argparse.ArgumentParser, words: list[str] | None
) -> tuple[argparse.Namespace, list[str], list[str]]:
    """The options, the places (runs, files) and the settings (``key=value``) of a command line.

    A word's form alone makes it a setting, whatever files there are: ``./a=b`` is a folder.
    """
    options = parser.parse_intermixed_args(words)
    settings = [word for word in options.words if re.match(r"[A-Za-z_][\w.]*=", word)]
    return options, [word for word in options.words if word not in settings], settings


def answered(main: Callable[P, int]) -> Callable[P, int]:
    """Let a command that cannot be carried out say why, in a line, and return its exit status.

    All but the project's own errors, a loss that is no number any more, a missing package and what
    the system refuses is a fault and keeps its traceback.
    """

    @functools.wraps(main)
    def answer(*args: P.args, **kwargs: P.kwargs) -> int:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            print("\nstopped; what was written stays: run the same command again", file=sys.stderr)
            return BY_CTRL_C
        except (ValueError, FloatingPointError) as error:
            kind = type(error)  # ours are answered, a library's is a fault
            if isinstance(error, ValueError) and kind.__module__.partition(".")[0] not in OURS:
                raise
            reason = str(error)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in OURS:
                raise
            reason = f"{error}. Fix: make setup PYTHON={sys.executable}, or let make use its .venv."
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            reason = f"{where}{error.strerror or error}"
            if error.errno == errno.ENOSPC and not where:
                reason += ". Fix: make room where results are written, and in TMPDIR"
        print(f"error: {reason}", file=sys.stderr)
        return 2

    return answer
