"""Choosing marks by their class: what bears another name neither counts nor is in the way."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from tests.lesion_files import BOX, HEIGHT, WIDTH, build, image, run_import

# pycocotools 2.0.11 still speaks NumPy 1's array protocol; nothing to do about it here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CORNERS = ";".join(f"{x},{y}" for x, y in zip(BOX[::2], BOX[1::2], strict=True))
POLYGON = f'<polygon label="lesion" points="{CORNERS}"/>'


@pytest.fixture
def out(tmp_path):
    return tmp_path / "lesions"


@pytest.fixture
def run(tmp_path, out):
    """Run the command on the small tree; its exit status."""
    return partial(run_import, build(tmp_path), out)


def write_cvat(path, *shapes):
    """Each image, patients 2, 4 and so on, with its shapes."""
    images = "".join(
        f'<image id="{n}" name="{image(2 * n + 2)}" width="{WIDTH}" height="{HEIGHT}">{own}</image>'
        for n, own in enumerate(shapes)
    )
    path.write_text(f"<annotations>{images}</annotations>")
    return path


def write_studio(path, *labels):
    """The box on patients 2, 4 and so on, each with the classes of one region."""
    points = [[x * 100 / WIDTH, y * 100 / HEIGHT] for x, y in zip(*[iter(BOX)] * 2, strict=True)]
    tasks = []
    for n, own in enumerate(labels):
        result = {"id": "r", "type": "polygonlabels", "value": {"points": points}}
        result |= {"original_width": WIDTH, "original_height": HEIGHT}
        result["value"]["polygonlabels"] = own
        data = {"image": image(2 * n + 2)}
        tasks.append({"id": n, "data": data, "annotations": [{"result": [result]}]})
    path.write_text(json.dumps(tasks))
    return path


def test_points_of_another_class_are_not_in_the_way(run, out, tmp_path, capsys):
    marker = '<points label="side marker" points="1,2"/>'
    source = write_cvat(tmp_path / "a.xml", POLYGON + marker, marker)
    assert run(source, "--labels", "lesion") == 0
    assert pd.read_csv(out / "lesions.csv")["image"].tolist() == [image(2)]
    assert "labelled abnormal, but without a mark: 1 image, such as" in capsys.readouterr().out


@pytest.mark.parametrize("marker", ['<points label="lesion"/>', '<points points="1,2"/>'])
def test_points_that_may_be_the_lesion_keep_their_image_out(run, out, tmp_path, capsys, marker):
    source = write_cvat(tmp_path / "a.xml", POLYGON + marker, POLYGON)
    assert run(source, "--labels", "lesion") == 1
    assert pd.read_csv(out / "lesions.csv")["image"].tolist() == [image(4)]
    assert "'points' marks no area" in capsys.readouterr().err


def test_a_region_of_several_classes_is_of_each(run, out, tmp_path, capsys):
    source = write_studio(tmp_path / "a.json", ["fracture"], ["fracture", "lytic"], ["text"])
    assert run(source, "--labels", "fracture") == 0
    rows = pd.read_csv(out / "lesions.csv")
    assert rows["image"].tolist() == [image(2), image(4)]
    assert rows["lesion_type"].tolist() == ["fracture", "fracture+lytic"]
    assert "marks    fracture 2, lytic 1, text 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "patients"),
    [
        (["--labels", "lytic, fracture"], [2, 6]),
        (["--labels", "lytic", "--labels", "fracture"], [2, 6]),
        (["--labels", "bone, broken"], [4]),
        (["--labels", "bone, broken", "--labels", "lytic"], [4, 6]),
    ],
)
def test_classes_are_chosen_by_whole_names(run, out, tmp_path, words, patients):
    source = write_studio(tmp_path / "a.json", ["fracture"], ["bone, broken"], ["lytic"])
    assert run(source, *words) == 0
    rows = pd.read_csv(out / "lesions.csv")
    assert rows["image"].tolist() == [image(patient) for patient in patients]


def test_a_class_that_does_not_occur_is_told(run, out, tmp_path, capsys):
    source = write_studio(tmp_path / "a.json", ["fracture"], ["bone, broken"])
    assert run(source, "--labels", "fracture,bone") == 2
    error = capsys.readouterr().err
    assert "--labels 'bone': nothing is marked as that" in error
    assert "there are 'bone, broken', 'fracture' labels" in error
    assert not out.exists()


def test_a_checkbox_of_via_is_of_all_that_is_ticked(run, out, tmp_path):
    x, y = BOX[::2], BOX[1::2]
    shape = {"name": "polygon", "all_points_x": x, "all_points_y": y}
    ticked = {"kind": {"lytic": True, "fracture": True, "metal": False}}
    region = {"shape_attributes": shape, "region_attributes": ticked}
    content = {"a": {"filename": image(2), "size": 1, "regions": [region]}}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert run(tmp_path / "a.json", "--labels", "lytic") == 0
    assert pd.read_csv(out / "lesions.csv")["lesion_type"].tolist() == ["fracture+lytic"]


def test_the_chosen_marks_alone_are_drawn(run, out, tmp_path):
    other = '<polygon label="text" points="1,20;8,20;8,28"/>'
    assert run(write_cvat(tmp_path / "a.xml", POLYGON + other), "--labels", "lesion") == 0
    from PIL import Image

    mask = np.array(Image.open(out / "masks" / f"{image(2)}.png"))
    assert (mask > 0).sum() == 80
