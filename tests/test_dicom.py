"""DICOM as input: pixels as they are stored and shown, clear refusals, and no patient's name."""

import warnings

import cv2
import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from datamodules.decode import decode
from datamodules.dicom import UNUSED, decode_dicom
from datamodules.index import DataError
from tests.dicoms import SECRET, compressed, content, framed, radiograph
from tests.real import real_data

PLAIN, COLOUR = np.zeros((64, 64), np.uint16), np.zeros((64, 64, 3), np.uint8)
GREY = np.add.outer(np.arange(40) * 6, np.arange(48) * 0).astype(np.uint8)
DEEP = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)  # 12 bits, a ramp
FLAT = np.kron([[0, 1200], [2400, 3900]], np.ones((8, 8))).astype(np.uint16)
STORED = np.arange(4096)
RISING = (STORED // 16) ** 2 // 16  # of 12 bits
CONTRADICTS, BROKEN = "header contradicts its pixel data", "damaged DICOM file"
# FLAT by gdcm and (of 12 bits, whose values its dcmdjpeg confirms) dcmcjpeg +ee of DCMTK.
FRAMES = {
    uid.JPEGLosslessSV1: "ffd8ffc3000b100010001001011100ffc400170001010101000000000000000000000000"
    "000b0c10ffda0008010100010000e014b000014b000014b000014b000014b000014b000014b000014b001a58005770"
    "000577000057700005770000577000057700005770000577007fffd900",
    uid.JPEGLSLossless: "ffd8fff7000b100010001001011100fff8000d01ffff0012004301140040ffda00080101"
    "00000000fc2afc0080200804020100ea007c401d200e100c201840308040abf8080808080808007b88080810204081"
    "003380e101840610184061018404ffd900",
    uid.JPEGExtended12Bit: "ffd8ffe000104a46494600010100000100010000ffdb00430003020203020203030303"
    "04030304050805050404050a070706080c0a0c0c0b0a0b0b0d0e12100d0e110e0b0b1016101113141515150c0f1718"
    "16141812141514ffc1000b0c0010001001011100ffc4001500010100000000000000000000000000000c0dffc40014"
    "100100000000000000000000000000000000ffda0008010100003f00955464019007d03fffffd9",
}
OTHERS = uid.JPEGBaseline8Bit, uid.RLELossless, uid.JPEG2000Lossless


@pytest.fixture
def shown(tmp_path):
    def show(dataset):
        path = tmp_path / "IM0001"  # by content: DICOM files often have no suffix
        path.write_bytes(dataset if isinstance(dataset, bytes) else content(dataset))
        return decode(path)

    return show


def table(values, first, bits, count=None):
    item = Dataset()
    item.LUTDescriptor = [len(values) if count is None else count, first, bits]
    item.LUTData = np.asarray(values, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    return [item]


def lut(values, first, bits):
    return {"VOILUTSequence": table(values, first, bits)}


def window(centre, width, **more):
    return {"WindowCenter": centre, "WindowWidth": width, **more}


def scaled(slope, intercept):
    return {"RescaleSlope": slope, "RescaleIntercept": intercept}


def test_stored_values_without_a_window_are_shown_as_those_of_a_png(shown, tmp_path):
    square = {"PixelSpacing": [0.1, 0.10001], "ImagerPixelSpacing": [0, 0]}
    np.testing.assert_array_equal(shown(radiograph(GREY, **square)), GREY)
    cv2.imwrite(str(tmp_path / "same.png"), DEEP + 500)
    pixels = shown(radiograph(DEEP + np.uint16(500), BitsStored=13))
    np.testing.assert_array_equal(pixels, decode(tmp_path / "same.png"))
    colour = np.dstack([GREY, GREY * 0, 255 - GREY])
    expected = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(shown(radiograph(colour)), expected)
    planar = np.ascontiguousarray(colour.transpose(2, 0, 1)).tobytes()
    planes = radiograph(colour, PlanarConfiguration=1, PixelData=planar)
    np.testing.assert_array_equal(shown(planes), expected)


def test_a_file_without_preamble_or_transfer_syntax_is_read(shown):
    data = content(radiograph(GREY))
    for start in (132, data.index(b"\x08\0\x16\0")):  # SOPClassUID, the first behind the meta data
        np.testing.assert_array_equal(shown(data[start:]), GREY)


@pytest.mark.parametrize("syntax", [*FRAMES, *OTHERS])
def test_compressed_pixels_are_read_to_the_bit_and_damaged_ones_refused(shown, capfd, syntax):
    pixels, bits = DEEP, 12
    if syntax in FRAMES:
        pytest.importorskip("gdcm", reason="the extra dicom brings it")
        pixels, frame = FLAT, bytes.fromhex(FRAMES[syntax])
        dataset = framed(frame, syntax, pixels, BitsStored=bits)
    elif syntax == uid.JPEGBaseline8Bit:
        pixels, bits = (DEEP >> 4).astype(np.uint8), 8
        dataset = framed(cv2.imencode(".jpg", pixels)[1].tobytes(), syntax, pixels)
    else:
        dataset = compressed(pixels, syntax, BitsStored=bits)
    plain = shown(radiograph(pixels, BitsStored=bits)).astype(int)
    assert np.abs(shown(dataset) - plain).max() <= 2 * (bits == 8)  # the one that loses
    assert capfd.readouterr() == ("", "")  # libjpeg speaks of the 12 bits
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    for end in (b"", b"\xff\xd9"):
        cut = frame[: -9 if syntax in FRAMES else len(frame) * 9 // 10] + end
        dataset.PixelData = encapsulate([cut])
        with pytest.raises(DataError, match="IM0001: damaged DICOM file"):
            shown(dataset)
        assert "Corrupt" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ({"Rows": None}, "IM0001: lacks Rows. Fix: export it again"),
        ({"NumberOfFrames": 2}, "holds 2 frames"),
        ({"PixelAspectRatio": [1, 2]}, r"not square \(PixelAspectRatio\)"),
        ({"ImagerPixelSpacing": [0.1, 0.15]}, r"\(ImagerPixelSpacing\)"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "export it FOR PRESENTATION"),
        ({"SOPClassUID": uid.DigitalXRayImageStorageForProcessing}, "export it FOR PRESENTATION"),
        ({"BitsAllocated": 12, "BitsStored": 12}, "12 bits a pixel, up to bit 11 of 12"),
        ({"ModalityLUTSequence": table(range(4095), 0, 12, 4096)}, "rescale or lookup table"),
        (scaled("0", "1"), "rescale or lookup table"),
        ({"Columns": 63}, CONTRADICTS),
        ({"PixelData": None}, "without pixel data"),
        ({"Modality": "CT"}, "its modality CT is no radiograph's"),
        ({"Modality": SECRET}, "its modality unknown is"),
        ({"Rows": 60000, "Columns": 60000}, "60,000 x 60,000 pixels"),
        ({"Rows": 65}, "cut short"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "unknown. Fix: convert it to RGB"),
        (lambda: content(radiograph(COLOUR.astype(np.uint16))), "16 bits .*8 in colour"),
        (lambda: framed(b"\0\0", "1.2.840.10008.1.2.4.94", PLAIN), "JPIP.*convert the file"),
        (lambda: content(radiograph(COLOUR, PlanarConfiguration=None)), BROKEN),
        (lambda: b"\0" * 128 + b"DICM" + SECRET.encode() * 9, "without pixel data"),
    ],
)
def test_what_is_no_radiograph_is_refused_without_a_name(shown, capfd, caplog, make, message):
    dataset = make() if callable(make) else radiograph(PLAIN + 7, **make)
    if isinstance(dataset, Dataset) and "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"  # else worked out of what is taken out
    with pytest.raises(DataError, match=message) as caught:
        shown(dataset)
    assert "IM0001" in str(caught.value)
    assert SECRET not in "".join([str(caught.value), *capfd.readouterr(), caplog.text])
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_missing_codec_names_the_extra(shown, monkeypatch):
    dataset = compressed(PLAIN, uid.JPEG2000Lossless)
    monkeypatch.setattr(type(get_decoder(uid.JPEG2000Lossless)), "is_available", False)
    with pytest.raises(DataError, match=r"JPEG 2000.*pip install 'decision-basis\[dicom\]'"):
        shown(dataset)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
def test_rescale_and_window_as_pydicom_has_them(shown, function, signed):
    stored = (DEEP.astype(np.int16) - 2048) if signed else DEEP
    several = window(["3900", "3"], ["9000.5", "7"], VOILUTFunction=function)  # the first counts
    dataset = radiograph(stored, BitsStored=12, **scaled("2.5", "-100"), **several)
    windowed = apply_windowing(apply_modality_lut(stored, dataset), dataset)
    low, high = ((-2048, 2047) if signed else (0, 4095)) * np.array(2.5) - 100
    expected = (windowed - low) / (high - low) * 255
    np.testing.assert_allclose(shown(dataset), expected, atol=0.51)


def test_lookup_tables(shown):
    voi = lut(RISING, 0, 16) | window(1, 2)  # claims more bits, precedes a window
    modality = {"ModalityLUTSequence": table(np.arange(100) * 2 + 10, 1000, 8)}  # holds its ends
    inner = np.clip(STORED - 1000, 0, 99) * 2 + 10
    for elements, values in ((voi, RISING / 4095 * 255), (modality, inner)):
        pixels = shown(radiograph(DEEP, BitsStored=12, **elements))
        np.testing.assert_allclose(pixels, values[DEEP], atol=0.51)


@pytest.mark.parametrize(
    "elements",
    [
        window(40000, 100),  # beside the pixels
        window(2000, 10, **scaled("1", "-32768")),  # of stored values
        window(2000, 2),  # black and white
        window(512, 1024),  # of 10 bits: all above is white
        window(3584, 1024, PhotometricInterpretation="MONOCHROME1"),
        lut(RISING, 0, 8),  # claims fewer bits than its entries have
        {"ModalityLUTSequence": table([5] * 4096, 0, 16)},
        {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095},  # the whole image
        window(2000, 1800) | lut([7] * 9, 0, 12),  # the window stands in for the table
    ],
)
def test_what_shows_nothing_is_not_used_and_noted(tmp_path, shown, elements):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that are not valid
        dataset = radiograph(DEEP, BitsStored=12, **elements)
        pixels, note = decode_dicom(content(dataset), tmp_path)
    both = "VOILUTSequence" in elements and "WindowCenter" in elements
    usable = {"PhotometricInterpretation"} | ({"WindowCenter", "WindowWidth"} if both else set())
    kept = {name: value for name, value in elements.items() if name in usable}
    np.testing.assert_array_equal(pixels, shown(radiograph(DEEP, BitsStored=12, **kept)))
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
    stored = pixels.astype(np.uint16).reshape(64, 64)
    dataset = radiograph(stored, BitsStored=12, **window(*elements))
    windowed = apply_windowing(pixels, dataset) / 4095 * 255 if expected is None else expected
    rendered, note = decode_dicom(content(dataset), tmp_path)
    np.testing.assert_allclose(rendered.reshape(-1), windowed + 0 * pixels, atol=0.51)
    assert note == ""


@pytest.mark.parametrize("window", [{}, window(2000, 900)])
@pytest.mark.parametrize(
    ("turn", "inverted"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, True),
        ({"PresentationLUTShape": "IDENTITY"}, False),
        ({"PresentationLUTShape": "INVERSE"}, True),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, True),
    ],
)
def test_greys_are_inverted_once(shown, window, turn, inverted):
    usual = shown(radiograph(DEEP, BitsStored=12, **window))
    turned = shown(radiograph(DEEP, BitsStored=12, **window, **turn))
    np.testing.assert_array_equal(turned, 255 - usual if inverted else usual)
    sunk = shown(radiograph(DEEP, BitsStored=12, **scaled("-1", "0")))
    np.testing.assert_allclose(sunk, 255.0 - shown(radiograph(DEEP, BitsStored=12)), atol=1)


