"""Pretraining: rows from a corpus, next-token loss, bits per byte on held-out documents.

    loader(corpus, seed, data step) -> forward -> chunked loss

The loss of a step is the mean over the valid tokens of its global batch, however they are spread over micro-batches and
processes. When the guard skips a step, the documents in its batch are recorded.
"""

import contextlib
import math
import time
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from puna.core import files
from puna.data.content import code_share
from puna.data.corpus import Corpus
from puna.data.loader import documents_of
from puna.model.config import ModelConfig
from puna.model.llama import DocumentMask, LlamaForCausalLM
from puna.train import parallel
from puna.train.factory import FromCheckpoint, FromScratch, ModelFactory
from puna.train.feed import LocalRows, feed
from puna.train.loop import Hook, Loop
from puna.train.loss import IGNORE, CrossEntropyHead
from puna.train.measure.clock import peak_memory
from puna.train.measure.evaluate import bits_per_byte
from puna.train.measure.machine import Machine
from puna.train.objective import Metrics, Objective
from puna.train.planning.memory import MemoryEstimate, check_fits, predict_memory
from puna.train.recipe import Recipe
from puna.train.run.setup import open_corpus
from puna.train.run_state import Observer, RunState
from puna.train.step_log import finite


def train(
    recipe: Recipe,
    run_dir: Path,
    *,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    hooks: Mapping[float, Hook] | None = None,
    machine: Machine | None = None,
    objective: "type[Pretraining] | None" = None,
) -> dict[str, Any]:
    """Train a recipe to its end or until interrupted.

    Return the last event ("end" or "interrupted").

    run_dir: receives the resolved recipe, metrics, checkpoints and, at the end, the model directory `model/`.
    observers: called with every event that is also written to metrics.jsonl. hooks: see `Loop.run`. machine:
    measurements of this device, taken here if not given. objective: replaces `Pretraining`.
    Raises PunaError for anything in recipe, corpus, checkpoint or machine that does not fit, before the first step.
    """
    with parallel.join_world() as world, contextlib.ExitStack() as stack:
        if world.first:
            stack.enter_context(files.lock_directory(run_dir))
        loop = prepare(recipe, run_dir, world, machine=machine, observers=observers, objective=objective)
        return loop.run(resume=resume, hooks=hooks)


def prepare(
    recipe: Recipe,
    run_dir: Path,
    world: parallel.World,
    *,
    machine: Machine | None = None,
    observers: Sequence[Observer] = (),
    objective: "type[Pretraining] | None" = None,
) -> Loop:
    """Create the loop of a pretraining run, with initial weights in its network; see `train`."""
    corpus = open_corpus(recipe)
    factory: ModelFactory = FromScratch(recipe.model, corpus, recipe.train.init)
    if recipe.start_from:
        factory = FromCheckpoint(Path(recipe.start_from), recipe.model, corpus.tokenizer)
    state = RunState(recipe, run_dir, world, factory, fit=_fit, machine=machine, observers=observers)
    return Loop(state, partial(objective or Pretraining, corpus=corpus))


