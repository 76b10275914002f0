"""Batches: what every source gives, on the phantom, in an order of (seed, epoch) alone."""

import os
import shutil
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from datamodules.batches import ADDED, APART, EvaluationBatches, TrainBatches
from datamodules.index import DataError
from datamodules.mura import MuraDataModule
from datamodules.options import Augmentation, Data, Lesions
from datamodules.phantom.source import PhantomDataModule


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("radiographs")


def phantom(folder, lesions=None, **options):
    options = {"count": 80, "image_size": 64, "batch_size": 8, **options}
    data = PhantomDataModule(
        Data(root=str(folder / "phantom"), cache_dir=str(folder / "cache"), **options),
        lesions,
        Augmentation(),
    )
    data.prepare_data()
    data.setup()
    return data


def test_the_batch_is_as_the_design_says(folder):
    data = phantom(folder)
    batch = next(iter(data.train_dataloader()))
    assert {name: (tuple(each.shape), each.dtype) for name, each in batch.items()} == {
        "image": ((8, 1, 64, 64), torch.uint8),
        "lesion_mask": ((8, 1, 64, 64), torch.float32),
        "has_lesion": ((8,), torch.bool),
        **dict.fromkeys(("label", "index", "study", "body_part"), ((8,), torch.int64)),
    }
    assert 0 <= batch["lesion_mask"].min() <= batch["lesion_mask"].max() <= 1
    pixels = batch["image"].clone()
    for _ in range(2):  # on the device the image becomes float, black at -1, white at 4, once
        batch = data.on_after_batch_transfer(batch, 0)
        assert torch.allclose(batch["image"], pixels / 51.0 - 1)


def test_loaders_of_later_epochs_are_whole_and_each_process_sees_an_image_of_val(
    folder, monkeypatch
):
    data = phantom(folder)
    data._resume_at = (1, 2)  # as a checkpoint says
    starts = []
    for _ in range(2):
        data.train_dataloader()
        starts.append(data.sampler.start)
    assert starts == [2, 0]
    monkeypatch.setattr(PhantomDataModule, "_ranks", (0, 99))
    with pytest.raises(DataError, match="images, too few for 99 processes"):
        data.val_dataloader()


def test_masks_of_train_are_limited_and_all_of_val_and_test_judge(folder):
    data = phantom(folder, Lesions(count=5))
    shown = {
        split: sum(int(b["has_lesion"].sum()) for b in data.evaluation_dataloader(split))
        for split in ("train", "val", "test")
    }
    abnormal = data.table.groupby("split")["label"].sum()
    assert shown == {"train": 5, "val": abnormal["val"], "test": abnormal["test"]}
    for batch in data.evaluation_dataloader("train"):
        hidden = ~batch["has_lesion"]
        assert (batch["lesion_mask"][hidden] == 0).all()
        assert (batch["lesion_mask"][~hidden].amax((1, 2, 3)) > 0).all()


def test_folds_judge_every_mask_once_and_keep_patients_apart(folder):
    whole = phantom(folder, Lesions(count=12))
    judged = []
    for fold in range(3):
        data = phantom(folder, Lesions(count=12, folds=3, fold=fold))
        left_out = data.table[data.table["split"] == "left_out"]
        trained = data.table[data.table["split"] == "train"]
        assert set(left_out["patient"]).isdisjoint(trained["patient"])
        assert set(left_out.index) | set(trained.index) == set(whole.rows_of("train"))
        seen = set(data.lesion_rows)
        assert seen == set(whole.lesion_rows) - set(left_out.index)
        judged += [row for row in whole.lesion_rows if row not in seen]
        shown = sum(int(b["has_lesion"].sum()) for b in data.evaluation_dataloader("left_out"))
        assert shown == (left_out["label"] == 1).sum() > 0
        assert data.index_hash != whole.index_hash
    assert sorted(judged) == sorted(whole.lesion_rows)


def test_masks_of_train_only_judge_nothing_which_is_reported(folder, caplog, monkeypatch):
    pixels = phantom(folder).pixels
    pixels.table.loc[pixels.table["split"] != "train", "lesion_mask"] = ""
    monkeypatch.setattr("datamodules.cache.PixelCache", lambda folder: pixels)
    phantom(folder)
    assert "no map can be judged. Fix: lesions.folds=5" in caplog.text


def test_the_cache_is_of_what_shapes_it(folder):
    first = phantom(folder)
    changes = ({}, {"limit": 6}, {"crop": "content"}, {"image_size": 32}, {"split": "image"})
    root = {"count": 80, "root": str(first.root), "image_size": 64}
    names = [PhantomDataModule(Data(**root | other)).cache_folder.name for other in changes]
    assert (names[0], len(set(names))) == (first.cache_folder.name, 5)


@pytest.mark.parametrize("per_batch", [0, 4])
def test_class_weights_balance_the_classes_of_the_batches(folder, per_batch):
    data = phantom(folder, Lesions(per_batch=per_batch))
    normal, abnormal = data.class_weights()
    labels = torch.tensor(data.table.loc[data.rows_of("train"), "label"].to_numpy())
    if per_batch:  # else the last batch, left out, shifts the share
        labels = torch.cat([batch["label"] for batch in data.train_dataloader()])
    share = labels.float().mean().item()
    assert normal * (1 - share) == pytest.approx(abnormal * share, rel=0.1 if per_batch else 1e-6)


def state_of(data):
    hashes = {name: getattr(data, name) for name in ("index_hash", "image_hash", "mask_hash")}
    return {"epoch": 1, "batch": 0, "images_a_step": 8, **hashes}


