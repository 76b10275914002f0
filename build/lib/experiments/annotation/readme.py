"""README.txt of a package of images to draw on: for those who draw, in their tool's words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from experiments.annotation.files import LABEL


def readme(count: int, maker: str, words: Sequence[str]) -> str:
    """How to open the package with each tool, what to draw and how to bring it back.

    Args:
        count: Images in the package.
        maker: What drew the outlines in it; "" where there are none.
        words: ``data.*`` of the choice, without the root: paths of this machine stay here.
    """
    title = f"{count} radiographs to outline lesions on"
    return "\n".join(
        [
            title,
            "=" * len(title),
            "",
            *(_warning(maker) if maker else ()),
            _DRAW,
            _CVAT_WITH if maker else _CVAT,
            _STUDIO_WITH if maker else _STUDIO,
            _LABELME,
            _BACK.format(words=shlex.join(words)),
        ]
    )


def _warning(maker: str) -> list[str]:
    return [
        f"THE OUTLINES IN THIS PACKAGE ARE A NETWORK'S ({maker}), NOT A PERSON'S.",
        "They point at what the network looked at, which need not be the lesion. Whoever is shown",
        "them tends to follow them. Look at the radiograph first; correct, delete and add without",
        "mercy; an outline that is left as it is will be taken for a lesion. Masks that begin with",
        "them must not judge this network's maps: draw those (val, test) without outlines.",
        "",
    ]


_DRAW = f"""\
What to draw
------------
The outline of every lesion, closed and near its border: of a fracture the line and its fragments,
not the whole bone; of a lytic or sclerotic lesion its area; of hardware the metal. One label:
"{LABEL}". Polygons are best; brush masks and ellipses are read as well, boxes count as weak.
Nothing to see: leave the image empty, it will not get a mask. Turn or crop nothing.
selected.csv lists the images in the order in which they are worth it: whoever stops early has
still covered patients and body parts evenly.
"""

_CVAT = """\
CVAT
----
1. Tasks > Create a new task: paste cvat_labels.json into the tab "Raw" of the labels, and choose
   all PNG files of images/ as its files.
2. Draw with "polygon", shape; save.
3. Actions > Export task dataset, format "CVAT for images 1.1"; unpack annotations.xml.
"""

_CVAT_WITH = _CVAT.replace(
    "2. Draw",
    '2. Actions > Upload annotations, format "CVAT 1.1", file cvat.xml, before anything is drawn.\n'
    "   Then open the job: draw",
)

_STUDIO = """\
Label Studio
------------
1. Start it with the environment variables LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and
   LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/path/to/this/folder.
2. Create a project; Labeling Setup > Custom template > Code: paste label_studio_config.xml.
   Settings > Cloud Storage > Add Source Storage > Local files, with the absolute path of images/
   in this folder; save it, but do not sync it. Import label_studio.json.
3. Draw and submit; Export > JSON.
"""

_STUDIO_WITH = _STUDIO.replace(
    "3. Draw",
    '   Settings > Annotation: switch on "Use predictions to prelabel tasks".\n3. Draw',
)

_LABELME = """\
LabelMe
-------
1. In this folder: labelme images --labels labels.txt
2. Edit > Create Polygons; save each image before the next.
3. It writes a JSON file beside each image, which may hold a copy of it: the folder images/ is what
   to bring back.
"""

_BACK = """\
Bring it back
-------------
    python -m experiments.import_lesions SOURCE --out LESIONS --mapping mapping.csv \\
        {words} data.root=/path/to/the/data

SOURCE is annotations.xml (CVAT), the exported JSON (Label Studio) or images/ (LabelMe). The command
says what is wrong, if anything, and how to train on the masks. mapping.csv leads from the names
here to the images of the data set: keep it. Without the data.* words above, masks may move to
another split.
"""
