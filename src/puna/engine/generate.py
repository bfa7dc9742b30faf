"""The engine: generates from prompts, in batches or as streams, for sampling, chat, evaluation, serving and RL.

Everything goes through one scheduler over one pool of KV blocks: a prompt joins the next step when it arrives, and its
blocks are free for others when it ends (continuous batching). `generate` and `stream` make steps on the caller's
thread. `submit` starts the engine's own thread, which then makes all steps, and returns a request that any thread may
read. The result of a prompt does not depend on which others are in the batch.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from puna.core.errors import PunaError, nearest
from puna.engine.core.engine_core import EngineCore
from puna.engine.core.engine_loop import EngineLoop
from puna.engine.core.model_runner import ModelRunner, make_block_pool
from puna.engine.core.scheduler import Scheduler
from puna.engine.cpu.fused_model import assign_weight, fuse, weight_shapes
from puna.engine.embed import embed
from puna.engine.grammar import Grammar, Grammars
from puna.engine.request import Completion, Request, TokenOutput
from puna.engine.sampling import SamplingParams
from puna.engine.summary import describe
from puna.engine.validation import check_capacity, check_params, check_prompt
from puna.model.llama import LlamaForCausalLM
from puna.model.store import check_vocabulary, load_model
from puna.model.torch_compat import multiplies_bfloat16
from puna.text.control import declared_ends
from puna.text.tokenizer import Tokenizer

__all__ = ["Completion", "Engine", "Grammar", "SamplingParams", "load_engine"]


class Engine:
    """A model and its tokenizer, ready to generate. `tokenizer` may be None: then completions have no text.

    max_batch: maximum number of sequences in a step. kv_tokens: capacity of the KV cache in tokens; by default
    max_batch full contexts, or what fits into a share of the free memory. step_tokens: token budget of a step.
    deterministic: logits are equal to the bit whatever the batch, the prefix cache and preemption; slower.
    decode_buckets: pad steps with one token per sequence to a few sizes, and capture them as CUDA graphs; overlap: read
    a step's tokens after the next step has started. None: both on CUDA, unless deterministic. After changing the
    model's weights from outside, call `update_weights(())`.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: Tokenizer | None,
        *,
        end_ids: Sequence[int] = (),
        max_batch: int = 64,
        kv_tokens: int | None = None,
        block_size: int | None = None,
        step_tokens: int = 512,
        prefix_cache: bool = True,
        deterministic: bool = False,
        decode_buckets: bool | None = None,
        overlap: bool | None = None,
    ) -> None:
        if tokenizer is not None:
            check_vocabulary(model.config, tokenizer.vocab_size, "The engine")
        self.model, self.tokenizer, self.max_batch = model, tokenizer, max_batch
        self.end_ids = {*(tokenizer.eos_ids if tokenizer else ()), *end_ids}
        # Embeddings are often padded; ids that the tokenizer cannot decode are never generated.
        self.vocabulary = tokenizer.vocab_size if tokenizer else model.config.vocab_size
        self.deterministic = deterministic
        on_gpu = model.head_weight.device.type == "cuda" and not deterministic
        self._buckets = on_gpu if decode_buckets is None else decode_buckets
        self._overlap = on_gpu if overlap is None else overlap
        self.precision = "as the model was given"
        """The reason for the precision of the weights."""
        self._pool_size: dict[str, Any] = {"kv_tokens": kv_tokens, "block_size": block_size}
        self._scheduling: dict[str, Any] = {"step_tokens": step_tokens, "prefix_cache": prefix_cache}
        self._compiled: Grammars | None = None
        self._grammar_lock = threading.Lock()
        self._loop = EngineLoop(self._build_core)

    # -- generation --------------------------------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Generate from each prompt (token ids). params: one for all, or one per prompt.

        Returns n completions for the first prompt, then those of the second, and so on. Raises PunaError for an empty
        or overlong prompt, or ids outside the vocabulary, before anything is computed.
        """
        return [done for row in self.generate_each(prompts, params) for done in row]

    def generate_each(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Iterator[list[Completion]]:
        """As `generate`, prompt by prompt: yields the completions of each when they and all before are finished.

        Closing the iterator cancels the rest.
        """
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(prompts):
            raise PunaError(
                f"{len(prompts)} prompts but {len(each)} sampling parameters.",
                "Give one each, or one for all.",
            )
        requests = [self._request(prompt, p) for prompt, p in zip(prompts, each, strict=True)]

        def rows() -> Iterator[list[Completion]]:
            try:
                for request in requests:
                    self._loop.enqueue(request)
                for request in requests:
                    yield request.completions(list(self._loop.follow(request)))
            finally:
                self._loop.abandon(requests)

        return rows()

    def stream(self, prompt_ids: Sequence[int], params: SamplingParams | None = None) -> Iterator[tuple[int, str]]:
        """Yield (id, text) as tokens are generated; the text is empty while a character or a stop string is incomplete.

        Closing the iterator cancels the request. Raises PunaError as `generate`, when called, not at the first token; a
        stream has one sequence.
        """
        params = params or SamplingParams()
        if params.n != 1:
            raise PunaError(f"n = {params.n}, but a stream has one sequence.", "Use submit or generate.")
        request = self._request(prompt_ids, params)

        def pieces() -> Iterator[tuple[int, str]]:
            try:
                self._loop.enqueue(request)
                for output in self._loop.follow(request):
                    yield output.id, output.text
            finally:
                self._loop.abandon([request])

        return pieces()

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        deadline_seconds: float | None = None,
        deliver: Callable[[TokenOutput | Exception | None], None] | None = None,
    ) -> Request:
        """Queue a prompt for the engine's thread, starting the thread if needed; returns at once.

        Iterate the request for its outputs, from any thread; or pass `deliver`, which the engine's thread calls with
        each output, and at the end with None or with the error that ended the request (it must not block). Raises
        PunaError as `generate`, when called; iterating raises EngineError when a step failed and DeadlineError when the
        deadline passed.
        """
        deadline = None if deadline_seconds is None else monotonic() + deadline_seconds
        request = self._request(prompt_ids, params or SamplingParams(), deadline, deliver)
        self._loop.start()
        self._loop.enqueue(request)
        return request

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> int:
        """Copy tensors into the parameters of these names, in place and between two steps; returns the new version.

        Open sequences continue under the new weights: all their tokens are computed again. Each output names the
        version that produced it. Raises PunaError for an unknown name or a different shape; tensors copied before the
        error stay, and count as a version of their own.
        """
        return self._loop.between_steps(lambda: self._update(weights))

    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """One vector per prompt, (prompts, hidden_size), float32, on the CPU: the mean of its tokens' hidden states
        after the last norm.

        Each prompt is computed in one forward, between two steps, and leaves nothing in the cache. Raises PunaError as
        `generate`, before anything is computed, and EngineError when a forward fails.
        """
        config = self.model.config
        for prompt in prompts:
            check_prompt(prompt, config, vocabulary=config.vocab_size)
        rows = [self._loop.between_steps(partial(embed, self.model, prompt)) for prompt in prompts]
        return torch.stack(rows) if rows else torch.empty(0, config.hidden_size)

    def close(self) -> None:
        """Stop the engine's thread, if there is one. Open requests fail."""
        self._loop.close()

    # -- monitoring --------------------------------------------------------------------------------------------------

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token, perhaps part of a character; a special token's name. Empty without a tokenizer."""
        return self.tokenizer.shown_bytes(token) if self.tokenizer else b""

    @property
    def weight_version(self) -> int:
        """Number of `update_weights` calls so far."""
        core = self._loop.built
        return core.weight_version if core else 0

    def stats(self) -> dict[str, Any]:
        """Numbers for monitoring: requests, blocks, steps. Never waits for the engine.

        progress_age: seconds since a step ended, or since there was something to do again after an idle period.
        """
        core = self._loop.built
        if core is None:
            empty = dict.fromkeys(("running", "waiting", "block_size", "steps", "preemptions", "weight_version"), 0)
            return {**empty, "blocks": {"free": 0, "cached": 0, "held": 0}, "busy": False, "progress_age": 0.0}
        scheduler = core.scheduler
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "blocks": scheduler.pool.counts(),
            "block_size": scheduler.pool.block_size,
            "steps": core.steps,
            "preemptions": scheduler.preemptions,
            "weight_version": core.weight_version,
            "busy": self._loop.busy,
            "progress_age": self._loop.age,
        }

    def describe(self) -> list[str]:
        """The engine's settings, one sentence each."""
        return describe(self.model, self._core, why=self.precision)

    def stuck(self, seconds: float) -> bool:
        """Whether there is something to do but no step has ended for so long. Never waits for the engine."""
        return self._loop.stuck(seconds)

    # -- parts -------------------------------------------------------------------------------------------------------

    @property
    def _core(self) -> EngineCore:
        return self._loop.core

    def _build_core(self) -> EngineCore:
        """Called for the first request, which is when the memory is taken."""
        pool = make_block_pool(self.model, max_batch=self.max_batch, **self._pool_size)
        scheduler = Scheduler(pool, max_batch=self.max_batch, **self._scheduling)
        runner = ModelRunner(self.model, pool, self.vocabulary, deterministic=self.deterministic, buckets=self._buckets)
        return EngineCore(scheduler, runner, self.token_bytes, overlap=self._overlap)

    @property
    def _grammars(self) -> Grammars:
        """Compiled on first use."""
        assert self.tokenizer is not None
        with self._grammar_lock:
            if self._compiled is None:
                self._compiled = Grammars(self.tokenizer, self.end_ids)
            return self._compiled

    def _request(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        deadline: float | None = None,
        deliver: Callable[[TokenOutput | Exception | None], None] | None = None,
    ) -> Request:
        """A validated request. Raises PunaError for an invalid one."""
        config, pool = self.model.config, self._core.scheduler.pool
        # A token that is never generated has no probability.
        vocabulary = self.vocabulary if params.prompt_logprobs is not None else config.vocab_size
        check_prompt(prompt, config, vocabulary=vocabulary, room=min(params.max_tokens, 1))
        check_params(params, self.vocabulary, self.tokenizer)
        limit = min(params.max_tokens, config.max_position_embeddings - len(prompt))
        check_capacity(len(prompt), limit, pool)
        ends = set(params.stop_ids) | (set() if params.ignore_end else self.end_ids)
        return Request(
            prompt,
            params,
            limit=limit,
            end_ids=ends,
            tokenizer=self.tokenizer,
            matcher=self._grammars.matcher(params.grammar) if params.grammar is not None else None,
            deadline=deadline,
            deliver=deliver,
        )

    def _update(self, weights: Iterable[tuple[str, Tensor]]) -> int:
        core, shapes = self._core, weight_shapes(self.model)
        core.finish_in_flight()  # its tokens belong to the previous weights
        try:
            for name, tensor in weights:
                shape = shapes.get(name)
                if shape is None:
                    raise PunaError(f"The model has no weight {name}.", nearest(name, shapes))
                if shape != tuple(tensor.shape):
                    raise PunaError(
                        f"{name} is {tuple(tensor.shape)}, but the model's is {shape}.",
                        "Give weights of a model of the same shape.",
                    )
                assign_weight(self.model, name, tensor)
        finally:
            core.weight_version += 1
            core.scheduler.recompute_all(core.weight_version)
        return core.weight_version


