"""What a run here would use, and what is wrong: ``python -m experiments.doctor [key=value ...]``.

Each line is OK, a note, or a PROBLEM with its remedy. Nothing is trained, downloaded or sent. Exit
status: 0 a run can start, 2 something is in its way.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.command import answered, build_parser, parse, run

if TYPE_CHECKING:  # at run time each check imports what it needs: any of it may be what is broken
    from experiments.config import Config

OK, NOTE, PROBLEM = "OK", "note", "PROBLEM"
GIB = 2**30
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
PACKAGES = ["torch", "torchvision", "pytorch-lightning", "torchmetrics", "albumentations", "numpy"]
CV2 = "opencv-python-headless"
PACKAGES += ["pandas", "omegaconf", "wandb", CV2]
MALICIOUS = ("2.6.2", "2.6.3")  # of Lightning
CV2_WHEELS = (CV2, "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")


class Finding(NamedTuple):
    """One line of the report."""

    state: str  # OK | note | PROBLEM
    topic: str
    text: str

    def __str__(self) -> str:
        """The line, wrapped to the terminal."""
        width = max(60, min(100, shutil.get_terminal_size((90, 24)).columns))
        head = f"  {self.state:<8} {self.topic:<18} "
        text = textwrap.wrap(self.text, width - len(head), break_on_hyphens=False)
        return head + f"\n{' ' * len(head)}".join(text)


@answered
def main(words: list[str] | None = None) -> int:
    """Print the report; return the exit status."""
    parser = build_parser("doctor", "What a run here would use, and what is wrong.", "STAGE")
    _, stages, settings = parse(parser, words)
    from experiments.config import load_config, run_directory

    stage, *others = stages or ["stage1"]
    config = load_config(stage, [*others, *settings])
    print(f"decision-basis on {platform.node()}: what {run_directory(config)} would use\n")
    states = []
    for finding in examine(config):
        print(finding, flush=True)
        states.append(finding.state)
    problems = states.count(PROBLEM)
    print(f"\n{_count(problems, 'problem')}, {_count(states.count(NOTE), 'note')}")
    return 2 if problems else 0


def examine(config: Config) -> Iterator[Finding]:
    """All findings, in the order in which a person would look for them."""
    machine = (check_versions, check_device, check_memory, check_folders)
    for check in (*machine, check_data, check_wandb, check_slurm):
        try:
            yield from check(config)
        except ImportError as error:
            topic = check.__name__.removeprefix("check_")
            yield Finding(PROBLEM, topic, f"{error}; repair the environment: make setup")


def first(topic: str, *cases: tuple[object, str, str]) -> Finding:
    """The finding of the first case (condition, state, text) that holds."""
    return next(Finding(state, topic, text) for holds, state, text in cases if holds)


def check_versions(config: Config) -> Iterator[Finding]:
    """Python and the packages against what is needed and what was tested; one cv2 wheel."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    yield Finding(OK, "Python", f"{platform.python_version()} ({sys.executable})")
    pins = CONSTRAINTS.read_text() if CONSTRAINTS.is_file() else ""  # none came with a wheel
    tested = dict(re.findall(r"^([\w.-]+)==([\w.]+)", pins, re.MULTILINE))
    needed = {}
    if installed_version("decision-basis"):
        requirements = map(Requirement, metadata.requires("decision-basis") or [])
        needed = {one.name: one.specifier for one in requirements if one.marker is None}
    for name in PACKAGES:
        version = installed_version(name)
        if version is None:
            yield Finding(PROBLEM, name, "not installed; make setup")
            continue
        outside = name in needed and not needed[name].contains(version, prereleases=True)
        public, pin = Version(version).public, tested.get(name)
        stolen = f"{version} is malicious (GHSA-w37p-236h-pfx3): uninstall it now, "
        stolen += "treat all keys on this machine as stolen, then make setup"
        wheels = [wheel for wheel in CV2_WHEELS if installed_version(wheel)]
        twins = f"{' and '.join(wheels)} overwrite each other's files: "
        twins += f"pip uninstall -y {' '.join(wheels)}; pip install {CV2}"
        yield first(
            "OpenCV" if name == CV2 else name,
            (name == CV2 and len(wheels) > 1, PROBLEM, twins),
            ("lightning" in name and public in MALICIOUS, PROBLEM, stolen),
            (outside, PROBLEM, f"{version}, but {needed.get(name)} is needed; make setup"),
            (pin and pin != public, NOTE, f"{version}; tested with {pin}"),
            (True, OK, version),
        )