@pytest.mark.parametrize(
    ("dtype", "value", "elements"),
    [
        (np.uint16, 4000, {}),
        (np.uint16, 4000, {"PhotometricInterpretation": "MONOCHROME1"}),
        (np.uint16, 4090, {"PixelPaddingRangeLimit": 4095}),
        (np.uint16, 65535, {}),  # it may need more bits than are stored
        (np.int16, -2000, {}),
    ],
)
def test_padding_is_black_and_counts_for_nothing(shown, dtype, value, elements):
    inner = (DEEP // 4 - 600 * (dtype == np.int16)).astype(dtype)
    about = {"BitsStored": 12, **elements}
    padded = radiograph(np.pad(inner, 8, constant_values=value), **about)
    padded.add_new("PixelPaddingValue", "US", value % 2**16)  # as some explicit files have it
    about.pop("PixelPaddingRangeLimit", None)
    alone = shown(radiograph(inner, **about))
    np.testing.assert_array_equal(shown(padded), np.pad(alone, 8))


def test_values_beyond_the_stated_bits_are_refused_unless_a_few(shown):
    plain = shown(radiograph(DEEP, BitsStored=12))
    with pytest.raises(DataError, match=CONTRADICTS):
        shown(radiograph(DEEP * np.uint16(4), BitsStored=12))
    few = DEEP.copy()
    few[:3] += 4096  # as lossy codecs overshoot
    assert np.abs(shown(radiograph(few, BitsStored=12)).astype(int) - plain)[3:].max() <= 16


def test_a_real_radiograph_is_upright_and_bone_is_bright():
    image = decode(real_data("dicom_sample") / "RG3_J2KR.dcm")
    assert image.shape == (1760, 1760)
    shaft, air = image[600:700, 800:900], image[600:700, 500:560]
    assert shaft.mean() > air.mean() + 80
