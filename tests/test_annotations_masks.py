"""PNG masks and DICOM segmentations, files and folders as such, and what format a source is in."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from datamodules.annotations import files
from datamodules.annotations.recognition import READERS, recognise
from datamodules.annotations.marks import draw
from datamodules.index import DataError
from tests import annotation_samples as samples
from tests.annotation_samples import HEIGHT, WIDTH, segmentation, square

# pycocotools 2.0.11 still speaks NumPy 1's array protocol; nothing to do about it here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def palette(mask):
    image = Image.fromarray(mask, "P") if mask.dtype == np.uint8 else mask
    image.putpalette([255, 255, 255, 0, 0, 0, 9, 9, 9])
    return image


INDEX = square() // 255
INDEX[0, 0] = 2


@pytest.mark.parametrize(
    "pixels",
    [
        square(),
        square() // 255,
        square() > 0,
        square().astype(np.uint16) * 257,
        np.stack([square()] * 3, axis=-1),
        square() // 2,
    ],
    ids=["0 and 255", "0 and 1", "bits", "16 bits", "RGB", "0 and 127"],
)
@pytest.mark.parametrize("suffix", ["", "_mask", "-mask", ".mask"])
def test_masks_are_read(tmp_path, pixels, suffix):
    (tmp_path / "hand").mkdir()
    Image.fromarray(pixels).save(tmp_path / "hand" / f"a{suffix}.png")
    ((image,), mistakes) = READERS["masks"](tmp_path)
    assert (image.name, image.size, mistakes) == ("hand/a", (HEIGHT, WIDTH), [])
    np.testing.assert_array_equal(draw(image.marks, HEIGHT, WIDTH), square())
    assert recognise(tmp_path) == "masks"


@pytest.mark.parametrize("convert", [Image.fromarray, palette], ids=["grey", "palette"])
def test_numbers_of_classes_are_marked_whatever_their_colours(tmp_path, convert):
    convert(INDEX).save(tmp_path / "a.png")
    ((image,), mistakes) = READERS["masks"](tmp_path)
    assert mistakes == []
    np.testing.assert_array_equal(draw(image.marks, HEIGHT, WIDTH) > 0, INDEX > 0)


def test_a_black_mask_is_an_image_without_marks(tmp_path):
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    assert READERS["masks"](tmp_path).images[0][:3] == ("a", (HEIGHT, WIDTH), [])


def smooth(path):
    Image.fromarray(square()).resize((60, 40), Image.Resampling.BILINEAR).save(path)


def see_through(path):
    Image.fromarray(np.dstack([square()] * 4)).save(path)


def enormous(path):
    content = bytearray(samples.png(square()))
    content[16:24] = (1 << 30).to_bytes(4, "big") * 2
    path.write_bytes(content)


def jpeg(path):
    Image.fromarray(square()).save(path, "JPEG")


def cut_short(path):
    path.write_bytes(samples.png(square())[:-20])


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (smooth, "holds grey in between, such as"),
        (see_through, "is see-through in places"),
        (enormous, "is of 1073741824 x 1073741824 pixels"),
        (jpeg, "is no PNG, whatever its name says"),
        (cut_short, "damaged image"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
    ],
)
def test_a_wrong_mask_is_named_and_the_others_are_read(tmp_path, spoil, what):
    spoil(tmp_path / "a.png")
    Image.fromarray(square()).save(tmp_path / "b.png")
    ((image,), (mistake,)) = READERS["masks"](tmp_path)
    assert image.name == "b"
    assert mistake.where == str(tmp_path / "a.png")
    assert what in mistake.what


def frames(*masks):
    return np.stack(masks, axis=-1)[None]


@pytest.mark.parametrize(("kind", "high"), [("BINARY", 1), ("FRACTIONAL", 0.6)])
def test_a_dicom_segmentation_is_read(tmp_path, kind, high):
    corner = np.zeros((HEIGHT, WIDTH))
    corner[0, :3] = high
    low = np.full((HEIGHT, WIDTH), 0.4 if kind == "FRACTIONAL" else 0)
    first = np.maximum(square() / 255 * high, low)
    mask = frames(first, corner).astype(np.uint8 if kind == "BINARY" else np.float32)
    ((image,), mistakes) = READERS["dicom-seg"](segmentation(tmp_path / "s.dcm", mask, kind))
    assert (image.name, image.size, mistakes) == ("1.2.3.4", (HEIGHT, WIDTH), [])
    assert [mark.labels for mark in image.marks] == [("fracture",), ("metal",)]
    np.testing.assert_array_equal(draw(image.marks[:1], HEIGHT, WIDTH), square())
    assert draw(image.marks[1:], HEIGHT, WIDTH).sum() == 3 * 255
    assert recognise(tmp_path) == recognise(tmp_path / "s.dcm") == "dicom-seg"


def change_dicom(path, **values):
    from pydicom import dcmread

    data = dcmread(segmentation(path, frames(square() // 255)))
    for name, value in values.items():
        setattr(data.file_meta if "Syntax" in name else data, name, value)
    data.save_as(path)
    return path


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"NumberOfFrames": 99_999_999}, "holds 99999999 frames of 30 x 20; split it"),
        ({"Rows": 0}, "has the size 30 x 0"),
        ({"Rows": 40}, "damaged DICOM (ValueError); export it again"),
        (
            {"SharedFunctionalGroupsSequence": None, "PerFrameFunctionalGroupsSequence": None},
            "damaged DICOM (AttributeError)",
        ),
    ],
)
def test_a_wrong_segmentation_is_named(tmp_path, values, what):
    images, (mistake,) = READERS["dicom-seg"](change_dicom(tmp_path / "s.dcm", **values))
    assert images == []
    assert mistake.where == str(tmp_path / "s.dcm")
    assert what in mistake.what


def test_a_compressed_segmentation_is_not_unpacked(tmp_path):
    path = segmentation(tmp_path / "s.dcm", frames(square() // 255))
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0", 1)
    path.write_bytes(content)
    _, (mistake,) = READERS["dicom-seg"](path)
    assert "is compressed (transfer syntax 1.2.840.10008.1.2.5); save it uncomp" in mistake.what


def test_a_folder_without_segmentation_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no DICOM segmentation"):
        READERS["dicom-seg"](tmp_path)


@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_annotation_is_refused(tmp_path, kind):
    (tmp_path / "x.json").mkdir()
    (tmp_path / "empty.json").write_bytes(b"")
    (tmp_path / "latin.json").write_bytes('{"é": 1}'.encode("utf-16"))
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    for name in ("missing.json", "x.json", "empty.json", "latin.json", "pipe.json", "loop.json"):
        for reader in (READERS[kind], recognise):
            if (kind, name) == ("yolo", "empty.json") and reader is not recognise:
                continue  # an image without marks
            with pytest.raises(DataError, match=f"{name}"):
                reader(tmp_path / name)


def test_links_in_a_circle_are_followed_once(tmp_path):
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand" / "again").symlink_to(tmp_path)
    Image.fromarray(square()).save(tmp_path / "hand" / "a.png")
    assert [image.name for image in READERS["masks"](tmp_path).images] == ["hand/a"]


def test_a_file_of_no_annotations_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 20)
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(DataError, match=r"a\.json: holds 1 MiB, no annotation file does; split it"):
        READERS["coco"](tmp_path / "a.json")


def test_radiographs_beside_annotations_do_not_count(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps(samples.LABELME))
    assert recognise(tmp_path) == "labelme"
    (tmp_path / "a.txt").write_text(samples.YOLO)
    with pytest.raises(
        DataError, match=r"formats, labelme \(a\.json\), yolo \(a\.txt\); say which"
    ):
        recognise(tmp_path)


def test_a_source_of_no_known_format_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    for source in (tmp_path, tmp_path / "a.json"):
        with pytest.raises(DataError, match=r"in no format that is known .masks, coco, cvat"):
            recognise(source)
