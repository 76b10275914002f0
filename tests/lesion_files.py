"""A small tree like MURA's, and annotation files of it as tools write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from experiments import import_lesions, select_lesions

HEIGHT, WIDTH = 30, 40
PATIENTS = {"train": range(1, 31), "valid": range(101, 109)}
# A box from (10, 5) to (19, 12), both drawn: 10 x 8 pixels.
BOX = [10, 5, 19, 5, 19, 12, 10, 12]


def build(parent: Path) -> Path:
    """Write the tree: even patients are abnormal; patient 2 has three images, the others one."""
    root = parent / "MURA-v1.1"
    for split, patients in PATIENTS.items():
        images, studies = [], []
        for patient in patients:
            label = "negative" if patient % 2 else "positive"
            study = f"{split}/XR_HAND/patient{patient:05d}/study1_{label}"
            (root / study).mkdir(parents=True)
            studies.append(f"MURA-v1.1/{study}/,{int(label == 'positive')}")
            for number in range(1, 4 if patient == 2 else 2):
                save(root / study / f"image{number}.png", seed=patient)
                images.append(f"MURA-v1.1/{study}/image{number}.png")
        (root / f"{split}_image_paths.csv").write_text("\n".join(images) + "\n")
        (root / f"{split}_labeled_studies.csv").write_text("\n".join(studies) + "\n")
    return root


def save(path: Path, seed: int = 0, orientation: int = 1) -> None:
    """Write a radiograph of noise; with an EXIF orientation its pixels are as if not turned."""
    shape = (WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def run_import(root: Path, out: Path, *words: object) -> int:
    """Run the command on the tree; its exit status."""
    words = [*map(str, words), "--out", str(out), "data.name=mura", f"data.root={root}"]
    if "--select" in words:
        return select_lesions.main([word.replace('--select', '--count') for word in words])
    return import_lesions.main(words)


def image(patient: int, number: int = 1, split: str = "train") -> str:
    """Path of an image below the tree's root."""
    label = "negative" if patient % 2 else "positive"
    return f"{split}/XR_HAND/patient{patient:05d}/study1_{label}/image{number}.png"


def write_coco(
    path: Path, *entries: tuple[str, list[list[float]]], size: tuple[int, int] = (HEIGHT, WIDTH)
) -> Path:
    """Write a COCO file: of each image its name and its polygons, an annotation each."""
    images, annotations = [], []
    for number, (name, polygons) in enumerate(entries):
        images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        for points in polygons:
            about = {"id": len(annotations) + 1, "image_id": number, "category_id": 1}
            annotations.append({**about, "segmentation": [points]})
    categories = [{"id": 1, "name": "fracture"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def write_label_studio(path: Path, name: str, *boxes: tuple[str, list[int]]) -> Path:
    """Write a Label Studio export: an image, and of each rater the polygon of a box x, y, w, h."""
    annotations = []
    for number, (rater, (x, y, width, height)) in enumerate(boxes):
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        points = [[a * 100 / WIDTH, b * 100 / HEIGHT] for a, b in corners]
        result = {
            "id": f"r{number}",
            "type": "polygonlabels",
            "original_width": WIDTH,
            "original_height": HEIGHT,
            "value": {"points": points, "closed": True, "polygonlabels": ["fracture"]},
        }
        annotations.append({"id": number, "completed_by": rater, "result": [result]})
    path.write_text(json.dumps([{"id": 1, "data": {"image": name}, "annotations": annotations}]))
    return path