def load_engine(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    fast: bool = False,
    quantize: str | None = None,
    **options: Any,
) -> Engine:
    """Load a model directory with its tokenizer (if it has one) and its end tokens.

    fast: on a CPU, lay out matrices for generation (see `engine.cpu.fused_model`), in bfloat16 if the CPU multiplies it
    and no dtype is given. quantize: "int8" or "int4", which implies fast. options: those of Engine. Raises PunaError as
    `load_model` and Engine do, and for an unknown quantization.
    """
    directory = Path(directory)
    on_cpu = torch.device(device).type == "cpu"
    if quantize not in (None, "int8", "int4") or (quantize and not on_cpu):
        raise PunaError(
            f"Weights cannot be {quantize} on {device}.", "int8 and int4 are for CPUs; on a GPU leave quantization out."
        )
    why = "as stored" if dtype is None else "as requested"
    if on_cpu and quantize:
        dtype, why = torch.bfloat16, f"the activations of the {quantize} kernels"
    elif on_cpu and fast and dtype is None and multiplies_bfloat16():
        dtype, why = torch.bfloat16, "the fastest on this CPU"
    model = load_model(directory, device=device, dtype=dtype)
    if on_cpu and (fast or quantize):
        fuse(model, quantize)
    tokenizer = None
    if any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        tokenizer = Tokenizer.load(directory)
        check_vocabulary(model.config, tokenizer.vocab_size, str(directory))
    engine = Engine(model, tokenizer, end_ids=declared_ends(directory), **options)
    engine.precision = why
    return engine
