"""All stages after pretraining, in rounds as in Llama 3, each compared with a control.

See arXiv 2407.21783, section 4.1.

    sft -> annotate -> reward -> rejection -> sft again -> dpo -> rl -> average

Where people ranked answers for Llama 3, the tasks' own checks do here. Every stage that trains weights is measured on
held-out problems, and so is a control: further fine-tuning from the same weights, for as long as the stage took. A
stage that is worse than what it started from is not used, and one that shows no difference from its control is reported
as such. Completed work is recorded in `all.json`, so an interrupted run resumes within the stage it was in.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from puna.core.console import console
from puna.core.errors import PunaError
from puna.core.files import lock_directory, new_directory, read_json, write_json, write_text
from puna.core.recipe import dump
from puna.engine.generate import load_engine
from puna.model.store import load_config
from puna.tasks.catalogue import find
from puna.train.measure.machine import Machine, best_device, measure
from puna.tune.measure import measure_tasks
from puna.tune.rejection.stage import PICKED, PREFERENCES
from puna.tune.stages import check_stage, runner
from puna.tune.way.gain import Gain, gain, mean
from puna.tune.way.recipe import AllRecipe
from puna.tune.way.report import render

STATE = "all.json"


class Interrupted(Exception):
    """A stage was interrupted; `event` is its last event."""

    def __init__(self, event: dict[str, Any]) -> None:
        super().__init__(event["detail"])
        self.event = event


def run(
    recipe: AllRecipe,
    run_dir: Path,
    *,
    resume: bool = False,
    observers: Sequence[Callable[[dict[str, Any]], None]] = (),
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Run all stages; returns the last event, with a row for each stage.

    Writes run_dir/model and report.html. Raises PunaError for anything in the recipe that does not fit, before the
    first step.
    """
    if not recipe.model:
        raise PunaError("No model was given.", "Use: puna tune all RECIPE MODEL.")
    pipeline = TuningPipeline(recipe, run_dir, observers, machine)
    pipeline.check()
    with lock_directory(run_dir):
        write_text(run_dir / "recipe.toml", dump(recipe))
        try:
            return pipeline.run()
        except Interrupted as stopped:
            detail = f"{stopped.event['detail'].partition(';')[0]}; resume with: puna tune all --resume {run_dir}"
            return {**stopped.event, "detail": detail}


