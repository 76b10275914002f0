"""A folder of anybody's maps is judged as a run's own are, and refused with what to do."""

from __future__ import annotations

import json
import re
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from experiments import evaluate
from experiments.build import build_data, open_run
from experiments.config import load_config
from tests.runs import tiny_words


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
        file_of(folder, data, row).parent.mkdir(parents=True, exist_ok=True)
        dark = np.zeros(data.original_size(row), np.uint8)
        cv2.imwrite(str(file_of(folder, data, row)), dark if mask is None else mask)
    return folder


@pytest.fixture
def maps(perfect, tmp_path):
    """A copy of them, to change."""
    return shutil.copytree(perfect, tmp_path / "maps")


def file_of(folder, data, row):
    return folder / f"{data.table['path'][row]}.mine.png"


def masked(data, split):
    return [row for row in data.rows_of(split) if data.table["lesion_mask"][row]]


def judge(folder, tiny, *words):
    """Run the command; the status."""
    return evaluate.main(["--maps", str(folder), *tiny, *words])


def summary(folder, split="test"):
    text = (folder.with_name(f"{folder.name}.evaluation") / split / "summary.json").read_text()
    return json.loads(text)


@pytest.mark.parametrize("split", ["test", "val"])
def test_perfect_maps_get_perfect_figures(perfect, tiny, data, capsys, split):
    assert judge(perfect, tiny, "--split", split) == 0
    found = summary(perfect, split)
    ones = ("hit", "hit_near", "pixel_ap", "iou", "dice", "iou_otsu", "iou_bound", "energy")
    for name in (*ones, "box_bound", "shown_abnormal"):
        assert found[f"mine/{name}"] == 1, name
    assert found["mine/shown_normal"] == 0
    assert (found["images"], found["lesions"]) == (
        len(data.rows_of(split)),
        len(masked(data, split)),
    )
    said = capsys.readouterr().out
    assert re.search(r"    hit rate +1\.00", said)
    assert max(len(line) for line in said.splitlines() if str(perfect) not in line) <= 100


def test_maps_of_test_alone_have_no_threshold(maps, tiny, data, capsys):
    for row in data.rows_of("val"):
        file_of(maps, data, row).unlink()
    assert judge(maps, tiny) == 0
    assert "holds no map of val: no threshold can be tuned" in capsys.readouterr().out
    found = summary(maps)
    for name in ("iou", "dice", "shown_normal", "shown_abnormal"):
        assert found[f"mine/{name}"] is None, name
    for name in ("hit", "pixel_ap", "iou_otsu", "iou_bound", "energy"):
        assert found[f"mine/{name}"] == 1, name
    assert found["fitted"]["maps"]["mine"]["threshold"] is None


def test_what_is_special_about_maps_is_noted(maps, tiny, data, capsys):
    normal = [row for row in data.rows_of("test") if data.table["label"][row] == 0]
    for row in normal:
        file_of(maps, data, row).unlink()
    for row in masked(data, "test"):
        cv2.imwrite(str(file_of(maps, data, row)), np.full(data.original_size(row), 99, np.uint8))
    row = data.rows_of("train")[0]
    file_of(maps, data, row).parent.mkdir(parents=True, exist_ok=True)
    file_of(maps, data, row).write_bytes(b"no map")
    assert judge(maps, tiny) == 0
    said = capsys.readouterr().out
    count = len(masked(data, "test"))
    assert f"no map of the {len(normal)} normal images in test: what is shown there is null" in said
    assert f"{count} maps of mine of images with a lesion are constant: they miss" in said
    assert "1 maps of images that are in neither val nor test were not read" in said
    found = summary(maps)
    assert (found["mine/shown_normal"], found["mine/hit"], found["mine/box_bound"]) == (None, 0, 0)
    assert found["images"] == len(data.rows_of("test")) - len(normal)


def test_results_lie_where_they_are_wanted(maps, tiny, tmp_path, capsys):
    assert judge(maps, tiny, "--out", str(maps / "results")) == 2
    assert "lies in the folder of maps" in capsys.readouterr().err
    results = tmp_path / "results" / "test"
    (results / "maps.npz").mkdir(parents=True)
    (results / "audit.json").write_text("{}")
    assert judge(maps, tiny, "--out", str(results.parent)) == 2
    said = capsys.readouterr()
    assert "hit rate" in said.out
    assert "written" not in said.out
    assert "results/test cannot be written" in said.err
    assert not (results / "audit.json").exists()  # it was of the figures beside it
    (results / "maps.npz").rmdir()
    assert judge(maps, tiny, "--out", str(results.parent)) == 0
    assert (results / "summary.json").is_file()
    assert not maps.with_name("maps.evaluation").exists()


@pytest.mark.parametrize("split", ["test", "val"])
def test_faulty_and_missing_maps_are_told_and_nothing_is_written(maps, tiny, data, capsys, split):
    paths = [file_of(maps, data, row) for row in masked(data, split)[-4:]]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-20])
    assert judge(maps, tiny) == 2
    said = capsys.readouterr().err
    assert f" {split} images cannot be used:\n  {paths[0]}: damaged image" in said
    assert said.startswith("error: maps of 4 of ")
    assert said.endswith("\n  and 1 more\n")
    paths[-1].unlink()
    assert judge(maps, tiny) == 2
    assert (
        f"images with a lesion mask in {split}: {data.table['path'][masked(data, split)[-1]]}"
        in (capsys.readouterr().err)
    )
    assert not maps.with_name("maps.evaluation").exists()


def test_where_there_are_no_lesion_masks_nothing_is_judged(maps, tiny, data, tmp_path, capsys):
    """The phantom's tree as MURA has no masks; then only those of test images."""
    words = [*(word for word in tiny if "count" not in word), "data.name=mura"]
    assert judge(maps, words) == 2
    assert "no image in test has a lesion mask. Fix: lesions.path" in capsys.readouterr().err
    table = data.table.iloc[masked(data, "test")]
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
    assert (found["mine/hit"], found["mine/iou"], found["lesions"]) == (1, None, len(table))


@pytest.mark.slow
def test_a_runs_own_maps_get_its_own_figures(trained, tmp_path):
    run = trained.copy("stage1", tmp_path)
    assert evaluate.main([str(run)]) == 0
    opened = open_run(run)
    data = opened.data
    for split in ("val", "test"):
        for batch in data.evaluation_dataloader(split):
            with torch.inference_mode():
                _, maps = opened.module.explain(data.on_after_batch_transfer(batch, 0)["image"])
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
    words = [word for word in trained.words if word.startswith("data.")]
    for kind, tolerance in (("npy", 1e-6), ("png", 2e-3)):
        assert judge(tmp_path / kind, words) == 0
        found = summary(tmp_path / kind)
        figures = [name for name in found if name.startswith(("cam/", "pcam/"))]
        assert len(figures) > 20
        for name in figures:
            assert found[name] == pytest.approx(own[name], abs=tolerance), name
            assert found["intervals"][name] == pytest.approx(own["intervals"][name], abs=tolerance)
        table = pd.read_csv(tmp_path / f"{kind}.evaluation" / "test" / "images.csv")
        for name in ("cam_hit", "pcam_hit", "pcam_peak_x", "pcam_peak_y"):
            assert table[name].equals(columns.loc[table["path"], name].reset_index(drop=True)), name
