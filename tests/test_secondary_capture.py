"""DICOM out: of the patient and study of the radiograph, valid, and no patient's name told."""

from __future__ import annotations

import shutil
import subprocess
import warnings

import numpy as np
import pydicom
import pytest

from datamodules.decode import decode
from datamodules.dicom import read_dicom
from experiments.prediction.capture import secondary_capture
from tests.dicoms import SECRET, content, radiograph

PLAIN = np.zeros((64, 64), np.uint16)


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)


def test_values_that_are_not_valid_are_not_told(tmp_path, picture, capfd, caplog):
    caplog.set_level(0)
    raw = content(radiograph(PLAIN)).replace(b"19700101", SECRET[:8].encode())
    path = tmp_path / "a.dcm"
    path.write_bytes(raw.replace(b"20200102", SECRET[:8].encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        decode(path)
        source = read_dicom(path.read_bytes(), path)
        made = secondary_capture(source, picture, "network", "how")
    assert (made.PatientBirthDate, made.StudyDate) == (None, None)
    told = "".join([*capfd.readouterr(), caplog.text])
    assert SECRET[:8] not in told


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, f"{SECRET}^Eva"),
        (None, "Müller^Jörg"),  # Latin-1, as many a device writes it
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
    "elements",
    [
        {},
        {"BodyPartExamined": "CHEST"},
        {"BodyPartExamined": "CHEST", "Laterality": "L"},  # unpaired: none is allowed
        {"BodyPartExamined": "HAND", "Laterality": "R"},
        {"BodyPartExamined": "HAND", "ImageLaterality": "B"},
        {"PatientOrientation": ["L"]},
        {"PatientOrientation": ["X", "LF"]},
        {"LossyImageCompression": "01", "InstanceNumber": "-3"},
        {"AccessionNumber": ["1", "2"], "StudyDescription": ["a", "b"], "StudyID": "1\n"},
        {"StudyDescription": "left\nhand", "BodyPartExamined": "Hand", "PatientSex": "X"},
        {"StudyDescription": "d" * 80, "BodyPartExamined": "H" * 20, "InstanceNumber": None},
        {"PatientBirthDate": "1970-01-01", "StudyDate": "20200231", "StudyTime": "99"},
        {"Manufacturer": "Maker", "DeviceSerialNumber": "", "SoftwareVersions": ["1", "2"]},
    ],
)
def test_secondary_captures_are_valid(tmp_path, picture, elements):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of the value
        source = radiograph(PLAIN, **elements)
    made = secondary_capture(source, picture, "network", "how")
    side = elements.get("ImageLaterality") or elements.get("Laterality")
    assert ("Laterality" in made, made.ImageLaterality or None) == (False, side)
    (tmp_path / "made.dcm").write_bytes(encode(made, tmp_path))
    if not shutil.which("dciodvfy"):
        pytest.skip("needs dciodvfy, of Debian's dicom3tools")
    told = subprocess.run(["dciodvfy", "-new", tmp_path / "made.dcm"], capture_output=True)
    assert b"Error" not in told.stdout + told.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PatientID", SECRET * 10),
        ("PatientID", f"{SECRET}\\b"),
        ("PatientID", f"{SECRET}\n"),
        ("PatientName", f"{SECRET}\ufffd"),
        ("IssuerOfPatientID", SECRET * 10),
    ],
)
def test_an_element_that_cannot_be_taken_over_is_named(picture, name, value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of the value
        source = radiograph(PLAIN, **{name: value})
    with pytest.raises(ValueError, match=f"of it: {name} is missing or not valid; mend") as caught:
        secondary_capture(source, picture, "a", "how")
    assert value not in str(caught.value)
