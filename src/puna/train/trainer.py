"""The training loop: from a recipe to a model directory, stoppable anywhere.

    batch(corpus, seed, step) -> forward -> chunked loss -> backward -> guard -> optimizer -> metrics, checkpoint

The whole state is weights, optimizer, the guard's window and two integers: the step, and the data step, which runs
ahead of it only when a roll-back went around bad data. Nothing in a step asks the device for a number; losses and norms
are read once per log interval. Before the first step the run says what it expects, at the end what it was.
"""

import contextlib
import dataclasses
import platform
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from puna.core import files
from puna.core.errors import PunaError
from puna.core.recipe import dump
from puna.core.units import format_seconds
from puna.model.llama import DocumentMask
from puna.model.store import save_model
from puna.train import parallel
from puna.train.checkpoint import Checkpointer
from puna.train.evaluate import bits_per_byte
from puna.train.feed import Rows, feed
from puna.train.fp8 import use_fp8
from puna.train.guard import Guard, decide
from puna.train.loss import IGNORE, cross_entropy_chunked
from puna.train.machine import Machine, measure
from puna.train.memory import check_fits, predict_memory
from puna.train.metrics import MetricsLog
from puna.train.optimizer import Optimizer
from puna.train.pace import Horizon, replan
from puna.train.recipe import Recipe
from puna.train.schedule import lr_factor
from puna.train.setup import build_model, fill_weights, open_corpus
from puna.train.speed import expected_step
from puna.train.steplog import Clock, StepLog, forget_peak_memory, peak_memory, quiet_gc
from puna.train.stopping import StopRequest

Hook = Callable[["Trainer"], None]


