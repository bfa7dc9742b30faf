"""The loop that every stage of tuning runs in: pretraining's parts around a stage's own objective.

    objective.batch(data step) -> objective.loss -> backward -> guard -> optimizer -> metrics, checkpoint

A stage brings an `Objective`: what a batch is and which scalar of it is minimised. The rest is as in pretraining and
made of the same parts: skipped steps and roll-backs, checkpoints that resume, Ctrl-C that saves, lines in metrics.jsonl
that `puna report` draws, several processes under torchrun. Two things are new. A stage may measure itself held-out and
the best of its weights are kept; and an objective that sees its run go wrong can raise `RollBack` to go back to them.
"""

import contextlib
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from puna.core import files
from puna.core.errors import PunaError
from puna.core.recipe import dump
from puna.model.store import load_config, load_lineage
from puna.text.tokenizer import Tokenizer
from puna.train import parallel
from puna.train.checkpoint import Checkpointer
from puna.train.guard import Guard, decide
from puna.train.machine import Machine, measure
from puna.train.memory import check_fits
from puna.train.metrics import MetricsLog
from puna.train.optimizer import Optimizer
from puna.train.recipe import resolve_layout
from puna.train.schedule import lr_factor
from puna.train.speed import expected_step
from puna.train.steplog import Clock, forget_peak_memory, peak_memory, quiet_gc
from puna.train.stopping import StopRequest
from puna.tune.lora import LoRA
from puna.tune.memory import advice_on_memory, predict_stage_memory
from puna.tune.network import CausalLM, Kind, trainable
from puna.tune.objective import SCORE, Metrics, Objective, RollBack, Share
from puna.tune.recipe import StageRecipe
from puna.tune.stage_log import StageLog

T = TypeVar("T")

__all__ = ["SCORE", "Metrics", "Objective", "RollBack", "Share", "Stage", "run_stage"]


