"""The audit: random weights, repeatability and the leak, on known networks and real runs."""

import contextlib
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import evaluate
from experiments.audit import audit
from experiments.audit.cascade import audit_cascade, cascade, steps
from experiments.audit.maps import MEASURES, _others, draw_sample, make_maps
from experiments.evaluation.methods import EDGE_MAP
from experiments.evaluation.statistics import Difference
from lightning_modules import STAGES
from tests.stages import SIZE, network, settled

IMAGES = 12
PEERS = ["gradcam", "gradcampp", "hirescam", "layercam"]
BLOCKS = ["stages.2.3", "stages.2.2", "stages.2.1", "stages.2.0", "stages.1.1", "stages.1.0"]


class Data:
    """Twelve abnormal images, two a patient, and twelve normal ones."""

    def __init__(self, label=1):
        number = np.arange(2 * IMAGES)
        self.table = pd.DataFrame({"label": label * (number < IMAGES), "patient": number // 2})
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(2 * IMAGES, 1, SIZE, SIZE, generator=generator)

    def rows_of(self, split):
        return np.arange(2 * IMAGES)

    def evaluation_dataloader(self, split):
        for rows in torch.arange(2 * IMAGES).split(5):
            yield {"image": self.images[rows], "index": rows}

    def on_after_batch_transfer(self, batch, _):
        return batch


@pytest.fixture(scope="module")
def sample():
    return draw_sample(Data(), "test")


@pytest.fixture(scope="module", params=sorted(STAGES))
def module(request):
    torch.manual_seed(0)
    trained = settled(network(request.param)).eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return trained


def against(result):
    """How the first 10 % of a map's order differ from the random order and the edges."""
    less = {way: result["less"][way].values() for way in ("deletion", "insertion")}
    return {way: [audit.differs(value) for value in values] for way, values in less.items()}


# The sample and its maps --------------------------------------------------------------------------


def test_a_sample_is_of_abnormal_images_in_the_order_drawn():
    data = Data()
    sample = draw_sample(data, "test", images=7, seed=3)
    rows = sample.batch["index"].tolist()
    assert len(set(rows)) == 7
    assert max(rows) < IMAGES
    assert rows != sorted(rows)
    assert torch.equal(sample.batch["image"], data.images[rows])
    assert sample.patient.tolist() == [str(row // 2) for row in rows]
    assert (sample.patient[sample.other] != sample.patient).all()
    drawn = [draw_sample(data, "test", 7, seed).batch["index"].tolist() for seed in (3, 4)]
    assert drawn[0] == rows != drawn[1]
    assert _others(np.array(["a", "a", "b"])).tolist() == [2, 2, 0]
    assert _others(np.array(["a", "a"])).tolist() == [-1, -1]
    with pytest.raises(ValueError, match="test has 0 abnormal images"):
        draw_sample(Data(label=0), "test")


def test_maps_are_raw_and_of_the_size_of_the_image(module, sample):
    maps = make_maps(module, [EDGE_MAP], sample.batch)
    assert list(maps) == [*module.map_methods, "edges"]
    assert {tuple(drawn.shape) for drawn in maps.values()} == {(IMAGES, 1, SIZE, SIZE)}
    assert min(float(drawn.min()) for drawn in maps.values()) >= 0
    scale = module.map_scale.clone()
    module.map_scale.fill_(1000.0)  # so that nothing is clipped
    for name, shown in module.maps(sample.batch["image"]).items():
        torch.testing.assert_close(maps[name], 1000 * shown, atol=1e-4, rtol=1e-4)
    module.map_scale.copy_(scale)


# The cascade --------------------------------------------------------------------------------------


def weights(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_each_step_draws_its_own_weights_and_leaves_the_trained_network_alone(module, sample):
    made = steps(module)
    decoder = ["decoder"] if module.stage == "stage3" else []
    assert list(made) == ["fc", *decoder, *BLOCKS, "stages.0.0", "stem"]
    state, kept = torch.get_rng_state(), {k: v.clone() for k, v in module.state_dict().items()}
    trained = before = weights(module)
    for name, changed in cascade(module, sample.batch["image"], seed=5):
        now = weights(changed)
        moved = {key for key in now if not torch.equal(now[key], before[key])}
        assert moved, name
        assert all(key.startswith(made[name]) for key in moved), name
        own = {key for key in now if key.startswith(made[name])}
        assert not any(torch.equal(now[key], trained[key]) for key in own), name
        assert not any(part.training for part in (*changed.modules(), *module.modules()))
        if name == "fc":  # trained layers keep their running statistics
            pairs = zip(module.encoder.buffers(), changed.encoder.buffers(), strict=True)
            assert all(torch.equal(*pair) for pair in pairs)
        before = now
    assert all(torch.equal(value, kept[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    # In the end, all weights are those that a training of this seed would begin with.
    torch.manual_seed(5)
    begun = network(module.stage)
    assert all(torch.equal(now[key], value) for key, value in begun.named_parameters())
    norm = changed.encoder.stem[2]  # random layers are normalised by the images
    with torch.no_grad():
        seen = changed.encoder.stem[:2](sample.batch["image"])
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_the_cascade_of_a_network(module, sample):
    maps = make_maps(module, [EDGE_MAP], sample.batch)
    results = audit_cascade(module, [EDGE_MAP], sample, maps, draws=(7, 8))
    for result in results.values():
        assert list(result["steps"]) == list(result["excess"]) == list(steps(module))
        assert list(result["dark"]) == ["trained", *steps(module)]
    edges = results["edges"]
    assert edges["unchanged"]
    assert all(step["rank"].value == pytest.approx(1) for step in edges["steps"].values())
    assert not results["cam"]["unchanged"]
    assert results["cam"]["steps"]["stem"]["rank"].value < 0.9
    first, second = results["cam"]["draws"]["stem"]["rank"]
    assert first != second
    if "fcn" in results:  # the decoder below its output is none of CAM's business
        assert results["cam"]["steps"]["decoder"] == results["cam"]["steps"]["fc"]
        assert results["fcn"]["steps"]["fc"]["ssim"].value < 0.9  # its output layer


@pytest.mark.parametrize(
    ("rank", "ssim", "unchanged", "until"),
    [
        ((0.0, 0.05, -0.3), (0, 0, 0), False, "nothing"),
        ((0.5, 0.0, 0.0), (0, 0, 0), False, "fc"),
        ((0.5, 0.0, 0.0), (0, 0.2, 0), False, "stages.2.3"),
        ((0.5, 0.0, 0.2), (0, 0, 0), False, "all layers"),
        ((0.5, 0.5, 0.0), (0, 0, 0), False, "fc"),  # the second step does not concern the map
        ((float("nan"),) * 3, (0, 0, 0), False, "-"),
        ((0, 0, 0), (0, 0, 0), True, "does not read the network"),
    ],
)
def test_until_when_a_map_stays_like_the_trained_one(rank, ssim, unchanged, until):
    pairs = [
        [Difference(v, v - 0.1, v + 0.1, 0.0, 0.5) for v in both]
        for both in zip(rank, ssim, strict=True)
    ]
    names = ["fc", "stages.2.3", "stem"]
    excess = {n: {"rank": r, "ssim": s} for n, (r, s) in zip(names, pairs, strict=True)}
    assert audit.above_until({"excess": excess, "unchanged": unchanged}) == until


# Repeatability and the leak -----------------------------------------------------------------------


def test_the_same_run_twice_repeats_itself_and_three_random_ones_do_not(module, sample):
    maps = make_maps(module, [], sample.batch)
    same = audit.audit_repeatability([maps, maps], sample)["cam"]
    for measure in MEASURES:
        assert same["alike"][measure].value == pytest.approx(1)
        assert same["floor"][measure].value < 1
        assert same["pairs"][measure] == [pytest.approx(1)]
        assert audit.differs(same["excess"][measure]) == "higher"
    draws = [torch.Generator().manual_seed(seed) for seed in range(3)]
    noise = [{"cam": torch.rand(IMAGES, 1, SIZE, SIZE, generator=draw)} for draw in draws]
    other = audit.audit_repeatability(noise, sample)["cam"]
    assert len(other["pairs"]["rank"]) == 3
    assert other["alike"]["rank"].value == pytest.approx(np.mean(other["pairs"]["rank"]))
    assert abs(other["alike"]["rank"].value) < 0.05
    assert audit.differs(other["excess"]["rank"]) == "no"


LABEL = np.repeat([1, 0], 20)


@pytest.mark.parametrize(
    ("swapped", "beside_one_answer", "abnormal"),
    [
        (LABEL, "higher", {"abnormal": 1.0, "normal": 0.0}),
        (1 - LABEL, "lower", {"abnormal": 0.0, "normal": 1.0}),
        (np.zeros(40), "no", {"abnormal": 0.0, "normal": 0.0}),
    ],
)
def test_a_leak_is_seen(swapped, beside_one_answer, abnormal):
    rows = pd.DataFrame({"label": LABEL, "patient": range(40), "masked_probability": LABEL})
    leak = audit.audit_leak(rows.assign(swapped_masked_probability=swapped))
    assert (leak["masked_accuracy"].value, leak["one_answer"].value) == (1, 0.5)
    assert leak["swapped_abnormal"] == abnormal
    assert audit.differs(leak["excess"]) == beside_one_answer


# Real runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audited(trained, tmp_path_factory):
    """Two seeds of stage 1 and one of stage 3, judged and audited in one go; what was printed."""
    root = tmp_path_factory.mktemp("runs")
    runs = [trained.copy(name, root) for name in ("stage1", "second", "stage3")]
    words = [*map(str, runs), "--no-baselines", "--peers", "quick", "--audit"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert evaluate.main([*words, "--audit-images", "6"]) == 0
    return runs, text.getvalue()


def results_of(run):
    folder = run / "evaluation" / "test"
    text = (folder / "audit.json").read_text()
    assert "NaN" not in text  # JSON has none
    return json.loads(text), pd.read_csv(folder / "images.csv")


@pytest.mark.slow
def test_each_run_has_its_audit(audited):
    runs, printed = audited
    for run in runs:
        results, table = results_of(run)
        fcn = ["fcn"] if "stage3" in str(run) else []
        assert list(results["cascade"]) == ["cam", "pcam", *fcn, *PEERS, "edges"]
        assert results["images"] == min(6, (table["label"] == 1).sum())
        assert ("leak" in results) == bool(fcn)
        assert ("repeatability" in results) != bool(fcn)
        assert f"{run}:" in printed
        assert str(run / "evaluation" / "test" / "audit.json") in printed
    first, second = (results_of(run)[0]["repeatability"] for run in runs[:2])
    assert first == second
    assert first["runs"] == ["seed0", "seed1"]
    for title in ("SSIM with the trained", "mean score while", "that differ in the", "accuracy of"):
        assert title in printed
    assert max(map(len, printed.splitlines())) <= 120  # paths are long


def test_a_network_of_masks_alone_is_asked_for_its_fcn_alone(sample):
    torch.manual_seed(0)
    module = settled(network("stage3", "loss.classification=false")).eval()
    assert list(make_maps(module, [], sample.batch)) == ["fcn"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--peers", "gradcat"], "gradcat: no peer method; there are gradcam"),
        (["--audit-images", "6"], "--audit-images needs --audit"),
        (["--audit", "--audit-images", "1"], "--audit-images needs --audit, and two or more"),
    ],
)
def test_refused_requests(capsys, words, error):
    try:
        status = evaluate.main(["somewhere", *words])
    except SystemExit as refused:  # options that contradict one another are argparse's to refuse
        status = refused.code
    assert status == 2
    assert error in capsys.readouterr().err
