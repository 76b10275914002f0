"""A folder of anybody's maps is judged as a run's own are, and refused with what to do."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from experiments import evaluate, train
from experiments.build import build_data, open_run
from experiments.config import load_config
from experiments.evaluation.folder import masked_rows
from tests.runs import run_folder, tiny_words


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Words of ``data.*`` for 80 phantom images."""
    words = tiny_words(tmp_path_factory.mktemp("tiny"))
    return [word for word in words if word.startswith("data.")]


@pytest.fixture(scope="module")
def data(tiny):
    data = build_data(load_config("stage1", tiny))
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def perfect(data, tmp_path_factory):
    """Maps that are the lesion masks themselves, as 8-bit PNG; dark on all other images."""
    folder = tmp_path_factory.mktemp("perfect") / "maps"
    for row in [*data.rows_of("val"), *data.rows_of("test")]:
        mask = data.original_mask(row)
        dark = np.zeros(data.original_size(row), np.uint8)
        path = folder / f"{data.table['path'][row]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), dark if mask is None else mask)
    return folder


@pytest.fixture
def maps(perfect, tmp_path):
    """A copy of them, to change."""
    shutil.copytree(perfect, tmp_path / "maps")
    return tmp_path / "maps"


def judge(folder, tiny, *words):
    """Run the command; the status."""
    return evaluate.main(["--maps", str(folder), *tiny, *words])


def summary(folder, split="test"):
    text = (folder.with_name(f"{folder.name}.evaluation") / split / "summary.json").read_text()
    return json.loads(text)


def file_of(folder, data, row):
    return folder / f"{data.table['path'][row]}.png"


def test_the_masks_themselves_are_perfect_maps(maps, tiny, data, capsys):
    assert judge(maps, tiny) == 0
    found = summary(maps)
    for name in ("hit", "hit_near", "iou", "dice", "iou_otsu", "iou_bound", "energy", "pixel_ap"):
        assert found[f"map/{name}"] == 1, name
    assert found["map/shown_normal"] == 0
    assert found["images"] == len(data.rows_of("test"))
    assert found["lesions"] == len(masked_rows(data, "test"))
    assert found["map/hit/large"] in (1, None)
    assert set(found["intervals"]["map/iou"]) == {1}
    target = maps.with_name("maps.evaluation") / "test"
    table = pd.read_csv(target / "images.csv")
    assert table["map_iou"].dropna().eq(1).all()
    with np.load(target / "maps.npz") as rows:
        assert rows["map/pixels"].shape == (len(table), 256)
    told = capsys.readouterr().out
    assert f"{found['lesions']} lesion masks" in told
    assert "MaxBoxAccV2 (an upper bound)" in told
    assert f"written  {target}" in told
    assert not [path for path in maps.rglob("*") if path.is_file() and path.suffix != ".png"]


