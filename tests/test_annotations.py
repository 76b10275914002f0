"""What is drawn in one format is drawn in all, and a wrong entry stops no other."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
from pycocotools import mask as rle

from datamodules.annotations.marks import Mark, draw
from datamodules.annotations.recognition import READERS, recognise
from datamodules.index import DataError
from tests import annotation_samples as samples
from tests.annotation_samples import HEIGHT, WIDTH, png, square

FILES = {
    "coco": ("coco.json", json.dumps(samples.COCO)),
    "cvat": ("annotations.xml", samples.CVAT),
    "labelme": ("a.json", json.dumps(samples.LABELME)),
    "label-studio": ("project.json", json.dumps(samples.LABEL_STUDIO)),
    "label-studio minimal": ("project.json", json.dumps(samples.LABEL_STUDIO_MIN)),
    "via": ("via.json", json.dumps(samples.VIA)),
    "via project": ("project.json", json.dumps(samples.VIA_PROJECT)),
    "via csv": ("via.csv", samples.via_csv()),
    "via csv of version 1": ("via.csv", "#" + samples.via_csv()),
    "voc": ("a.xml", samples.VOC),
    "yolo": ("hand/a.txt", samples.YOLO),
}
NO_SIZE = ("via", "via project", "via csv", "via csv of version 1", "yolo")


def read(tmp_path, kind, content=None):
    """The marking of a file; of YOLO's that of its folder."""
    reader = kind.partition(" ")[0]
    name, sample = FILES[kind]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    text = sample if content is None else content
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return READERS[reader](tmp_path if kind == "yolo" else path)


