"""The batch that every source gives, on the phantom."""

import shutil

import cv2
import numpy as np
import pytest
import torch

from datamodules.batches import to_model_input
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
    batch = next(iter(phantom(folder).train_dataloader()))
    assert batch["image"].shape == (8, 1, 64, 64)
    assert batch["image"].dtype == torch.uint8
    assert batch["lesion_mask"].shape == (8, 1, 64, 64)
    assert batch["lesion_mask"].dtype == torch.float32
    assert batch["lesion_mask"].min() >= 0
    assert batch["lesion_mask"].max() <= 1
    assert batch["has_lesion"].dtype == torch.bool
    for name in ("label", "index", "study", "body_part"):
        assert batch[name].shape == (8,)
        assert batch[name].dtype == torch.int64


def test_on_the_device_the_image_becomes_float_once(folder):
    data = phantom(folder)
    batch = next(iter(data.val_dataloader()))
    pixels = batch["image"].clone()
    batch = data.on_after_batch_transfer(batch, 0)
    assert batch["image"].dtype == torch.float32
    assert torch.equal(batch["image"], to_model_input(pixels))
    again = data.on_after_batch_transfer(dict(batch), 0)
    assert torch.equal(again["image"], batch["image"])
    assert to_model_input(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == pytest.approx(
        [-1.0, 4.0]
    )


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


def test_more_folds_than_patients_is_said(folder):
    with pytest.raises(DataError, match=r"lesions\.folds=13.* of 12 patients"):
        phantom(folder, Lesions(count=12, folds=13))


def test_masks_of_train_only_are_said_to_judge_nothing(folder, caplog):
    data = phantom(folder)
    pixels, data.pixels = data.pixels, None
    pixels.table.loc[data.table["split"] != "train", "lesion_mask"] = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodules.cache.PixelCache", lambda folder: pixels)
        data.setup()
    assert "no map can be judged. Fix: lesions.folds=5" in caplog.text


def test_augmentation_moves_image_and_mask_and_is_the_same_for_any_workers(folder):
    alone = list(phantom(folder).train_dataloader())
    helped = list(phantom(folder, num_workers=2).train_dataloader())
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_second_set_up_reads_the_cache(folder):
    first = phantom(folder)
    written = first.cache_folder.stat().st_mtime_ns
    second = phantom(folder)
    assert second.cache_folder == first.cache_folder
    assert second.cache_folder.stat().st_mtime_ns == written
    assert phantom(folder, seed=0, limit=6).cache_folder != first.cache_folder


def test_class_weights_balance_the_classes(folder):
    data = phantom(folder)
    normal, abnormal = data.class_weights()
    labels = data.table.loc[data.table["split"] == "train", "label"]
    assert normal * (labels == 0).sum() == pytest.approx(abnormal * (labels == 1).sum())
    assert np.where(labels == 1, abnormal, normal).mean() == pytest.approx(1.0)


def test_class_weights_know_of_the_lesions_added_to_each_batch(folder):
    data = phantom(folder, Lesions(per_batch=4))
    normal, abnormal = data.class_weights()
    labels = torch.cat([batch["label"] for batch in data.train_dataloader()])
    share = labels.float().mean().item()
    assert normal * (1 - share) == pytest.approx(abnormal * share, rel=0.1)


def hashes(data):
    return {name: getattr(data, name) for name in ("index_hash", "image_hash", "mask_hash")}


@pytest.mark.parametrize("batch", [0, 3])
def test_a_run_goes_on_with_the_images_a_step_that_it_began_with(folder, batch):
    """Also from an epoch's end: the learning rate counts steps."""
    data = phantom(folder)
    state = {"epoch": 1, "batch": batch, "images_a_step": 8, **hashes(data)}
    data.load_state_dict(state)
    assert (
        len(list(data.train_dataloader())) == len(list(phantom(folder).train_dataloader())) - batch
    )
    with pytest.raises(DataError, match="begun with 16 images a step, here a step takes 8"):
        data.load_state_dict({**state, "images_a_step": 16})


@pytest.mark.parametrize("place", ["plain", "capitals", "linked", "outside", "absolute"])
def test_a_run_does_not_go_on_with_masks_drawn_anew(folder, tmp_path, place):
    """Wherever the masks lie; a copy of the same ones is as good."""
    source = folder / "phantom" / "lesions"
    if not source.is_dir():
        phantom(folder)
    own = shutil.copytree(source, tmp_path / "lesions")
    masks, prefix = own / "masks", "masks/"
    if place in ("linked", "outside", "absolute"):
        masks = masks.rename(tmp_path / "elsewhere")
        prefix = {"linked": prefix, "outside": "../elsewhere/", "absolute": f"{masks}/"}[place]
    if place == "linked":
        (own / "masks").symlink_to(masks)
    csv = (own / "lesions.csv").read_text().replace(",masks/", f",{prefix}")
    path = sorted(masks.rglob("*.png"))[0]
    if place == "capitals":
        path, old = path.with_suffix(".PNG"), path
        old.rename(path)
        csv = csv.replace(str(old.relative_to(masks)), str(path.relative_to(masks)))
    (own / "lesions.csv").write_text(csv)
    before = phantom(folder)
    state = {"epoch": 1, "batch": 0, "images_a_step": 8, **hashes(before)}
    phantom(folder, Lesions(path=str(own))).load_state_dict(state)
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(path), 255 - mask)
    after = phantom(folder, Lesions(path=str(own)))
    assert after.index_hash == before.index_hash
    with pytest.raises(DataError, match=r"lesions: the lesion masks changed since this run"):
        after.load_state_dict(state)


@pytest.mark.parametrize(("what", "where"), [("images", "MURA-v1.1"), ("lesion masks", "lesions")])
def test_a_run_does_not_go_on_with_files_replaced_in_place(folder, tmp_path, what, where):
    """Written anew with the same pixels they are the same."""
    before = phantom(folder)
    shutil.copytree(before.root, tmp_path / "phantom")
    state = {"epoch": 1, "batch": 0, "images_a_step": 8, **hashes(before)}
    path = sorted((tmp_path / "phantom" / where).rglob("*.png"))[0]
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    for drawn, refused in ((pixels, False), (255 - pixels, True)):
        cv2.imwrite(str(path), drawn, [cv2.IMWRITE_PNG_COMPRESSION, 0])
        after = phantom(tmp_path)
        assert after.index_hash == before.index_hash
        if refused:
            with pytest.raises(DataError, match=rf"the {what} changed since this run was trained"):
                after.load_state_dict(state)
        else:
            after.load_state_dict(state)


def test_an_opened_cache_is_not_built_anew_beneath_a_training(folder, tmp_path):
    """Lightning calls prepare_data once more."""
    shutil.copytree(phantom(folder).root, tmp_path / "phantom")
    data = phantom(tmp_path)
    written = data.cache_folder.stat().st_mtime_ns
    next(data.root.rglob("image1.png")).touch()
    data.prepare_data()
    assert data.cache_folder.stat().st_mtime_ns == written
    phantom(tmp_path)
    assert data.cache_folder.stat().st_mtime_ns != written


def test_says_when_the_root_is_missing():
    with pytest.raises(DataError, match=r"data\.name=mura needs data\.root"):
        MuraDataModule(Data())
    assert PhantomDataModule(Data(seed=3)).root.name == "phantom-2000-seed3"
