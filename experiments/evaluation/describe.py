"""An evaluation on the console, in 100 columns; texts for people come from templates."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from datamodules.sources import SOURCES
from experiments.evaluation.figures import groups
from experiments.evaluation.names import MAP_FIGURES, figure_name, phrase
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import Difference, Estimate

CLASS_COLUMNS = ("auroc", "accuracy", "kappa", "sensitivity", "specificity")
MAP_COLUMNS = ("hit", "pixel_ap", "iou", "shown_lesion", "shown_normal")
GROUP_COLUMNS = ("hit", "iou", "pixel_ap")  # of a folder of maps, of each group of lesions


def describe(evaluation: Evaluation) -> str:
    """All that matters of an evaluation, lines of text."""
    images = evaluation.table

    def cell(key: str) -> str:
        return show(evaluation.estimates.get(key), figure_name(key).digits)

    def figures_of(method: str) -> str:
        rows = [[phrase(name), cell(f"{method}/{name}")] for name in MAP_FIGURES]
        by_group = [["", "images", *_headings(GROUP_COLUMNS)]]
        for group, places in groups(images).items():
            cells = [cell(f"{method}/{name}/{group}") for name in GROUP_COLUMNS]
            by_group.append([group, str(len(places)), *cells])
        return "\n".join([*table(rows, 4), *table(by_group, 4)])

    classes = [["", *_headings(CLASS_COLUMNS)]]
    for tuned in ("", "tuned/"):
        for head, kind in (("images", ""), ("studies", "study_")):
            cells = [cell(f"{tuned}{kind}{name}") for name in CLASS_COLUMNS]
            classes.append([head, "" if tuned else cells[0], *cells[1:]])
    maps = [[name, *(cell(f"{name}/{key}") for key in MAP_COLUMNS)] for name in evaluation.maps]
    source = SOURCES[evaluation.about["data"]]
    parts = [[part, cell(f"study_kappa/{part}")] for part in sorted({*images["body_part"]})]
    if source.published:
        parts = [["", "this run"], ["overall", cell("study_kappa")], *parts]
    for name, kappas in source.published.items():
        parts[0].append(name)
        for row in parts[1:]:
            row.append(f"{kappas[row[0]]:.2f}" if row[0] in kappas else "")
    text = render(
        "console.txt.j2",
        run=evaluation,
        about=evaluation.about,
        images=images,
        masked=images[images["lesion_area"].notna()],
        source=source,
        people=source.patients_in(evaluation.config.data),
        classes=table(classes),
        parts=table(parts, 2 if source.published else 4),
        maps=table([["map", *_headings(MAP_COLUMNS)], *maps]),
        cell=cell,
        figures_of=figures_of,
    )
    undefined = "maps" not in evaluation.about and " - " in text.replace("\n", " \n")
    return text + "  -        not defined on these images (docs/evaluation.md)\n" * undefined


def render(template: str, folder: Path = Path(__file__).parent, **content: Any) -> str:
    """Fill in a template of a folder; what is inserted into a page is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(content)


def show(result: Estimate | Difference | None, places: int = 2, between: str = "-") -> str:
    """A figure with its interval; one that is not defined is a dash.

    Example:
        >>> show(Estimate(0.4312, 0.36, 0.504, 0.0)), show(Estimate(*[float("nan")] * 3, 1.0))
        ('0.43 (0.36-0.50)', '-')
    """
    if result is None or result.value != result.value:
        return "-"
    value, low, high = (f"{number:.{places}f}" for number in result[:3])
    return value if result.low != result.low else f"{value} ({low}{between}{high})"


def table(rows: Sequence[Sequence[str]], indent: int = 2) -> list[str]:
    """Lines of a table whose columns fit what they hold."""
    fit = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [" " * indent + " ".join(map(str.ljust, row, fit)).rstrip() for row in rows]


def _headings(names: Iterable[str]) -> list[str]:
    # On the page, which has room for a line on each, IoU needs no more words.
    return ["IoU, val's cut" if name == "iou" else figure_name(name).heading for name in names]
