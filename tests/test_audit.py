"""The audit: on known maps and networks, against SciPy and known answers, and on real runs."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from experiments import evaluate
from experiments.audit import audit
from experiments.audit import interventions as changes
from experiments.audit import maps as looks
from experiments.audit.maps import MEASURES, alike, draw_sample, make_maps
from experiments.evaluation.methods import EDGE_MAP, smooth
from experiments.evaluation.statistics import Difference
from lightning_modules.options import Model
from tests.stages import SIZE, network, settled

IMAGES, SIDE = 12, 24
BLOCKS = ["stages.2.3", "stages.2.2", "stages.2.1", "stages.2.0", "stages.1.1", "stages.1.0"]


def noise(seed, images=3, side=SIDE):
    return torch.rand(images, 1, side, side, generator=torch.Generator().manual_seed(seed))


class Data:
    """Twelve abnormal images, two a patient, and twelve normal ones."""

    number, images = np.arange(2 * IMAGES), noise(0, 2 * IMAGES, SIZE)
    table = pd.DataFrame({"label": number < IMAGES, "patient": number // 2})

    def rows_of(self, split):
        return self.number if split == "test" else self.number[IMAGES:]

    def evaluation_dataloader(self, split):
        for rows in torch.arange(2 * IMAGES).split(5):
            yield {"image": self.images[rows], "index": rows}

    def on_after_batch_transfer(self, batch, _):
        return batch


@pytest.fixture(scope="module")
def sample():
    return draw_sample(Data(), "test")


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    trained = settled(network("stage3")).eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return trained


def test_a_sample_is_of_abnormal_images_in_the_order_drawn():
    data = Data()
    sample = draw_sample(data, "test", images=7, seed=3)
    rows = sample.batch["index"].tolist()
    assert (len(set(rows)), max(rows) < IMAGES, rows != sorted(rows)) == (7, True, True)
    assert torch.equal(sample.batch["image"], data.images[rows])
    assert sample.patient.tolist() == [str(row // 2) for row in rows]
    assert (sample.patient[sample.other] != sample.patient).all()
    drawn = [draw_sample(data, "test", 7, seed).batch["index"].tolist() for seed in (3, 4)]
    assert drawn[0] == rows != drawn[1]
    assert looks._others(np.array(["a", "a", "b"])).tolist() == [2, 2, 0]
    assert looks._others(np.array(["a", "a"])).tolist() == [-1, -1]
    with pytest.raises(ValueError, match="val has 0 abnormal images"):
        draw_sample(data, "val")


def test_maps_are_raw_and_of_the_size_of_the_image(module, sample):
    scale = module.map_scale.clone()
    module.map_scale.fill_(1000.0)  # so that nothing is clipped
    for module.model.mirror, module.model.zoom in ((True, 1.5), (False, 1.0)):
        maps = make_maps(module, [EDGE_MAP], sample.batch)
        assert list(maps) == [*module.map_methods, "edges"]
        assert {tuple(drawn.shape) for drawn in maps.values()} == {(IMAGES, 1, SIZE, SIZE)}
        for name, shown in module.maps(sample.batch["image"]).items():
            torch.testing.assert_close(maps[name], 1000 * shown, atol=1e-4, rtol=1e-4)
    module.map_scale.copy_(scale)
    alone = settled(network("stage3", "loss.classification=false")).eval()  # it knows no class
    assert list(make_maps(alone, [], sample.batch)) == ["fcn"]


def test_only_the_shape_counts_and_a_constant_map_has_none():
    one, other = noise(0, side=80), noise(1, side=80)
    np.testing.assert_allclose(alike(one, one.clone()), np.ones((3, 3)), atol=1e-6)
    np.testing.assert_allclose(alike(7 * one, other / 9), alike(one, other), atol=1e-5)
    other[1] = 0.0
    values = dict(zip(MEASURES, alike(one, other), strict=True))
    for measure in ("ssim", "rank"):
        assert np.isnan(values[measure]).tolist() == [False, True, False]
    assert values["iou"][1] == 0  # a region and none: nothing in common
    moved = alike(one, one, np.array([1, 0, -1]))  # of another patient, where there is one
    assert np.isnan(moved).tolist() == [[False, False, True]] * 3
    for cut in (0.0, 0.95):  # ties
        a, b = (noise(0) - cut).relu(), (noise(0) + 0.5 * noise(1) - cut).relu()
        expected = [spearmanr(*p).statistic for p in zip(a.flatten(1), b.flatten(1), strict=True)]
        np.testing.assert_allclose(looks.rank_correlation(a, b), expected, atol=1e-5)


def test_the_order_of_pixels_and_the_top_region_leave_the_dark_rest_to_chance():
    map = torch.zeros(1, 1, 4, 5)
    assert not looks.top_region(map).any()
    map[0, 0, 2, 3], map[0, 0, 1, 1] = 5.0, 2.0
    assert looks.top_region(map, 0.25).nonzero()[:, 2:].tolist() == [[1, 1], [2, 3]]
    order = changes.pixel_order(map)[0].tolist()
    assert order[:2] == [13, 6]
    assert sorted(order) == list(range(20))
    assert order[2:] != sorted(order[2:])


def test_each_step_draws_its_own_weights_and_leaves_the_trained_network_alone(module, sample):
    made = changes.steps(module)
    assert list(made) == ["fc", "decoder", *BLOCKS, "stages.0.0", "stem"]
    state, kept = torch.get_rng_state(), {k: v.clone() for k, v in module.state_dict().items()}
    trained = dict(module.named_parameters())
    random: tuple[str, ...] = ()
    for name, changed in changes.cascade(module, sample.batch["image"], seed=5):
        random += made[name]
        now = dict(changed.named_parameters())
        moved = {key for key in now if not torch.equal(now[key], trained[key])}
        assert moved == {key for key in now if key.startswith(random)}, name
        assert not any(part.training for part in (*changed.modules(), *module.modules()))
        if name == "fc":  # trained layers keep their running statistics
            pairs = zip(module.encoder.buffers(), changed.encoder.buffers(), strict=True)
            assert all(torch.equal(*pair) for pair in pairs)
    assert all(torch.equal(value, kept[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    # In the end, all weights are those that a training of this seed would begin with.
    torch.manual_seed(5)
    begun = network("stage3")
    assert all(torch.equal(now[key], value) for key, value in begun.named_parameters())
    norm = changed.encoder.stem[2]  # random layers are normalised by the images
    with torch.no_grad():
        seen = changed.encoder.stem[:2](sample.batch["image"])
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_the_cascade_of_a_network(module, sample, monkeypatch):
    monkeypatch.setattr(changes, "DRAWS", (7, 8))
    maps = make_maps(module, [EDGE_MAP], sample.batch)
    results = changes.audit_cascade(module, [EDGE_MAP], sample, maps)
    edges, cam = results["edges"], results["cam"]
    assert list(cam["steps"]) == list(cam["excess"]) == list(changes.steps(module))
    assert list(cam["dark"]) == ["trained", *changes.steps(module)]
    assert all(step["rank"].value == pytest.approx(1) for step in edges["steps"].values())
    assert (edges["unchanged"], cam["unchanged"]) == (True, False)
    assert cam["steps"]["stem"]["rank"].value < 0.9
    assert len({*cam["draws"]["stem"]["rank"]}) == 2
    assert cam["steps"]["decoder"] == cam["steps"]["fc"]  # of the FCN alone, but for its output
    assert results["fcn"]["steps"]["fc"]["ssim"].value < 0.9  # its output layer


def test_until_when_a_map_stays_like_the_trained_one():
    def until(rank, ssim=(0, 0, 0), unchanged=False):
        steps = [
            {m: Difference(v, v - 0.1, v + 0.1, 0.0, 0.5) for m, v in (("rank", r), ("ssim", s))}
            for r, s in zip(rank, ssim, strict=True)
        ]
        excess = dict(zip(("fc", "stages.2.3", "stem"), steps, strict=True))
        return audit.above_until({"excess": excess, "unchanged": unchanged})

    assert until((0.0, 0.05, -0.3)) == "nothing"
    assert until((0.5, 0.0, 0.0), ssim=(0, 0.2, 0)) == "stages.2.3"
    assert until((0.5, 0.0, 0.2)) == "all layers"
    assert until((0.5, 0.5, 0.0)) == "fc"  # the second step does not concern the map
    assert until((float("nan"),) * 3) == "-"
    assert until((0, 0, 0), unchanged=True) == "does not read the network"


def test_a_perfect_map_changes_the_score_at_once_and_its_reverse_last():
    lesion = (slice(None), slice(None), slice(10, 14), slice(20, 24))  # 16 of 1600 pixels: 1 %
    image = torch.zeros(1, 1, 40, 40)
    image[lesion] = 1.0

    def brightness(image):
        return image[lesion].mean((1, 2, 3))  # 1 on the whole image

    scores = changes.perturbed(brightness, image.repeat(2, 1, 1, 1), torch.cat([image, 1 - image]))
    gone, late = brightness(smooth(image, changes.BLUR)).item(), len(changes.SHARES) - 1
    assert gone < 0.5
    assert scores["deletion"][0].tolist() == pytest.approx([1.0] + [gone] * late)
    assert scores["deletion"][1].tolist() == pytest.approx([1.0] * late + [gone])
    assert scores["insertion"][0].tolist() == pytest.approx([gone] + [1.0] * late)
    whole = [1 - 0.995 * (1 - gone), 1 - 0.1 * (1 - gone)]  # trapezoids, 1 % and 20 % wide
    assert changes.area_under(scores["deletion"]).tolist() == pytest.approx(whole)
    early = [1 - 0.95 * (1 - gone), 1]
    assert changes.area_under(scores["deletion"], until=0.1).tolist() == pytest.approx(early)


class Spot(torch.nn.Module):
    """Abnormal by how bright the spot is in the middle of an image."""

    place = (slice(None), slice(None), slice(28, 36), slice(28, 36))  # 1.6 % of 64 x 64 pixels
    encoder, model = SimpleNamespace(strides=(16,)), Model()

    def forward(self, image):
        level = 10 * (image[self.place].mean((1, 2, 3)) - 1)
        return torch.stack([torch.zeros_like(level), level], dim=1)


def test_a_perfect_map_beats_random_order_and_edges_and_its_reverse_loses():
    number, image = torch.arange(100), torch.zeros(100, 1, 64, 64)
    image[Spot.place] = 2.0
    batch = {"image": image, "index": number, "lesion_mask": image / 2, "has_lesion": number > 0}
    sample = looks.Sample(batch, number.numpy().astype(str), np.roll(number.numpy(), 1))
    edges = torch.cat([changes.random_map(image[:1], n, 16) for n in range(1000, 1100)])
    every = {"edges": edges, "spot": image, "rest": 2 - image}
    results = changes.audit_perturbation(Spot(), sample, every)
    assert list(results) == [changes.RANDOM, *every, changes.LESION]
    # The first 2 % of the pixels are the spot: of 10 %, a tenth to a fifth is lost on the way.
    assert 0.1 < results["spot"]["deletion"].value < 0.3
    # The mask is the spot as well, smoothed; the image without one is left out.
    assert results[changes.LESION]["deletion"].value < 0.3

    def against(way, name):  # the random order and the edges
        return [audit.differs(value) for value in results[name]["less"][way].values()]

    assert (against("deletion", "edges"), against("insertion", "edges")) == (["no"], ["no"])
    assert against("deletion", "spot") == against("insertion", "rest") == ["lower"] * 2
    assert against("deletion", "rest") == against("insertion", "spot") == ["higher"] * 2


def test_the_score_is_the_mean_of_the_views_as_the_networks_answer_is():
    number, image, beside = torch.arange(2), torch.zeros(2, 1, 64, 64), Spot()
    beside.place, beside.model = (*Spot.place[:3], slice(8, 16)), Model(mirror=True)
    image[beside.place] = 2.0  # the mirrored view has nothing there
    batch = {"image": image, "index": number, "has_lesion": number < 0}
    sample = looks.Sample(batch, np.array(["a", "b"]), np.array([1, 0]))
    curves = changes.audit_perturbation(beside, sample, {"spot": image})["spot"]["curves"]
    assert curves["deletion"][0] == pytest.approx(0.5, abs=0.01)


def test_the_same_run_twice_repeats_itself_and_three_random_ones_do_not(sample):
    maps = {"cam": noise(9, IMAGES, SIZE)}
    same = audit.audit_repeatability([maps, maps], sample)["cam"]
    for measure in MEASURES:
        assert same["pairs"][measure] == [pytest.approx(1)]
        assert same["floor"][measure].value < 1
        assert audit.differs(same["excess"][measure]) == "higher"
    runs = [{"cam": noise(seed, IMAGES, SIZE)} for seed in range(3)]
    other = audit.audit_repeatability(runs, sample)["cam"]
    assert len(other["pairs"]["rank"]) == 3
    assert other["alike"]["rank"].value == pytest.approx(np.mean(other["pairs"]["rank"]))
    assert audit.differs(other["excess"]["rank"]) == "no"


def test_a_leak_is_seen():
    label = np.repeat([1, 0], 20)
    table = pd.DataFrame({"label": label, "patient": range(40), "masked_probability": label})
    for swapped, beside_one_answer in ((label, "higher"), (1 - label, "lower"), (0 * label, "no")):
        leak = audit.audit_leak(table.assign(swapped_masked_probability=swapped))
        assert (leak["masked_accuracy"].value, leak["one_answer"].value) == (1, 0.5)
        called = [swapped[:20].mean(), swapped[20:].mean()]  # of abnormal and of normal images
        assert list(leak["swapped_abnormal"].values()) == called
        assert audit.differs(leak["excess"]) == beside_one_answer


@pytest.mark.slow
def test_each_run_has_its_audit(trained, tmp_path, monkeypatch, capsys):
    """Two seeds of stage 1 and one of stage 3, judged and audited in one go."""
    runs = [trained.copy(name, tmp_path) for name in ("stage1", "second", "stage3")]
    monkeypatch.setattr(changes, "DRAWS", (7,))
    words = [*map(str, runs), "--no-baselines", "--peers", "gradcampp", "--audit"]
    assert evaluate.main([*words, "--audit-images", "4"]) == 0
    printed, audits = capsys.readouterr().out, []
    for run in runs:
        written = (run / "evaluation/test/audit.json").read_text()
        assert "NaN" not in written  # JSON has none
        audits.append(results := json.loads(written))
        fcn = ["fcn"] if "stage3" in str(run) else []
        assert list(results["cascade"]) == ["cam", "pcam", *fcn, "gradcampp", "edges"]
        assert (results["images"], "leak" in results) == (4, bool(fcn))
        assert ("repeatability" in results) != bool(fcn)
        assert str(run / "evaluation" / "test" / "audit.json") in printed
    assert audits[0]["repeatability"] == audits[1]["repeatability"]
    assert audits[0]["repeatability"]["runs"] == ["seed0", "seed1"]
    for title in ("SSIM with the trained", "mean score while", "that differ in the", "accuracy of"):
        assert title in printed
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 120
    files = [run / "evaluation/test/audit.json" for run in runs[:2]]
    files[1].write_text(files[1].read_text().replace('"judged_on"', '"on_other_images"'))
    assert evaluate.main([*map(str, runs[:2]), "--no-baselines"]) == 0
    assert [file.exists() for file in files] == [True, False]
