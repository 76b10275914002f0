"""Where tests find real radiographs; they skip, saying so, where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "DECISION_BASIS_TEST_DATA"


def real_data(name: str) -> Path:
    """Return the folder ``name`` of real radiographs, or skip the test."""
    folder = Path(os.environ.get(VARIABLE, ""), name).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real radiographs at {folder}; name their folder in {VARIABLE}")
    return folder
