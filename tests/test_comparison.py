"""Runs compared: who is joined with whom, the paper's claim with a known answer, the files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.config import load_config
from experiments.evaluation.compare import compare_runs, write_comparison
from experiments.evaluation.figures import Fitted, MapRows
from experiments.evaluation.groups import group
from experiments.evaluation.run import Evaluation
from experiments.evaluation.statistics import patient_weights
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
        found = np.arange(IMAGES) < share * LESIONS
        table[f"{method}_hit"] = np.where(lesion, found, np.nan)
        # Four pixels, one of them lesion: at the top, or below another one.
        of_lesion, of_all = np.zeros((2, IMAGES, 256), dtype=np.int32)
        of_lesion[found & lesion, 255] = of_lesion[~found & lesion, 0] = 1
        of_all[lesion, 255], of_all[lesion, 0] = 1, 3
        maps[method] = MapRows(of_lesion, of_all, np.full((IMAGES, 255), np.nan))
    config = load_config(stage, [f"seed={seed}", *words])
    folder = Path("runs/phantom") / stage / (name or f"seed{seed}")
    about = {"stage": stage, "split": "test", "seed": seed, "run": str(folder)}
    scales = {"noise": 1.0} if trivial else {}
    return Evaluation(
        folder=folder,
        target=folder,
        config=config,
        about=about,
        table=table,
        maps=maps,
        fitted=Fitted(0.5, 0.5, 1.0),
        thresholds={},
        scales=scales,
        notes=[],
    )


def test_seeds_of_other_masks_are_not_joined():
    runs = [made("stage1", seed, words=[f"lesions.path=masks{seed}"]) for seed in range(2)]
    assert len(group(runs)) == 1
    runs[1].about["mask_hash"] = "other"
    assert len(group(runs)) == 2


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
    found = {one.name: [run.config.seed for run in one.runs] for one in group(runs)}
    assert found == {
        "stage 1": [0, 2],
        "stage 2": [0, 1],
        "stage 3 (lambda1.0)": [0],
        "stage 3 (lambda3.0)": [0],
        "stage 3 (long)": [0],
    }
    with pytest.raises(RunError, match="two runs of one configuration and seed"):
        group([made(), made(name="again")])


def test_the_papers_claim_is_four_differences_in_hit_rate_and_pixel_ap():
    found = compare_runs([made("stage3"), made("stage1"), made("stage2")])
    claim = found.table[found.table.family.str.startswith("The paper")]
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
    assert "Hit rate is 0.600 higher for the FCN of stage 3 than for PCAM of stage 3" in found.text
    assert "No difference in hit rate is shown between PCAM of stage 2" in found.text


def test_interval_and_p_value_equal_those_of_a_loop_over_resamples():
    found = compare_runs([made("stage1")])
    row = found.table.iloc[0]
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
    found = compare_runs([one, other, made("stage2")])
    row = found.table[found.table.figure == "pcam/hit"].iloc[0]
    assert (row["first"], row["second"]) == ("stage 2", "stage 1 (mean of 2 seeds)")
    assert row.second_value == pytest.approx(0.55)
    shown = [line for line in found.text.splitlines() if line.startswith("| stage 1 |")]
    assert [line.split(" | ")[1] for line in shown] == ["0", "1"]
    assert [line.split(" | ")[7] for line in shown] == ["0.500", "0.600"]
    assert "pcam/hit" in found.text.split("## Each run")[1].splitlines()[2].split(" | ")[7]


def test_the_order_of_images_does_not_matter():
    other = made("stage2")
    order = np.random.default_rng(0).permutation(IMAGES)
    other.table = other.table.iloc[order]
    other.maps = {name: rows.take(order) for name, rows in other.maps.items()}
    plain = compare_runs([made("stage1"), made("stage2")]).table
    pd.testing.assert_frame_equal(compare_runs([made("stage1"), other]).table, plain)


def test_runs_on_other_images_are_refused_with_the_folder():
    other = made("stage2")
    other.table = other.table.assign(path=["new.png", *other.table.path[1:]])
    with pytest.raises(RunError, match="stage2/seed0: the runs were judged on different images"):
        compare_runs([made("stage1"), other])


def test_a_runs_last_map_is_compared_with_the_trivial_ones():
    found = compare_runs([made("stage3", trivial=True)])
    pairs = found.table[found.table.figure == "hit"]
    assert [tuple(pair) for pair in pairs[["first", "second"]].to_numpy()] == [
        ("PCAM of stage 3", "CAM of stage 3"),
        ("the FCN of stage 3", "CAM of stage 3"),
        ("the FCN of stage 3", "PCAM of stage 3"),
        ("the FCN of stage 3", "noise of stage 3"),
    ]
    assert set(found.table.family) == {"Maps of stage 3"}


def test_which_of_several_the_paper_means_is_not_guessed():
    runs = [made(stage) for stage in SHARES]
    runs.append(made("stage3", name="other", words=["loss.lambda_lesion=3"]))
    found = compare_runs(runs)
    assert not found.table.family.str.startswith("The paper").any()
    assert "and there are 1 of stage 1, 1 of stage 2, 2 of stage 3" in found.text
    # The reference from the masks alone is no stage of the paper's.
    alone = made("stage3", name="masks-only", words=["loss.classification=false"])
    alone.fitted = None
    alone.maps = {"fcn": alone.maps["fcn"]}
    found = compare_runs([*runs[:3], alone])
    assert found.table.family.str.startswith("The paper").sum() == 8


def test_p_values_are_corrected_within_each_section():
    found = compare_runs([made(stage) for stage in SHARES]).table
    for _, rows in found.groupby("family"):
        known = rows.p.notna()
        assert rows.p_holm[known].min() == pytest.approx(min(1, rows.p.min() * known.sum()))


def test_text_and_table_are_written_beside_each_other(tmp_path):
    found = compare_runs([made("stage1"), made("stage2")])
    paths = write_comparison(found, tmp_path / "new" / "comparison-test")
    assert [path.name for path in paths] == ["comparison-test.md", "comparison-test.csv"]
    assert paths[0].read_text() == found.text
    assert len(pd.read_csv(paths[1])) == len(found.table)
    assert write_comparison(found, tmp_path / "x.v2.md")[1].name == "x.v2.csv"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_comparison(found, tmp_path / "file" / "comparison")
    with pytest.raises(RunError, match="names no file for the comparison; add a name: ../compar"):
        write_comparison(found, Path(".."))


def test_a_run_without_maps_alone_leaves_nothing_to_compare():
    run = made()
    run.maps = {}
    with pytest.raises(RunError, match="there is nothing to compare: name at least two runs"):
        compare_runs([run])
