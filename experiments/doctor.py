"""What a run here would use, and what is wrong: ``python -m experiments.doctor [key=value ...]``.

Each line is OK, a note, or a PROBLEM with its remedy. Nothing is trained, downloaded or sent. Exit
status: 0 a run can start, 2 something is in its way.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command import answered, build_parser, parse

if TYPE_CHECKING:  # at run time each check imports what it needs: any of it may be what is broken
    from datamodules.table import TableDataModule
    from experiments.config import Config

Finding = tuple[str, str, str]  # state, topic, text
OK, NOTE, PROBLEM = "OK", "note", "PROBLEM"
PACKAGES = ["torch", "torchvision", "pytorch-lightning", "torchmetrics", "albumentations", "numpy"]
PACKAGES += ["pandas", "omegaconf", "wandb", "opencv-python-headless"]


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
    for state, topic, text in examine(config):
        lines = textwrap.TextWrapper(90, f"  {state:<8} {topic:<18} ", " " * 30)
        lines.break_on_hyphens = lines.break_long_words = False  # paths stay whole
        print(lines.fill(text), flush=True)
        states.append(state)
    problems = states.count(PROBLEM)
    print(f"\n{problems or 'no'} problem{'s' * (problems != 1)}")
    return 2 if problems else 0


def examine(config: Config) -> Iterator[Finding]:
    """All findings, in the order in which a person would look for them."""
    checks = {"versions": check_versions, "device": check_device, "folders": check_folders}
    checks |= {"data": check_data, "weights": check_weights}
    checks |= {"W&B": check_wandb, "SLURM": check_slurm}
    for topic, check in checks.items():
        try:
            yield from check(config)
        except ImportError as error:
            yield PROBLEM, topic, f"{error}; repair the environment: make setup"
        except (OSError, ValueError) as error:  # such as a ConfigError or DataError
            yield PROBLEM, topic, str(error)


def verdict(topic: str, text: str, note: str = "", problem: str = "") -> Finding:
    """The gravest of three texts, empty ones apart."""
    return PROBLEM if problem else NOTE if note else OK, topic, problem or note or text


def check_versions(config: Config) -> Iterator[Finding]:
    """Python and the packages against what is needed; one cv2 wheel."""
    from packaging.requirements import Requirement

    yield OK, "Python", f"{platform.python_version()} ({sys.executable})"
    installed = {one.metadata["Name"]: one.version for one in metadata.distributions()}
    ours = metadata.requires("decision-basis") if "decision-basis" in installed else None
    needed = {one.name: one.specifier for one in map(Requirement, ours or []) if not one.marker}
    for name in PACKAGES:
        version, wanted = installed.get(name, ""), needed.get(name)
        fits = version and (wanted is None or wanted.contains(version, prereleases=True))
        problem = f"{version or 'not installed'}, but {wanted} is needed; make setup"
        yield verdict(name, version, problem="" if fits else problem)
    wheels = [name for name in installed if name.startswith("opencv-")]
    if len(wheels) > 1:
        remedy = f"pip uninstall -y {' '.join(wheels)}; pip install opencv-python-headless"
        yield PROBLEM, "OpenCV", f"{' and '.join(wheels)} overwrite each other's files: {remedy}"


def check_device(config: Config) -> Iterator[Finding]:
    """The device and the precision that a run would use."""
    from experiments.build import choose_device, choose_precision, describe_device

    wanted = str(config.trainer["accelerator"])
    device = choose_device(wanted)
    text, on_cpu = describe_device(device), device.type == "cpu"
    unused = f"{text}; this torch cannot use the GPU: compare nvidia-smi with torch.version.cuda"
    unused *= on_cpu and wanted == "auto" and Path("/dev/nvidia0").exists()
    absent = f"trainer.accelerator={wanted}, but torch sees no CUDA; use a node with one, or auto"
    yield verdict("device", text, unused, absent * (on_cpu and wanted not in ("auto", "cpu")))
    usual = choose_precision(wanted)
    precision = str(config.trainer["precision"] or usual)
    slow = f"{precision}, but bfloat16 is not native here and slow; leave trainer.precision out"
    yield verdict("precision", precision, slow * ("bf16" in precision and "bf16" not in usual))


def check_folders(config: Config) -> Iterator[Finding]:
    """Write access and space where a run writes."""
    cache = config.data.cache_dir or str(Path(config.run.root) / "cache")
    yield check_folder("run.root", Path(config.run.root), 1, "run.root")
    yield check_folder("cache", Path(cache), 1, "data.cache_dir")


def check_folder(topic: str, folder: Path, gibibytes: float, setting: str) -> Finding:
    """Whether ``folder``, or the nearest one above that exists, can be written and has room."""
    folder = folder.absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free / 2**30
    if not os.access(place, os.W_OK) or not place.is_dir():
        return PROBLEM, topic, f"{folder} cannot be written; set {setting} to another folder"
    full = f"{folder}: {free:.2f} GiB free; make room, or set {setting} to another disk"
    return verdict(topic, f"{folder}, {free:.0f} GiB free", problem=full * (free < gibibytes))


def check_data(config: Config) -> Iterator[Finding]:
    """The data set: its root, the files that decide its index, its cache."""
    from datamodules.phantom.source import PhantomDataModule
    from datamodules.table import TableDataModule
    from experiments.build import build_data, resolve

    data = build_data(config)
    resolve(config, data)
    if isinstance(data, PhantomDataModule) and not data.is_drawn():
        text = f"phantom, draws itself ({data.count} images) into {data.root} on first use"
        state, _, reason = check_folder("", data.root, data.bytes_on_disk / 2**30, "data.root")
        yield state, "data", text if state == OK else reason
        return
    if isinstance(data, TableDataModule):
        yield from show_rows(data)
    table = data.checked_index()  # says which file is missing or wrong, masks included
    in_train = table["lesion_mask"][table["split"] == "train"] != ""
    if config.stage == "stage3" and not in_train.any():
        yield PROBLEM, "masks", "train has none, but stage 3 learns from them; set lesions.path"
    built = "built" if data.cache_folder.is_dir() else "not built yet"
    yield OK, "data", f"{config.data.name} in {data.root}, index files there, cache {built}"


def show_rows(data: TableDataModule) -> Iterator[Finding]:
    """A table's counts and its first rows as they are understood; patients by number, no name."""
    rows = data.read()
    patient = rows["patient"].factorize()[0] + 1
    masks, parts = (rows["mask"] != "").sum(), ", ".join(rows["body_part"].unique()[:5])
    splits = rows["split"].where(rows["split"] != "", "split drawn")
    text = f"{data.source}: {len(rows):,} images, {rows['label'].sum():,} abnormal, of "
    text += f"{patient.max():,} {data.patients_are}, {masks:,} lesion masks; {parts}"
    yield OK, "table", text
    for row, about in rows.assign(patient=patient, split=splits).head(3).iterrows():
        words = [f"{about.path}: {('normal', 'abnormal')[about.label]}", f"patient {about.patient}"]
        words += [about.body_part, about.split, *[f"mask {about['mask']}"] * bool(about["mask"])]
        words += [about.lesion_type, {1: "hardware", 0: "no hardware"}.get(about.hardware, "")]
        yield OK, f"row {row}" if data.listed is None else "file", ", ".join(filter(None, words))


