"""The audit on networks whose answers are known."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.audit import audit
from experiments.audit import sample as audit_sample
from experiments.audit.cascade import steps
from experiments.audit.perturbation import SHARES
from experiments.audit.table import above_until, describe_audit, differs
from experiments.evaluation.methods import EDGE_MAP
from experiments.evaluation.statistics import Difference, Estimate
from experiments.evaluation.store import plain
from tests.stages import SIZE, network, settled

IMAGES = 12


class Data:
    """Twelve abnormal images, two a patient, and twelve normal ones."""

    table = pd.DataFrame(
        {
            "label": np.repeat([1, 0], IMAGES),
            "patient": np.arange(2 * IMAGES) // 2,
        }
    )

    def __init__(self):
        self.images = torch.randn(
            2 * IMAGES, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)
        )

    def rows_of(self, split):
        """All of them."""
        return np.arange(2 * IMAGES)

    def evaluation_dataloader(self, split):
        """Batches of five."""
        for rows in torch.arange(2 * IMAGES).split(5):
            yield {
                "image": self.images[rows],
                "index": rows,
                "lesion_mask": torch.zeros(len(rows), 1, SIZE, SIZE),
                "has_lesion": torch.zeros(len(rows), dtype=torch.bool),
            }

    def on_after_batch_transfer(self, batch, _):
        """Leave it as it is."""
        return batch


@pytest.fixture(scope="module")
def sample():
    return audit_sample.draw_sample(Data(), "test")


@pytest.fixture(scope="module", params=["stage1", "stage3"])
def module(request):
    torch.manual_seed(0)
    return settled(network(request.param)).eval()


def table_of(masked, swapped, label):
    return pd.DataFrame(
        {
            "label": label,
            "patient": [str(row) for row in range(len(label))],
            "masked_probability": masked,
            "swapped_masked_probability": swapped,
        }
    )


# The sample ---------------------------------------------------------------------------------------


def test_a_sample_is_of_abnormal_images_in_the_order_drawn():
    data = Data()
    sample = audit_sample.draw_sample(data, "test", images=7, seed=3)
    rows = sample.batch["index"].tolist()
    assert len(set(rows)) == 7
    assert max(rows) < IMAGES
    assert rows != sorted(rows)
    assert torch.equal(sample.batch["image"], data.images[rows])
    assert sample.patient.tolist() == [str(row // 2) for row in rows]
    again = audit_sample.draw_sample(data, "test", images=7, seed=3)
    assert again.batch["index"].tolist() == rows
    assert audit_sample.draw_sample(data, "test", images=7, seed=4).batch["index"].tolist() != rows


def test_the_other_image_is_of_another_patient(sample):
    assert (sample.patient[sample.other] != sample.patient).all()
    assert audit_sample._others(np.array(["a", "a", "b"])).tolist() == [2, 2, 0]
    assert audit_sample._others(np.array(["a", "a"])).tolist() == [-1, -1]


def test_a_split_without_abnormal_images_is_refused():
    data = Data()
    data.table = data.table.assign(label=0)
    with pytest.raises(ValueError, match="test has 0 abnormal images"):
        audit_sample.draw_sample(data, "test")


def test_maps_are_raw_and_of_the_size_of_the_image(module, sample):
    maps = audit_sample.make_maps(module, [EDGE_MAP], sample.batch)
    assert list(maps) == [*module.map_methods, "edges"]
    for drawn in maps.values():
        assert drawn.shape == (IMAGES, 1, SIZE, SIZE)
        assert drawn.min() >= 0
    scale = module.map_scale.clone()
    module.map_scale.fill_(1000.0)  # so that nothing is clipped
    for name, shown in module.maps(sample.batch["image"]).items():
        torch.testing.assert_close(maps[name], 1000 * shown, atol=1e-4, rtol=1e-4)
    module.map_scale.copy_(scale)


# The cascade --------------------------------------------------------------------------------------


def test_the_cascade_of_a_network(module, sample):
    maps = audit_sample.make_maps(module, [EDGE_MAP], sample.batch)
    found = audit.audit_cascade(module, [EDGE_MAP], sample, maps, draws=(7, 8))
    names = [name for name, _ in steps(module)]
    for result in found.values():
        assert list(result["steps"]) == list(result["excess"]) == names
        assert list(result["dark"]) == ["trained", *names]
    edges = found["edges"]
    assert edges["unchanged"]
    assert all(step["rank"].value == pytest.approx(1) for step in edges["steps"].values())
    assert not found["cam"]["unchanged"]
    assert found["cam"]["steps"]["stem"]["rank"].value < 0.9
    first, second = found["cam"]["draws"]["stem"]["rank"]
    assert first != second
    again = audit_sample.make_maps(module, [EDGE_MAP], sample.batch)
    assert all(torch.equal(maps[name], again[name]) for name in maps)


def test_what_a_map_does_not_read_does_not_change_it(sample):
    torch.manual_seed(0)
    module = settled(network("stage3")).eval()
    with torch.no_grad():
        module.decoder.output.weight.add_(1.0)
    maps = audit_sample.make_maps(module, [], sample.batch)
    found = audit.audit_cascade(module, [], sample, maps, draws=(7,))
    assert found["fcn"]["steps"]["fc"]["ssim"].value < 0.9  # the decoder's output layer
    # The decoder below its output is none of CAM's business.
    assert found["cam"]["steps"]["decoder"] == found["cam"]["steps"]["fc"]


def result_of(rank, ssim, unchanged=False):
    """A method's results of which only the excess matters: (value, half width) a step."""

    def around(value, half=0.1):
        return Difference(value, value - half, value + half, 0.0, 0.5)

    names = ["fc", "stages.2.3", "stem"]
    return {
        "excess": {
            name: {"rank": around(r), "ssim": around(s)}
            for name, r, s in zip(names, rank, ssim, strict=True)
        },
        "unchanged": unchanged,
    }


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
    assert above_until(result_of(rank, ssim, unchanged)) == until


