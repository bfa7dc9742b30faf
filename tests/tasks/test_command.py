"""puna tasks list, sample and score, as a person uses them."""

import json
from pathlib import Path

import pytest

from puna.cli.main import main
from puna.tasks.catalogue import TASKS, find


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["tasks", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_list_names_every_task(capsys, monkeypatch) -> None:
    monkeypatch.setattr("puna.cli.tasks_command.LISTED", 5)
    code, out, _ = run(capsys, "list")
    assert code == 0
    for name in TASKS:
        assert name in out


def test_sample_shows_the_problem_and_its_solution(capsys) -> None:
    code, out, _ = run(capsys, "sample", "planning.grid", "--level", "3", "--solve")
    problem = find("planning.grid").sample(0, 3)
    assert code == 0
    assert problem.prompt in out
    assert find("planning.grid").solution(problem) in out


def test_samples_with_answers_are_scored(capsys, tmp_path: Path) -> None:
    rows = []
    for name in ("planning.grid", "arithmetic.chain"):
        code, out, _ = run(capsys, "sample", name, "-n", "8", "--json", "--solve")
        assert code == 0
        rows += out.splitlines()
    rows.append(json.dumps({"task": "planning.grid", "level": 1, "seed": 3, "answer": "answer: ?"}))
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(rows) + "\n\n")
    code, out, _ = run(capsys, "score", str(path), "--json")
    result = json.loads(out)
    assert code == 0
    chain, grid = result["table"]
    assert (chain["task"], chain["problems"], chain["solved"]) == ("arithmetic.chain", 8, 1)
    assert (grid["problems"], grid["solved"]) == (9, pytest.approx(8 / 9))
    assert grid["low"] < 8 / 9 < grid["high"]
    assert 0 <= grid["constant"] < 0.3
    assert len(result["rows"]) == 17
    code, out, _ = run(capsys, "score", str(path))
    assert "88.9%" in out


def test_every_bad_row_has_a_sentence(capsys, tmp_path: Path) -> None:
    good = find("planning.grid").sample(1, 1).plain()
    bad = [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        (json.dumps({"task": "planning.grid", "level": 1, "seed": 1}), "'answer' is missing"),
        (json.dumps({"level": 1, "seed": 1, "answer": ""}), "'task' is missing"),
        (json.dumps({"task": "planning.grid", "seed": 1, "answer": ""}), "'level' is missing"),
        (json.dumps({"task": "planing.grid", "level": 1, "seed": 1, "answer": ""}), "Did you mean"),
        (json.dumps({"task": "planning.grid", "level": 77, "seed": 1, "answer": ""}), "no level 77"),
        (json.dumps({"task": "planning.grid", "level": 1, "seed": -1, "answer": ""}), "not a seed"),
        (json.dumps({"problem": {**good, "data": {}}, "answer": ""}), "not the one"),
        ("[" * 100_000, "not JSON"),
    ]
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(row for row, _ in bad))
    code, _, err = run(capsys, "score", str(path))
    assert code == 2
    for number, (_, sentence) in enumerate(bad, 1):
        assert any(f"line {number}:" in line and sentence in line for line in err.splitlines()), sentence


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "nothing"),
        ("sample", "planning.grid", "--level", "99"),
        ("sample", "planning.grid", "-n", "0"),
        ("score", "/nowhere.jsonl"),
        ("score", "/"),
    ],
)
def test_bad_input_is_one_sentence(capsys, words: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("puna tasks: ")
    assert len(err.strip().splitlines()) == 1


def test_an_empty_file_is_refused(capsys, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n\n")
    code, _, err = run(capsys, "score", str(path))
    assert code == 2
    assert "no rows" in err
