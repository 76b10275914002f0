"""What tests of ``experiments.predict`` share."""

from __future__ import annotations

import cv2

from experiments import predict
from experiments.prediction.folder import read_rows


def told(*words):
    return predict.main([str(word) for word in words])


def rows_of(out):
    return {name: row._replace(file="") for name, row in read_rows(out).items()}


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return path
