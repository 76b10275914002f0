"""What all tests share: no network, no display, no state of whoever or whatever runs them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

# Of a make, SLURM job, torchrun or W&B agent around the tests: what they start would obey it.
MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text()
HELP = "".join(re.findall(r"^#:.*$", MAKEFILE, re.MULTILINE))  # names all its variables
INHERITED = {"MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "GNUMAKEFLAGS", "MAKEFILES"}
INHERITED |= {"RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
INHERITED |= {"MASTER_ADDR", "MASTER_PORT", *re.findall(r"([A-Z_]+)=", HELP)}
for name in list(os.environ):
    if name in INHERITED or name.startswith(
        ("SLURM_", "SBATCH_", "SRUN_", "WANDB_", "TORCHELASTIC_")
    ):
        del os.environ[name]

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else its import asks PyPI for news
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "Agg"

# Fixtures; the environment first.
from tests.films import films as films  # noqa: E402
from tests.films import folders as folders  # noqa: E402
from tests.runs import trained as trained  # noqa: E402


@pytest.fixture
def importing(tmp_path, capsys):
    from tests.lesion_files import Importing  # not before the environment is set

    return Importing(tmp_path, capsys)
