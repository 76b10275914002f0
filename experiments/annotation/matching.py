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
        self._images: dict[tuple[str, int], dict[str, list[str]]] = defaultdict(dict)
        root_name = root.resolve().name
        for path in images:
            for level, key in self._keys_of(path, root_name):
                self._images[level].setdefault(key, []).append(path)
        by_name = self._images["name", 0].values()
        self._names_tell = all(len(paths) == 1 for paths in by_name)
        self._mapping: dict[str, str] = {}
        self._loose: list[dict[str, set[str]]] = [defaultdict(set) for _ in _LEVELS]
        unknown = []
        for name, image in (mapping or {}).items():
            paths = self._find_own(image)
            if len(paths) != 1:
                unknown.append(image)
                continue
            self._mapping[name] = paths[0]
            for (written, _), names in zip(_LEVELS, self._loose, strict=True):
                names[written(_STORAGE.sub("", name))].add(paths[0])
        if unknown:
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
            return sorted(mapped | set(own))
        return sorted(mapped) or own

    def _find_own(self, name: str) -> list[str]:
        for variant in _variants(name):
            for level, (written, separator) in enumerate(_LEVELS):
                text = written(variant)
                starts = [0, *(place.end() for place in re.finditer(separator, text))]
                keys = [(("whole", level), text[start:]) for start in starts]
                for kind, key in (*keys, (("end", level), text)):
                    if paths := self._images[kind].get(key):
                        return list(paths)
            file = _bare(variant.split("/")[-1]) if self._names_tell else ""
            squeezed = _flat(variant).replace("_", "")
            for kind, key in ((("squeezed", 0), squeezed), (("name", 0), file)):
                if paths := self._images[kind].get(key):
                    return list(paths)
        return []

    def _find_mapped(self, name: str) -> set[str]:
        for variant in _variants(name):
            for (written, _), names in zip(_LEVELS, self._loose, strict=True):
                if images := names.get(written(_STORAGE.sub("", variant))):
                    return images
        return set()

    @staticmethod
    def _keys_of(path: str, root_name: str) -> Iterator[tuple[tuple[str, int], str]]:
        """All that a path is found by, with the level at which it counts."""
        parts = path.split("/")
        for level, (written, _) in enumerate(_LEVELS):
            if len(parts) > 1 or written is not _flat:  # "1.png" would fit any "scan_1.png"
                yield ("whole", level), written(path)
            for first in range(len(parts)):
                yield ("end", level), written("/".join(parts[first:]))
        for whole in {path, root_name + path}:
            yield ("squeezed", 0), _flat(whole).replace("_", "")
        yield ("name", 0), _bare(parts[-1])


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
