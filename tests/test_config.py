from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments.config import (
    STAGES,
    ConfigError,
    differences,
    load_config,
    read_plain,
    run_directory,
    save_config,
    to_plain,
)
from experiments.schema import OPTIONS, Config, options_table


@pytest.fixture
def write(tmp_path):
    def write_file(text: str | bytes) -> str:
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write_file


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_loads(stage):
    config = load_config(stage, [])
    assert config.stage == stage
    assert type(config) is Config
    assert type(config.trainer) is dict


def test_later_wins(write):
    file = write("stage: stage3\nseed: 1\ndata:\n  batch_size: 8\n")
    config = load_config(file, ["data.batch_size=16", "data.batch_size=24"])
    assert config.seed == 1
    assert config.data.batch_size == 24
    assert config.lesions.per_batch == 4  # from the stage's own file


def test_values_from_the_command_line():
    words = [
        "data.root=/a b/c=d",
        "run.name=007",
        "logger.wandb=off",
        "attention.source=true",
        "optimizer.learning_rate=1e-4",
        "augmentation.enabled=no",
        "loss.alpha=1",
        "trainer.devices=2",
        "trainer.limit_train_batches=0.5",
        "logger.wandb_images=null",
    ]
    config = load_config("stage3", words)
    assert config.data.root == "/a b/c=d"
    assert config.run.name == "007"
    assert config.logger.wandb == "off"  # plain YAML 1.1 would make it false
    assert config.attention.source == "true"
    assert config.optimizer.learning_rate == 1e-4
    assert config.augmentation.enabled is False
    assert config.loss.alpha == 1
    assert config.trainer["devices"] == 2
    assert config.trainer["max_epochs"] == 24  # the stage's own stays
    assert config.trainer["limit_train_batches"] == 0.5
    assert config.logger.wandb_images is None


def test_values_from_a_file(write):
    text = "stage: stage2\nlogger:\n  wandb: off\nattention: {source: true}\nrun: {name: 0012}\n"
    text += "optimizer:\n  learning_rate: 3e-4\ndata:\n"  # an empty section sets nothing
    config = load_config(write(text), [])
    assert config.logger.wandb == "off"
    assert config.attention.source == "true"
    assert config.run.name == "0012"
    assert config.optimizer.learning_rate == 3e-4


def test_environment_in_a_value(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    config = load_config("stage1", ["run.root=${oc.env:SCRATCH}/runs", "run.name=s${seed}"])
    assert config.run.root == "/scratch/me/runs"
    assert config.run.name == "s0"


def test_home_in_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config("stage1", ["data.root=~/MURA-v1.1", "run.root=~/runs"])
    assert config.data.root == "/home/me/MURA-v1.1"
    assert config.run.root == "/home/me/runs"


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("lossses.alpha=1", "loss.alpha"),
        ("alpha=0.5", "loss.alpha"),
        ("data.batchsize=4", "data.batch_size"),
        ("batch_size=4", "data.batch_size"),
        ("learning_rate=1", "optimizer.learning_rate"),
        ("loss.lambda=1", "loss.lambda_lesion"),
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("trainer.gradient_clip=3", "optimizer.gradient_clip"),
    ],
)
def test_unknown_key_names_the_nearest(word, nearest):
    with pytest.raises(ConfigError, match=f"unknown key {word.partition('=')[0]}") as raised:
        load_config("stage1", [word])
    assert str(raised.value).endswith(f"did you mean {nearest}?")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.batch_size=abc", "data.batch_size: expected a whole number, got abc"),
        ("data.batch_size=1.5", "expected a whole number, got 1.5"),
        ("data.batch_size=true", "expected a whole number, got true"),
        ("data.batch_size=null", "expected a whole number, got null"),
        ("data.limit=[1,2]", "expected a whole number or null"),
        ("data.batch_size=0", "data.batch_size: expected [1, inf), got 0"),
        ("model.dropout=1", "expected [0, 1)"),
        ("model.encoder=resnet32", "expected resnet23, got resnet32; did you mean resnet23?"),
        ("optimizer.learning_rate=0", "expected (0, inf)"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate: expected"),
        ("optimizer.learning_rate=inf", "expected (0, inf)"),
        ("augmentation.enabled=perhaps", "expected true or false"),
        ("data.image_size=100", "expected a multiple of 16, such as 96 or 112"),
        ("loss.alpha=best", "expected accuracy | balanced_accuracy | [0, 1], got best"),
        ("loss.alpha=1.01", "expected accuracy | balanced_accuracy | [0, 1], got 1.01"),
        ("loss.alpha=true", "expected accuracy | balanced_accuracy | [0, 1], got true"),
        ("optimizer.schedule=cosin", "expected cosine | constant, got cosin; did you mean cosine?"),
        ("data=mura", "data: this is a section. Fix: set one of data.name, data.root"),
        ("data.root=", "data.root=null to unset it"),
        ("data.root=${oc.env:NOT_SET_ANYWHERE}", "data.root: KeyError raised while"),
        ("seed", "'seed': expected key=value"),
        ("=1", "expected key=value"),
        ("--seed=1", "'--seed=1': keys have no dashes"),
        ("stage=stage2", "the command's first word chooses the stage"),
        ("trainer.logger=false", "the run sets this; use logger.wandb"),
        ("trainer.precision=64-true", "images are float32"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1: expected a whole number, at least 1"),
        ("trainer.devices=[1", "cannot be read as a value"),
        ("lesions.fold=1", "needs lesions.folds"),
        ("lesions.per_batch=64", "expected < data.batch_size"),
        ("loss.classification=false", "only stage3 trains on masks alone"),
        ("loss.normal_masks=true", "only stage3 learns from masks"),
        ("loss.lambda_attention=1", "only stage3 with loss.classification has L4"),
        ("attention.source=fcn", "stage3 has the FCN"),
        ("run.name=../x", "expected a folder's name"),
        ("run.name=a/b", "expected a folder's name"),
        ("data.name=..", "expected a folder's name"),
    ],
)
def test_wrong_value_says_what_is_right(word, message):
    with pytest.raises(ConfigError) as raised:
        load_config("stage1", [word])
    assert message in str(raised.value)


