"""Peer methods: what is known of them on a network of global average pooling and one FC layer."""

import sys

import pytest
import torch

from experiments.evaluation.methods import raw_map
from experiments.evaluation.peers import PEERS, peers
from experiments.runs import RunError
from lightning_modules import STAGES
from lightning_modules.attention import normalise, upsample
from lightning_modules.stage1 import Stage1Classifier
from tests.stages import SIZE, settled, small_batch

pytest.importorskip("pytorch_grad_cam", reason="needs the extra peers")
pytest.importorskip("captum", reason="needs the extra peers")


@pytest.fixture(scope="module")
def batch():
    return small_batch(images=2)


@pytest.fixture(scope="module", params=sorted(STAGES))
def module(request):
    torch.manual_seed(0)
    return settled(STAGES[request.param](width=0.25)).eval()


def draw(name, module, batch):
    return raw_map(peers([name])[0], module, batch["image"], batch)


@pytest.mark.parametrize(
    ("name", "own"), [("gradcam", "cam"), ("hirescam", "cam"), ("layercam", "pcam")]
)
def test_after_average_pooling_they_are_cam_and_pcam(module, batch, name, own):
    with torch.no_grad():
        expected = module.raw_maps(module.encoder(batch["image"]))[own].relu()
    assert expected.any()
    cells = expected.shape[-2] * expected.shape[-1]
    torch.testing.assert_close(draw(name, module, batch), expected / cells, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("name", PEERS)
def test_the_network_is_left_as_it_was_found(module, batch, name):
    before = {key: value.clone() for key, value in module.state_dict().items()}
    hooks = {key: len(part._forward_hooks) for key, part in module.named_modules()}
    with torch.inference_mode():  # as in evaluation
        raw = draw(name, module, batch)
    assert raw.dtype == torch.float32
    assert raw.shape[-1] == (SIZE if name == "occlusion" else SIZE // 16)
    assert raw.min() >= 0
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert {key: len(part._forward_hooks) for key, part in module.named_modules()} == hooks
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert not any(part.training for part in module.modules())


@pytest.mark.parametrize("name", PEERS)
def test_a_map_depends_on_its_own_image_alone(module, batch, name):
    alone = {key: value[:1] for key, value in batch.items()}
    both = draw(name, module, batch)[:1]
    torch.testing.assert_close(draw(name, module, alone), both, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", PEERS)
def test_autocast_around_them_changes_nothing(module, batch, name):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = draw(name, module, batch)
    torch.testing.assert_close(within, draw(name, module, batch))


@pytest.mark.parametrize("name", PEERS)
def test_a_network_in_training_is_refused(batch, name):
    with pytest.raises(ValueError, match="in training mode: call eval"):
        draw(name, Stage1Classifier(width=0.25), batch)


class BrightSquares(torch.nn.Module):
    """Two feature maps, the image above 0 and below it; the first alone speaks for abnormal."""

    def __init__(self, weight=((0.0, 0.0), (1.0, 0.0))):
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor(weight))
            self.fc.bias.zero_()

    def encoder(self, image):
        cells = torch.cat([image.relu(), (-image).relu()], dim=1)
        return [torch.nn.functional.avg_pool2d(cells, 16)]

    def classify(self, features):
        return self.fc(features.mean((2, 3)))

    def forward(self, image):
        return self.classify(self.encoder(image)[-1])


@pytest.fixture
def squares():
    image = torch.zeros(1, 1, SIZE, SIZE)
    image[..., 16:32, 32:48] = 2.0  # cell (1, 2): for abnormal
    image[..., 48:64, 0:16] = -2.0  # cell (3, 0): says nothing
    return {"image": image, "index": torch.tensor([0])}


@pytest.mark.parametrize("name", PEERS)
def test_what_alone_speaks_for_abnormal_is_found(squares, name):
    found = draw(name, BrightSquares().eval(), squares)[0, 0]
    side = SIZE // found.shape[-1]
    y, x = divmod(int(found.argmax()), found.shape[-1])
    assert (y * side // 16, x * side // 16) == (1, 2)
    if name == "scorecam":  # the softmax gives a mask that helps nothing a weight, too
        assert found[3, 0] < found[1, 2]
    else:
        assert found[-1, 0] == 0


def test_score_cam_equals_the_formula(squares):
    network = BrightSquares().eval()
    features = network.encoder(squares["image"])[-1]
    masks = normalise(upsample(features, (SIZE, SIZE)))
    scores = network(squares["image"] * masks.transpose(0, 1))[:, 1]
    expected = (scores.softmax(0).view(1, 2, 1, 1) * features).sum(1, keepdim=True)
    torch.testing.assert_close(draw("scorecam", network, squares), expected)


def test_occlusion_is_the_fall_of_the_score(squares):
    network = BrightSquares().eval()
    image = torch.zeros_like(squares["image"])
    black = network(image)[0, 1]
    image[..., 20, 36] = 2.0  # hidden whole by each window that reaches it
    found = draw("occlusion", network, {**squares, "image": image})[0, 0]
    torch.testing.assert_close(found[20, 36], network(image)[0, 1] - black)
    assert found[20 + 8, 36] == 0
    assert found[20, 36 - 8] == 0


def test_an_unknown_name_is_told():
    with pytest.raises(RunError, match="gradcat: no peer method; there are gradcam"):
        peers(["gradcam", "gradcat"])


@pytest.mark.parametrize("name", PEERS)
def test_a_missing_extra_is_told_with_the_remedy(monkeypatch, name):
    for library in ("pytorch_grad_cam", "captum.attr"):
        monkeypatch.setitem(sys.modules, library, None)  # Python's own sign of "not there"
    with pytest.raises(RunError, match=r"install the extra: .*'\.\[peers\]'"):
        peers([name])