def check_device(config: Config) -> Iterator[Finding]:
    """The device and the precision that a run would use."""
    from experiments.hardware import choose_device, choose_precision, describe_device, native_bf16

    wanted = str(config.trainer["accelerator"])
    device = choose_device(wanted)
    text, on_cpu = describe_device(device), device.type == "cpu"
    unused = on_cpu and wanted == "auto" and Path("/dev/nvidia0").exists()
    absent = f"trainer.accelerator={wanted}, but torch sees none; use a node with one, or auto"
    compare = "this torch cannot use it: compare nvidia-smi's CUDA with torch.version.cuda"
    yield first(
        "device",
        (on_cpu and wanted in ("gpu", "cuda", "mps"), PROBLEM, absent),
        (unused, NOTE, f"{text}; a GPU is there, but {compare}"),
        (True, OK, text),
    )
    precision = str(config.trainer["precision"] or choose_precision(wanted))
    native = native_bf16(device)
    slow = f"{precision}, but bfloat16 is not native here and slow; leave trainer.precision out"
    text = f"{precision} (bfloat16 is {'native' if native else 'not native'} here)"
    yield first("precision", ("bf16" in precision and not native, NOTE, slow), (True, OK, text))


def check_memory(config: Config) -> Iterator[Finding]:
    """Shared memory for loader workers: a container may have little."""
    from datamodules.batches import default_workers
    from datamodules.sources import SOURCES

    data = config.data
    workers = default_workers() if data.num_workers is None else data.num_workers
    size = data.image_size or SOURCES[data.name].default_image_size
    # Two batches a worker wait there: an image in uint8 and its mask in float32.
    needed = workers * 2 * data.batch_size * size * size * 5
    if needed and Path("/dev/shm").is_dir():
        free = shutil.disk_usage("/dev/shm").free
        text = f"{free / 2**20:.0f} MiB free in /dev/shm, loader workers need {needed / 2**20:.0f}"
        remedy = f"{text}: data.num_workers=0, or a container with --shm-size=2g"
        yield first("shared memory", (free < needed, PROBLEM, remedy), (True, OK, text))


def check_folders(config: Config) -> Iterator[Finding]:
    """Write access and space where a run writes."""
    cache = config.data.cache_dir or str(Path(config.run.root) / "cache")
    yield check_folder("run.root", Path(config.run.root), 1, "run.root")
    yield check_folder("cache", Path(cache), 1, "data.cache_dir")
    yield check_folder("temporary files", Path(tempfile.gettempdir()), 0.1, "TMPDIR")


def check_folder(topic: str, folder: Path, gibibytes: float, setting: str) -> Finding:
    """Whether ``folder``, or the nearest one above that exists, can be written and has room."""
    folder = folder.absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"decision-basis")
        free = shutil.disk_usage(place).free / GIB
    except OSError as error:
        text = f"{folder} cannot be written ({error.strerror}); set {setting} to another folder"
        return Finding(PROBLEM, topic, text)
    full = f"{folder}: {free:.2f} GiB free; make room, or set {setting} to another disk"
    text = f"{folder}, {free:.0f} GiB free"
    return first(topic, (free < gibibytes, PROBLEM, full), (True, OK, text))


def check_data(config: Config) -> Iterator[Finding]:
    """The data set: its root, the files that decide its index, its cache."""
    from datamodules.index import DataError
    from datamodules.phantom.source import PhantomDataModule
    from experiments.build import build_data

    try:
        data = build_data(config)
        if isinstance(data, PhantomDataModule) and not data.is_drawn():
            found = check_folder("data", data.root, data.bytes_on_disk / GIB, "data.root")
            text = f"phantom, draws itself ({data.count} images) into {data.root} on first use"
            yield first("data", (found.state == PROBLEM, PROBLEM, found.text), (True, OK, text))
            return
        if not data.root.is_dir():
            raise DataError(f"data.root={data.root} is no folder; give the data set's own folder")
        if not all(path.is_file() for path in data.fingerprint()):
            data.build_index()  # says which file is missing, and where it would be
        built = "built" if data.cache_folder.is_dir() else "not built yet"
        text = f"{config.data.name} in {data.root}, index files there, cache {built}"
        yield Finding(OK, "data", text)
    except DataError as error:
        yield Finding(PROBLEM, "data", str(error))
    except OSError as error:
        yield Finding(PROBLEM, "data", f"{error.filename}: {error.strerror}; check data.root")


def check_wandb(config: Config) -> Iterator[Finding]:
    """Whether anything would be sent, without asking W&B."""
    from experiments.config import ConfigError
    from experiments.training.wandb import has_api_key, wandb_mode

    key = "a key is configured" if has_api_key() else "no key configured"
    try:
        mode = wandb_mode(config.logger.wandb)
    except ConfigError as error:
        yield Finding(PROBLEM, "W&B", str(error))
        return
    waiting = ": nothing is sent; runs wait in the run directory" * (mode == "offline")
    yield Finding(OK, "W&B", f"{mode} ({key}){waiting}")


def check_slurm(config: Config) -> Iterator[Finding]:
    """The SLURM job around us, as Lightning will read it."""
    from experiments.hardware import slurm_fault

    job, tasks = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_NTASKS", "1")
    by_hand = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    fault, login = slurm_fault(config.trainer), "a login node, no job: train inside sbatch or srun"
    if fault or job or shutil.which("sbatch"):
        yield first(
            "SLURM",
            (fault, PROBLEM, fault),
            (job is None, NOTE, login),
            (by_hand, NOTE, f"job {job} is interactive: one process, no requeue"),
            (True, OK, f"job {job}, {tasks} tasks"),
        )


def installed_version(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(run(main))
