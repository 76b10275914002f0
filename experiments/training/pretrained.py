"""Pretrained weights: fetched once where there is a network, found without one, named in the run.

timm's own lie in Hugging Face's ordinary cache, which ``HF_HOME`` moves.
"""

import contextlib
from pathlib import Path
from typing import Any, cast

from datamodules.radiographs import RadiographDataModule
from experiments.build import start_from
from experiments.config import Config, ConfigError
from experiments.runs import RunError, file_hash, find_checkpoint, read_checkpoint, read_plain
from lightning_modules.options import Model
from lightning_modules.stages import Stage1Classifier
from lightning_modules.timm_encoder import TimmEncoder, load_weights, published

IMAGENET = "imagenet"
FILES = ("model.safetensors", "pytorch_model.bin")  # as the hub calls them, the safer one first


def give_weights(module: Stage1Classifier, config: Config, data: RadiographDataModule) -> None:
    """Let a fresh network start from another run or from published weights, if asked to."""
    if config.model.init_from:
        start_from(module, config, data)
    elif config.model.weights:
        load_weights(cast(TimmEncoder, module.encoder), weights_file(config.model))


def weights_file(model: Model) -> Path:
    """The file of ``model.weights``, which must be here: nothing connects."""
    if model.weights != IMAGENET:
        file = Path(str(model.weights))
        if not file.is_file():
            raise ConfigError(f"model.weights: expected imagenet or a file, got {file}")
        if file.suffix == ".ckpt":
            fix = f"Fix: model.init_from={file}, or weights of others as .pth or .safetensors"
            raise ConfigError(f"model.weights: {file} is of a run. {fix}")
        return file
    from huggingface_hub import try_to_load_from_cache  # with timm, of an extra

    repository, revision, names = _where(model.encoder)
    for name in names:
        place = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(place, str):
            return Path(place)
    raise ConfigError(
        f"model.weights=imagenet: {repository} is not in this machine's cache. Fix, where there is "
        "a network: python -m experiments.train --data-only and the words of this run, or python "
        f"-m experiments.weights {model.encoder} --out FILE, then model.weights=FILE."
    )


def fetch(encoder: str) -> Path:
    """Fetch timm's weights of an encoder into the cache, unless they are there."""
    with contextlib.suppress(ConfigError):
        return weights_file(Model(encoder=encoder, weights=IMAGENET))
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, revision, names = _where(encoder)
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except LocalEntryNotFoundError as error:  # nobody answers; a kind of the next
            raise RunError(
                f"{encoder}: {repository} cannot be fetched ({error}). Fix: where there is a "
                f"network, python -m experiments.weights {encoder} --out FILE, then "
                "model.weights=FILE."
            ) from error
        except EntryNotFoundError:
            continue
    raise RunError(f"{encoder}: {repository} holds none of {', '.join(names)}")


def find_origin(model: Model, folder: Path) -> str | None:
    """Source, licence and SHA-256 of the weights that the run in ``folder`` starts from, if any.

    A run that starts from another has that one's. A run that goes on needs neither any more.
    """
    begun = folder / "config.yaml"
    saved = read_plain(begun)["model"].get("weights_origin") if begun.is_file() else None
    given = None
    if model.weights:
        try:
            given = _describe(model, weights_file(model))
        except ConfigError:
            if not (saved or model.init_from):
                raise
    if given and saved and given[-64:] == saved[-64:]:  # the same file, by whatever name
        given = saved
    if model.init_from and not saved:
        with contextlib.suppress(ValueError):  # reported where the weights are needed
            content = read_checkpoint(find_checkpoint(Path(model.init_from))[1])
            saved = content["hyper_parameters"]["model"].get("weights_origin")
    if model.init_from and given not in (None, saved):
        what = f"{model.init_from} began from {saved or 'no weights'}, and nothing else is loaded"
        raise ConfigError(
            f"model.weights: {what}. Fix: leave out model.weights or model.init_from."
        )
    origin = given or (saved if model.weights or model.init_from else None)
    if model.weights_origin not in (None, origin):
        raise ConfigError(f"model.weights_origin: expected {model.weights_origin}, got {origin}")
    return origin


def is_non_commercial(origin: str | None) -> bool:
    """Whether the licence in an origin forbids commercial use, such as ``cc-by-nc-4.0``."""
    return "-nc" in (origin or "").lower()


def _describe(model: Model, file: Path) -> str:
    licence = published(model.encoder).license or "not stated"
    if model.weights == IMAGENET:
        source = f"{_where(model.encoder)[0]}, licence {licence}"
    else:
        source = f"{file.name}, licence not known here (timm's own weights: {licence})"
    return f"{source}, SHA-256 {file_hash(file)}"


def _where(encoder: str) -> tuple[str, str | None, tuple[str, ...]]:
    """Repository, revision and names of the file of timm's weights on the hub."""
    about: Any = published(encoder)
    if not about.hf_hub_id:
        raise ConfigError(
            f"model.weights=imagenet: timm has no weights of {encoder} on the hub. Fix: another "
            "name or tag (timm.list_models(pretrained=True)), or model.weights=FILE."
        )
    repository, _, revision = str(about.hf_hub_id).partition("@")
    return repository, revision or None, tuple(filter(None, [about.hf_hub_filename])) or FILES
