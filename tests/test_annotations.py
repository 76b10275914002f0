"""What is drawn in one format is drawn in all: a square by hand, its pixels, labels and raters."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from datamodules.annotations.recognition import READERS, recognise
from datamodules.annotations.marks import Mark, draw
from datamodules.index import DataError
from tests import annotation_samples as samples
from tests.annotation_samples import HEIGHT, WIDTH, square

# pycocotools 2.0.11 still speaks NumPy 1's array protocol; nothing to do about it here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

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


def write(tmp_path, kind):
    name, content = FILES[kind]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def read(path, kind):
    return READERS[kind.partition(" ")[0]](path)


def pixels(marks, in_shares=False):
    if in_shares:
        scaled = [np.round(np.array(mark.outline) * [WIDTH, HEIGHT], 6) for mark in marks]
        marks = [Mark("", tuple(map(tuple, outline))) for outline in scaled]
    return draw(marks, HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", FILES)
def test_the_square_is_drawn_to_the_pixel(tmp_path, kind):
    source = write(tmp_path, kind)
    ((image,), mistakes) = read(tmp_path if kind == "yolo" else source, kind)
    assert mistakes == []
    assert image.name == ("hand/a" if kind == "yolo" else "hand/a.png")
    assert image.size == (None if kind in NO_SIZE else (20, 30))
    assert image.in_shares == (kind == "yolo")
    assert {label for mark in image.marks for label in mark.labels} == {
        "0" if kind == "yolo" else "fracture"
    }
    # Polygons, masks and boxes each are the square, ellipses and triangles lie within it.
    np.testing.assert_array_equal(pixels(image.marks, image.in_shares), square())
    for mark in image.marks:
        drawn = pixels([mark], image.in_shares)
        if len(mark.outline) in (0, 4) and mark.outline[-1:] != mark.outline[:1]:
            np.testing.assert_array_equal(drawn, square())
        assert drawn.any()
        assert not (drawn & ~square()).any()


@pytest.mark.parametrize("kind", FILES)
def test_the_format_is_recognised_by_file_and_folder(tmp_path, kind):
    source = write(tmp_path, kind)
    assert recognise(source) == kind.partition(" ")[0]
    assert recognise(tmp_path) == kind.partition(" ")[0]


@pytest.mark.parametrize("kind", FILES)
def test_boxes_are_weak_and_outlines_are_not(tmp_path, kind):
    (image,) = read(write(tmp_path, kind), kind).images
    weak = [mark.is_box for mark in image.marks]
    assert sum(weak) == 1


def test_ellipses_turn(tmp_path):
    for kind in ("cvat", "via"):  # half axes 1.5 across and 1 down, a quarter turn on
        (image,) = read(write(tmp_path, kind), kind).images
        (outline,) = [mark.outline for mark in image.marks if len(mark.outline) > 99][-1:]
        x, y = np.ptp(np.array(outline), axis=0)
        assert (x, y) == (pytest.approx(2, abs=1e-3), pytest.approx(3, abs=1e-3))


def test_rectangles_of_label_studio_turn_about_their_corner(tmp_path):
    turned = samples.result("rectangle", rotation=90, **samples.RECTANGLE)
    content = [{"data": {"image": "a.png"}, "annotations": [{"result": [turned]}]}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    (image,) = READERS["label-studio"](tmp_path / "a.json").images
    expected = [(6, 4), (6, 8), (2, 8), (2, 4)]
    np.testing.assert_allclose(image.marks[0].outline, expected, atol=1e-9)


def test_raters_of_label_studio_are_numbers(tmp_path):
    (image,) = read(write(tmp_path, "label-studio"), "label-studio").images
    assert [mark.rater for mark in image.marks] == ["rater 1"] * 4 + ["rater 2"]
    assert "somebody" not in repr(image)


def test_rows_of_one_task_belong_together(tmp_path):
    rows = samples.LABEL_STUDIO_MIN
    (tmp_path / "a.json").write_text(json.dumps([*rows, {**rows[0], "annotator": "b@example.org"}]))
    (image,) = READERS["label-studio"](tmp_path / "a.json").images
    assert [mark.rater for mark in image.marks] == ["rater 1"] * 4 + ["rater 2"] * 4


def test_labels_apart_from_their_region_are_found(tmp_path):
    region = samples.result("rectangle", **samples.RECTANGLE)
    del region["value"]["rectanglelabels"]
    results = [
        {**region, "type": "rectangle"},
        {**region, "type": "labels", "value": {"labels": ["metal"]}},
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    content = [{"data": {"image": "a.png"}, "annotations": [{"result": results}]}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    ((image,), mistakes) = READERS["label-studio"](tmp_path / "a.json")
    assert (mistakes, [mark.labels for mark in image.marks]) == ([], [("metal",)])


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://example.org/x%20y/a.png?sign=%2F", "x y/a.png"),
        ("s3://bucket/hand/a.png", "hand/a.png"),
        ("/data/local-files/?d=hand%2Fp1%2Fa.png", "hand/p1/a.png"),
        ("/data/upload/3/0a1b2c3d-a.png", "0a1b2c3d-a.png"),
        ("http://localhost:8080/data/upload/3/0a1b2c3d-a.png", "0a1b2c3d-a.png"),
        ("C:\\films\\hand\\a.png", "films/hand/a.png"),
        ("../../etc/a.png", "etc/a.png"),
    ],
)
def test_names_of_images(tmp_path, address, name):
    content = [{"data": {"image": address}, "annotations": []}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    ((image,), mistakes) = READERS["label-studio"](tmp_path / "a.json")
    assert (image.name, mistakes) == (name, [])


def test_the_image_of_a_task_may_have_any_key(tmp_path):
    task = {"id": 1, "data": {"note": "x", "film": "/data/local-files/?d=hand/a.png"}}
    (tmp_path / "a.json").write_text(json.dumps([{**task, "annotations": []}]))
    assert READERS["label-studio"](tmp_path / "a.json").images[0].name == "hand/a.png"


def test_key_points_of_json_min_are_no_boxes(tmp_path):
    point = {"x": 1, "y": 1, "width": 0.3, "keypointlabels": ["x"]}
    (tmp_path / "a.json").write_text(json.dumps([{"id": 1, "image": "a.png", "tag": [point]}]))
    ((image,), (mistake,)) = READERS["label-studio"](tmp_path / "a.json")
    assert image.marks == []
    assert mistake.what == "'keypoint' marks no area; outline the lesion"


@pytest.mark.parametrize("kind", ["labelme", "voc"])
def test_equal_names_in_folders_stay_apart(tmp_path, kind):
    for folder in ("p1", "p2"):
        (tmp_path / "films" / folder).mkdir(parents=True)
        name, content = FILES[kind]
        content = content.replace("hand/a.png", "a.png").replace("hand\\\\a.png", "a.png")
        (tmp_path / "films" / folder / name).write_text(content)
    images, mistakes = READERS[kind](tmp_path)
    assert [image.name for image in images] == ["films/p1/a.png", "films/p2/a.png"]
    assert mistakes == []


def change_labelme(**shape):
    shapes = [{**samples.LABELME["shapes"][0], **shape}, samples.LABELME["shapes"][0]]
    return "labelme", json.dumps({**samples.LABELME, "shapes": shapes})


def mask_of(content: bytes):
    return change_labelme(
        shape_type="mask", points=[[6, 4], [10, 8]], mask=base64.b64encode(content).decode()
    )


def change_studio(**result):
    results = [{**samples.RESULTS[0], **result}, samples.RESULTS[0]]
    task = {**samples.LABEL_STUDIO[0], "annotations": [{"result": results}]}
    return "label-studio", json.dumps([task])


def change_via(**shape):
    regions = [{"shape_attributes": {**samples.POLYGON, **shape}}, samples.REGIONS[0]]
    return "via", json.dumps({"a": {"filename": "hand/a.png", "regions": regions}})


def change_cvat(shape):
    text = samples.CVAT
    right = text[text.index("<polygon") : text.index("</polygon>")] + "</polygon>"
    start, end = text.index("<polygon"), text.index("</image>")
    return "cvat", text[:start] + shape + right + text[end:]


def change_voc(old, new):
    start, end = samples.VOC.index("<object>"), samples.VOC.index("</annotation>")
    changed = samples.VOC[start:end].replace(old, new)
    return "voc", samples.VOC[:start] + changed + samples.VOC[start:]


def huge_png():
    content = bytearray(samples.png(square()))
    content[16:24] = (1 << 30).to_bytes(4, "big") * 2
    return bytes(content)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (change_labelme(shape_type="point"), "shape number 0: 'point' marks no area; outline"),
        (change_labelme(shape_type="linestrip"), "'linestrip' marks no area"),
        (change_labelme(points=[[1, 2], [3, 4]]), "a polygon of 2 points; draw three or more"),
        (change_labelme(points=[[1, 2], [3, 4], [5, 6]]), "all its points lie on one line"),
        (change_labelme(points=[[1, 2], [3, 4], [5]]), "its points are not [[x, y], ...]"),
        (change_labelme(points=None), "lacks 'points'"),
        (change_labelme(points=[[1, 2], [3, 4], [5, 1e308]]), "y is 1e+308, far outside"),
        (change_labelme(points=[[1, 2], [3, 4], [5, "1e"]]), "y is '1e', no number"),
        (mask_of(b"no png"), "its mask is no PNG"),
        (mask_of(samples.png(square())), "its mask is of 30 x 20 pixels, its box of 5 x 5"),
        (mask_of(samples.png(np.zeros((5, 5), bool))), "nothing is marked"),
        (mask_of(samples.png(square())[:-9]), "its mask cannot be decoded"),
        (mask_of(huge_png()), "its mask cannot be decoded"),
        (
            change_labelme(shape_type="mask", points=[[6, 4], [10, 8]], mask="?"),
            "cannot be decoded",
        ),
        (change_studio(type="keypointlabels"), "'keypoint' marks no area"),
        (change_studio(original_width=None), "lacks 'original_width'"),
        (change_studio(image_rotation=90), "the image was turned in Label Studio"),
        (change_studio(value={"points": [[1, 2]]}), "a polygon of 1 points"),
        (change_studio(value={"points": 1, "closed": False}), "the polygon is not closed"),
        (change_studio(type="brushlabels", value={"rle": 1 << 40}), "brush strokes cannot be"),
        (change_studio(type="brushlabels", value={"rle": [0, 1, 2, 300]}), "strokes cannot be"),
        (change_studio(type="brushlabels", value={"rle": [255] * 40}), "hold 4294967295 values"),
        (
            change_studio(
                type="brushlabels", value={"rle": samples.RESULTS[1]["value"]["rle"][:-2]}
            ),
            "brush strokes cannot be read",
        ),
        (change_via(name="point"), "'point' marks no area"),
        (change_via(all_points_x=[1]), "has 1 x and 4 y"),
        (change_via(name="polyline"), "a polyline that does not end where it began"),
        (change_via(name="ellipse", cx=1, cy=1, rx=1, ry=-1), "an ellipse of 1 x -1 pixels"),
        (change_via(name="rect", x=1, y=1, width=0, height=1), "a box of 0 x 1 pixels"),
        (
            change_cvat('<points label="x" points="1,2"/>'),
            "points number 0 on hand/a.png: 'points'",
        ),
        (change_cvat('<polyline points="1,2;3,4"/>'), "'polyline' marks no area"),
        (change_cvat('<tag label="x"/>'), "'tag' marks no area"),
        (change_cvat('<polygon points="1,2;3,4,5"/>'), "its points are not 'x,y;x,y;...'"),
        (change_cvat('<box xtl="1" ytl="2" xbr="0" ybr="4"/>'), "a box of -1 x 2 pixels"),
        (change_cvat('<mask rle="1,2" left="0" top="0" width="2" height="2"/>'), "covers 3 pixels"),
        (change_cvat('<mask rle="0,4" left="29" top="0" width="2" height="2"/>'), "juts out of"),
        (change_cvat('<mask rle="4,0" left="0" top="0" width="2" height="2"/>'), "nothing is mark"),
        (
            change_cvat('<mask rle="0,9" left="0" top="0" width="99999" height="99999"/>'),
            "size '99999' x",
        ),
        (change_voc("<xmax>10", "<xmax>6"), "object number 0: a box of 0 x 4 pixels"),
        (change_voc("bndbox", "box"), "has no bndbox"),
        (change_voc("<ymin>4", "<ymin>"), "ymin is '', no number"),
        (("yolo", "0 .5 .5 .1\n" + samples.YOLO), "line 1: holds 3 values behind the class"),
        (("yolo", "0 .5 .5 .1 nan\n" + samples.YOLO), "is in pixels or no number"),
        (("yolo", "bone .5 .5 .1 .1\n" + samples.YOLO), "its class is 'bone', no number"),
    ],
)
def test_a_wrong_entry_is_named_and_the_others_are_read(tmp_path, changed, what):
    kind, content = changed
    source = tmp_path / FILES[kind][0]
    source.parent.mkdir(exist_ok=True)
    source.write_text(content)
    ((image,), (mistake,)) = READERS[kind](source)
    assert what in f"{mistake.where}: {mistake.what}"
    assert mistake.where.startswith(str(source))
    np.testing.assert_array_equal(pixels(image.marks, image.in_shares), square())


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))


@pytest.mark.parametrize(
    "bomb",
    [
        f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]><annotation>&l11;</annotation>',
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>',
    ],
)
@pytest.mark.parametrize("kind", ["cvat", "voc"])
def test_entities_neither_fill_the_memory_nor_fetch_files(tmp_path, kind, bomb):
    (tmp_path / "a.xml").write_text(bomb)
    for reader in (READERS[kind], recognise):
        with pytest.raises(DataError, match=r"a\.xml: no XML"):
            reader(tmp_path / "a.xml")


def test_deep_xml_is_no_harm(tmp_path):
    (tmp_path / "a.xml").write_text("<annotation>" + "<a>" * 200_000)
    with pytest.raises(DataError, match="no XML"):
        READERS["voc"](tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text("<annotation>" + "<a>" * 9999 + "</a>" * 9999 + "</annotation>")
    assert READERS["voc"](tmp_path / "a.xml").images[0].marks == []
