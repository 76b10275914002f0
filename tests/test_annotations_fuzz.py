"""Whatever a file holds, readers give a result, mistakes or a DataError: no traceback, no bomb.

A hundred files a format here. For a long run, ten thousand a format in about ten minutes a core::

    DECISION_BASIS_FUZZ=10000 python -m pytest -s tests/test_annotations_fuzz.py
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import math
import os
import resource
import struct
import warnings
import zlib
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.annotations.recognition import READERS, recognise
from datamodules.annotations.marks import MAX_COORDINATE, MAX_PIXELS, draw
from datamodules.index import DataError
from tests import annotation_samples as samples

# pycocotools 2.0.11 still speaks NumPy 1's array protocol; nothing to do about it here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FILES = int(os.environ.get("DECISION_BASIS_FUZZ", "100"))
# What reading may add to the memory of the process, MiB.
MEMORY = 600
NASTY = [
    *(None, True, -1, 0, 1, 0.5, 7, 29, 1e308, -1e9, math.nan, math.inf, 2**31, 2**63, 10**30),
    *(10**400, MAX_COORDINATE, 16384, 99999, "", " ", "x" * 300, "\ud800", "../../x", "nan", "1e5"),
    *("-3", "a\nb", "\0", "data:image/png;base64,", "http://[", "fracture", "mask", "polygon"),
    *([], {}, [[]], [None], [1, 2, 3], [[1, 2], [3, "4"]], {"a": 1}, [[[[[[[[[[[]]]]]]]]]]]),
]
BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'


def slots(tree):
    """All places of a JSON tree: (container, key)."""
    found, waiting = [], [tree]
    while waiting:
        container = waiting.pop()
        keys = container if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], (dict, list)):
                waiting.append(container[key])
    return found


def spoil_tree(random, tree):
    tree = [copy.deepcopy(tree)]
    for _ in range(random.randint(1, 4)):
        container, key = random.choice(slots(tree))
        other, its = random.choice(slots(tree))
        what = random.randint(0, 5)
        if what == 0 and container is not tree:
            del container[key]
        elif what == 1 and isinstance(container, list) and container is not tree:
            container.insert(key, copy.deepcopy(container[key]))
        elif what == 2:
            container[key] = copy.deepcopy(other[its])
        else:
            container[key] = copy.deepcopy(random.choice(NASTY))
    return tree[0]


def spoil_bytes(random, content):
    content = bytearray(content)
    for _ in range(random.randint(1, 6)):
        place = random.randint(0, max(len(content) - 1, 0))
        what = random.randint(0, 4)
        if what == 0:
            del content[place:]
        elif what == 1:
            del content[place : place + random.randint(1, 20)]
        elif what == 2:
            content[place:place] = content[random.randint(0, place) : place][:2000]
        elif what == 3 and content:
            content[place] ^= 1 << random.randint(0, 7)
        else:
            content[place:place] = random.choice(
                [b"\0", b"\xff", b"<", b"[" * 3000, b"9" * 30, b"&a;", b"\xef\xbb\xbf", b'"', b"-"]
            )
    return bytes(content)


def spoil_json(tree):
    def spoil(random):
        return json.dumps(spoil_tree(random, tree)).encode()

    return spoil


def spoil_xml(text):
    def spoil(random):
        root = ElementTree.fromstring(text)
        for _ in range(random.randint(1, 4)):
            parents = [element for element in root.iter() if len(element) or element.attrib]
            element = random.choice(parents or [root])
            value = str(random.choice(NASTY)).replace("\0", "").replace("\ud800", "é")
            what = random.randint(0, 4)
            if what == 0 and element.attrib:
                element.set(random.choice(sorted(element.attrib)), value)
            elif what == 1 and element.attrib:
                del element.attrib[random.choice(sorted(element.attrib))]
            elif what == 2 and len(element):
                element.remove(random.choice(list(element)))
            elif what == 3 and len(element):
                element.append(copy.deepcopy(random.choice(list(element))))
            elif len(element):
                random.choice(list(element)).text = value
        head = random.choice(["", "", "", BOMB, '<?xml version="1.0" encoding="utf-16"?>'])
        return head.encode() + ElementTree.tostring(root)

    return spoil


def spoil_csv(random):
    rows = list(csv.reader(io.StringIO(samples.via_csv())))
    for _ in range(random.randint(1, 4)):
        row = random.choice(rows)
        place = random.randint(0, len(row) - 1)
        if row[place].startswith("{") and random.randint(0, 3):
            with contextlib.suppress(ValueError):  # spoiled already
                row[place] = json.dumps(spoil_tree(random, json.loads(row[place])))
        else:
            row[place : place + random.randint(0, 1)] = [str(random.choice(NASTY))]
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue().encode("utf-8", "replace")


def spoil_yolo(random):
    lines = [line.split() for line in samples.YOLO.splitlines()]
    for _ in range(random.randint(1, 3)):
        line = random.choice(lines)
        place = random.randint(0, len(line))
        line[place : place + random.randint(0, 2)] = [str(random.choice(NASTY))]
    return "\n".join(" ".join(line) for line in lines).encode("utf-8", "replace")


def spoil_png(random):
    """Change the header, the palette or the pixels and set the checksums right."""
    size = [random.choice([0, 1, 20, 30, 31, 16384, 1 << 30]) for _ in range(2)]
    header = [*(size if random.randint(0, 2) == 0 else (30, 20))]
    header += [random.choice([1, 2, 4, 8, 16, 3]), random.choice([0, 2, 3, 4, 6, 1]), 0, 0]
    header.append(random.choice([0, 0, 1]))
    pixels = spoil_bytes(random, b"".join(b"\0" + row.tobytes() for row in samples.square()))
    stream = zlib.compress(pixels)
    if random.randint(0, 3) == 0:
        stream = spoil_bytes(random, stream)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *header)), (b"IDAT", stream), (b"IEND", b"")]
    extra = [(b"PLTE", bytes(9)), (b"tRNS", bytes(2)), (b"eXIf", b"MM\0*\0\0\0\x08\0\1"), None]
    if chosen := random.choice(extra):
        chunks.insert(random.randint(0, 2), chosen)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def spoil_dicom(whole):
    def spoil(random):
        from pydicom import dcmread

        data = dcmread(io.BytesIO(whole))
        elements = [*data.iterall()]
        for _ in range(random.randint(1, 3)):
            element = random.choice(elements)
            try:
                element.value = random.choice([*NASTY, b"", b"\0" * 900, "BINARY", "LABELMAP"])
            except Exception:  # what pydicom does not take is no test of the reader
                continue
        file = io.BytesIO()
        try:
            data.save_as(file)
        except Exception:
            return spoil_bytes(random, whole)
        return file.getvalue()

    return spoil


@pytest.fixture(scope="module")
def dicom(tmp_path_factory):
    import numpy as np

    mask = np.stack([samples.square() // 255] * 2, axis=-1)[None]
    path = samples.segmentation(tmp_path_factory.mktemp("dicom") / "s.dcm", mask)
    return path.read_bytes()


SPOILERS = {
    "masks": ("a.png", samples.png(samples.square()), spoil_png),
    "coco": ("a.json", json.dumps(samples.COCO).encode(), spoil_json(samples.COCO)),
    "cvat": ("a.xml", samples.CVAT.encode(), spoil_xml(samples.CVAT)),
    "labelme": ("a.json", json.dumps(samples.LABELME).encode(), spoil_json(samples.LABELME)),
    "label-studio": (
        "a.json",
        json.dumps(samples.LABEL_STUDIO).encode(),
        spoil_json(samples.LABEL_STUDIO),
    ),
    "label-studio minimal": (
        "a.json",
        json.dumps(samples.LABEL_STUDIO_MIN).encode(),
        spoil_json(samples.LABEL_STUDIO_MIN),
    ),
    "via": ("a.json", json.dumps(samples.VIA_PROJECT).encode(), spoil_json(samples.VIA_PROJECT)),
    "via csv": ("a.csv", samples.via_csv().encode(), spoil_csv),
    "voc": ("a.xml", samples.VOC.encode(), spoil_xml(samples.VOC)),
    "yolo": ("a.txt", samples.YOLO.encode(), spoil_yolo),
    "dicom-seg": ("a.dcm", None, None),
}


@pytest.mark.parametrize("kind", SPOILERS)
def test_no_file_is_more_than_a_mistake(tmp_path, kind, dicom, capfd):
    name, content, spoil = SPOILERS[kind]
    content, spoil = content or dicom, spoil or spoil_dicom(dicom)
    file = tmp_path / name
    outcomes = {"refused": 0, "mistakes": 0, "read": 0}
    seen = set()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=FILES,
        deadline=60_000,  # ms, a hang; most take one, hostile ones some hundred
        database=None,
        derandomize="DECISION_BASIS_FUZZ" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(random=st.randoms(use_true_random=False))
    def read(random):
        spoiled = spoil(random) if random.randint(0, 2) else spoil_bytes(random, content)
        if spoiled == content:
            return
        seen.add(hash(spoiled))
        file.write_bytes(spoiled)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            outcomes[outcome(kind, file)] += 1

    read()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    with capfd.disabled():
        if "DECISION_BASIS_FUZZ" in os.environ:
            print(f"\n{kind}: {len(seen)} different files, {outcomes}, {grown:.0f} MiB")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert outcomes["refused"] + outcomes["mistakes"] > FILES / 10
    assert grown < MEMORY


def outcome(kind, file):
    with contextlib.suppress(DataError):
        assert recognise(file) in READERS
    try:
        images, mistakes = READERS[kind.partition(" ")[0]](file)
    except DataError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert file.name in refusal
        refusal.encode()
        return "refused"
    for where, what, *_ in mistakes:
        assert where.startswith(str(file))
        assert what
        f"{where}: {what}".encode()
        assert len(what) < 400
    for image in images:
        assert image.name
        assert ".." not in image.name.split("/")
        assert not image.name.startswith("/")
        image.name.encode()
        assert image.size is None or 0 < image.size[0] * image.size[1] <= MAX_PIXELS
        for mark in image.marks:
            f"{mark.entry}{mark.labels}{mark.rater}".encode()
            assert mark.runs or len(mark.outline) >= 3
            assert all(abs(value) <= MAX_COORDINATE for point in mark.outline for value in point)
            height, width = mark.runs["size"] if mark.runs else (20, 30)
            if height * width < 1 << 22:
                draw([mark], height, width)
    return "mistakes" if mistakes else "read"
