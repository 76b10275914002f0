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
from experiments.schema import CHOICES, HINTS, INTERVALS, Config


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
        ("data.augment=1", "data.root"),
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("trainer.gradient_clip=3", "optimizer.gradient_clip"),
    ],
)
def test_unknown_key_names_the_nearest(word, nearest):
    with pytest.raises(ConfigError) as raised:
        load_config("stage1", [word])
    assert str(raised.value).startswith(f"unknown key {word.partition('=')[0]} (command line)")
    if word != "data.augment=1":  # nothing is near; any valid key will do
        assert str(raised.value).endswith(f"did you mean {nearest}?")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.batch_size=abc", "data.batch_size = 'abc' (command line): expected a whole number"),
        ("data.batch_size=1.5", "data.batch_size = 1.5 (command line): expected a whole number"),
        ("data.batch_size=true", "data.batch_size = True (command line): expected a whole number"),
        ("data.batch_size=null", "expected a whole number"),
        ("data.limit=[1,2]", "expected a whole number or null"),
        ("data.batch_size=0", "data.batch_size = 0 (command line): must lie in [1, inf)"),
        ("model.dropout=1", "must lie in [0, 1)"),
        ("optimizer.learning_rate=0", "must lie in (0, inf)"),
        ("optimizer.learning_rate=.nan", "must lie in (0, inf)"),
        ("augmentation.flip=1.2", "must lie in [0, 1]"),
        ("augmentation.enabled=perhaps", "expected true or false"),
        ("data.image_size=100", "must be a multiple of 16, such as 96 or 112"),
        ("attention.shrink=3", "must lie in [1, 2]"),
        ("loss.alpha=best", "expected accuracy | balanced_accuracy | a number from 0 to 1"),
        ("loss.alpha=1.01", "expected accuracy | balanced_accuracy | a number from 0 to 1"),
        ("loss.alpha=true", "expected accuracy | balanced_accuracy | a number from 0 to 1"),
        ("optimizer.schedule=cosin", "expected cosine | constant; did you mean cosine?"),
        ("data=mura", "data (command line): this is a section; set one of data.name, data.root"),
        ("data.root=", "write data.root=null to unset it"),
        ("data.root=${oc.env:NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE"),
        ("seed", "'seed' (command line): expected key=value"),
        ("=1", "expected key=value"),
        ("--seed=1", "'--seed=1' (command line): keys have no dashes; write key=value"),
        ("stage=stage2", "the command's first word chooses the stage"),
        ("trainer.logger=false", "the run sets this; use logger.wandb"),
        ("trainer.val_check_interval=0.5", "are decided once an epoch"),
        ("trainer.precision=64-true", "images are float32"),
        ("lesions.fold=1", "needs lesions.folds"),
        ("trainer.default_root_dir=x", "the run sets this; use run.root"),
        (
            "trainer.max_epochs=-1",
            "trainer.max_epochs = -1 (command line): expected a whole number",
        ),
        ("trainer.devices=[1", "cannot be read as a value"),
        ("lesions.per_batch=64", "must be less than data.batch_size = 16"),
        ("loss.classification=false", "only stage3 can train on lesion masks alone"),
        ("attention.source=fcn", "only stage3 has an FCN"),
        ("run.name=../x", "is a folder's name"),
        ("run.name=a/b", "is a folder's name"),
        ("run.name=..", "is a folder's name"),
        ("data.name=a/b", "is a folder's name"),
    ],
)
def test_wrong_value_says_what_is_right(word, message):
    with pytest.raises(ConfigError) as raised:
        load_config("stage1", [word])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage: stage1\ndata:\n\tname: x", "mine.yaml, line 3: not valid YAML"),
        ("stage: stage1\ndata:\n\tname: x", "indent with spaces, YAML allows no tabs"),
        ("stage: stage1\ndata: [", "mine.yaml, line 2: not valid YAML"),
        ("seed: 1", "has no stage: key; add a line such as 'stage: stage1'"),
        ("stage: stage9", "has stage: stage9"),
        ("- a", "expected lines of 'key: value'"),
        ("stage: stage1\nseed: 1\nseed: 2", "seed (FILE, line 3): set twice in this file"),
        (
            "stage: stage1\ndata:\n  batch_size: many",
            "data.batch_size = 'many' (FILE, line 3): expected a whole number",
        ),
        (
            "stage: stage1\ndata:\n  batchsize: 3",
            "unknown key data.batchsize (FILE, line 3); did you mean data.batch_size?",
        ),
        ("stage: stage1\ndata: mura", "data (FILE, line 2): this is a section"),
        ("stage: stage1\nmodel: {init_from: [1]}", "expected text or null"),
        ("stage: stage1\n---\nstage: stage2", "another document"),
        (b"\xff\xfe\x00", "not a YAML text file"),
        ("stage: stage1\nseed: \x01", "not a YAML text file"),
    ],
)
def test_wrong_file_says_where(write, text, message):
    file = write(text)
    with pytest.raises(ConfigError) as raised:
        load_config(file, [])
    assert message.replace("FILE", file) in str(raised.value)