def pixels(marks, in_shares=False):
    if in_shares:
        scaled = [np.round(np.array(mark.outline) * [WIDTH, HEIGHT], 6) for mark in marks]
        marks = [Mark("", tuple(map(tuple, outline))) for outline in scaled]
    return draw(marks, HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", FILES)
def test_the_square_is_drawn_to_the_pixel(tmp_path, kind):
    ((image,), mistakes) = read(tmp_path, kind)
    assert mistakes == []
    assert image.name == ("hand/a" if kind == "yolo" else "hand/a.png")
    assert image.size == (None if kind in NO_SIZE else (20, 30))
    assert image.in_shares == (kind == "yolo")
    labels = {label for mark in image.marks for label in mark.labels}
    assert labels == {"0" if kind == "yolo" else "fracture"}
    assert sum(mark.is_box for mark in image.marks) == 1
    # Polygons, masks and boxes each are the square, ellipses and triangles lie within it.
    np.testing.assert_array_equal(pixels(image.marks, image.in_shares), square())
    for mark in image.marks:
        drawn = pixels([mark], image.in_shares)
        if len(mark.outline) in (0, 4) and mark.outline[-1:] != mark.outline[:1]:
            np.testing.assert_array_equal(drawn, square())
        assert drawn.any()
        assert not (drawn & ~square()).any()
    for source in (tmp_path / FILES[kind][0], tmp_path):
        assert recognise(source) == kind.partition(" ")[0]


def test_ellipses_turn(tmp_path):
    for kind in ("cvat", "via"):  # half axes 1.5 across and 1 down, a quarter turn on
        (image,) = read(tmp_path, kind).images
        outline = [mark.outline for mark in image.marks if len(mark.outline) > 99][-1]
        x, y = np.ptp(np.array(outline), axis=0)
        assert (x, y) == (pytest.approx(2, abs=1e-3), pytest.approx(3, abs=1e-3))


# Wrong entries ------------------------------------------------------------------------------------


def coco(*segmentations, size=(HEIGHT, WIDTH), **image):
    """COCO with annotations in the middle: wrong ones, then the square."""
    about = {"id": 0, "file_name": "hand/a.png", "height": size[0], "width": size[1], **image}
    entries = [
        {"id": number, "image_id": 0, "category_id": 0, "segmentation": segmentation}
        for number, segmentation in enumerate(segmentations)
    ]
    categories = [{"id": 0, "name": "fracture"}]
    return "coco", {"images": [about], "annotations": entries, "categories": categories}


SQUARE = [[6, 4, 10, 4, 10, 8, 6, 8]]


def segmented(value):
    return coco(value, SQUARE)


def runs(counts, size=(HEIGHT, WIDTH)):
    return segmented({"size": [*size], "counts": counts})


def labelme(**shape):
    shapes = [{**samples.LABELME["shapes"][0], **shape}, samples.LABELME["shapes"][0]]
    return "labelme", {**samples.LABELME, "shapes": shapes}


def mask(content):
    text = base64.b64encode(content).decode() if isinstance(content, bytes) else content
    return labelme(shape_type="mask", points=[[6, 4], [10, 8]], mask=text)


def studio(**changes):
    results = [{**samples.RESULTS[0], **changes}, samples.RESULTS[0]]
    return "label-studio", [{**samples.LABEL_STUDIO[0], "annotations": [{"result": results}]}]


def brush(stream):
    return studio(type="brushlabels", value={"rle": stream})


def via(**shape):
    regions = [{"shape_attributes": {**samples.POLYGON, **shape}}, samples.REGIONS[0]]
    return "via", {"a": {"filename": "hand/a.png", "regions": regions}}


def cvat(shape):
    start, end = (samples.CVAT.index(word) for word in ("<polygon", "</image>"))
    right = samples.CVAT[start : samples.CVAT.index("</polygon>")] + "</polygon>"
    return "cvat", samples.CVAT[:start] + shape + right + samples.CVAT[end:]


def cvat_mask(stream, left=0, side=2):
    sides = f'left="{left}" top="0" width="{side}" height="{side}"'
    return cvat(f'<mask rle="{stream}" {sides}/>')


def voc(old, new):
    start, end = samples.VOC.index("<object>"), samples.VOC.index("</annotation>")
    changed = samples.VOC[start:end].replace(old, new)
    return "voc", samples.VOC[:start] + changed + samples.VOC[start:]


def yolo(line):
    return "yolo", f"{line}\n{samples.YOLO}"


HUGE = bytearray(png(square()))
HUGE[16:24] = (1 << 30).to_bytes(4, "big") * 2
COLLINEAR = [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (labelme(shape_type="point"), "shape number 0: 'point' marks no area; outline"),
        (labelme(points=[[1, 2], [3, 4]]), "a polygon of 2 points; draw three or more"),
        (labelme(points=COLLINEAR), "all its points lie on one line"),
        (labelme(points=[[1, 2], [3, 4], [5]]), "its points are not [[x, y], ...]"),
        (labelme(points=None), "lacks 'points'"),
        (labelme(points=[[1, 2], [3, 4], [5, 1e308]]), "y is 1e+308, far outside"),
        (labelme(points=[[1, 2], [3, 4], [5, "1e"]]), "y is '1e', no number"),
        (mask(b"no png"), "its mask is no PNG"),
        (mask(png(square())), "its mask is of 30 x 20 pixels, its box of 5 x 5"),
        (mask(png(np.zeros((5, 5), bool))), "nothing is marked"),
        (mask(png(np.ones((5, 5), bool))[:-20]), "its mask is no PNG, or damaged"),
        (mask(bytes(HUGE)), "its mask is no PNG, or damaged"),
        (mask("?"), "its mask is no PNG, or damaged"),
        (studio(type="keypointlabels"), "'keypoint' marks no area"),
        (studio(original_width=None), "lacks 'original_width'"),
        (studio(image_rotation=90), "the image was turned in Label Studio"),
        (studio(value={"points": 1, "closed": False}), "the polygon is not closed"),
        (brush(1 << 40), "brush strokes cannot be"),
        (brush([255] * 40), "hold 4294967295 values"),
        (brush(samples.RESULTS[1]["value"]["rle"][:-2]), "brush strokes cannot be read"),
        (via(name="point"), "'point' marks no area"),
        (via(all_points_x=[1]), "has 1 x and 4 y"),
        (via(name="polyline"), "a polyline that does not end where it began"),
        (via(name="ellipse", cx=1, cy=1, rx=1, ry=-1), "an ellipse of 1 x -1 pixels"),
        (via(name="rect", x=1, y=1, width=0, height=1), "a box of 0 x 1 pixels"),
        (cvat('<points label="x" points="1,2"/>'), "points number 0 on hand/a.png: 'points'"),
        (cvat('<polygon points="1,2;3,4,5"/>'), "its points are not 'x,y;x,y;...'"),
        (cvat('<box xtl="1" ytl="2" xbr="0" ybr="4"/>'), "a box of -1 x 2 pixels"),
        (cvat_mask("1,2"), "covers 3 pixels"),
        (cvat_mask("0,4", left=29), "juts out of"),
        (cvat_mask("4,0"), "nothing is mark"),
        (cvat_mask("0,9", side=99999), "size '99999' x"),
        (voc("<xmax>10", "<xmax>6"), "object number 0: a box of 0 x 4 pixels"),
        (voc("bndbox", "box"), "has no bndbox"),
        (voc("<ymin>4", "<ymin>"), "ymin is '', no number"),
        (yolo("0 .5 .5 .1"), "line 1: holds 3 values behind the class"),
        (yolo("0 .5 .5 .1 nan"), "is in pixels or no number"),
        (yolo("bone .5 .5 .1 .1"), "its class is 'bone', no number"),
        (segmented([[1, 1, 2, 2]]), "annotation 0 on hand/a.png: a polygon is x, y"),
        (segmented([[1, 1, 2, 2, 3, True]]), "y is True, no number"),
        (segmented([[1, 1, 2, 2, 3, 10**400]]), "no number"),
        (segmented([]), "has no segmentation and no box"),
        (runs([600], (WIDTH, HEIGHT)), "RLE is of size [30, 20], the image of"),
        (runs([600], (1 << 20, 1 << 20)), "has the size 1048576 x"),
        (runs([10, 5]), "RLE covers 15 pixels, it has 600"),
        (runs([10, -5]), "RLE counts cannot be read"),
        (runs([1 << 70]), "RLE covers 11805"),
        (runs("o" * 99), "RLE counts cannot be read"),
        (runs("ééé"), "RLE counts cannot be read"),
        (runs(None), "RLE counts cannot be read"),
        (runs([600]), "nothing is marked"),
    ],
)
def test_a_wrong_entry_is_named_and_the_others_are_read(tmp_path, changed, what):
    kind, content = changed
    ((image,), (mistake,)) = read(tmp_path, kind, content)
    assert what in f"{mistake.where}: {mistake.what}"
    assert mistake.where.startswith(str(tmp_path / FILES[kind][0]))
    assert mistake.images[-1:] == (image.name,)
    np.testing.assert_array_equal(pixels(image.marks, image.in_shares), square())


