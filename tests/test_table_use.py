"""A table of images in use: the same as a built-in source to the bit, and in every command."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import torch

from datamodules.fracatlas import FracAtlasDataModule
from datamodules.options import Augmentation, Data, Lesions
from datamodules.phantom.source import PhantomDataModule
from datamodules.table import TableDataModule
from experiments import doctor, evaluate, import_lesions, predict, report, select_lesions, train
from tests.docs_sandbox import HOUSE, read_blocks
from tests.films import MASK, change, module, opened, write_png
from tests.real import real_data


def same_data(one, other):
    """Table rows, pixels, masks and augmented batches of two opened sources, to the bit."""
    pd.testing.assert_frame_equal(one.table, other.table)
    for name in ("image_hash", "mask_hash", "index_hash", "judges_hash"):
        assert getattr(one, name) == getattr(other, name)
    np.testing.assert_array_equal(one.lesion_rows, other.lesion_rows)
    for load in (lambda data: data.train_dataloader(), lambda data: data.val_dataloader()):
        count = 0
        for a, b in zip(load(one), load(other), strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)
            count += 1
        assert count


def as_table(data, csv):
    """The opened index of a source as a table of its root."""
    root = data.root.resolve()
    masks = [mask and str(root / mask) for mask in data.table["lesion_mask"]]
    data.table.assign(mask=masks).drop(columns="lesion_mask").to_csv(csv, index=False)
    return str(csv)


def test_the_phantom_as_a_table_is_the_phantom(tmp_path):
    options = {"count": 60, "image_size": 64, "batch_size": 8, "num_workers": 0}
    options |= {"root": str(tmp_path / "phantom"), "cache_dir": str(tmp_path / "cache")}
    lesions = Lesions(per_batch=2)
    source = opened(PhantomDataModule(Data(**options), lesions, Augmentation()))
    table = as_table(source, tmp_path / "t.csv")
    ours = TableDataModule(Data("table", table=table, **options), lesions, Augmentation())
    same_data(source, opened(ours))


def test_fracatlas_as_a_table_is_fracatlas(tmp_path):
    root = real_data("fracatlas_fixture")
    options = {"root": str(root), "cache_dir": str(tmp_path / "cache"), "image_size": 64}
    options |= {"batch_size": 8, "num_workers": 0}
    lesions = Lesions(per_batch=2)
    source = opened(FracAtlasDataModule(Data("fracatlas", **options), lesions, Augmentation()))
    table = as_table(source, tmp_path / "t.csv")
    own = {"crop": "content", "contrast": "stretch", "unreadable": "skip"}
    ours = TableDataModule(Data("table", table=table, **options, **own), lesions, Augmentation())
    same_data(source, opened(ours))


def test_grazpedwri_is_read_as_the_docs_say(tmp_path, monkeypatch):
    (tmp_path / "images").symlink_to(real_data("grazpedwri_sample"))
    names = ["0003_0662359226_01_WRI-R1_M011", "3799_0949300875_03_WRI-L1_M010"]
    names.append("5791_0288377040_02_WRI-R1_F009")
    rows = [f"{names[0]},0003,1,R,1,", f"{names[1]},3799,3,L,,1", f"{names[2]},5791,2,R,1,"]
    header = "filestem,patient_id,study_number,laterality,fracture_visible,metal"
    (tmp_path / "dataset.csv").write_text("\n".join([header, *rows]))
    page = (HOUSE / "docs" / "your-data.md").read_text()
    (script,) = [text for language, text in read_blocks(page) if language == "python"]
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    read = module(tmp_path, table="grazpedwri.csv").read()
    assert read["path"].tolist() == [f"images/{name}.png" for name in names]
    columns = ["label", "patient", "study", "body_part", "hardware"]
    wanted = [[1, "0003", "1", "wrist", 0], [0, "3799", "3", "wrist", 1]]
    wanted.append([1, "5791", "2", "wrist", 0])
    assert read[columns].to_numpy().tolist() == wanted


def test_the_doctor_shows_the_first_rows_as_understood(films, tmp_path, capsys):
    words = ["data.name=table", f"data.root={films}", f"run.root={tmp_path / 'runs'}"]
    assert doctor.main(words) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "table.csv: 20 images, 10 abnormal, of 10 patients, 10 lesion masks; hand" in output
    assert "row 2 p0/0.png: normal, patient 1, hand, train OK" in output
    assert "row 3 p0/1.png: abnormal, patient 1, hand, train, mask masks/1.png OK row 4" in output
    assert "row 5" not in output
    assert "Doe" not in output
    change(films, "p0/1.png,1", "p0/1.png,2")
    assert doctor.main(words) == 2
    assert "row 3: p0/1.png has an unknown label" in " ".join(capsys.readouterr().out.split())


def test_all_that_works_for_a_source_works_for_a_table(folders, tmp_path, capsys):
    """From training to import; what stands in for patients is said at each end."""
    (folders / "masks").rename(tmp_path / "later")
    words = ["data.name=table", f"data.root={folders}", "data.patients=folder"]
    words += ["data.image_size=32", "data.batch_size=4", "data.num_workers=0", "data.crop=content"]
    words += ["data.contrast=clahe", "model.width=0.25", "trainer.max_epochs=1"]
    words += ["trainer.accelerator=cpu", "logger.wandb=off", f"run.root={tmp_path / 'runs'}"]
    assert train.main(["stage1", *words]) == 0
    assert "folders stand in for them" in capsys.readouterr().out
    run = tmp_path / "runs" / "table" / "stage1" / "seed0"
    assert evaluate.main([str(run), "--no-baselines"]) == 0
    assert "folders stand in for them" in capsys.readouterr().out
    assert report.main([str(run), "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "folders stand in for patients" in page
    assert "Patients are not known in table: folders stand in for them" in page
    assert predict.main([str(run), str(folders / "normal"), "--out", str(tmp_path / "new")]) == 0
    assert train.main(["stage3", "lesions.per_batch=2", *words]) == 2
    assert "learns from lesion masks of train, and there are none. Fix" in capsys.readouterr().err

    data, out = words[:3], ["--out", str(tmp_path / "to-draw")]
    assert select_lesions.main(["--count", "3", "--split", "all", *out, *data]) == 0
    chosen = capsys.readouterr().out
    assert "of 3 folders and 3 studies" in chosen
    assert "data.patients=folder" in chosen
    mapping = ["--mapping", str(tmp_path / "to-draw" / "mapping.csv")]
    drawn = tmp_path / "drawn"
    for name in pd.read_csv(mapping[1])["name"]:
        write_png(drawn / name, MASK)
    own = tmp_path / "own"
    assert import_lesions.main([str(drawn), "--out", str(own), *mapping, *data]) == 0
    assert "DATA=table" in capsys.readouterr().out
    assert train.main(["stage3", *words, f"lesions.path={own}", "lesions.per_batch=1"]) == 0
    maps = ["--maps", str(tmp_path / "maps"), *data]
    for path in module(folders, patients="folder").build_index()["path"]:
        write_png(tmp_path / "maps" / f"{path}.mine.png", MASK)
    (tmp_path / "later").rename(folders / "masks")
    assert evaluate.main([*maps, f"run.root={tmp_path / 'runs'}"]) == 0
    (summary,) = tmp_path.glob("maps.evaluation/test/summary.json")
    assert json.loads(summary.read_text())["mine/hit"] == 1
