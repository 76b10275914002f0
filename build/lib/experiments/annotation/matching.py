"""Which image of the data set a name in an annotation file means.

Tools keep a path, a part of it, or flatten it: CVAT drops folders, Label Studio puts eight digits
and a dash in front, exports change the suffix. A name counts only where it means one image: MURA
has thousands of ``image1.png``, and a lesion on the wrong radiograph is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from datamodules.index import DataError
from datamodules.lesions import read_csv

MAPPING_COLUMNS = ("name", "image")
# What radiographs and their copies in annotation tools are called.
_SUFFIX = re.compile(r"(\.(png|jpe?g|tiff?|bmp|webp|dcm|dicom))+$", re.IGNORECASE)
# Label Studio puts eight hexadecimal digits and a dash in front of what is uploaded.
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")
# Roboflow puts an image's suffix into its name, and digits of its own behind.
_ROBOFLOW = re.compile(r"_(png|jpe?g)\.rf\.[0-9a-f]+(?=\.|$)", re.IGNORECASE)
_SEPARATORS = re.compile(r"[/_\-\s]+")
# Folders that tools keep images in: nothing in their names tells one image from another.
_STORAGE = re.compile(
    r"^((data/)?uploads?/(\d+/)?|(data/)?local-files/|(images?|imgs|JPEGImages|labels|masks"
    r"|SegmentationClass|SegmentationObject|obj_train_data)/)+(?=.)",
    re.IGNORECASE,
)


class Matcher:
    """Finds the path that a name means among many.

    From strict to loose, and the first that fits decides, be it for one path or for several:

    1. the path itself, with anything in front (``MURA-v1.1/``, ``/home/anna/data/``, ``../``), or
       its end from some folder on (``study1_positive/image1.png``);
    2. the same, whatever the suffix (``.jpg`` for ``.png``, or none);
    3. the same, flattened: ``_``, ``__`` or ``-`` in place of ``/``, upper or lower case;
    4. the whole path, separators dropped;
    5. its file name alone, where no two paths share one (FracAtlas).

    A name is taken as given, then with ``%20`` and the like decoded, then without the eight digits
    of an upload. Paths that only end alike (another patient's ``study1_positive/image1.png``) never
    match.

    Args:
        paths: POSIX paths, no two the same.
        root_name: Name of the folder that they count from.
    """

    def __init__(self, paths: Iterable[str], root_name: str = "") -> None:
        self._whole: list[dict[str, list[str]]] = [{} for _ in _LEVELS]
        self._ends: list[dict[str, list[str]]] = [{} for _ in _LEVELS]
        self._squeezed: dict[str, list[str]] = {}
        self._names: dict[str, list[str]] = {}
        for path in paths:
            parts = path.split("/")
            for level, (written, _) in enumerate(_LEVELS):
                if len(parts) > 1 or written is not _flat:  # "1.png" would fit any "scan_1.png"
                    self._whole[level].setdefault(written(path), []).append(path)
                for first in range(len(parts)):
                    end = written("/".join(parts[first:]))
                    self._ends[level].setdefault(end, []).append(path)
            for whole in {_squeezed(path), _squeezed(root_name + path)}:
                self._squeezed.setdefault(whole, []).append(path)
            self._names.setdefault(_bare(parts[-1]), []).append(path)
        self._names_tell = all(len(found) == 1 for found in self._names.values())

    def find(self, name: str) -> list[str]:
        """The paths that ``name`` may mean: one where it is certain, none where it is unknown."""
        for variant in _variants(name):
            for level, (written, separator) in enumerate(_LEVELS):
                text = written(variant)
                for start in [0, *(place.end() for place in re.finditer(separator, text))]:
                    if found := self._whole[level].get(text[start:]):
                        return found
                if found := self._ends[level].get(text):
                    return found
            if found := self._squeezed.get(_squeezed(variant)):
                return found
            if self._names_tell and (found := self._names.get(_bare(variant.split("/")[-1]))):
                return found
        return []


def read_mapping(csv: Path) -> dict[str, str]:
    """Read a mapping file: what the tool calls an image, and its path below ``data.root``.

    Raises:
        DataError: It cannot be read, a column or a field is missing, or a name stands for two
            images.
    """
    if not csv.is_file():
        raise DataError(f"--mapping {csv}: there is no such file")
    rows = read_csv(csv, MAPPING_COLUMNS)
    found: dict[str, str] = {}
    for row, name, image in zip(rows.index, *(rows[key] for key in MAPPING_COLUMNS), strict=True):
        if not name or not image:
            raise DataError(f"{csv}, row {row}: no {'image' if name else 'name'} is given")
        known = found.setdefault(tidy(name), image)
        if known != image:
            raise DataError(
                f"{csv}, row {row}: {name} is {known} in another row; keep the one that is right"
            )
    return found


def tidy(name: str) -> str:
    """``name`` with slashes, without what leads nowhere: ``./``, ``../``, ``//``, ``C:/``."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "/".join(part for part in parts if part not in ("/", "//", "..", "."))


class ImageFinder:
    """Finds the image of the data set that a name means.

    A name that the mapping holds as it stands is settled. Else the data set is asked, and where it
    knows no image or several, the mapping once more, for the same name with another suffix,
    flattened, or in a tool's folder (``images/``). More in front it does not take: a mapping of
    ``image1.png`` says nothing of another patient's.

    Args:
        images: Paths of all images of the index table.
        root: Folder that they count from.
        mapping: From :func:`read_mapping`.

    Raises:
        DataError: The mapping names images that the data set does not have.
    """

    def __init__(
        self, images: list[str], root: Path, mapping: dict[str, str] | None = None
    ) -> None:
        self._matcher = Matcher(images, root.resolve().name)
        self._mapping: dict[str, str] = {}
        unknown = []
        for name, image in (mapping or {}).items():
            found = self._matcher.find(image)
            if len(found) == 1:
                self._mapping[name] = found[0]
            else:
                unknown.append(image)
        if unknown:
            raise DataError(
                f"the mapping names {len(unknown)} images that {root} does not have, or has several"
                f" of: {', '.join(unknown[:3])}; give paths relative to data.root, and the data.* "
                "words that the images were chosen with"
            )
        self._loose: list[dict[str, set[str]]] = [{} for _ in _LEVELS]
        for name, image in self._mapping.items():
            for level, (written, _) in enumerate(_LEVELS):
                self._loose[level].setdefault(written(_stored(name)), set()).add(image)

    def find(self, name: str) -> list[str]:
        """The images that ``name`` may mean: one where it is certain, none where it is unknown."""
        name = tidy(name)
        if name in self._mapping:
            return [self._mapping[name]]
        own, mapped = self._matcher.find(name), self._find_mapped(name)
        if len(own) == 1 and mapped:  # where they disagree, neither is certain
            return sorted(mapped | set(own))
        return sorted(mapped) or own

    def _find_mapped(self, name: str) -> set[str]:
        for variant in _variants(name):
            for level, (written, _) in enumerate(_LEVELS):
                if found := self._loose[level].get(written(_stored(variant))):
                    return found
        return set()


def _stored(name: str) -> str:
    return _STORAGE.sub("", name)


def _variants(name: str) -> Iterator[str]:
    tried = []
    for plain in (name, unquote(name)):
        folder, slash, file = plain.rpartition("/")
        for own in (file, _UPLOADED.sub("", file), _ROBOFLOW.sub("", file)):
            variant = folder + slash + own
            if variant and variant not in tried:
                tried.append(variant)
                yield variant


def _bare(path: str) -> str:
    return _SUFFIX.sub("", path)


def _flat(path: str) -> str:
    return _SEPARATORS.sub("_", _bare(path)).casefold()


def _squeezed(path: str) -> str:
    return _SEPARATORS.sub("", _bare(path)).casefold()


# From strict to loose: how names are written to be compared, and what separates their parts then.
_LEVELS: tuple[tuple[Callable[[str], str], str], ...] = ((str, "/"), (_bare, "/"), (_flat, "_"))
