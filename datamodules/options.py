"""The options of the data, the augmentation and the lesion masks.

The form is that of ``lightning_modules.options``; nothing heavy is imported here either.
"""

from dataclasses import dataclass
from typing import Annotated


@dataclass
class Data:
    """What is learned from."""

    name: str = "phantom"  # phantom | mura | fracatlas | table
    root: str | None = None  # folder of the data set as downloaded; null: the phantom draws itself
    # CSV of your own (table only); null: table.csv in data.root
    table: str | None = None
    # what is a patient in it: its column, the first folder of a path, or each image
    patients: Annotated[str, "column | folder | image"] = "column"
    # draws phantom, splits and lesion subset; runs of several `seed`s stay paired
    seed: Annotated[int, "[0, 4294967295]"] = 0
    cache_dir: str | None = None  # folder of the decoded images; null: beside the runs
    # side in pixels, multiple of 16 (timm: 32); null: source's own
    image_size: Annotated[int | None, "[16, inf)"] = None
    # content: the exposed area; null: the source's own
    crop: Annotated[str | None, "none | content"] = None
    contrast: Annotated[str | None, "none | stretch | clahe"] = None  # null: the source's own
    # images a step and a rank; small, since few images mean few steps
    batch_size: Annotated[int, "[1, inf)"] = 16
    # loader processes a rank; null: from the cores at hand
    num_workers: Annotated[int | None, "[0, inf)"] = None
    limit: Annotated[int | None, "[1, inf)"] = None  # images a split, for quick tries; null: all
    # image leaks patients into test: old figures only
    split: Annotated[str, "patient | image"] = "patient"
    # images that cannot be decoded; skip reports them; null: the source's own
    unreadable: Annotated[str | None, "error | skip"] = None
    count: Annotated[int, "[1, inf)"] = 2000  # images drawn (phantom only)


@dataclass
class Augmentation:
    """Random changes of train images, a pure function of (seed, draw, image)."""

    enabled: bool = True
    rotate: Annotated[float, "[0, 180]"] = 10.0  # degrees, either way
    scale: Annotated[float, "[0, 1)"] = 0.1  # share of the size, either way
    shift: Annotated[float, "[0, 1)"] = 0.05  # share of the side, either way
    flip: Annotated[float, "[0, 1]"] = 0.5  # probability of a left-right flip
    brightness: Annotated[float, "[0, 1]"] = 0.1  # share of the grey range, either way
    contrast: Annotated[float, "[0, 1]"] = 0.1  # share of the contrast, either way
    # highest standard deviation, share of the grey range
    noise: Annotated[float, "[0, 1]"] = 0.0


@dataclass
class Lesions:
    """The images whose lesion was drawn by hand."""

    path: str | None = None  # folder with lesions.csv; null: what the source brings
    count: Annotated[int, "[0, inf)"] = 100  # train images whose mask may be used
    # cross-validation: number of parts of train's masks; null: no folds
    folds: Annotated[int | None, "[2, inf)"] = None
    # the part left out, 0 to folds - 1: judge it with evaluate --split left_out
    fold: Annotated[int, "[0, inf)"] = 0
    # images with a mask in every train batch; 0: as they come
    per_batch: Annotated[int, "[0, inf)"] = 0
    # these teach the FCN alone, each time augmented anew; false: the classifier, too
    apart: bool = False
