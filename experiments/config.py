"""The configuration: every option, YAML files and ``key=value`` words over the defaults.

Sections live in the rooms that use them (``options.py``). Later wins: defaults, the stage's YAML, a
user's own, the command line. ``python -m experiments.config`` prints all options as a table.
"""

import inspect
import re
from dataclasses import asdict, dataclass, field, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast, get_args, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from callbacks.options import Checkpoint
from datamodules.files import write_text
from datamodules.options import Augmentation, Data, Lesions
from lightning_modules.options import REMOVED, STRIDES, Attention, Loss, Model, Optimizer

STAGES = ("stage1", "stage2", "stage3")
HERE = Path(__file__).parent
PATHS = {"data.root", "data.table", "data.cache_dir", "lesions.path", "run.root"}
PATHS |= {"model.init_from", "model.weights"}
LOADING = ["data.root", "data.table", "data.patients", "lesions.path"]  # where the data lies today
LOADING += ["data.cache_dir", "data.num_workers"]  # and how it is loaded: no result changes with it
# Trainer arguments that the run sets itself, with what to use instead. Alpha and the best are
# decided at an epoch's end, and a resumed run goes on within one.
_CUT = ("fast_dev_run", "limit_train_batches", "limit_val_batches", "max_steps", "max_time")
_OURS = ("callbacks", "check_val_every_n_epoch", "overfit_batches", "val_check_interval")
_LOADERS = ("reload_dataloaders_every_n_epochs", "use_distributed_sampler")
TRAINER_TAKEN = {"logger": "use logger.wandb", "gradient_clip_val": "use optimizer.gradient_clip"}
TRAINER_TAKEN |= dict.fromkeys(_CUT, "use data.limit, trainer.max_epochs")
TRAINER_TAKEN |= dict.fromkeys(_OURS + _LOADERS, "leave it out")


class ConfigError(ValueError):
    """The configuration cannot be used: the message names the key and the remedy."""


@dataclass
class RunConfig:
    """Where results lie: ``<root>/<data.name>/<stage>/<name>/``."""

    root: str = "runs"
    # null: seed<seed>, in stage 3 lambda<loss.lambda_lesion>-seed<seed>; with folds -fold<n> more
    name: str | None = None


@dataclass
class LoggerConfig:
    """Weights & Biases; ``metrics.csv`` is always written."""

    # auto: online only where a key is configured
    wandb: Annotated[str, "auto | online | offline | off"] = "auto"
    wandb_project: str = "decision-basis"
    wandb_images: bool | None = None  # may radiographs leave the machine; null: phantom only


# The arguments of Lightning's Trainer that differ by default or are often changed.
TRAINER: dict[str, Any] = {
    "max_epochs": 20,
    "accelerator": "auto",
    "devices": 1,  # a number | "auto"
    "num_nodes": 1,
    "strategy": "auto",
    "precision": None,  # null: bf16-mixed where the device does it natively, else 32-true
}


