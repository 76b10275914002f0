"""Encoders of timm: where their cells look, which fit, and weights that are whole or refused."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

from experiments import export, load_run, train
from experiments import weights as fetch_weights
from experiments.config import ConfigError, load_config
from experiments.evaluation.methods import choose, raw_map
from experiments.prediction.exporting import describe
from experiments.runs import RunError, check_cells, read_checkpoint
from experiments.training.pretrained import find_origin, is_non_commercial, weights_file
from lightning_modules.attention import pcam, peak, upsample
from lightning_modules.options import Model
from lightning_modules.timm_encoder import (
    EncoderError,
    TimmEncoder,
    TimmSyncBatchNorm,
    load_weights,
)
from tests.runs import run_folder, tiny_words
from tests.stages import names_without_gradient, network, small_batch

timm = pytest.importorskip("timm", reason="needs the extra encoders")
safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra encoders")
hub = pytest.importorskip("huggingface_hub", reason="needs the extra encoders")

SIDE = 256
TINY = "test_convnext"  # timm's own for tests; its cells look 7 pixels further
# A family each, the smallest of it; where cell 0 of stride 16 looks by the layers' padding.
FAMILIES = {
    "resnet10t": 0,
    "regnetx_002": 0,
    "densenet121": 6,  # halves by pooling 2 x 2: half a cell further at strides 4 and 8
    "efficientnet_b0": 0,
    "tf_efficientnet_lite0": 15,
    "mobilenetv3_small_050": 0,
    "convnext_atto": 7.5,
    "vgg11": 7.5,
}


def words(encoder=TINY):
    return [f"model.encoder=timm:{encoder}", "model.width=1"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as timm publishes it: of colour images, with the classifier."""
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    safetensors.save_file(timm.create_model(TINY).state_dict(), file)
    return file


@pytest.mark.parametrize("name", FAMILIES)
def test_a_dot_is_found_where_it_is(name):
    module = network("stage1", *words(name))
    assert module.encoder.strides == (4, 8, 16)
    assert module.encoder.offsets[-1] == pytest.approx(FAMILIES[name], abs=2.5)
    module.losses(small_batch())[0]["loss"].backward()
    assert names_without_gradient(module) == []  # DDP would wait for them
    dots, errors = [(101, 131), (144, 96), (90, 160), (128, 113)], []
    images = torch.zeros(len(dots) + 1, 1, SIDE, SIDE)  # the last one without a dot
    for image, (row, column) in zip(images, dots, strict=False):
        image[:, row - 2 : row + 3, column - 2 : column + 3] = 4
    for seed in range(3):  # one draw of the weights may lean to a side
        torch.manual_seed(seed)
        encoder = TimmEncoder(name).eval()
        for part in encoder.modules():  # residual branches begin at 0: they count here
            if isinstance(part, nn.BatchNorm2d):
                nn.init.ones_(part.weight)
        with torch.no_grad():
            features = encoder(images)[-1]
        change = (features[:-1] - features[-1:]).square().sum(1, keepdim=True)
        shown_all = upsample(change, (SIDE, SIDE), encoder.offsets[-1])[:, 0]
        for shown, (row, column) in zip(shown_all, dots, strict=True):
            shown = (shown - shown.median()).relu()
            place = torch.arange(SIDE, dtype=shown.dtype)
            down, across = ((shown.sum(axis) @ place / shown.sum()).item() for axis in (1, 0))
            errors.append([down - row, across - column])
    assert torch.tensor(errors).mean(0).abs().max() < 8, errors  # half a cell


def test_synchronised_batchnorm_keeps_the_activations_that_timm_joins_to_it():
    module, images = (
        network("stage1", *words("tf_efficientnet_lite0")).eval(),
        torch.rand(1, 1, 64, 64),
    )
    with torch.no_grad():
        before = module(images)
        torch.testing.assert_close(TimmSyncBatchNorm().apply(module)(images), before)
    assert any(isinstance(part, nn.SyncBatchNorm) for part in module.modules())


