"""Where there is neither a card nor DECISION_BASIS_DEVICE, nothing here is collected or skipped."""

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
    return tmp_path_factory.mktemp("gpu")
