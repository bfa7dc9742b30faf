"""The training loop for pretraining and every stage after it; it can be stopped at any step.

    objective.batch(data step) -> objective.loss -> backward -> guard -> optimizer -> metrics, checkpoint

What differs between runs is an `Objective` (batches, loss, evaluation) and a `ModelFactory` (how the network is created
and initialized). A step never synchronizes with the device; losses and norms are read once per log interval. The run
reports what it expects before the first step, and compares it with the measured values at the end. A run that goes
wrong rolls back to earlier weights: the guard asks for that after too many skipped steps, an objective by raising
`RollBack`.
"""

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from puna.core import files
from puna.core.errors import PunaError
from puna.core.recipe import dump
from puna.core.units import format_seconds
from puna.train import parallel
from puna.train.guard import decide
from puna.train.measure.clock import gc_paused, profiler
from puna.train.objective import SCORE, Objective, RollBack
from puna.train.pace import Horizon, keep_promise
from puna.train.planning.expectation import Expectation
from puna.train.run.checkpoint import Checkpointer
from puna.train.run.metrics import MetricsLog
from puna.train.run_state import RunState
from puna.train.step_log import StepLog, finite

Hook = Callable[["Loop"], None]


class Loop:
    """Drives one run on one process."""

    def __init__(self, state: RunState[Any], make_objective: Callable[[RunState[Any]], Objective]) -> None:
        """Raises PunaError when neither the objective nor the recipe sets the number of steps."""
        self.state = state
        self.objective = make_objective(state)
        train = state.recipe.train
        self.planned_steps = train.steps or self.objective.steps
        if not self.planned_steps:
            raise PunaError("train.steps is 0.", "Set it to the number of steps of the stage.")
        state.horizon = Horizon(self.planned_steps)
        self.expected = Expectation.of(state, self.objective)
        self.checkpoints = Checkpointer(state.run_dir, state.recipe.checkpoint, self.objective.fingerprint())
        self.log = StepLog(state.clock)
        self.measures: dict[str, Any] = {}
        """Measures of the last held-out evaluation."""
        self._first_tokens = 0.0

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self, *, resume: bool, hooks: Mapping[float, Hook] | None = None) -> dict[str, Any]:
        """Run to the last step, from the start or from the newest good checkpoint.

        Return the last event.

        hooks: functions called with the loop. An int key calls the hook before the step of that number, a float key
        when that share of the run is done (1.0: after the last step). Time spent in hooks does not count as training.
        """
        state, objective, hooks = self.state, self.objective, hooks or {}
        resumed_from = self._restore() if resume else None
        if state.world.first:
            at = state.step if resume else None
            state.metrics = MetricsLog(state.run_dir, state.recipe.log, resume_step=at, observers=state.observers)
            files.write_text(state.run_dir / "recipe.toml", dump(state.kept_recipe))
        state.emit(self._start_event(resumed_from))
        for sentence in objective.notes:
            state.note("data", sentence)
        self._first_tokens = state.tokens
        state.clock.start(state.step)
        self.log.clear()
        with state.stop.listening(), gc_paused(), profiler(state.recipe.log.profile, state.run_dir) as profile:
            try:
                if not state.step and objective.evaluates_first:
                    self._evaluate()
                while not self._over and not state.stop.agreed():
                    self._call(hooks)
                    if self._step():
                        profile()
                        self._after_step()
            finally:
                objective.close()
        self._write_line()
        event = self._finish(hooks) if self._over else self._interrupted()
        if state.metrics:
            state.metrics.close()
        return event

    @property
    def _over(self) -> bool:
        return self.state.step >= self.state.total or bool(self.state.finished)

    def _step(self) -> bool:
        """Run one step. Returns whether it ran, so False when the run ended or rolled back instead."""
        state = self.state
        try:
            with state.clock.part("data"):
                batch = self.objective.batch(state.data_step)
            if state.finished:
                return False
            if batch:
                self.log.add(state.step, state.data_step, *self.train_step(batch))
        except RollBack as request:
            self._write_line()
            self._roll_back(request)
            state.data_step += 1  # do not request the same data again
            return False
        state.step += 1
        state.data_step += 1
        return True

    def train_step(self, batch: Sequence[Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Run one optimizer step on this process's micro-batches.

        Returns (loss, gradient norm, measures), on the device.
        """
        state = self.state
        state.optimizer.zero_grad()
        total, gathered = self._over_ranks(*self._run_micro_batches(batch))
        norm = state.optimizer.clip(state.recipe.train.grad_clip)
        state.optimizer.step(state.lr_factor(), state.guard.check(total, norm))
        return total, norm, gathered

    def _run_micro_batches(self, batch: Sequence[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward of this process' micro-batches: (loss, measures), its shares of them."""
        state = self.state
        if isinstance(state.network, parallel.Pipeline):
            return state.network.run([self.objective.call(part) for part in batch]), {}
        total = torch.zeros((), device=state.device)
        gathered: dict[str, Tensor] = {}
        factor = parallel.gradient_factor(state.network, state.world)
        for index, part in enumerate(batch):
            with parallel.accumulating(state.network, last=index == len(batch) - 1):
                with state.autocast():
                    loss, measures = self.objective.loss(state.network, part)
                (loss * factor).backward()
            looked_at = {
                name: torch.as_tensor(value, dtype=torch.float32, device=state.device).detach()
                for name, value in measures.items()
            }
            total += looked_at.pop("loss", loss.detach())
            for name, value in looked_at.items():
                before = gathered.get(name)
                merged = torch.maximum if name.endswith("_max") else torch.add
                gathered[name] = value if before is None else merged(before, value)
        return total, gathered

    def _over_ranks(self, total: Tensor, measures: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        world = self.state.world
        if world.summed_over == 1 and world.stage_group is None:
            return total, measures
        sums = {name: value for name, value in measures.items() if not name.endswith("_max")}
        summed = parallel.sum_over_data_and_stages(torch.stack((total, *sums.values())), world)
        reduced = dict(zip(sums, summed[1:], strict=True))
        for name in sorted(measures.keys() - sums.keys()):
            reduced[name] = parallel.max_over_ranks(measures[name], world)
        return summed[0], reduced

    def _after_step(self) -> None:
        """Do whatever is due after this step: a log line, a roll-back, an evaluation, a checkpoint."""
        state, recipe = self.state, self.state.recipe

        def due(every: int) -> bool:
            return bool(every) and state.step % every == 0

        saving = due(recipe.checkpoint.every) and state.step < state.total
        measuring = due(recipe.log.eval_every) and state.step < state.total
        # A log line is also due at every checkpoint, so a resumed run writes the same lines; an evaluation may save the
        # best.
        line = saving or due(recipe.log.every) or state.step == state.total or (measuring and self.objective.scored)
        if line and self._write_line():
            self._skipped_too_often()
            return
        if due(recipe.log.every):
            self._keep_pace()
        if measuring:
            saving = not self._evaluate() and saving
        self.objective.after_step()
        if saving:
            self._save(wait=not recipe.checkpoint.asynchronous)

    def _call(self, hooks: Mapping[float, Hook]) -> None:
        """Call the hooks that are due before the next step, or after the last one."""
        horizon, step = self.state.horizon, self.state.step
        now, before = horizon.progress(step), horizon.progress(step - 1) if step else -1.0
        for at, hook in hooks.items():
            if before < at <= now if isinstance(at, float) else at == step:
                with self.state.excluded_from_metrics():
                    hook(self)

    def _keep_pace(self) -> None:
        """Change the number of steps when the run would end much later or earlier than promised."""
        state, schedule, clock = self.state, self.state.recipe.schedule, self.state.clock
        step_seconds = clock.recent_step_seconds
        if not schedule.seconds or step_seconds is None:
            return
        horizon = keep_promise(state.horizon, state.step, schedule, elapsed=clock.training, step_seconds=step_seconds)
        before, total = state.total, state.from_first(lambda: horizon.total)
        if total == before:
            return
        state.horizon = state.horizon.moved(state.step, total)
        detail = (
            f"a step takes {step_seconds:.2g} s now: {before:,} steps become {total:,}, to end after the promised "
            f"{format_seconds(schedule.seconds)}"
        )
        state.note("pace", detail, total_steps=total)

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _write_line(self) -> bool:
        """Write a line about the steps since the last one.

        Returns whether the guard skipped too many recently.
        """
        if not len(self.log):
            return False
        state, recipe = self.state, self.state.recipe
        interval = self.log.take(state.guard.drain())
        learned = sum(self.expected.tokens_per_step if tokens is None else tokens for tokens in interval.tokens)
        state.tokens += learned
        speed = learned / max(1e-9, interval.seconds)
        state.emit(
            {
                "kind": "train",
                "step": state.step,
                "tokens": round(state.tokens),
                "loss": finite(interval.loss),
                "grad_norm": finite(interval.steps[-1].grad_norm),
                "lr_factor": state.lr_factor(),
                "tokens_per_second": speed,
                "step_seconds": interval.seconds / len(interval.steps),
                "mfu": self.expected.mfu(speed / state.world.size),
                "memory_bytes": state.peak_memory(),
                "data_wait_share": interval.data_seconds / max(1e-9, interval.seconds),
                "elapsed": state.clock.training,
                **self.objective.line_facts(interval.loss, interval.measures),
            }
        )
        for step in interval.skipped:
            detail = f"loss {step.loss:.4g}, gradient norm {step.grad_norm:.4g}: the update was skipped"
            event = {"kind": "event", "step": step.step, "event": "skip", "detail": detail}
            event |= {"loss": finite(step.loss), "grad_norm": finite(step.grad_norm)}
            state.emit(event | self.objective.skip_facts(step.data_step))
        # Older ones no longer count, neither for the decision nor for how far to roll back.
        oldest = state.step - recipe.guard.window
        state.skipped += [step.step for step in interval.skipped]
        state.skipped = [step for step in state.skipped if step > oldest]
        return decide(recipe.guard, state.skipped, step=state.step, rollbacks=state.rollbacks).action != "none"

    def _evaluate(self) -> bool:
        """Evaluate held-out, if the objective can, and keep the weights if they are the best.

        Returns whether they were.
        """
        state = self.state
        with state.excluded_from_metrics():
            self.measures = self.objective.evaluate(state.step)
        if not self.measures:
            return False
        facts = self.objective.eval_facts(self.measures)
        state.emit({"kind": "eval", "step": state.step, **facts, "elapsed": state.clock.training})
        score = self.measures.get(SCORE)
        if score is None or (state.best is not None and score <= state.best[SCORE]):
            return False
        state.best = {"step": state.step, SCORE: score}
        self.checkpoints.protected = {state.step}
        self._save(wait=False)
        return True

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _save(self, *, wait: bool) -> None:
        state = self.state
        with state.clock.part("checkpoint"):
            meta = {
                "step": state.step,
                "data_step": state.data_step,
                "planned_steps": self.planned_steps,
                "horizon": dataclasses.astuple(state.horizon),
                "rollbacks": state.rollbacks,
                "tokens": state.tokens,
                "skipped": state.skipped,
                "lr_scale": state.lr_scale,
                "best": state.best,
                "finished": state.finished,
                "training_seconds": state.clock.training,
                "objective": self.objective.state(),
            }
            self.checkpoints.save(state.step, state.tensors(), meta, wait=wait)
        state.note("checkpoint", f"saved step {state.step}")

    def _restore(self, before: int | None = None) -> int | None:
        """Load the newest good checkpoint (of a step below `before`).

        A roll-back loads only the weights and the step.
        """
        state = self.state
        tensors = state.tensors()
        meta = self.checkpoints.load(tensors, before=before)
        if meta is None:
            return None
        state.model.load_state_dict(tensors["model"], strict=False)
        state.guard.load_state_dict(tensors["guard"])
        state.step = meta["step"]
        if before is None:
            state.data_step, state.rollbacks, state.skipped = meta["data_step"], meta["rollbacks"], meta["skipped"]
            if meta.get("planned_steps") == self.planned_steps:  # otherwise the user changed it
                state.horizon = Horizon(*meta["horizon"])
            # Checkpoints of earlier versions of pretraining do not have these.
            state.tokens = meta.get("tokens", float(state.step * self.expected.tokens_per_step))
            state.lr_scale, state.best = meta.get("lr_scale", 1.0), meta.get("best")
            state.finished = meta.get("finished", "")
            state.clock.training_before = meta["training_seconds"]
            self.checkpoints.protected = {int(state.best["step"])} if state.best else set()
            self.objective.restore(meta.get("objective", {}))
        return state.step

    def _skipped_too_often(self) -> None:
        """Handle too many skipped steps: roll back to before the first of them, or stop."""
        state = self.state
        decision = decide(state.recipe.guard, state.skipped, step=state.step, rollbacks=state.rollbacks)
        if decision.action == "stop":
            state.note("stopped", decision.reason)
            raise PunaError(decision.reason)
        first, state.skipped = min(state.skipped), []
        self._roll_back(RollBack(decision.reason, to=first))

    def _roll_back(self, request: RollBack) -> None:
        """Roll back as requested; end the run when the limit of roll-backs is reached."""
        state, bad_step = self.state, self.state.step
        to = request.to if isinstance(request.to, int) else int(state.best["step"]) if state.best else state.step
        if self._restore(before=to + 1) is None:
            raise PunaError(
                f"{request.reason.rstrip('.')}, but there is no checkpoint to go back to.",
                "Lower the learning rate, look at the documents named in metrics.jsonl, or set checkpoint.every.",
            )
        state.rollbacks += 1
        state.lr_scale *= request.lr_scale
        self.objective.after_rollback()
        state.note("rollback", f"{request.reason} Back at step {state.step}.", from_step=bad_step)
        if state.rollbacks > state.recipe.guard.max_rollbacks:
            state.finished = f"{state.rollbacks} roll-backs did not help: {request.reason}"
        self.log.clear()

    # -- beginning and end -------------------------------------------------------------------------------------------

    def _start_event(self, resumed_from: int | None) -> dict[str, Any]:
        state, train, expected = self.state, self.state.recipe.train, self.expected
        return {
            "kind": "start",
            "step": state.step,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": state.machine.name,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "world_size": state.world.size,
            "precision": train.precision,
            "compiled": train.compile == "on",
            "parameters": state.config.num_parameters(),
            "trained_parameters": state.trained_parameters,
            "tokens_per_step": expected.tokens_per_step if self.objective.knows_its_rows else None,
            "total_steps": state.total,
            "flops_per_token": expected.flops_per_token or None,
            "peak_flops": expected.peak_flops,
            "predicted": expected.predicted(state.total - state.step),
            "resumed_from": resumed_from,
            **self.objective.start_facts(),
        }

    def _finish(self, hooks: Mapping[float, Hook]) -> dict[str, Any]:
        state, objective = self.state, self.objective
        memory = state.peak_memory()
        if state.finished:
            state.note("finished", state.finished)
        if not objective.scored:
            self._save(wait=True)
        best = self._evaluate()
        if best:
            self.checkpoints.wait()
        elif objective.scored:
            self._save(wait=True)
        last = state.step
        if objective.ends_with_best and state.best and state.best["step"] != last:
            self._restore(before=int(state.best["step"]) + 1)
            state.note("best", f"the weights of step {state.step} are kept")
        state.save_model(state.run_dir / "model", objective.lineage())
        if last >= state.total:
            self._call(hooks)
        clock = state.clock
        event = {
            "kind": "end",
            "step": last,
            "tokens": round(state.tokens),
            "seconds": clock.training,
            "tokens_per_second": (state.tokens - self._first_tokens) / max(1e-9, clock.training_here),
            "step_seconds": clock.step_seconds,
            "peak_memory_bytes": memory,
            "over_prediction": self.expected.over_prediction(memory, clock.step_seconds),
            "goodput": clock.parts(),
            **objective.end_facts(self.measures),
        }
        state.emit(event)
        return event

    def _interrupted(self) -> dict[str, Any]:
        self._save(wait=True)
        state = self.state
        resume = f"{self.objective.command} --resume {state.run_dir}"
        event = {
            "kind": "event",
            "step": state.step,
            "event": "interrupted",
            "detail": f"stopped at step {state.step} of {state.total}; resume with: {resume}",
            "signal": state.stop.name,
        }
        state.emit(event)
        return event
