"""Readers of annotation files, one a format, and which of them a source is for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from datamodules.annotations.coco import read_coco
from datamodules.annotations.cvat import read_cvat
from datamodules.annotations.dicom_seg import read_dicom_seg
from datamodules.annotations.label_studio import read_label_studio
from datamodules.annotations.labelme import read_labelme
from datamodules.annotations.marks import Marking
from datamodules.annotations.masks import read_masks
from datamodules.annotations.recognition import advice, formats_of
from datamodules.annotations.via import read_via
from datamodules.annotations.voc import read_voc
from datamodules.annotations.yolo import read_yolo
from datamodules.index import DataError

Reader = Callable[[Path], Marking]
READERS: dict[str, Reader] = {
    "masks": read_masks,
    "coco": read_coco,
    "cvat": read_cvat,
    "labelme": read_labelme,
    "label-studio": read_label_studio,
    "via": read_via,
    "voc": read_voc,
    "yolo": read_yolo,
    "dicom-seg": read_dicom_seg,
}


def recognise(source: Path) -> str:
    """Tell by content which of ``READERS`` a file or folder is for.

    Raises:
        DataError: It cannot be read, or fits none of them or several.
    """
    found = formats_of(source)
    if len(found) == 1:
        return next(iter(found))
    if len(set(found.values())) > 1:  # not one file that might be either
        files = [f"{name} ({os.path.relpath(found[name], source)})" for name in sorted(found)]
        raise DataError(
            f"{source}: holds files of several formats, {', '.join(files)}; say which, or give the "
            "file, or the folder, that was drawn in"
        )
    known = ", ".join(sorted(found) or READERS)
    raise DataError(
        f"{source}: fits several formats, {known}; say which, or give another file"
        if found
        else f"{source}: in no format that is known ({known}); "
        f"{advice(source) or 'say which, or give another file'}"
    )
