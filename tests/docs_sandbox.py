"""Where the blocks of the docs run: a folder with the project, tiny data and stand-ins of tools."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

from tests.archives import Archive
from tests.dicoms import content, radiograph
from tests.docs_python import CLIENT

HOUSE = Path(__file__).parents[1]
COUNT = 80  # images of the phantom
DATA = f"data.count={COUNT}"
TRAINING = (
    f"{DATA} data.image_size=64 data.batch_size=8 data.num_workers=0 model.width=0.25 "
    "trainer.max_epochs=1 trainer.accelerator=cpu logger.wandb=off"
)
# What is added to a command that begins so, unless the block sets it: seconds instead of hours.
TINY = {
    r"-m experiments\.train": TRAINING,
    r"-m experiments\.sweep": f"{TRAINING} --count=1",
    r"-m experiments\.(import|select)_lesions": DATA,  # the same phantom
    r"-m experiments\.evaluate --maps": DATA,
    r"-m experiments\.evaluate (?!--maps)": "--no-baselines",
    r"-m experiments\.evaluate .*--audit": "--audit-images 2",
    r"-m experiments\.bench": "--quick --rounds=1 --rows=maps",
    # The suite would run itself.
    "-m pytest": "--numprocesses=0 --noconftest tests/test_house.py -k test_directions",
}
# What is put in the place of words that no machine has, or that take long; outside
# the folder nobody may write.
PLACES = {
    r"/path/to/(data|FracAtlas|films|chest|GRAZPEDWRI-DX)\b": r"given/\1",
    r"(?<![\w/])/data\b": "given/data",
    r"/path/to/checkout\b": ".",
    r"RUN_DIR\.\.\.": "runs/phantom/stage1/seed0 runs/phantom/stage3/lambda1.0-seed0",
    r"RUN_DIR\b": "runs/phantom/stage3/lambda1.0-seed0",
    r"encoder=timm:resnet50 model.weights=imagenet": "encoder=timm:test_convnext model.width=1",
    r"^make setup data": "rm -r runs; make setup data",  # a cluster, which is another machine
    r"max_epochs=\d+": "max_epochs=2",  # minutes
    # Minutes: each seed is a training. Those of stage 1 are compared by test_audit.
    r"^.*stage1/seed\{0,1,2\}.*": "true",
    r"\{0,1,2\}": "0",
    # What is run in the same words elsewhere: by the README, docs/cluster.md, docs/predict.md.
    r"^make submit (.* GPUS=4 ARGS=)": r"make submit DRY=1 \1",
    r"^make (evaluate|report|sweep)( +#.*)?$|^\.venv/bin/python -m experiments\.export": "true",
    r"^tests/cluster/run\.sh": "bash -n tests/cluster/run.sh",  # installs SLURM
}
PROJECT = "Makefile README.md pyproject.toml constraints.txt docs tests "
PROJECT += "callbacks datamodules experiments lightning_modules"
# Programs that a machine without SLURM, and without network, has not. A job runs at once; of an
# array the first alone.
TOOLS = {
    "sbatch": """
        while [[ $1 == --* ]]; do
          [[ $1 != --array=* ]] || export SLURM_ARRAY_JOB_ID=1 SLURM_ARRAY_TASK_ID=0
          shift
        done
        SLURM_JOB_ID=1 SLURM_JOB_NODELIST=here bash "$@" >&2 && echo 1""",
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scancel": "[[ $1 == --signal=USR1 && $# == 2 ]]",
    "wandb": "[[ $1 == sweep && -f $2 || $1 == agent && $2 == */*/* ]]",
}


def read_blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language, text."""
    fenced = r"^([ \t]*)(`{3,}|~{3,})(.*)\n((?:.*\n)*?)\1\2[ \t]*$"
    blocks = re.finditer(fenced, page, re.MULTILINE)
    return [(one[3].strip(), textwrap.dedent(one[4])) for one in blocks]


def furnish(folder: Path) -> None:
    """Put the project, ``python`` and the tools into a new folder."""
    folder.mkdir()
    for name in PROJECT.split():
        (folder / name).symlink_to(HOUSE / name)
    (folder / "bin").mkdir()
    python = CLIENT.format(python=sys.executable)
    tools = {name: f"#!/bin/bash\n{script}\n" for name, script in TOOLS.items()}
    for name, script in (tools | {"python": python, "python3": python}).items():
        (folder / "bin" / name).write_text(script)
        (folder / "bin" / name).chmod(0o755)


