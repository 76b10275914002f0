"""The tests of a GPU run where there is one, or on the device that DECISION_BASIS_DEVICE names.

Elsewhere they are not collected, and so not reported as skipped either.
"""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("DECISION_BASIS_DEVICE") or ("cuda" if torch.cuda.is_available() else "")
collect_ignore_glob = [] if DEVICE else ["test_*.py"]


@pytest.fixture(scope="session")
def device():
    return torch.device(DEVICE)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Where the tiny phantom is drawn."""
    return tmp_path_factory.mktemp("gpu")
