"""Kinds of annotation that once ended as a wrong mask: whose image, which marks, what geometry.

Each row is an input, what is marked of it in pixels (0: nothing is written), and what is printed.
"""

from __future__ import annotations

import json

import pandas as pd
import pytest
from PIL import Image

from tests.lesion_files import (
    BOX,
    CORNERS,
    HEIGHT,
    ONE,
    OTHER,
    PIXELS,
    WIDTH,
    coco,
    cvat,
    drawn,
    image,
    labelme,
    region,
    shape,
    studio,
    voc,
)

FLAT, FLAT_OTHER = (name.replace("/", "_").removesuffix(".png") for name in (ONE, OTHER))
SEVERAL = "holds several images"
TWO_ON = [{"result": [region()]}, {"result": [region(to_name="b")]}]


def yolo(text, **classes):
    return {f"{FLAT}.txt": text, **{key.replace("_", "."): value for key, value in classes.items()}}


DIAMOND = {"x1": 14.5, "y1": 5, "x2": 19, "y2": 8.5, "x3": 14.5, "y3": 12, "x4": 10, "y4": 8.5}
POLYGON = "".join(f"<{key}>{value}</{key}>" for key, value in DIAMOND.items())
BBOX = [10, 5, 9, 7]
# A mask of 10 x 7 pixels in runs down the columns, as they should be, and along the rows.
UPRIGHT = {"size": [30, 40], "counts": [305, *[7, 23] * 9, 7, 618]}
ACROSS = {"size": [30, 40], "counts": [210, *[10, 30] * 6, 10, 740]}