def test_a_file_never_runs_code(write, tmp_path):
    target = tmp_path / "touched"
    text = f"stage: stage1\nseed: !!python/object/apply:os.system ['touch {target}']\n"
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_config(write(text), [])
    assert not target.exists()


def test_unknown_stage():
    with pytest.raises(ConfigError, match=r"use stage1, stage2, stage3 or a YAML file"):
        load_config("stage4", [])
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_config("nowhere.yaml", [])


def test_saved_configuration_reads_back_equal(tmp_path):
    words = ["run.name=null-and-off", "logger.wandb=off", "optimizer.learning_rate=1e-05"]
    words += ["loss.alpha=0.25", "data.root=/Ä ö: #x", "trainer.max_time=00:01:00:00"]
    config = load_config("stage3", words)
    path = tmp_path / "run" / "config.yaml"
    save_config(config, path)
    assert load_config(str(path), []) == config
    assert read_plain(path) == to_plain(config)
    assert yaml.safe_load(path.read_text()) == to_plain(config)  # any other program reads it too
    assert [child.name for child in path.parent.iterdir()] == ["config.yaml"]


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    save_config(load_config("stage1", []), path)
    before = path.read_text()

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(yaml, "safe_dump", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_config(load_config("stage2", []), path)
    assert path.read_text() == before
    assert [child.name for child in tmp_path.iterdir()] == ["config.yaml"]


def test_plain_values_are_builtins():
    def walk(value):
        if isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        else:
            assert type(value) in (str, int, float, bool, type(None))

    walk(to_plain(load_config("stage3", ["loss.alpha=0.5"])))


def test_run_directory():
    assert run_directory(load_config("stage1", ["seed=3"])) == Path("runs/phantom/stage1/seed3")
    stage3 = load_config("stage3", ["loss.lambda_lesion=0.3", "data.name=mura", "run.root=/x"])
    assert run_directory(stage3) == Path("/x/mura/stage3/lambda0.3-seed0")
    named = load_config("stage3", ["run.name=try"])
    assert run_directory(named) == Path("runs/phantom/stage3/try")
    fold = load_config("stage3", ["lesions.folds=5", "lesions.fold=2"])
    assert run_directory(fold) == Path("runs/phantom/stage3/lambda1.0-seed0-fold2")


def test_a_fold_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"lesions\.fold = 5 .*at most lesions\.folds - 1 = 4"):
        load_config("stage3", ["lesions.folds=5", "lesions.fold=5"])


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


def test_a_run_from_before_a_key_did_what_was_done_then():
    def without_keys(config):
        del config["attention"]["gradient"], config["attention"]["shrink"]
        return config

    for stage in ("stage1", "stage2"):
        old = without_keys(to_plain(load_config(stage, [])))
        assert differences(old, to_plain(load_config(stage, []))) == []
    other = to_plain(load_config("stage2", ["attention.gradient=convolution"]))
    assert differences(old, other) == ["attention.gradient: pytorch -> convolution"]


def test_tables_of_the_schema_name_real_keys():
    assert set(CHOICES) <= set(HINTS)
    assert set(INTERVALS) <= set(HINTS)
    numbers = {
        key for key, hint in HINTS.items() if {int, float} & {hint, *getattr(hint, "__args__", ())}
    }
    assert numbers - set(INTERVALS) == {"loss.alpha"}  # checked by its own rule


def test_import_is_light():
    code = "import sys, experiments.config; print({'torch', 'pandas', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
