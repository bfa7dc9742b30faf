"""A run with a promised time keeps it on a slower or faster machine, with a complete schedule."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.recipe import load
from puna.train.loop import Loop
from puna.train.measure.clock import Clock
from puna.train.measure.machine import Machine
from puna.train.pace import TOLERANCE, Horizon, replan
from puna.train.pretrain import train
from puna.train.recipe import Recipe
from puna.train.report.run_data import load_run, summary
from puna.train.run.directory import resolve_corpus
from puna.train.run.metrics import read_metrics

RECIPES = Path(__file__).parents[2] / "recipes"
MACHINE = Machine("cpu", "test", 1, 8 << 30, {"fp32": 1e11, "bf16": 1e11}, False)


@given(st.integers(1, 10_000), st.data())
def test_progress_is_continuous_and_ends_at_one(total: int, data: st.DataObject) -> None:
    horizon = Horizon(total)
    for _ in range(data.draw(st.integers(0, 3))):
        step = data.draw(st.integers(horizon.since, horizon.total))
        moved = horizon.moved(step, step + data.draw(st.integers(1, 1000)))
        assert moved.progress(step) == pytest.approx(horizon.progress(step))
        horizon = moved
    assert horizon.progress(horizon.total) == pytest.approx(1)
    shares = [horizon.progress(step) for step in range(horizon.since, horizon.total + 1)]
    assert shares == sorted(shares)


def test_an_unchanged_horizon_is_the_share_of_steps_to_the_last_bit() -> None:
    assert all(Horizon(977).progress(step) == step / 977 for step in range(978))


@given(
    total=st.integers(2, 2000),
    share=st.floats(0, 0.99),
    slower=st.floats(0.1, 20),
    may_extend=st.booleans(),
)
def test_a_new_number_of_steps_ends_within_the_promise(
    total: int, share: float, slower: float, may_extend: bool
) -> None:
    step, planned = int(share * total), 0.5
    promised = total * planned
    now = slower * planned
    after = replan(
        Horizon(total), step, elapsed=step * planned, promised=promised, step_seconds=now, may_extend=may_extend
    )
    end = step * planned + (after.total - step) * now
    if may_extend or slower >= 1:
        # Within the tolerance, or as close as one step allows.
        assert abs(end - promised) <= max(TOLERANCE * promised, now) + 1e-6
    else:
        assert after.total <= total


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    words = [
        "train.steps=40",
        "schedule.seconds=40",
        "train.compile=off",
        "log.every=2",
        "log.sample_every=0",
        "log.eval_every=0",
    ]
    with contextlib.chdir(RECIPES.parent):
        return resolve_corpus(load(Recipe, RECIPES / "smoke.toml", [*words, "checkpoint.every=4"]).value, tmp_path)


@pytest.fixture
def step_seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A clock on which a step takes the time that the test sets, from the given step on."""
    pace = {"now": 1.0}

    class Fake(Clock):
        counted = 0.0

        @property
        def training_here(self) -> float:
            return self.counted

        def start(self, step: int) -> None:
            super().start(step)
            self.training_before = 0.0 if step == 0 else self.training_before

    step = Loop.train_step

    def counted(self: Loop, batch: object) -> object:
        self.state.clock.counted += pace["now"]  # type: ignore[attr-defined]
        return step(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr("puna.train.run_state.Clock", Fake)
    monkeypatch.setattr(Loop, "train_step", counted)
    return pace


def test_a_run_that_becomes_slower_has_fewer_steps_and_the_whole_schedule(
    recipe: Recipe, tmp_path: Path, step_seconds: dict[str, float]
) -> None:
    def slow(_: Loop) -> None:
        step_seconds["now"] = 4.0

    halfway: list[int] = []
    hooks = {10: slow, 0.5: lambda loop: halfway.append(loop.state.step)}
    event = train(recipe, tmp_path / "run", hooks=hooks, machine=MACHINE)
    assert event["kind"] == "end"
    assert event["seconds"] == pytest.approx(40, rel=0.15)
    assert event["step"] < 25
    assert len(halfway) == 1
    events = read_metrics(tmp_path / "run")
    said = [e for e in events if e.get("event") == "pace"]
    assert said
    assert said[-1]["total_steps"] == event["step"]
    factors = [e["lr_factor"] for e in events if e["kind"] == "train"]
    assert factors[-1] < 0.35  # the decay completed
    run = load_run(tmp_path / "run")
    assert summary(run)["total_steps"] == event["step"]


def test_a_run_that_becomes_faster_has_more_steps(
    recipe: Recipe, tmp_path: Path, step_seconds: dict[str, float]
) -> None:
    step_seconds["now"] = 0.25
    event = train(recipe, tmp_path / "run", machine=MACHINE)
    assert event["step"] > 80
    assert event["seconds"] == pytest.approx(40, rel=TOLERANCE + 0.05)


def test_without_a_promise_the_number_of_steps_is_the_recipe_s(
    recipe: Recipe, tmp_path: Path, step_seconds: dict[str, float]
) -> None:
    step_seconds["now"] = 9.0
    schedule = recipe.schedule.model_copy(update={"seconds": 0.0})
    recipe = recipe.model_copy(update={"schedule": schedule})
    assert train(recipe, tmp_path / "run", machine=MACHINE)["step"] == 40


def test_a_resumed_run_keeps_the_number_of_steps_that_it_had_come_to(
    recipe: Recipe, tmp_path: Path, step_seconds: dict[str, float]
) -> None:
    def stop(loop: Loop) -> None:
        loop.state.stop.signal = 2

    step_seconds["now"] = 2.0
    first = train(recipe, tmp_path / "run", hooks={12: stop}, machine=MACHINE)
    assert first["event"] == "interrupted"
    changed = [e["total_steps"] for e in read_metrics(tmp_path / "run") if e.get("event") == "pace"][-1]
    event = train(recipe, tmp_path / "run", machine=MACHINE, resume=True)
    assert event["step"] == changed
    assert event["seconds"] == pytest.approx(40, rel=0.15)
    meta = json.loads(next((tmp_path / "run/checkpoints").glob(f"step-{changed}/*.json")).read_text(encoding="utf-8"))
    assert json.dumps(meta).count("horizon")
