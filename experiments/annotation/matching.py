"""Which image of the data set a name in an annotation file means.

Tools keep a path, a part of it, or flatten it. A name counts only where it means one image: MURA
has thousands of ``image1.png``, and a lesion on the wrong radiograph is worse than none.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

from datamodules.annotations.marks import MarkedImage
from datamodules.index import DataError, check_rows, read_csv

_SUFFIX = re.compile(r"(\.(png|jpe?g|tiff?|bmp|webp|dcm|dicom))+$", re.IGNORECASE)
# Label Studio's prefix of an upload; Roboflow's suffix.
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")
_ROBOFLOW = re.compile(r"_(png|jpe?g)\.rf\.[0-9a-f]+(?=\.|$)", re.IGNORECASE)
# Folders that tools keep images in: nothing in their names tells one image from another.
_STORAGE = re.compile(
    r"(?i)^((data/)?(uploads?/(\d+/)?|local-files/)|(images?|imgs|JPEGImages|labels|masks"
    r"|Segmentation(Class|Object)|obj_train_data)/)+(?=.)"
)
Key = tuple[int, str]  # how strictly a name is compared, from 0 on, and how it is written then


def bare(path: str) -> str:
    """A path without the suffix of an image; a number behind a dot, as of a UID, stays."""
    return _SUFFIX.sub("", path)


def _flat(path: str) -> str:
    plain = unicodedata.normalize("NFKC", bare(path))
    return re.sub(r"[/_\-\s]+", "_", plain).casefold().strip("_")


class ImageFinder:
    """Finds the images of the data set, paths below ``root``, that a name may mean.

    A name that the mapping holds as it stands is settled. Else the first level that fits decides:
    the path with anything in front, or its end from some folder on; the same whatever the suffix;
    the same flattened; at last the file name alone, where no two paths share one. The mapping, too,
    is asked for the name with another suffix, flattened, or in a tool's folder (``images/``).
    """

    def __init__(
        self, images: Iterable[str], root: Path, mapping: Mapping[str, str] | None = None
    ) -> None:
        self.root = root
        self._whole, self._ends, self._mapped = (defaultdict[Key, list[str]](list) for _ in "123")
        self._names = defaultdict[str, list[str]](list)
        paths = dict.fromkeys(images)  # ordered, with fast look-up
        for path in paths:
            self._names[bare(path.rpartition("/")[2])].append(path)
        for path in paths:
            for level, written in _keys(path):
                # A path of one part fits any folder's image of its name and, flattened, any name:
                # "1.png" any "scan_1.png".
                if "/" in path or (level < 2 and len(self._names[bare(path)]) == 1):
                    self._whole[level, written].append(path)
            for _, end in _ends(0, path):  # from a folder on: "1.png" is no end of "scan_1.png"
                for key in _keys(end):
                    self._ends[key].append(path)
        if any(len(paths) > 1 for paths in self._names.values()):
            self._names.clear()  # they tell no images apart
        self._mapping: dict[str, str] = {}
        for name, image in (mapping or {}).items():
            own = [image] if image in paths else self._find_own(image)
            if len(own) != 1:
                raise DataError(
                    f"the mapping's image {image} means {len(own)} images of {root}: expected one. "
                    "Fix: give its path relative to data.root, and the data.* words of the choice"
                )
            self._mapping[name] = own[0]
            for key in _keys(_STORAGE.sub("", name)):
                self._mapped[key].append(own[0])

    def find_marked(self, marked: MarkedImage) -> list[str]:
        """The images that a marked one's names may mean: of several the one that all agree on."""
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
        mapped = next((self._mapped[key] for key in keys if key in self._mapped), [])
        # Where they disagree, neither is certain.
        return sorted({*mapped, *(own if len(own) == 1 else [])}) if mapped else own

    def _find_own(self, name: str) -> list[str]:
        for variant in _variants(name):
            for level, given in _keys(variant):
                # Of paths in front of which something stands, the longest.
                whole = (self._whole.get(end) for end in _ends(level, given))
                if paths := next(filter(None, whole), None) or self._ends.get((level, given)):
                    return paths
            if paths := self._names.get(bare(variant.rpartition("/")[2])):
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


def other_folder(name: str, image: str) -> str:
    """The folder that ``name`` says, if it is the image's own but for a number; else ""."""
    said, own = (path.rpartition("/")[0].rpartition("/")[2] for path in (name, image))
    alike = re.sub(r"\d+", "0", said) == re.sub(r"\d+", "0", own)
    return said if alike and said != own else ""


def _keys(path: str) -> list[Key]:
    return [(0, path), (1, bare(path)), (2, _flat(path))]


def _ends(level: int, written: str) -> Iterator[Key]:
    """Keys of a name, and of what is left of it from each of its parts on."""
    sign = "_" if level == 2 else "/"
    parts = written.split(sign)
    return ((level, sign.join(parts[start:])) for start in range(len(parts)))


def _variants(name: str) -> Iterator[str]:
    """A name as given, then with ``%20`` and the like decoded, then without what tools add."""
    for plain in dict.fromkeys((name, unquote(name))):
        folder, slash, file = plain.rpartition("/")
        for own in dict.fromkeys((file, _UPLOADED.sub("", file), _ROBOFLOW.sub("", file))):
            yield folder + slash + own
