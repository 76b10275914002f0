"""DICOM as input: the greys that a reading station would show, or a note."""

from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from pydicom.sequence import Sequence

from datamodules.decode import decode
from datamodules.dicom import UNUSED, decode_dicom
from datamodules.index import DataError
from datamodules.pixels import window_16bit
from tests.dicoms import content, radiograph
from tests.real import real_data

STORED = np.arange(4096)
RISING = (STORED // 16) ** 2 // 16  # of 12 bits


def table(values, first, bits, count=None):
    item = Dataset()
    item.LUTDescriptor = [len(values) if count is None else count, first, bits]
    item.LUTData = np.asarray(values, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    return Sequence([item])


def lut(values, first, bits, count=None):
    return {"VOILUTSequence": table(values, first, bits, count)}


def window(centre, width, **more):
    return {"WindowCenter": centre, "WindowWidth": width, **more}


def scaled(slope, intercept):
    return {"RescaleSlope": slope, "RescaleIntercept": intercept}


def test_stored_values_without_a_window_are_shown_as_those_of_a_png(shown, grey, deep, tmp_path):
    np.testing.assert_array_equal(shown(radiograph(grey)), grey)
    cv2.imwrite(str(tmp_path / "same.png"), deep + 500)
    pixels = shown(radiograph(deep + np.uint16(500), BitsStored=13))
    np.testing.assert_array_equal(pixels, decode(tmp_path / "same.png"))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
def test_rescale_and_window_as_pydicom_has_them(shown, deep, function, signed):
    stored = (deep.astype(np.int16) - 2048) if signed else deep
    several = window(["3900", "3"], ["9000.5", "7"], VOILUTFunction=function)  # the first counts
    dataset = radiograph(stored, BitsStored=12, **scaled("2.5", "-100"), **several)
    windowed = apply_windowing(apply_modality_lut(stored, dataset), dataset)
    low, high = ((-2048, 2047) if signed else (0, 4095)) * np.array(2.5) - 100
    expected = (windowed - low) / (high - low) * 255
    np.testing.assert_allclose(shown(dataset), expected, atol=0.51)


@pytest.mark.parametrize(
    ("elements", "values"),
    [
        (lut(RISING, 0, 12), RISING / 4095),
        (lut(RISING, 0, 16), RISING / 4095),  # claims more bits than its entries have
        (lut(RISING, 0, 12) | window(1, 2), RISING / 4095),  # comes before a window
        (
            {"ModalityLUTSequence": table(np.arange(100) * 2 + 10, 1000, 8)},  # holds its ends
            (np.clip(STORED - 1000, 0, 99) * 2 + 10) / 255,
        ),
    ],
)
def test_lookup_tables(shown, deep, elements, values):
    dataset = radiograph(deep, BitsStored=12, **elements)
    np.testing.assert_allclose(shown(dataset), values[deep] * 255, atol=0.51)


@pytest.mark.parametrize(
    "elements",
    [
        window(40000, 100),  # beside the pixels
        window(2000, 10, **scaled("1", "-32768")),  # of stored values
        window(2048, 65535),  # of 16 bits
        window(2000, 2),  # black and white
        window(4000, 20),  # a marker alone
        window(2000, -10),
        window(2000, 100, VOILUTFunction="SIGMOIDAL"),
        {"WindowCenter": 2000},
        window(512, 1024),  # of 10 bits: all above is white
        window(3584, 1024, PhotometricInterpretation="MONOCHROME1"),
        lut([7] * 4096, 0, 12),  # one value
        lut(np.arange(16), 0, 4),  # beside the pixels
        lut(RISING, 0, 8),  # claims fewer bits than its entries have
        lut(np.arange(4095), 0, 12, 4096),  # an entry short
        {"ModalityLUTSequence": table([5] * 4096, 0, 16)},
        {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095},  # the whole image
    ],
)
def test_what_shows_nothing_is_not_used_and_noted(tmp_path, shown, deep, elements):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that are not valid
        dataset = radiograph(deep, BitsStored=12, **elements)
        pixels, note = decode_dicom(content(dataset), tmp_path)
    kept = {name: elements[name] for name in elements if name == "PhotometricInterpretation"}
    np.testing.assert_array_equal(pixels, shown(radiograph(deep, BitsStored=12, **kept)))
    assert note == UNUSED


def test_a_window_stands_in_for_a_table_that_shows_nothing(tmp_path, shown, deep):
    both = radiograph(deep, BitsStored=12, **window(2000, 1800), **lut([7] * 9, 0, 12))
    pixels, note = decode_dicom(content(both), tmp_path)
    alone = shown(radiograph(deep, BitsStored=12, **window(2000, 1800)))
    np.testing.assert_array_equal(pixels, alone)
    assert note == UNUSED


@pytest.mark.parametrize(
    ("pixels", "elements", "expected"),
    [
        # A limb of 1 % on a plate whose noise the window blackens: little, but what is to be seen.
        (np.where(STORED < 4055, STORED % 90, STORED), (4060, 80), None),
        (STORED // 512, (4, 8), None),  # few values stored
        (STORED * 0 + 7, (4000, 10), 0),  # nothing stored
        (STORED, (2048, 12000), None),  # flat, but 87 grey levels
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
    rendered, note = decode_dicom(content(dataset), tmp_path)
    np.testing.assert_allclose(rendered.reshape(-1), windowed + 0 * pixels, atol=0.51)
    assert note == ""


@pytest.mark.parametrize("window", [{}, window(2000, 900)])
@pytest.mark.parametrize(
    ("kind", "shape", "inverted"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", True),  # once
    ],
)
def test_greys_are_inverted_once(shown, deep, window, kind, shape, inverted):
    usual = shown(radiograph(deep, BitsStored=12, **window))
    about = {"PhotometricInterpretation": kind} | ({"PresentationLUTShape": shape} if shape else {})
    turned = shown(radiograph(deep, BitsStored=12, **window, **about))
    np.testing.assert_array_equal(turned, 255 - usual if inverted else usual)


def test_a_negative_slope_turns_the_greys(shown, deep):
    usual, turned = (
        shown(radiograph(deep, BitsStored=12, **scaled(sign, "0"))) for sign in ("1", "-1")
    )
    np.testing.assert_allclose(turned, 255.0 - usual, atol=1)


@pytest.mark.parametrize(
    ("dtype", "value", "elements"),
    [
        (np.uint16, 4000, {}),
        (np.uint16, 4000, {"PhotometricInterpretation": "MONOCHROME1"}),
        (np.uint16, 4090, {"PixelPaddingRangeLimit": 4095}),
        (np.uint16, 65535, {}),  # it may need more bits than are stored
        (np.int16, -2000, {}),
        (np.int16, -32768, {}),
    ],
)
def test_padding_is_black_and_counts_for_nothing(shown, deep, dtype, value, elements):
    inner = (deep // 4 - 600 * (dtype == np.int16)).astype(dtype)
    about = {"BitsStored": 12, **elements}
    padded = radiograph(np.pad(inner, 8, constant_values=value), **about)
    padded.add_new("PixelPaddingValue", "US", value % 2**16)  # as some explicit files have it
    limit = about.pop("PixelPaddingRangeLimit", None)
    assert limit is None or window_16bit(inner)[0].any()
    alone = shown(radiograph(inner, **about))
    np.testing.assert_array_equal(shown(padded), np.pad(alone, 8))


def test_values_beyond_the_stated_bits_are_refused_unless_a_few(shown, deep):
    plain = shown(radiograph(deep, BitsStored=12))
    dataset = radiograph(deep * np.uint16(4), BitsStored=12)
    with pytest.raises(DataError, match="header contradicts its pixel data"):
        shown(dataset)
    few = deep.copy()
    few[:3] += 4096  # as lossy codecs overshoot
    assert np.abs(shown(radiograph(few, BitsStored=12)).astype(int) - plain)[3:].max() <= 16


def test_a_real_radiograph_is_upright_and_bone_is_bright():
    image = decode(real_data("dicom_sample") / "RG3_J2KR.dcm")
    assert image.shape == (1760, 1760)
    shaft, air = image[600:700, 800:900], image[600:700, 500:560]
    assert shaft.mean() > air.mean() + 80
