"""The configuration: what wins, what is refused and how, where a run lies, what changes it."""

from __future__ import annotations

import pytest
import yaml

from experiments.build import build_data, resolve, seen_at
from experiments.config import (
    OPTIONS,
    ConfigError,
    flatten,
    load_config,
    options_table,
    run_directory,
    save_config,
    to_plain,
)
from experiments.runs import differences


@pytest.fixture
def write(tmp_path):
    def write_file(text: str | bytes) -> str:
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write_file


def test_later_wins(write):
    path = write("stage: stage3\nseed: 1\ndata:\n  batch_size: 8\n")
    config = load_config(path, ["data.batch_size=16", "data.batch_size=24"])
    assert (config.stage, config.seed, config.data.batch_size) == ("stage3", 1, 24)
    assert config.lesions.per_batch == 4  # from the stage's own file


# Plain YAML 1.1 would read off, no and 007 otherwise.
VALUES = [
    ("data.root", "/a b/c=d", "/a b/c=d"),
    ("data.cache_dir", "~/cache", "/home/me/cache"),
    ("run.root", "${oc.env:SCRATCH}/runs", "/scratch/me/runs"),
    ("run.name", "007", "007"),
    ("logger.wandb", "off", "off"),
    ("attention.source", "true", "true"),
    ("optimizer.learning_rate", "1e-4", 1e-4),
    ("augmentation.enabled", "no", False),
    ("loss.alpha", "1", 1),
    ("trainer.devices", "2", 2),
    ("logger.wandb_images", "null", None),
]


@pytest.mark.parametrize("by_file", [False, True])
def test_values_mean_what_is_written(write, monkeypatch, by_file):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    if by_file:
        text, section = "stage: stage3\nmodel:\n", ""  # an empty section sets nothing
        for key, value, _ in sorted(VALUES):
            before, (section, name) = section, key.split(".")
            text += f"{section}:\n" * (section != before) + f"  {name}: {value}\n"
        config = load_config(write(text), [])
    else:
        config = load_config("stage3", [f"{key}={value}" for key, value, _ in VALUES])
    plain = flatten(to_plain(config))
    assert {key: plain[key] for key, *_ in VALUES} == {key: value for key, _, value in VALUES}
    assert config.trainer["max_epochs"] == 24  # the stage's own stays


def test_views_that_are_one_are_refused():
    config = load_config("stage1", ["model.zoom=1.1"])
    with pytest.raises(ConfigError, match=r"zoom=1\.1: at 64 px two of its views are one"):
        resolve(config, build_data(load_config("stage1", ["data.image_size=64"])))
    config = load_config("stage1", ["model.zoom=1.25", "data.image_size=448"])
    assert seen_at(config) == [448, 352, 576]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lossses.alpha=1", "unknown key lossses.alpha; did you mean loss.alpha?"),
        ("learning_rate=1", "did you mean optimizer.learning_rate?"),
        ("data.batch_size=1.5", "data.batch_size: expected a whole number: Value '1.5'"),
        ("data.batch_size=0", "data.batch_size: expected [1, inf), got 0"),
        ("model.encoder=resnet32", "expected resnet23 | timm:<name>, got resnet32"),
        ("augmentation.enabled=perhaps", "expected true or false"),
        ("data.image_size=100", "expected a multiple of 16"),
        ("loss.alpha=best", "expected accuracy | balanced_accuracy | [0, 1], got best"),
        ("data=mura", "unknown key data; did you mean data."),
        ("data.root=", "expected key=value, such as seed=1; key=null unsets it"),
        ("data.root=${oc.env:NOT_SET}", "data.root: expected text or null: KeyError raised"),
        ("stage=stage2", "the command's first word chooses the stage"),
        ("trainer.logger=false", "the run sets this; use logger.wandb"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1: expected a number > 0"),
        ("trainer.devices=[1", "cannot be read as a value"),
        ("lesions.folds=5 lesions.fold=5", "expected < lesions.folds"),
        ("lesions.per_batch=64", "expected < data.batch_size"),
        ("loss.classification=false", "only stage3 trains on masks alone"),
        ("loss.classification=false loss.lambda_lesion=0", "the FCN needs it"),
        ("loss.normal_masks=true", "only stage3 learns from masks"),
        ("lesions.apart=true", "no mask added"),
        ("loss.normal_weight=3", "needs loss.normal_masks"),
        ("attention.pooling=lesion", "only stage3 with classes"),
        ("model.mirror=true augmentation.flip=0", "needs augmentation.flip"),
        ("checkpoint.monitor=fcn/pixel_ap", "not learned here"),
        ("loss.lesion=bce", "only stage3 learns from masks"),
        ("trainer.precision=bf16-true", "expected bf16-mixed"),
        ("trainer.max_steps=5", "use data.limit, trainer.max_epochs"),
        ("trainer.max_time=1:00:00", "use data.limit, trainer.max_epochs"),
        ("trainer.callbacks=null", "leave it out"),
        ("run.name=../x", "expected a folder's name"),
        # A file: where it is wrong is said, and none of its code is run.
        ("stage: stage1\ndata:\n\tname: x", "not valid YAML"),
        ("seed: 1", "expected stage1 | stage2 | stage3 or a YAML file with a line such as"),
        ("- a", "expected lines of 'key: value'"),
        ("stage: stage1\nseed: 1\nseed: 2", "found duplicate key seed"),
        ("stage: stage1\ndata:\n  batch_size: many", "batch_size: expected a whole number"),
        ("stage: stage1\ndata: mura", "unknown key data; did you mean data."),
        (b"\xff\xfe\x00", "not valid YAML"),
        ("stage: stage1\nseed: !!python/object/apply:os.abort []", "determine a constructor"),
        (None, "nowhere.yaml: expected stage1"),
    ],
)
def test_a_wrong_word_or_file_says_what_is_right(write, given, message):
    words = given.split() if isinstance(given, str) and "=" in given else None
    stage = "stage1" if words else write(given) if given else "nowhere.yaml"
    with pytest.raises(ConfigError) as raised:
        load_config(stage, words or [])
    assert message in str(raised.value)


