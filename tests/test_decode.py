"""Decoding: every kind of file gives the same grey picture, or an error that names it."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from datamodules.decode import PNG, decode, upright_size
from datamodules.index import DataError
from datamodules.pixels import window_16bit
from tests.real import real_data

RANDOM = np.random.default_rng(0)
GREY = np.add.outer(np.arange(24) * 6, np.arange(40) * 2).astype(np.uint8)
ORIENTATION = 0x0112
UNDO = {  # what a viewer does for each EXIF orientation, written with NumPy alone
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a[::-1].T,
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: a.T[::-1],
}


@pytest.fixture
def read(tmp_path, capfd):
    """Decode the content of a file; nothing reaches stdout or stderr, and its size agrees."""

    def read(content, name="image"):
        path = tmp_path / name
        path.write_bytes(content)
        try:
            pixels = decode(path)
            assert upright_size(path) == pixels.shape
            return pixels
        finally:
            assert capfd.readouterr() == ("", "")

    return read


def encoded(pixels, kind="PNG", mode=None, **options):
    file, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def jpeg(mode="L", **options):
    noise = RANDOM.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    return encoded(noise, "JPEG", mode, **options)


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "clear"])
def test_png_of_any_mode_gives_the_same_grey(read, mode):
    clear = np.dstack([GREY, GREY, GREY, GREY * 0])  # see-through pixels keep their grey
    data = encoded(clear) if mode == "clear" else encoded(GREY, mode=mode)
    np.testing.assert_array_equal(read(data), GREY)


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(read, orientation, kind):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 98} if kind == "JPEG" else {}
    pixels = read(encoded(GREY, kind, "RGB", exif=exif, **options))
    expected = UNDO[orientation](GREY)
    assert (pixels.dtype, pixels.shape) == (np.uint8, expected.shape)
    assert np.abs(pixels.astype(int) - expected).max() <= 4 * (kind == "JPEG")


def test_twelve_bits_in_sixteen_fill_the_range_also_in_colour(read):
    grey = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    pixels = read(encoded(grey))
    assert (pixels.dtype, pixels.min(), pixels.max()) == (np.uint8, 0, 255)
    assert 127 <= pixels.mean() <= 128
    colour = cv2.imencode(".png", np.dstack([grey] * 3))[1].tobytes()
    np.testing.assert_array_equal(read(colour), window_16bit(grey)[0])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0.02, 0.7, 0.99])
@pytest.mark.parametrize("end", [0, 1000])  # a download reserved its space
def test_a_file_cut_short_is_refused(read, kind, kept, end):
    whole = encoded(RANDOM.integers(0, 256, (64, 64), dtype=np.uint8), kind)
    with pytest.raises(DataError, match=r"image: damaged image .*cut short"):
        read(whole[: int(len(whole) * kept)] + bytes(end))


def app(marker, body):
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def fields(whole, revision=1, scan=bytes(3)):
    """A sequential JPEG with the JFIF revision and the parameters of its scan replaced."""
    place = whole.index(b"\xff\xda")
    place += 5 + 2 * whole[place + 4]
    return whole[:11] + bytes([revision]) + whole[12:place] + scan + whole[place + 3 :]


def cut(whole):
    """The first half of a JPEG."""
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    "content",
    [
        cut(jpeg()) + b"\xff\xd9",  # and ended by a tool
        cut(jpeg(progressive=True)) + b"\xff\xd9",
        cut(jpeg()) + jpeg(),  # a second picture appended to a cut one
        cut(jpeg()) + bytes(512) + jpeg()[len(jpeg()) // 2 + 512 :],  # a bad sector
        jpeg()[:2000] + jpeg()[2300:],
        jpeg()[:-2],
        fields(cut(jpeg()), 2),  # a harmless warning hides none that is not
    ],
)
def test_a_jpeg_that_libjpeg_warns_of_is_refused(read, content):
    with pytest.raises(DataError, match=r"image: damaged image \(the JPEG is cut short or"):
        read(content)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("given", [{"revision": 2}, {"scan": b"\0\0\0"}, {"scan": b"\0?\x11"}])
def test_fields_that_cost_no_pixel_are_put_right(read, mode, given):
    whole = jpeg(mode)
    np.testing.assert_array_equal(read(fields(whole, **{"scan": b"\0?\0"} | given)), read(whole))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_bytes_around_a_whole_jpeg_do_not_matter(read, mode):
    whole = jpeg(mode)
    plain = read(whole)
    for data in (
        whole + b"written by some camera" * 20,
        whole + jpeg(),  # as in MPO
        whole[:-2] + b"\xff\xff" + whole[-2:],  # fill bytes
        whole[:2] + app(0xE1, b"Exif\0\0garbage") + app(0xFE, b"a comment \xff\xd9") + whole[2:],
    ):
        np.testing.assert_array_equal(read(data), plain)


def test_a_flipped_bit_in_a_png_is_noticed(read):
    content = bytearray(encoded(GREY))
    content[len(content) // 2] ^= 1
    with pytest.raises(DataError, match="damaged image .*the PNG is cut short or damaged: broken"):
        read(content)


XMP = b'<rdf:Description tiff:Orientation="6" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/>'
XMP_APP = app(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)


def jpeg_with(grey, segments):
    """A JPEG with more segments at its beginning, and bytes behind its end."""
    whole = encoded(grey, "JPEG", quality=98)
    return whole[:2] + segments + whole[2:] + b"behind its end"


def test_an_orientation_in_xmp_is_not_applied_as_most_viewers_have_it(read):
    assert np.abs(read(jpeg_with(GREY, XMP_APP)).astype(int) - GREY).max() <= 4


HUGE = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**15, 2**15, 8, 0, 0, 0, 0))
LARGE = chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"Doe, John: fracture", "expected a PNG, JPEG or DICOM file.*convert it to PNG"),
        (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "expected a PNG, JPEG or DICOM"),
        (PNG + HUGE + chunk(b"IEND", b""), "damaged image .*size .* exceeds limit"),
        (PNG + LARGE + chunk(b"IEND", b""), r"damaged image .*claims 9,000 x 9,000 pixels"),
    ],
)
def test_other_content_is_refused_by_name(read, content, message):
    with pytest.raises(DataError, match=rf"\._image\.png: {message}") as caught:
        read(content, "._image.png")
    assert "Doe" not in str(caught.value)  # it may be a report of a patient


def test_missing_files_folders_and_large_ones_are_named(tmp_path, monkeypatch):
    for path, reason in ((tmp_path / "gone.png", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=rf"{path.name}: cannot be read \({reason}"):
            decode(path)
    monkeypatch.setattr("datamodules.decode.MOST_BYTES", 10)
    (tmp_path / "large.png").write_bytes(bytes(11))
    with pytest.raises(DataError, match=r"large\.png: the file has 11 bytes, more than 10"):
        decode(tmp_path / "large.png")


def test_real_radiographs_agree_with_pillow():
    root = real_data("fracatlas_fixture")
    turned = 0
    for row in pd.read_csv(root / "manifest.csv").itertuples():
        path = root / row.image
        if not row.decodable:
            with pytest.raises(DataError, match=f"{path.name}: damaged image .*cut short"):
                decode(path)
            continue
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.draft("L", image.size)
            reference = np.array(ImageOps.exif_transpose(image).convert("L"), dtype=int)
        pixels = decode(path)
        assert upright_size(path) == pixels.shape == reference.shape
        assert np.abs(pixels - reference).max() <= 1
        turned += row.exif_orientation != 1
    assert turned >= 1


def test_real_16_bit_radiographs_are_neither_black_nor_white():
    for path in real_data("grazpedwri_sample").glob("*.png"):
        pixels = decode(path)
        assert 40 < pixels.mean() < 160
        assert (pixels.min(), pixels.max()) == (0, 255)
