"""What a person runs: thin commands, the ground they stand on, and a room for each kind of work.

Ground, from the bottom: ``command`` (how commands begin and end), ``config`` (options), ``runs``
(run directories), ``build`` (configuration to Lightning objects, and ``open_run``). Rooms:
``training``, ``evaluation``, ``annotation``; above them ``audit``, ``reporting``, ``prediction``,
``cluster``. Read first: ``config``, ``build``, ``runs``, ``training.loop``, ``evaluation.run``.
For notebooks and scripts: :func:`load_run`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.prediction.network import Trained


def load_run(run: str | Path) -> Trained:
    """Open a trained run, to be called with images.

    ``load_run(run)(image)`` takes a file (PNG, JPEG, DICOM) or an array (H, W) of uint8 or uint16,
    bone white, and returns ``probability`` of abnormal, ``decision`` ("normal", "abnormal") and
    ``maps`` by name, float32 (H, W) in [0, 1].
    """
    from experiments.prediction.network import load_trained  # PyTorch: only when it is needed

    return load_trained(Path(run))
