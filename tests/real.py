"""Where tests find real radiographs; they skip, saying so, where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_data(name: str) -> Path:
    """Return the folder ``name`` of real radiographs, or skip the test."""
    folder = Path(os.environ.get("DECISION_BASIS_TEST_DATA", BESIDE)) / name
    if not folder.is_dir():
        pytest.skip(f"no real radiographs at {folder}; set DECISION_BASIS_TEST_DATA")
    return folder
