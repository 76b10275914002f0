"""What a run here would use, and what is wrong: ``python -m experiments.doctor [key=value ...]``.

Each line is OK, a note, or a PROBLEM with its remedy. Nothing is trained, downloaded or sent. Exit
status: 0 a run can start, 2 something is in its way.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import resource
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.command import install, run

if TYPE_CHECKING:  # at run time each check imports what it needs: any of it may be what is broken
    from packaging.requirements import Requirement

    from experiments.config import Config

OK, NOTE, PROBLEM = "OK", "note", "PROBLEM"
GIB = 2**30
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "albumentations",
    "numpy",
    "pandas",
    "omegaconf",
    "wandb",
)
CV2_WHEELS = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)


class Finding(NamedTuple):
    """One line of the report."""

    state: str  # OK | note | PROBLEM
    topic: str
    text: str


def main(words: list[str] | None = None) -> int:
    """Print the report; return the exit status."""
    words = sys.argv[1:] if words is None else words
    if {"-h", "--help"} & set(words):
        print(f"usage: python -m experiments.doctor [STAGE] [key=value ...]\n\n{__doc__}")
        return 0
    stage = words[0] if words and "=" not in words[0] else "stage1"
    try:
        from experiments.config import ConfigError, load_config, run_directory
    except ImportError as error:
        print(f"error: {error}; {install()}", file=sys.stderr)
        return 2
    try:
        config = load_config(stage, words[1:] if words[:1] == [stage] else words)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"decision-basis on {platform.node()}: what {run_directory(config)} would use\n")
    findings = []
    for finding in examine(config):
        print(render(finding), flush=True)
        findings.append(finding)
    problems = sum(finding.state == PROBLEM for finding in findings)
    notes = sum(finding.state == NOTE for finding in findings)
    print(f"\n{_count(problems, 'problem')}, {_count(notes, 'note')}")
    return 2 if problems else 0


def examine(config: Config) -> Iterator[Finding]:
    """All findings, in the order in which a person would look for them."""
    checks: tuple[Callable[[Config], Iterator[Finding]], ...] = (
        check_versions,
        check_cv2,
        check_device,
        check_cpu,
        check_limits,
        check_folders,
        check_data,
        check_wandb,
        check_slurm,
    )
    for check in checks:
        try:
            yield from check(config)
        except ImportError as error:
            topic = check.__name__.removeprefix("check_")
            yield Finding(PROBLEM, topic, f"{error}; repair the environment: make setup")


def render(finding: Finding) -> str:
    """The line, wrapped to the terminal."""
    width = max(60, min(100, shutil.get_terminal_size((90, 24)).columns))
    head = f"  {finding.state:<8} {finding.topic:<18} "
    text = textwrap.wrap(finding.text, width - len(head), break_on_hyphens=False)
    return head + f"\n{' ' * len(head)}".join(text)


# --------------------------------------------------------------------------------------- checks
def check_versions(config: Config) -> Iterator[Finding]:
    """Python and the packages against what was tested and what is known to be bad."""
    from packaging.version import Version

    version = platform.python_version()
    if sys.version_info < (3, 10):  # noqa: UP036  # started by hand in another environment
        yield Finding(PROBLEM, "Python", f"{version}; 3.10 or later is needed")
    else:
        yield Finding(OK, "Python", f"{version} ({sys.executable})")
    tested, floors = tested_versions(), required_versions()
    for name in PACKAGES:
        found = installed_version(name)
        if found is None:
            yield Finding(PROBLEM, name, "not installed; make setup")
        elif name == "pytorch-lightning" and (reason := lightning_danger(found)):
            yield Finding(PROBLEM, name, reason)
        elif name in floors and not floors[name].specifier.contains(found, prereleases=True):
            needed = floors[name].specifier
            yield Finding(PROBLEM, name, f"{found}, but {needed} is needed; make setup")
        elif name in tested and Version(found).public != tested[name]:
            yield Finding(NOTE, name, f"{found}; tested with {tested[name]}")
        else:
            yield Finding(OK, name, found)
    other = installed_version("lightning")  # the same code under a second name
    if other and (reason := lightning_danger(other)):
        yield Finding(PROBLEM, "lightning", reason)


def lightning_danger(version: str) -> str:
    """Why this version of Lightning must not be used; empty if it may."""
    from packaging.version import Version

    if Version(version).public in ("2.6.2", "2.6.3"):
        return (
            f"{version} is malicious (GHSA-w37p-236h-pfx3): uninstall it now, treat all keys on "
            "this machine as stolen, then pip install 'pytorch-lightning>=2.6.6'"
        )
    if Version(version) < Version("2.6.6"):
        return (
            f"{version} runs code from checkpoints that it loads (GHSA-qqmf-gpg7-g8gw); "
            "pip install 'pytorch-lightning>=2.6.6'"
        )
    return ""


def check_cv2(config: Config) -> Iterator[Finding]:
    """Exactly one cv2 wheel, and it works."""
    found = {name: version for name in CV2_WHEELS if (version := installed_version(name))}
    remedy = f"pip uninstall -y {' '.join(found)}; pip install {_pinned('opencv-python-headless')}"
    if len(found) > 1:
        text = f"{' and '.join(found)} overwrite each other's files; {remedy}"
        yield Finding(PROBLEM, "OpenCV", text)
        return
    try:
        numpy, cv2 = importlib.import_module("numpy"), importlib.import_module("cv2")
        small = cv2.resize(numpy.full((4, 4), 7, numpy.uint8), (2, 2))
        works = small.shape == (2, 2) and bool((small == 7).all())
    except (ImportError, AttributeError) as error:  # AttributeError: an empty cv2 folder
        yield Finding(PROBLEM, "OpenCV", f"cv2 does not work ({error}); {remedy}")
        return
    name, version = next(iter(found.items()), ("cv2", cv2.__version__))
    if not works:
        yield Finding(PROBLEM, "OpenCV", f"{name} {version} resizes wrongly; {remedy}")
    elif name != "opencv-python-headless":
        text = f"{name} {version}; opencv-python-headless is what is tested, and needs no libGL"
        yield Finding(NOTE, "OpenCV", text)
    else:
        yield Finding(OK, "OpenCV", f"{name} {version}, resizes")


def check_device(config: Config) -> Iterator[Finding]:
    """The device and the precision that a run would use."""
    from experiments.hardware import choose_device, choose_precision, describe_device, native_bf16

    wanted = str(config.trainer["accelerator"])
    device = choose_device(wanted)
    if wanted in ("gpu", "cuda", "mps") and device.type == "cpu":
        text = f"trainer.accelerator={wanted}, but torch sees none; use a node with one, or auto"
        yield Finding(PROBLEM, "device", text)
    elif device.type == "cpu" and Path("/dev/nvidia0").exists() and wanted == "auto":
        text = f"{describe_device(device)}; a GPU is there, but this torch cannot use it: "
        yield Finding(NOTE, "device", text + "compare nvidia-smi's CUDA with torch.version.cuda")
    else:
        yield Finding(OK, "device", describe_device(device))
    precision = config.trainer["precision"] or choose_precision(wanted)
    native = "native" if native_bf16(device) else "not native"
    if "bf16" in str(precision) and native != "native":
        text = f"{precision}, but bfloat16 is {native} here and slow; leave trainer.precision out"
        yield Finding(NOTE, "precision", text)
    else:
        yield Finding(OK, "precision", f"{precision} (bfloat16 is {native} here)")


def check_cpu(config: Config) -> Iterator[Finding]:
    """Cores, threads and memory."""
    import torch

    from datamodules.files import usable_cores
    from experiments.hardware import usable_memory

    cores, threads = usable_cores(), torch.get_num_threads()
    if threads > cores:
        text = f"{threads} threads on {_count(cores, 'core')}; export OMP_NUM_THREADS={cores}"
        yield Finding(NOTE, "cores", text)
    else:
        yield Finding(OK, "cores", f"{_count(cores, 'core')}, {_count(threads, 'thread')}")
    memory = usable_memory()
    if memory is not None:
        state = OK if memory >= 4 * GIB else NOTE
        text = f"{memory / GIB:.1f} GiB" + ("" if state == OK else "; use a smaller batch_size")
        yield Finding(state, "memory", text)


def check_limits(config: Config) -> Iterator[Finding]:
    """What loader workers need: shared memory and open files."""
    shared = Path("/dev/shm")
    if shared.is_dir():
        free, needed = shutil.disk_usage(shared).free, loader_bytes(config)
        if free < needed:
            text = (
                f"{free / 2**20:.0f} MiB free in /dev/shm, loader workers need about "
                f"{needed / 2**20:.0f}: data.num_workers=0, or a container with --shm-size=2g"
            )
            yield Finding(PROBLEM, "shared memory", text)
        else:
            yield Finding(OK, "shared memory", f"{free / GIB:.1f} GiB free in /dev/shm")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < 1024 and files != resource.RLIM_INFINITY:
        text = f"{files} allowed; workers may run out: ulimit -n 4096"
        yield Finding(NOTE, "open files", text)
    else:
        yield Finding(OK, "open files", f"{files} allowed")


def loader_bytes(config: Config) -> int:
    """Bytes of the batches that wait in shared memory: two a worker, uint8 image + float32 mask."""
    from datamodules.radiographs import default_workers

    workers = config.data.num_workers
    workers = default_workers() if workers is None else workers
    size = config.data.image_size or (160 if config.data.name == "phantom" else 320)
    return workers * 2 * config.data.batch_size * size * size * 5


def check_folders(config: Config) -> Iterator[Finding]:
    """Write access and space where a run writes."""
    cache = config.data.cache_dir or str(Path(config.run.root) / "cache")
    folders = (
        ("run.root", Path(config.run.root), 1),
        ("cache", Path(cache), 1),
        ("temporary files", Path(tempfile.gettempdir()), 0.1),
    )
    for topic, folder, gibibytes in folders:
        yield check_folder(topic, folder, gibibytes)


def check_folder(topic: str, folder: Path, gibibytes: float) -> Finding:
    """Whether ``folder``, or the nearest one above that exists, can be written and has room."""
    folder = folder.absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    settings = {"run.root": "run.root", "cache": "data.cache_dir", "data": "data.root"}
    other = settings.get(topic, "TMPDIR")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"decision-basis")
        free = shutil.disk_usage(place).free / GIB
    except OSError as error:
        text = f"{folder} cannot be written ({error.strerror}); set {other} to another folder"
        return Finding(PROBLEM, topic, text)
    if free < gibibytes:
        text = f"{folder}: {free:.2f} GiB free; make room, or set {other} to another disk"
        return Finding(PROBLEM, topic, text)
    return Finding(OK, topic, f"{folder}, {free:.0f} GiB free")


def check_data(config: Config) -> Iterator[Finding]:
    """The data set: its root, the files that decide its index, its cache."""
    from datamodules import DataError
    from datamodules.phantom.source import PhantomDataModule
    from experiments.build import build_data

    try:
        data = build_data(config)
        if isinstance(data, PhantomDataModule) and not data.is_drawn():
            found = check_folder("data", data.root, data.bytes_on_disk / GIB)
            text = f"phantom, draws itself ({data.count} images) into {data.root} on first use"
            found = found if found.state == PROBLEM else Finding(OK, "data", text)
        elif not data.root.is_dir():
            raise DataError(f"data.root={data.root} is no folder; give the data set's own folder")
        else:
            if not all(path.is_file() for path in data.fingerprint()):
                data.build_index()  # says which file is missing, and where it would be
            text = f"{config.data.name} in {data.root}, index files there"
            text += ", cache built" if data.cache_folder.is_dir() else ", cache not built yet"
            found = Finding(OK, "data", text)
    except DataError as error:
        found = Finding(PROBLEM, "data", str(error))
    except OSError as error:
        found = Finding(PROBLEM, "data", f"{error.filename}: {error.strerror}; check data.root")
    yield found


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
    if mode == "offline":
        text = f"offline ({key}): nothing is sent; runs wait in the run directory"
        yield Finding(OK, "W&B", text)
    else:
        yield Finding(OK, "W&B", f"{mode} ({key})")


def check_slurm(config: Config) -> Iterator[Finding]:
    """The SLURM job around us, as Lightning will read it."""
    from experiments.hardware import slurm_fault

    job = os.environ.get("SLURM_JOB_ID")
    if fault := slurm_fault(config.trainer):
        yield Finding(PROBLEM, "SLURM", fault)
    elif job is None:
        if shutil.which("sbatch"):
            yield Finding(NOTE, "SLURM", "a login node, no job: train inside sbatch or srun")
    elif os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        yield Finding(NOTE, "SLURM", f"job {job} is interactive: one process, no requeue")
    else:
        yield Finding(OK, "SLURM", f"job {job}, {os.environ.get('SLURM_NTASKS', '1')} tasks")


# -------------------------------------------------------------------------------------- helpers
def installed_version(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def tested_versions() -> dict[str, str]:
    """Package: version, from ``constraints.txt``; empty where the project came as a wheel."""
    if not CONSTRAINTS.is_file():
        return {}
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", CONSTRAINTS.read_text(), re.MULTILINE)
    return dict(pins)


def required_versions() -> dict[str, Requirement]:
    """What ``pyproject.toml`` asks for; empty where the project is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("decision-basis") or []
    except metadata.PackageNotFoundError:
        return {}
    wanted = [Requirement(line) for line in lines]
    return {item.name: item for item in wanted if item.marker is None}


def _pinned(name: str) -> str:
    version = tested_versions().get(name)
    return f"{name}=={version}" if version else name


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(run(main))
