"""Which image of the data set a name in an annotation file means.

Tools keep a path, a part of it, or flatten it: CVAT drops folders, Label Studio puts eight digits
and a dash in front, exports change the suffix. A name counts only where it means one image: MURA
has thousands of ``image1.png``, and a lesion on the wrong radiograph is worse than none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from datamodules.annotations.marks import MarkedImage
from datamodules.index import DataError
from datamodules.tables import read_csv

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


def _bare(path: str) -> str:
    return _SUFFIX.sub("", path)


def _flat(path: str) -> str:
    return _SEPARATORS.sub("_", _bare(path)).casefold()


# From strict to loose: how names are written to be compared, and what separates their parts then.
_LEVELS: tuple[tuple[Callable[[str], str], str], ...] = ((str, "/"), (_bare, "/"), (_flat, "_"))


class ImageFinder:
    """Finds the images of the data set that a name may mean.

    A name that the mapping holds as it stands is settled. Else, from strict to loose, the first
    that fits decides, be it for one path or for several:

    1. the path itself, with anything in front (``MURA-v1.1/``, ``/home/anna/data/``, ``../``), or
       its end from some folder on (``study1_positive/image1.png``);
    2. the same, whatever the suffix (``.jpg`` for ``.png``, or none);
    3. the same, flattened: ``_``, ``__`` or ``-`` in place of ``/``, upper or lower case;
    4. the whole path, separators dropped;
    5. its file name alone, where no two paths share one (FracAtlas).

    A name is taken as given, then with ``%20`` and the like decoded, then without the eight digits
    of an upload. Paths that only end alike (another patient's ``study1_positive/image1.png``) never
    match. The mapping, too, is asked for the name with another suffix, flattened, or in a tool's
    folder (``images/``), but with nothing else in front.

    Args:
        images: Paths of all images of the index table.
        root: Folder that they count from.
        mapping: From :func:`read_mapping`.
    """

    def __init__(
        self, images: Iterable[str], root: Path, mapping: Mapping[str, str] | None = None
    ) -> None:
        self._near: dict[str, list[str]] = defaultdict(list)  # by their flat end, from any folder
        self._squeezed: dict[str, list[str]] = defaultdict(list)
        self._names: dict[str, list[str]] = defaultdict(list)
        root_name = root.resolve().name
        for path in images:
            folders = [0, *(place.end() for place in re.finditer("/", path))]
            for key in {_flat(path[start:]).strip("_") for start in folders}:
                self._near[key].append(path)
            for key in {_squeezed(path), _squeezed(root_name + path)}:
                self._squeezed[key].append(path)
            self._names[_bare(path[folders[-1] :])].append(path)
        if any(len(paths) > 1 for paths in self._names.values()):
            self._names.clear()  # they tell no images apart
        own = {name: self._find_own(image) for name, image in (mapping or {}).items()}
        self._mapping = {name: paths[0] for name, paths in own.items() if len(paths) == 1}
        self._stored: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for name, image in self._mapping.items():
            stored = _STORAGE.sub("", name)
            self._stored[_flat(stored)].append((stored, image))
        if unknown := [image for name, image in (mapping or {}).items() if len(own[name]) != 1]:
            raise DataError(
                f"the mapping names {len(unknown)} images that {root} does not have, or has several"
                f" of: {', '.join(unknown[:3])}; give paths relative to data.root, and the data.* "
                "words that the images were chosen with"
            )

    def find_marked(self, marked: MarkedImage) -> list[str]:
        """The images that a marked one's name may mean, and all that its other names mean for sure.

        Of several the one that its other names mean, where these agree.
        """
        paths = self.find(marked.name)
        others = {found[0] for name in marked.also if len(found := self.find(name)) == 1}
        if len(paths) > 1 and len(others) == 1 and others.intersection(paths):
            return [*others]
        return sorted({*paths, *others}) if paths else []

    def find(self, name: str) -> list[str]:
        """The images that ``name`` may mean: one where it is certain, none where it is unknown."""
        name = tidy(name)
        if name in self._mapping:
            return [self._mapping[name]]
        own, mapped = self._find_own(name), self._find_mapped(name)
        if len(own) == 1 and mapped:  # where they disagree, neither is certain
            return sorted({*mapped, *own})
        return sorted(mapped) or own

    def _find_own(self, name: str) -> list[str]:
        for variant in _variants(name):
            key = _flat(variant).strip("_")
            starts = [0, *(place.end() for place in re.finditer("_", key))]
            near = [path for start in starts for path in self._near.get(key[start:], ())]
            ranks = {path: rank for path in near if (rank := _rank(path, variant))}
            certain = [path for path in ranks if ranks[path] == min(ranks.values())]
            squeezed = self._squeezed.get(_squeezed(variant), [])
            named = self._names.get(_bare(variant.rpartition("/")[2]), [])
            if paths := certain or squeezed or named:
                return [*paths]
        return []

    def _find_mapped(self, name: str) -> set[str]:
        for variant in _variants(name):
            given = _STORAGE.sub("", variant)
            near = self._stored.get(_flat(given), ())
            for written, _ in _LEVELS:
                if images := {image for own, image in near if written(own) == written(given)}:
                    return images
        return set()


def _rank(path: str, name: str) -> tuple[int, int] | None:
    """How strictly a name means a path, the less the stricter; None: it does not."""
    for level, (written, sign) in enumerate(_LEVELS):
        own, given = (sign + written(text).strip(sign) for text in (path, name))
        # Flattened, a path of one part would fit any name: "1.png" any "scan_1.png".
        if given.endswith(own) and (level < 2 or "/" in path):
            return 2 * level, -len(own)
        if own.endswith(given):
            return 2 * level + 1, 0
    return None


def read_mapping(csv: Path) -> dict[str, str]:
    """Read a mapping file: what the tool calls an image, and its path below ``data.root``."""
    if not csv.is_file():
        raise DataError(f"--mapping {csv}: there is no such file")
    rows = read_csv(csv, MAPPING_COLUMNS)
    mapping: dict[str, str] = {}
    for row, name, image in zip(rows.index, *(rows[key] for key in MAPPING_COLUMNS), strict=True):
        if not name or not image:
            raise DataError(f"{csv}, row {row}: no {'image' if name else 'name'} is given")
        other = mapping.setdefault(tidy(name), image)
        if other != image:
            raise DataError(
                f"{csv}, row {row}: {name} is {other} in another row; keep the one that is right"
            )
    return mapping


def tidy(name: str) -> str:
    """``name`` with slashes, without what leads nowhere: ``./``, ``../``, ``//``, ``C:/``."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "/".join(part for part in parts if part not in ("/", "//", "..", "."))


def _variants(name: str) -> Iterator[str]:
    tried = []
    for plain in (name, unquote(name)):
        folder, slash, file = plain.rpartition("/")
        for own in (file, _UPLOADED.sub("", file), _ROBOFLOW.sub("", file)):
            variant = folder + slash + own
            if variant and variant not in tried:
                tried.append(variant)
                yield variant


def _squeezed(path: str) -> str:
    return _flat(path).replace("_", "")