def test_values_that_make_no_sense_together():
    for words, message in (
        (["lesions.folds=5", "lesions.fold=5"], "lesions.fold=5: expected less than lesions.folds"),
        (["loss.classification=false", "loss.lambda_lesion=0"], "leaves nothing to learn"),
        (["loss.classification=false", "loss.lambda_attention=1"], "has L4"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config("stage3", words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage: stage1\ndata:\n\tname: x", "not valid YAML"),
        ("stage: stage1\ndata: [", "not valid YAML"),
        ("seed: 1", "expected stage1 | stage2 | stage3, got None"),
        ("stage: stage9", "expected stage1 | stage2 | stage3, got stage9"),
        ("- a", "expected lines of 'key: value'"),
        ("stage: stage1\nseed: 1\nseed: 2", "found duplicate key seed"),
        ("stage: stage1\ndata:\n  batch_size: many", "batch_size: expected a whole number"),
        ("stage: stage1\ndata:\n  batchsize: 3", "did you mean data.batch_size?"),
        ("stage: stage1\ndata: mura", "data: this is a section"),
        ("stage: stage1\nmodel: {init_from: [1]}", "expected text or null"),
        ("stage: stage1\n---\nstage: stage2", "another document"),
        (b"\xff\xfe\x00", "not valid YAML"),
        ("stage: stage1\nseed: \x01", "not valid YAML"),
    ],
)
def test_wrong_file_says_where(write, text, message):
    file = write(text)
    with pytest.raises(ConfigError) as raised:
        load_config(file, [])
    assert message in str(raised.value)


def test_a_file_never_runs_code(write, tmp_path):
    target = tmp_path / "touched"
    text = f"stage: stage1\nseed: !!python/object/apply:os.system ['touch {target}']\n"
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_config(write(text), [])
    assert not target.exists()


def test_unknown_stage():
    for word in ("stage4", "nowhere.yaml"):
        with pytest.raises(ConfigError, match="expected stage1 .* or an existing YAML file"):
            load_config(word, [])


def test_saved_configuration_reads_back_equal(tmp_path):
    words = ["run.name=null-and-off", "logger.wandb=off", "optimizer.learning_rate=1e-05"]
    words += ["loss.alpha=0.25", "data.root=/Ä ö: #x: y", "trainer.max_time=1:00:00:00"]
    config = load_config("stage3", words)
    path = tmp_path / "run" / "config.yaml"
    save_config(config, path)
    assert load_config(str(path), []) == config
    assert read_plain(path) == to_plain(config)
    assert yaml.safe_load(path.read_text()) == to_plain(config)  # any other program reads it too
    assert [child.name for child in path.parent.iterdir()] == ["config.yaml"]


def test_run_directory():
    assert run_directory(load_config("stage1", ["seed=3"])) == Path("runs/phantom/stage1/seed3")
    stage3 = load_config("stage3", ["loss.lambda_lesion=0.3", "data.name=mura", "run.root=/x"])
    assert run_directory(stage3) == Path("/x/mura/stage3/lambda0.3-seed0")
    named = load_config("stage3", ["run.name=try"])
    assert run_directory(named) == Path("runs/phantom/stage3/try")
    fold = load_config("stage3", ["lesions.folds=5", "lesions.fold=2"])
    assert run_directory(fold) == Path("runs/phantom/stage3/lambda1.0-seed0-fold2")


def test_differences_name_what_changes_a_result():
    old = to_plain(load_config("stage1", ["trainer.max_epochs=20"]))
    new = to_plain(load_config("stage1", ["seed=1", "data.crop=content", "trainer.max_epochs=10"]))
    assert differences(old, new) == [
        "seed: 0 -> 1",
        "data.crop: null -> content",
        "trainer.max_epochs: 20 -> 10",
    ]
    assert differences(old, old) == []


def test_differences_leave_out_what_does_not():
    words = ["trainer.devices=4", "trainer.max_epochs=300", "trainer.accelerator=cpu"]
    words += ["data.num_workers=3", "data.root=/moved", "data.cache_dir=/scratch"]
    words += ["logger.wandb=off", "checkpoint.every_steps=5", "run.root=/elsewhere"]
    old, new = to_plain(load_config("stage1", [])), to_plain(load_config("stage1", words))
    assert old != new
    assert differences(old, new) == []


def test_differences_with_another_version():
    old = to_plain(load_config("stage1", []))
    new = to_plain(load_config("stage1", []))
    del old["model"]["dropout"]
    old["model"]["depth"] = 50
    assert differences(old, new) == [
        "model.depth: 50 -> not set",
        "model.dropout: not set -> 0.0",
    ]


def test_every_number_has_an_interval_and_every_option_a_row():
    for key, option in OPTIONS.items():
        kinds = {option.kind, *getattr(option.kind, "__args__", ())}
        assert option.allowed or not {int, float} & kinds, key
    table = options_table().splitlines()
    assert len(table) == 2 + len(OPTIONS)
    assert "| `attention.omega` | `10.0` | (0, inf) | steepness |" in table
    assert "| `run.root` | `runs` | text |  |" in table


def test_import_is_light():
    code = "import sys, experiments.config; print({'torch', 'pandas', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
