"""Decoding: every kind of file gives the same grey picture, or an error that names it."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules.decode import PNG, decode, decode_noted, upright_size, window_16bit
from datamodules.index import DataError
from tests.dicoms import content, radiograph
from tests.real import real_data

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
def grey():
    return np.add.outer(np.arange(24) * 6, np.arange(40) * 2).astype(np.uint8)


def save(folder, image, suffix=".png", **options):
    path = folder / f"image{suffix}"
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def assert_silent(capfd):
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_png_of_any_mode_gives_the_same_grey(tmp_path, grey, mode):
    np.testing.assert_array_equal(decode(save(tmp_path, Image.fromarray(grey).convert(mode))), grey)


def test_transparent_pixels_keep_their_grey(tmp_path, grey):
    clear = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    np.testing.assert_array_equal(decode(save(tmp_path, clear)), grey)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_grey_to_the_coding_error(tmp_path, grey, mode):
    path = save(tmp_path, Image.fromarray(grey).convert(mode), ".jpg", quality=98)
    pixels = decode(path)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - grey).max() <= 4


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_exif_orientation_is_applied(tmp_path, grey, orientation, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 98} if suffix == ".jpg" else {}
    path = save(tmp_path, grey, suffix, exif=exif, **options)
    expected = UNDO[orientation](grey)
    assert upright_size(path) == expected.shape
    pixels = decode(path)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 4


def test_twelve_bits_in_sixteen_fill_the_range(tmp_path):
    pixels = decode(save(tmp_path, np.arange(4096, dtype=np.uint16).reshape(64, 64)))
    assert pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert 127 <= pixels.mean() <= 128


def test_16_bit_colour_is_windowed_like_grey(tmp_path):
    grey = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = tmp_path / "image.png"
    path.write_bytes(cv2.imencode(".png", np.dstack([grey] * 3))[1].tobytes())
    np.testing.assert_array_equal(decode(path), window_16bit(grey)[0])


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.99])
def test_a_file_cut_short_is_refused_quietly(tmp_path, suffix, kept, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = save(tmp_path, noise, suffix)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=rf"image\{suffix}: damaged image .*cut short"):
        decode(path)
    path.write_bytes(whole[: int(len(whole) * kept)] + bytes(1000))  # a download reserved its space
    with pytest.raises(DataError, match=rf"image\{suffix}: damaged image"):
        decode(path)
    assert_silent(capfd)


def test_a_jpeg_cut_within_its_thumbnail_bearing_body_is_refused(tmp_path, grey):
    path = save(tmp_path, np.tile(grey, (4, 4)), ".jpg")
    whole = path.read_bytes()
    comment = b"\xff\xfe\x00\x06a\xff\xd9b"  # an end marker inside a comment, as in a thumbnail
    path.write_bytes(whole[:2] + comment + whole[2 : len(whole) // 2])
    with pytest.raises(DataError, match="the JPEG is cut short"):
        decode(path)


RANDOM = np.random.default_rng(0)


def jpeg(mode="L", **options):
    file, noise = io.BytesIO(), RANDOM.integers(0, 256, (96, 128, 4), dtype=np.uint8)
    Image.fromarray(noise).convert("RGB").convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


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
        cut(jpeg("CMYK")) + b"\xff\xd9",
        cut(jpeg()) + jpeg(),  # a second picture appended to a cut one
        cut(jpeg()) + bytes(512) + jpeg()[len(jpeg()) // 2 + 512 :],  # a bad sector
        jpeg()[:2000] + jpeg()[2300:],
        jpeg(restart_marker_rows=1).replace(b"\xff\xd3", b"", 1),
        jpeg()[:-2] + bytes(9) + b"\xff\xd9",  # more than its pixels need
        jpeg()[:-2],
        fields(cut(jpeg()), 2),  # a harmless warning hides none that is not
        fields(cut(jpeg("RGB")), 2) + b"\xff\xd9",
    ],
)
def test_a_jpeg_that_libjpeg_warns_of_is_refused(tmp_path, content, capfd):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    for read in (decode, upright_size):
        with pytest.raises(
            DataError, match=r"image\.jpg: damaged image \(the JPEG is cut short or"
        ):
            read(path)
    assert_silent(capfd)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("given", [{"revision": 2}, {"scan": b"\0\0\0"}, {"scan": b"\0?\x11"}])
def test_fields_that_cost_no_pixel_are_put_right(tmp_path, mode, given):
    path, whole = tmp_path / "image.jpg", jpeg(mode)
    path.write_bytes(whole)
    expected = decode(path)
    path.write_bytes(fields(whole, **{"scan": b"\0?\0"} | given))
    np.testing.assert_array_equal(decode(path), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_bytes_around_a_whole_jpeg_do_not_matter(tmp_path, mode, options, capfd):
    (tmp_path / "image.jpg").write_bytes(whole := jpeg(mode, **options))
    plain = decode(tmp_path / "image.jpg")
    for data in (
        whole + b"written by some camera" * 20,
        whole + jpeg(),  # as in MPO
        whole[:-2] + b"\xff\xff" + whole[-2:],  # fill bytes
        whole[:2] + app(0xE1, b"Exif\0\0garbage") + app(0xFE, b"a comment \xff\xd9") + whole[2:],
    ):
        (tmp_path / "image.jpg").write_bytes(data)
        np.testing.assert_array_equal(decode(tmp_path / "image.jpg"), plain)
    assert_silent(capfd)


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path, grey, capfd):
    path = save(tmp_path, grey)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="checksum of its IDAT chunk is wrong"):
        decode(path)
    assert_silent(capfd)


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))


def png(grey, drop=0, edit=lambda stream: stream, interlaced=False, extra=b""):
    """An 8-bit PNG whose checksums hold, whatever was done to its pixel data."""
    passes = (*ADAM7, (0, 1, 1, 2)) if interlaced else ((0, 0, 1, 1),)
    raw = b"".join(
        b"\0" + row[x::right].tobytes() for x, y, right, down in passes for row in grey[y::down]
    )
    head = struct.pack(">IIBBBBB", *grey.shape[::-1], 8, 0, 0, 0, interlaced)
    stream = edit(zlib.compress(raw[: len(raw) - drop]))
    parts = (b"IHDR", head), (b"IDAT", stream[:50]), (b"IDAT", stream[50:]), (b"IEND", b"")
    return PNG + chunk(*parts[0]) + extra + b"".join(chunk(*part) for part in parts[1:])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        {"drop": 41},
        {"drop": 7},
        {"edit": lambda stream: stream[:-9]},
        {"edit": lambda stream: stream[:-2]},
        {"edit": lambda stream: stream[:-1] + b"x"},
        {"edit": lambda stream: b"no zlib stream"},
    ],
)
def test_a_png_whose_checksums_hold_but_not_its_pixels(tmp_path, grey, damage, interlaced):
    path = tmp_path / "image.png"
    path.write_bytes(png(grey, interlaced=interlaced) + b"behind its end")
    np.testing.assert_array_equal(decode(path), grey)
    path.write_bytes(png(grey, interlaced=interlaced, **damage))
    for read in (decode, upright_size):
        with pytest.raises(DataError, match=r"image\.png: damaged image \("):
            read(path)


def tiff(turn, order="<"):
    """EXIF: an orientation in its first directory, 8 in that of the thumbnail."""
    field = struct.Struct(f"{order}HHHIHHI").pack
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return head + field(1, 0x0112, 3, 1, turn, 0, 26) + field(1, 0x0112, 3, 1, 8, 0, 0)


def jpeg_with(grey, segments):
    """A JPEG with more segments at its beginning, and bytes behind its end."""
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=98)
    return file.getvalue()[:2] + segments + file.getvalue()[2:] + b"behind its end"


XMP = b'<rdf:Description tiff:Orientation="6" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/>'
XMP_APP = app(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
JFIF = app(0xE0, b"JFIF\0\1\2\0\0\1\0\1\0\0")
RAW_PROFILE = b"\nexif\n      50\n" + (b"Exif\0\0" + tiff(6)).hex().encode() + b"\n"


@pytest.mark.parametrize(
    ("put_in", "turn"),
    [
        (XMP_APP, 1),  # not applied, as OpenCV and most viewers have it
        (XMP_APP + app(0xE1, b"Exif\0\0" + tiff(3)), 3),
        (app(0xE1, b"Exif\0\0" + tiff(8)) + JFIF + XMP_APP, 8),
        (app(0xE1, b"Exif\0\0" + tiff(6, ">")), 6),
        (app(0xE1, b"Exif\0\0" + tiff(0)), 1),
        (app(0xE1, b"Exif\0\0" + tiff(9)), 1),
        (app(0xE1, b"Exif\0\0" + b"garbage"), 1),
        (chunk(b"eXIf", tiff(6)), 6),
        (chunk(b"eXIf", tiff(8, ">")), 8),
        (chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), 1),
        (chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE)), 1),
    ],
    ids=range(11),
)
def test_size_and_pixels_are_of_the_same_turn(tmp_path, grey, put_in, turn):
    path, is_jpeg = tmp_path / "image", put_in[0] == 0xFF
    path.write_bytes(jpeg_with(grey, put_in) if is_jpeg else png(grey, extra=put_in))
    expected = UNDO[turn](grey)
    assert upright_size(path) == decode(path).shape == expected.shape
    assert np.abs(decode(path).astype(int) - expected).max() <= 4


@pytest.mark.parametrize("file", [png(np.zeros((1, 1), np.uint8)), jpeg("CMYK"), "DICOM"])
def test_whatever_can_be_decoded_has_a_size(tmp_path, grey, file):
    data = content(radiograph(grey)) if file == "DICOM" else file
    (tmp_path / "image").write_bytes(data)
    pixels, note = decode_noted(data, tmp_path / "image")
    assert upright_size(tmp_path / "image") == pixels.shape
    assert note == ""


def test_zero_size_is_refused(tmp_path, grey, capfd):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 8, 8, 0, 0, 0, 0))
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"image\.png: damaged image \(its size is zero\)"):
        decode(path)
    assert_silent(capfd)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"Doe, John: fracture", "neither a PNG nor a JPEG file nor DICOM.*convert it to PNG"),
        (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "neither a PNG nor a JPEG"),
    ],
)
def test_other_content_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "._image.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"\._image\.png: {message}") as caught:
        decode(tmp_path / "._image.png")
    assert "Doe" not in str(caught.value)  # it may be a report of a patient


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: cannot be read \(No such file"):
        decode(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory"):
        decode(tmp_path)
    with pytest.raises(DataError, match=r"gone\.png: cannot be read \(No such file"):
        upright_size(tmp_path / "gone.png")


def test_real_radiographs_agree_with_pillow():
    root = real_data("fracatlas_fixture")
    from PIL import ImageOps

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
        assert pixels.shape == upright_size(path)
        assert 40 < pixels.mean() < 160
        assert (pixels.min(), pixels.max()) == (0, 255)
