"""DICOM out: of the patient and study of the radiograph, valid, and no patient's name told."""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings

import numpy as np
import pydicom
import pytest

from datamodules.decode import decode
from datamodules.dicom import read_dicom
from datamodules.index import DataError
from experiments.prediction.pictures import secondary_capture
from tests.dicoms import SECRET, content, radiograph

PICTURE = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)


def source_with(**elements):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that are not valid
        return radiograph(np.zeros((64, 64), np.uint16), **elements)


@pytest.fixture
def capture(tmp_path):
    """Makes a capture, which dciodvfy, of Debian's dicom3tools, finds valid; its data."""

    def make(source, network="network"):
        file = tmp_path / "made.dcm"
        file.write_bytes(secondary_capture(source, PICTURE, network, "how"))
        if shutil.which("dciodvfy"):
            checked = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True)
            assert b"Error" not in checked.stdout + checked.stderr
        return pydicom.dcmread(file)

    return make


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, f"{SECRET}^Eva"),
        (None, "Müller"),  # Latin-1; one part, of which highdicom would warn and quote it
        ("ISO_IR 192", "Müller^Jörg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_a_secondary_capture_is_of_the_same_study(capture, capfd, charset, name):
    source = source_with(PatientName=name)
    if charset:
        source.SpecificCharacterSet = charset
    source = pydicom.dcmread(io.BytesIO(content(source)), stop_before_pixels=True)
    made, same, other = (capture(source, network) for network in ("a", "a", "b"))
    kept = ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyID")
    for element in (*kept, "AccessionNumber", "StudyDate", "PatientOrientation"):
        assert made[element].value == source[element].value, element
    assert str(made.PatientName) == name
    assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert (made.BurnedInAnnotation, made.DerivationDescription) == ("YES", "how")
    np.testing.assert_array_equal(made.pixel_array, PICTURE)
    # A study has one series of each network; every instance is another.
    assert len({each.SOPInstanceUID for each in (source, made, same, other)}) == 4
    assert made.SeriesInstanceUID == same.SeriesInstanceUID
    assert len({each.SeriesInstanceUID for each in (source, made, other)}) == 3
    assert not any(part in "".join(capfd.readouterr()) for part in (SECRET, "Müller"))


@pytest.mark.parametrize(
    "elements",
    [
        {"BodyPartExamined": "CHEST", "Laterality": "L"},  # unpaired: none is allowed
        {"BodyPartExamined": "HAND", "ImageLaterality": "B", "PatientOrientation": ["L"]},
        {"LossyImageCompression": "01", "InstanceNumber": "-3", "PatientOrientation": ["X", "LF"]},
        {"AccessionNumber": ["1", "2"], "StudyDescription": "left\nhand", "PatientSex": "X"},
        {"StudyDescription": "d" * 80, "BodyPartExamined": "Hand", "InstanceNumber": None},
        {"PatientBirthDate": "1970-01-01", "StudyDate": "20200231", "StudyTime": "99"},
    ],
)
def test_secondary_captures_are_valid(capture, elements):
    made = capture(source_with(**elements))
    side = elements.get("ImageLaterality") or elements.get("Laterality")
    assert ("Laterality" in made, made.ImageLaterality or None) == (False, side)
    assert made.PatientSex in ("F", "")
    assert made.StudyDate in ("20200102", "")


def test_values_that_are_not_valid_are_left_out_and_not_told(capture, tmp_path, capfd, caplog):
    caplog.set_level(0)
    raw, odd = content(source_with()), SECRET[:8].encode()
    path = tmp_path / "a.dcm"
    path.write_bytes(raw.replace(b"19700101", odd).replace(b"20200102", odd))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        decode(path)
        made = capture(read_dicom(path.read_bytes(), path))
    assert (made.PatientBirthDate, made.StudyDate) == ("", "")
    assert SECRET[:8] not in "".join([*capfd.readouterr(), caplog.text])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("StudyInstanceUID", None),
        ("SOPInstanceUID", "1.2.abc"),
        ("PatientID", f"{SECRET}\\b"),
        ("PatientID", f"{SECRET}\n"),
        ("PatientName", f"{SECRET}\ufffd"),
        ("IssuerOfPatientID", SECRET * 10),
    ],
)
def test_an_element_that_cannot_be_taken_over_is_named_and_not_quoted(name, value):
    with pytest.raises(DataError, match=f"of it: {name} missing or not valid. Fix: mend") as caught:
        secondary_capture(source_with(**{name: value}), PICTURE, "network", "how")
    assert value is None or value not in str(caught.value)
