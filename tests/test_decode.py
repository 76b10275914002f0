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

from datamodules.decode import decode, upright_size, window_16bit
from datamodules.index import DataError
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
    np.testing.assert_array_equal(decode(path), window_16bit(grey))


def test_window_ignores_a_few_outliers_and_agrees_with_quantiles():
    rng = np.random.default_rng(0)
    pixels = rng.integers(1000, 3000, (100, 100)).astype(np.uint16)
    pixels[0, :5] = 65535
    low, high = np.quantile(pixels, [0.001, 0.999])
    reference = np.clip((pixels - low) / (high - low), 0, 1) * 255
    assert np.abs(window_16bit(pixels) - reference).max() < 1.5


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_window_of_a_constant_image_is_black(value):
    assert not window_16bit(np.full((5, 4), value, np.uint16)).any()


def test_window_keeps_a_tiny_mark_on_a_constant_image():
    pixels = np.zeros((100, 100), np.uint16)
    pixels[3, 3] = 900
    assert window_16bit(pixels)[3, 3] == 255


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


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_followed_by_other_bytes_is_whole(tmp_path, grey, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path, Image.fromarray(grey).convert("RGB"), ".jpg", exif=exif)
    plain = decode(path)
    path.write_bytes(path.read_bytes() + b"written by some camera" * 20)
    assert np.abs(decode(path).astype(int) - plain).max() <= 1


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path, grey, capfd):
    path = save(tmp_path, grey)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="checksum of its IDAT chunk is wrong"):
        decode(path)
    assert_silent(capfd)


def test_a_png_whose_checksums_hold_but_not_its_stream(tmp_path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    content = header + chunk(b"IDAT", b"no zlib stream") + chunk(b"IEND", b"")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(DataError, match=r"image\.png: damaged image \(its content cannot"):
        decode(tmp_path / "image.png")


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
    with pytest.raises(DataError, match=r"gone\.png: there is no such file"):
        upright_size(tmp_path / "gone.png")


def test_size_of_an_unreadable_header(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.jpg: damaged image"):
        upright_size(tmp_path / "a.jpg")


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
