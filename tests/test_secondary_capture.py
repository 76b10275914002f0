"""DICOM out: of the patient and study of the radiograph, valid, and no patient's name told."""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings

import numpy as np
import pydicom
import pytest

from datamodules.dicom import read_dicom
from datamodules.index import DataError
from experiments.prediction.pictures import secondary_capture
from tests.dicoms import SECRET, content, radiograph

PICTURE = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)


def source_with(**elements):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that are not valid
        return radiograph(np.zeros((64, 64), np.uint16), **elements)


def capture(source, folder, network="network"):
    """A capture, which dciodvfy, of Debian's dicom3tools, finds valid; its data."""
    file = folder / "made.dcm"
    file.write_bytes(secondary_capture(source, PICTURE, network, "how"))
    if shutil.which("dciodvfy"):
        checked = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True)
        assert b"Error" not in checked.stdout + checked.stderr
    return pydicom.dcmread(file)


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, "Müller"),  # Latin-1; one part, of which highdicom would warn and quote it
        ("ISO_IR 192", "Müller^Jörg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_a_secondary_capture_is_of_the_same_study(tmp_path, capfd, charset, name):
    source = source_with(PatientName=name, **({"SpecificCharacterSet": charset} if charset else {}))
    source = pydicom.dcmread(io.BytesIO(content(source)), stop_before_pixels=True)
    made, same, other = (capture(source, tmp_path, network) for network in ("a", "a", "b"))
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
    assert "Müller" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("elements", "kept"),
    [
        ({"BodyPartExamined": "CHEST", "Laterality": "L"}, {"ImageLaterality": "L"}),
        ({"ImageLaterality": "B", "PatientOrientation": ["L"]}, {"PatientOrientation": ""}),
        ({"LossyImageCompression": "01", "InstanceNumber": "-3"}, {"LossyImageCompression": "01"}),
        ({"AccessionNumber": ["1", "2"], "PatientSex": "X"}, {"PatientSex": ""}),
        ({"StudyDescription": "d" * 80, "BodyPartExamined": "Hand"}, {"StudyDescription": None}),
        ({"PatientBirthDate": SECRET[:8], "StudyTime": "99"}, {"PatientBirthDate": ""}),
    ],
)
def test_what_is_not_valid_is_left_out_and_not_told(tmp_path, capfd, caplog, elements, kept):
    caplog.set_level(0)
    data = content(source_with(**elements))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        made = capture(read_dicom(data, tmp_path), tmp_path)
    assert {name: made.get(name) for name in kept} == kept
    assert "Laterality" not in made  # not even empty: a body part may be unpaired
    assert SECRET[:8] not in "".join([*capfd.readouterr(), caplog.text])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("StudyInstanceUID", None),
        ("SOPInstanceUID", "1.2.abc"),
        ("PatientID", f"{SECRET}\\b"),
        ("PatientName", f"{SECRET}\ufffd"),
        ("IssuerOfPatientID", SECRET * 10),
    ],
)
def test_an_element_that_cannot_be_taken_over_is_named_and_not_quoted(name, value):
    with pytest.raises(DataError, match=f"of it: {name} missing or not valid. Fix: mend") as caught:
        secondary_capture(source_with(**{name: value}), PICTURE, "network", "how")
    assert value is None or value not in str(caught.value)