def check_weights(config: Config) -> Iterator[Finding]:
    """The encoder, and what a training starts from, which must be here before it."""
    from experiments.config import run_directory
    from experiments.runs import find_checkpoint
    from experiments.training.pretrained import find_origin

    if config.model.init_from:
        yield OK, "weights", str(find_checkpoint(Path(config.model.init_from))[1])
    if config.model.weights:
        yield OK, "weights", find_origin(config.model, run_directory(config)) or "none"
    if config.model.encoder.startswith("timm:"):
        from lightning_modules.timm_encoder import create

        create(config.model.encoder.removeprefix("timm:"))
        yield OK, "encoder", config.model.encoder


def check_wandb(config: Config) -> Iterator[Finding]:
    """Whether anything would be sent, without asking W&B."""
    from experiments.training.wandb import has_api_key, wandb_mode

    key = "a key is configured" if has_api_key() else "no key configured"
    yield OK, "W&B", f"{wandb_mode(config.logger.wandb)} ({key})"


def check_slurm(config: Config) -> Iterator[Finding]:
    """The SLURM job around us, as Lightning will read it."""
    from experiments.build import slurm_fault

    job, tasks = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_NTASKS", "1")
    fault = slurm_fault(config.trainer)
    if fault or job or shutil.which("sbatch"):
        login = "a login node, no job: train inside sbatch or srun" * (job is None)
        yield verdict("SLURM", f"job {job}, {tasks} tasks", login, fault)


if __name__ == "__main__":
    sys.exit(main())
