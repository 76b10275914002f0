"""DICOM as input: the greys that a reading station would show, or a note."""

from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from datamodules.decode import decode
from datamodules.dicom import decode_dicom
from datamodules.greys import UNUSED
from datamodules.index import DataError
from datamodules.pixels import window_16bit
from tests.dicoms import content, radiograph, words
from tests.real import real_data


def table(values, first, bits, count=None):
    item = Dataset()
    item.LUTDescriptor = [len(values) if count is None else count, first, bits]
    item.LUTData = np.asarray(values, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    return Sequence([item])


def lut(values, first, bits):
    return {"VOILUTSequence": table(values, first, bits)}


def window(centre, width, **more):
    return {"WindowCenter": centre, "WindowWidth": width, **more}


def test_stored_values_without_a_window_are_shown_as_those_of_a_png(shown, grey, deep, tmp_path):
    np.testing.assert_array_equal(shown(radiograph(grey)), grey)
    cv2.imwrite(str(tmp_path / "same.png"), deep + 500)
    pixels = shown(radiograph(deep + np.uint16(500), BitsStored=13))
    np.testing.assert_array_equal(pixels, decode(tmp_path / "same.png"))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
def test_rescale_and_window_as_pydicom_has_them(shown, deep, function, signed):
    stored = (deep.astype(np.int16) - 2048) if signed else deep
    dataset = radiograph(
        stored,
        BitsStored=12,
        RescaleSlope="2.5",
        RescaleIntercept="-100",
        WindowCenter=["3900", "3"],  # the first of several counts
        WindowWidth=["9000.5", "7"],
        VOILUTFunction=function,
    )
    windowed = apply_windowing(apply_modality_lut(stored, dataset), dataset)
    low, high = ((-2048, 2047) if signed else (0, 4095)) * np.array(2.5) - 100
    expected = (windowed - low) / (high - low) * 255
    np.testing.assert_allclose(shown(dataset), expected, atol=0.51)


def test_a_lookup_table_comes_before_a_window(shown, deep):
    values = (np.arange(4096) // 16) ** 2  # 8 bits squared: 16
    dataset = radiograph(
        deep, BitsStored=12, VOILUTSequence=table(values, 0, 16), WindowCenter=1, WindowWidth=2
    )
    np.testing.assert_allclose(shown(dataset), values[deep] / 65535 * 255, atol=0.51)


def test_lookup_tables_hold_their_ends(shown, deep):
    entries = np.arange(100) * 2 + 10
    dataset = radiograph(deep, BitsStored=12, ModalityLUTSequence=table(entries, 1000, 8))
    expected = entries[np.clip(deep.astype(int) - 1000, 0, 99)]
    np.testing.assert_array_equal(shown(dataset), expected)


@pytest.mark.parametrize(
    "elements",
    [
        window(40000, 100),  # beside the pixels
        window(-5000, 100),
        window(2000, 10, RescaleSlope="1", RescaleIntercept="-32768"),  # of stored values
        window(0.5, 1.5, RescaleSlope="0.0002", RescaleIntercept="30"),
        window(2048, 65535),  # of 16 bits
        window(30000, 1000000),
        window(2000, 2),  # black and white
        window(4000, 20),  # a marker alone
        window(2000, 1),
        window(2000, -10),
        window("1e400", "10"),
        window(2000, 100, VOILUTFunction="SIGMOIDAL"),
        window(90000, 100, VOILUTFunction="SIGMOID"),
        {"WindowCenter": 2000},
        lut([7] * 4096, 0, 12),  # one value
        lut(np.arange(4096) + 30000, 0, 16),
        lut([0, 4095], 2000, 12),  # black and white
        lut(np.arange(16), 0, 4),  # beside the pixels
        {"ModalityLUTSequence": table([5] * 4096, 0, 16)},
        {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095},  # the whole image
        window(512, 1024),  # of 10 bits: all above is white
        window(128, 256),
        window(2048, 4096, RescaleSlope="4", RescaleIntercept="0"),  # of stored values
        window(3584, 1024, PhotometricInterpretation="MONOCHROME1"),
        {"VOILUTSequence": table(np.arange(4095), 0, 12, 4096)},  # an entry short
        {"VOILUTSequence": table(np.arange(2048), 0, 12, 4096)},
        {"VOILUTSequence": table(np.arange(65535), 0, 16, 0)},
        {"VOILUTSequence": table(np.arange(4095) // 16, 0, 8, 4096)},
    ],
)
def test_what_shows_nothing_is_not_used_and_noted(tmp_path, shown, deep, elements):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that are not valid
        dataset = radiograph(deep, BitsStored=12, **elements)
        found, note = decode_dicom(content(dataset), tmp_path)
    kept = {name: elements[name] for name in elements if name == "PhotometricInterpretation"}
    np.testing.assert_array_equal(found, shown(radiograph(deep, BitsStored=12, **kept)))
    assert note == UNUSED


def test_a_window_stands_in_for_a_table_that_shows_nothing(tmp_path, shown, deep):
    good = window(2000, 1800)
    found, note = decode_dicom(
        content(radiograph(deep, BitsStored=12, **good, **lut([7] * 9, 0, 12))), tmp_path
    )
    np.testing.assert_array_equal(found, shown(radiograph(deep, BitsStored=12, **good)))
    assert note == UNUSED


STORED = np.arange(4096)


@pytest.mark.parametrize(
    ("pixels", "elements", "expected"),
    [
        # A limb of 1 % on a plate whose noise the window blackens: little, but what is to be seen.
        (np.where(STORED < 4055, STORED % 90, STORED), (4060, 80), None),
        (STORED // 512, (4, 8), None),  # few values stored
        (STORED * 0 + 7, (4000, 10), 0),  # nothing stored
        (STORED, (2048, 20000), None),  # flat, but 52 grey levels
        (STORED, (2048, 12000), None),
        (STORED, (2800, 1600), None),  # bone: half is black, an eighth is white
        # Air, shown bright, is most of the film: white. Metal is: little, that values lead up to.
        (np.where(STORED < 800, STORED * 4, 3800 + STORED % 200), (1600, 3200), None),
        (np.where(STORED < 3900, STORED % 900, STORED), (450, 900), None),
    ],
)
def test_what_shows_what_is_there_is_used(tmp_path, pixels, elements, expected):
    dataset = radiograph(
        pixels.astype(np.uint16).reshape(64, 64), BitsStored=12, **window(*elements)
    )
    windowed = apply_windowing(pixels, dataset) / 4095 * 255 if expected is None else expected
    found, note = decode_dicom(content(dataset), tmp_path)
    np.testing.assert_allclose(found.reshape(-1), windowed + 0 * pixels, atol=0.51)
    assert note == ""


RISING, EIGHT = (STORED // 16) ** 2 // 16, STORED // 16  # of 12 bits, of 8


def item(descriptor, data, vr):
    made = table([0], 0, 8)
    made[0].add_new("LUTDescriptor", "US" if min(descriptor) >= 0 else "SS", descriptor)
    made[0].add_new("LUTData", vr, data)
    return {"VOILUTSequence": made}


BELOW = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}


@pytest.mark.parametrize(
    ("elements", "values"),
    [
        (lut(RISING, 0, 16), RISING / 4095),  # claims more bits than its entries have
        (lut(RISING, 0, 8), RISING / 4095),  # fewer
        (lut(RISING, 0, 10), RISING / 4095),
        (item([4096, 0, 12], list(map(int, RISING)), "US"), RISING / 4095),
        (item([4096, 0, 8], EIGHT.astype(np.uint8).tobytes(), "OW"), EIGHT / 255),  # packed
        (item([4096, -1024, 12], words(RISING), "OW") | BELOW, RISING / 4095),
        (item([4096, 65536 - 1024, 12], words(RISING), "OW") | BELOW, RISING / 4095),  # wrong sign
    ],
)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_lookup_tables_are_read_however_they_are_written(shown, deep, elements, values, syntax):
    dataset = radiograph(deep, BitsStored=12, **elements)
    dataset.file_meta.TransferSyntaxUID = syntax
    np.testing.assert_allclose(shown(dataset), values[deep] * 255, atol=0.51)


@pytest.mark.parametrize(
    ("entries", "values", "bits"),
    [(words(RISING, ">"), RISING / 4095, 12), (words(EIGHT[::2] * 257, ">"), EIGHT / 255, 8)],
)
def test_a_big_endian_file_is_read(shown, deep, entries, values, bits):
    if bits == 8:  # packed: the first entry of two in the low byte
        entries = EIGHT.astype(np.uint8).view("<u2").astype(">u2").tobytes()
    dataset = radiograph(deep, BitsStored=12, **item([4096, 0, bits], entries, "OW"))
    dataset.PixelData = deep.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    np.testing.assert_allclose(shown(dataset), values[deep] * 255, atol=0.51)


@pytest.mark.parametrize("window", [{}, window(2000, 900)])
@pytest.mark.parametrize(
    ("elements", "inverted"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, True),
        ({"PresentationLUTShape": "IDENTITY"}, False),
        ({"PresentationLUTShape": "INVERSE"}, True),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"}, True),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, True),
    ],
)
def test_greys_are_inverted_once(shown, deep, window, elements, inverted):
    usual = shown(radiograph(deep, BitsStored=12, **window))
    turned = shown(radiograph(deep, BitsStored=12, **window, **elements))
    np.testing.assert_array_equal(turned, 255 - usual if inverted else usual)


def test_a_negative_slope_turns_the_greys(shown, deep):
    about = {"BitsStored": 12, "RescaleIntercept": "0"}
    usual, turned = (shown(radiograph(deep, RescaleSlope=sign, **about)) for sign in ("1", "-1"))
    np.testing.assert_allclose(turned, 255.0 - usual, atol=1)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limit", [{}, {"PixelPaddingRangeLimit": 4095}])
def test_padding_is_black_and_counts_for_nothing(shown, deep, kind, limit):
    inner = (deep // 4 + 1000).astype(np.uint16)
    padded = np.pad(inner, 8, constant_values=4000)
    about = {"BitsStored": 12, "PhotometricInterpretation": kind, "PixelPaddingValue": 4000}
    alone = window_16bit(inner)[0] ^ np.uint8(255 if kind == "MONOCHROME1" else 0)
    np.testing.assert_array_equal(shown(radiograph(padded, **about, **limit)), np.pad(alone, 8))


def test_padding_has_the_sign_of_the_pixels(shown, deep):
    signed = np.pad((deep.astype(np.int16) - 2048) // 4, 8, constant_values=-2000)
    dataset = radiograph(signed, BitsStored=12)
    dataset.add_new("PixelPaddingValue", "US", 2**16 - 2000)  # as some explicit files have it
    inner = shown(radiograph(signed[8:-8, 8:-8].copy(), BitsStored=12))
    np.testing.assert_array_equal(shown(dataset), np.pad(inner, 8))


@pytest.mark.parametrize(
    ("dtype", "value", "stated"),
    [
        (np.int16, -32768, {}),
        (np.int16, -4096, {}),
        (np.int16, -4048, {}),
        (np.int16, -3000, {"PixelPaddingRangeLimit": -4096}),
        (np.uint16, 65535, {}),
        (np.uint16, 5000, {"PixelPaddingRangeLimit": 65535}),
    ],
)
def test_padding_may_need_more_bits_than_are_stored(shown, deep, dtype, value, stated):
    inner = (deep.astype(int) - 2048 * (dtype == np.int16)).astype(dtype)
    padded = radiograph(np.pad(inner, 30, constant_values=value), BitsStored=12, **stated)
    padded.PixelPaddingValue = value
    expected = np.pad(shown(radiograph(inner, BitsStored=12)), 30)
    np.testing.assert_array_equal(shown(padded), expected)


def test_bits_above_the_image_count_for_nothing(shown, deep):
    plain = shown(radiograph(deep, BitsStored=12))
    # Old archives keep graphics in the bits above the image's.
    np.testing.assert_array_equal(shown(radiograph(deep | 0x8000, BitsStored=12)), plain)
    overlay = np.where(np.arange(64) < 20, 0x8000, 0).astype(np.uint16)
    dataset = radiograph(deep | overlay, BitsStored=12)
    with pytest.raises(DataError, match="header contradicts its pixel"):
        shown(dataset)
    dataset.add_new((0x6000, 0x0102), "US", 15)
    np.testing.assert_array_equal(shown(dataset), plain)
    assert not shown(radiograph(deep * 0, BitsStored=12, PixelPaddingValue=0)).any()


def test_a_real_radiograph_is_upright_and_bone_is_bright(tmp_path):
    image = decode(real_data("dicom_sample") / "RG3_J2KR.dcm")
    assert image.shape == (1760, 1760)
    shaft, air = image[600:700, 800:900], image[600:700, 500:560]
    assert shaft.mean() > air.mean() + 80
