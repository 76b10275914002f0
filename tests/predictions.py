"""Fixtures of the tests that predict: a run, drawings, and the command."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from datamodules.phantom.drawing import draw as draw_phantom
from experiments import predict as command
from experiments.prediction.folder import read_rows
from tests.untrained import judge, make_run

NO_IMAGE = b"no image"


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory):
    """A stage 3 whose batches hold five images."""
    return judge(make_run(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="session")
def drawings():
    return [draw_phantom(0, number).image for number in range(6)]


def save(folder, images):
    """Write images, or bytes, below a folder."""
    for name, image in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_array = isinstance(image, np.ndarray)
        path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes() if is_array else image)


@pytest.fixture
def predict(untrained_run, capsys):
    """Runs the command on words; returns its status, its rows and what it printed."""

    def predict(*words, out, run=untrained_run):
        capsys.readouterr()
        status = command.main([str(word) for word in (run, *words, "--out", out)])
        rows = {name: row._replace(file="") for name, row in read_rows(out).items()}
        return status, rows, "".join(capsys.readouterr())

    return predict


def files_of(folder, pattern="*"):
    """Content and time of each file below a folder."""
    files = [path for path in folder.rglob(pattern) if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def read_grey(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
