"""Comparisons in sentences: who is paired with whom, what is claimed and what is not."""

import math

import numpy as np
import pandas as pd
import pytest

from experiments.evaluation import weighted
from experiments.evaluation.compare import (
    compare,
    markdown,
    pairs_of_methods,
    pairs_of_runs,
    population,
    same_images,
    sentences,
)
from experiments.evaluation.statistics import patient_weights

IMAGES = 200
TABLE = pd.DataFrame(
    {
        "path": [f"{number}.png" for number in range(IMAGES)],
        "patient": [f"p{number // 2}" for number in range(IMAGES)],
        "label": np.arange(IMAGES) % 2,
        "lesion_area": np.where(np.arange(IMAGES) % 2, 0.02, math.nan),
    }
)
WEIGHTS = patient_weights(TABLE.patient, 500)


def hits(share, seed=0):
    drawn = np.random.default_rng(seed).random(IMAGES) < share
    return weighted.mean(np.where(TABLE.label == 1, drawn, np.nan))


RUNS = {
    "stage1": [{"pcam/hit": hits(0.2, seed), "auroc": hits(0.5)} for seed in range(3)],
    "stage2": [{"pcam/hit": hits(0.5, 5), "auroc": hits(0.5)}],
    "stage3": [{"pcam/hit": hits(0.52, 6), "fcn/hit": hits(0.9, 7), "cam/hit": hits(0.5, 8)}],
}


def test_later_runs_are_compared_with_earlier_ones_where_both_have_the_figure():
    found = [
        (pair.figure, pair.first, pair.second)
        for pair in pairs_of_runs(RUNS, ["pcam/hit", "auroc", "fcn/hit"])
    ]
    assert found == [
        ("pcam/hit", "stage2", "stage1 (mean of 3 seeds)"),
        ("pcam/hit", "stage3", "stage1 (mean of 3 seeds)"),
        ("pcam/hit", "stage3", "stage2"),
        ("auroc", "stage2", "stage1 (mean of 3 seeds)"),
    ]
    methods = pairs_of_methods("stage3", RUNS["stage3"], ["cam", "pcam", "fcn"], ["hit", "iou"])
    assert [(pair.first, pair.second) for pair in methods] == [
        ("PCAM of stage3", "CAM of stage3"),
        ("the FCN of stage3", "CAM of stage3"),
        ("the FCN of stage3", "PCAM of stage3"),
    ]


def test_the_table_holds_values_differences_and_corrected_p_values():
    found = compare(pairs_of_runs(RUNS, ["pcam/hit", "auroc"]), WEIGHTS)
    ones = np.ones((1, IMAGES))
    seeds = [seed["pcam/hit"](ones)[0] for seed in RUNS["stage1"]]
    row = found.iloc[0]
    assert row.second_value == pytest.approx(np.mean(seeds))
    assert row.difference == pytest.approx(row.first_value - row.second_value)
    assert row.low <= row.difference <= row.high
    assert row.p == pytest.approx(2 / 501)
    assert row.p_holm == pytest.approx(4 * 2 / 501)
    assert found.iloc[3].difference == 0
    assert found.iloc[3].p_holm == 1
    assert compare([], WEIGHTS).empty


def test_a_sentence_claims_only_what_is_shown():
    found = compare(pairs_of_runs(RUNS, ["pcam/hit", "auroc"]), WEIGHTS)
    said = sentences(found, population(TABLE, "test"))
    row = found.iloc[0]
    assert said[0] == (
        "On 200 test images of 100 patients (100 with a lesion mask, 100 patients), PCAM's hit "
        f"rate is {row.difference:.3f} higher for stage2 than for stage1 (mean of 3 seeds) "
        f"({row.first_value:.3f} against {row.second_value:.3f}; 95 % "
        f"interval of the difference {row.low:+.3f} to {row.high:+.3f}, p = 0.016, "
        "Holm-corrected for 4 comparisons)."
    )
    assert "no difference in PCAM's hit rate is shown between stage3 and stage2" in said[2]
    assert "no difference in AUROC is shown between stage2 and stage1 (mean" in said[3]


def test_a_worse_run_is_called_worse():
    worse = {"a": RUNS["stage2"], "b": RUNS["stage1"]}
    said = sentences(compare(pairs_of_runs(worse, ["pcam/hit"]), WEIGHTS), "There")
    assert "lower for b (mean of 3 seeds) than for a (" in said[0]
    assert "Holm" not in said[0]  # one comparison needs no correction


def test_undefined_figures_are_named_and_do_not_count():
    nothing = {"pcam/hit": weighted.mean([math.nan] * IMAGES), "auroc": hits(0.9, 9)}
    runs = {"stage1": [nothing], "stage2": RUNS["stage2"]}
    found = compare(pairs_of_runs(runs, ["pcam/hit", "auroc"]), WEIGHTS)
    said = sentences(found, "There")
    assert "PCAM's hit rate cannot be compared: stage2 and stage1 have 0.5" in said[0]
    assert found.p_holm[1] == found.p[1]


def test_left_out_resamples_are_told():
    rare = weighted.mean([1.0] * 6 + [math.nan] * (IMAGES - 6))
    runs = {"a": [{"hit": rare}], "b": [{"hit": hits(0.5)}]}
    said = sentences(compare(pairs_of_runs(runs, ["hit"]), WEIGHTS), "There")
    assert "% of the resamples, which are left out" in said[0]


def test_the_report_table_has_a_line_a_pair():
    text = markdown(compare(pairs_of_runs(RUNS, ["pcam/hit"]), WEIGHTS)).splitlines()
    assert len(text) == 5
    assert text[2].startswith("| pcam/hit | stage2: 0.")
    assert {line.count("|") for line in text} == {7}


def test_images_are_put_into_one_order():
    mixed = TABLE.sample(frac=1, random_state=3)
    assert mixed.iloc[same_images(mixed, TABLE)].path.tolist() == TABLE.path.tolist()


def test_runs_with_and_without_masks_may_be_compared():
    assert len(same_images(TABLE.assign(lesion_area=math.nan), TABLE)) == IMAGES


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (TABLE[1:], r"different images \(199 and 200; only in one: 0.png\)"),
        (TABLE.assign(path=["x", *TABLE.path[1:]]), "only in one: 0.png, x"),
        (TABLE.assign(label=1), "another label of 0.png"),
        (TABLE.assign(patient="p0"), "another patient of 2.png"),
        (TABLE.assign(lesion_area=TABLE.lesion_area * 2), "another lesion mask of 1.png"),
    ],
)
def test_runs_on_other_images_are_not_compared(other, message):
    with pytest.raises(ValueError, match=message):
        same_images(other, TABLE)
