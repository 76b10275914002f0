"""Time the code beside what people would use instead: ``python -m experiments.bench --help``.

docs/performance.md says what the rows mean. Exit status: 0 done, 1 something could not be measured
(named), 2 the request cannot be carried out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from experiments.command import answered, run

FULL = ["data.image_size=320", "data.count=400"]
QUICK = ["data.image_size=64", "data.count=80", "data.batch_size=8"]
TURN = 0.2  # seconds at least: within it a GPU's steps queue up, as in training


@answered
def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    about = "Time the code beside what people would use instead."
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=about)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"over {FULL}")
    parser.add_argument("--rows", help="comma between; all by default")
    parser.add_argument("--rounds", type=int, help="turns of each timing (7; quick: 2)")
    parser.add_argument("--cpu", action="store_true", help="processor time of one thread")
    parser.add_argument("--quick", action="store_true", help="tiny data, few turns: not to quote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    arguments = parser.parse_intermixed_args(words)

    import pandas as pd
    import torch

    from datamodules.files import write_text
    from experiments.bench_rows import ROWS, Bench
    from experiments.config import ConfigError

    chosen = arguments.rows.split(",") if arguments.rows else list(ROWS)
    if unknown := [name for name in chosen if name not in ROWS]:
        raise ConfigError(f"--rows: expected some of {', '.join(ROWS)}, got {unknown[0]!r}")
    default, turn, base = (2, 0.0, QUICK) if arguments.quick else (7, TURN, FULL)
    rounds = default if arguments.rounds is None else arguments.rounds
    if rounds < 1:
        raise ConfigError(f"--rounds: expected at least 1, got {rounds}")
    bench = Bench([*base, *arguments.overrides], rounds, turn, arguments.cpu)
    print(", ".join(f"{key} {value}" for key, value in bench.machine.items() if value))
    rows = []
    for name in chosen:
        try:
            measured = ROWS[name](bench)
        except (ImportError, OSError, torch.OutOfMemoryError) as error:
            bench.missing.append(f"{name}: {error}")
            continue
        rows += measured
        table = pd.DataFrame(measured).dropna(axis="columns", how="all")
        print("\n" + table.to_string(index=False, float_format="%.3f"), flush=True)
    if arguments.json:
        write_text(arguments.json, json.dumps(bench.machine | {"rows": rows}, indent=2) + "\n")
    sys.stderr.writelines(f"not measured: {reason}\n" for reason in bench.missing)
    return int(bool(bench.missing))


if __name__ == "__main__":
    sys.exit(run(main, by_ctrl_c="stopped"))