def test_a_mean_over_draws_leaves_out_dark_maps():
    nan = float("nan")
    found = audit._mean_over([np.array([1.0, nan, nan]), np.array([3.0, 2.0, nan])])
    np.testing.assert_array_equal(found, [2.0, 2.0, nan])


# Repeatability ------------------------------------------------------------------------------------


def test_the_same_run_twice_repeats_itself(module, sample):
    maps = audit_sample.make_maps(module, [], sample.batch)
    found = audit.audit_repeatability([maps, maps], sample)["cam"]
    for measure in audit.MEASURES:
        assert found["alike"][measure].value == pytest.approx(1)
        assert found["floor"][measure].value < 1
        assert found["pairs"][measure] == [pytest.approx(1)]
    assert {differs(found["excess"][measure]) for measure in audit.MEASURES} == {"higher"}


def test_three_runs_make_three_pairs(sample):
    runs = [
        {"cam": torch.rand(IMAGES, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))}
        for seed in range(3)
    ]
    found = audit.audit_repeatability(runs, sample)["cam"]
    assert len(found["pairs"]["rank"]) == 3
    assert found["alike"]["rank"].value == pytest.approx(np.mean(found["pairs"]["rank"]))
    assert abs(found["alike"]["rank"].value) < 0.05
    assert differs(found["excess"]["rank"]) == "no"


def test_one_run_repeats_nothing(sample):
    with pytest.raises(ValueError, match="two runs"):
        audit.audit_repeatability([{}], sample)


# Deletion and insertion ---------------------------------------------------------------------------


class Spot(torch.nn.Module):
    """Abnormal by how bright the spot is that each image has in the middle."""

    place = (slice(None), slice(None), slice(28, 36), slice(28, 36))  # 1.6 % of the image

    def forward(self, image):
        level = 10 * (image[self.place].mean((1, 2, 3)) - 1)
        return torch.stack([torch.zeros_like(level), level], dim=1)


def spots(images):
    image = torch.zeros(images, 1, SIZE, SIZE)
    image[Spot.place] = 2.0
    number = np.arange(images)
    batch = {
        "image": image,
        "index": torch.arange(images),
        "lesion_mask": image / 2,
        "has_lesion": torch.arange(images) > 0,  # all but the first
    }
    return audit_sample.Sample(batch, number.astype(str), np.roll(number, 1))


