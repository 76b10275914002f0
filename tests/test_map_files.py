"""Reading one map of a stranger's: what is accepted, and what each refusal says."""

from __future__ import annotations

import pickle
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from experiments.evaluation.map_files import read_map
from PIL import Image

from datamodules.index import DataError

SIZE = 30, 40
WHOLE = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {SIZE}}}"


@pytest.fixture
def values():
    """A map whose values an 8-bit file holds exactly."""
    return (np.random.default_rng(0).integers(0, 256, SIZE) / 255).astype(np.float32)


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(size=SIZE, depth=8, colour=0, pixels=None, extra=b""):
    """The bytes of a PNG, as its header tells or not."""
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, 0)
    raw = b"".join(b"\0" + bytes(SIZE[1]) for _ in range(SIZE[0])) if pixels is None else pixels
    parts = [chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def npy(text, body=b"", version=(1, 0)):
    """The bytes of an .npy file with this header."""
    line = text.encode("latin1") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(line))
    return b"\x93NUMPY" + bytes(version) + length + line + body


def refused(tmp_path, name, content, size=SIZE):
    """What is said of a file with this content."""
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith(".npy"):
        np.save(path, content)
    else:
        Image.fromarray(content).save(path)
    with pytest.raises(DataError) as caught:
        read_map(path, size)
    told = str(caught.value)
    assert told.startswith(f"{path}: ")
    return told.removeprefix(f"{path}: ")


@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_spans_0_to_1(tmp_path, values, bits):
    highest = 2**bits - 1
    stored = np.rint(values * highest).astype(f"uint{bits}")
    cv2.imwrite(str(tmp_path / "a.png"), stored)
    read = read_map(tmp_path / "a.png", SIZE)
    assert read.dtype == np.float32
    assert np.array_equal(read, stored.astype(np.float32) / np.float32(highest))
    assert np.abs(read - values).max() <= 0.5 / highest


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_an_npy_is_read_as_float32(tmp_path, values, dtype):
    np.save(tmp_path / "a.npy", values.astype(dtype))
    read = read_map(tmp_path / "a.npy", SIZE)
    assert read.dtype == np.float32
    assert np.array_equal(read, values.astype(dtype).astype(np.float32))


def test_a_channel_axis_and_columns_first_are_accepted(tmp_path, values):
    np.save(tmp_path / "channel.npy", values[None])
    np.save(tmp_path / "columns.npy", np.asfortranarray(values))
    assert np.array_equal(read_map(tmp_path / "channel.npy", SIZE), values)
    assert np.array_equal(read_map(tmp_path / "columns.npy", SIZE), values)


def test_what_rounding_leaves_outside_is_cut(tmp_path, values):
    values[0, :2] = -5e-7, 1 + 5e-7
    np.save(tmp_path / "a.npy", values)
    read = read_map(tmp_path / "a.npy", SIZE)
    assert (read[0, 0], read[0, 1]) == (0, 1)


def test_a_map_lies_as_it_is_stored(tmp_path, values):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    stored = np.rint(values * 255).astype(np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_map(tmp_path / "a.png", SIZE), values)


@pytest.mark.parametrize(
    ("size", "remedy"),
    [
        ((40, 30), "it lies on its side: make it of the upright image (EXIF orientation applied)"),
        ((15, 20), "resize it: cv2.resize(map, (40, 30), interpolation=cv2.INTER_LINEAR)"),
        ((60, 80), "resize it: cv2.resize(map, (40, 30), interpolation=cv2.INTER_LINEAR)"),
        ((9, 10), "make it of the whole upright image, not cropped, at the image's own size"),
        ((20, 20), "take what was added to make it square off, then resize it to the image's size"),
        ((0, 0), "take what was added to make it square off, then resize it to the image's size"),
    ],
)
def test_another_size_is_refused_with_what_to_do(tmp_path, size, remedy):
    told = refused(tmp_path, "a.npy", np.zeros(size, np.float32))
    assert told == (
        f"is {size[1]}x{size[0]} px, its image upright 40x30 px (width x height); {remedy}"
    )
    if min(size):
        assert refused(tmp_path, "a.png", np.zeros(size, np.uint8)) == told


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "is colour;"),
        ("RGBA", "is colour with transparency;"),
        ("LA", "is grey with transparency;"),
        ("P", "is a palette;"),
        ("1", "is grey of 1 bits;"),
    ],
)
def test_a_png_of_another_kind_is_refused(tmp_path, mode, kind):
    image = Image.fromarray(np.zeros(SIZE, np.uint8)).convert(mode)
    image.save(tmp_path / "a.png")
    told = refused(tmp_path, "a.png", (tmp_path / "a.png").read_bytes())
    assert told == f"{kind} save the map as 8- or 16-bit grey"


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (np.full(SIZE, np.nan, np.float32), "1,200 of 1,200 values are NaN or infinite; write 0"),
        (np.where(np.eye(*SIZE), np.inf, 0), "30 of 1,200 values are NaN or infinite; write 0"),
        (np.eye(*SIZE) * 255, "its values reach from 0 to 255; scale the maps, all alike, into"),
        (np.eye(*SIZE) - 0.5, "its values reach from -0.5 to 0.5; scale the maps, all alike"),
        (np.eye(*SIZE, dtype=np.uint8), "holds uint8; save float32 in [0, 1]"),
        (np.eye(*SIZE, dtype=bool), "holds bool; save float32"),
        (np.eye(*SIZE, dtype=np.complex64), "holds complex64; save float32"),
        (np.zeros((3, *SIZE), np.float32), "has the shape (3, 30, 40); a map is (H, W), or"),
        (np.zeros(1200, np.float32), "has the shape (1200,); a map is (H, W), or (1, H, W)"),
    ],
)
def test_an_array_that_is_no_map_is_refused(tmp_path, stored, said):
    assert said in refused(tmp_path, "a.npy", stored)


