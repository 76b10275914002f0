"""The nine readers, and which of them a file or folder is for, told by its content."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.annotations.coco import read_coco
from datamodules.annotations.cvat_voc import read_cvat, read_voc
from datamodules.annotations.dicom_seg import is_segmentation, read_dicom_seg
from datamodules.annotations.fields import STUMBLES, EntryError, list_files, read_json, read_xml
from datamodules.annotations.label_studio import read_label_studio, task_images
from datamodules.annotations.labelme_via import COLUMNS, read_labelme, read_via
from datamodules.annotations.marks import Marking
from datamodules.annotations.masks import CLASSES, read_mask, read_masks
from datamodules.annotations.yolo import is_yolo, list_yolo, read_yolo
from datamodules.decode import PNG, is_dicom, read_content
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
}


def recognise(source: Path) -> str:
    """Which of ``READERS`` a file or folder is for; DataError where it fits none or several."""
    kinds: dict[str, list[Path]] = {}
    for file in list_files(source, ""):
        kinds.setdefault(file.suffix.lower(), []).append(file)
    if source.is_dir():
        kinds[".txt"] = list_yolo(source)
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
        raise DataError(f"{what}; say which, or give the file, or the folder, that was drawn in")
    advice = _advice(source) or "say which, or give another file"
    raise DataError(f"{source}: in no format that is known ({', '.join(READERS)}); {advice}")


def _advice(source: Path) -> str:
    """What to do with a source in no known format, "" where its files do not tell."""
    for file in list_files(source, ""):
        if file.suffix.lower() in (".json", ".geojson", ".csv", ".tsv"):
            start = read_content(file)[:65536]
            for word, what in UNREAD.items():
                if word in start:
                    return f"{file.name} is {what}"
        for suffixes, what in ADVICE.items():
            if file.name.lower().endswith(suffixes):
                return what
    return ""


def _format_of(file: Path) -> str:
    """The format of a file by its content, "" where it is in none."""
    if file.suffix.lower() == ".txt":
        return "yolo" if is_yolo(file) else ""
    data = read_content(file)
    if data.startswith(PNG):
        with suppress(EntryError):  # a radiograph
            if file.parent.name != CLASSES:
                read_mask(file)
            return "masks"
        return ""
    if is_dicom(data):
        return "dicom-seg" if is_segmentation(file) else ""
    start = data[:100].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<"):
        return {"annotations": "cvat", "annotation": "voc"}.get(read_xml(file).tag, "")
    if start.startswith((b"{", b"[")):
        content = read_json(file)
        with suppress(*STUMBLES):
            return _json_format(content)
    if file.suffix.lower() == ".csv":
        with suppress(DataError):  # other columns, or no CSV
            read_csv(file, COLUMNS[1:])
            return "via"
    return ""


def _json_format(content: Any) -> str:
    if isinstance(content, list):
        return "label-studio" if any(map(task_images, content)) else ""
    if isinstance(content.get("images"), list) and "annotations" in content:
        return "coco"
    if "annotations" in content and task_images(content):
        return "label-studio"
    if "shapes" in content:
        return "labelme"
    is_via = content and all("regions" in entry for entry in content.values())
    return "via" if is_via or "_via_img_metadata" in content else ""
