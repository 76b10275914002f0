"""DICOM in and out: what a reading station would show, clear refusals, and no patient's name."""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from datamodules.decode import decode, window_16bit
from datamodules.dicom import read_dicom
from datamodules.index import DataError
from experiments.secondary_capture import encode, secondary_capture
from tests.dicoms import SECRET, content, radiograph
from tests.real import real_data


@pytest.fixture
def grey():
    return np.add.outer(np.arange(40) * 6, np.arange(48) * 0).astype(np.uint8)


@pytest.fixture
def deep():
    """12 bits, a ramp."""
    return np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


@pytest.fixture
def shown(tmp_path):
    def show(dataset):
        path = tmp_path / "IM0001"  # by content: DICOM files often have no suffix
        path.write_bytes(dataset if isinstance(dataset, bytes) else content(dataset))
        return decode(path)

    return show


def table(values, first, bits):
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.LUTData = np.asarray(values, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    return Sequence([item])


def test_eight_bits_are_shown_as_they_are(shown, grey):
    np.testing.assert_array_equal(shown(radiograph(grey)), grey)


def test_more_bits_without_a_window_are_those_of_a_png(shown, deep, tmp_path):
    cv2.imwrite(str(tmp_path / "same.png"), deep + 500)
    np.testing.assert_array_equal(
        shown(radiograph(deep + np.uint16(500), BitsStored=13)), decode(tmp_path / "same.png")
    )


@pytest.mark.parametrize("elements", [{}, {"WindowCenter": 2000, "WindowWidth": 900}])
def test_monochrome1_is_inverted(shown, deep, elements):
    usual = shown(radiograph(deep, BitsStored=12, **elements))
    turned = shown(
        radiograph(deep, BitsStored=12, PhotometricInterpretation="MONOCHROME1", **elements)
    )
    np.testing.assert_array_equal(turned, 255 - usual)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("signed", [False, True])
def test_rescale_and_window_as_pydicom_has_them(shown, deep, function, signed):
    stored = (deep.astype(np.int16) - 2048) if signed else deep
    dataset = radiograph(
        stored,
        BitsStored=12,
        RescaleSlope="2.5",
        RescaleIntercept="-100",
        WindowCenter=["900", "3"],  # the first of several counts
        WindowWidth=["3000.5", "7"],
        VOILUTFunction=function,
    )
    windowed = apply_windowing(apply_modality_lut(stored, dataset), dataset)
    low, high = ((-2048, 2047) if signed else (0, 4095)) * np.array(2.5) - 100
    expected = (windowed - low) / (high - low) * 255
    np.testing.assert_allclose(shown(dataset), expected, atol=0.51)


def test_a_negative_slope_turns_the_greys(shown, deep):
    usual, turned = (
        shown(radiograph(deep, BitsStored=12, RescaleSlope=slope, RescaleIntercept="0"))
        for slope in ("1", "-1")
    )
    np.testing.assert_allclose(turned, 255.0 - usual, atol=1)


def test_a_lookup_table_comes_before_a_window(shown, deep):
    values = (np.arange(4096) // 16) ** 2  # 8 bits squared: 16
    dataset = radiograph(
        deep, BitsStored=12, VOILUTSequence=table(values, 0, 16), WindowCenter=1, WindowWidth=2
    )
    np.testing.assert_allclose(shown(dataset), values[deep] / 65535 * 255, atol=0.51)


def test_lookup_tables_hold_their_ends(shown, deep):
    dataset = radiograph(deep, BitsStored=12, ModalityLUTSequence=table([10, 20, 200], 1000, 8))
    expected = np.array([10, 20, 200])[np.clip(deep.astype(int) - 1000, 0, 2)]
    np.testing.assert_array_equal(shown(dataset), expected)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limit", [None, 4095])
def test_padding_is_black_and_counts_for_nothing(shown, deep, kind, limit):
    inner = (deep // 4 + 1000).astype(np.uint16)
    padded = np.pad(inner, 8, constant_values=4000)
    elements = {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": limit}
    dataset = radiograph(
        padded,
        BitsStored=12,
        PhotometricInterpretation=kind,
        **{name: value for name, value in elements.items() if value is not None},
    )
    found = shown(dataset)
    alone = window_16bit(inner)[0]
    expected = 255 - alone if kind == "MONOCHROME1" else alone
    np.testing.assert_array_equal(found[8:-8, 8:-8], expected)
    assert not found[:8].any()


def test_an_image_of_padding_alone_is_black(shown, deep):
    assert not shown(radiograph(deep * 0, BitsStored=12, PixelPaddingValue=0)).any()


def test_bits_that_are_not_stored_count_for_nothing(shown, deep):
    # Old archives keep graphics in the bits above the image's.
    np.testing.assert_array_equal(
        shown(radiograph(deep | 0x8000, BitsStored=12)), shown(radiograph(deep, BitsStored=12))
    )


def test_colour_becomes_grey(shown, grey):
    colour = np.dstack([grey, grey // 2, 255 - grey])
    np.testing.assert_array_equal(
        shown(radiograph(colour)), cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)
    )


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_compressed_pixels_are_those_that_were_compressed(shown, deep, syntax):
    plain = radiograph(deep, BitsStored=12)
    expected = shown(plain)
    plain.compress(syntax)
    np.testing.assert_array_equal(shown(plain), expected)


def test_a_real_radiograph_is_upright_and_bone_is_bright(tmp_path):
    image = decode(real_data("dicom_sample") / "RG3_J2KR.dcm")
    assert image.shape == (1760, 1760)
    shaft, air = image[600:700, 800:900], image[600:700, 500:560]
    assert shaft.mean() > air.mean() + 80


def truncated():
    return content(radiograph(np.zeros((64, 64), np.uint16)))[:-1000]


def huge_codestream():
    dataset = radiograph(np.zeros((64, 64), np.uint16))
    dataset.compress(JPEG2000Lossless)
    raw = content(dataset)
    place = raw.index(b"\xff\x4f\xff\x51") + 8
    return raw[:place] + (60000).to_bytes(4, "big") * 2 + raw[place + 8 :]


def other_syntax(uid):
    """The uid of the syntax replaced by one as long or shorter."""
    dataset = radiograph(np.zeros((64, 64), np.uint16))
    dataset.compress(JPEG2000Lossless)
    old = str(JPEG2000Lossless).encode()
    return content(dataset).replace(old, str(uid).encode().ljust(len(old), b"\0"))


PLAIN = np.zeros((64, 64), np.uint16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: radiograph(PLAIN, NumberOfFrames=2), "holds 2 frames"),
        (lambda: radiograph(PLAIN, PixelAspectRatio=[1, 2]), "its pixels are not square"),
        (lambda: radiograph(PLAIN, PixelData=None), "without pixel data"),
        (lambda: radiograph(PLAIN, Modality="CT"), "its modality is CT, which is no radiograph"),
        (lambda: radiograph(PLAIN, Modality=SECRET), "its modality is unknown"),
        (lambda: radiograph(PLAIN, BitsStored=4), "stores 4 bits"),
        (lambda: radiograph(PLAIN, Rows=0), "its size is zero"),
        (lambda: radiograph(PLAIN, Rows=60000, Columns=60000), "60,000 x 60,000 pixels"),
        (lambda: radiograph(PLAIN, RescaleSlope="0"), "rescale, window or lookup table"),
        (lambda: radiograph(PLAIN, Rows=65), "cut short"),
        (lambda: other_syntax("1.2.840.10008.1.2.4.94"), "JPIP Referenced.*convert it"),
        (lambda: other_syntax(DeflatedExplicitVRLittleEndian), "cannot be read"),
        (truncated, "cut short|cannot be read"),
        (huge_codestream, "60,000 x 60,000 pixels"),
        (lambda: b"\0" * 128 + b"DICM" + SECRET.encode() * 9, "damaged DICOM file"),
    ],
)
def test_what_is_no_radiograph_is_refused_without_a_name(shown, capfd, caplog, make, message):
    with pytest.raises(DataError, match=message) as caught:
        shown(make())
    assert "IM0001" in str(caught.value)
    assert SECRET not in "".join([str(caught.value), *capfd.readouterr(), caplog.text])
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("meta", [True, False])
def test_dicom_without_its_preamble_is_read(tmp_path, shown, deep, picture, syntax, meta):
    source = radiograph(deep)
    source.file_meta.TransferSyntaxUID = syntax
    whole = content(source)
    bare = whole[132:]
    if not meta:
        file = io.BytesIO()
        implicit = syntax == ImplicitVRLittleEndian
        del source.file_meta
        source.save_as(file, implicit_vr=implicit, little_endian=True)
        bare = file.getvalue()
    assert b"DICM" not in bare
    np.testing.assert_array_equal(shown(bare), shown(whole))
    again = secondary_capture(read_dicom(bare, tmp_path), picture, "network", "how")
    assert again.StudyInstanceUID == source.StudyInstanceUID


@pytest.mark.parametrize(
    "content", [b"\x08\0\x05\0CS", b"\x08\0\x08\0\x10\0\0\0" + b"Doe" * 9, b"\x02\0\0\0UL\x04\0"]
)
def test_what_only_begins_like_dicom_is_damaged(shown, content):
    with pytest.raises(DataError, match="IM0001: (damaged DICOM|is a DICOM file without)") as told:
        shown(content)
    assert "Doe" not in str(told.value)


def test_a_missing_codec_names_the_extra(shown, monkeypatch):
    dataset = radiograph(PLAIN)
    dataset.compress(JPEG2000Lossless)
    decoder = type(get_decoder(JPEG2000Lossless))
    monkeypatch.setattr(
        decoder, "is_available", property(lambda self: JPEG2000Lossless != self.UID)
    )
    with pytest.raises(DataError, match=r"JPEG 2000.*pip install 'decision-basis\[dicom\]'"):
        shown(dataset)


def test_values_that_are_not_valid_are_not_told(tmp_path, picture, capfd, caplog):
    caplog.set_level(0)
    raw = content(radiograph(PLAIN)).replace(b"19700101", SECRET[:8].encode())
    path = tmp_path / "a.dcm"
    path.write_bytes(raw.replace(b"20200102", SECRET[:8].encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        decode(path)
        source = read_dicom(path.read_bytes(), path)
        with pytest.raises(ValueError, match="missing or not valid") as caught:
            secondary_capture(source, picture, "network", "how")
    told = "".join([str(caught.value), *capfd.readouterr(), caplog.text])
    assert SECRET[:8] not in told


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, f"{SECRET}^Eva"),
        (None, SECRET),  # one part: highdicom would warn and quote it
        ("ISO_IR 192", "Müller^Jörg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_a_secondary_capture_is_of_the_same_study(tmp_path, picture, capfd, charset, name):
    source = radiograph(PLAIN)
    if charset:
        source.SpecificCharacterSet = charset
    source.PatientName = name
    (tmp_path / "source.dcm").write_bytes(content(source))
    source = pydicom.dcmread(tmp_path / "source.dcm", stop_before_pixels=True)
    made = encode(secondary_capture(source, picture, "network", "how"), tmp_path)
    (tmp_path / "made.dcm").write_bytes(made)
    found = pydicom.dcmread(tmp_path / "made.dcm")
    kept = ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyID")
    for element in (*kept, "AccessionNumber", "StudyDate", "PatientOrientation"):
        assert found[element].value == source[element].value, element
    assert str(found.PatientName) == name
    assert found.SOPInstanceUID != source.SOPInstanceUID
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert found.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert (found.BurnedInAnnotation, found.ImageType[0]) == ("YES", "DERIVED")
    np.testing.assert_array_equal(found.pixel_array, picture)
    assert SECRET not in "".join(capfd.readouterr())
    if shutil.which("dciodvfy"):  # Debian's dicom3tools
        told = subprocess.run(["dciodvfy", tmp_path / "made.dcm"], capture_output=True, text=True)
        lines = (told.stdout + told.stderr).splitlines()
        assert [line for line in lines if not line.startswith("Warning")] == ["SCImage"]


def test_pictures_of_one_study_by_one_network_are_one_series(picture):
    source = radiograph(PLAIN)
    one, same, other = (
        secondary_capture(source, picture, network, "how") for network in ("a", "a", "b")
    )
    assert one.SeriesInstanceUID == same.SeriesInstanceUID != other.SeriesInstanceUID
    assert len({one.SOPInstanceUID, same.SOPInstanceUID, other.SOPInstanceUID}) == 3


@pytest.mark.parametrize("uid", [None, "1.2.abc", "1.2.003", "1." * 40 + "1"])
@pytest.mark.parametrize("name", ["StudyInstanceUID", "SOPInstanceUID"])
def test_no_secondary_capture_of_an_unknown_study(picture, name, uid):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of the value
        source = radiograph(PLAIN, **{name: uid})
    with pytest.raises(ValueError, match="missing or not valid") as caught:
        secondary_capture(source, picture, "a", "how")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PatientID", SECRET * 10),
        ("AccessionNumber", "1234567890123456789"),
        ("PatientSex", "Female"),
        ("PatientBirthDate", "1970-01-01"),
        ("BodyPartExamined", "left hand"),
    ],
)
def test_an_element_that_cannot_be_taken_over_is_named(picture, name, value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of the value
        source = radiograph(PLAIN, **{name: value})
    with pytest.raises(ValueError, match=f"of it: {name} is missing or not valid; mend") as caught:
        secondary_capture(source, picture, "a", "how")
    assert value not in str(caught.value)