class Trap:
    """A pickle that leaves a file behind when it is run."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def test_objects_are_never_loaded(tmp_path):
    trace = tmp_path / "trace"
    traps = np.full(SIZE, None)
    traps[:] = Trap(trace)
    said = refused(tmp_path, "a.npy", traps)
    assert "holds Python objects, which are never loaded; save the numbers alone" in said
    said = refused(tmp_path, "b.npy", pickle.dumps(Trap(trace)))
    assert "is no whole .npy file (ValueError: the magic string is not correct" in said
    assert not trace.exists()


def test_a_file_that_is_not_what_its_suffix_says_is_refused(tmp_path):
    assert "is no PNG file, whatever its name says; convert it" in refused(
        tmp_path, "a.png", npy("{}") + bytes(64)
    )
    assert "is no whole .npy file (ValueError" in refused(tmp_path, "a.npy", png())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (png()[:20], r"damaged image \(it lacks its header\)"),
        (png()[:-20], r"damaged image \(the PNG is cut short\)"),
        (png()[:50] + b"?" + png()[51:], r"damaged image \(checksum of its IDAT chunk is wrong\)"),
        (png(pixels=bytes(41)), r"damaged image \(its content cannot be decoded\)"),
    ],
)
def test_a_damaged_png_is_refused(tmp_path, content, said):
    assert re.match(said, refused(tmp_path, "a.png", content))


@pytest.mark.parametrize(
    "content",
    [png() + b"and more", png(pixels=bytes(41 * 30 + 9)), png(extra=chunk(b"tEXt", b"a\0b"))],
)
def test_what_a_png_holds_beyond_its_pixels_is_not_looked_at(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert not read_map(tmp_path / "a.png", SIZE).any()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"is no whole \.npy file \(ValueError: EOF"),
        (b"\x93NUMPY\x09\x00", r"is no whole \.npy file \(KeyError: \(9, 0\)\)"),
        (npy("{'descr': '<f4'"), r"is no whole \.npy file"),
        (npy("[" * 5000), r"is no whole \.npy file"),
        (
            npy(WHOLE, bytes(4799)),
            "is cut",
        ),
        (npy(WHOLE, bytes(4801)), r"is longer than its header says \("),
    ],
)
def test_a_damaged_npy_is_refused(tmp_path, content, said):
    assert re.match(said, refused(tmp_path, "a.npy", content))


def test_headers_that_promise_gigabytes_allocate_nothing(tmp_path):
    huge = "{'descr': '<f4', 'fortran_order': False, 'shape': (160000, 160000)}"
    assert "is 160000x160000 px" in refused(tmp_path, "a.npy", npy(huge))
    assert "is no whole .npy file (ValueError: EOF" in refused(
        tmp_path, "b.npy", npy("", version=(2, 0))[:8] + b"\xff\xff\xff\xff"
    )
    assert "is 160000x160000 px" in refused(tmp_path, "a.png", png((160000, 160000)))
    # Gigabytes that are there: told by the file's size, not by reading them.
    path = tmp_path / "c.png"
    with path.open("wb") as file:
        file.write(png())
        file.truncate(50 * 2**30)
    with pytest.raises(DataError, match="has 53,687,091,200 bytes, more than a map of 40x30 px"):
        read_map(path, SIZE)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match=r"a\.png: cannot be read \(No such file or directory\)"):
        read_map(tmp_path / "a.png", SIZE)
