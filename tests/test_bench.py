"""The bench: every row runs, and its ratios follow from the times."""

import json

import torch

from experiments import bench
from experiments.bench import Bench, Case, main

KEYS = "row beside value unit ratio low high share_of_peak peak_memory_mb"


def test_every_row_stands_beside_its_peers(trained, tmp_path, monkeypatch):
    weights = bench.patient_weights
    monkeypatch.setattr(bench, "patient_weights", lambda patient: weights(patient)[:99])  # seconds
    words = ["--quick", "--rounds=1", "--cpu", f"--json={tmp_path / 'a'}", *trained.words]
    assert main(words) == 0
    result = json.loads((tmp_path / "a").read_text())
    assert list(result) == ["device", "torch", "precision", "rows"]
    beside = ["plain float32", "stage 1 step", "stage 1 step", "ImageFolder and torchvision"]
    beside += ["stage 1 step", "plain forward pass", "scikit-learn"]
    rows = ["step", "stage2", "stage3", "data", "data", "maps", "evaluation"]
    assert [row["row"] for row in result["rows"]] == rows
    assert [row["beside"] for row in result["rows"]] == beside
    for row in result["rows"]:
        assert set(row) == set(KEYS.split())
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert (row["share_of_peak"] is not None) == row["row"].startswith("st")


def test_ratios_are_taken_within_each_round_and_a_failing_peer_is_left_out(trained, monkeypatch):
    bench = Bench(trained.words, 3, 0, False)
    ours, peer = iter([1, 2, 1, 1]), iter([9, 4, 3, 4])  # seconds: a warm-up, then the rounds
    monkeypatch.setattr(bench, "seconds", lambda case, calls=1: case.call())
    broken = Case(lambda: torch.ones(2) @ torch.ones(3), 1)
    peers = {"peer": Case(lambda: next(peer), 5), "broken": broken}
    (row,) = bench.compare("row", Case(lambda: next(ours), 10), peers, "naps/s")
    assert [row[key] for key in KEYS.split()[:7]] == ["row", "peer", 10, "naps/s", 6, 4, 8]
    assert bench.missing[0].startswith("row beside broken: ")