def test_a_run_goes_on_with_the_images_a_step_that_it_began_with(folder):
    data = phantom(folder)
    whole = len(list(data.train_dataloader()))
    data.load_state_dict(state_of(data) | {"batch": 3})
    assert len(list(data.train_dataloader())) == whole - 3
    with pytest.raises(DataError, match="begun with 16 images a step, here a step takes 8"):
        data.load_state_dict(state_of(data) | {"images_a_step": 16})


def test_a_run_does_not_go_on_with_files_replaced_in_place(folder, tmp_path):
    """Written anew with the same pixels they are the same."""
    before = phantom(folder)
    shutil.copytree(before.root, tmp_path / "phantom")
    for place, changed in (("MURA-v1.1", "images"), ("lesions/masks", "lesion masks")):
        path = sorted((tmp_path / "phantom" / place).rglob("*.png"))[0]
        pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 0])
        same = phantom(tmp_path)
        same.load_state_dict(state_of(before))
        cv2.imwrite(str(path), pixels[::-1])
        written = same.cache_folder.stat().st_mtime_ns
        same.prepare_data()  # as Lightning does once more: not beneath a training
        assert same.cache_folder.stat().st_mtime_ns == written
        with pytest.raises(DataError, match=f"the {changed} changed since this run was trained"):
            phantom(tmp_path).load_state_dict(state_of(before))
        cv2.imwrite(str(path), pixels)


def test_says_when_the_root_is_missing():
    with pytest.raises(DataError, match=r"data\.name=mura needs data\.root"):
        MuraDataModule(Data())
    assert PhantomDataModule(Data(seed=3)).root.name == "phantom-2000-seed3"


ROWS = np.arange(100, 203)


def collect(sampler):
    return [rows.tolist() for _, rows in sampler]


def test_an_epoch_draws_every_image_at_most_once_and_repeats_itself():
    first = TrainBatches(ROWS, 10)
    batches = collect(first)
    drawn = {row for batch in batches for row in batch}
    assert (len(batches), len(drawn)) == (10, 100)
    assert drawn <= set(ROWS.tolist())
    assert collect(TrainBatches(ROWS, 10)) == batches != collect(TrainBatches(ROWS, 10, seed=1))
    first.set_epoch(1)
    assert collect(first) != batches


def test_resumes_with_the_next_batch_and_all_lesions_are_used_alike():
    lesions = {"lesion_rows": ROWS[:7], "lesions_per_batch": 3}
    whole, resumed = (TrainBatches(ROWS, 10, **lesions) for _ in range(2))
    turns = []
    for epoch in range(6):
        whole.set_epoch(epoch)
        epoch_batches = collect(whole)
        turns += [row for batch in epoch_batches for row in batch[:3]]
        if epoch == 4:
            resumed.resume_at(4, 6)
            assert len(resumed) == len(epoch_batches)
            assert collect(resumed) == epoch_batches[6:]
    resumed.set_epoch(5)
    assert collect(resumed) == epoch_batches
    for start in range(0, len(turns) - 6, 7):
        assert sorted(turns[start : start + 7]) == ROWS[:7].tolist()


def test_images_that_are_added_are_augmented_anew_each_time():
    lesions = {"lesion_rows": ROWS[:7], "lesions_per_batch": 3}
    alike, apart = (list(TrainBatches(ROWS, 10, apart=value, **lesions)) for value in (False, True))
    for batches, first in ((alike, ADDED), (apart, APART)):
        assert {draw for draws, _ in batches for draw in draws[3:]} == {0}
        drawn = [pair for draws, rows in batches for pair in zip(draws[:3], rows[:3], strict=True)]
        assert len(set(drawn)) == len(drawn) == 3 * len(batches)
        assert all(first <= draw < 2 * first for draw, _ in drawn)
    for (_, one), (_, other) in zip(alike, apart, strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("batch_size", [5, 25, 40])
def test_evaluation_sees_each_row_once_and_gives_every_rank_as_many_batches(batch_size):
    """103 rows on 4 ranks: 26, 26, 26 and 25; with 25 a batch the last rank's second is empty."""
    ranks = [EvaluationBatches(ROWS, batch_size, (rank, 4)) for rank in range(4)]
    assert len({len(sampler) for sampler in ranks}) == 1
    assert [len(collect(sampler)) for sampler in ranks] == [len(sampler) for sampler in ranks]
    seen = [row for sampler in ranks for _, rows in sampler for row in rows]
    assert sorted(seen) == ROWS.tolist()


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"holds 103 images.*smaller data.batch_size"):
        TrainBatches(ROWS, 104)
    with pytest.raises(ValueError, match="no training image has a lesion mask"):
        TrainBatches(ROWS, 10, lesions_per_batch=2)


# A loader process of a parent that ends without ending it.
PARENT = """
import multiprocessing, os, time
from datamodules.batches import start_worker

def work():
    start_worker(0)
    theirs.send(os.getpid())
    theirs.send(theirs.recv() + 1)
    time.sleep(1000)

ours, theirs = multiprocessing.Pipe()
multiprocessing.get_context("fork").Process(target=work, daemon=True).start()
theirs.close()
print(ours.recv(), flush=True)
ours.send(int(input()))
print(ours.recv())
"""


def test_workers_outlive_a_signal_to_the_job_and_do_not_keep_their_parent_from_ending():
    """multiprocessing gives one up by SIGTERM, which it ignores, and would wait for it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", PARENT], **pipes, text=True)
    worker = int(process.stdout.readline())
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker, number)
    assert process.communicate("6\n", timeout=60)[0] == "7\n"
    assert process.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