def test_maps_of_a_shifted_encoder_meet_in_the_image():
    # One bright cell: CAM, peers and the FCN's steps put it at offset + stride * cell.
    module = network("stage3", *words("tf_efficientnet_lite0")).eval()
    offset, features = module.encoder.offsets[-1], torch.zeros(1, 128, 6, 6)
    features[:, :, 2, 3] = 1
    nn.init.ones_(module.fc.weight)
    own = module.upsample(pcam(features, module.fc.weight[1:]), (96, 96))
    at = [offset + 16 * 3, offset + 16 * 2]
    assert peak(own)[0].tolist() == pytest.approx(at, abs=0.5)
    module.encoder.forward = lambda image: [features[..., :24, :24]] * 3
    for method in choose("gradcam,layercam"):
        raw = raw_map(method, module, torch.zeros(1, 1, 96, 96), {})
        shown = method.enlarge(raw, module, (96, 96))
        assert peak(shown)[0].tolist() == pytest.approx(at, abs=0.5), method.name
    o4, o8, o16 = module.encoder.offsets
    assert module.decoder.shifts == ((o16 - o8) / 8, (o8 - o4) / 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224", "strides 4, 8 and 16, got .* such as timm:resnet50"),
        ("swin_tiny_patch4_window7_224", "images of any size .* such as timm:resnet50"),
        ("test_mambaout", "channels come last"),
        ("inception_v3", "not of the image's side / stride"),
        ("resnet18.nosuch", "Invalid pretrained tag .*Fix: one of timm:resnet18.a1_in1k"),
        ("resnet51", "has no model resnet51. Fix: such as timm:resnet5"),
    ],
)
def test_what_does_not_fit_is_refused(name, message):
    with pytest.raises(EncoderError, match=message):
        TimmEncoder(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.encoder=resnet24"], "expected resnet23 | timm:<name>"),
        (["model.encoder=timm:"], "expected resnet23 | timm:<name>"),
        (["model.weights=imagenet"], "expected model.encoder=timm:<name>"),
        ([*words(), "model.width=0.5"], "only resnet23 scales"),
        ([*words(), "data.image_size=48"], "expected a multiple of 32"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config("stage1", settings)


def test_weights_are_loaded_whole_or_refused(weights, tmp_path):
    state = safetensors.load_file(weights)
    encoder = TimmEncoder(TINY)
    load_weights(encoder, weights)
    # A pyramid's parts are called stem_0 where the whole network has stem.0.
    own = {re.sub(r"^(\w+?)_(\d)", r"\1.\2", key): w for key, w in encoder.net.state_dict().items()}
    # Grey in: what three equal colours gave, timm sums the first convolution.
    state["stem.0.weight"] = state["stem.0.weight"].sum(1, keepdim=True)
    assert own.keys() < state.keys()
    assert all(torch.allclose(weight, state[key], atol=1e-6) for key, weight in own.items())

    state = safetensors.load_file(weights)
    files = {
        "stage.safetensors": {k: v for k, v in state.items() if "stages.3" not in k},
        "norm.safetensors": {k: v for k, v in state.items() if not k.endswith("norm.weight")},
        "more.safetensors": state | {"stages.9.weight": torch.ones(1)},
        "nan.safetensors": state | {"stem.0.bias": state["stem.0.bias"] * torch.nan},
        "other.pth": timm.create_model("test_resnet").state_dict(),
    }
    for name, content in files.items():
        save = torch.save if name.endswith("pth") else safetensors.save_file
        save(content, tmp_path / name)
    (tmp_path / "text.pth").write_text("<html>")
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    for name in (*files, "text.pth"):
        with pytest.raises(EncoderError, match=f"{name}: no weights of timm:{TINY} .*Fix: those"):
            load_weights(encoder, tmp_path / name)
        assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_loaded_weights_may_learn_more_slowly():
    module = network("stage1", *words(), "optimizer.encoder_scale=0.1")
    module.trainer = type("Trainer", (), {"estimated_stepping_batches": 10, "max_epochs": 1})()
    groups = module.configure_optimizers()["optimizer"].param_groups
    rates = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(module.parameters()))
    slow = {id(p) for p in module.encoder.net.parameters()}
    assert {round(rates[p], 9) for p in slow} == {1e-4}
    assert {rates[p] for p in rates.keys() - slow} == {1e-3}


@pytest.fixture(scope="module")
def run(weights, tmp_path_factory):
    """Stage 3 from those weights, one epoch."""
    root = tmp_path_factory.mktemp("run")
    given = [*tiny_words(root), f"run.root={root}", *words(), f"model.weights={weights}"]
    given += ["data.count=40", "trainer.max_epochs=1", "lesions.per_batch=2", "run.name=seed0"]
    assert train.main(["stage3", *given]) == 0
    return run_folder(root, "stage3"), given


def test_a_run_names_its_weights_and_works_without_them(run, weights, tmp_path, capsys):
    folder, given = run
    sha = hashlib.sha256(weights.read_bytes()).hexdigest()
    licence = timm.get_pretrained_cfg(TINY).license
    origin = (
        f"tiny.safetensors, licence not known here (timm's own weights: {licence}), SHA-256 {sha}"
    )
    assert load_config(str(folder / "config.yaml"), []).model.weights_origin == origin
    content = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert content["hyper_parameters"]["model"]["weights_origin"] == origin
    module = network("stage3", *words())
    check_cells(module, content, folder)
    with pytest.raises(RunError, match=r"cells looked at \[1.0\], here at"):
        check_cells(module, {"cells": [1.0]}, folder)
    # Goes on where the file has moved; other weights are refused.
    gone = [word for word in given if not word.startswith("model.weights")]
    assert train.main(["stage3", *gone, "model.weights=/gone.safetensors"]) == 0
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights.read_bytes() + b" ")
    capsys.readouterr()
    assert train.main(["stage3", *gone, f"model.weights={other}"]) == 2
    assert f"model.weights_origin: {origin} -> other.safetensors" in capsys.readouterr().err
    later = Model(encoder=f"timm:{TINY}", init_from=str(folder), weights=str(weights))
    assert find_origin(later, tmp_path) == origin
    with pytest.raises(ConfigError, match=r"began from tiny.* Fix: leave out model\.weights"):
        find_origin(replace(later, weights=str(other)), tmp_path)
    with pytest.raises(ConfigError, match=r"is of a run\. Fix: model\.init_from="):
        weights_file(replace(later, weights=str(folder / "checkpoints" / "best.ckpt")))

    assert train.main(["stage3", *given, "run.name=seed0", "trainer.max_epochs=2"]) == 0  # resumes
    assert export.main([str(folder), "--out", str(tmp_path / "model.onnx")]) == 0
    about = describe(load_run(folder))
    assert (about["encoder"], about["pretrained_weights"]) == (f"timm:{TINY}", origin)
    assert is_non_commercial("x, licence cc-by-nc-4.0, SHA-256")


