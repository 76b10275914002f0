"""The nine readers, and which of them a file or folder is for, told by its content."""

import os
from collections import defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.annotations import coco, cvat_voc, fields, label_studio, labelme_via, masks, yolo
from datamodules.decode import PNG, is_dicom, read_content
from datamodules.index import DataError, read_csv

READERS: dict[str, fields.Reader] = {
    "masks": masks.read_masks,
    "coco": partial(fields.read_only, coco.read_coco, (".json",)),
    "cvat": partial(fields.read_only, cvat_voc.read_cvat, (".xml",)),
    "labelme": labelme_via.read_labelme,
    "label-studio": partial(fields.read_only, label_studio.read_label_studio, (".json",)),
    "via": partial(fields.read_only, labelme_via.read_via, (".csv", ".json")),
    "voc": cvat_voc.read_voc,
    "yolo": yolo.read_yolo,
    "dicom-seg": masks.read_dicom_seg,
}
# Of a folder, so many files of each kind are looked into.
SAMPLE = 20
ADVICE = "Fix: export in one of these, or --format NAME; unpack archives, save masks as PNG"


def recognise(source: Path) -> str:
    """Which of ``READERS`` a file or folder is for; DataError where it fits none or several."""
    kinds = defaultdict[str, list[Path]](list)
    for file in fields.list_files(source, ""):
        kinds[file.suffix.lower()].append(file)
    if source.is_dir():
        kinds[".txt"] = yolo.list_yolo(source)
    formats: dict[str, Path] = {}
    for file in (file for files in kinds.values() for file in files[:SAMPLE]):
        try:
            formats.setdefault(_format_of(file), file)
        except DataError:  # of a file in a folder, which its reader will name
            if file == source:
                raise
    formats.pop("", None)
    if len(formats) == 1:
        return next(iter(formats))
    if formats:
        files = [f"{name} ({os.path.relpath(formats[name], source)})" for name in sorted(formats)]
        what = f"{source}: holds files of several formats, {', '.join(files)}"
        raise DataError(f"{what}. Fix: give --format NAME, or the file that was drawn in")
    raise DataError(f"{source}: in no format that is known ({', '.join(READERS)}). {ADVICE}")


def _format_of(file: Path) -> str:
    """The format of a file by its content, "" where it is in none."""
    if file.suffix.lower() == ".txt":
        return "yolo" if yolo.is_yolo(file) else ""
    data = read_content(file)
    if data.startswith(PNG):
        with suppress(fields.EntryError):  # a radiograph
            if file.parent.name != masks.CLASSES:
                masks.read_mask(file)
            return "masks"
        return ""
    if is_dicom(data):
        return "dicom-seg" if masks.is_segmentation(file) else ""
    start = data[:100].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<"):
        return {"annotations": "cvat", "annotation": "voc"}.get(fields.read_xml(file).tag, "")
    if start.startswith((b"{", b"[")):
        content = fields.read_json(file)
        with suppress(*fields.STUMBLES):
            return _json_format(content)
    if file.suffix.lower() == ".csv":
        with suppress(DataError):  # other columns, or no CSV
            read_csv(file, labelme_via.COLUMNS[1:])
            return "via"
    return ""


def _json_format(content: Any) -> str:
    if isinstance(content, list):
        return "label-studio" if any(map(label_studio.task_images, content)) else ""
    if isinstance(content.get("images"), list) and "annotations" in content:
        return "coco"
    if "annotations" in content and label_studio.task_images(content):
        return "label-studio"
    if "shapes" in content:
        return "labelme"
    is_via = content and all("regions" in entry for entry in content.values())
    return "via" if is_via or "_via_img_metadata" in content else ""
