"""The loop of a stage: resumed, rolled-back and interrupted runs give the same results as undisturbed ones."""

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from puna.core.errors import PunaError
from puna.core.recipe import check
from puna.model.store import load_lineage
from puna.train.loss import cross_entropy_chunked
from puna.train.measure.machine import Machine
from puna.train.objective import RollBack
from puna.train.report.page import write_report
from puna.train.run.metrics import read_metrics
from puna.tune.recipe import StageRecipe
from puna.tune.stage import Stage, StageObjective, run_stage

STEPS = 8


class CopyRecipe(StageRecipe):
    """A stage defined by the test."""

    stage: Literal["copy"] = "copy"


class Copy(StageObjective):
    """Learn random rows: row i of step s is a function of the seed and s; `seen` is state."""

    raising: ClassVar[dict[int, Exception]] = {}

    def __init__(self, stage: Stage, scores: Sequence[float] = (), act: Any = None) -> None:
        super().__init__(stage)
        self.scores, self.act, self.seen = scores, act, 0

    def batch(self, data_step: int) -> list[Tensor]:
        if self.act:
            self.act(self.stage, data_step)
        self.seen += 1
        generator = torch.Generator().manual_seed(1000 * self.seen + data_step)
        rows = torch.randint(0, 500, (self.stage.recipe.train.batch, 17), generator=generator)
        first, count, parts = self.stage.share
        return [rows[first + i * count : first + (i + 1) * count] for i in range(parts)]

    def loss(self, network: Any, rows: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        scale = torch.tensor(1.0 / (self.stage.recipe.train.batch * 16))
        head = partial(cross_entropy_chunked, targets=rows[:, 1:], scale=scale)
        loss, nats = network(rows[:, :-1], head=head)
        return loss, {"nats": nats, "id_max": rows.max(), "tokens": float(rows[:, 1:].numel())}

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Scored(Copy):
    def evaluate(self, step: int) -> dict[str, float]:
        return {"score": self.scores[step]}


@pytest.fixture
def recipe(model_dir: Path) -> CopyRecipe:
    values = {
        "model": str(model_dir),
        "train": {"steps": STEPS, "batch": 4, "micro_batch": 2, "seq_len": 16, "precision": "fp32"},
        "log": {"every": 1},
        "checkpoint": {"every": 3, "keep": 9},
        "optimizer": {"lr": 0.01},
    }
    return check(CopyRecipe, values, "test")


def lines(run_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    return [event for event in read_metrics(run_dir) if event["kind"] == kind]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in lines(run_dir)]


def changed(recipe: CopyRecipe, section: str, **values: Any) -> CopyRecipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def test_a_stage_ends_as_a_model_with_its_lineage_and_a_report(
    recipe: CopyRecipe, tmp_path: Path, machine: Machine
) -> None:
    event = run_stage(recipe, tmp_path / "run", Copy, machine=machine)
    assert event["kind"] == "end"
    assert event["tokens"] == STEPS * 4 * 16
    train = lines(tmp_path / "run")
    assert [line["step"] for line in train] == list(range(1, STEPS + 1))
    # Measures of micro-batches are summed, maxima are maxima.
    assert train[0]["metrics"]["nats"] == pytest.approx(train[0]["loss"])
    assert 400 < train[0]["metrics"]["id_max"] < 500
    before = load_file(Path(recipe.model) / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    lineage = load_lineage(tmp_path / "run" / "model")
    assert lineage["stage"] == "copy"
    assert lineage["parent"]["path"] == recipe.model
    report = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "What the stage measured" in report
    assert "id_max" in report


def test_an_interrupted_stage_goes_on_as_if_it_had_not_been(
    recipe: CopyRecipe, tmp_path: Path, machine: Machine
) -> None:
    run_stage(recipe, tmp_path / "straight", Copy, machine=machine)

    def interrupt(stage: Stage, data_step: int) -> None:
        if data_step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    event = run_stage(recipe, tmp_path / "run", partial(Copy, act=interrupt), machine=machine)
    assert event["event"] == "interrupted"
    assert "puna tune copy --resume" in event["detail"]
    assert run_stage(recipe, tmp_path / "run", Copy, resume=True, machine=machine)["kind"] == "end"
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    ends = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "straight")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_best_weights_are_kept(recipe: CopyRecipe, tmp_path: Path, machine: Machine) -> None:
    scores = [0.1, 0, 0.7, 0, 0.7, 0, 0.3, 0, 0.2]
    recipe = changed(changed(recipe, "log", eval_every=2), "train", final="best")
    recipe = changed(recipe, "checkpoint", keep=1)
    event = run_stage(recipe, tmp_path / "run", partial(Scored, scores=scores), machine=machine)
    assert event["best"] == {"step": 2, "score": 0.7}
    assert (event["step"], event["final_step"]) == (8, 2)
    short = changed(changed(recipe, "train", final="last"), "log", eval_every=0)
    short = changed(short, "schedule", warmup=0.0, decay=0.0)
    assert [line["metrics"]["score"] for line in lines(tmp_path / "run", "eval")] == [0.1, 0.7, 0.7, 0.3, 0.2]
    assert load_lineage(tmp_path / "run" / "model")["step"] == 2


def test_an_objective_rolls_back_to_the_best_weights_and_lower_rates(
    recipe: CopyRecipe, tmp_path: Path, machine: Machine
) -> None:
    done: list[int] = []

    def collapse(stage: Stage, data_step: int) -> None:
        if stage.step == 5 and not done:
            done.append(data_step)
            raise RollBack("The entropy fell to nothing.", lr_scale=0.5)

    scores = [0.1, 0, 0.7, 0, 0.2, 0, 0.3, 0, 0.8]
    recipe = changed(changed(recipe, "log", eval_every=2), "schedule", warmup=0.0, decay=0.0)
    make = partial(Scored, scores=scores, act=collapse)
    event = run_stage(recipe, tmp_path / "run", make, machine=machine)
    assert event["kind"] == "end"
    train = lines(tmp_path / "run")
    assert [line["step"] for line in train] == [1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8]
    assert [line["lr_factor"] for line in train] == [1.0] * 5 + [0.5] * 6
    rollback = next(e for e in lines(tmp_path / "run", "event") if e["event"] == "rollback")
    assert (rollback["from_step"], rollback["step"]) == (5, 2)
    assert "entropy" in rollback["detail"]


def test_too_many_roll_backs_end_the_stage_at_its_best(recipe: CopyRecipe, tmp_path: Path, machine: Machine) -> None:
    def collapse(stage: Stage, data_step: int) -> None:
        if stage.step == 3:
            raise RollBack("No text ends any more.")

    scores = [0.1, 0, 0.7, 0, 0.2, 0, 0.3, 0, 0.8]
    recipe = changed(recipe, "log", eval_every=2)
    event = run_stage(recipe, tmp_path / "run", partial(Scored, scores=scores, act=collapse), machine=machine)
    assert event["kind"] == "end"
    assert event["final_step"] == 2
    assert "No text ends any more" in event["finished"]


def test_many_skipped_steps_go_back_and_around_their_data(recipe: CopyRecipe, tmp_path: Path, machine: Machine) -> None:
    asked: list[int] = []

    def poison(stage: Stage, data_step: int) -> None:
        asked.append(data_step)
        if not data_step:
            check = stage.guard.check
            bad = (4, 5)
            stage.guard.check = lambda loss, norm: check(  # type: ignore[method-assign]
                loss * float("nan") if stage.data_step in bad else loss, norm
            )

    event = run_stage(
        changed(recipe, "guard", max_skips=2), tmp_path / "run", partial(Copy, act=poison), machine=machine
    )
    assert (event["kind"], event["step"]) == ("end", STEPS)
    (rollback,) = (e for e in lines(tmp_path / "run", "event") if e["event"] == "rollback")
    assert (rollback["from_step"], rollback["step"]) == (6, 3)
    assert asked == list(range(11)), "every batch once"


def test_a_step_with_nothing_to_learn_changes_nothing(recipe: CopyRecipe, tmp_path: Path, machine: Machine) -> None:
    class Nothing(Copy):
        def batch(self, data_step: int) -> list[Tensor]:
            return []

    run_stage(recipe, tmp_path / "run", Nothing, machine=machine)
    before = load_file(Path(recipe.model) / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_objective_may_end_the_stage_early(recipe: CopyRecipe, tmp_path: Path, machine: Machine) -> None:
    def enough(stage: Stage, data_step: int) -> None:
        if data_step == 3:
            stage.finished = "The reward is 0.97: there is nothing left to learn."

    event = run_stage(recipe, tmp_path / "run", partial(Copy, act=enough), machine=machine)
    assert (event["kind"], event["step"]) == ("end", 3)
    assert "nothing left" in event["finished"]


def test_what_does_not_fit_is_one_sentence(recipe: CopyRecipe, tmp_path: Path, machine: Machine) -> None:
    with pytest.raises(PunaError, match="has no model"):
        run_stage(recipe.model_copy(update={"model": ""}), tmp_path / "a", Copy, machine=machine)
    with pytest.raises(PunaError, match="longer than the context"):
        run_stage(changed(recipe, "train", seq_len=512), tmp_path / "b", Copy, machine=machine)
    with pytest.raises(PunaError, match=r"train\.steps is 0"):
        run_stage(changed(recipe, "train", steps=0), tmp_path / "c", Copy, machine=machine)
    run_stage(recipe, tmp_path / "d", Copy, machine=machine)
    with pytest.raises(PunaError, match=r"train\.batch is 4 in the checkpoint and 8"):
        run_stage(changed(recipe, "train", batch=8), tmp_path / "d", Copy, resume=True, machine=machine)
