"""One drawing in every annotation format: a square on ``hand/a.png`` of 20 x 30 pixels."""

from __future__ import annotations

import base64
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from tests.dicoms import radiograph

HEIGHT, WIDTH = 20, 30
CORNERS = [[6, 4], [10, 4], [10, 8], [6, 8]]


def square() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:9, 6:11] = 255
    return mask


def png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def runs(mask: np.ndarray) -> list[int]:
    """Runs along the rows, background first."""
    flat = np.concatenate([[0], (mask.ravel() != 0).astype(int), [-1]])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff([0, *edges]).tolist()


def brush(mask: np.ndarray) -> list[int]:
    """Label Studio's brush strokes, written bit by bit as rle-pack describes them."""
    words = np.repeat((mask.ravel() != 0).astype(int) * 255, 4)
    bits = f"{len(words):032b}{7:05b}{2:04b}{7:04b}{8:04b}{15:04b}"
    for part in np.split(words, np.flatnonzero(np.diff(words)) + 1):
        for start in range(0, len(part) - 1, 255):  # repeated: the second length, of 8 bits
            bits += f"1{1:02b}{len(part[start : start + 255]) - 1:08b}{part[0]:08b}"
        if len(part) % 255 == 1:  # one word by itself: the first length, of 3 bits
            bits += f"0{0:02b}{0:03b}{part[0]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


def percent(points):
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in points]


SQUARE = [[6, 4, 10, 4, 10, 8, 6, 8]]
RUNS = {"size": [HEIGHT, WIDTH], "counts": runs(square().T)}
AREAS = [{"segmentation": SQUARE}, {"segmentation": RUNS}, {"bbox": [6, 4, 4, 4]}]
COCO = {
    "images": [{"id": 1, "file_name": "hand/a.png", "height": HEIGHT, "width": WIDTH}],
    "categories": [{"id": 0, "name": "fracture"}],
    "annotations": [{"id": n, "image_id": 1, "category_id": 0, **e} for n, e in enumerate(AREAS)],
}

CVAT = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>5</id><name>bones</name><size>1</size><mode>annotation</mode></task></meta>
  <image id="0" name="hand/a.png" width="{WIDTH}" height="{HEIGHT}">
    <polygon label="fracture" source="manual" occluded="0"
      points="6.00,4.00;10.00,4.00;10.00,8.00;6.00,8.00" z_order="0"></polygon>
    <mask label="fracture" source="manual" occluded="0" rle="8, 5, 2, 5, 2, 5, 2, 5, 2, 5, 1"
      left="5" top="3" width="7" height="6" z_order="0"></mask>
    <box label="fracture" xtl="6.00" ytl="4.00" xbr="10.00" ybr="8.00" rotation="0.00"></box>
    <ellipse label="fracture" cx="8.00" cy="6.00" rx="1.50" ry="1.00" rotation="90.00"></ellipse>
  </image>