def give_data(folder: Path, tree: Path) -> None:
    """What people bring: data sets in ``given/``, maps, annotations, images of their own."""
    (folder / "given").mkdir()
    (folder / "given" / "data").symlink_to(tree)  # laid out as MURA, and with masks
    archive = Archive(folder / "given" / "FracAtlas")
    for number in range(40):
        archive.add(number // 4 * 20 + number % 4, number % 2)
    archive.write()
    marked = ""
    for image in sorted(tree.glob("MURA-v1.1/*/*/*/*/*.png"), reverse=True):
        pixels = np.array(Image.open(image))
        path = folder / "my-maps" / f"{image.relative_to(tree)}.mine.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, pixels.astype(np.float32) / 255)
        if "positive" in image.parent.name:
            height, width = pixels.shape
            marked += f'<image name="{image.relative_to(tree)}" width="{width}" height="{height}">'
            marked += '<polygon label="lesion" points="20,30;40,30;40,50"/></image>'
    xml = f"<annotations><version>1.1</version>{marked}</annotations>"
    (folder / "annotations.xml").write_text(xml)
    give_folders(folder, tree)
    # The last drawing read, in 8 and 16 bits, stored turned, and as DICOM.
    deep = pixels.astype(np.uint16) * 12 + 300  # 12 bits
    scan = content(radiograph(deep, BitsStored=12))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees to the right
    own, more = folder / "my-images", folder / "more"
    for place in (own, more):
        place.mkdir()
        (place / "scan.dcm").write_bytes(scan)
    for path in (folder / "hand.png", own / "grey8.png"):
        Image.fromarray(pixels).save(path)
    Image.fromarray(deep).save(own / "grey16.png")
    Image.fromarray(np.rot90(pixels)).save(own / "turned.jpg", quality=95, exif=turned)


def give_folders(folder: Path, tree: Path) -> None:
    """Films in two folders, and as GRAZPEDWRI-DX has them: links to those of the tree."""
    films, graz = folder / "given" / "films", folder / "given" / "GRAZPEDWRI-DX" / "images"
    graz.mkdir(parents=True)
    lines = ["filestem,patient_id,study_number,timehash,gender,age,fracture_visible,metal"]
    for number, image in enumerate(sorted(tree.glob("MURA-v1.1/*/*/*/*/*.png"))):
        patient, positive = image.parents[1].name, "positive" in image.parent.name
        places = {films / ("abnormal" if positive else "normal") / patient / f"{number}.png": image}
        places[graz / f"{number:04d}_01.png"] = image
        if positive:
            mask = tree / "lesions/masks" / f"{image.relative_to(tree)}.png"
            places[films / "masks" / patient / f"{number}.png"] = mask
        for place, target in places.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(target)
        lines.append(f"{number:04d}_01,{patient},1,7,M,9.5,{'1' * positive},")
    (folder / "dataset.csv").write_text("\n".join(lines))


def give_table(folder: Path, text: str) -> None:
    """The table ``chest.csv``, and the images and masks that it names."""
    (folder / "chest.csv").write_text(text)
    pixels = np.array(Image.open(folder / "hand.png"))
    mask = np.zeros_like(pixels)
    mask[20:30, 20:40] = 255
    for name in re.findall(r"[^;\n]+\.(?:png|dcm)", text):
        path = folder / "given" / "chest" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".dcm":
            path.write_bytes(content(radiograph(pixels.astype(np.uint16), BitsStored=12)))
        else:
            Image.fromarray(mask if name.startswith("masks/") else pixels).save(path)


def run(folder: Path, script: str) -> str:
    """Run a script in the folder with the system's own programs; return what it prints."""
    own = {"HOME": str(folder), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    own["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    for pattern, place in PLACES.items():
        script = re.sub(pattern, place, script, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-ex", "-o", "pipefail", "-c", script],
        cwd=folder,
        env=os.environ | own,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"status {done.returncode} of\n{script}\n{output[-5000:]}"
    return output
