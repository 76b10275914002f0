"""The package of images to draw on: what each tool opens, and hands back."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules.annotations.recognition import READERS, recognise
from experiments.annotation.matching import ImageFinder, read_mapping
from experiments.annotation.package import COLUMNS, flat_names, package_text, write_package

TRIANGLE = [(10.5, 20.0), (30.0, 20.0), (20.0, 40.0)]
PICTURES = [
    {"name": "b.png", "height": 80, "width": 100, "outlines": [TRIANGLE]},
    {"name": "a.png", "height": 50, "width": 60, "outlines": []},
]
PICTURES = [{**picture, "probability_abnormal": 0.75} for picture in PICTURES]
MAKER = "stage1 pcam"


def test_what_each_tool_opens():
    root = ElementTree.fromstring(package_text("cvat.xml", pictures=PICTURES).encode())
    assert root.findtext("version") == "1.1"
    first, image = root.findall("image")  # numbered by name, as CVAT's tasks do
    assert dict(first.attrib) == {"id": "0", "name": "a.png", "width": "60", "height": "50"}
    assert dict(image.attrib) == {"id": "1", "name": "b.png", "width": "100", "height": "80"}
    (polygon,) = image
    assert polygon.get("label") == root.findtext(".//label/name") == "lesion"
    assert (polygon.tag, polygon.get("occluded"), polygon.get("source")) == ("polygon", "0", "auto")

    one, other = json.loads(package_text("label_studio.json", pictures=PICTURES, maker=MAKER))
    assert one["data"] == {"image": "/data/local-files/?d=images/b.png"}
    assert other == {"data": {"image": "/data/local-files/?d=images/a.png"}}
    (prediction,) = one["predictions"]
    assert (prediction["model_version"], prediction["score"]) == (MAKER, 0.75)
    (result,) = prediction["result"]
    points = [[10.5, 25.0], [30.0, 25.0], [20.0, 50.0]]  # percent
    assert result["value"] == {"points": points, "polygonlabels": ["lesion"], "closed": True}

    content = json.loads(package_text("labelme.json", picture=PICTURES[0], maker=MAKER))
    assert (content["imagePath"], content["imageData"]) == ("b.png", None)
    assert (content["imageHeight"], content["imageWidth"]) == (80, 100)
    assert "stage1 pcam, not by a person" in content["shapes"][0]["description"]


def test_names_are_flat_plain_and_unlike():
    names = flat_names(
        ["a/b.png", "a/b.jpg", "A/B.png", "xü/c d.png", ".x/e.png", "ü.png", "1.2.840"]
    )
    assert names[:3] == ["a__b.png", "a__b-2.png", "A__B-3.png"]
    assert names[3:] == ["x-__c-d.png", "x__e.png", "image.png", "1.2.840.png"]


def test_what_is_outlined_is_read_back_point_by_point(tmp_path):
    """As each tool hands it back: CVAT's XML, LabelMe's files, a task with its prediction taken."""
    images = ["MURA-v1.1/train/a/image1.png", "MURA-v1.1/train/b/image1.png", "c d.jpg"]
    for image in images:
        (tmp_path / "data" / image).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((53, 37), 60).save(tmp_path / "data" / image)
    outlines = [[TRIANGLE, [(1.5, 2.5), (3.5, 2.5), (3.5, 9.5)]], [], [TRIANGLE]]
    chosen = pd.DataFrame(dict.fromkeys(COLUMNS, "x"), index=range(3))
    chosen = chosen.assign(image=images, probability_abnormal=0.5, outlines=outlines)
    package = tmp_path / "package"
    write_package(package, tmp_path / "data", chosen, MAKER, [])
    tasks = json.loads((package / "label_studio.json").read_text())
    for task in tasks:
        taken = task.pop("predictions", [{"result": []}])
        task["annotations"] = [{"completed_by": 7, "result": taken[0]["result"]}]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    finder = ImageFinder(images, tmp_path / "data", read_mapping(package / "mapping.csv"))
    sources = {"cvat": package / "cvat.xml", "labelme": package / "images"}
    for kind, source in (sources | {"label-studio": tmp_path / "export.json"}).items():
        assert recognise(source) == kind
        marking = READERS[kind](source)
        assert marking.mistakes == []
        by_image = {finder.find(image.name)[0]: image for image in marking.images}
        assert by_image.keys() == set(images)
        for path, polygons in zip(images, outlines, strict=True):
            marks = by_image[path].marks
            assert {mark.labels for mark in marks} <= {("lesion",)}
            assert [np.array(mark.outline).ravel().tolist() for mark in marks] == [
                pytest.approx(np.ravel(polygon).tolist()) for polygon in polygons
            ]
    # Nobody has looked at a prediction yet: it is no mask.
    untouched = READERS["label-studio"](package / "label_studio.json")
    assert [image.marks for image in untouched.images] == [[], [], []]
