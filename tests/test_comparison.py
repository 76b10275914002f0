"""Runs compared: who is joined and paired, the paper's claim with a known answer, the files."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.config import load_config
from experiments.evaluation.compare import compare_runs, group, write_comparison
from experiments.evaluation.figures import Fitted, MapRows
from experiments.evaluation.run import Evaluation
from experiments.runs import RunError

IMAGES = 40  # the first half abnormal, with a lesion; two images a patient
LESIONS = IMAGES // 2
ESTIMATES = {}  # of runs with these shares, which take a second
SHARES = {
    "stage1": {"cam": 0.2, "pcam": 0.5},
    "stage2": {"cam": 0.2, "pcam": 0.5},
    "stage3": {"cam": 0.2, "pcam": 0.4, "fcn": 1.0},
}


def made(stage="stage1", seed=0, name=None, shares=None, trivial=False, words=()):
    """A run whose maps hit the first lesions: so many of them as ``shares`` says."""
    shares = shares or SHARES[stage]
    lesion = np.arange(IMAGES) < LESIONS
    number = np.arange(IMAGES)
    owners = {kind: [f"{kind}{n // 2}" for n in number] for kind in ("patient", "study")}
    table = pd.DataFrame({"path": [f"{n:02d}.png" for n in number], **owners}).assign(
        **{"body_part": "hand", "label": lesion.astype(int), "lesion_type": "", "hardware": -1},
        lesion_area=np.where(lesion, 0.02, np.nan),
        probability=np.where(lesion, 0.9, 0.2),
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
    key = (*shares.items(), trivial)
    folder = Path("runs/phantom") / stage / (name or f"seed{seed}")
    evaluation = Evaluation(
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
        estimates=dict(ESTIMATES.get(key, {})),
    )
    ESTIMATES[key] = dict(evaluation.estimates)
    return evaluation


def test_seeds_are_joined_and_configurations_are_not():
    runs = [
        made("stage2", 1, words=["model.init_from=runs/phantom/stage1/seed1"]),
        made("stage1", 0),
        made("stage1", 2, name="third", words=["trainer.devices=2", "logger.wandb=off"]),
        made("stage2", 0, words=["model.init_from=runs/phantom/stage1/seed0"]),
        made("stage3", 0, name="lambda1.0-seed0"),
        made("stage3", 0, name="lambda3.0-seed0", words=["loss.lambda_lesion=3"]),
    ]
    assert {one.name: [run.config.seed for run in one.runs] for one in group(runs)} == {
        **{"stage 1": [0, 2], "stage 2": [0, 1]},
        **{"stage 3 (lambda1.0)": [0], "stage 3 (lambda3.0)": [0]},
    }
    with pytest.raises(RunError, match="two runs of one configuration and seed"):
        group([made(), made(name="again")])
    masks = [made("stage1", seed, words=[f"lesions.path=masks{seed}"]) for seed in range(2)]
    assert len(group(masks)) == 1
    for name in ("mask_hash", "index_hash"):  # other masks, other labels
        masks[1].about = {**masks[0].about, name: "other"}
        assert len(group(masks)) == 2


def test_the_papers_claim_is_four_differences_in_hit_rate_and_pixel_ap():
    compared = compare_runs([made("stage3", trivial=True), made("stage1"), made("stage2")])
    claim = compared.table[compared.table.family.str.startswith("The paper")]
    assert claim.figure.tolist() == ["hit"] * 4 + ["pixel_ap"] * 4
    assert (claim["first"] + ", " + claim["second"]).tolist() == 2 * [
        "PCAM of stage 1, CAM of stage 1",
        "PCAM of stage 2, PCAM of stage 1",
        "PCAM of stage 3, PCAM of stage 2",
        "the FCN of stage 3, PCAM of stage 3",
    ]
    assert claim.difference.tolist()[:4] == pytest.approx([0.3, 0.0, -0.1, 0.6])
    # Half hit: at the top precision 1/2 and recall 1/2, then all pixels with precision 1/4.
    assert claim.first_value[4] == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)
    assert "Hit rate is 0.600 higher for the FCN of stage 3 than for PCAM of" in compared.text
    assert "No difference in hit rate is shown between PCAM of stage 2" in compared.text
    small = made("stage3", words=["model.width=0.5"])  # the stage is not all that differs
    other = compare_runs([small, made("stage1"), made("stage2")])
    assert (other.table.family[0], "(model.width: 1.0 -> 0.5)" in other.text) == ("Runs", True)
    maps = compared.table.query("family == 'Maps of stage 3' and figure == 'hit'")
    assert (maps["first"] + ", " + maps["second"]).str.replace(" of stage 3", "").tolist() == [
        *("PCAM, CAM", "the FCN, CAM", "the FCN, PCAM"),
        "the FCN, noise",  # the last map alone
    ]
    for _, rows in compared.table.groupby("family"):  # corrected within each section
        assert rows.p_holm.min() == pytest.approx(min(1, rows.p.min() * rows.p.count()))


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


def test_which_of_several_the_paper_means_is_not_guessed():
    runs = [made(stage) for stage in SHARES]
    # The reference from the masks alone is no stage of the paper's.
    alone = made("stage3", name="masks-only", words=["loss.classification=false"])
    alone.fitted, alone.maps = None, {"fcn": alone.maps["fcn"]}
    other = made("stage3", name="other", words=["loss.lambda_lesion=3"])
    for more, rows in ((alone, 8), (other, 0)):
        table = compare_runs([*runs, more]).table
        assert table.family.str.startswith("The paper").sum() == rows


def test_only_runs_on_the_same_images_are_compared():
    one, other = made("stage1"), made("stage2")
    table = other.table
    other.table = table.assign(lesion_area=math.nan)  # masks that only one of them has
    hits = compare_runs([one, other]).table.query("figure == 'pcam/pixel_ap'")
    assert hits.second_value.item() == hits.first_value.item() > 0.2
    for other.table in (
        table.assign(path=["x", *table.path[1:]]),
        table.assign(label=1),
        table.assign(patient="p0"),
        table.assign(lesion_area=table.lesion_area * 2),
        table.assign(lesion_area=[math.nan, *table.lesion_area[1:]]),
        table[:-2],
        table.sample(frac=1, random_state=3, ignore_index=True),
    ):
        with pytest.raises(RunError, match="stage2/seed0: judged on other images, .* first run"):
            compare_runs([one, other])


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (40, r"is 1\.000 lower for stage 2 than for stage 1 \(0\.000 against 1\.000; 95 % inter"),
        (40, r"-1\.000 to -1\.000, p = 0\.0\d+, Holm-corrected for 5 comparisons\)\.$"),
        (40, "^- No difference in AUROC is shown between stage 2 and stage 1"),
        (6, r"undefined in \d\.\d% of the resamples, which are left out\)\.$"),
        (2, r"cannot be compared: stage 2 and stage 1 have .*, by images of one patient\.$"),
    ],
)
def test_a_sentence_claims_only_what_is_shown(images, sentence):
    runs = [made("stage1", shares={"pcam": 1.0}), made("stage2", shares={"pcam": 0.0})]
    for run in runs:
        run.table.loc[images:, "pcam_hit"] = math.nan
    assert re.search(sentence, compare_runs(runs).text, re.MULTILINE)


def test_text_and_table_are_written_beside_each_other(tmp_path):
    compared = compare_runs([made("stage1"), made("stage2")])
    paths = write_comparison(compared, tmp_path / "new" / "x.v2")
    assert [path.name for path in paths] == ["x.v2.md", "x.v2.csv"]
    assert paths[0].read_text() == compared.text
    assert len(pd.read_csv(paths[1])) == len(compared.table)
    assert "On 40 test images of 20 patients (20 with a lesion mask, 10 p" in compared.text
    nothing = made()
    nothing.maps = {}
    with pytest.raises(RunError, match="nothing to compare. Fix: name at least two runs"):
        compare_runs([nothing])