def test_a_perfect_map_beats_the_random_order_and_its_reverse_loses():
    sample = spots(100)
    image = sample.batch["image"]
    found = audit.audit_perturbation(Spot(), sample, {"spot": image, "rest": 2 - image}, 16)
    assert list(found) == [audit.RANDOM, "spot", "rest", audit.LESION]
    assert found["spot"]["deletion_whole"].value < 0.15
    assert found["spot"]["insertion_whole"].value > 0.97
    # The first 2 % of the pixels are the spot: of 10 %, a tenth to a fifth is lost on the way.
    assert 0.1 < found["spot"]["deletion"].value < 0.3
    assert found["rest"]["deletion"].value > 0.9
    # The mask is the spot as well, smoothed; the image without one is left out.
    assert found[audit.LESION]["deletion"].value < 0.3
    assert found[audit.LESION]["deletion"].undefined == 0
    assert len(found["spot"]["curves"]["deletion"]) == len(SHARES)
    assert against(found["spot"]) == {"deletion": ["lower"], "insertion": ["higher"]}
    assert against(found["rest"]) == {"deletion": ["higher"], "insertion": ["lower"]}


def test_a_map_is_also_compared_with_the_edges():
    sample = spots(100)
    image = sample.batch["image"]
    found = audit.audit_perturbation(Spot(), sample, {"edges": image, "rest": 2 - image}, 16)
    assert list(found["edges"]["less"]["deletion"]) == [audit.RANDOM]
    assert against(found["rest"]) == {"deletion": ["higher"] * 2, "insertion": ["lower"] * 2}
    found = audit.audit_perturbation(Spot(), sample, {"edges": image, "same": image}, 16)
    assert against(found["same"]) == {"deletion": ["lower", "no"], "insertion": ["higher", "no"]}


def test_a_random_map_is_as_the_random_order():
    sample = spots(100)
    one = sample.batch["image"][:1]
    noise = [audit.perturbation.random_map(one, number, 16) for number in range(1000, 1100)]
    found = audit.audit_perturbation(Spot(), sample, {"noise": torch.cat(noise)}, 16)
    assert against(found["noise"]) == {"deletion": ["no"], "insertion": ["no"]}


def test_images_of_one_patient_have_no_interval():
    sample = spots(10)._replace(patient=np.repeat("one", 10))
    image = sample.batch["image"]
    found = audit.audit_perturbation(Spot(), sample, {"edges": image, "rest": 2 - image}, 16)
    assert against(found["rest"]) == {"deletion": ["-"] * 2, "insertion": ["-"] * 2}


def against(result):
    """How the first 10 % of a map's order differ from the random order and the edges."""
    return {
        way: [differs(value) for value in result["less"][way].values()]
        for way in ("deletion", "insertion")
    }


# The leak -----------------------------------------------------------------------------------------

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
    found = audit.audit_leak(table_of(LABEL, swapped, LABEL))
    assert found["masked_accuracy"].value == 1
    assert found["one_answer"].value == 0.5
    assert found["swapped_abnormal"] == abnormal
    assert differs(found["excess"]) == beside_one_answer


# All of it ----------------------------------------------------------------------------------------


def test_a_whole_audit_is_written_and_told(module, sample):
    label = np.asarray([1, 0] * 10)
    table = table_of(label, label, label) if module.stage == "stage3" else pd.DataFrame()
    found, maps = audit.audit_run(module, [EDGE_MAP], sample, table)
    assert set(found) >= {"cascade", "perturbation"}
    assert ("leak" in found) == (module.stage == "stage3")
    found["repeatability"] = {
        "runs": ["seed0", "seed1"],
        "methods": audit.audit_repeatability([maps, maps], sample),
    }
    text = describe_audit(found, IMAGES)
    assert max(len(line) for line in text.splitlines()) <= 100
    for method in (*module.map_methods, "edges"):
        assert len(re.findall(rf"^ +{method} ", text, re.M)) == 4
    assert "NaN" not in json.dumps(plain(found))


def test_a_network_of_the_masks_alone_is_asked_for_its_fcn_alone(sample):
    torch.manual_seed(0)
    module = settled(network("stage3", "loss.classification=false")).eval()
    found, maps = audit.audit_run(module, [], sample, pd.DataFrame())
    assert list(maps) == ["fcn"]
    assert list(found) == ["cascade"]


def test_nan_becomes_null():
    value = SimpleNamespace  # not a figure
    assert plain({"a": [float("nan"), 1], "b": value}) == {"a": [None, 1], "b": value}
    assert plain(Estimate(0.5, 0.25, 0.75, 0.0))["high"] == 0.75
