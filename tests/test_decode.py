"""Decoding: every kind of file gives the same grey picture, or an error that names it."""

import io

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from datamodules.decode import decode, decode_noted, upright_size
from datamodules.index import DataError
from datamodules.pixels import window_16bit
from tests.real import real_data

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (96, 128, 3), dtype=np.uint8)
GREY = np.add.outer(np.arange(24) * 6, np.arange(40) * 2).astype(np.uint8)
# A limb of 12 bits, dark soft tissue and bright bone, and where on its film things may lie.
LIMB = (200 + 3800 * np.linspace(0, 1, 120_000).reshape(300, 400) ** 2).astype(int)
CORNER, BONE = np.s_[:60, :80], np.s_[200:260, 200:280]  # 4 % of the film each


@pytest.fixture
def read(tmp_path, capfd):
    """Decode the content of a file; nothing reaches stdout or stderr."""

    def read(content, name="image"):
        (tmp_path / name).write_bytes(content)
        return decode(tmp_path / name)

    yield read
    assert capfd.readouterr() == ("", "")


def encoded(pixels, kind="PNG", mode=None, **options):
    file, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def pillow(data):
    """The picture as Pillow has it."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("L", image.size)
        return np.array(ImageOps.exif_transpose(image).convert("L"), dtype=int)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "clear"])
def test_png_of_any_mode_gives_the_same_grey(read, mode):
    clear = np.dstack([GREY, GREY, GREY, GREY * 0])  # see-through pixels keep their grey
    data = encoded(clear) if mode == "clear" else encoded(GREY, mode=mode)
    np.testing.assert_array_equal(read(data), GREY)
    notes = [decode_noted(encoded(one), None)[1] for one in (GREY, np.uint8(255) * (GREY > 99))]
    assert notes == ["", "has two grey values at most, as a mask has"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(read, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(GREY, kind, "RGB", exif=exif)
    pixels, expected = read(data), pillow(data)
    assert (pixels.dtype, pixels.shape) == (np.uint8, expected.shape)
    assert np.abs(pixels - expected).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_bytes_around_a_whole_jpeg_do_not_matter(read, mode):
    whole = encoded(NOISE, "JPEG", mode)
    plain = read(whole)
    about = b"\xff\xe1\0\x0fExif\0\0garbage\xff\xfe\0\x0ea comment \xff\xd9"
    scan = whole.index(b"\xff\xda") + 2
    end = scan + whole[scan + 1]
    phone = whole[: end - 3] + bytes(3) + whole[end:]  # some leave these fields at 0
    for data in (whole[:2] + about + whole[2:], whole + whole, phone):  # the second as in MPO
        np.testing.assert_array_equal(read(data), plain)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0.02, 0.99])
@pytest.mark.parametrize("end", [0, 1000])  # a download reserved its space
def test_a_file_cut_short_is_refused(read, kind, kept, end):
    whole = encoded(NOISE, kind)
    with pytest.raises(DataError, match=r"image: damaged image .*cut short"):
        read(whole[: int(len(whole) * kept)] + bytes(end))


PLAIN, WHOLE = encoded(GREY), encoded(NOISE, "JPEG", "L")
STEPS = encoded(NOISE, "JPEG", "L", progressive=True)
FLIPPED = PLAIN[:-20] + bytes([PLAIN[-20] ^ 1]) + PLAIN[-19:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"Doe, John: fracture", "expected a PNG, JPEG or DICOM file.*convert it to PNG"),
        (PLAIN[:33] + PLAIN[-12:], "damaged image .*the PNG is cut short"),  # no pixels
        (FLIPPED, "damaged image .*the PNG is cut short or damaged: broken"),
        # What libjpeg only warns of, and fills with grey: cut and ended by a tool, zeros, a gap.
        (WHOLE[:4000] + b"\xff\xd9", "damaged image .the JPEG"),
        (STEPS[:4000] + b"\xff\xd9", "damaged image .the JPEG"),
        (WHOLE[:4000] + bytes(512) + WHOLE[4512:], "damaged image .the JPEG"),
        (WHOLE[:2000] + WHOLE[2300:], "damaged image .the JPEG"),
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
    monkeypatch.setattr("datamodules.pixels.MOST_PIXELS", 10)
    for kind in ("PNG", "JPEG"):
        (tmp_path / "large.png").write_bytes(encoded(GREY, kind))
        with pytest.raises(DataError, match=r"large\.png: damaged .* claims 40 x 24 pixels"):
            decode(tmp_path / "large.png")
    monkeypatch.setattr("datamodules.decode.MOST_BYTES", 10)
    with pytest.raises(DataError, match=r"large\.png: the file has [\d,]+ bytes, more than 10"):
        decode(tmp_path / "large.png")


def test_sixteen_bits_are_windowed_to_quantiles_also_in_colour(read):
    grey = RANDOM.integers(1000, 3000, (100, 100)).astype(np.uint16)
    grey[0, :5] = 65535  # a few outliers
    low, high = np.quantile(grey, [0.001, 0.999])
    pixels = read(encoded(grey))
    assert np.abs(pixels - np.clip((grey - low) / (high - low), 0, 1) * 255).max() < 1.5
    colour = cv2.imencode(".png", np.dstack([grey] * 3))[1].tobytes()
    np.testing.assert_array_equal(read(colour), pixels)


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_a_constant_image_is_black_but_for_a_tiny_mark(value):
    pixels = np.full((100, 100), value, np.uint16)
    assert not window_16bit(pixels)[0].any()
    pixels[3, 3] = 900
    assert window_16bit(pixels)[0][3, 3] == (255 if value < 900 else 0)


def film(place=CORNER, values=0, limb=LIMB, smooth=0.0):
    """The limb with something laid on its film, uint16; and where the limb shows."""
    if np.ndim(values) == 1:
        values = np.resize(values, limb[place].shape)
    layer, there = np.zeros((2, *limb.shape))
    layer[place], there[place] = values, 1
    if smooth:
        there = cv2.GaussianBlur(there, (0, 0), smooth)
        layer[layer == 0] = np.max(values)
    return np.clip(limb * (1 - there) + layer * there, 0, 65535).astype(np.uint16), there == 0


COLLIMATED = np.where(np.arange(400) < 240, 0, LIMB)  # six parts in ten lie outside the beam


@pytest.mark.parametrize(
    ("image", "free"),
    [
        film(values=65535, smooth=1.5),
        film(values=np.repeat([30000, 45000, 65535, 50000], 20)),
        film(np.s_[:60, 300:380], 65535, limb=COLLIMATED),
        film(np.s_[:120], 65535),  # a frame: 40 %
        film(np.s_[:120], 0, limb=61000 + LIMB),
        film(values=np.repeat([0, 65535], 40), limb=30000 + LIMB),  # a label: white on black
    ],
)
def test_a_marker_at_full_scale_does_not_darken_the_limb(image, free):
    pixels, note = window_16bit(image)
    alone, nothing = window_16bit(np.where(free, image, np.median(image)).astype(np.uint16))
    assert nothing == ""
    assert "stand far from all others, as a marker's do" in note
    off = np.abs(pixels[free].astype(int) - alone[free])
    assert off.max() <= 12  # 2.5 % of the range at its ends


@pytest.mark.parametrize(
    "image",
    [
        film(BONE, np.linspace(4000, 20000, 4800).reshape(60, 80))[0],  # values lead up to it
        film(BONE, RANDOM.uniform(15000, 30000, (60, 80)))[0],  # it has many values itself
        film(BONE, RANDOM.normal(7000, 200, (60, 80)))[0],  # the gap is no larger than the rest
        film(np.s_[:60, :200], RANDOM.uniform(60000, 65000, (60, 200)))[0],  # 10 %, no one value
        COLLIMATED,
        film(values=np.repeat([1000, 65535], 40), limb=LIMB * 0)[0],  # a mask
    ],
)
def test_what_is_no_marker_keeps_the_plain_window(image):
    pixels, note = window_16bit(image.astype(np.uint16))
    low, high = np.quantile(image, [0.001, 0.999], method="inverted_cdf")
    assert note == ""
    assert np.abs(pixels - np.clip((image - low) / (high - low), 0, 1) * 255).max() < 1.5


def test_real_radiographs_agree_with_pillow():
    root = real_data("fracatlas_fixture")
    turned = 0
    for row in pd.read_csv(root / "manifest.csv").itertuples():
        path = root / row.image
        if not row.decodable:
            with pytest.raises(DataError, match=f"{path.name}: damaged image .*cut short"):
                decode(path)
            continue
        pixels, reference = decode(path), pillow(path.read_bytes())
        assert upright_size(path) == pixels.shape == reference.shape
        assert np.abs(pixels - reference).max() <= 1
        turned += row.exif_orientation != 1
    assert turned >= 1
    for path in real_data("grazpedwri_sample").glob("*.png"):  # 16 bits
        pixels = decode(path)
        assert 40 < pixels.mean() < 160
        assert (pixels.min(), pixels.max()) == (0, 255)