def test_saved_configuration_reads_back_equal(tmp_path):
    words = ["run.name=null-and-off", "logger.wandb=off", "optimizer.learning_rate=1e-05"]
    words += ["loss.alpha=0.25", "data.root=/Ä ö: #x: y"]
    config, path = load_config("stage3", words), tmp_path / "run" / "config.yaml"
    save_config(config, path)
    assert load_config(str(path), []) == config
    assert yaml.safe_load(path.read_text()) == to_plain(config)  # any other program reads it too
    path.write_text(f"{path.read_text()}\n# of an earlier version\nloss.lambda_attention: 0.0\n")
    assert load_config(str(path), []) == config


def test_loaded_weights_bring_their_own_settings_unless_they_are_given(tmp_path):
    words = ["model.encoder=timm:resnet50", "model.weights=imagenet"]
    scratch, loaded = (load_config("stage3", some).optimizer for some in (words[:1], words))
    assert (scratch.weight_decay, scratch.encoder_scale) == (0.3, 1.0)
    assert (loaded.weight_decay, loaded.encoder_scale) == (0.05, 0.3)
    config = load_config("stage3", [*words, "optimizer.weight_decay=0.3"])
    assert (config.optimizer.weight_decay, config.optimizer.encoder_scale) == (0.3, 0.3)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml"), []) == config


def test_run_directory():
    def place(words: str) -> str:
        return str(run_directory(load_config("stage3", words.split())))

    assert place("run.name=try") == "runs/phantom/stage3/try"
    assert place("seed=3 data.name=mura run.root=/x") == "/x/mura/stage3/lambda1.0-seed3"
    assert place("lesions.folds=5 lesions.fold=2").endswith("/lambda1.0-seed0-fold2")


def test_differences_name_what_changes_a_result_and_that_alone():
    old = to_plain(load_config("stage1", ["trainer.max_epochs=20"]))
    new = to_plain(load_config("stage1", ["seed=1", "data.crop=content", "trainer.max_epochs=10"]))
    del old["model"]["dropout"]  # of another version
    old["model"]["depth"] = 50
    assert sorted(differences(old, new)) == [
        "data.crop: null -> content",
        "model.depth: 50 -> not set",
        "model.dropout: not set -> 0.0",
        "seed: 0 -> 1",
        "trainer.max_epochs: 20 -> 10",
    ]
    words = ["trainer.devices=4", "trainer.max_epochs=300", "trainer.accelerator=cpu"]
    words += ["data.num_workers=3", "data.root=/moved", "data.cache_dir=/scratch"]
    words += ["logger.wandb=off", "checkpoint.every_steps=5", "run.root=/elsewhere"]
    old, new = to_plain(load_config("stage1", [])), to_plain(load_config("stage1", words))
    assert differences(old, new) == []


def test_every_number_has_an_interval_and_every_option_a_row():
    for key, option in OPTIONS.items():
        kinds = {option.kind, *getattr(option.kind, "__args__", ())}
        assert option.allowed or not {int, float} & kinds, key
    table = options_table().splitlines()
    assert len(table) == 2 + len(OPTIONS)
    assert "| `attention.omega` | `10.0` | (0, inf) | steepness |" in table