def run_stage(
    recipe: StageRecipe,
    run_dir: Path,
    make_objective: Callable[["Stage"], Objective],
    *,
    resume: bool = False,
    observers: Sequence[Callable[[dict[str, Any]], None]] = (),
    kind: Kind | None = None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Run a stage to its end, or until it is interrupted; returns the last event ("end" or "interrupted").

    make_objective: called once with the stage, whose network then has its first weights. kind: the kind of network.
    The rest as in `train.trainer.train`. The end is the model directory run_dir/model.
    Raises PunaError for anything in recipe, model, checkpoint or machine that does not fit, before the first step.
    """
    with parallel.join_world() as world, contextlib.ExitStack() as stack:
        if world.first:
            stack.enter_context(files.lock_directory(run_dir))
        stage = Stage(recipe, run_dir, world, machine=machine, observers=observers, kind=kind)
        return stage.run(make_objective, resume=resume)


class Stage:
    """One stage on one process: network, tokenizer, optimizer, guard, position and clock."""

    def __init__(
        self,
        recipe: StageRecipe,
        run_dir: Path,
        world: parallel.World,
        *,
        machine: Machine | None = None,
        observers: Sequence[Callable[[dict[str, Any]], None]] = (),
        kind: Kind | None = None,
    ) -> None:
        self.run_dir, self.world, self.observers = run_dir, world, observers
        self.kind: Kind = kind or CausalLM()
        if recipe.lora.rank:
            self.kind = LoRA(self.kind, recipe.lora)
        if not recipe.model:
            raise PunaError("The recipe names no model to start from.", 'Set model = "models/...".')
        self.parent = Path(recipe.model)
        self.config = load_config(self.parent)
        self.tokenizer = Tokenizer.load(self.parent)
        if recipe.train.seq_len > self.config.max_position_embeddings:
            raise PunaError(
                f"train.seq_len = {recipe.train.seq_len} is longer than the context of {self.parent}, "
                f"{self.config.max_position_embeddings} tokens.",
                "Lower it, or extend the model's context first (stage 'extend').",
            )
        device = world.device
        layout = resolve_layout(recipe.layout, recipe.train, world.size, on_cpu=device.type == "cpu")
        precision = parallel.resolve_precision(recipe.train, device)
        compiled = parallel.resolve_compile(recipe.train, device)
        settled = recipe.train.model_copy(update={"precision": precision, "compile": "on" if compiled else "off"})
        # What the run directory keeps: with the layout as asked for, so that another number of processes may resume.
        self.kept_recipe = recipe.model_copy(update={"train": settled})
        self.recipe = recipe = recipe.model_copy(update={"train": settled, "layout": layout})
        self.machine = machine or measure(device.type)
        forget_peak_memory(device)  # of stages before, and of measuring
        training = recipe.as_training(self.config)
        self.memory = predict_stage_memory(
            recipe, self.config, device_type=device.type, world_size=world.size, held=peak_memory(device)
        )
        check_fits(training, self.memory, self.machine, advice_on_memory(recipe))
        known = recipe.knows_its_rows  # else nobody can say what a step takes
        self.expected = expected_step(training, self.machine, world.size) if known else None
        rows, count = layout.micro_batch, layout.micro_batches(recipe.train.batch)
        self.share = Share(world.rank * rows * count, rows, count)
        self.sharded = layout.dp_shard > 1
        self.clock = Clock()
        mesh = parallel.data_mesh(layout, world)
        with self.clock.part("setup"):
            self._build(layout, mesh, precision, compiled)
        parameters = trainable(self.model)
        shared = mesh if world.size > 1 else None
        self.optimizer = Optimizer(parameters.items(), recipe.optimizer, shared, bf16=precision != "fp32")
        self.guard = Guard(recipe.guard, device)
        self.checkpoints = Checkpointer(run_dir, recipe.checkpoint, self._fingerprint())
        self.step, self.data_step, self.rollbacks, self.tokens = 0, 0, 0, 0.0
        self.total = recipe.train.steps
        self.skipped: list[int] = []
        self.lr_scale = 1.0
        """Factor on all learning rates, lowered by roll-backs."""
        self.best: dict[str, float] | None = None
        """{"step": ..., "score": ...} of the best held-out evaluation so far."""
        self.finished = ""
        """Why the stage ends before its last step; an objective sets it."""
        self._peak = 0
        self.stop = StopRequest(first=world.first)

    def _build(self, layout: Any, mesh: Any, precision: str, compiled: bool) -> None:
        recipe, device = self.recipe, self.world.device
        with torch.device("meta"):
            self.model = self.kind.make(self.config)
        if precision == "bf16":
            self.model = self.model.to(torch.bfloat16)
        parallel.apply_to_blocks(self.model, recompute=recipe.train.recompute, compiled=compiled)
        if self.sharded:
            parallel.shard(self.model, layout, mesh, precision)
        self.model.to_empty(device=device)
        with torch.no_grad():
            self.kind.fill(self.model, self.parent, recipe.train.seed)
        self.network = self.model if self.sharded else parallel.replicate(self.model, mesh)

    # -- for objectives ----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.world.device

    def emit(self, event: dict[str, Any]) -> None:
        """Write an event to metrics.jsonl and to whoever listens (first process only)."""
        if self.world.first:
            self.metrics.write(event)

    def note(self, name: str, detail: str) -> None:
        """Write down something that happened at this step."""
        self.emit({"kind": "event", "step": self.step, "event": name, "detail": detail})

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of forward passes; the loop calls `loss` in it."""
        return parallel.autocast(self.recipe.train.precision, self.device, sharded=self.sharded)

    def uncompiled(self) -> contextlib.AbstractContextManager[Any]:
        """Around generation: its shapes change with every token, and each would compile the blocks anew."""
        if self.recipe.train.compile == "on":
            return torch.compiler.set_stance("force_eager")
        return contextlib.nullcontext()

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first process, on every process."""
        if self.world.size == 1:
            return make()
        box: list[Any] = [make() if self.world.first else None]
        dist.broadcast_object_list(box, src=0, device=self.device)
        value: T = box[0]
        return value

    def lr_factor(self) -> float:
        """Factor of the learning rates for the coming step."""
        return self.lr_scale * lr_factor(self.recipe.schedule, self.step / max(1, self.total))

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self, make_objective: Callable[["Stage"], Objective], *, resume: bool) -> dict[str, Any]:
        """Run from the start, or from the newest good checkpoint, to the last step."""
        recipe = self.recipe
        self.objective = make_objective(self)
        self.total = recipe.train.steps or int(getattr(self.objective, "steps", 0))
        if not self.total:
            raise PunaError("train.steps is 0.", "Say how many steps the stage has.")
        resumed_from = self._restore() if resume else None
        if self.world.first:
            files.write_text(self.run_dir / "recipe.toml", dump(self.kept_recipe))
            at = self.step if resume else None
            self.metrics = MetricsLog(self.run_dir, recipe.log, resume_step=at, observers=self.observers)
        self.emit(self._start_event(resumed_from))
        for sentence in getattr(self.objective, "notes", ()):
            self.note("data", sentence)
        self.clock.start(self.step)
        log = StageLog(self)
        with self.stop.listening(), quiet_gc():
            if not self.step:
                self._evaluate()
            while self.step < self.total and not self.finished and not self.stop.agreed():
                try:
                    with self.clock.part("data"):
                        batch = self.objective.batch(self.data_step)
                    if self.finished:
                        break
                    if batch:
                        log.add(*self.train_step(batch))
                except RollBack as request:
                    log.flush()
                    self._roll_back(request)
                    log.clear()
                    continue
                self.step += 1
                self.data_step += 1
                every = recipe.checkpoint.every
                saving = bool(every) and self.step % every == 0 and self.step < self.total
                # Lines end where checkpoints do, so a resumed run writes the same ones.
                due = self.step % recipe.log.every == 0 or self.step == self.total
                measuring = bool(recipe.log.eval_every) and self.step % recipe.log.eval_every == 0
                if (saving or due or measuring) and log.flush():
                    self._skipped_too_often()
                    log.clear()
                    continue
                if measuring and self.step < self.total:
                    saving = not self._evaluate() and saving
                if saving:
                    self._save(wait=not recipe.checkpoint.asynchronous)
            log.flush()
        event = self._finish() if self.step >= self.total or self.finished else self._interrupted()
        if self.world.first:
            self.metrics.close()
        return event

    def train_step(self, batch: Sequence[Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One optimizer step on this process' micro-batches. Returns (loss, gradient norm, measures), on the device."""
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        gathered: dict[str, Tensor] = {}
        # DDP divides by the number of ranks what is already a share of the whole.
        factor = self.world.size if isinstance(self.network, DistributedDataParallel) else 1
        for index, part in enumerate(batch):
            with parallel.accumulating(self.network, last=index == len(batch) - 1):
                with self.autocast():
                    loss, measures = self.objective.loss(self.network, part)
                (loss * factor).backward()
            total += loss.detach()
            for name, value in measures.items():
                value = torch.as_tensor(value, dtype=torch.float32, device=self.device).detach()
                before = gathered.get(name)
                merged = torch.maximum if name.endswith("_max") else torch.add
                gathered[name] = value if before is None else merged(before, value)
        total, gathered = self._over_ranks(total, gathered)
        norm = self.optimizer.clip(self.recipe.train.grad_clip)
        self.optimizer.step(self.lr_factor(), self.guard.check(total, norm))
        return total, norm, gathered

    def _over_ranks(self, total: Tensor, measures: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.world.size == 1:
            return total, measures
        sums = {name: value for name, value in measures.items() if not name.endswith("_max")}
        summed = parallel.sum_over_ranks(torch.stack((total, *sums.values())))
        reduced = dict(zip(sums, summed[1:], strict=True))
        for name in sorted(measures.keys() - sums.keys()):
            dist.all_reduce(measures[name], op=dist.ReduceOp.MAX)
            reduced[name] = measures[name]
        return summed[0], reduced

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _evaluate(self) -> bool:
        """Measure held-out, where the objective can; keep the weights when they are the best. Whether they were."""
        evaluate = getattr(self.objective, "evaluate", None)
        if evaluate is None:
            return False
        self._peak = self.peak_memory()
        with self.clock.part("eval"):
            measures: dict[str, float] = evaluate(self.step)
        forget_peak_memory(self.device)  # what evaluation took does not count as the stage's
        if not measures:
            return False
        self.emit({"kind": "eval", "step": self.step, "metrics": measures, "elapsed": self.clock.training})
        score = measures.get(SCORE)
        if score is None or (self.best is not None and score <= self.best[SCORE]):
            return False
        self.best = {"step": self.step, SCORE: score}
        self.checkpoints.protected = {self.step}
        self._save(wait=False)
        return True

    def peak_memory(self) -> int:
        """Largest memory of the stage so far, bytes: what evaluations took beside it is not counted."""
        return max(self._peak, peak_memory(self.device))

    # -- state -------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        moved = trainable(self.model)
        return {
            "model": {name: tensor for name, tensor in self.model.state_dict().items() if name in moved},
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
        }

    def _save(self, *, wait: bool) -> None:
        with self.clock.part("checkpoint"):
            meta = {
                "step": self.step,
                "data_step": self.data_step,
                "rollbacks": self.rollbacks,
                "tokens": self.tokens,
                "skipped": self.skipped,
                "lr_scale": self.lr_scale,
                "best": self.best,
                "finished": self.finished,
                "training_seconds": self.clock.training,
                "objective": self.objective.state(),
            }
            self.checkpoints.save(self.step, self._state(), meta, wait=wait)
        self.note("checkpoint", f"saved step {self.step}")

    def _restore(self, before: int | None = None) -> int | None:
        """Load the newest good checkpoint (of a step below `before`). Weights and position alone when rolling back."""
        state = self._state()
        meta = self.checkpoints.load(state, before=before)
        if meta is None:
            return None
        self.model.load_state_dict(state["model"], strict=False)
        self.guard.load_state_dict(state["guard"])
        self.step = meta["step"]
        if before is None:
            self.data_step, self.rollbacks, self.tokens = meta["data_step"], meta["rollbacks"], meta["tokens"]
            self.skipped, self.lr_scale, self.best = meta["skipped"], meta["lr_scale"], meta["best"]
            self.finished = meta["finished"]
            self.clock.training_before = meta["training_seconds"]
            self.checkpoints.protected = {int(self.best["step"])} if self.best else set()
            self.objective.restore(meta["objective"])
        return self.step

    def _roll_back(self, request: RollBack) -> None:
        """Go back as an objective asked; when that was done too often, end with the best weights."""
        bad_step = self.step
        to = request.to if isinstance(request.to, int) else int(self.best["step"]) if self.best else self.step
        if self._restore(before=to + 1) is None:
            raise PunaError(f"{request.reason.rstrip('.')}, and there is no checkpoint to go back to.")
        self.rollbacks += 1
        self.data_step += 1
        self.lr_scale *= request.lr_scale
        event = {"kind": "event", "step": self.step, "event": "rollback", "from_step": bad_step}
        self.emit({**event, "detail": f"{request.reason} Back at step {self.step}."})
        if self.rollbacks > self.recipe.guard.max_rollbacks:
            self.finished = f"{self.rollbacks} roll-backs did not help: {request.reason}"

    def _skipped_too_often(self) -> None:
        """The guard left out too many steps: go back to before them, or stop."""
        decision = decide(self.recipe.guard, self.skipped, step=self.step, rollbacks=self.rollbacks)
        if decision.action == "stop":
            self.note("stopped", decision.reason)
            raise PunaError(decision.reason)
        first, self.skipped = min(self.skipped), []
        self._roll_back(RollBack(decision.reason, to=first))

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same when a checkpoint is resumed."""
        recipe = self.recipe
        return {
            "stage": recipe.stage,
            "model": self.config.model_dump(mode="json", exclude={"preset"}),
            "parent": str(recipe.model),
            "lora": recipe.lora.model_dump(mode="json"),
            "train.batch": recipe.train.batch,
            "train.seq_len": recipe.train.seq_len,
            "train.seed": recipe.train.seed,
            "optimizer.kind": recipe.optimizer.kind,
        }

    # -- events ------------------------------------------------------------------------------------------------------

    def _start_event(self, resumed_from: int | None) -> dict[str, Any]:
        train, step, left = self.recipe.train, self.expected, self.total - self.step
        training = self.recipe.as_training(self.config)
        self.tokens_per_step = training.tokens_per_step
        return {
            "kind": "start",
            "stage": self.recipe.stage,
            "step": self.step,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": self.machine.name,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "world_size": self.world.size,
            "precision": train.precision,
            "compiled": train.compile == "on",
            "parameters": self.config.num_parameters(),
            "trained_parameters": sum(parameter.numel() for parameter in trainable(self.model).values()),
            "tokens_per_step": self.tokens_per_step if self.recipe.knows_its_rows else None,
            "shown": list(getattr(self.objective, "SHOWN", ())),
            "total_steps": self.total,
            "predicted": {
                "memory_bytes": self.memory.total,
                "step_seconds": {"low": step.low, "value": step.step_seconds, "high": step.high} if step else None,
                "tokens_per_second": step.tokens_per_second if step else None,
                "seconds": left * step.step_seconds if step else None,
            },
            "resumed_from": resumed_from,
        }

    def _finish(self) -> dict[str, Any]:
        memory = self.peak_memory()
        if self.finished:
            self.note("finished", self.finished)
        if self._evaluate():
            self.checkpoints.wait()
        else:
            self._save(wait=True)
        last = self.step
        best = self.best if self.recipe.train.final == "best" else None
        if best and best["step"] != self.step:
            self._restore(before=int(best["step"]) + 1)
            self.note("best", f"the weights of step {self.step} are kept")
        self.save_model(self.run_dir / "model")
        usual, expected = self.clock.step_seconds, self.expected
        slower = usual / expected.step_seconds - 1 if expected and usual else None
        event = {
            "kind": "end",
            "stage": self.recipe.stage,
            "step": last,
            "final_step": self.step,
            "tokens": round(self.tokens),
            "seconds": self.clock.training,
            "tokens_per_second": self.tokens / max(1e-9, self.clock.training),
            "step_seconds": usual,
            "peak_memory_bytes": memory,
            "best": self.best,
            "finished": self.finished,
            "over_prediction": {"memory": memory / self.memory.total - 1, "step_seconds": slower},
            "goodput": self.clock.parts(),
        }
        self.emit(event)
        return event

    def save_model(self, directory: Path) -> None:
        """Write the weights of now as a model directory (every process takes part; the first one writes)."""
        state = parallel.full_state(self.model)
        if self.world.first:
            lineage = {
                "stage": self.recipe.stage,
                "recipe": self.recipe.model_dump(mode="json"),
                "parent": {"path": str(self.parent), **_known(load_lineage(self.parent))},
                "step": self.step,
                "tokens": round(self.tokens),
            }
            dtype = torch.bfloat16 if self.recipe.train.precision == "bf16" else torch.float32
            self.kind.save(directory, self.config, state, self.tokenizer, dtype=dtype, lineage=lineage)
        if dist.is_initialized():
            dist.barrier()

    def _interrupted(self) -> dict[str, Any]:
        self._save(wait=True)
        stage = self.recipe.stage
        detail = f"stopped at step {self.step} of {self.total}; resume with: puna tune {stage} --resume {self.run_dir}"
        event = {"kind": "event", "step": self.step, "event": "interrupted", "detail": detail}
        event["signal"] = self.stop.name
        self.emit(event)
        return event


def _known(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """What of a parent's lineage is worth repeating."""
    return {key: lineage[key] for key in ("stage", "step", "tokens", "corpus") if lineage.get(key) is not None}
