"""The stopwatch: every stage takes its steps, and what it says follows from the times."""

import re

from experiments.bench import main
from tests.runs import tiny_words


def test_each_stage_is_timed_against_the_first(tmp_path, capsys):
    assert main([*tiny_words(tmp_path), f"run.root={tmp_path}", "--rounds", "2"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("8 images of 64 px, ")
    assert [line.split()[0] for line in lines] == ["stage1", "stage2", "stage3"]
    assert all(re.search(r", \d+\.\d\d stage1 steps \(", line) for line in lines[1:])


def test_what_cannot_be_timed_is_said(tmp_path, capsys):
    assert main(["data.name=mur"]) == 2
    assert "did you mean mura?" in capsys.readouterr().err
    assert main(["--rounds", "0"]) == 2
    assert "--rounds=0: give at least 1" in capsys.readouterr().err