WHOSE = [
    # A task of two images.
    (studio({"ap": ONE, "lateral": OTHER}, region()), 0, SEVERAL),
    (studio({"image": ONE}, region(), region(to_name="b")), 0, SEVERAL),
    ([{"data": {"image": ONE}, "annotations": TWO_ON}], 0, SEVERAL),
    (studio({"image": ONE}, region(item_index=1)), 0, SEVERAL),
    (studio({"image": ONE}, region(), file_upload="1a2b3c4d-image9.png"), 0, SEVERAL),
    # Two addresses of one image are compared.
    (studio({"image": ONE, "file": ONE.split("/")[-1]}, region()), 77, ""),
    # The name inside against the file's own.
    ({f"{FLAT_OTHER}.json": labelme(shape())}, 0, "may be any of 2 images"),
    (voc(more=f"<path>C:\\x\\{OTHER}</path>"), 0, "may be any of 2 images"),
    (coco({"segmentation": [BOX]}, path=f"/data/{OTHER}"), 0, "any of 2 images"),
    ({"a.json": {f"{OTHER}1": {"filename": ONE, "regions": []}}}, 0, "no image has a mark"),
    # A file that cannot be read takes the image of its name along, or all.
    ({f"a/{FLAT}.json": labelme(shape()), f"b/{FLAT}.json": '{"shapes": ['}, 0, "no JSON"),
    ({"a.xml": voc(), "b.xml": "<annotation><obj"}, 0, "nothing else tells"),
    ({"a.json": labelme(shape()), "b.json": '{"readme": 1}'}, PIXELS, "lacks the list"),
]
WHICH = [
    # Reserved classes are no lesions, and cut none.
    (labelme(shape(), shape("__ignore__", [[25, 5], [35, 5], [35, 9]])), PIXELS, "ignore"),
    (labelme(shape(), shape("_background_", CORNERS)), 0, "covers part of one"),
    (coco({"segmentation": [BOX]}, categories=[{"id": 1, "name": "background"}]), 0, ""),
    # What bears two classes, or one that nobody lists, cannot be judged.
    (studio({"image": ONE}, region(labels=("fracture", "background"))), 0, "unclear"),
    (coco({"segmentation": [BOX], "category_id": 7}), 0, "category_id 7 is not listed"),
    (coco(categories=[{"id": 1, "name": name} for name in "ab"]), 0, "two categories share the"),
    (coco({"segmentation": [BOX], "ignore": 1}), 0, "flagged as ignored"),
    (cvat(drawn("metal"), labels="lesion"), 0, "not in <meta>"),
    ([{"image": ONE, "annotations": [{"label": "a", "coordinates": {}}]}], 0, "'result'"),
]
YOLO = [
    (yolo("0 .5 .5 .25 .2"), 77, "weak"),
    (yolo("0 .5 .5 .25 .2", classes_txt="a\nb\n", data_yaml="names: [a, b]\nnc: 2"), 77, ""),
    (yolo("0 .5 .5 .25 .2", classes_txt="a\n", data_yaml="names: [b]"), 0, "different classes"),
    (yolo("0 .5 .5 .25 .2", data_yaml="names: [a]\nkpt_shape: [4, 2]"), 0, "key points"),
    (yolo("1 .5 .5 .25 .2", data_yaml="names: {0: a, 5: b}"), 0, "have names"),
    (yolo("0 .5 .5 .25 .2", classes_txt="b", notes_json="{}"), 77, "Label Studio wrote this"),
    # A box with more columns is no segment; a segment out of a box's range is one.
    (yolo("0 .5 .5 .25 .2 .9 3"), 0, "holds 6 values"),
    (yolo("0 .45 .45 .3 .3 .3 .3 .6 .35 .55 .6"), 0, "holds 10 values"),
    (yolo("0 .5 .5 .2 .1 .45 .5 .55 .5"), 0, "holds 8 values"),
    (yolo("0 .25 .2 .9 .3 .5 .8"), 238, "masks    1\n"),
]
GEOMETRY = [
    # Attributes that turn a box.
    (coco({"bbox": BBOX, "attributes": {"rotation": 90}}), PIXELS, "weak"),
    (coco({"bbox": BBOX, "attributes": {"rotation": 0.0, "angle": "lateral"}}), PIXELS, "weak"),
    (voc("<angle>0.5</angle>"), 0, "is turned (angle)"),
    (voc("<robndbox><cx>15</cx></robndbox>"), 0, "robndbox"),
    # A box against its area and its outline.
    (coco({"bbox": [10, 5, 19, 12], "area": 63}), 0, "its area says 63"),
    (coco({"segmentation": [BOX], "area": 300}), 0, "its area says 300"),
    (coco({"bbox": [25, 20, 9, 7], "segmentation": [BOX]}), 0, "two places or units"),
    (coco({"bbox": BBOX, "segmentation": UPRIGHT}), 70, "masks    1\n"),
    (coco({"bbox": BBOX, "segmentation": ACROSS}), 0, "two places or units"),
    (voc(f"<polygon>{POLYGON}</polygon>"), 39, "masks    1\n"),
    (voc("<polygon><x1>1</x1><y1>1</y1></polygon>"), 0, "a polygon of 1 points"),
    (voc("<polygon><pt><x>1</x><y>1</y></pt></polygon>"), 0, "LabelMe's old XML"),
    (labelme(shape(kind="rectangle")), PIXELS, "weak"),
    (labelme(shape(kind="rotation", points=[[10, 5], [13, 9], [9, 12], [6, 8]])), 32, "weak"),
    (cvat(drawn("a", "9.9999999,5;19,5;19,12;9.9999999,12")), PIXELS, ""),
    # Untidy, but certain.
    (cvat('<tag label="seen"/>', drawn()), PIXELS, ""),
    (coco({"segmentation": BOX, "image_id": "1", "category_id": 1.0}), PIXELS, ""),
]


@pytest.mark.parametrize(("source", "pixels", "message"), WHOSE + WHICH + YOLO + GEOMETRY)
def test_only_what_is_certain_is_marked(importing, source, pixels, message):
    importing.run(source)
    assert importing.pixels() == ({ONE: pixels} if pixels else {})
    assert message in importing.printed()


def regions(*labels):
    """A rectangle on patients 2, 4 and so on, each with the classes of one region."""
    tasks = [studio({"image": image(2 * n + 2)}, region(own))[0] for n, own in enumerate(labels)]
    return [task | {"id": n} for n, task in enumerate(tasks)]


