"""A folder of radiographs to draw lesions on, that CVAT, Label Studio and LabelMe open as it is.

``images/`` holds upright 8-bit grey PNGs of the original size, so that whatever is drawn on them is
in the frame that lesion masks are in; they carry no metadata. Texts come from ``texts/``.
"""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import pandas as pd
from tqdm import tqdm

from callbacks.panels import contours, encode
from datamodules.decode import decode
from datamodules.files import whole_folder
from datamodules.index import DataError
from experiments.annotation.checks import crossing
from experiments.annotation.matching import bare
from experiments.config import Config
from experiments.runs import file_hash

FILES = ["README.txt", "labels.txt", "cvat_labels.json", "label_studio.json"]
FILES += ["label_studio_config.xml"]
COLUMNS = ["image", "body_part", "split", "reason", "probability_abnormal"]
# Corners of outlines are moved by a pixel at most, a thousandth of the longer side on large films:
# few points to drag.
TOLERANCE = 1e-3
# Specks of fewer pixels than this share of the image are no outline that anybody would correct.
SPECK = 5e-4
Polygon = list[tuple[float, float]]


def printable(text: str) -> str:
    """``text`` without what would move the cursor or cannot be encoded; it comes from files."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def percent(share: float) -> str:
    """A share of the image in per cent, without the sign."""
    return f"{share * 100:.{2 if share < 0.01 else 1}f}"


TEXTS = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "texts"),
    autoescape=jinja2.select_autoescape(["xml.j2"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEXTS.filters |= {"printable": printable, "percent": percent, "number": "{:,}".format}


def fill(name: str, **values: Any) -> str:
    """The text of the template ``name``, without a line break at its end."""
    return TEXTS.get_template(f"{name}.j2").render(values).rstrip("\n")


def index_words(config: Config) -> list[str]:
    """The settings, beside name and root, that say which images there are and in which split."""
    given, usual = vars(config.data), vars(type(config.data)())
    keys = ("table", "patients", "seed", "count", "split", "limit", "unreadable")
    return [f"data.{key}={given[key]}" for key in keys if given[key] != usual[key]]


def write_package(
    folder: Path, root: Path, chosen: pd.DataFrame, maker: str, words: Sequence[str]
) -> None:
    """Write the package, whole or not at all; one image is held at a time.

    ``chosen`` has the images in the order in which they are worth a mask: ``COLUMNS``, and
    ``outlines``, what ``maker`` (such as "stage1 pcam") drew on each; without a maker no file holds
    any. ``words`` are the ``data.*`` of the choice but the root, for the command in README.txt.
    """
    listed = chosen[COLUMNS].assign(outlines=chosen["outlines"].map(len))
    listed.insert(0, "name", flat_names(chosen["image"]))
    listed.insert(0, "order", range(1, len(chosen) + 1))
    pictures = []
    with whole_folder(folder) as draft:
        (draft / "images").mkdir()
        rows = listed.assign(outlines=chosen["outlines"]).to_dict("records")
        for row in tqdm(rows, desc="writing images", leave=False, disable=None):
            pixels, file = decode(root / row["image"]), draft / "images" / row["name"]
            file.write_bytes(encode(pixels))
            pictures.append({**row, "height": pixels.shape[0], "width": pixels.shape[1]})
            if maker:
                text = package_text("labelme.json", picture=pictures[-1], maker=maker)
                file.with_suffix(".json").write_text(text, encoding="utf-8")
        for name in (*FILES, "cvat.xml") if maker else FILES:
            text = package_text(name, pictures=pictures, maker=maker, words=shlex.join(words))
            (draft / name).write_text(text, encoding="utf-8")
        listed[["name", "image"]].to_csv(draft / "mapping.csv", index=False)
        listed["sha256"] = [file_hash(root / image) for image in listed["image"]]
        listed.to_csv(draft / "selected.csv", index=False, float_format="%.4f")


def check_new(folder: Path) -> None:
    """Raise a DataError if ``folder`` exists: somebody may have drawn in it."""
    if folder.exists() or folder.is_symlink():
        raise DataError(f"--out {folder} already exists. Fix: remove it, or choose another --out")


def package_text(name: str, **values: Any) -> str:
    """The text of a file of the package, from its template."""
    text = fill(name, label="lesion", colour="#e41a1c", **values) + "\n"
    return json.dumps(json.loads(text), indent=2) + "\n" if name.endswith(".json") else text


def flat_names(images: Iterable[str]) -> list[str]:
    """A PNG's name for each path, all unlike on any disk: ``a/b 1.jpg`` becomes ``a__b-1.png``."""
    names: dict[str, str] = {}  # by lower case: some disks ignore case
    for image in images:
        flat = bare(image).replace("/", "__")
        # What else a name may hold, tools write in ways of their own.
        stem = re.sub(r"[^A-Za-z0-9._-]", "-", flat).lstrip(".-") or "image"
        name, number = stem, 1
        while name.lower() in names:
            number += 1
            name = f"{stem}-{number}"
        names[name.lower()] = f"{name}.png"
    return [*names.values()]


def outline(shown: np.ndarray, threshold: float) -> list[Polygon]:
    """Outline where a map ``(H, W)`` is above 0 and at least ``threshold``, largest area first.

    Holes are filled, specks left out. Points are centres of pixels: the polygon, filled with its
    outline, marks the pixels that it came from, up to the tolerance. None crosses itself.
    """
    tolerance, polygons = max(1.0, TOLERANCE * max(shown.shape)), []
    for contour in contours((shown >= threshold) & (shown > 0), cv2.RETR_EXTERNAL):
        if cv2.contourArea(contour) >= max(1.0, SPECK * shown.size):
            simple = cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0]
            if len(simple) < 3 or crossing(simple.tolist()) is not None:
                simple = cv2.convexHull(contour)[:, 0]
            polygons.append(simple)
    polygons.sort(key=cv2.contourArea, reverse=True)
    return [[(x + 0.5, y + 0.5) for x, y in polygon.tolist()] for polygon in polygons]
