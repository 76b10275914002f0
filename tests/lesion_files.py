"""A small tree like MURA's, annotation files of it as tools write them, and the import command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from experiments import import_lesions
from tests.archives import mura_tree

HEIGHT, WIDTH = 30, 40
# A box from (10, 5) to (19, 12), both drawn: 10 x 8 pixels.
BOX, PIXELS = [10, 5, 19, 5, 19, 12, 10, 12], 80
CORNERS = [[10, 5], [19, 5], [19, 12], [10, 12]]


def image(patient: int, number: int = 1, split: str = "train") -> str:
    """Path of an image below the tree's root."""
    label = "negative" if patient % 2 else "positive"
    return f"{split}/XR_HAND/patient{patient:05d}/study1_{label}/image{number}.png"


ONE, OTHER = image(2), image(4)


def build(parent: Path) -> Path:
    """Write the tree: even patients are abnormal; patient 2 has three images, the others one."""
    labels, studies = ("positive", "negative"), {}
    for split, patients in {"train": range(1, 31), "valid": range(101, 109)}.items():
        studies |= {(split, "HAND", n, 1, labels[n % 2]): 3 if n == 2 else 1 for n in patients}
    return mura_tree(parent, studies, size=(WIDTH, HEIGHT))


def save(path: Path, seed: int = 0, orientation: int = 1) -> None:
    """Write a radiograph of noise; with an EXIF orientation its pixels are as if not turned."""
    shape = (WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def put(folder: Path, contents: dict[str, object]) -> Path:
    """Write text, JSON, bytes or pictures by the names of their files."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, np.ndarray):
            content = Image.fromarray(content)
        if isinstance(content, Image.Image):
            content.save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


class Importing:
    """The import command on the tree: what it is given, what it writes and prints."""

    def __init__(self, folder: Path, capsys) -> None:
        self.root, self.out, self.source = build(folder), folder / "lesions", folder / "source"
        self.capsys = capsys

    def put(self, files: dict[str, object]) -> Path:
        """Write source files; return the only one, or their folder."""
        put(self.source, files)
        return self.source if len(files) > 1 else self.source / next(iter(files))

    def run(self, source: object, *words: object, out: Path | None = None) -> int:
        """Import a path, files by their names, or the content of one file; the exit status."""
        if not isinstance(source, Path):
            is_files = isinstance(source, dict) and source and all("." in name for name in source)
            suffix = "xml" if isinstance(source, str) else "json"
            source = self.put(source if is_files else {f"a.{suffix}": source})
        given = [str(word) for word in (source, *words, "--out", out or self.out)]
        return import_lesions.main([*given, "data.name=mura", f"data.root={self.root}"])

    def printed(self) -> str:
        out, err = self.capsys.readouterr()
        return out + err

    def table(self, name: str = "lesions.csv") -> pd.DataFrame:
        return pd.read_csv(self.out / name)

    def mask(self, name: str = ONE) -> np.ndarray:
        return np.array(Image.open(self.out / "masks" / f"{name}.png"))

    def pixels(self) -> dict[str, int]:
        """Marked pixels of each image that was written."""
        images = self.table()["image"].tolist() if self.out.is_dir() else []
        return {name: int((self.mask(name) > 0).sum()) for name in images}


def box(left: int = 10, top: int = 5, right: int = 19, bottom: int = 12) -> np.ndarray:
    """A mask of the tree's images, both ends marked."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : bottom + 1, left : right + 1] = 255
    return mask


def coco(*annotations: dict, categories=({"id": 1, "name": "fracture"},), **about) -> dict:
    """COCO of one image."""
    images = [{"id": 1, "file_name": ONE, "height": HEIGHT, "width": WIDTH, **about}]
    whole = [{"id": 1, "image_id": 1, "category_id": 1, **entry} for entry in annotations]
    return {"images": images, "annotations": whole, "categories": categories}


def coco_of(*entries: tuple[str, list], size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict:
    """COCO of several images: the name of each and its polygons, an annotation each."""
    marks = [(n, points) for n, (_, polygons) in enumerate(entries) for points in polygons]
    about = ({"id": n, "image_id": of, "segmentation": [p]} for n, (of, p) in enumerate(marks, 1))
    content = coco(*about)
    of_size = {"height": size[0], "width": size[1]}
    names = [name for name, _ in entries]
    content["images"] = [{"id": n, "file_name": name, **of_size} for n, name in enumerate(names)]
    return content


def labelme(*shapes: dict, path: str = ONE) -> dict:
    return {"shapes": shapes, "imagePath": path, "imageHeight": HEIGHT, "imageWidth": WIDTH}


def shape(label: str = "fracture", points=CORNERS, kind: str = "polygon") -> dict:
    return {"label": label, "points": points, "shape_type": kind}


def studio(data: dict, *results: dict, **task) -> list[dict]:
    """A task of Label Studio with one annotation."""
    return [{"id": 1, "data": data, "annotations": [{"id": 5, "result": results}], **task}]


def region(labels=("fracture",), at=(25, 20, 25, 20), to_name="image", **more) -> dict:
    """A rectangle of Label Studio at x, y, width and height in percent."""
    value = dict(zip(("x", "y", "width", "height"), at, strict=True), rectanglelabels=[*labels])
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    return {"type": "rectanglelabels", "to_name": to_name, "value": value, **size, **more}


def cvat(*shapes: str, labels: str = "", name: str = ONE) -> str:
    meta = f"<meta><job><labels><label><name>{labels}</name></label></labels></job></meta>"
    inner = f'<image name="{name}" width="{WIDTH}" height="{HEIGHT}">{"".join(shapes)}</image>'
    return f"<annotations>{meta if labels else ''}{inner}</annotations>"


def drawn(label: str = "lesion", points: str = "10,5;19,5;19,12;10,12") -> str:
    return f'<polygon label="{label}" points="{points}" z_order="0"/>'


def voc(inner: str = "", name: str = ONE, more: str = "") -> str:
    bounds = "<xmin>10</xmin><ymin>5</ymin><xmax>19</xmax><ymax>12</ymax>"
    thing = f"<object><name>fracture</name><bndbox>{bounds}</bndbox>{inner}</object>"
    return f"<annotation><filename>{name}</filename>{more}{thing}</annotation>"
