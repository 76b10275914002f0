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
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    RLELossless,
)

from datamodules.dicom import read_dicom
from datamodules.index import DataError
from tests.dicoms import SECRET, compressed, content, encoded, framed, radiograph, words

PLAIN, COLOUR = np.zeros((64, 64), np.uint16), np.zeros((64, 64, 3), np.uint8)
FLAT = np.kron([[0, 1200], [2400, 3900]], np.ones((8, 8))).astype(np.uint16)
RAW = DigitalXRayImageStorageForProcessing
SHORT = Sequence([Dataset()])
SHORT[0].LUTDescriptor, SHORT[0].LUTData = [4096, 0, 12], words(range(4095))
SHORT[0]["LUTData"].VR = "OW"
CONTRADICTS, BROKEN = "header contradicts its pixel data", "damaged DICOM file"


@pytest.mark.parametrize(
    "spacing",
    [
        {"PixelSpacing": [0.1, 0.10001]},
        {"ImagerPixelSpacing": [0, 0]},
        {"ImagerPixelSpacing": 0.1},
        {"PixelAspectRatio": [100, 100]},
    ],
)
def test_square_pixels_are_read(shown, grey, spacing):
    np.testing.assert_array_equal(shown(radiograph(grey, **spacing)), grey)


@pytest.mark.parametrize("name", ["Rows", "BitsStored", "PhotometricInterpretation"])
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
    ],
)
def test_colour_becomes_grey(shown, grey, make):
    colour = np.dstack([grey, grey * 0, 255 - grey])
    np.testing.assert_array_equal(shown(make(colour)), cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY))


# By dcmcjpeg +ee of DCMTK, of four flat blocks; its dcmdjpeg reads these values.
TWELVE = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a"
    "070706080c0a0c0c0b0a0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffc1000b0c"
    "0010001001011100ffc4001500010100000000000000000000000000000c0dffc4001410010000000000000000000000"
    "0000000000ffda0008010100003f00955464019007d03fffffd9"
)


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "12", "RLE", "J2K"])
def test_compressed_pixels_are_read_to_the_bit(shown, deep, tmp_path, capfd, kind):
    if kind == "12":
        pytest.importorskip("gdcm", reason="the extra dicom brings it")
        deep, dataset = FLAT, framed(TWELVE, JPEGExtended12Bit, FLAT, BitsStored=12)
    elif kind.startswith("JPEG"):
        dataset = encoded(deep, kind, tmp_path)
    else:
        syntax = {"RLE": RLELossless, "J2K": JPEG2000Lossless}[kind]
        dataset = compressed(deep, syntax, BitsStored=12)
    np.testing.assert_array_equal(shown(dataset), shown(radiograph(deep, BitsStored=12)))
    assert capfd.readouterr() == ("", "")  # libjpeg speaks of the 12 bits


@pytest.mark.parametrize(
    "kind",
    ["JPEGLosslessProcess14_1", "JPEGBaselineProcess1", "JPEGLSLossless", "RLE", "J2K", "12"],
)
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_damaged_frame_is_refused(shown, tmp_path, capfd, kind, end):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    if kind.startswith("JPEG"):
        dataset = encoded(pixels, kind, tmp_path)
    elif kind == "12":
        pytest.importorskip("gdcm", reason="the extra dicom brings it")
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


def other_syntax(uid):
    """The uid of the syntax replaced by one as long or shorter."""
    old = str(JPEG2000Lossless).encode()
    raw = content(compressed(PLAIN, JPEG2000Lossless))
    return raw.replace(old, str(uid).encode().ljust(len(old), b"\0"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ({"NumberOfFrames": 2}, "holds 2 frames"),
        ({"PixelAspectRatio": [1, 2]}, r"not square \(PixelAspectRatio\)"),
        ({"ImagerPixelSpacing": [0.1, 0.15]}, r"\(ImagerPixelSpacing\)"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "export it FOR PRESENTATION"),
        ({"SOPClassUID": RAW}, "export it FOR PRESENTATION"),
        ({"HighBit": 20}, "stores 16 bits"),
        ({"BitsAllocated": 12, "BitsStored": 12}, "12 bits a pixel in 12:"),
        ({"BitsStored": 4}, "stores 4 bits"),
        ({"ModalityLUTSequence": SHORT}, "rescale or lookup table"),
        ({"RescaleSlope": "0", "RescaleIntercept": "1"}, "rescale or lookup table"),
        ({"Columns": 63}, CONTRADICTS),
        ({"PixelData": None}, "without pixel data"),
        ({"Modality": "CT"}, "its modality CT is no radiograph's"),
        ({"Modality": SECRET}, "its modality unknown is"),
        ({"Rows": 0}, "its header claims 64 x 0 pixels"),
        ({"Rows": 60000, "Columns": 60000}, "60,000 x 60,000 pixels"),
        ({"Rows": 65}, "cut short"),
        (lambda: other_syntax(ExplicitVRLittleEndian), BROKEN),
        (lambda: other_syntax("1.2.3.4"), "an unknown transfer syntax"),
        (lambda: other_syntax("1.2.840.10008.1.2.4.94"), "JPIP Referenced.*convert the file"),
        (lambda: content(radiograph(COLOUR, PlanarConfiguration=None)), BROKEN),
        (lambda: content(radiograph(PLAIN))[:-1000], "cut short|cannot be read"),
        (lambda: b"\0" * 128 + b"DICM" + SECRET.encode() * 9, "without pixel data"),
        (lambda: b"\x08\0\x05\0CS" + SECRET.encode(), "damaged DICOM|is DICOM without"),
    ],
)
def test_what_is_no_radiograph_is_refused_without_a_name(shown, capfd, caplog, make, message):
    dataset = make() if callable(make) else radiograph(PLAIN + 7, **make)
    with pytest.raises(DataError, match=message) as caught:
        shown(dataset)
    assert "IM0001" in str(caught.value)
    assert SECRET not in "".join([str(caught.value), *capfd.readouterr(), caplog.text])
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("has_meta", [True, False])
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_dicom_without_its_preamble_is_read(tmp_path, shown, deep, has_meta, syntax):
    """With its meta information, or a bare data set."""
    source = radiograph(deep, BitsStored=12, InstanceCreationDate="20200101")
    expected = shown(source)
    source.PixelData = deep.astype("<u2" if syntax.is_little_endian else ">u2").tobytes()
    source.file_meta.TransferSyntaxUID = syntax
    bare = content(source)[132:]
    if not has_meta:
        file, order = io.BytesIO(), syntax.is_little_endian
        del source.file_meta
        source.save_as(file, implicit_vr=syntax.is_implicit_VR, little_endian=order)
        bare = file.getvalue()
    np.testing.assert_array_equal(shown(bare), expected)
    assert read_dicom(bare, tmp_path).StudyInstanceUID == source.StudyInstanceUID


def test_a_missing_codec_names_the_extra(shown, monkeypatch):
    dataset = compressed(PLAIN, JPEG2000Lossless)
    decoder = type(get_decoder(JPEG2000Lossless))
    monkeypatch.setattr(
        decoder, "is_available", property(lambda self: JPEG2000Lossless != self.UID)
    )
    with pytest.raises(DataError, match=r"JPEG 2000.*pip install 'decision-basis\[dicom\]'"):
        shown(dataset)