def test_thresholds_come_from_val(maps, tiny, data):
    """Val's maps claim at 0.8 what they should, test's at 0.4: at val's threshold nothing is."""
    for split, value in (("val", 204), ("test", 102)):
        for row in masked_rows(data, split):
            path = file_of(maps, data, row)
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(path), np.where(mask > 0, value, value // 2).astype(np.uint8))
    assert judge(maps, tiny) == 0
    found = summary(maps)
    assert 0.4 < found["fitted"]["maps"]["map"]["threshold"] <= 0.8
    assert found["map/iou"] == 0
    assert found["map/iou_bound"] == found["map/iou_otsu"] == 1
    assert judge(maps, tiny, "--split", "val") == 0
    assert summary(maps, "val")["map/iou"] == 1


def test_without_maps_of_val_nothing_is_tuned(maps, tiny, data, capsys):
    for row in data.rows_of("val"):
        file_of(maps, data, row).unlink()
    assert judge(maps, tiny) == 0
    assert "holds no map of val: no threshold can be tuned" in capsys.readouterr().out
    found = summary(maps)
    for name in ("iou", "dice", "shown_normal", "shown_abnormal"):
        assert found[f"map/{name}"] is None, name
    for name in ("hit", "pixel_ap", "iou_otsu", "iou_bound", "energy"):
        assert found[f"map/{name}"] == 1, name
    assert found["fitted"]["maps"]["map"]["threshold"] is None


def test_normal_images_may_all_lack_a_map(maps, tiny, data, capsys):
    normal = [row for row in data.rows_of("test") if data.table["label"][row] == 0]
    for row in normal:
        file_of(maps, data, row).unlink()
    assert judge(maps, tiny) == 0
    assert f"no map of the {len(normal)} normal images in test" in capsys.readouterr().out
    found = summary(maps)
    assert found["map/shown_normal"] is None
    assert found["map/shown_abnormal"] == found["map/hit"] == 1
    assert found["images"] == len(data.rows_of("test")) - len(normal)


def test_maps_of_one_value_miss_and_are_counted(maps, tiny, data, capsys):
    for row in masked_rows(data, "test"):
        flat = np.full(data.original_size(row), 0.5, np.float32)
        file_of(maps, data, row).unlink()
        np.save(file_of(maps, data, row).with_suffix(".npy"), flat)
    assert judge(maps, tiny) == 0
    count, missed = len(data.rows_of("test")), len(masked_rows(data, "test"))
    said = f"{count} of {count} maps are of one value, which points nowhere: {missed} misses"
    assert said in capsys.readouterr().out
    found = summary(maps)
    assert found["map/hit"] == found["map/box_bound"] == 0


def test_maps_of_train_images_are_said_not_to_be_read(maps, tiny, data, capsys):
    row = data.rows_of("train")[0]
    file_of(maps, data, row).parent.mkdir(parents=True, exist_ok=True)
    file_of(maps, data, row).write_bytes(b"no map")
    assert judge(maps, tiny) == 0
    assert "1 maps of images that are in neither val nor test were not" in capsys.readouterr().out
    assert judge(maps, tiny, "--split", "val") == 0
    assert "maps of images that are not in val were not read" in capsys.readouterr().out


def test_results_lie_where_they_are_wanted(maps, tiny, tmp_path, capsys):
    assert judge(maps, tiny, "--out", str(maps / "results")) == 2
    assert "lies in the folder of maps" in capsys.readouterr().err
    assert judge(maps, tiny, "--out", "/sys/results") == 2
    assert "/sys/results/test cannot be written" in capsys.readouterr().err
    assert judge(maps, tiny, "--out", str(tmp_path / "results")) == 0
    assert (tmp_path / "results" / "test" / "summary.json").is_file()
    assert not maps.with_name("maps.evaluation").exists()
    (tmp_path / "results" / "test" / "audit.json").write_text("{}")
    (tmp_path / "results" / "test" / "maps.npz").unlink()
    (tmp_path / "results" / "test" / "maps.npz").mkdir()
    capsys.readouterr()
    assert judge(maps, tiny, "--out", str(tmp_path / "results")) == 2
    said = capsys.readouterr()
    assert "hit rate" in said.out
    assert "written" not in said.out
    assert "results/test cannot be written" in said.err
    # An audit is of the figures that it was written beside.
    assert not (tmp_path / "results" / "test" / "audit.json").exists()


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_faulty_map_is_told_before_anything_is_written(maps, tiny, data, capsys, split):
    row = masked_rows(data, split)[-1]
    path = file_of(maps, data, row)
    path.write_bytes(path.read_bytes()[:-20])
    assert judge(maps, tiny) == 2
    assert f"error: {path}: damaged image (the PNG is cut short)" in capsys.readouterr().err
    assert not maps.with_name("maps.evaluation").exists()


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_missing_map_is_told(maps, tiny, data, capsys, split):
    rows = masked_rows(data, split)
    file_of(maps, data, rows[0]).unlink()
    assert judge(maps, tiny) == 2
    said = capsys.readouterr().err
    assert f"no map of 1 of the {len(rows)} images with a lesion mask in {split}: " in said
    assert data.table["path"][rows[0]] in said


def test_methods_are_judged_side_by_side_on_the_same_images(maps, tiny, data, capsys):
    for path in sorted(maps.rglob("*.png")):
        shutil.copy(path, path.with_name(path.name.removesuffix(".png") + ".dark.png"))
        path.rename(path.with_name(path.name.removesuffix(".png") + ".mine.png"))
    for path in maps.rglob("*.dark.png"):
        cv2.imwrite(str(path), np.zeros_like(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))
    assert judge(maps, tiny) == 0
    found = summary(maps)
    assert (found["mine/hit"], found["dark/hit"]) == (1, 0)
    for row in data.rows_of("test"):
        if data.table["label"][row] == 0:
            (maps / f"{data.table['path'][row]}.dark.png").unlink()
    assert judge(maps, tiny) == 2
    assert "methods are compared on the same images" in capsys.readouterr().err


def test_what_cannot_be_asked_is_said(maps, tiny, tmp_path, capsys):
    for words, said in (
        (["--split", "left_out"], "--maps goes with --split test or val"),
        ([str(tmp_path)], "--maps judges a folder of maps, not runs"),
        (["--compare"], "--compare is of runs"),
        (["--audit-images", "9"], "--audit and --audit-images ask a network"),
        (["--no-baselines"], "no baseline is judged with --maps; leave it out"),
        (["data.nmae=phantom"], "data.nmae"),
    ):
        assert judge(maps, tiny, *words) == 2
        assert said in capsys.readouterr().err
    assert judge(tmp_path / "none", tiny) == 2
    assert f"--maps {tmp_path / 'none'} does not exist" in capsys.readouterr().err
    root = tiny[0].removeprefix("data.root=")
    assert judge(root, tiny) == 2
    assert "is data.root, whose images are no maps" in capsys.readouterr().err
    assert evaluate.main([str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "--out says where a comparison is written, or what --maps" in capsys.readouterr().err


def test_where_there_are_no_lesion_masks_nothing_is_judged(maps, tiny, data, tmp_path, capsys):
    """The phantom's tree as MURA has no masks; then only those of test images."""
    words = [*(word for word in tiny if "count" not in word), "data.name=mura"]
    assert judge(maps, words) == 2
    assert "no image in test has a lesion mask: there is nothing to" in capsys.readouterr().err
    table = data.table[(data.table["split"] == "test") & (data.table["lesion_mask"] != "")]
    masks = tmp_path / "lesions"
    masks.mkdir()
    for number, mask in enumerate(table["lesion_mask"]):
        shutil.copy(mask, masks / f"{number}.png")
    names = [f"{number}.png" for number in range(len(table))]
    rows = pd.DataFrame({"image": table["path"], "mask": names})
    rows.to_csv(masks / "lesions.csv", index=False)
    assert judge(maps, [*words, f"lesions.path={masks}"]) == 0
    assert "no lesion mask in val: no threshold can be tuned" in capsys.readouterr().out
    found = summary(maps)
    assert (found["map/hit"], found["map/iou"], found["lesions"]) == (1, None, len(table))


@pytest.mark.slow
def test_a_runs_own_maps_get_its_own_figures(tiny, tmp_path):
    words = [*tiny, "trainer.max_epochs=1", "trainer.accelerator=cpu", "logger.wandb=off"]
    assert train.main(["stage1", f"run.root={tmp_path / 'runs'}", *words]) == 0
    run = run_folder(tmp_path / "runs")
    assert evaluate.main([str(run)]) == 0
    data = build_data(load_config(str(run / "config.yaml"), []))
    data.prepare_data()
    data.setup()
    module = open_run(run).module
    for split in ("val", "test"):
        for batch in data.evaluation_dataloader(split):
            with torch.inference_mode():
                _, maps = module.explain(data.on_after_batch_transfer(batch, 0)["image"])
            for place, row in enumerate(batch["index"].tolist()):
                for method, squares in maps.items():
                    shown = data.to_original(squares[place, 0].numpy(), row).clip(0, 1)
                    name = f"{data.table['path'][row]}.{method}"
                    for kind in ("npy", "png"):
                        (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
                    np.save(tmp_path / "npy" / f"{name}.npy", shown)
                    grey = np.rint(shown * 65535).astype(np.uint16)
                    cv2.imwrite(str(tmp_path / "png" / f"{name}.png"), grey)
    own = json.loads((run / "evaluation" / "test" / "summary.json").read_text())
    columns = pd.read_csv(run / "evaluation" / "test" / "images.csv").set_index("path")
    for kind, tolerance in (("npy", 1e-6), ("png", 2e-3)):
        assert judge(tmp_path / kind, tiny) == 0
        found = summary(tmp_path / kind)
        figures = [name for name in found if name.startswith(("cam/", "pcam/"))]
        assert len(figures) > 20
        for name in figures:
            assert found[name] == pytest.approx(own[name], abs=tolerance), name
            assert found["intervals"][name] == pytest.approx(own["intervals"][name], abs=tolerance)
        table = pd.read_csv(tmp_path / f"{kind}.evaluation" / "test" / "images.csv")
        for name in ("cam_hit", "pcam_hit", "pcam_peak_x", "pcam_peak_y"):
            assert table[name].equals(columns.loc[table["path"], name].reset_index(drop=True)), name
