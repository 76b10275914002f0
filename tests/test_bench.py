"""The stopwatch: every row runs, says what it compares, and its figures follow from the times."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments import bench_maps
from experiments.bench import ROWS, main
from experiments.bench_data import read_all
from experiments.bench_maps import explain
from experiments.bench_memory import draw_tree
from experiments.bench_peers import gain_loss, two_passes_loss
from experiments.bench_runs import python
from experiments.bench_table import Line, Spread, cells, ratios, show, verdict
from experiments.runs import RunError
from tests.stages import names_without_gradient, network, settled, small_batch

NUMBER = r"[\d,.]+"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Little data, drawn once."""
    root = tmp_path_factory.mktemp("bench")
    return ["--quick", f"run.root={root}", f"data.root={root / 'phantom'}"]


def table(capsys, words, rows, status=0):
    assert main([*words, "--rows", rows]) == status
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"measured in [\d.]+ minutes", printed[-1])
    return printed[2:-1]


def test_steps_stand_beside_plain_code_and_the_peak(words, capsys):
    step, peak, most, *stages = table(capsys, words, "step,stages,gain")
    assert re.match(rf"stage 1 step, 64 px, batch 8 +{NUMBER} images/s +contiguous float32", step)
    assert re.search(r">= 4: (reached|missed)$", step)
    assert "GFLOP/s" in peak
    assert most.startswith("  the most that this peak allows")
    assert [line.split("  ")[0] or line.split("  ")[1] for line in stages] == [
        "stage 2 step / stage 1 step",
        "with attention.gradient=convolution",
        "stage 3 step / stage 1 step",
        "with attention.gradient=convolution",
        "floor: two passes and an input gradient",
        "stage 2 step / floor",
        "stage 3 step / floor",
        "stage 2 step",
        "with attention.gradient=convolution",
        "and attention.shrink=2",
    ]


def test_data_stands_beside_folders_and_loops(words, capsys):
    batches, workers, building = table(capsys, words, "data,cache")
    assert re.search(rf"ImageFolder and v2, a worker: {NUMBER} images/s", batches)
    assert "twice that beside stage 1" in workers
    assert re.search(r"512 px, \d+ KB files", building)


def test_a_batch_is_read_even_when_it_is_large(words, capsys):
    """As many batches by both: without one, ours would take no time at all."""
    batches, _ = table(capsys, [*words, "data.batch_size=32"], "data")
    assert not re.search(r" 0\.0 images/s", batches)
    (line,) = table(capsys, [*words, "data.batch_size=33"], "data", status=1)
    assert re.match(r"data +not measured +32 images make no batch of 33", line)


def test_large_images_are_made_anew_for_other_data(words, capsys):
    folder = Path(next(word for word in words if word.startswith("run.root="))[9:]) / "bench"
    table(capsys, [*words, "data.limit=16"], "cache")
    assert {path.name.rpartition("-")[2] for path in folder.glob("images-*")} >= {"16"}


def test_two_benches_do_not_time_each_other(words, capsys):
    folder = Path(next(word for word in words if word.startswith("run.root="))[9:]) / "bench"
    folder.mkdir(exist_ok=True)
    hold = "import sys; from pathlib import Path; from datamodules.files import take\n"
    hold += f"handle = Path({str(folder / '.lock')!r}).open('w'); assert take(handle)\n"
    hold += "print('held', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold], text=True, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        assert main([*words, "--rows", "cache"]) == 2
        assert "another bench runs in" in capsys.readouterr().err
        other.stdin.close()