</annotations>
"""

MASK = base64.b64encode(png(np.ones((5, 5), bool))).decode()
DRAWN = [
    {"points": CORNERS, "shape_type": "polygon", "mask": None},
    {"points": [[6.0, 4.0], [10.0, 8.0]], "shape_type": "mask", "mask": MASK},
    {"points": [[10, 8], [6, 4]], "shape_type": "rectangle"},
    {"points": [[8, 6], [9, 6]], "shape_type": "circle"},
]
LABELME = {
    "version": "5.5.0",
    "shapes": [{"label": "fracture", **shape} for shape in DRAWN],
    **{"imagePath": "hand\\a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH},
}
SIZE = {"original_width": WIDTH, "original_height": HEIGHT}


def result(kind, identity="r1", **value):
    """A region as Label Studio exports it."""
    names = {"from_name": "tag", "to_name": "image", "origin": "manual", "image_rotation": 0}
    value = {**value, f"{kind}labels": ["fracture"]}
    return {"id": identity, "type": f"{kind}labels", **names, **SIZE, "value": value}


RECTANGLE = dict(zip(("x", "y", "width", "height"), (20, 20, 400 / WIDTH, 20), strict=True))
RESULTS = [
    result("polygon", "r1", points=percent(CORNERS), closed=True),
    result("brush", "r2", format="rle", rle=brush(square())),
    result("rectangle", "r3", rotation=0, **RECTANGLE),
    result("ellipse", "r4", x=800 / WIDTH, y=30, radiusX=100 / WIDTH, radiusY=5, rotation=0),
]
ANNOTATIONS = [
    {"id": 11, "completed_by": 7, "was_cancelled": False, "result": RESULTS},
    {"id": 12, "completed_by": {"id": 9, "email": "a@somebody.org"}, "result": RESULTS[:1]},
    {"id": 13, "completed_by": 7, "was_cancelled": True, "result": RESULTS},
]
TASK = {"id": 1, "data": {"image": "/data/local-files/?d=hand/a.png"}}
LABEL_STUDIO = [{**TASK, "annotations": ANNOTATIONS, "predictions": [{"result": RESULTS}]}]
TAGS = [{**SIZE, **each["value"]} for each in RESULTS]
LABEL_STUDIO_MIN = [
    {"id": 1, "annotator": 7, "image": "https://example.org/hand/a.png?sign=1", "tag": TAGS}
]

POLYGON = {"name": "polygon", "all_points_x": [6, 10, 10, 6], "all_points_y": [4, 4, 8, 8]}
SHAPES = [
    POLYGON,
    {"name": "rect", "x": 6, "y": 4, "width": 4, "height": 4},
    {"name": "circle", "cx": 8, "cy": 6, "r": 1},
    {"name": "ellipse", "cx": 8, "cy": 6, "rx": 1.5, "ry": 1, "theta": 1.5708},
    {"name": "polyline", "all_points_x": [6, 10, 10, 6], "all_points_y": [4, 4, 8, 4]},
]
REGIONS = [{"shape_attributes": one, "region_attributes": {"label": "fracture"}} for one in SHAPES]
VIA = {"hand/a.png123": {"filename": "hand/a.png", "size": 123, "regions": REGIONS}}
VIA_PROJECT = {"_via_settings": {}, "_via_attributes": {}, "_via_img_metadata": VIA}
ROWS = pd.DataFrame(REGIONS).map(json.dumps).add_prefix("region_")
ROWS = ROWS.rename(columns={"region_region_attributes": "region_attributes"})
ROWS = ROWS.assign(filename="hand/a.png", file_size=123, region_count=len(REGIONS))
VIA_CSV = ROWS.to_csv(index=False)

VOC = f"""<annotation>
  <folder>hand</folder><filename>hand/a.png</filename>
  <size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>1</depth></size>
  <object>
    <name>fracture</name><pose>Unspecified</pose><truncated>0</truncated>
    <bndbox><xmin>6</xmin><ymin>4</ymin><xmax>10</xmax><ymax>8</ymax></bndbox>
  </object>
</annotation>
"""
YOLO = f"0 {8 / WIDTH} {6 / HEIGHT} {4 / WIDTH} {4 / HEIGHT}\n" + " ".join(
    ["0", *(str(value / side) for x, y in CORNERS for value, side in ((x, WIDTH), (y, HEIGHT)))]
)


def segmentation(path: Path, mask: np.ndarray, kind: str = "BINARY") -> Path:
    """Write a DICOM SEG of a plain radiograph whose SOP Instance UID is 1.2.3.4."""
    import highdicom
    from pydicom.sr.codedict import codes

    source = radiograph(np.zeros(mask.shape[1:3], np.uint8), SOPInstanceUID="1.2.3.4")
    organ, names = codes.SCT.Organ, ("fracture", "metal")[: mask.shape[-1]]
    segments = [
        highdicom.seg.SegmentDescription(number, name, organ, organ, "MANUAL")
        for number, name in enumerate(names, 1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        highdicom.seg.Segmentation(
            [source], mask, kind, segments, "1.2.3.2", 2, "1.2.3.5", 1, "none", "none", "1", "0"
        ).save_as(path)
    return path


FILES = {
    "coco": ("coco.json", json.dumps(COCO)),
    "cvat": ("annotations.xml", CVAT),
    "labelme": ("a.json", json.dumps(LABELME)),
    "label-studio": ("project.json", json.dumps(LABEL_STUDIO)),
    "label-studio minimal": ("project.json", json.dumps(LABEL_STUDIO_MIN)),
    "via": ("via.json", json.dumps(VIA)),
    "via project": ("project.json", json.dumps(VIA_PROJECT)),
    "via csv": ("via.csv", VIA_CSV),
    "voc": ("a.xml", VOC),
    "yolo": ("hand/a.txt", YOLO),
}
