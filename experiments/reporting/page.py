"""What a report's page is about: the groups, maps and pictures that its templates show."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

import pandas as pd

from datamodules.files import write_text
from datamodules.sources import SOURCES
from experiments.build import build_data, open_run, resolve
from experiments.config import HERE, Config, flatten, load_config, show, to_plain
from experiments.evaluation import compare, figures, names
from experiments.evaluation.compare import Group, group
from experiments.evaluation.describe import render
from experiments.evaluation.statistics import Estimate
from experiments.evaluation.store import judged
from experiments.reporting import plots
from experiments.reporting.cases import Column, draw, pick
from experiments.runs import RunError, find_checkpoint

# In the head of every page: a file without it is somebody else's and is not overwritten.
MARK = '<meta name="generator" content="decision-basis experiments.report"'
PACKAGES = (
    *("decision-basis", "torch", "torchvision", "pytorch-lightning", "torchmetrics"),
    *("albumentations", "opencv-python-headless", "numpy", "scipy", "pandas", "matplotlib"),
)


def page_of(runs: Sequence[Path], out: Path | None) -> Path:
    """Where the page of these runs goes: nobody's file is overwritten."""
    beside = find_checkpoint(runs[0])[0] / ".." / ".." / "report"
    page = (out or Path(os.path.normpath(beside))) / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    if page.exists() and MARK.encode() not in page.read_bytes()[:4096]:
        raise RunError(f"{page} was not written by this command. Fix: name another --out.")
    return page


def write_page(page: Path, **content: Any) -> None:
    """Write what :func:`gather` returned, whole or not at all; all that is inserted is escaped."""
    write_text(page, render("page.html.j2", Path(__file__).parent, MARK=MARK, **content))


def gather(
    paths: Sequence[Path], split: str, settings: Sequence[str], images: bool
) -> dict[str, Any]:
    """What the page shows of runs on the same images; those that were not judged are judged now."""
    runs = judged(paths, split, settings, compare_data=images)
    groups = group(runs)
    opened = {
        run.target: open_run(run.folder / "checkpoints" / run.about["checkpoint"], settings)
        for run in runs
    }
    # It is about the last map of the last stage: to choose the best one by test would flatter it.
    best = next(one for one in groups if one.stage == groups[-1].stage)
    columns: list[Column] = []  # those of the paper's second figure
    for one in groups:
        for method in one.methods:
            if method != "cam" or all(column.method != "cam" for column in columns):
                name = f"{one.name[0].upper()}{one.name[1:]}, {names.method_name(method).heading}"
                columns.append(Column(name, one, opened[one.runs[0].target], method))
    reference = [column for column in columns if column.group is best][-1]
    rule, rows = pick(best.runs[0].table, reference.method)
    cases = rows.to_dict("records") if images else []
    several = len(groups) > 1 or any(len(run.maps) > 1 for run in runs)
    # The same for all runs on the same data, but not every run was judged beside them.
    beside = (one for one in (best, *groups) if {*names.TRIVIAL_METHODS} & {*one.runs[0].maps})
    methods = [f"{name}/" for one in groups for name in one.runs[0].maps]
    source = SOURCES[runs[0].config.data.name]
    return {
        "groups": groups,
        "opened": opened,
        "best": best,
        "columns": columns,
        "reference": reference,
        "trivial": next(beside, None),
        "map_figures": explained(names.MAP_FIGURES, groups, methods),
        "class_figures": explained(names.CLASS_FIGURES, groups, ("", "tuned/")),
        "differences": compare.compare_runs(runs).table if several else pd.DataFrame(),
        "images": images,
        "rule": rule,
        "cases": [{**case, "pictures": draw(case["path"], columns, reference)} for case in cases],
        "source": source,
        "people": source.patients_in(runs[0].config.data),
        "now": datetime.now(timezone.utc),
        "versions": versions(),
        # What the templates call.
        **{"figure": defined, "quote": shlex.quote, "train_command": train_command},
        **{"compare": compare, "figures": figures, "names": names, "plots": plots},
    }


def explained(
    table: Mapping[str, names.FigureName], groups: Sequence[Group], prefixes: Iterable[str]
) -> dict[str, names.FigureName]:
    """The figures with a meaning that any of the groups has."""
    starts = [(one, prefix) for one in groups for prefix in prefixes]
    meant = {key: name for key, name in table.items() if name.meaning}
    return {k: meant[k] for k in meant if any(defined(one, start + k) for one, start in starts)}


def defined(one: Group, key: str) -> Estimate | None:
    """A figure, where it is defined on these images."""
    figure = one.estimate(key)
    return None if figure is None or figure.value != figure.value else figure


def train_command(config: Config) -> str:
    """The command that trains this very run: of its stage or, where that is shorter, the recipe."""
    plain, commands = flatten(to_plain(config)), []
    data = [f"data.name={config.data.name}", f"data.root={config.data.root or '.'}"]
    # Weights, and whose, decide on other defaults; the seed names the run.
    keys = ("seed", "model.encoder", "model.weights")
    for start in [config.stage, "experiments/fractures.yaml"][: 1 + (config.stage == "stage3")]:
        file = str(HERE / Path(start).with_suffix(".yaml").name)
        usual = load_config(file, [*data, *(f"{key}={show(plain[key])}" for key in keys)])
        resolve(usual, build_data(usual))
        own = flatten(to_plain(load_config(file, data)))
        before = flatten(to_plain(usual)) | {key: own[key] for key in keys} | {"data.root": None}
        words = [f"{key}={show(plain[key])}" for key in plain if plain[key] != before.get(key)]
        words = ["python", "-m", "experiments.train", start, data[0], *words]
        commands.append(shlex.join(words))
    return min(commands, key=len)


def versions() -> dict[str, str]:
    """Of the project, Python, and the packages that figures and pictures depend on."""
    house = Path(__file__).resolve().parents[2]
    own = {"decision-basis": "from source", "Python": python_version()}
    if (house / ".git").exists() and shutil.which("git"):  # else an outer repository might answer
        git = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
        answer = subprocess.run(git, cwd=house, capture_output=True, text=True)
        own["commit"] = answer.stdout.strip()
    found = {name: [*metadata.distributions(name=name)] for name in PACKAGES}
    return own | {name: packages[0].version for name, packages in found.items() if packages}
