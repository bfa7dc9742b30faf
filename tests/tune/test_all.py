"""All stages: they run in order, each is compared with its control, and an interrupted run resumes."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from puna.cli.main import main
from puna.core.errors import PunaError
from puna.core.recipe import check
from puna.core.statistics import wilson
from puna.model.store import load_lineage
from puna.train.measure.machine import Machine
from puna.tune.measure import Answer
from puna.tune.sft.objective import SFT
from puna.tune.stages import check_stage, load_stage
from puna.tune.way import run as all_stages
from puna.tune.way.gain import gain
from puna.tune.way.recipe import AllRecipe
from puna.tune.way.run import TuningPipeline

RECIPES = Path(__file__).parents[2] / "recipes" / "tune"
TASKS = [{"name": "planning.grid", "levels": [1], "count": 12}]


@pytest.fixture
def values(model_dir: Path) -> dict[str, Any]:
    train = {"steps": 3, "batch": 4, "seq_len": 128, "precision": "fp32"}
    return {
        "stage": "all",
        "model": str(model_dir),
        "measure": {"tasks": [{"name": "planning.grid"}], "problems": 4, "samples": 2, "max_tokens": 4},
        "sft": {"train": train, "data": {"tasks": TASKS}},
        "annotate": {"tasks": TASKS, "samples": 4},
        "reward": {"train": train},
        "rejection": {"tasks": TASKS, "samples": 4, "pick": "reward"},
        "again": {"train": {"steps": 2}},
        "dpo": {"train": train},
    }


@pytest.fixture
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled answers of which every other one is right; the tiny model alone would never solve a problem."""
    from puna.tasks.catalogue import find

    def answer(engine: Any, problems: Any, *, samples: int, seed: int, **_: Any) -> list[Answer]:
        made = []
        for problem in problems:
            task = find(problem.task)
            for number in range(samples):
                text = task.solution(problem) if number % 2 else f"answer: {seed + number}"
                said = [{"role": "assistant", "content": text}]
                made.append(Answer(problem, text, task.check(problem, text), True, len(text), said))
        return made

    monkeypatch.setattr("puna.tune.rejection.stage.answer", answer)


@pytest.mark.usefixtures("_scripted")
def test_the_way_is_gone_measured_and_resumed(
    values: dict[str, Any], tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = check(AllRecipe, values, "test")
    original, seen = SFT.batch, []

    def interrupting(self: SFT, data_step: int) -> Any:
        seen.append(data_step)
        if len(seen) == 4:  # the first batch after the first stage
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, data_step)

    monkeypatch.setattr(SFT, "batch", interrupting)
    event = all_stages.run(recipe, tmp_path / "run", machine=machine)
    assert event["event"] == "interrupted"
    assert event["detail"].endswith(f"puna tune all --resume {tmp_path / 'run'}")
    event = all_stages.run(recipe, tmp_path / "run", resume=True, machine=machine)
    assert event["kind"] == "end"
    assert seen[:4] == [0, 1, 2, 0]
    assert seen[4] == 1  # the interrupted stage resumes, those before it are not repeated
    names = [row["stage"] for row in event["rows"]]
    expected = ["before", "1-sft", "1-again", "1-again-control", "1-dpo", "1-dpo-control", "1-average"]
    assert names == expected
    verdicts = {row["stage"]: row["verdict"] for row in event["rows"]}
    assert verdicts["1-dpo"].startswith("no difference shown (")
    assert verdicts["1-dpo"].endswith("over the initial model)")
    assert verdicts["before"] == verdicts["1-dpo-control"] == ""
    state = json.loads((tmp_path / "run" / "all.json").read_text())
    assert state["1-dpo"]["parent"].endswith("1-again/model")
    assert state["1-again-control"]["parent"] == state["1-again"]["parent"]
    assert load_lineage(tmp_path / "run" / "model")["stage"] == "average"
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "1-average" in report
    assert "planning.grid" in report
    # A finished run is not repeated.
    before = len(seen)
    all_stages.run(recipe, tmp_path / "run", resume=True, machine=machine)
    assert len(seen) == before


def test_what_cannot_be_done_is_left_out_and_said(values: dict[str, Any], tmp_path: Path, machine: Machine) -> None:
    values["annotate"] |= {"samples": 2, "max_tokens": 4}
    del values["rejection"], values["again"]
    event = all_stages.run(check(AllRecipe, values, "test"), tmp_path / "run", machine=machine)
    assert [row["stage"] for row in event["rows"]] == ["before", "1-sft"]
    assert "None of 24 answers" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert load_lineage(tmp_path / "run" / "model")["stage"] == "sft"


def test_mistakes_show_before_anything_is_computed(values: dict[str, Any], tmp_path: Path) -> None:
    for section, wrong, sentence in (
        ("dpo", {"dpo": {"betta": 1}}, "unknown key 'dpo.betta'"),
        ("sft", {"train": {"steps": "many"}}, "train.steps"),
        ("measure", {"tasks": [{"name": "planning.gird"}]}, "no task 'planning.gird'"),
    ):
        with pytest.raises(PunaError) as error:
            TuningPipeline(check(AllRecipe, {**values, section: wrong}, "test"), tmp_path).check()
        assert sentence in str(error.value)
    for change, sentence in (({"sft": {}}, "sft is empty"), ({"annotate": {}}, "reward needs annotate")):
        with pytest.raises(PunaError, match=sentence):
            check(AllRecipe, {**values, **change}, "test")


def test_a_gain_is_one_whose_interval_is_above_zero() -> None:
    def row(right: int, of: int) -> dict[str, Any]:
        return {"greedy": right / of, "greedy_interval": wilson(right, of)}

    assert gain([row(90, 100), row(80, 100)], [row(50, 100), row(40, 100)], "greedy").verdict == "gained"
    assert gain([row(50, 100)], [row(90, 100)], "greedy").verdict == "lost"
    close = gain([row(55, 100)], [row(50, 100)], "greedy")
    assert close.verdict == "no difference shown"
    assert close.difference == pytest.approx(0.05)
    # Two shares of 100 attempts: the textbook's interval of their difference is 13.8 points on each side.
    assert close.high - close.difference == pytest.approx(0.138, abs=0.005)


def test_the_command_takes_recipe_and_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = str(tmp_path / "run")
    recipe = str(RECIPES / "laptop.toml")
    assert main(["tune", "all", recipe, str(tmp_path / "nothing"), "--run-dir", run_dir]) == 2
    assert "nothing does not exist" in capsys.readouterr().err
    assert main(["tune", "all", recipe, "--run-dir", run_dir]) == 2
    assert "No model was given" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")  # looks like a model, and is never opened
    assert main(["tune", "all", recipe, str(tmp_path), "--run-dir", run_dir, "--nproc", "2"]) == 2
    assert "runs in one process" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_along_are_right(path: Path, model_dir: Path) -> None:
    recipe = load_stage(path).value
    if isinstance(recipe, AllRecipe):
        TuningPipeline(recipe.model_copy(update={"model": str(model_dir)}), Path("nowhere")).check()
    else:
        assert check_stage({**recipe.model_dump(mode="json")}, str(path)) == recipe