def test_the_checkout_of_before_must_be_one(words, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_BEFORE", str(tmp_path))
    (line,) = table(capsys, words, "paper", status=1)
    assert re.match(r"paper +not measured +BENCH_BEFORE=.* is no checkout", line)


@pytest.mark.slow
def test_maps_and_evaluation_stand_beside_libraries(words, capsys):
    lines = table(capsys, [*words, "--cpu"], "maps,evaluation")
    assert len(lines) == 2 * 4 + 3
    assert sum("grad-cam" in line for line in lines) == 2
    assert "3,197 images" in lines[8]


@pytest.mark.slow
def test_whole_commands_are_timed(words, capsys):
    first, ranks, *memory = table(capsys, words, "start,ranks,memory")
    assert re.search(
        r"to the first step +[\d.]+ s \(.*\) +imported on the way: .*albumentations", first
    )
    assert re.search(rf"one rank, two threads: {NUMBER} images/s", ranks)
    assert re.match(rf"anonymous memory, 160 images +{NUMBER} MB +80 images", memory[0])


def test_what_cannot_be_timed_is_said(words, capsys):
    assert main(["data.name=mur", "--rows", "step"]) == 2
    assert "did you mean mura?" in capsys.readouterr().err
    assert main(["--rounds", "0"]) == 2
    assert "--rounds=0: give at least 1" in capsys.readouterr().err
    assert main(["--rows", "steps"]) == 2
    assert f"--rows=steps is none of {', '.join(ROWS)}" in capsys.readouterr().err

    with pytest.raises(RunError, match="a run failed: SystemExit: 3|a run failed: gone"):
        python(["-c", "import sys; print('gone', file=sys.stderr); sys.exit(3)"])


def test_a_row_whose_library_lacks_leaves_the_others(words, capsys, monkeypatch):
    def lacking(request):
        raise RunError("needs grad-cam")

    monkeypatch.setattr(bench_maps, "maps", lacking)
    (line,) = table(capsys, words, "maps", status=1)
    assert re.match(r"maps +not measured +needs grad-cam", line)


def test_ratios_and_verdicts():
    found = ratios([4.0, 9.0, 2.0], [2.0, 3.0, 2.0])
    assert found == Spread(2.0, 1.0, 3.0)
    assert verdict(Line("x", "", "", found, "<= 2.0")) == "<= 2.0: reached"
    assert verdict(Line("x", "", "", found, ">= 2.1")) == ">= 2.1: missed"
    assert (str(found), str(Spread(2.0, 2.0, 2.0))) == ("2.00 (1.00 to 3.00)", "2.00")
    assert show(Line("a", "b")) == cells("a", "b")


def test_peers_do_the_work_that_they_are_compared_for():
    torch.manual_seed(0)
    module = settled(network()).train()
    batch = small_batch()
    for loss_of in (gain_loss, two_passes_loss):
        module.zero_grad()
        loss_of(module, batch).backward()
        assert names_without_gradient(module) == []


def test_gain_learns_through_its_attention():
    """Without the second derivative the attention's weights would be constants."""
    torch.manual_seed(0)
    module = settled(network()).train()
    batch = small_batch()
    gain_loss(module, batch).backward()
    whole = module.fc.weight.grad.clone()
    module.zero_grad()
    grad = torch.autograd.grad
    torch.autograd.grad = lambda y, x, **_: [g.detach() for g in grad(y, x, retain_graph=True)]
    try:
        gain_loss(module, batch).backward()
    finally:
        torch.autograd.grad = grad
    assert not torch.allclose(module.fc.weight.grad, whole)


def test_both_classes_are_explained_in_one_pass():
    module = settled(network()).eval()
    image = small_batch()["image"]
    found = explain(module, image)
    pyramid = module.encoder(image)
    for name, raw in module.raw_maps(pyramid).items():
        torch.testing.assert_close(getattr(found, name)[:, 1:], raw)
    torch.testing.assert_close(found.probability, module(image).softmax(1))


def test_the_loop_makes_the_squares_of_the_cache(tmp_path):
    from datamodules.cache import Recipe
    from datamodules.decode import decode

    draw_tree(tmp_path / "MURA-v1.1", 16)
    paths = sorted(tmp_path.rglob("image*.png"))
    assert len(paths) == 32
    squares = read_all(paths[:3], 32)
    for square, path in zip(squares, paths[:3], strict=True):
        assert (square == Recipe(32).apply(decode(path))[0]).all()
