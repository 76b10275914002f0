"""Runs compared: who is joined and paired, the paper's claim with a known answer, the files."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.config import load_config
from experiments.evaluation.compare import (
    Pair,
    compare,
    compare_runs,
    group,
    population,
    same_images,
    sentences,
    write_comparison,
)
from experiments.evaluation.figures import Fitted, MapRows
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import mean, patient_weights
from experiments.runs import RunError

IMAGES = 40  # the first half abnormal, with a lesion; two images a patient
LESIONS = IMAGES // 2
SHARES = {
    "stage1": {"cam": 0.2, "pcam": 0.5},
    "stage2": {"cam": 0.2, "pcam": 0.5},
    "stage3": {"cam": 0.2, "pcam": 0.4, "fcn": 1.0},
}


def made(stage="stage1", seed=0, name=None, shares=None, trivial=False, words=()):
    """A run whose maps hit the first lesions: so many of them as ``shares`` says."""
    shares = shares or SHARES[stage]
    lesion = np.arange(IMAGES) < LESIONS
    table = pd.DataFrame(
        {
            "path": [f"{number:02d}.png" for number in range(IMAGES)],
            "patient": [f"p{number // 2}" for number in range(IMAGES)],
            "study": [f"s{number // 2}" for number in range(IMAGES)],
            "body_part": "hand",
            "label": lesion.astype(int),
            "lesion_type": "",
            "hardware": -1,
            "lesion_area": np.where(lesion, 0.02, np.nan),
            "probability": np.where(lesion, 0.9, 0.2),
        }
    )
    maps = {}
    for method, share in {**shares, **({"noise": 0.0} if trivial else {})}.items():
        hits = np.arange(IMAGES) < share * LESIONS
        table[f"{method}_hit"] = np.where(lesion, hits, np.nan)
        for column in ("distance", "iou", "iou_otsu", "dice", "energy", "area"):
            table[f"{method}_{column}"] = np.nan
        # Four pixels, one of them lesion: at the top, or below another one.
        of_lesion, of_all = np.zeros((2, IMAGES, 256), dtype=np.int32)
        of_lesion[hits & lesion, 255] = of_lesion[~hits & lesion, 0] = 1
        of_all[lesion, 255], of_all[lesion, 0] = 1, 3
        maps[method] = MapRows(of_lesion, of_all, np.full((IMAGES, 255), np.nan))
    folder = Path("runs/phantom") / stage / (name or f"seed{seed}")
    return Evaluation(
        folder=folder,
        target=folder,
        config=load_config(stage, [f"seed={seed}", *words]),
        about={"stage": stage, "split": "test", "seed": seed, "run": str(folder)},
        table=table,
        maps=maps,
        fitted=Fitted(0.5, 0.5, 1.0),
        thresholds={},
        scales={"noise": 1.0} if trivial else {},
        notes=[],
    )


def test_seeds_are_joined_and_configurations_are_not():
    runs = [
        made("stage2", 1, words=["model.init_from=runs/phantom/stage1/seed1"]),
        made("stage1", 0),
        made("stage1", 2, name="third", words=["trainer.devices=2", "logger.wandb=off"]),
        made("stage2", 0, words=["model.init_from=runs/phantom/stage1/seed0"]),
        made("stage3", 0, name="lambda1.0-seed0"),
        made("stage3", 0, name="lambda3.0-seed0", words=["loss.lambda_lesion=3"]),
        made("stage3", 0, name="long-seed0", words=["trainer.max_epochs=90"]),
    ]
    seeds = {one.name: [run.config.seed for run in one.runs] for one in group(runs)}
    assert seeds == {
        "stage 1": [0, 2],
        "stage 2": [0, 1],
        "stage 3 (lambda1.0)": [0],
        "stage 3 (lambda3.0)": [0],
        "stage 3 (long)": [0],
    }
    with pytest.raises(RunError, match="two runs of one configuration and seed"):
        group([made(), made(name="again")])
    masks = [made("stage1", seed, words=[f"lesions.path=masks{seed}"]) for seed in range(2)]
    assert len(group(masks)) == 1
    masks[1].about["mask_hash"] = "other"
    assert len(group(masks)) == 2


def test_the_papers_claim_is_four_differences_in_hit_rate_and_pixel_ap():
    compared = compare_runs([made("stage3"), made("stage1"), made("stage2")])
    claim = compared.table[compared.table.family.str.startswith("The paper")]
    assert [tuple(row) for row in claim[["figure", "first", "second"]].to_numpy()] == [
        (figure, first, second)
        for figure in ("hit", "pixel_ap")
        for first, second in (
            ("PCAM of stage 1", "CAM of stage 1"),
            ("PCAM of stage 2", "PCAM of stage 1"),
            ("PCAM of stage 3", "PCAM of stage 2"),
            ("the FCN of stage 3", "PCAM of stage 3"),
        )
    ]
    assert claim.difference.tolist()[:4] == pytest.approx([0.3, 0.0, -0.1, 0.6])
    # Half hit: at the top precision 1/2 and recall 1/2, then all pixels with precision 1/4.
    assert claim.first_value[4] == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)
    assert "Hit rate is 0.600 higher for the FCN of stage 3 than for PCAM of" in compared.text
    assert "No difference in hit rate is shown between PCAM of stage 2" in compared.text
    for _, rows in compared.table.groupby("family"):  # corrected within each section
        known = rows.p.notna()
        assert rows.p_holm[known].min() == pytest.approx(min(1, rows.p.min() * known.sum()))


def test_interval_and_p_value_equal_those_of_a_loop_over_resamples():
    row = compare_runs([made("stage1")]).table.iloc[0]
    assert (row["first"], row["second"]) == ("PCAM of stage 1", "CAM of stage 1")
    table = made("stage1").table
    drawn = []
    for weights in patient_weights(table.patient):
        images = [i for i in range(LESIONS) for _ in range(weights[i])]
        if images:
            pairs = [table.pcam_hit[i] - table.cam_hit[i] for i in images]
            drawn.append(sum(pairs) / len(pairs))
    assert row.difference == pytest.approx(0.3)
    assert [row.low, row.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist())
    worse = sum(value <= 1e-12 for value in drawn)
    assert row.p == pytest.approx(2 * (1 + worse) / (len(drawn) + 1))


def test_seeds_are_compared_by_their_mean_and_each_run_is_shown():
    one, other = made("stage1", 0), made("stage1", 1, shares={"cam": 0.4, "pcam": 0.6})
    compared = compare_runs([other, one, made("stage2")])
    row = compared.table[compared.table.figure == "pcam/hit"].iloc[0]
    assert (row["first"], row["second"]) == ("stage 2", "stage 1 (mean of 2 seeds)")
    assert row.second_value == pytest.approx(0.55)
    heads, _, *lines = compared.text.split("## Each run\n\n")[1].splitlines()[:4]
    assert heads.split(" | ")[7] == "pcam/hit"
    assert [line.split(" | ")[1] for line in lines] == ["0", "1"]
    assert [line.split(" | ")[7] for line in lines] == ["0.500", "0.600"]
    joined = group([other, one])[0].estimate("pcam/hit")
    assert joined.value == pytest.approx(0.55)
    assert joined.low < joined.value < joined.high
    assert group([other, one])[0].estimate("fcn/hit") is None


def test_a_runs_last_map_is_compared_with_the_trivial_ones():
    table = compare_runs([made("stage3", trivial=True)]).table
    pairs = table[table.figure == "hit"]
    assert [tuple(pair) for pair in pairs[["first", "second"]].to_numpy()] == [
        ("PCAM of stage 3", "CAM of stage 3"),
        ("the FCN of stage 3", "CAM of stage 3"),
        ("the FCN of stage 3", "PCAM of stage 3"),
        ("the FCN of stage 3", "noise of stage 3"),
    ]
    assert set(table.family) == {"Maps of stage 3"}


def test_which_of_several_the_paper_means_is_not_guessed():
    runs = [made(stage) for stage in SHARES]
    runs.append(made("stage3", name="other", words=["loss.lambda_lesion=3"]))
    compared = compare_runs(runs)
    assert not compared.table.family.str.startswith("The paper").any()
    assert "and there are 1 of stage 1, 1 of stage 2, 2 of stage 3" in compared.text
    # The reference from the masks alone is no stage of the paper's.
    alone = made("stage3", name="masks-only", words=["loss.classification=false"])
    alone.fitted = None
    alone.maps = {"fcn": alone.maps["fcn"]}
    table = compare_runs([*runs[:3], alone]).table
    assert table.family.str.startswith("The paper").sum() == 8


def test_the_order_of_images_does_not_matter_and_their_choice_does():
    other = made("stage2")
    order = np.random.default_rng(0).permutation(IMAGES)
    other.table = other.table.iloc[order]
    other.maps = {name: rows.take(order) for name, rows in other.maps.items()}
    plain = compare_runs([made("stage1"), made("stage2")]).table
    pd.testing.assert_frame_equal(compare_runs([made("stage1"), other]).table, plain)
    other.table = other.table.assign(path=["new.png", *other.table.path[1:]])
    with pytest.raises(RunError, match="stage2/seed0: the runs were judged on different images"):
        compare_runs([made("stage1"), other])
    nothing = made()
    nothing.maps = {}
    with pytest.raises(RunError, match="there is nothing to compare: name at least two runs"):
        compare_runs([nothing])


TABLE = made().table


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (TABLE[1:], r"different images \(39 and 40; only in one: 00.png\)"),
        (TABLE.assign(path=["x", *TABLE.path[1:]]), "only in one: 00.png, x"),
        (TABLE.assign(label=1), "another label of 20.png"),
        (TABLE.assign(patient="p0"), "another patient of 02.png"),
        (TABLE.assign(lesion_area=TABLE.lesion_area * 2), "another lesion mask of 00.png"),
        (TABLE.assign(lesion_area=math.nan), None),  # without masks, or in another order
        (TABLE.sample(frac=1, random_state=3), None),
    ],
)
def test_only_runs_on_the_same_images_are_compared(other, message):
    if message is None:
        assert other.iloc[same_images(other, TABLE)].path.tolist() == TABLE.path.tolist()
    else:
        with pytest.raises(ValueError, match=message):
            same_images(other, TABLE)


def hits(share, seed):
    drawn = np.random.default_rng(seed).random(200) < share
    return mean(np.where(np.arange(200) % 2, drawn, np.nan))


RARE, NOTHING, GOOD, BAD = mean([1.0] * 6 + [math.nan] * 194), mean([math.nan] * 200), 0.9, 0.2


@pytest.mark.parametrize(
    ("one", "other", "pairs", "said"),
    [
        (GOOD, BAD, 1, r"PCAM's hit rate is 0\.\d+ higher for b than for a \(0.*, p = 0.004\)\.$"),
        (BAD, GOOD, 2, "lower for b than for a .*, Holm-corrected for 2 comparisons"),
        (0.5, 0.5, 1, "no difference in PCAM's hit rate is shown between b and a"),
        (GOOD, NOTHING, 2, r"cannot be compared: b and a have 0\.\d+ against nan\.$"),
        (RARE, 0.5, 1, r"undefined in \d\.\d% of the resamples, which are left out"),
    ],
)
def test_a_sentence_claims_only_what_is_shown(one, other, pairs, said):
    sides = [
        hits(side, place) if isinstance(side, float) else side
        for place, side in enumerate((one, other))
    ]
    table = compare(
        [Pair("pcam/hit", "b", "a", *sides)] * pairs,
        patient_weights([f"p{number // 2}" for number in range(200)], 500),
    )
    if not math.isnan(table.p[0]):
        assert table.difference[0] == pytest.approx(table.first_value[0] - table.second_value[0])
        assert table.low[0] <= table.difference[0] <= table.high[0]
        assert table.p_holm[0] == pytest.approx(min(1, pairs * table.p[0]))
    assert pd.Series(sentences(table)).str.contains(said).all()


def test_the_population_is_counted():
    assert population(TABLE, "val") == (
        "On 40 val images of 20 patients (20 with a lesion mask, 10 patients)"
    )


def test_text_and_table_are_written_beside_each_other(tmp_path):
    compared = compare_runs([made("stage1"), made("stage2")])
    paths = write_comparison(compared, tmp_path / "new" / "comparison-test")
    assert [path.name for path in paths] == ["comparison-test.md", "comparison-test.csv"]
    assert paths[0].read_text() == compared.text
    assert len(pd.read_csv(paths[1])) == len(compared.table)
    assert write_comparison(compared, tmp_path / "x.v2.md")[1].name == "x.v2.csv"
    with pytest.raises(RunError, match="names no file for the comparison; add a name: ../compar"):
        write_comparison(compared, Path(".."))
