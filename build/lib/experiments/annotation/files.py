"""What CVAT, Label Studio and LabelMe read: outlines to begin with, and the one label.

Formats as their tools document them: CVAT for images 1.1 (docs.cvat.ai, "XML annotation format"),
Label Studio's basic JSON with predictions (labelstud.io, "Import pre-annotated data") and its
labelling configuration, LabelMe's JSON beside an image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

from experiments.annotation.outlines import Polygon

LABEL = "lesion"
COLOUR = "#e41a1c"
# Served from the package itself, wherever it lies: LOCAL_FILES_DOCUMENT_ROOT is its folder.
LOCAL_FILES = "/data/local-files/?d="
# The names of Label Studio's tags that results refer to.
CONTROL, OBJECT = "label", "image"


class Picture(NamedTuple):
    """An image of a package.

    Attributes:
        name: Its file in ``images/``.
        height: Pixels.
        width: Pixels.
        outlines: What a run shows on it, to begin with.
        score: The run's probability of abnormal; None without a run.
    """

    name: str
    height: int
    width: int
    outlines: list[Polygon]
    score: float | None = None


def cvat_labels() -> str:
    """The label for CVAT's label constructor, tab "Raw"; any tool may draw it."""
    return _json([{"name": LABEL, "color": COLOUR, "type": "any", "attributes": []}])


def cvat_xml(pictures: Iterable[Picture]) -> str:
    """CVAT for images 1.1, one polygon an outline, points as ``x,y;x,y``.

    Images are numbered in the order of their names, as CVAT orders the frames of a task: releases
    that go by number and those that go by name find the same image.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    label = ElementTree.SubElement(ElementTree.SubElement(task, "labels"), "label")
    ElementTree.SubElement(label, "name").text = LABEL
    for number, picture in enumerate(sorted(pictures, key=lambda picture: picture.name)):
        size = {"width": str(picture.width), "height": str(picture.height)}
        image = ElementTree.SubElement(
            root, "image", {"id": str(number), "name": picture.name, **size}
        )
        for polygon in picture.outlines:
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in polygon)
            fixed = {"label": LABEL, "source": "auto", "occluded": "0", "z_order": "0"}
            ElementTree.SubElement(image, "polygon", {**fixed, "points": points})
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, "unicode")}\n'


def label_studio_config() -> str:
    """The labelling interface: outline the lesion, with zoom and contrast at hand."""
    return f"""<View>
  <Image name="{OBJECT}" value="$image" zoom="true" zoomControl="true"
         brightnessControl="true" contrastControl="true"/>
  <PolygonLabels name="{CONTROL}" toName="{OBJECT}" strokeWidth="2" opacity="0.2" pointSize="small">
    <Label value="{LABEL}" background="{COLOUR}"/>
  </PolygonLabels>
</View>
"""


def label_studio_tasks(pictures: Iterable[Picture], maker: str) -> str:
    """Label Studio's tasks, in the order of ``pictures``; outlines as predictions, in percent.

    Args:
        pictures: Images of the package.
        maker: What drew the outlines, for ``model_version``; "" without.
    """
    tasks = []
    for picture in pictures:
        task: dict[str, Any] = {
            "data": {"image": f"{LOCAL_FILES}{quote(f'images/{picture.name}')}"}
        }
        if picture.outlines:
            result = [
                {
                    "id": f"outline{number}",
                    "type": "polygonlabels",
                    "from_name": CONTROL,
                    "to_name": OBJECT,
                    "original_width": picture.width,
                    "original_height": picture.height,
                    "image_rotation": 0,
                    "value": {
                        "points": [
                            [100 * x / picture.width, 100 * y / picture.height] for x, y in polygon
                        ],
                        "closed": True,
                        "polygonlabels": [LABEL],
                    },
                }
                for number, polygon in enumerate(picture.outlines, start=1)
            ]
            prediction = {"model_version": maker, "score": picture.score, "result": result}
            task["predictions"] = [prediction]
        tasks.append(task)
    return _json(tasks)


def labelme_json(picture: Picture, maker: str) -> str:
    """LabelMe's file beside an image, which it names and does not hold."""
    shapes: list[dict[str, Any]] = [
        {
            "label": LABEL,
            "points": [list(point) for point in polygon],
            "group_id": None,
            "description": f"drawn by {maker}, not by a person",
            "shape_type": "polygon",
            "flags": {},
        }
        for polygon in picture.outlines
    ]
    return _json(
        {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": picture.name,
            "imageData": None,
            "imageHeight": picture.height,
            "imageWidth": picture.width,
        }
    )


def labelme_name(picture: Picture) -> str:
    """Where LabelMe looks for the file of an image."""
    return f"{Path(picture.name).stem}.json"


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"