def train(
    recipe: Recipe,
    run_dir: Path,
    *,
    resume: bool = False,
    observers: Sequence[Callable[[dict[str, Any]], None]] = (),
    hooks: Mapping[float, Hook] | None = None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Run a recipe to its end, or until it is interrupted; returns the last event ("end" or "interrupted").

    run_dir: holds the resolved recipe, metrics, checkpoints and, at the end, the model directory `model/`.
    observers: called with every event that is also written to metrics.jsonl. hooks: functions called with the trainer
    before the step of that number (an int), or when that share of the run is done (a float; 1.0: after the last step);
    their time does not count as training. machine: measurements of this device, made here when not given.
    Raises PunaError for anything in recipe, corpus, checkpoint or machine that does not fit, before the first step.
    """
    with parallel.join_world() as world, contextlib.ExitStack() as stack:
        if world.first:
            stack.enter_context(files.lock_directory(run_dir))
        trainer = Trainer(recipe, run_dir, world, machine=machine, observers=observers)
        return trainer.run(resume=resume, hooks=hooks or {})


def step_seconds(recipe: Recipe, folder: Path, *, machine: Machine, seconds: float = 10.0) -> float:
    """How long one step of `recipe` takes here: the median after the first, over about `seconds`, nothing kept.

    The first step compiles; the run that follows in this process finds that work done. folder: for scratch files.
    """
    trial = recipe.model_copy(update={"train": recipe.train.model_copy(update={"init": "normal"})})
    with parallel.join_world() as world:
        trainer = Trainer(trial, folder, world, machine=machine)
        batches = trainer.batches()
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < 4 or (time.perf_counter() - begin < seconds and len(times) < 50):
            start = time.perf_counter()
            trainer.train_step(next(batches))[0].item()
            times.append(time.perf_counter() - start)
            if len(times) == 1:
                begin = time.perf_counter()
        batches.close()
    return sorted(times[1:])[len(times[1:]) // 2]


class Trainer:
    """One run on one process: network, optimizer, guard, data position and the clock."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        world: parallel.World,
        *,
        machine: Machine | None = None,
        observers: Sequence[Callable[[dict[str, Any]], None]] = (),
    ) -> None:
        self.run_dir, self.world, self.observers = run_dir, world, observers
        device = world.device
        forget_peak_memory(device)
        layout = recipe.resolve_layout(world.size, on_cpu=device.type == "cpu")
        precision = parallel.resolve_precision(recipe.train, device)
        compiled = parallel.resolve_compile(recipe.train, device)
        settled = recipe.train.model_copy(update={"precision": precision, "compile": "on" if compiled else "off"})
        # What the run directory keeps: with the layout as asked for, so that another number of processes may resume.
        self.kept_recipe = recipe.model_copy(update={"train": settled})
        self.recipe = recipe = recipe.model_copy(update={"train": settled, "layout": layout})
        self.corpus = open_corpus(recipe)
        self.bytes_per_token = self.corpus.num_bytes() / max(1, self.corpus.num_tokens())
        self.machine = machine or measure(device.type)
        self.memory = predict_memory(recipe, device_type=device.type, world_size=world.size)
        check_fits(recipe, self.memory, self.machine)

        self.micro_rows, self.micro_batches = layout.micro_batch, layout.micro_batches(recipe.train.batch)
        self.first_row = world.rank * self.micro_rows * self.micro_batches
        self.expected = expected_step(recipe, self.machine, world.size)
        mesh = parallel.data_mesh(layout, world)
        self.sharded = layout.dp_shard > 1
        self.clock = Clock()
        self.model = build_model(recipe)
        if recipe.train.fp8:
            use_fp8(self.model, device)
        parallel.apply_to_blocks(self.model, recompute=recipe.train.recompute, compiled=compiled)
        if self.sharded:
            parallel.shard(self.model, layout, mesh, precision)
        with self.clock.part("setup"):
            fill_weights(self.model, recipe, self.corpus, device)
        self.network = self.model if self.sharded else parallel.replicate(self.model, mesh)
        shared = mesh if world.size > 1 else None
        self.optimizer = Optimizer(self.model.named_parameters(), recipe.optimizer, shared, bf16=precision != "fp32")
        self.guard = Guard(recipe.guard, device)
        self.checkpoints = Checkpointer(run_dir, recipe.checkpoint, self._fingerprint())
        self.step, self.data_step, self.rollbacks = 0, 0, 0
        self.horizon = Horizon(recipe.total_steps)
        self.skipped: list[int] = []  # steps within the guard's window, since the last roll-back
        self._peak = 0
        self.stop = StopRequest(first=world.first)

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self, *, resume: bool, hooks: Mapping[float, Hook]) -> dict[str, Any]:
        """Train from the newest good checkpoint (when resuming) to the last step."""
        recipe = self.recipe
        resumed_from = self._restore() if resume else None
        if self.world.first:
            files.write_text(self.run_dir / "recipe.toml", dump(self.kept_recipe))
        if self.world.first:
            at = self.step if resume else None
            self.metrics = MetricsLog(self.run_dir, recipe.log, resume_step=at, observers=self.observers)
        self.emit(self._start_event(resumed_from))
        self.clock.start(self.step)
        log = StepLog(self)
        with self.stop.listening(), quiet_gc(), _profiler(recipe.log.profile, self.run_dir) as profile:
            batches = self.batches()
            try:
                while self.step < self.horizon.total and not self.stop.agreed():
                    for hook in self._due(hooks):
                        with self.clock.part("eval"), self.apart():
                            hook(self)
                    with self.clock.part("data"):
                        batch = next(batches)
                    log.add(*self.train_step(batch))
                    self.step += 1
                    self.data_step += 1
                    profile()
                    total = self.horizon.total
                    saving = self._checkpoint_due(total)
                    # Lines end where checkpoints do, so a resumed run writes the same ones.
                    if (saving or self.step % recipe.log.every == 0 or self.step == total) and log.flush():
                        batches.close()
                        self._roll_back(log)
                        batches = self.batches()
                        continue
                    if self.step % recipe.log.every == 0:
                        self._keep_pace()
                    self._periodic(total)
                    if saving:
                        self._save_checkpoint(wait=not recipe.checkpoint.asynchronous)
            finally:
                batches.close()
        log.flush()
        event = self._finish(hooks) if self.step >= self.horizon.total else self._interrupted()
        if self.world.first:
            self.metrics.close()
        return event

    def train_step(self, batch: Rows) -> tuple[Tensor, Tensor]:
        """One optimizer step on this rank's rows. Returns (loss in nats per token, gradient norm), on the device."""
        config = self.recipe.train
        self.optimizer.zero_grad()
        valid = parallel.sum_over_ranks((batch.targets != IGNORE).sum().float())
        scale = 1.0 / valid.clamp_min(1.0)
        total = torch.zeros((), device=self.world.device)
        # DDP divides by the number of ranks what is already a share of the whole.
        factor = self.world.size if isinstance(self.network, DistributedDataParallel) else 1
        for index in range(self.micro_batches):
            rows = slice(index * self.micro_rows, (index + 1) * self.micro_rows)
            ids, documents = batch.ids[rows], None if batch.documents is None else batch.documents[rows]
            head = partial(
                cross_entropy_chunked,
                targets=batch.targets[rows],
                scale=scale,
                chunk=config.loss_chunk,
                z_loss=config.z_loss,
            )
            with parallel.accumulating(self.network, last=index == self.micro_batches - 1):
                with parallel.autocast(config.precision, self.world.device, sharded=self.sharded):
                    # Flash attention's variable-length form takes bf16 alone.
                    dense = True if config.precision == "fp32" else None
                    mask = documents if documents is None else DocumentMask.build(documents, ids.device, dense=dense)
                    objective, loss = self.network(ids, mask=mask, head=head)
                (objective * factor).backward()
            total += loss.detach()
        total = parallel.sum_over_ranks(total)
        norm = self.optimizer.clip(config.grad_clip)
        self.optimizer.step(self.lr_factor(), self.guard.check(total, norm))
        return total, norm

    def lr_factor(self) -> float:
        """Factor of the learning rates for the coming step."""
        return lr_factor(self.recipe.schedule, self.horizon.progress(self.step))

    def evaluate(self, max_bytes: int | None = None) -> dict[str, Any]:
        """Bits per byte on held-out documents."""
        config = self.recipe.train
        with parallel.autocast(config.precision, self.world.device, sharded=self.sharded):
            return bits_per_byte(self.model, self.corpus, window=config.seq_len, max_bytes=max_bytes)

    def peak_memory(self) -> int:
        """Largest memory of training so far, bytes: what hooks and evaluations took beside it is not counted."""
        return max(self._peak, peak_memory(self.world.device))

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Around work that is not training: its memory does not count as training's."""
        self._peak = self.peak_memory()
        try:
            yield
        finally:
            forget_peak_memory(self.world.device)

    def uncompiled(self) -> contextlib.AbstractContextManager[Any]:
        """Around generation: its shapes change with every token, and each would compile the blocks anew."""
        if self.recipe.train.compile == "on":
            return torch.compiler.set_stance("force_eager")
        return contextlib.nullcontext()

    def save_model(self, directory: Path) -> None:
        """Write the weights of now as a model directory (every rank takes part; the first one writes)."""
        state = parallel.full_state(self.model)
        if self.world.first:
            lineage = {
                "stage": "base",
                "recipe": self.recipe.model_dump(mode="json"),
                "corpus": {"path": self.recipe.corpus, "content_hash": self.corpus.content_hash},
                "parent": self.recipe.start_from or None,
                "step": self.step,
                "tokens": self.step * self.recipe.tokens_per_step,
            }
            dtype = torch.bfloat16 if self.recipe.train.precision == "bf16" else torch.float32
            save_model(directory, self.recipe.model, state, self.corpus.tokenizer, dtype=dtype, lineage=lineage)
        if dist.is_initialized():
            dist.barrier()

    def emit(self, event: dict[str, Any]) -> None:
        """Write an event to metrics.jsonl and to whoever listens (first process only)."""
        if self.world.first:
            self.metrics.write(event)

    # -- parts of the loop -------------------------------------------------------------------------------------------

    def _due(self, hooks: Mapping[float, Hook]) -> list[Hook]:
        """Hooks to call before the coming step, or after the last one."""
        now = self.horizon.progress(self.step)
        before = self.horizon.progress(self.step - 1) if self.step else -1.0
        return [
            hook for at, hook in hooks.items() if (before < at <= now if isinstance(at, float) else at == self.step)
        ]

    def _keep_pace(self) -> None:
        """Change the number of steps when the run would end much later or sooner than promised."""
        promised, step_seconds = self.recipe.schedule.seconds, self.clock.recent_step_seconds
        if not promised or step_seconds is None:
            return
        before = self.horizon.total
        holds = self.horizon.progress(self.step) < 1 - self.recipe.schedule.decay
        horizon = replan(
            self.horizon,
            self.step,
            elapsed=self.clock.training,
            promised=promised,
            step_seconds=step_seconds,
            may_extend=self.recipe.schedule.kind == "wsd" and holds,
        )
        total = parallel.from_first_rank(horizon.total, self.world)
        if total == before:
            return
        self.horizon = self.horizon.moved(self.step, total)
        detail = (
            f"a step takes {step_seconds:.2g} s now: {before:,} steps become {total:,}, to end after the promised "
            f"{format_seconds(promised)}"
        )
        self.emit({"kind": "event", "step": self.step, "event": "pace", "total_steps": total, "detail": detail})

    def batches(self) -> Generator[Rows, None, None]:
        """This process' rows from the current data step on."""
        stop = self.first_row + self.micro_rows * self.micro_batches
        config, device = self.recipe.train, self.world.device
        return feed(self.corpus, config, data_step=self.data_step, start=self.first_row, stop=stop, device=device)

    def _periodic(self, total: int) -> None:
        log = self.recipe.log
        if log.eval_every and self.step % log.eval_every == 0 and self.step < total:
            self._emit_evaluation(log.eval_bytes)
        if log.sample_every and self.step % log.sample_every == 0:
            self._emit_sample()

    def _checkpoint_due(self, total: int) -> bool:
        every = self.recipe.checkpoint.every
        return bool(every) and self.step % every == 0 and self.step < total

    def _emit_evaluation(self, max_bytes: int | None) -> dict[str, Any]:
        with self.clock.part("eval"), self.apart():
            result = self.evaluate(max_bytes)
        event = {"kind": "eval", "step": self.step, "tokens": self.step * self.recipe.tokens_per_step, **result}
        self.emit({**event, "elapsed": self.clock.training})
        return result

    def _emit_sample(self) -> None:
        if self.sharded:
            return  # one process alone cannot run a sharded network
        from puna.engine.generate import Engine, SamplingParams
        from puna.engine.request import EngineError

        with self.clock.part("eval"), self.apart():
            tokenizer, prompt = self.corpus.tokenizer, self.recipe.log.sample_prompt
            params = SamplingParams(max_tokens=48, temperature=0.7, seed=self.recipe.train.seed)
            if self.world.first:
                ids = tokenizer.encode(prompt, bos=True)
                # A cache for this one text: on an accelerator training wants the rest of the memory.
                room = len(ids) + params.max_tokens
                # Capturing its steps would take longer than writing one text.
                engine = Engine(self.model, tokenizer, max_batch=1, kv_tokens=room, decode_buckets=False)
                with self.uncompiled():
                    try:
                        text = engine.generate([ids], params)[0].text
                    except EngineError as error:  # no reason for a run to end
                        text = f"({error})"
                self.emit({"kind": "sample", "step": self.step, "prompt": prompt, "text": text})

    # -- state -------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
        }

    def _save_checkpoint(self, *, wait: bool) -> None:
        with self.clock.part("checkpoint"):
            seconds = {"training_seconds": self.clock.training}
            meta = {"step": self.step, "data_step": self.data_step, "rollbacks": self.rollbacks, **seconds}
            meta |= {"planned_steps": self.recipe.total_steps, "horizon": dataclasses.astuple(self.horizon)}
            self.checkpoints.save(self.step, self._state(), {**meta, "skipped": self.skipped}, wait=wait)
        self.emit({"kind": "event", "step": self.step, "event": "checkpoint", "detail": f"saved step {self.step}"})

    def _restore(self, before: int | None = None) -> int | None:
        state = self._state()
        meta = self.checkpoints.load(state, before=before)
        if meta is None:
            return None
        self.model.load_state_dict(state["model"])
        self.guard.load_state_dict(state["guard"])
        self.step, self.data_step = meta["step"], meta["data_step"]
        if before is None:
            self.rollbacks, self.skipped = meta["rollbacks"], meta["skipped"]
            if meta.get("planned_steps") == self.recipe.total_steps:  # else somebody asked for another number
                self.horizon = Horizon(*meta["horizon"])
            self.clock.training_before = meta["training_seconds"]
        return self.step

    def _roll_back(self, log: StepLog) -> None:
        """Return to the last good checkpoint and go on with the data behind what went wrong. May stop the run."""
        decision = decide(self.recipe.guard, self.skipped, step=self.step, rollbacks=self.rollbacks)
        if decision.action == "stop":
            self.emit({"kind": "event", "step": self.step, "event": "stopped", "detail": decision.reason})
            raise PunaError(decision.reason)
        bad_step, behind = self.step, self.data_step
        self.rollbacks += 1
        if self._restore(before=min(self.skipped) + 1) is None:
            raise PunaError(
                f"{decision.reason.rstrip('.')}, but there is no checkpoint from before them.",
                "Lower the learning rate, look at the documents named in metrics.jsonl, or set checkpoint.every.",
            )
        self.data_step, self.skipped = behind, []
        event = {"kind": "event", "step": self.step, "event": "rollback", "from_step": bad_step}
        self.emit({**event, "detail": f"{decision.reason} Back at step {self.step}."})
        log.clear()

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same when a checkpoint is resumed."""
        recipe = self.recipe
        return {
            "model": recipe.model.model_dump(mode="json", exclude={"preset"}),
            "corpus": self.corpus.content_hash,
            "train.batch": recipe.train.batch,
            "train.seq_len": recipe.train.seq_len,
            "train.seed": recipe.train.seed,
            "train.document_mask": recipe.train.document_mask,
            "optimizer.kind": recipe.optimizer.kind,
        }

    # -- events ------------------------------------------------------------------------------------------------------

    def _start_event(self, resumed_from: int | None) -> dict[str, Any]:
        recipe, model = self.recipe, self.recipe.model
        precision = "fp32" if recipe.train.precision == "fp32" else "bf16"
        self.flops = {kind: model.flops_per_token(recipe.train.seq_len, attention=kind) for kind in ("full", "causal")}
        self.peak = self.machine.matmul_flops.get(precision)
        return {
            "kind": "start",
            "step": self.step,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": self.machine.name,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "world_size": self.world.size,
            "precision": recipe.train.precision,
            "compiled": recipe.train.compile == "on",
            "parameters": model.num_parameters(),
            "tokens_per_step": recipe.tokens_per_step,
            "total_steps": self.horizon.total,
            "flops_per_token": self.flops,
            "peak_flops": self.peak,
            "bytes_per_token": self.bytes_per_token,
            "predicted": self._predicted(),
            "resumed_from": resumed_from,
        }

    def _predicted(self) -> dict[str, Any]:
        step, left = self.expected, self.horizon.total - self.step
        return {
            "memory_bytes": self.memory.total,
            "step_seconds": {"low": step.low, "value": step.step_seconds, "high": step.high} if step else None,
            "step_parts_seconds": {name: part for name, part in step.seconds.items() if part} if step else None,
            "tokens_per_second": step.tokens_per_second if step else None,
            "seconds": left * step.step_seconds if step else None,
        }

    def _finish(self, hooks: Mapping[int, Hook]) -> dict[str, Any]:
        recipe = self.recipe
        memory = self.peak_memory()
        self._save_checkpoint(wait=True)
        result = self._emit_evaluation(None)
        self.save_model(self.run_dir / "model")
        for hook in self._due(hooks):
            hook(self)
        tokens = (self.step - self.clock.first_step) * recipe.tokens_per_step
        usual, expected = self.clock.step_seconds, self.expected
        slower = usual / expected.step_seconds - 1 if expected and usual else None
        event = {
            "kind": "end",
            "step": self.step,
            "tokens": self.step * recipe.tokens_per_step,
            "seconds": self.clock.training,
            "tokens_per_second": tokens / max(1e-9, self.clock.training_here),
            "step_seconds": usual,
            "peak_memory_bytes": memory,
            "bits_per_byte": result["bits_per_byte"],
            "interval": result["interval"],
            "over_prediction": {"memory": memory / self.memory.total - 1, "step_seconds": slower},
            "goodput": self.clock.parts(),
        }
        self.emit(event)
        return event

    def _interrupted(self) -> dict[str, Any]:
        self._save_checkpoint(wait=True)
        detail = f"stopped at step {self.step} of {self.horizon.total}; resume with: puna train --resume {self.run_dir}"
        event = {"kind": "event", "step": self.step, "event": "interrupted", "detail": detail}
        event["signal"] = self.stop.name
        self.emit(event)
        return event


@contextlib.contextmanager
def _profiler(wanted: bool, run_dir: Path) -> Iterator[Callable[[], None]]:
    """Trace steps 10 to 12 into `run_dir`/profile for Perfetto; yields what to call after a step."""
    if not wanted:
        yield lambda: None
        return
    from torch.profiler import profile, schedule, tensorboard_trace_handler

    plan = schedule(wait=8, warmup=2, active=3, repeat=1)
    with profile(schedule=plan, on_trace_ready=tensorboard_trace_handler(str(run_dir / "profile"))) as profiler:
        yield profiler.step
