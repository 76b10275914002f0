"""Trivial maps, and other people's methods beside the libraries that they come from."""

import sys

import numpy as np
import pytest
import torch

from datamodules.geometry import letterbox
from experiments.evaluation import methods
from experiments.evaluation.methods import PEERS, QUICK, STEP, choose, raw_map
from experiments.runs import RunError
from lightning_modules.attention import normalise, peak, scale_map, upsample
from tests import stages
from tests.stages import SIZE


class Pixels:
    """A tall image (row 0), and one with a crop that fills the square (row 1)."""

    def geometry_of(self, row):
        return letterbox(50, 90, SIZE, (20, 0, 50, 50)) if row else letterbox(80, 40, SIZE)


def full(method, image, rows=(0, 1)):
    raw = raw_map(method, None, image, {"index": torch.tensor(rows)})
    assert raw.shape == (len(rows), 1, SIZE // STEP, SIZE // STEP)
    assert raw.min() >= 0
    scale = methods.fit_scale(raw.amax((1, 2, 3)))
    return upsample(scale_map(raw, scale), image.shape[-2:])


def test_the_centre_prior_is_a_bump_of_the_contents_shape():
    image = torch.randn(2, 1, SIZE, SIZE)
    shown = full(methods.centre(Pixels()), image)
    assert peak(shown).tolist() == [pytest.approx([31.5] * 2, abs=STEP)] * 2
    sizes = [((one > 0.5).any(dim=0).sum(), (one > 0.5).any(dim=1).sum()) for one in shown[:, 0]]
    assert [float(wide / high) for wide, high in sizes] == pytest.approx([0.5, 1.0], abs=0.1)
    assert torch.equal(shown, full(methods.centre(Pixels()), -image))


def test_the_mean_mask_lies_where_lesions_were():
    masks = np.zeros((3, SIZE, SIZE), dtype=np.uint8)
    masks[:2, 8:16, 40:56] = 255
    masks[2, 50:54, 4:8] = 255
    shown = full(methods.mean_mask(masks), torch.randn(2, 1, SIZE, SIZE))
    assert peak(shown).tolist() == [pytest.approx([47.5, 11.5], abs=STEP)] * 2
    assert 0 < shown[0, 0, 52, 6] < 0.5


def test_the_edge_map_peaks_on_the_edge_and_is_dark_elsewhere():
    image = torch.ones(2, 1, SIZE, SIZE)
    image[0, ..., 40:] = 3.0
    shown = full(methods.EDGE_MAP, image)
    assert abs(float(peak(shown)[0, 0]) - 39.5) <= STEP
    assert max(shown[0, 0, :, :20].max(), shown[1].max()) < 0.01


def test_noise_depends_on_the_image_alone():
    image, draw = torch.randn(3, 1, SIZE, SIZE), methods.NOISE_MAP.draw
    state = torch.random.get_rng_state()
    shown = full(methods.NOISE_MAP, image, rows=(5, 6, 7))
    alone = draw(None, image[1:2], {"index": torch.tensor([6])})
    torch.testing.assert_close(alone[0], draw(None, image, {"index": torch.arange(5, 8)})[1])
    assert not torch.equal(shown[0], shown[1])
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.fixture(scope="module", params=["stage1", "stage3", "stage3 attention.pooling=lesion"])
def module(request):
    torch.manual_seed(0)
    return stages.settled(stages.network(*request.param.split())).eval()


@pytest.fixture(scope="module")
def batch():
    return stages.small_batch(images=2)


def draw(name, module, batch):
    if name == "occlusion":
        pytest.importorskip("captum", reason="needs the extra peers")
    return raw_map(choose(name)[0], module, batch["image"], batch)


class LastFeatures(torch.nn.Module):
    """The network with a layer for grad-cam's hooks, which passes on the encoder's features."""

    def __init__(self, module):
        super().__init__()
        self.module, self.last = module, torch.nn.Identity()

    def forward(self, image):
        share = self.module.unmasked_pass(image).share
        return self.module.classify(self.last(self.module.encoder(image)[-1]), share)


@pytest.mark.parametrize(
    ("name", "theirs"),
    list(zip(QUICK, ("GradCAM", "GradCAMPlusPlus", "HiResCAM", "LayerCAM"), strict=True)),
)
def test_closed_forms_equal_grad_cams_own_formulas(module, batch, name, theirs):
    library = pytest.importorskip("pytorch_grad_cam", reason="needs the extra peers")
    network = LastFeatures(module).eval()
    explained = getattr(library, theirs)(network, [network.last])
    explained.activations_and_grads(batch["image"])[:, 1].sum().backward()
    hooks = explained.activations_and_grads
    arrays = hooks.activations[0].numpy(), hooks.gradients[0].numpy()
    raw = explained.get_cam_image(batch["image"], network.last, [], *arrays, False)
    hooks.release()
    module.zero_grad()
    expected = torch.from_numpy(raw)[:, None].relu()
    assert expected.any()
    torch.testing.assert_close(draw(name, module, batch), expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_depends_on_its_image_alone_and_changes_nothing(module, batch, name):
    before = {key: value.clone() for key, value in module.state_dict().items()}
    raw = draw(name, module, batch)
    assert raw.shape[-1] == (SIZE if name == "occlusion" else SIZE // 16)
    assert raw.min() >= 0
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert not any(part.training or part._forward_hooks for part in module.modules())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = draw(name, module, {key: value[:1] for key, value in batch.items()})
    torch.testing.assert_close(alone, raw[:1], atol=1e-5, rtol=1e-3)


class BrightSquares(torch.nn.Module):
    """Two feature maps, the image above 0 and below it; the first alone speaks for abnormal."""

    upsample = staticmethod(upsample)

    def encoder(self, image):
        cells = torch.cat([image.relu(), (-image).relu()], dim=1)
        return [torch.nn.functional.avg_pool2d(cells, 16)]

    def forward(self, image):
        return self.encoder(image)[-1].mean((2, 3)).flip(1) * torch.tensor([[0.0, 1.0]])


def test_score_cam_is_its_formula_and_occlusion_the_fall_of_the_score():
    image, point = torch.zeros(2, 1, 1, SIZE, SIZE)
    image[..., 16:32, 32:48] = 2.0  # for abnormal
    image[..., 48:64, 0:16] = -2.0  # says nothing
    network, index = BrightSquares().eval(), torch.tensor([0])
    features = network.encoder(image)[-1]
    scores = network(image * normalise(upsample(features, (SIZE, SIZE))).transpose(0, 1))[:, 1]
    expected = (scores.softmax(0).view(1, 2, 1, 1) * features).sum(1, keepdim=True)
    raw = draw("scorecam", network, {"image": image, "index": index})
    torch.testing.assert_close(raw, expected)
    point[..., 20, 36] = 2.0  # hidden whole by each window that reaches it
    fall = draw("occlusion", network, {"image": point, "index": index})[0, 0]
    torch.testing.assert_close(fall[20, 36], network(point)[0, 1] - network(0 * point)[0, 1])
    assert fall[20 + 8, 36] == fall[20, 36 - 8] == 0


def test_names_choose_peers(monkeypatch):
    assert [one.name for one in choose("quick")] == list(QUICK)
    assert [one.name for one in choose("scorecam,gradcam,scorecam")] == ["scorecam", "gradcam"]
    assert choose(None) == []
    with pytest.raises(RunError, match="no peer method gradcat: expected gradcam"):
        choose("gradcam,gradcat")
    monkeypatch.setitem(sys.modules, "captum", None)  # Python's own sign of "not there"
    with pytest.raises(RunError, match=r"occlusion needs captum. Fix: pip install .*'\.\[peers\]'"):
        choose("all")
