"""The nine readers, and which of them a file or folder is for, told by its content."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.annotations.coco import read_coco
from datamodules.annotations.cvat import read_cvat
from datamodules.annotations.dicom_seg import is_segmentation, read_dicom_seg
from datamodules.annotations.fields import EntryError, items
from datamodules.annotations.files import list_files, read_bytes, read_json, read_xml
from datamodules.annotations.label_studio import read_label_studio, task_images
from datamodules.annotations.labelme import read_labelme
from datamodules.annotations.marks import Marking
from datamodules.annotations.masks import CLASSES, read_mask, read_masks
from datamodules.annotations.via import COLUMNS, read_via
from datamodules.annotations.voc import read_voc
from datamodules.annotations.yolo import is_yolo, list_yolo, read_yolo
from datamodules.decode import PNG, is_dicom
from datamodules.index import DataError
from datamodules.tables import read_csv

READERS: dict[str, Callable[[Path], Marking]] = {
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
# Of a folder, so many files of each kind are looked into.
SAMPLE = 20
ADVICE = {
    (".zip", ".7z", ".tar", ".tgz", ".tar.gz"): "unpack it, and give the file or folder in it",
    (".nrrd", ".nii", ".nii.gz", ".mha", ".mhd"): "save a volume's slice as PNG (docs/lesions.md)",
    (".png",): "if these are masks, --format masks says what is wrong with them",
    (".tif", ".tiff", ".bmp", ".gif", ".webp"): "if these are masks, save them as PNG",
    (".jpg", ".jpeg"): "if these are masks, save them anew as PNG: JPEG smears their edges",
}
# What tools write and nothing here reads, by words that only they write at the start of a file.
UNREAD = {
    b'"vid_list"': "of VIA 3; draw in VIA 2",
    b"spatial_coordinates": "of VIA 3; draw in VIA 2",
    b'"dm_format_version"': "of Datumaro; export as COCO or 'CVAT for images 1.1'",
    b'"FeatureCollection"': "GeoJSON (QuPath); export masks as PNG",
    b'"classTitle"': "of Supervisely; export as COCO",
    b"annotation_id,annotator": "Label Studio's CSV, without the images' sizes; export as JSON",
    b",xmin,": "a table of boxes, which each tool writes otherwise; export as Pascal VOC or COCO",
}
ROOTS = {"annotations": {"cvat"}, "annotation": {"voc"}}


def recognise(source: Path) -> str:
    """Which of ``READERS`` a file or folder is for; DataError where it fits none or several."""
    formats = _formats_of(source)
    if len(formats) == 1:
        return next(iter(formats))
    if len(set(formats.values())) > 1:  # not one file that might be either
        files = [f"{name} ({os.path.relpath(formats[name], source)})" for name in sorted(formats)]
        raise DataError(
            f"{source}: holds files of several formats, {', '.join(files)}; say which, or give the "
            "file, or the folder, that was drawn in"
        )
    say = "say which, or give another file"
    if formats:
        raise DataError(f"{source}: fits several formats, {', '.join(sorted(formats))}; {say}")
    known = ", ".join(READERS)
    raise DataError(f"{source}: in no format that is known ({known}); {_advice(source) or say}")


def _formats_of(source: Path) -> dict[str, Path]:
    """All formats that ``source`` fits, each with the first file that does; images do not count."""
    if not source.is_dir():
        return dict.fromkeys(_format_of(source), source)
    kinds: dict[str, list[Path]] = {}
    for file in list_files(source, ""):
        kinds.setdefault(file.suffix.lower(), []).append(file)
    kinds[".txt"] = list_yolo(source)
    formats: dict[str, Path] = {}
    for files in kinds.values():
        for file in files[:SAMPLE]:
            with suppress(DataError):  # the reader will name it
                formats = dict.fromkeys(_format_of(file), file) | formats
    return formats


def _advice(source: Path) -> str:
    """What to do with a source in no known format, "" where its files do not tell."""
    for file in list_files(source, ""):
        suffix = file.suffix.lower()
        if suffix in (".json", ".geojson", ".csv", ".tsv") and not _format_of(file):
            start = read_bytes(file)[:65536]
            for word, what in UNREAD.items():
                if word in start:
                    return f"{file.name} is {what}"
        for suffixes, what in ADVICE.items():
            if file.name.lower().endswith(suffixes):
                return what
    return ""


def _format_of(file: Path) -> set[str]:
    if file.suffix.lower() == ".txt":
        return {"yolo"} if is_yolo(file) else set()
    data = read_bytes(file)
    if data.startswith(PNG):
        with suppress(EntryError):  # a radiograph
            if file.parent.name != CLASSES:
                read_mask(file)
            return {"masks"}
        return set()
    if is_dicom(data):
        return {"dicom-seg"} if is_segmentation(file) else set()
    start = data[:100].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<"):
        return ROOTS.get(read_xml(file).tag, set())
    if start.startswith((b"{", b"[")):
        return _json_formats(read_json(file))
    if file.suffix.lower() == ".csv":
        with suppress(DataError):  # other columns, or no CSV
            read_csv(file, COLUMNS[1:])
            return {"via"}
    return set()


def _json_formats(content: Any) -> set[str]:
    if not isinstance(content, dict):
        return {"label-studio"} if any(task_images(task) for task in items(content)) else set()
    formats = set()
    if isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
        formats.add("coco")
    elif "annotations" in content and task_images(content):
        formats.add("label-studio")
    if isinstance(content.get("shapes"), list):
        formats.add("labelme")
    entries = list(content.values())
    if "_via_img_metadata" in content or (
        entries and all(isinstance(entry, dict) and "regions" in entry for entry in entries)
    ):
        formats.add("via")
    return formats
