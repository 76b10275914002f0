"""``evaluate --peers --audit`` on real runs: what is judged, written, printed and refused."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments import evaluate, train
from tests.runs import run_folder, tiny_words

PEERS = ["gradcam", "gradcampp", "hirescam", "layercam"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of stage 1 and one of stage 3, judged and audited in one go."""
    root = tmp_path_factory.mktemp("runs")
    tiny = [*tiny_words(tmp_path_factory.mktemp("tiny")), "model.width=0.25", f"run.root={root}"]
    tiny += ["trainer.max_epochs=1", "lesions.per_batch=2"]
    for words in (["stage1"], ["stage1", "seed=1"], ["stage3"]):
        assert train.main([*words, *tiny]) == 0
    names = {"stage1": ["seed0", "seed1"], "stage3": ["lambda1.0-seed0"]}
    return [run_folder(root, stage, name) for stage in names for name in names[stage]]


@pytest.fixture(scope="module")
def printed(runs):
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as text:
        words = [*map(str, runs), "--no-baselines", "--peers", "quick"]
        assert evaluate.main([*words, "--audit", "--audit-images", "6"]) == 0
    return text.getvalue()


def results(run):
    folder = run / "evaluation" / "test"
    return json.loads((folder / "audit.json").read_text()), pd.read_csv(folder / "images.csv")


@pytest.mark.slow
def test_peers_are_judged_beside_the_networks_own_maps(runs, printed):
    for run in runs:
        _, table = results(run)
        assert {f"{name}_hit" for name in PEERS} <= set(table.columns)
        masked = table[table["lesion_area"].notna()]
        # One scale a run each: what is equal up to a factor is judged equally.
        for name, own in (("gradcam", "cam"), ("hirescam", "cam"), ("layercam", "pcam")):
            assert masked[f"{name}_hit"].equals(masked[f"{own}_hit"])
        assert masked["gradcam_iou_otsu"].to_numpy() == pytest.approx(
            masked["hirescam_iou_otsu"].to_numpy(), abs=0.02
        )


@pytest.mark.slow
def test_each_run_has_its_audit(runs, printed):
    for run in runs:
        found, table = results(run)
        draws = ["fcn"] if "stage3" in str(run) else []
        assert list(found["cascade"]) == ["cam", "pcam", *draws, *PEERS, "edges"]
        assert found["cascade"]["edges"]["unchanged"]
        assert found["images"] == min(6, (table["label"] == 1).sum())
        assert ("leak" in found) == bool(draws)
        assert ("repeatability" in found) != bool(draws)
        assert f"{run}:" in printed
        assert str(run / "evaluation" / "test" / "audit.json") in printed
    first, second = (results(run)[0] for run in runs[:2])
    assert first["repeatability"] == second["repeatability"]
    assert first["repeatability"]["runs"] == ["seed0", "seed1"]
    assert max(map(len, printed.splitlines())) <= 120  # paths are long


@pytest.mark.slow
def test_an_audit_comes_again(runs, printed):
    before, _ = results(runs[2])
    words = [str(runs[2]), "--no-baselines", "--peers", "quick", "--audit", "--audit-images", "6"]
    assert evaluate.main(words) == 0
    after, _ = results(runs[2])
    flat = [np.asarray(_numbers(found), dtype=float) for found in (before, after)]
    np.testing.assert_allclose(*flat, atol=1e-6)


def _numbers(found):
    if isinstance(found, dict):
        return [number for value in found.values() for number in _numbers(value)]
    if isinstance(found, list):
        return [number for value in found for number in _numbers(value)]
    return [found] if isinstance(found, float) else []


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
