"""A folder of radiographs to draw lesions on, that CVAT, Label Studio and LabelMe open as it is.

``images/`` holds upright 8-bit grey PNGs of the original size, so that whatever is drawn on them is
in the frame that lesion masks are in; they carry no metadata. ``mapping.csv`` leads back from their
flat names to the data set's paths. docs/select_lesions.md lists the files.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import cv2
import pandas as pd
from tqdm import tqdm

from datamodules.decode import decode
from datamodules.index import DataError
from experiments.annotation.files import (
    LABEL,
    Picture,
    cvat_labels,
    cvat_xml,
    label_studio_config,
    label_studio_tasks,
    labelme_json,
    labelme_name,
)
from experiments.annotation.outlines import Polygon
from experiments.annotation.readme import readme
from experiments.runs import file_hash

# File names of 255 bytes are the limit of most disks; tools put something in front or behind.
LONGEST = 180
COLUMNS = ["image", "body_part", "study", "patient", "split", "reason", "probability_abnormal"]


def write_package(
    folder: Path,
    root: Path,
    chosen: pd.DataFrame,
    outlines: list[list[Polygon]] | None = None,
    maker: str = "",
    words: Sequence[str] = ("data.name=NAME",),
) -> None:
    """Write the package, whole or not at all; one image is held at a time.

    Args:
        folder: Must not exist.
        root: Folder that the images' paths count from.
        chosen: The images in the order in which they are worth a mask, with ``COLUMNS``.
        outlines: What to begin with on each; None: nothing, and no file that would hold it.
        maker: What drew them, such as "stage1 pcam".
        words: ``data.*`` of the choice but the root, for the command in README.txt.

    Raises:
        DataError: The folder exists or cannot be written, or an image cannot be read.
    """
    check_new(folder)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    names = flat_names(chosen["image"])
    drawn = [[]] * len(names) if outlines is None else outlines
    scores = [None if pd.isna(p) else float(p) for p in chosen["probability_abnormal"]]
    pictures = []
    try:
        (draft / "images").mkdir(parents=True)
        rows = zip(names, chosen["image"], drawn, scores, strict=True)
        for name, image, polygons, score in tqdm(
            rows, total=len(names), desc="writing images", leave=False, disable=None
        ):
            pixels = decode(root / image)
            height, width = pixels.shape
            picture = Picture(name, height, width, polygons, score)
            # Not cv2.imwrite: on a full disk it only returns False.
            png = cv2.imencode(".png", pixels)[1].tobytes()
            (draft / "images" / name).write_bytes(png)
            if outlines is not None:
                path = draft / "images" / labelme_name(picture)
                path.write_text(labelme_json(picture, maker), encoding="utf-8")
            pictures.append(picture)
        texts = {
            "README.txt": readme(len(names), maker, words),
            "labels.txt": f"{LABEL}\n",
            "cvat_labels.json": cvat_labels(),
            "label_studio.json": label_studio_tasks(pictures, maker),
            "label_studio_config.xml": label_studio_config(),
        }
        if outlines is not None:
            texts["cvat.xml"] = cvat_xml(pictures)
        for file, text in texts.items():
            (draft / file).write_text(text, encoding="utf-8")
        mapping = pd.DataFrame({"name": names, "image": chosen["image"].tolist()})
        mapping.to_csv(draft / "mapping.csv", index=False)
        listed = chosen[COLUMNS].assign(outlines=[len(polygons) for polygons in drawn])
        listed["sha256"] = [file_hash(root / image) for image in chosen["image"]]
        listed.insert(0, "name", names)
        listed.insert(0, "order", range(1, len(names) + 1))
        listed.to_csv(draft / "selected.csv", index=False, float_format="%.4f")
        draft.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Raise a DataError if ``folder`` exists: somebody may have drawn in it."""
    if folder.exists() or folder.is_symlink():
        raise DataError(f"--out {folder} already exists; remove it first, or choose another folder")


def flat_names(images: Iterable[str]) -> list[str]:
    """A file name for each path, no two alike on any disk: ``/`` becomes ``__``, the suffix png.

    Letters, digits, ``.``, ``_`` and ``-`` stay: what else a name holds, tools write in ways of
    their own.

    Example:
        >>> flat_names(["XR_HAND/patient1/image 1.jpg", "xr_hand/patient1/image-1.png"])
        ['XR_HAND__patient1__image-1.png', 'xr_hand__patient1__image-1-2.png']
    """
    taken: set[str] = set()
    names = []
    for image in images:
        flat = str(PurePosixPath(image).with_suffix("")).replace("/", "__")
        stem = re.sub(r"[^A-Za-z0-9._-]", "-", flat).lstrip(".-")
        if len(stem) > LONGEST or not stem:
            stem = f"{hashlib.sha256(image.encode()).hexdigest()[:8]}-{stem[-LONGEST + 9 :]}"
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(f"{name}.png")
    return names
