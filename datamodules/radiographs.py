"""The base of every data set of radiographs: index -> cache -> sampler -> augmentation -> batch."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from datamodules import batches, cache, index
from datamodules.decode import decode
from datamodules.geometry import map_from_square
from datamodules.index import DataError
from datamodules.lesions import choose_lesions, leave_out_fold
from datamodules.options import Augmentation, Data, Lesions

if TYPE_CHECKING:
    from datamodules.augmentation import Augmenter

log = logging.getLogger(__name__)


class RadiographDataModule(LightningDataModule):
    """Radiographs with image-level labels and, for some, a lesion mask.

    ``order_seed`` is that of batch order and augmentation; ``data.seed`` draws the splits.
    """

    name = "radiographs"
    default_image_size = 320
    default_crop = "none"
    default_contrast = "none"
    unreadable = "error"
    licence = "not known here: see the data set's own terms"  # of the images, as model cards say
    shows_people = True  # pictures of them leave the machine only when asked
    patients_are = "patients"  # what the index's column patient stands for, for people
    published: ClassVar[dict[str, dict[str, float]]] = {}  # others' study kappa on test, by part
    published_by = ""  # where from, for people
    index_version = 1  # raised whenever build_index would answer otherwise for the same files
    # Set by setup(): the opened cache, and its index table with the left-out fold marked.
    pixels: cache.PixelCache
    table: pd.DataFrame

    def __init__(
        self,
        data: Data,
        lesions: Lesions | None = None,
        augmentation: Augmentation | None = None,
        order_seed: int = 0,
    ) -> None:
        super().__init__()
        root = data.root or self.default_root(data)
        if root is None:
            raise DataError(f"data.name={self.name} needs data.root=/path/to/data (make: ROOT=...)")
        self.root, self.cache_dir = Path(root), Path(data.cache_dir or "runs/cache")
        self.patients_are = self.patients_in(data)
        self.seed, self.limit, self.split = data.seed, data.limit, data.split
        self.recipe = cache.Recipe(
            data.image_size or self.default_image_size,
            data.crop or self.default_crop,
            data.contrast or self.default_contrast,
        )
        self.batch_size = data.batch_size
        workers = data.num_workers
        self.num_workers = batches.default_workers() if workers is None else workers
        self.on_unreadable = data.unreadable or self.unreadable
        self.lesions = lesions or Lesions()
        self.lesions_path = Path(self.lesions.path) if self.lesions.path else None
        self.augmentation = augmentation if augmentation and augmentation.enabled else None
        self.order_seed = order_seed
        self._is_open, self._resume_at = False, (0, 0)
        self.sampler: batches.TrainBatches | None = None

    def build_index(self) -> pd.DataFrame:
        """Return the index table of ``self.root`` (see ``datamodules.index``)."""
        raise NotImplementedError

    def fingerprint(self) -> list[Path]:
        """Small files whose content decides the index; hashed into the cache's key."""
        raise NotImplementedError

    def index_key(self) -> object:
        """What decides the index beside the files of the fingerprint; part of the cache's key."""
        return self.index_version

    def prepare_source(self) -> None:
        """Called once before the index is built; a source that draws itself does so here."""

    @classmethod
    def patients_in(cls, data: Data) -> str:
        """What stands for patients, for people: ``patients``, where they are known."""
        return cls.patients_are

    @classmethod
    def default_root(cls, data: Data) -> str | None:
        """Where the data lie unless ``data.root`` says so."""
        return None

    def prepare_data(self) -> None:
        """Draw or check the source and build the cache, unless it is open already."""
        if self._is_open:  # trained on as it was opened, whatever Lightning asks for
            return
        self.prepare_source()
        made = (self.checked_index, self.root, self.recipe, self.on_unreadable)
        cache.build(self.cache_folder, *made, lambda table: index.check_index(table, self.name))

    def setup(self, stage: str | None = None) -> None:
        """Open the cache; cheap, on every process."""
        if self._is_open:
            return
        self.pixels, self._is_open = cache.PixelCache(self.cache_folder), True
        # Hashes of what images and masks show, wherever they lie and however they are stored.
        self.image_hash, self.mask_hash = self.pixels.image_hash, self.pixels.mask_hash
        # Masks of train images may be trained on, at most lesions.count; val and test masks judge.
        rows, options = self.pixels.table, self.lesions
        chosen = choose_lesions(rows, options.count, self.seed)
        if options.folds:
            rows = leave_out_fold(rows, chosen, options.folds, options.fold, self.seed)
        self.table = rows
        masked = rows["lesion_mask"] != ""
        # Of images, labels, splits and which are masked; and of which images are val or test.
        content = rows[["path", "label", "patient", "split"]].assign(mask=masked)
        judges = rows.loc[rows["split"].isin(("val", "test")), ["path", "split"]]
        self.index_hash = index.hash_rows(content)
        self.judges_hash = index.hash_rows(judges.sort_values("path"))
        is_train = (rows["split"] == "train").to_numpy()
        self.lesion_rows = chosen[is_train[chosen]]
        self.learned_hash = index.hash_rows(rows.iloc[self.lesion_rows][["path"]])
        self._shows_lesion = masked.to_numpy() & ~is_train
        if len(self.lesion_rows) and not self._shows_lesion.any():
            problem = "all %d lesion masks are in train: no map can be judged. Fix: lesions.folds=5"
            log.warning(problem, masked.sum())
        self._shows_lesion[self.lesion_rows] = True
        self.body_parts = sorted(rows["body_part"].unique())  # in the order of their codes
        self._codes = {
            "label": rows["label"].to_numpy(np.int64),
            "study": pd.factorize(rows["study"])[0].astype(np.int64),
            "body_part": rows["body_part"].map(self.body_parts.index).to_numpy(np.int64),
        }

    def train_dataloader(self) -> DataLoader[batches.Batch]:
        """Shuffled, augmented batches of the train split, from where a resumed run stopped."""
        rows, lesions = self.rows_of("train"), self.lesions
        order = (self.order_seed, self._ranks, self.lesion_rows, lesions.per_batch, lesions.apart)
        self.sampler = batches.TrainBatches(rows, self.batch_size, *order)
        self.sampler.resume_at(*self._resume_at)
        self._resume_at = (0, 0)  # a loader that is asked for later begins an epoch
        if self.augmentation is None:
            return self._loader(self.sampler)
        # Here and not above: who trains nothing need not wait for albumentations.
        from datamodules.augmentation import Augmenter

        return self._loader(self.sampler, Augmenter(self.augmentation, self.order_seed))

    def val_dataloader(self) -> DataLoader[batches.Batch]:
        """The val split in order."""
        return self.evaluation_dataloader("val")

    def evaluation_dataloader(self, split: str) -> DataLoader[batches.Batch]:
        """Each image of ``split`` in order, unaugmented."""
        rows, ranks = self.rows_of(split), self._ranks
        if 0 < len(rows) < ranks[1]:  # a rank that sees none would wait for the others' figures
            problem = f"{split} has {len(rows)} images, too few for {ranks[1]} processes"
            raise DataError(f"{problem}. Fix: trainer.devices={len(rows)} or fewer")
        return self._loader(batches.EvaluationBatches(rows, self.batch_size, ranks))

    def on_after_batch_transfer(self, batch: batches.Batch, dataloader_idx: int) -> batches.Batch:
        """Make uint8 images float32, on the device."""
        if batch["image"].dtype == torch.uint8:
            batch["image"] = batches.to_model_input(batch["image"])
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where training stands, so that a resumed run goes on with the next batch."""
        if self.trainer is None:
            return {}
        loop: Any = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.processed
        return {
            # Within an epoch `processed` counts whole epochs; at its end it counts this one too.
            "epoch": loop.epoch_progress.current.processed,
            "batch": done if done < self.trainer.num_training_batches else 0,
            "images_a_step": self.batch_size * self.trainer.world_size,
            **self.hashes,
        }

    @property
    def hashes(self) -> dict[str, str]:
        """What tells other data from these: the index, the images and the masks."""
        names = "index_hash", "judges_hash", "image_hash", "mask_hash", "learned_hash"
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run on these data stopped."""
        self.check_same_data(state_dict)
        now, then = self.batch_size * self._ranks[1], state_dict["images_a_step"]
        if then != now:  # its epochs would be cut otherwise, and its learning rate counts steps
            raise DataError(
                f"the run was begun with {then} images a step, here a step takes {now}. Fix: the "
                "devices and nodes it began with, or another run.name."
            )
        self._resume_at = (state_dict["epoch"], state_dict["batch"])

    def checked_index(self) -> pd.DataFrame:
        """Build and check the index table, without a cache."""
        table = self.build_index()
        if self.split == "image":  # only to reproduce figures got that way
            drawn = index.assign_groups(table.assign(patient=table["path"]), self.seed)
            table = table.assign(split=drawn["split"])
        else:
            index.check_patients_apart(table, self.name)
        return index.check_index(index.limit_split(table, self.limit), self.name)

    def check_same_data(self, trained_on: dict[str, Any]) -> None:
        """Raise a DataError unless a run, of state ``trained_on``, was trained on these data."""
        masks = self.lesions_path or self.root
        since = "changed since this run was trained (the same names, other pixels)"
        changes = {
            "index_hash": f"{self.root} is not the data that this run was trained on (other images,"
            " labels, splits or masked images: its train images may be judged here)",
            "image_hash": f"{self.root}: the images {since}",
            "mask_hash": f"{masks}: the lesion masks {since}",
            "learned_hash": f"{masks}: other masks would be learned (the body parts changed)",
        }
        for name, what in changes.items():
            if trained_on.get(name, own := getattr(self, name)) != own:
                raise DataError(
                    f"{what}. Fix: the data.root, data.table and lesions.path as it had them, or "
                    "another run.name."
                )

    def judges_as(self, trained_on: dict[str, Any]) -> bool:
        """Whether val and test are those of a run's training: then none of its train is judged."""
        return trained_on.get("judges_hash") == self.judges_hash

    @property
    def cache_folder(self) -> Path:
        """Where this data set's cache lies: its name holds the key of all that shaped it."""
        files = self.fingerprint()
        if self.lesions_path:
            files = [*files, self.lesions_path / "lesions.csv"]
        parts = {
            "format": cache.FORMAT,
            "source": self.name,
            "root": self.root.resolve(),
            # A missing file is build_index's to explain, with what it knows of the source.
            "files": index.hash_files(files) if all(map(Path.is_file, files)) else "incomplete",
            "recipe": self.recipe,
            "seed": self.seed,
            "limit": self.limit,
            "split": self.split,
            "unreadable": self.on_unreadable,
            "lesions": self.lesions_path and self.lesions_path.resolve(),
            "version": self.index_key(),
        }
        key = index.digest(json.dumps(parts, sort_keys=True, default=str))[:12]
        return self.cache_dir / f"{self.name}-{key}"

    def rows_of(self, split: str) -> np.ndarray:
        """Index rows of a split."""
        return np.flatnonzero(self.table["split"] == split)

    def original_mask(self, row: int) -> np.ndarray | None:
        """The lesion mask uint8 (H, W), 0 or 255, of the upright original; None without one."""
        path = str(self.table["lesion_mask"].iat[row])
        return np.where(decode(Path(path)) > 127, 255, 0).astype(np.uint8) if path else None

    def original_size(self, row: int) -> tuple[int, int]:
        """Height and width of the upright original of an index row, pixels."""
        return self.pixels.geometry_of(row)[:2]

    def to_original(self, square: np.ndarray, row: int) -> np.ndarray:
        """Bring a map (S, S) of an index row back to its upright original (H, W)."""
        return map_from_square(square, self.pixels.geometry_of(row))

    def class_weights(self) -> tuple[float, float]:
        """Weights (normal, abnormal) that make both classes of a batch count the same, mean 1."""
        labels = self.table.loc[self.table["split"] == "train", "label"]
        # With lesions.per_batch a batch holds more abnormal images than the train split does.
        added = self.lesions.per_batch / self.batch_size * (not self.lesions.apart)
        share = float(labels.mean()) * (1 - added) + added
        return 0.5 / (1.0 - share), 0.5 / share

    @property
    def _ranks(self) -> tuple[int, int]:
        """This process, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(
        self, sampler: Sampler[batches.Rows], augmenter: Augmenter | None = None
    ) -> DataLoader[batches.Batch]:
        dataset = batches.BatchDataset(self.pixels, self._codes, self._shows_lesion, augmenter)
        on_linux = sys.platform == "linux"
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # an item of the sampler is a whole batch
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=batches.start_worker,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: starting a loader would otherwise move the one dropout draws from.
            generator=torch.Generator(),
            # Python 3.14's default would copy the cache to each worker, and signals kill those.
            multiprocessing_context="fork" if self.num_workers and on_linux else None,
        )