SIDE = '<points label="side marker" points="1,2"/>'
VIA = {
    "shape_attributes": {"name": "polygon", "all_points_x": BOX[::2], "all_points_y": BOX[1::2]},
    "region_attributes": {"kind": {"lytic": True, "fracture": True, "metal": False}},
}
TEXT = {"segmentation": [[1, 1, 5, 1, 5, 3]], "category_id": 2}
TWO = {"categories": ({"id": 1, "name": "fracture"}, {"id": 2, "name": "text"})}
LYTIC = regions(["fracture"], ["fracture", "lytic"], ["text"])
COMMA = regions(["a"], ["b, c"], ["d"])


@pytest.mark.parametrize(
    ("content", "labels", "types", "message"),
    [
        # What bears another class neither counts nor is in the way; what may be the lesion is.
        (cvat(drawn() + SIDE), ["lesion"], {2: "lesion"}, "marks    lesion 1"),
        (cvat(drawn() + '<points points="1,2"/>'), ["lesion"], {}, "'points' marks no area"),
        (coco({"segmentation": [BOX]}, TEXT) | TWO, ["fracture"], {2: "fracture"}, "text 1"),
        (labelme(shape(), shape("")), ["fracture"], {}, "has the class 'none'"),
        # A reserved class cuts a lesion, and is none.
        (cvat(drawn(), drawn("bg", "12,7;15,7;15,9")), ["lesion"], {}, "covers part"),
        # A region of several classes, or a checkbox of VIA, is of each.
        (LYTIC, ["fracture"], {2: "fracture", 4: "fracture+lytic"}, "fracture 2, lytic 1, text 1"),
        ({"a": {"filename": ONE, "regions": [VIA]}}, ["lytic"], {2: "fracture+lytic"}, "masks"),
        # Classes are whole names.
        (COMMA, ["b, c", "d"], {4: "b, c", 6: "d"}, ""),
    ],
)
def test_marks_are_chosen_by_their_class(importing, content, labels, types, message):
    importing.run(content, *(word for label in labels for word in ("--labels", label)))
    assert message in importing.printed()
    assert importing.out.exists() == bool(types)
    rows = importing.table()[["image", "lesion_type"]].to_numpy().tolist() if types else []
    assert rows == [[image(patient), kind] for patient, kind in types.items()]


@pytest.mark.parametrize(("sign", "stated"), [("\t", 1), (",", 2)])
def test_a_csv_of_via_holds_all_regions_that_it_states(importing, sign, stated):
    box = json.dumps({"name": "rect", "x": 10, "y": 5, "width": 9, "height": 7})
    cells = {"filename": ONE, "file_size": 99, "region_count": stated}
    cells |= {"region_shape_attributes": box, "region_attributes": "{}"}
    importing.run({"a.csv": pd.DataFrame([cells]).to_csv(sep=sign, index=False)})
    assert importing.pixels() == ({ONE: PIXELS} if stated == 1 else {})
    assert ("its region_count is 2" in importing.printed()) == (stated == 2)


@pytest.mark.parametrize("colours", [["#800000"], ["#800000", "#008000"]])
def test_of_a_folder_of_pascal_voc_the_classes_are_read(importing, colours):
    for kind in ("SegmentationClass", "SegmentationObject", "JPEGImages"):
        for name, colour in zip((FLAT, FLAT_OTHER), colours, strict=False):
            picture = Image.new("RGB", (WIDTH, HEIGHT))
            picture.paste(colour if kind == "SegmentationClass" else "#123456", (10, 5, 20, 13))
            importing.put({f"{kind}/{name}.png": picture})
    importing.run({"labelmap.txt": "lesion:::\nmetal:::\n", "ImageSets/a.txt": FLAT})
    assert importing.pixels() == ({ONE: PIXELS} if len(colours) == 1 else {})
    assert ("#800000" in importing.printed()) == (len(colours) > 1)
    importing.out = importing.out.with_name("named")
    named = "# label:color_rgb:parts:actions\nlesion:128,0,0::\nignore:0,128,0::\n"
    importing.run({"labelmap.txt": named, "ImageSets/a.txt": FLAT})
    assert importing.pixels() == {ONE: PIXELS}
    assert ("others   ignore 1" in importing.printed()) == (len(colours) > 1)