@dataclass
class Config:
    """All options with their defaults."""

    # the first word of the command, or the file's
    stage: Annotated[str, "stage1 | stage2 | stage3"] = "stage1"
    # initialisation, order and augmentation (32 bits: what NumPy takes)
    seed: Annotated[int, "[0, 4294967295]"] = 0
    data: Data = field(default_factory=Data)
    augmentation: Augmentation = field(default_factory=Augmentation)
    lesions: Lesions = field(default_factory=Lesions)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    attention: Attention = field(default_factory=Attention)
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: dict[str, Any] = field(default_factory=TRAINER.copy)  # for Lightning's Trainer
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    run: RunConfig = field(default_factory=RunConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


class Option(NamedTuple):
    """One key: its type, what is allowed ("(0, inf)", "own | image") and the comment beside it."""

    kind: Any
    allowed: str = ""
    comment: str = ""


def _options(kind: type, prefix: str = "") -> dict[str, Option]:
    options: dict[str, Option] = {}
    # The comment of a field stands beside it, or above.
    fields = r"(?:^ {4}# (.*)\n)?^ {4}(\w+): [^#\n]*(?:  # (.*))?$"
    lines = re.findall(fields, inspect.getsource(kind), re.MULTILINE)
    comments = {name: beside or above for above, name, beside in lines}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if is_dataclass(hint):
            options |= _options(cast(type, hint), f"{name}.")
        elif name == "trainer":
            options |= {f"trainer.{key}": Option(Any) for key in TRAINER}
        else:
            allowed = getattr(hint, "__metadata__", ("",))[0]
            bare = hint.__origin__ if allowed else hint
            options[prefix + name] = Option(bare, allowed, comments.get(name, ""))
    return options


OPTIONS = _options(Config)


def load_config(stage_or_file: str, overrides: list[str]) -> Config:
    """Merge defaults, YAML (a file has a ``stage:`` line) and ``key=value`` words; check them."""
    stage, settings, path = stage_or_file, {}, Path(stage_or_file).expanduser()
    if stage not in STAGES and path.is_file():
        settings = read_yaml(path)
        stage = str(settings.get("stage"))
    if stage not in STAGES:
        expected = f"{' | '.join(STAGES)} or a YAML file with a line such as 'stage: stage1'"
        raise ConfigError(f"{stage_or_file}: expected {expected}, got {stage}")
    given = [*settings.items(), *map(parse_word, overrides)]
    own = read_yaml(HERE / f"{stage}.yaml")
    if dict(given).get("model.weights"):
        own |= read_yaml(HERE / "pretrained.yaml")
    merged = OmegaConf.structured(Config)
    try:
        for key, value in [*own.items(), *given]:
            if key in PATHS and isinstance(value, str):
                value = str(Path(value).expanduser())  # a shell leaves the ~ in data.root=~/x
            OmegaConf.update(merged, key, value)
        config = cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:  # of another type, or ${...} that leads nowhere
        key, reason = str(error.full_key), str(error).splitlines()[0]
        raise ConfigError(f"{key}: expected {expected_type(key)}: {reason}") from None
    check_values(config)
    return config


def read_plain(path: Path) -> dict[str, Any]:
    """The nested dicts of a YAML file, a saved configuration also of another version."""
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(plain, dict):
        raise ConfigError(f"{path}: expected lines of 'key: value'")
    return cast(dict[str, Any], plain)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a file, by dotted keys."""
    plain = read_plain(path)
    written = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # text only
    texts, settings = flatten(written or {}), {}
    for key, value in flatten(plain).items():
        if value is None and any(option.startswith(f"{key}.") for option in OPTIONS):
            continue  # a section, all of whose lines are commented out
        check_key(key)
        settings[key] = texts[key] if value is not None and _is_read_as_written(key) else value
    return settings


def parse_word(word: str) -> tuple[str, Any]:
    """The dotted key and the value of a ``key=value`` word."""
    key, _, text = (part.strip() for part in word.partition("="))
    if not key or not text:
        raise ConfigError(f"{word!r}: expected key=value, such as seed=1; key=null unsets it")
    check_key(key)
    if key == "stage":
        raise ConfigError("stage: the command's first word chooses the stage")
    if _is_read_as_written(key):
        return key, None if text in ("null", "~") else text
    try:
        return key, OmegaConf.from_dotlist([f"value={text}"])["value"]
    except yaml.YAMLError:
        raise ConfigError(f"{key}: {text!r} cannot be read as a value") from None


def check_key(key: str) -> None:
    """Raise a ConfigError, with the nearest valid key, unless ``key`` may be set."""
    if key in OPTIONS:
        return
    section, _, leaf = key.partition(".")
    if section == "trainer":
        if leaf in TRAINER_TAKEN:
            raise ConfigError(f"{key}: the run sets this; {TRAINER_TAKEN[leaf]}")
        import pytorch_lightning as pl  # here: the import takes seconds and is seldom needed

        if leaf in inspect.signature(pl.Trainer).parameters:
            return
    (nearest,) = get_close_matches(key, OPTIONS, n=1, cutoff=0)
    raise ConfigError(f"unknown key {key}; did you mean {nearest}?")


def check_values(config: Config) -> None:
    """Raise a ConfigError where a value, or two together, make no sense."""
    values = flatten(to_plain(config))
    for key, option in OPTIONS.items():
        if option.allowed and values[key] is not None and not _is_allowed(values[key], option):
            raise ConfigError(f"{key}: expected {option.allowed}, got {show(values[key])}")
    data, lesions, loss, empty = config.data, config.lesions, config.loss, config.loss.normal_masks
    epochs, model, table = config.trainer["max_epochs"], config.model, data.name == "table"
    stride, timm = STRIDES[model.encoder.partition(":")[0]], model.encoder.startswith("timm:")
    no_masks, alone = config.stage != "stage3", not loss.classification
    by_lesion, seen = config.attention.pooling == "lesion", config.augmentation
    precision = str(values["trainer.precision"])
    untaught: dict[str | None, bool] = {"auroc": alone, "fcn/pixel_ap": no_masks}
    rules = [
        ("data.table", data.table and not table, "only data.name=table reads one"),
        ("data.patients", data.patients != "column" and not table, "only for data.name=table"),
        ("data.image_size", (data.image_size or 0) % stride, f"expected a multiple of {stride}"),
        ("model.width", timm and model.width != 1, "only resnet23 scales"),
        ("model.weights", model.weights and not timm, "expected model.encoder=timm:<name>"),
        ("lesions.per_batch", lesions.per_batch >= data.batch_size, "expected < data.batch_size"),
        ("lesions.fold", lesions.fold >= (lesions.folds or 1), "expected < lesions.folds"),
        ("loss.lambda_lesion", (alone or by_lesion) and not loss.lambda_lesion, "the FCN needs it"),
        ("loss.classification", alone and no_masks, "only stage3 trains on masks alone"),
        ("attention.pooling", by_lesion and (no_masks or alone), "only stage3 with classes"),
        ("model.mirror", model.mirror and not seen.enabled * seen.flip, "needs augmentation.flip"),
        ("loss.normal_masks", empty and no_masks, "only stage3 learns from masks"),
        ("loss.normal_weight", loss.normal_weight != 1 and not empty, "needs loss.normal_masks"),
        ("loss.lesion", loss.lesion != "mse" and no_masks, "only stage3 learns from masks"),
        ("lesions.apart", lesions.apart and (no_masks or not lesions.per_batch), "no mask added"),
        ("checkpoint.monitor", untaught.get(config.checkpoint.monitor), "not learned here"),
        ("run.name", re.search(r"^\.|[/\\]", config.run.name or ""), "expected a folder's name"),
        ("trainer.precision", re.search("16-true|64", precision), "expected bf16-mixed"),
        ("trainer.max_epochs", type(epochs) is not int or epochs < 1, "expected a number > 0"),
    ]
    for key, rule in ((key, rule) for key, wrong, rule in rules if wrong):
        raise ConfigError(f"{key}={show(values[key])}: {rule}")


def save_config(config: Config, path: Path) -> None:
    """Write the configuration as YAML that ``load_config`` reads back; whole or not at all."""
    write_text(path, yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True))


def run_directory(config: Config) -> Path:
    """``<run.root>/<data.name>/<stage>/<run.name>/``: the same for every rank and restart."""
    parts = [f"lambda{config.loss.lambda_lesion}"] if config.stage == "stage3" else []
    parts += [f"seed{config.seed}", *([f"fold{config.lesions.fold}"] * bool(config.lesions.folds))]
    name = config.run.name or "-".join(parts)
    return Path(config.run.root) / config.data.name / config.stage / name


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts of str, int, float, bool and None."""
    return asdict(config)


def flatten(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, by dotted keys; without what is gone and was not used."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        inner = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return {key: value for key, value in flat.items() if (key, value) not in REMOVED}


def show(value: object) -> str:
    """As it would be written in YAML or on the command line."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def expected_type(key: str) -> str:
    """What may stand for ``key``, in words: ``a whole number or null``."""
    option = OPTIONS.get(key, Option(Any))
    if " | " in option.allowed:
        return option.allowed
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    kinds = get_args(option.kind) or (option.kind,)
    return " or ".join({**names, type(None): "null"}.get(kind, "a value") for kind in kinds)


def options_table() -> str:
    """All options as Markdown: key, default, what is allowed, and the comment in the code."""
    defaults = flatten(to_plain(Config()))
    lines = ["| key | default | allowed |  |", "| --- | --- | --- | --- |"]
    for key, option in OPTIONS.items():
        allowed = (option.allowed or expected_type(key)).replace("|", "\\|")
        lines.append(f"| `{key}` | `{show(defaults[key])}` | {allowed} | {option.comment} |")
    return "\n".join(lines)


def _is_allowed(value: Any, option: Option) -> bool:
    """Whether a value is one of the words, or in one of the intervals, of ``allowed``."""
    for one in option.allowed.split(" | "):
        if one[0] not in "[(":
            if re.fullmatch(one.replace("<name>", ".+"), str(value)):
                return True
        elif not isinstance(value, str):
            low, high = map(float, one[1:-1].split(","))
            closed = [end for end, sign in ((low, one[0]), (high, one[-1])) if sign in "[]"]
            if low < value < high or value in closed:
                return True
    return False


def _is_read_as_written(key: str) -> bool:
    """Whether the option's type reads the text itself: to YAML ``off`` is false, 007 a number."""
    kind = OPTIONS.get(key, Option(Any)).kind
    kinds = {*(get_args(kind) or [kind])} - {type(None)}
    return kind is not Any and len(kinds) == 1


if __name__ == "__main__":
    print(options_table())
