"""Which image of the data set a name in an annotation file means.

Tools keep a path, a part of it, or flatten it. A name counts only where it means one image: MURA
has thousands of ``image1.png``, and a lesion on the wrong radiograph is worse than none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

from datamodules.annotations.marks import MarkedImage
from datamodules.index import DataError
from datamodules.tables import check_rows, read_csv

# What radiographs and their copies in annotation tools are called.
_SUFFIX = re.compile(r"(\.(png|jpe?g|tiff?|bmp|webp|dcm|dicom))+$", re.IGNORECASE)
# Label Studio puts eight hexadecimal digits and a dash in front of what is uploaded; Roboflow an
# image's suffix into its name, and digits of its own behind.
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")
_ROBOFLOW = re.compile(r"_(png|jpe?g)\.rf\.[0-9a-f]+(?=\.|$)", re.IGNORECASE)
# Folders that tools keep images in: nothing in their names tells one image from another.
_STORAGE = re.compile(
    r"^((data/)?uploads?/(\d+/)?|(data/)?local-files/|(images?|imgs|JPEGImages|labels|masks"
    r"|SegmentationClass|SegmentationObject|obj_train_data)/)+(?=.)",
    re.IGNORECASE,
)


def _bare(path: str) -> str:
    return _SUFFIX.sub("", path)


def _flat(path: str) -> str:
    return re.sub(r"[/_\-\s]+", "_", _bare(path)).casefold().strip("_")


# From strict to loose: how names are written to be compared, and what separates their parts then.
_LEVELS: tuple[tuple[Callable[[str], str], str], ...] = ((str, "/"), (_bare, "/"), (_flat, "_"))


class ImageFinder:
    """Finds the images of the data set, paths below ``root``, that a name may mean.

    A name that the mapping holds as it stands is settled. Else the first level that fits decides:
    the path itself with anything in front, or its end from some folder on; the same whatever the
    suffix; the same flattened (``_``, ``__`` or ``-`` for ``/``, upper or lower case); at last the
    file name alone, where no two paths share one. The mapping, too, is asked for the name with
    another suffix, flattened, or in a tool's folder (``images/``), but with nothing else in front.
    """

    def __init__(
        self, images: Iterable[str], root: Path, mapping: Mapping[str, str] | None = None
    ) -> None:
        # By level, and as that level writes names.
        self._whole: dict[tuple[int, str], list[str]] = defaultdict(list)
        self._ends: dict[tuple[int, str], list[str]] = defaultdict(list)
        self._mapped: dict[tuple[int, str], set[str]] = defaultdict(set)
        self._names: dict[str, list[str]] = defaultdict(list)
        for path in images:
            self._names[_bare(path.rpartition("/")[2])].append(path)
            # Flattened, a path of one part would fit any name: "1.png" any "scan_1.png".
            for key in _keys(path)[: None if "/" in path else 2]:
                self._whole[key].append(path)
            for level, written in _keys(path):
                for key in _ends(level, written):
                    self._ends[key].append(path)
        if any(len(paths) > 1 for paths in self._names.values()):
            self._names.clear()  # they tell no images apart
        self._mapping: dict[str, str] = {}
        for name, image in (mapping or {}).items():
            own = self._find_own(image)
            if len(own) != 1:
                raise DataError(
                    f"the mapping's image {image} means {len(own)} images of {root}: expected one. "
                    "Fix: give its path relative to data.root, and the data.* words of the choice"
                )
            self._mapping[name] = own[0]
            for key in _keys(_STORAGE.sub("", name)):
                self._mapped[key].add(own[0])

    def find_marked(self, marked: MarkedImage) -> list[str]:
        """The images that a marked one's name may mean, and all that its other names mean for sure.

        Of several the one that its other names mean, where these agree.
        """
        paths = self.find(marked.name)
        others = {own[0] for name in marked.also if len(own := self.find(name)) == 1}
        if len(paths) > 1 and len(others) == 1 and others.intersection(paths):
            return [*others]
        return sorted({*paths, *others}) if paths else []

    def find(self, name: str) -> list[str]:
        """The images that ``name`` may mean: one where it is certain, none where it is unknown."""
        if name in self._mapping:
            return [self._mapping[name]]
        own = self._find_own(name)
        keys = (key for variant in _variants(name) for key in _keys(_STORAGE.sub("", variant)))
        mapped = next((self._mapped[key] for key in keys if key in self._mapped), set[str]())
        if len(own) == 1 and mapped:  # where they disagree, neither is certain
            return sorted({*mapped, *own})
        return sorted(mapped) or own

    def _find_own(self, name: str) -> list[str]:
        for variant in _variants(name):
            for level, given in _keys(variant):
                # Of paths in front of which something stands, the longest.
                whole = (self._whole.get(end) for end in _ends(level, given))
                if paths := next(filter(None, whole), None) or self._ends.get((level, given)):
                    return paths
            if paths := self._names.get(_bare(variant.rpartition("/")[2])):
                return paths
        return []


def read_mapping(csv: Path) -> dict[str, str]:
    """Read a mapping file: what the tool calls an image, and its path below ``data.root``."""
    both = ["name", "image"]
    rows = read_csv(csv, both)
    rows["name"] = rows["name"].str.replace("\\", "/")
    rows = rows.drop_duplicates(both)
    checks = {
        "expected a name and an image. Fix: fill both in": (rows[both] == "").any(axis=1),
        "{name} has another image above. Fix: keep the right one": rows["name"].duplicated(),
    }
    check_rows(csv, rows, checks)
    return dict(zip(rows["name"], rows["image"], strict=True))


def _keys(path: str) -> list[tuple[int, str]]:
    return [(level, written(path)) for level, (written, _) in enumerate(_LEVELS)]


def _ends(level: int, written: str) -> Iterator[tuple[int, str]]:
    """Keys of a name, and of what is left of it from each of its parts on."""
    sign = _LEVELS[level][1]
    parts = written.split(sign)
    return ((level, sign.join(parts[start:])) for start in range(len(parts)))


def _variants(name: str) -> Iterator[str]:
    """A name as given, then with ``%20`` and the like decoded, then without what tools add."""
    for plain in dict.fromkeys((name, unquote(name))):
        folder, slash, file = plain.rpartition("/")
        for own in dict.fromkeys((file, _UPLOADED.sub("", file), _ROBOFLOW.sub("", file))):
            yield folder + slash + own