ANNOTATION = {"id": 7, "image_id": 3}


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([], [1], "annotation number 0: lacks 'image_id'"),
        ([], [{"image_id": [1]}], "has the image_id .1.; export"),
        ([], [ANNOTATION], "annotation 7: is of image 3, which is not listed"),
        ([{"id": 3}], [ANNOTATION], "image number 0: lacks 'file_name'"),
        ([{"id": [3]}], [], "image number 0: has the id .3."),
        ([{"id": 3, "file_name": n, "height": 9, "width": 9} for n in "ab"], [], "a and b share"),
        ([{"id": 3, "file_name": "a", "height": 2.5, "width": 5}], [], "has the size 5 x 2.5; exp"),
        ([{"id": 3, "file_name": "a", "height": "x", "width": 0}], [], "has the size 0 x 'x'; exp"),
    ],
)
def test_a_wrong_image_of_coco_is_listed_once(tmp_path, images, annotations, message):
    marking = read(tmp_path, "coco", {"images": images, "annotations": annotations})
    ((where, what, *_),) = marking.mistakes
    assert marking.images == []
    assert re.search(message, f"{where}: {what}")


def test_all_encodings_of_coco_draw_the_same_and_regions_add_up(tmp_path):
    encoded = rle.encode(np.asfortranarray(square() // 255))["counts"].decode()
    parts = [*SQUARE, [28, 18, 90, 18, 90, 90, 28, 90]]
    for segmentation in (SQUARE, *({"size": [20, 30], "counts": c} for c in (encoded, RUNS))):
        (image,) = read(tmp_path, *coco(segmentation)).images
        np.testing.assert_array_equal(pixels(image.marks), square())
    (image,) = read(tmp_path, *coco(parts)).images
    assert [mark.entry for mark in image.marks] == ["annotation 0", "annotation 0"]
    clipped = square()
    clipped[18:, 28:] = 255
    np.testing.assert_array_equal(pixels(image.marks), clipped)
    (image,) = read(tmp_path, *coco([[5.1, 5.1, 15.1, 5.2, 15.1, 5.3]])).images
    assert pixels(image.marks).any()  # a hairline is not lost


RUNS = samples.runs(square().T)
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        *(
            (kind, f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]><a>&l11;</a>', "no XML")
            for kind in ("cvat", "voc")
        ),
        ("voc", '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>', "no XML"),
        ("voc", "<annotation>" + "<a>" * 200_000, "no XML"),
        ("coco", "", "the file is empty"),
        ("coco", "[" * 100_000, "no JSON .*recursion"),
        ("coco", "1" * 5000, "no JSON"),
        ("coco", "[]", "lacks the list 'images'"),
        ("coco", '{"images": []}', "lacks the list 'annotations'"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, kind, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, kind, content)
