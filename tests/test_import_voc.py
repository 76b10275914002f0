"""Pascal VOC whose file names alone are ambiguous: the path or folder beside them settles it."""

from __future__ import annotations

from functools import partial

import pandas as pd
import pytest

from tests.lesion_files import build, image, run_import

# pycocotools 2.0.11 still speaks NumPy 1's array protocol; nothing to do about it here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BOX = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "lesions"


@pytest.fixture
def run(tmp_path, out):
    """Run the command on the small tree; its exit status."""
    return partial(run_import, build(tmp_path), out)


def write(path, about):
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f"<annotation>{about}<filename>image1.png</filename><object>{BOX}</object></annotation>"
    )


@pytest.mark.parametrize(
    "about",
    [
        f"<path>/home/anna/MURA-v1.1/{image(4)}</path>",
        f"<path>C:\\data\\{image(4)}</path>".replace("/", "\\").replace("<\\", "</"),
        f"<folder>{image(4).removesuffix('/image1.png')}</folder>",
        f"<folder>study1_positive</folder><path>{image(4)}</path>",
    ],
)
def test_path_or_folder_settle_a_name_that_may_be_several(run, out, tmp_path, about):
    write(tmp_path / "voc" / "a.xml", about)
    assert run(tmp_path / "voc") == 0
    assert pd.read_csv(out / "lesions.csv")["image"].tolist() == [image(4)]


@pytest.mark.parametrize(
    "about",
    [
        "",
        "<folder>study1_positive</folder>",
        f"<path>{image(2, 2)}</path>",
        f"<path>{image(4)}</path><folder>{image(2).removesuffix('/image1.png')}</folder>",
    ],
    ids=["none", "still several", "another file", "at odds"],
)
def test_what_is_not_certain_stays_a_mistake(run, out, tmp_path, capsys, about):
    write(tmp_path / "voc" / "a.xml", about)
    assert run(tmp_path / "voc") == 2
    assert "image1.png may be any of 3" in capsys.readouterr().err
    assert not out.exists()