class TuningPipeline:
    """One run of all stages: what is done, and which model comes next."""

    def __init__(
        self,
        recipe: AllRecipe,
        run_dir: Path,
        observers: Sequence[Callable[[dict[str, Any]], None]] = (),
        machine: Machine | None = None,
    ) -> None:
        self.recipe, self.run_dir, self.observers, self._machine = recipe, run_dir, observers, machine
        path = run_dir / STATE
        self.done: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}

    @property
    def machine(self) -> Machine:
        """This machine, measured once for all stages."""
        self._machine = self._machine or measure(best_device())
        return self._machine

    def check(self) -> None:
        """Raise PunaError when a stage's section is wrong, before anything is computed."""
        files = {"data": {"files": ["pairs.jsonl"]}}
        self._stage("sft", self.recipe.model, self.recipe.sft)
        for name, stage, extra in (
            ("annotate", "rejection", {}),
            ("reward", "reward", files),
            ("rejection", "rejection", {"reward_model": "reward"}),
            ("again", "sft", {}),
            ("dpo", "dpo", files),
            ("rl", "rl", {}),
        ):
            section = getattr(self.recipe, name)
            if section:
                values = _merged(self.recipe.sft, section) if name == "again" else section
                self._stage(stage, self.recipe.model, _merged(values, extra))
        for name, level in self.recipe.measure.asked:
            find(name).sample(0, level)
        load_config(Path(self.recipe.model))

    def run(self) -> dict[str, Any]:
        """Run all rounds, finish the model and write the report."""
        recipe = self.recipe
        wanted = ("annotate", "reward", "rejection", "again", "dpo", "rl", "average")
        stages = " → ".join(("sft", *(name for name in wanted if getattr(recipe, name))))
        count = len(recipe.measure.asked) * recipe.measure.problems
        control = ", each compared with a control" if recipe.control else ""
        console().print(f"{stages}; measured on {count:,} held-out problems{control}.", markup=False)
        self._measured("before", recipe.model)
        current = recipe.model
        for number in range(1, recipe.rounds + 1):
            current = self.round(number, current)
        with new_directory(self.run_dir / "model", replace=True) as place:
            shutil.copytree(current, place, dirs_exist_ok=True)
        rows = self.rows()
        write_text(self.run_dir / "report.html", render(self.run_dir.resolve().name, rows, self.done))
        where = f"The model is {self.run_dir / 'model'}, the report {self.run_dir / 'report.html'}."
        console().print(where, markup=False)
        return {"kind": "end", "stage": "all", "step": len(self.done), "model": current, "rows": rows}

    def round(self, number: int, current: str) -> str:
        """Run one round from the model `current`; returns the resulting model."""
        recipe, moved = self.recipe, []
        seed = 1000 * (number - 1)
        if number == 1:
            current = self._train_stage("1-sft", "sft", current, self._seeded(recipe.sft, seed), control=False)
        pairs: list[str] = []
        picked: list[str] = []
        reward = ""
        if recipe.annotate:
            values = _merged(recipe.annotate, {"seed": seed + 1})
            pairs += self._files(f"{number}-annotate", current, values, PREFERENCES)
        if recipe.reward and pairs:
            values = _merged(self._seeded(recipe.reward, seed), {"data": {"files": pairs}})
            reward = self._run_stage(f"{number}-reward", "reward", current, values)
        if recipe.rejection and (reward or recipe.rejection.get("pick") != "reward"):
            chosen = {"reward_model": reward} if recipe.rejection.get("pick") == "reward" else {}
            values = _merged(recipe.rejection, {"seed": seed + 2, **chosen})
            picked += self._files(f"{number}-rejection", current, values, PICKED)
            pairs += self._files(f"{number}-rejection", current, values, PREFERENCES)
        if recipe.again and picked:
            values = self._seeded(_merged(recipe.sft, recipe.again), seed + 3)
            files = [*values.get("data", {}).get("files", []), *({"path": path} for path in picked)]
            values = _merged(values, {"data": {"files": files}})
            current = self._train_stage(f"{number}-again", "sft", current, values)
            moved.append(current)
        if recipe.dpo and pairs:
            values = _merged(self._seeded(recipe.dpo, seed), {"data": {"files": pairs}})
            current = self._train_stage(f"{number}-dpo", "dpo", current, values)
            moved.append(current)
        if recipe.rl:
            current = self._train_stage(f"{number}-rl", "rl", current, self._seeded(recipe.rl, seed))
            moved.append(current)
        several = list(dict.fromkeys(moved))
        if recipe.average and len(several) > 1:
            models = [{"path": path} for path in several]
            current = self._train_stage(f"{number}-average", "average", current, {"models": models}, control=False)
        return current

    # -- one stage ---------------------------------------------------------------------------------------------------

    def _train_stage(self, name: str, stage: str, parent: str, values: dict[str, Any], *, control: bool = True) -> str:
        """Run a stage that trains weights, measure it and its control.

        Returns the model to continue with.
        """
        model = self._run_stage(name, stage, parent, values)
        entry = self.done[name]
        if not model:
            return parent
        self._measured(name, model)
        steps = self._control_steps(entry)
        if control and self.recipe.control and steps:
            # Use the rate of `again`: that of the first stage would undo some of what the weights have learned.
            more = _merged(self._seeded(self.recipe.sft, 7), self.recipe.again)
            more = _merged(more, {"train": {"steps": steps}, "schedule": {"seconds": entry["seconds"]}})
            other = self._run_stage(f"{name}-control", "sft", parent, more)
            self._measured(f"{name}-control", other)
        before = self._rows_of(parent)
        change = gain(entry["measured"], before, self._score)
        if change.verdict == "lost":
            entry["note"] = "worse than the model it started from; the next stage starts from that model, too"
            self._save()
            return parent
        return model

    def _run_stage(self, name: str, stage: str, parent: str, values: dict[str, Any]) -> str:
        """Run a stage, unless it is done.

        Returns its model, or "" when it could not run and is left out.
        """
        if name in self.done:
            return str(self.done[name]["model"])
        _heading(name)
        folder = self.run_dir / name
        options: dict[str, Any] = {"machine": self.machine} if stage not in ("rejection", "average") else {}
        resume = (folder / "recipe.toml").exists()
        if resume and stage not in ("rejection", "average") and not any((folder / "checkpoints").glob("step-*")):
            shutil.rmtree(folder)  # stopped before its first checkpoint
            resume = False
        try:
            event = runner(stage)(
                self._stage(stage, parent, values), folder, resume=resume, observers=self.observers, **options
            )
        except PunaError as error:
            if name == "1-sft":
                raise
            console().print(f"{name} is left out: {error}", markup=False)
            self.done[name] = {"stage": stage, "parent": parent, "model": "", "note": str(error)}
            self._save()
            return ""
        if event["kind"] != "end":
            raise Interrupted(event)
        kept = ("step", "final_step", "tokens", "seconds", "step_seconds", "best", "finished", "right", "kept", "pairs")
        entry = {key: event[key] for key in kept if event.get(key) is not None}
        model = "" if stage == "rejection" else str(folder / "model")
        self.done[name] = {"stage": stage, "parent": parent, "model": model, **entry}
        self._save()
        return model

    def _files(self, name: str, parent: str, values: dict[str, Any], file: str) -> list[str]:
        """Sample answers, unless that is done.

        Returns the file in a list, empty if it has no answers.
        """
        self._run_stage(name, "rejection", parent, values)
        path = self.run_dir / name / file
        return [str(path)] if path.exists() and path.stat().st_size else []

    def _stage(self, stage: str, parent: str, values: dict[str, Any]) -> Any:
        own = {} if stage == "average" else {"model": parent}
        return check_stage({**values, **own, "stage": stage}, f"{self.recipe.run_name}: {stage}")

    def _control_steps(self, entry: dict[str, Any]) -> int:
        """The number of fine-tuning steps that take as long as a stage took."""
        usual = self.done["1-sft"].get("step_seconds")
        return max(1, round(entry["seconds"] / usual)) if usual and entry.get("seconds") else 0

    @staticmethod
    def _seeded(section: dict[str, Any], seed: int) -> dict[str, Any]:
        own = section.get("train", {}).get("seed", 0)
        return _merged(section, {"train": {"seed": own + seed}})

    # -- measures ----------------------------------------------------------------------------------------------------

    @property
    def _score(self) -> str:
        return "pass_1" if self.recipe.measure.samples else "greedy"

    def _measured(self, name: str, model: str) -> None:
        """Measure a model on the held-out problems, unless that is done."""
        entry = self.done.setdefault(name, {"stage": name, "parent": "", "model": model})
        if "measured" in entry:
            return
        config = self.recipe.measure
        console().print(f"Measuring {name} …", markup=False)
        results = measure_tasks(
            load_engine(Path(model), device=best_device(), fast=True),
            config.asked,
            problems=config.problems,
            samples=config.samples,
            max_tokens=config.max_tokens,
            instruct=config.instruct,
        )
        entry["measured"] = [result.plain() for result in results]
        self._save()

    def _rows_of(self, model: str) -> list[dict[str, Any]]:
        return next(e["measured"] for e in self.done.values() if e["model"] == model and "measured" in e)

    def _gain(self, name: str, entry: dict[str, Any]) -> tuple[Gain, str]:
        """A stage's gain over the better of its control and its initial model.

        Also returns which of them that is.
        """
        against = {"over the initial model": self._rows_of(entry["parent"])}
        control = self.done.get(f"{name}-control", {}).get("measured")
        against |= {"over its control": control} if control else {}
        beside = max(against, key=lambda key: mean(against[key], self._score))
        return gain(entry["measured"], against[beside], self._score), beside

    def _save(self) -> None:
        write_json(self.run_dir / STATE, json.loads(json.dumps(self.done)))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each model that was measured: its scores and its gain."""
        rows = []
        for name, entry in self.done.items():
            if "measured" not in entry:
                continue
            gained, verdict = None, entry.get("note", "")
            if entry["parent"] and not name.endswith("-control"):
                gained, beside = self._gain(name, entry)
                verdict = (
                    f"{gained.verdict} ({gained.difference:+.1%}, {gained.low:+.1%} to {gained.high:+.1%}, {beside})"
                )
                verdict += f"; {entry['note']}" if entry.get("note") else ""
            rows.append(
                {
                    "stage": name,
                    "greedy": mean(entry["measured"], "greedy"),
                    "pass_1": mean(entry["measured"], "pass_1") if self.recipe.measure.samples else None,
                    "seconds": round(entry.get("seconds", 0)),
                    "verdict": verdict,
                    "gain": gained._asdict() if gained else None,
                }
            )
        return rows


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Merge tables; values of the second one win."""
    merged = dict(base)
    for key, value in extra.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _heading(name: str) -> None:
    console().print(f"\n[bold]{name}[/bold]")
