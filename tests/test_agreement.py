"""Agreement against scikit-learn and pandas on all images, on one rank and on two."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    roc_auc_score,
)
from torch import distributed, multiprocessing

from lightning_modules.metrics import Agreement
from lightning_modules.metrics.per_image import first_rows

PARTS = ["elbow", "hand", "wrist"]


def draw(images=60, seed=0):
    """A table of images: studies of one to four views, one body part a study."""
    rng = np.random.default_rng(seed)
    study = np.sort(rng.integers(0, images // 2, size=images))
    label = rng.integers(0, 2, size=images // 2)[study]
    return pd.DataFrame(
        {
            "probability": np.clip(0.5 + 0.3 * (label - 0.5) + 0.25 * rng.normal(size=images), 0, 1)
            .astype(np.float32)
            .round(2),  # ties
            "label": label,
            "index": rng.permutation(images),
            "study": study,
            "body_part": study % len(PARTS),
        }
    )


def reference(table, parts=PARTS):
    def study_kappa(rows):
        studies = rows.groupby("study").agg({"probability": "mean", "label": "max"})
        return cohen_kappa_score(studies.label, studies.probability > 0.5)

    decision = table.probability > 0.5
    return {
        "accuracy": accuracy_score(table.label, decision),
        "balanced_accuracy": balanced_accuracy_score(table.label, decision),
        "auroc": roc_auc_score(table.label, table.probability),
        "kappa": cohen_kappa_score(table.label, decision),
        "study_kappa": study_kappa(table),
        **{
            f"study_kappa/{part}": study_kappa(table[table.body_part == code])
            for code, part in enumerate(parts)
        },
    }


def tensors(table):
    return {name: torch.tensor(table[name].to_numpy()) for name in Agreement.columns}


def figures(metric):
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("batch", [1, 7, 60])
def test_equals_the_reference_in_any_batches(batch):
    table = draw()
    metric = Agreement(PARTS)
    for start in range(0, len(table), batch):
        metric.update(**tensors(table[start : start + batch]))
    assert figures(metric) == pytest.approx(reference(table), abs=1e-6)


def test_known_answers():
    metric = Agreement()
    metric.update(
        probability=torch.tensor([0.9, 0.2, 0.8, 0.1, 0.6]),
        label=torch.tensor([1, 1, 0, 0, 0]),
        index=torch.arange(5),
        study=torch.tensor([0, 0, 1, 1, 2]),
        body_part=torch.full((5,), 99),  # unused without names
    )
    # 2 of 5 right; recalls 1/2 and 1/3; pairs in order: 3 + 1 of 6
    # kappa: p_o = 2/5, p_e = 3/5 * 2/5 + 2/5 * 3/5 = 12/25
    # studies: means 0.55, 0.45, 0.6 for 1, 0, 0: p_o = 2/3, p_e = 2/3 * 1/3 + 1/3 * 2/3 = 4/9
    assert figures(metric) == pytest.approx(
        {
            "accuracy": 2 / 5,
            "balanced_accuracy": 5 / 12,
            "auroc": 4 / 6,
            "kappa": (2 / 5 - 12 / 25) / (13 / 25),
            "study_kappa": (2 / 3 - 4 / 9) / (5 / 9),
        }
    )


def test_probability_of_exactly_the_threshold_is_normal():
    metric = Agreement(threshold=0.25)
    zeros = torch.zeros(2, dtype=torch.long)
    metric.update(torch.tensor([0.25, 0.5]), torch.tensor([0, 1]), torch.arange(2), zeros, zeros)
    assert metric.compute()["accuracy"] == 1
    assert metric.compute()["kappa"] == 1


def test_repeated_images_count_once():
    table = draw()
    repeated = pd.concat([table, table[:7], table[3:20]])
    metric = Agreement(PARTS)
    for start in range(0, len(repeated), 16):
        metric.update(**tensors(repeated[start : start + 16]))
    assert figures(metric) == pytest.approx(reference(table), abs=1e-6)


def test_views_of_a_study_come_together_from_different_batches():
    metric = Agreement()
    for number, probability in enumerate([0.2, 0.9, 0.9]):
        one = torch.tensor([number])
        metric.update(torch.tensor([probability]), torch.ones_like(one), one, one * 0, one * 0)
    one = torch.tensor([3])
    metric.update(torch.tensor([0.3]), torch.zeros_like(one), one, one, one)
    assert metric.compute()["study_kappa"] == 1
    assert metric.compute()["kappa"] == pytest.approx(0.5)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_nan_without_warning(label):
    table = draw()
    table = table[table.label == label]
    metric = Agreement(PARTS)
    metric.update(**tensors(table))
    result = figures(metric)
    accuracy = ((table.probability > 0.5) == label).mean()
    assert result.pop("accuracy") == pytest.approx(accuracy)
    assert result.pop("balanced_accuracy") == pytest.approx(accuracy)
    assert all(math.isnan(value) for value in result.values())


def test_body_part_with_one_class_or_no_image_is_nan_and_the_others_stand():
    table = draw()
    table = table[(table.body_part != 1) | (table.label == 0)]
    metric = Agreement([*PARTS, "shoulder"])
    metric.update(**tensors(table))
    result = figures(metric)
    assert math.isnan(result["study_kappa/hand"])
    assert math.isnan(result["study_kappa/shoulder"])
    rows = table[table.body_part == 0].groupby("study").agg({"probability": "mean", "label": "max"})
    expected = cohen_kappa_score(rows.label, rows.probability > 0.5)
    assert result["study_kappa/elbow"] == pytest.approx(expected)


def test_no_image_gives_nan_without_warning():
    result = figures(Agreement(["hand"]))
    assert len(result) == 6
    assert all(math.isnan(value) for value in result.values())


def test_reset_forgets():
    metric = Agreement(PARTS)
    metric.update(**tensors(draw(seed=1)))
    metric.compute()
    metric.reset()
    metric.update(**tensors(draw()))
    assert figures(metric) == pytest.approx(reference(draw()), abs=1e-6)


def test_bf16_probabilities_are_taken():
    metric = Agreement()
    table = tensors(draw())
    metric.update(**{**table, "probability": table["probability"].bfloat16()})
    assert metric.compute()["auroc"].dtype == torch.float32


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("probability", float("nan"), "NaN or outside"),
        ("probability", 1.5, "NaN or outside"),
        ("label", 2, "labels must be 0 or 1, got .*2"),
        ("body_part", 3, "body part codes must be 0 to 2"),
        ("body_part", -1, "body part codes must be 0 to 2"),
    ],
)
def test_wrong_values_are_refused(column, value, message):
    table = tensors(draw())
    table[column][4] = value
    with pytest.raises(ValueError, match=message):
        Agreement(PARTS).update(**table)


def test_wrong_shapes_are_refused():
    table = tensors(draw())
    with pytest.raises(ValueError, match=r"Agreement got .*'label': \(59,\).*must be \(B,\)"):
        Agreement().update(**{**table, "label": table["label"][1:]})


def test_first_rows_keeps_the_first_of_equal_numbers():
    index = torch.tensor([5, 2, 5, 9, 2, 2])
    assert first_rows(index).tolist() == [1, 0, 3]
    assert first_rows(torch.zeros(0, dtype=torch.long)).tolist() == []


def run_rank(rank, folder, shares):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(shares)
    )
    table = draw()
    metric = Agreement(PARTS)
    for rows in shares[rank]:
        metric.update(**tensors(table.iloc[rows]))
    torch.save(figures(metric), f"{folder}/{rank}.pt")
    # The ranks' own rows are back after the exchange: an epoch may go on.
    assert len(metric.column("index")) == sum(len(rows) for rows in shares[rank])

    lonely = Agreement(PARTS)
    if rank == 0:
        lonely.update(**tensors(table))
    torch.save(figures(lonely), f"{folder}/lonely{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_equal_one_on_all_images(tmp_path):
    table = draw()
    # uneven, and with the repetitions of a padding sampler, within a rank and across
    shares = [[list(range(0, 60, 2)), [1]], [list(range(1, 60, 2)), [0, 2], [2]]]
    multiprocessing.spawn(run_rank, args=(str(tmp_path), shares), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(reference(table), abs=1e-6)
        lonely = torch.load(tmp_path / f"lonely{rank}.pt")
        assert lonely == pytest.approx(reference(table), abs=1e-6)