class Hub(BaseHTTPRequestHandler):
    """A stand-in for Hugging Face's hub, which holds one file."""

    content = b""

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, whole):
        there = self.path.endswith("/model.safetensors")
        self.send_response(200 if there else 404)
        self.send_header("X-Repo-Commit", "1" * 40)
        if there:
            self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(self.content) if there else 0))
        self.end_headers()
        if whole and there:
            self.wfile.write(self.content)

    def log_message(self, *arguments):
        """Nothing on the terminal."""


def test_weights_are_fetched_once_and_found_without_a_network(
    weights, tmp_path, monkeypatch, capsys
):
    Hub.content, copy = weights.read_bytes(), tmp_path / "copy.safetensors"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_DISABLE_XET", True)
    reach = partial(hub.hf_hub_download, endpoint=f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(hub, "hf_hub_download", reach)
    assert fetch_weights.main([f"timm:{TINY}", "--out", str(copy)]) == 0
    server.shutdown()
    server.server_close()
    assert copy.read_bytes() == Hub.content
    assert fetch_weights.main([f"timm:{TINY}"]) == 0
    assert hashlib.sha256(Hub.content).hexdigest() in capsys.readouterr().out
    assert weights_file(Model(encoder=f"timm:{TINY}", weights="imagenet")).is_file()
    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    assert fetch_weights.main(["timm:test_resnet"]) == 2
    assert "timm/test_resnet.r160_in1k cannot be fetched" in capsys.readouterr().err


def unreachable(*words, **options):
    raise hub.errors.LocalEntryNotFoundError("no network")


def test_missing_weights_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"not in this machine's cache.* experiments.weights"):
        weights_file(Model(encoder="timm:resnet50", weights="imagenet"))
    with pytest.raises(ConfigError, match="expected imagenet or a file, got nowhere"):
        weights_file(Model(encoder="timm:resnet50", weights="nowhere"))
