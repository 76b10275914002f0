"""DICOM as input: pixels as they are stored, clear refusals, and no patient's name."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from datamodules.dicom import read_dicom
from datamodules.index import DataError
from tests.dicoms import SECRET, compressed, content, encoded, framed, radiograph, words

PLAIN, COLOUR = np.zeros((64, 64), np.uint16), np.zeros((64, 64, 3), np.uint8)
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
FLAT = np.kron([[0, 1200], [2400, 3900]], np.ones((8, 8))).astype(np.uint16)
RAW = DigitalXRayImageStorageForProcessing
SHORT = Sequence([Dataset()])
SHORT[0].LUTDescriptor, SHORT[0].LUTData = [4096, 0, 12], words(range(4095))
SHORT[0]["LUTData"].VR = "OW"
CONTRADICTS = "header contradicts its pixel data"


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("garbage", [False, True])
def test_bits_are_taken_from_where_they_are_stored(shown, deep, signed, syntax, garbage):
    stored = (deep.astype(np.int32) - 2048).astype(np.int16) if signed else deep
    cells = (stored & 0xFFF) | (0x5000 if garbage else 0)  # at the low end, graphics above
    cells = cells.astype(np.uint16) if garbage else (stored << 4 | 9).astype(np.uint16)
    cells = cells.view(stored.dtype)  # of 16 bits for the encoder
    dataset = compressed(cells, syntax) if syntax else radiograph(cells)
    dataset.BitsStored, dataset.HighBit = 12, 11 if garbage else 15
    np.testing.assert_array_equal(shown(dataset), shown(radiograph(deep, BitsStored=12)))


@pytest.mark.parametrize(
    "spacing",
    [
        {"PixelSpacing": [0.1, 0.10001]},
        {"ImagerPixelSpacing": [0, 0]},
        {"ImagerPixelSpacing": 0.1},
        {"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.1, 0.1]},  # calibrated
        {"PixelAspectRatio": [100, 100]},
        {"NominalScannedPixelSpacing": None},
    ],
)
def test_square_pixels_are_read(shown, grey, spacing):
    dataset = radiograph(grey, **{name: value for name, value in spacing.items() if value})
    np.testing.assert_array_equal(shown(dataset), grey)


@pytest.mark.parametrize(
    "name",
    [
        *("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"),
        *("SamplesPerPixel", "PhotometricInterpretation"),
    ],
)
@pytest.mark.parametrize("value", [None, ""])
def test_an_element_that_is_missing_is_named(shown, name, value):
    dataset = radiograph(PLAIN)
    dataset["PixelData"].VR = "OW"  # else worked out of what is taken out
    dataset[name].value = value
    if value is None:
        del dataset[name]
    with pytest.raises(DataError, match=f"IM0001: lacks {name}. Fix: export it again"):
        shown(dataset)


def palette(bits, scale):
    """Elements of a palette of 256 entries: red rising, no green, blue falling."""
    names = [f"{each}PaletteColorLookupTable" for each in ("Red", "Green", "Blue")]
    ramps = (np.arange(256), np.arange(256) * 0, 255 - np.arange(256))
    data = {f"{name}Data": words(ramp * scale) for name, ramp in zip(names, ramps, strict=True)}
    elements = data | {f"{name}Descriptor": [256, 0, bits] for name in names}
    return {"PhotometricInterpretation": "PALETTE COLOR", **elements}


def planes(colour):
    planar = np.ascontiguousarray(colour.transpose(2, 0, 1)).tobytes()
    return radiograph(colour, PlanarConfiguration=1, PixelData=planar)


@pytest.mark.parametrize(
    "make",
    [
        lambda colour: radiograph(colour),
        planes,
        lambda colour: radiograph(colour.astype(np.uint16) * 257),
        lambda colour: radiograph(colour.astype(np.uint16)),  # 8 bits that claim to be 16
        lambda colour: radiograph(colour[..., 0], **palette(16, 257)),
        lambda colour: radiograph(colour[..., 0], **palette(16, 1)),  # as above
        lambda colour: radiograph(colour[..., 0], **palette(8, 1)),
    ],
)
def test_colour_becomes_grey(shown, grey, make):
    colour = np.dstack([grey, grey * 0, 255 - grey])
    np.testing.assert_array_equal(shown(make(colour)), cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_compressed_pixels_are_those_that_were_compressed(shown, deep, syntax):
    dataset = compressed(deep, syntax, BitsStored=12)
    np.testing.assert_array_equal(shown(dataset), shown(radiograph(deep, BitsStored=12)))


# By dcmcjpeg +ee of DCMTK, of four flat blocks; its dcmdjpeg reads these values.
TWELVE = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a"
    "070706080c0a0c0c0b0a0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffc1000b0c"
    "0010001001011100ffc4001500010100000000000000000000000000000c0dffc4001410010000000000000000000000"
    "0000000000ffda0008010100003f00955464019007d03fffffd9"
)


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLosslessProcess14"])
def test_jpeg_lossless_is_read_to_the_bit(shown, deep, tmp_path, capfd, kind):
    made = encoded(deep, kind, tmp_path)
    np.testing.assert_array_equal(shown(made), shown(radiograph(deep, BitsStored=12)))
    assert capfd.readouterr() == ("", "")


def test_jpeg_of_12_bits_is_read_to_the_bit(shown, capfd):
    pytest.importorskip("gdcm", reason="the extra dicom brings it")
    dataset = framed(TWELVE, JPEGExtended12Bit, FLAT, BitsStored=12)
    np.testing.assert_array_equal(shown(dataset), shown(radiograph(FLAT, BitsStored=12)))
    assert capfd.readouterr() == ("", "")  # libjpeg speaks of the 12 bits


@pytest.mark.parametrize(
    "kind",
    ["JPEGLosslessProcess14_1", "JPEGBaselineProcess1", "JPEGLSLossless", "RLE", "J2K", "12"],
)
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_damaged_frame_is_refused(shown, grey, tmp_path, capfd, kind, end):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    if kind.startswith("JPEG"):
        dataset = encoded(pixels, kind, tmp_path)
    elif kind == "12":
        dataset = framed(TWELVE, JPEGExtended12Bit, FLAT, BitsStored=12)
    else:
        dataset = compressed(pixels, {"RLE": RLELossless, "J2K": JPEG2000Lossless}[kind])
    shown(dataset)  # whole it is read
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    cut = frame[: -9 if kind == "12" else len(frame) * 9 // 10] + end
    dataset.PixelData = encapsulate([cut])
    with pytest.raises(DataError, match="IM0001: damaged DICOM file"):
        shown(dataset)
    assert "Corrupt" not in capfd.readouterr().err


def huge_codestream():
    raw = content(compressed(PLAIN, JPEG2000Lossless))
    place = raw.index(b"\xff\x4f\xff\x51") + 8
    return raw[:place] + (60000).to_bytes(4, "big") * 2 + raw[place + 8 :]


def other_syntax(uid):
    """The uid of the syntax replaced by one as long or shorter."""
    old = str(JPEG2000Lossless).encode()
    raw = content(compressed(PLAIN, JPEG2000Lossless))
    return raw.replace(old, str(uid).encode().ljust(len(old), b"\0"))


def replaced(old, new, **elements):
    raw = content(radiograph(PLAIN, **elements))
    assert old in raw
    return raw.replace(old, new)


def relabelled(dataset, **elements):
    """A dataset with other elements than its pixels have."""
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


GREY = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
JPEG = cv2.imencode(".jpg", COLOUR)[1].tobytes()


@pytest.mark.parametrize(
    ("pixels", "elements", "message"),
    [
        (PLAIN, {"NumberOfFrames": 2}, "holds 2 frames"),
        (PLAIN, {"PixelAspectRatio": [1, 2]}, r"not square \(PixelAspectRatio\)"),
        (PLAIN, {"PixelSpacing": [0.2, 0.1]}, r"not square \(PixelSpacing\)"),
        (PLAIN, {"ImagerPixelSpacing": [0.1, 0.15]}, r"\(ImagerPixelSpacing\)"),
        (PLAIN, {"NominalScannedPixelSpacing": [1, 2]}, r"\(NominalScannedPixel"),
        (PLAIN, {"PresentationIntentType": "FOR PROCESSING"}, "export it FOR PRESENTATION"),
        (PLAIN, {"SOPClassUID": RAW}, "export it FOR PRESENTATION"),
        (PLAIN, {"HighBit": 20}, CONTRADICTS),
        (PLAIN, {"PhotometricInterpretation": "RGB"}, CONTRADICTS),
        (PLAIN, {"PhotometricInterpretation": "MONOCHROME"}, CONTRADICTS),
        (RAMP * 4, {"BitsStored": 12}, CONTRADICTS),  # 14 bits
        (RAMP * 2, {"BitsStored": 12}, CONTRADICTS),
        (RAMP.astype(np.int16) * 2, {"BitsStored": 12}, CONTRADICTS),
        (RAMP, {"ModalityLUTSequence": SHORT}, "rescale or lookup table"),
        (PLAIN + 7, {"Columns": 63}, CONTRADICTS),
        (PLAIN + 7, {"BitsAllocated": 8, "BitsStored": 8}, CONTRADICTS),
        (PLAIN, {"BitsAllocated": 12, "BitsStored": 12}, "12 bits a pixel in 12:"),
        (COLOUR, {"PlanarConfiguration": None}, "lacks PlanarConfiguration"),
        (COLOUR, {"PhotometricInterpretation": "YBR_PARTIAL_422"}, "it to RGB"),
        (PLAIN, {"PixelData": None}, "without pixel data"),
        (PLAIN, {"Modality": "CT"}, "its modality CT is no radiograph's"),
        (PLAIN, {"Modality": SECRET}, "its modality unknown is"),
        (PLAIN, {"BitsStored": 4}, "stores 4 bits"),
        (PLAIN, {"Rows": 0}, "its size is zero"),
        (PLAIN, {"Rows": 60000, "Columns": 60000}, "60,000 x 60,000 pixels"),
        (PLAIN, {"RescaleSlope": "0"}, "rescale or lookup table"),
        (PLAIN, {"Rows": 65}, "cut short"),
    ],
)
def test_what_is_no_radiograph_is_refused_without_a_name(
    shown, capfd, caplog, pixels, elements, message
):
    refuse(shown, capfd, caplog, radiograph(pixels, **elements), message)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replaced(b"0.111\\0.222", b"0,111\\0,222", PixelSpacing=[0.111, 0.222]), "square"),
        (lambda: other_syntax(ExplicitVRLittleEndian), CONTRADICTS),
        (lambda: other_syntax("1.2.3.4"), "an unknown transfer syntax"),
        (lambda: other_syntax("1.2.840.10008.1.2.4.94"), "JPIP Referenced.*convert the file"),
        (lambda: other_syntax(DeflatedExplicitVRLittleEndian), "cannot be read"),
        (lambda: relabelled(compressed(COLOUR, JPEG2000Lossless), **GREY), CONTRADICTS),
        (lambda: relabelled(framed(JPEG, JPEGBaseline8Bit, COLOUR), **GREY), CONTRADICTS),
        (
            lambda: relabelled(compressed(PLAIN, JPEG2000Lossless), Rows=32, Columns=128),
            CONTRADICTS,
        ),
        (lambda: content(radiograph(PLAIN))[:-1000], "cut short|cannot be read"),
        (huge_codestream, CONTRADICTS),
        (lambda: b"\0" * 128 + b"DICM" + SECRET.encode() * 9, "without pixel data"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_without_a_name(
    shown, capfd, caplog, make, message
):
    refuse(shown, capfd, caplog, make(), message)


def refuse(shown, capfd, caplog, dataset, message):
    with pytest.raises(DataError, match=message) as caught:
        shown(dataset)
    assert "IM0001" in str(caught.value)
    assert SECRET not in "".join([str(caught.value), *capfd.readouterr(), caplog.text])
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("first", ["", "InstanceCreationDate", "LanguageCodeSequence", "Modality"])
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_dicom_without_its_preamble_is_read(tmp_path, shown, deep, first, syntax):
    """With its meta information, or a bare data set that begins with any element."""
    source = radiograph(deep, BitsStored=12, InstanceCreationDate="20200101")
    expected, meta = shown(source), source.file_meta
    source.LanguageCodeSequence = Sequence([Dataset()])
    for element in [each for each in source if first and each.tag < source[first].tag]:
        del source[element.tag]
    source.PixelData = deep.astype("<u2" if syntax.is_little_endian else ">u2").tobytes()
    meta.TransferSyntaxUID = syntax
    bare = content(source)[132:]
    if first:
        file, order = io.BytesIO(), syntax.is_little_endian
        del source.file_meta
        source.save_as(file, implicit_vr=syntax.is_implicit_VR, little_endian=order)
        bare = file.getvalue()
    assert b"DICM" not in bare
    np.testing.assert_array_equal(shown(bare), expected)
    assert read_dicom(bare, tmp_path).StudyInstanceUID == source.StudyInstanceUID


def test_a_file_that_does_not_name_its_transfer_syntax_is_read(shown, deep):
    raw = content(radiograph(deep))
    place, end = raw.index(b"\x02\0\x10\0UI"), raw.index(b"\x02\0\x12\0UI")
    np.testing.assert_array_equal(shown(raw[:place] + raw[end:]), shown(raw))


@pytest.mark.parametrize(
    "content", [b"\x08\0\x05\0CS", b"\x08\0\x08\0\x10\0\0\0" + b"Doe" * 9, b"\x02\0\0\0UL\x04\0"]
)
def test_what_only_begins_like_dicom_is_damaged(shown, content):
    with pytest.raises(DataError, match="IM0001: (damaged DICOM|is DICOM without)") as told:
        shown(content)
    assert "Doe" not in str(told.value)


def test_a_missing_codec_names_the_extra(shown, monkeypatch):
    dataset = compressed(PLAIN, JPEG2000Lossless)
    decoder = type(get_decoder(JPEG2000Lossless))
    monkeypatch.setattr(
        decoder, "is_available", property(lambda self: JPEG2000Lossless != self.UID)
    )
    with pytest.raises(DataError, match=r"JPEG 2000.*pip install 'decision-basis\[dicom\]'"):
        shown(dataset)