def step_seconds(recipe: Recipe, folder: Path, *, machine: Machine, seconds: float = 10.0) -> float:
    """Measure one step of `recipe` here: the median after the first, over about `seconds`.

    Nothing is kept. The first step compiles; a run that follows in this process reuses the compiled code. folder: for
    temporary files.
    """
    trial = recipe.model_copy(update={"train": recipe.train.model_copy(update={"init": "normal"})})
    with parallel.join_world() as world:
        loop = prepare(trial, folder, world, machine=machine)
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < 2 or (time.perf_counter() - begin < seconds and len(times) < 50):
            batch = loop.objective.batch(len(times))
            start = time.perf_counter()
            loop.train_step(batch)[0].item()
            times.append(time.perf_counter() - start)
            if len(times) == 1:
                begin = time.perf_counter()
        loop.objective.close()
    return sorted(times[1:])[len(times[1:]) // 2]


def _fit(recipe: Recipe, _: ModelConfig, machine: Machine, world: parallel.World) -> MemoryEstimate:
    held = peak_memory(world.device) if world.device.type == "cpu" else 0
    memory = predict_memory(recipe, device_type=world.device.type, world_size=world.size, held=held)
    check_fits(recipe, memory, machine)
    return memory


class PretrainingBatch(NamedTuple):
    """A micro-batch.

    step_targets: all targets of this process in the step, only on the first micro-batch.
    """

    rows: LocalRows
    step_targets: Tensor | None


class Pretraining(Objective):
    """Next-token prediction on a corpus."""

    fills_its_rows = True
    scored = False  # evaluations during the run use part of the held-out text, the last one all of it
    evaluates_first = False
    run: RunState[Recipe]

    def __init__(self, run: RunState[Recipe], corpus: Corpus) -> None:
        super().__init__(run)
        self.recipe, self.corpus = run.recipe, corpus
        self.steps = run.recipe.total_steps
        self.bytes_per_token = corpus.num_bytes() / max(1, corpus.num_tokens())
        self._feed: Generator[LocalRows, None, None] | None = None
        self._feed_step = 0  # the data step that the feed yields next
        self._scale = torch.ones(())
        self._context: parallel.ContextShare | None = None
        if run.world.context_group is not None:
            self._context = parallel.ContextShare(run.world, run.recipe.train.seq_len)

    # -- learning ----------------------------------------------------------------------------------------------------

    def batch(self, data_step: int) -> list[PretrainingBatch]:
        """This process's rows of a data step. Rows of the following steps are loaded ahead."""
        if self._feed is None or data_step != self._feed_step:
            self.close()
            first, rows, count = self.run.share
            stop = first + rows * count
            self._feed = feed(
                self.corpus, self.recipe.train, data_step=data_step, start=first, stop=stop, device=self.run.device
            )
        self._feed_step = data_step + 1
        return self.parts(next(self._feed))

    def parts(self, rows: LocalRows) -> list[PretrainingBatch]:
        """Split this process's rows of a step into micro-batches."""
        size = self.run.share.rows
        return [
            PretrainingBatch(
                LocalRows(*(None if tensor is None else tensor[first : first + size] for tensor in rows)),  # type: ignore[arg-type]
                rows.targets if first == 0 else None,
            )
            for first in range(0, len(rows.ids), size)
        ]

    def loss(self, network: nn.Module, batch: PretrainingBatch) -> tuple[Tensor, Metrics]:
        """Cross entropy of the rows, with z-loss where asked for, as a share of the whole batch's mean."""
        objective, loss = self.call(batch).of(network)
        return objective, {"loss": loss}

    def call(self, batch: PretrainingBatch) -> parallel.Call:
        """See `Objective`."""
        config, (ids, targets, documents) = self.recipe.train, batch.rows
        context, step_targets = self._context, batch.step_targets
        if context is not None:
            ids, targets = context.cut(ids), context.cut(targets)
            step_targets = None if step_targets is None else context.cut(step_targets)
        if step_targets is not None:
            valid = parallel.sum_over_ranks((step_targets != IGNORE).sum().float(), self.run.world)
            self._scale = 1.0 / valid.clamp_min(1.0)
        head = CrossEntropyHead(targets, self._scale, config.loss_chunk, config.z_loss)
        if context is not None:
            return parallel.Call(ids, head, positions=context.positions, cache=context.keys(documents))
        # Flash attention's variable-length form takes bf16 alone.
        dense = True if config.precision == "fp32" else None
        mask = documents if documents is None else DocumentMask.build(documents, ids.device, dense=dense)
        return parallel.Call(ids, head, mask=mask)

    def close(self) -> None:
        """Stop loading ahead."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def after_rollback(self) -> None:
        """Recompute the token count: it covers only the steps that the run keeps."""
        self.run.tokens = float(self._tokens)

    # -- measuring ---------------------------------------------------------------------------------------------------

    def bits_per_byte(self, max_bytes: int | None = None) -> dict[str, Any]:
        """Bits per byte on held-out documents; max_bytes: use only about this much of them."""
        with self.run.autocast():
            return bits_per_byte(self.run.model, self.corpus, window=self.recipe.train.seq_len, max_bytes=max_bytes)

    def evaluate(self, step: int) -> dict[str, Any]:
        """Evaluate on all held-out documents at the end, and on `log.eval_bytes` of them before."""
        return self.bits_per_byte(None if step >= self.run.total else self.recipe.log.eval_bytes)

    def after_step(self) -> None:
        """Generate a sample when one is due."""
        every = self.recipe.log.sample_every
        if every and self.run.step % every == 0:
            with self.run.excluded_from_metrics():
                model = self.run.model if not self.run.sharded else self._whole_copy()
                if model is not None and self.run.world.first:
                    self._sample(model)

    def _whole_copy(self) -> LlamaForCausalLM | None:
        """The weights of now as a network that the first process can run alone; None elsewhere or without the room."""
        run, config = self.run, self.run.config
        # Decided once, by what was free when the run began: all have to take part.
        if not run.from_first(lambda: 8 * config.num_parameters() < run.machine.memory_bytes):
            return None
        with parallel.pending_weights(run.model, run.world) as weights:
            if not run.world.first:
                return None
            model = LlamaForCausalLM(config).to(run.device).requires_grad_(False)
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name].whole())
            return model

    def _sample(self, model: LlamaForCausalLM) -> None:
        from puna.engine.generate import Engine, SamplingParams
        from puna.engine.request import EngineError

        tokenizer, prompt = self.corpus.tokenizer, self.recipe.log.sample_prompt
        params = SamplingParams(max_tokens=48, temperature=0.7, seed=self.recipe.train.seed)
        ids = tokenizer.encode(prompt, bos=True)
        # A cache for this one text: on an accelerator, training needs the rest of the memory.
        room = len(ids) + params.max_tokens
        # Capturing its steps would take longer than writing one text.
        engine = Engine(cast(LlamaForCausalLM, model), tokenizer, max_batch=1, kv_tokens=room, decode_buckets=False)
        with self.run.uncompiled():
            try:
                text = engine.generate([ids], params)[0].text
            except EngineError as error:  # not a reason to end the run
                text = f"({error})"
        self.run.emit({"kind": "sample", "step": self.run.step, "prompt": prompt, "text": text})

    # -- what is recorded ----------------------------------------------------------------------------------------------

    @property
    def _tokens(self) -> int:
        return self.run.step * self.recipe.tokens_per_step

    def fingerprint(self) -> dict[str, Any]:
        """See `Objective`."""
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

    def lineage(self) -> dict[str, Any]:
        """See `Objective`."""
        return {
            "stage": "base",
            "recipe": self.recipe.model_dump(mode="json"),
            "corpus": {
                "path": self.recipe.corpus,
                "content_hash": self.corpus.content_hash,
                "code_share": code_share(self.corpus),
            },
            "parent": self.recipe.start_from or None,
            "step": self.run.step,
            "tokens": self._tokens,
        }

    def start_facts(self) -> dict[str, Any]:
        """The average number of bytes of text per token."""
        return {"bytes_per_token": self.bytes_per_token}

    def line_facts(self, loss: float, measures: dict[str, float]) -> dict[str, Any]:
        """Bits per byte of the training text."""
        return {"bits_per_byte": finite(loss / math.log(2) / self.bytes_per_token)}

    def skip_facts(self, data_step: int) -> dict[str, Any]:
        """The documents in the batch of the step."""
        train = self.recipe.train
        rows = {"rows": train.batch, "seq_len": train.seq_len}
        return {"documents": documents_of(self.corpus, seed=train.seed, step=data_step, **rows)}

    def eval_facts(self, measures: dict[str, Any]) -> dict[str, Any]:
        """Bits per byte and what they were measured on."""
        return {"tokens": self._tokens, **measures}

    def end_facts(self, measures: dict[str, Any]) -> dict[str, Any]:
        """Bits per byte on all held-out documents."""
        return {"bits_per_byte": measures["bits_per_byte"], "interval": measures["interval"]}
