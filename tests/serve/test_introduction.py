"""A model that introduces itself: what puna.json says reaches the card, and a broken one costs nothing but itself."""

import json
from pathlib import Path

import pytest

from puna.demo.introduction import about
from puna.serve.backends.native.introduction import read_introduction
from puna.serve.openai.objects import ModelCard

FOUND = {"about": "It can add.", "starters": [{"prompt": "1 + 1", "before": "<b>", "after": "answer: 2"}]}


def test_an_introduction_is_read_and_is_no_part_of_the_model_object(tmp_path: Path) -> None:
    (tmp_path / "puna.json").write_text(json.dumps({"stage": "chat", "introduction": FOUND}), encoding="utf-8")
    found = read_introduction(tmp_path)
    assert found is not None
    assert found.starters[0].after == "answer: 2"
    assert found.temperature == 0
    assert "introduction" not in ModelCard(id="x", introduction=found).model_dump()


def test_a_model_without_one_has_none(tmp_path: Path) -> None:
    assert read_introduction(tmp_path) is None
    (tmp_path / "puna.json").write_text("{}", encoding="utf-8")
    assert read_introduction(tmp_path) is None


@pytest.mark.parametrize("found", ["text", {"starters": []}, {"about": "x", "starters": [{"before": "y"}]}, []])
def test_an_invalid_one_is_said_and_left_out(found: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "puna.json").write_text(json.dumps({"introduction": found}), encoding="utf-8")
    assert read_introduction(tmp_path) is None
    assert "not valid" in capsys.readouterr().err


def test_the_demo_s_line_names_shares_of_the_weights_that_were_kept() -> None:
    stages = [{"stage": "after SFT", "greedy": 0.2}, {"stage": "after RL", "greedy": 0.86}]
    rows = [
        {"task": "code.synthesis", "kept": "after RL", "stages": stages},
        {"task": "planning.grid", "kept": "after SFT", "stages": stages},
    ]
    line = about(rows)
    assert "write small Python functions (86% right) and find the way through a small grid (20% right)" in line
    assert "cannot" in line
    assert "\n" not in line
