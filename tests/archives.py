"""MURA's and FracAtlas's own trees, made up for tests."""

import json

import cv2
import numpy as np
import pandas as pd
from PIL import Image

HEIGHT, WIDTH = 96, 80
COLUMNS = "hand leg hip shoulder mixed hardware multiscan frontal lateral oblique"


def picture(number, height=HEIGHT, width=WIDTH):
    """Smooth structure that only ``number`` decides: unlike any other number's."""
    noise = np.random.default_rng(number).normal(size=(12, 10)).astype(np.float32)
    smooth = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(120 + 60 * smooth, 0, 255).astype(np.uint8)


def mura_tree(parent, studies, archive="MURA-v1.1", size=(12, 10)):
    """Write MURA as unpacked, so many images of each (split, part, patient, study, label)."""
    root = parent / archive
    for study, count in studies.items():
        folder = "{}/XR_{}/patient{:05d}/study{}_{}".format(*study)
        (root / folder).mkdir(parents=True)
        names = [f"{folder}/image{number}.png" for number in range(1, count + 1)]
        for name in names:
            Image.new("L", size).save(root / name)
        label = f"{folder}/,{int(folder.endswith('positive'))}"
        for kind, lines in (("image_paths", names), ("labeled_studies", [label])):
            with (root / f"{folder[:5]}_{kind}.csv").open("a") as csv:
                csv.writelines(f"{archive}/{line}\n" for line in lines)
    return root


class Archive:
    """Writes images, rows and outlines into FracAtlas's own tree."""

    def __init__(self, root):
        self.root = root
        self.rows, categories = [], [{"id": 0, "name": "fractured"}]
        self.coco = {"images": [], "annotations": [], "categories": categories}
        for folder in ("Fractured", "Non_fractured"):
            (root / "images" / folder).mkdir(parents=True)
        (root / "Annotations" / "COCO JSON").mkdir(parents=True)

    def add(self, number, fractured, /, pixels=None, orientation=1, **fields):
        name = f"IMG{number:07d}.jpg"
        values = dict.fromkeys(COLUMNS.split(), 0)
        values |= {"image_id": name, "hand": 1, "fractured": fractured, "fracture_count": fractured}
        self.rows.append(values | fields)
        exif = Image.Exif()
        exif[0x0112] = orientation
        folder = "Fractured" if fractured else "Non_fractured"
        pixels = picture(number) if pixels is None else pixels
        Image.fromarray(pixels).save(self.root / "images" / folder / name, quality=95, exif=exif)
        if fractured:
            height, width = pixels.shape if orientation == 1 else pixels.shape[::-1]
            size = {"height": height, "width": width}
            self.coco["images"].append({"id": number, "file_name": name, **size})
            about = {"id": number, "image_id": number, "category_id": 0}
            outline = [[10, 20, 19, 20, 19, 29, 10, 29]]
            self.coco["annotations"].append({**about, "segmentation": outline})

    def write(self):
        pd.DataFrame(self.rows).to_csv(self.root / "dataset.csv", index=False)
        path = self.root / "Annotations" / "COCO JSON" / "COCO_fracture_masks.json"
        path.write_text(json.dumps(self.coco))
        return self.root
