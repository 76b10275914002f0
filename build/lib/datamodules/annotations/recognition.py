"""Which annotation format a file or folder is in, told by its content."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.annotations.dicom_seg import is_segmentation
from datamodules.annotations.entries import EntryError, items
from datamodules.annotations.files import list_files, read_bytes, read_json, read_xml
from datamodules.annotations.label_studio import task_images
from datamodules.annotations.masks import CLASSES, read_mask
from datamodules.annotations.via import COLUMNS
from datamodules.annotations.yolo import is_yolo, list_yolo
from datamodules.decode import PNG, is_dicom
from datamodules.index import DataError
from datamodules.lesions import read_csv

# Of a folder, so many files of each kind are looked into.
SAMPLE = 20
ADVICE = {
    (".zip", ".7z", ".tar", ".tgz", ".tar.gz"): "unpack it, and give the file or folder in it",
    (".nrrd", ".nii", ".nii.gz", ".mha", ".mhd"): (
        "a volume is not read; save each image's mask as PNG (docs/lesions.md says how)"
    ),
    (".png",): "if these are masks, --format masks says what is wrong with them",
    (".tif", ".tiff", ".bmp", ".gif", ".webp"): "if these are masks, save them as PNG",
    (".jpg", ".jpeg"): (
        "if these are masks, save them as PNG from where they were drawn: JPEG smears their edges"
    ),
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
ROOTS = {"annotations": "cvat", "annotation": "voc"}


def formats_of(source: Path) -> dict[str, Path]:
    """Return the names of all formats that ``source`` fits, each with the first file that does.

    Radiographs that lie among the annotations count for nothing.

    Raises:
        DataError: There is no such file or folder, or the file cannot be read.
    """
    if not source.is_dir():
        return dict.fromkeys(_format_of(source), source)
    kinds: dict[str, list[Path]] = {}
    for file in list_files(source, ""):
        kinds.setdefault(file.suffix.lower(), []).append(file)
    kinds[".txt"] = list_yolo(source)
    found: dict[str, Path] = {}
    for files in kinds.values():
        for file in files[:SAMPLE]:
            try:
                found = dict.fromkeys(_format_of(file), file) | found
            except DataError:  # the reader will name it
                continue
    return found


def advice(source: Path) -> str:
    """What to do with a source in no known format, "" where its files do not tell."""
    for file in list_files(source, ""):
        if what := unread(file):
            return f"{file.name} is {what}"
        for suffixes, what in ADVICE.items():
            if file.name.lower().endswith(suffixes):
                return what
    return ""


def unread(file: Path) -> str:
    """What a file is that some tool wrote and nothing here reads, with the way out; else ""."""
    is_text = file.suffix.lower() in (".json", ".geojson", ".csv", ".tsv") and not file.is_dir()
    if not is_text or _format_of(file):
        return ""
    start = read_bytes(file)[:65536]
    return next((what for word, what in UNREAD.items() if word in start), "")


def _format_of(file: Path) -> set[str]:
    suffix = file.suffix.lower()
    if suffix == ".txt":
        return {"yolo"} if is_yolo(file) else set()
    data = read_bytes(file)
    if data.startswith(PNG):
        return {"masks"} if file.parent.name == CLASSES or _is_mask(file) else set()
    if is_dicom(data):
        return {"dicom-seg"} if is_segmentation(file) else set()
    start = data[:100].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<"):
        name = ROOTS.get(read_xml(file).tag)
        return {name} if name else set()
    if start.startswith((b"{", b"[")):
        return _json_formats(read_json(file))
    if suffix == ".csv":
        with suppress(DataError):  # other columns, or no CSV
            read_csv(file, COLUMNS[1:])
            return {"via"}
    return set()


def _json_formats(content: Any) -> set[str]:
    if not isinstance(content, dict):
        return {"label-studio"} if any(task_images(task) for task in items(content)) else set()
    found = set()
    if isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
        found.add("coco")
    elif "annotations" in content and task_images(content):
        found.add("label-studio")
    if isinstance(content.get("shapes"), list):
        found.add("labelme")
    entries = list(content.values())
    if "_via_img_metadata" in content or (
        entries and all(isinstance(entry, dict) and "regions" in entry for entry in entries)
    ):
        found.add("via")
    return found


def _is_mask(file: Path) -> bool:
    try:
        read_mask(file)
    except EntryError:
        return False
    return True
