"""The engine: continues prompts, many at once or as streams, for sampling, chat, evaluation, serving and RL.

Everything goes through one scheduler over one pool of pages: a prompt joins the step that runs when it comes, and its
pages are somebody else's when it ends. `generate` and `stream` make steps on their caller's thread. `submit` starts the
engine's own thread, which then makes all steps, and hands back a request that any thread may read. What a prompt gives
does not depend on which others run beside it.
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
from puna.core.files import read_json
from puna.engine.checks import check_params, check_prompt, check_room
from puna.engine.describe import describe
from puna.engine.embed import embed
from puna.engine.fused import assign, fuse, weight_shapes
from puna.engine.grammar import Grammar, Grammars
from puna.engine.loop import Loop
from puna.engine.request import Completion, Request, Step
from puna.engine.runner import Runner, make_pool
from puna.engine.sampling import SamplingParams
from puna.engine.scheduler import Scheduler
from puna.engine.step import Stepper
from puna.model.features import multiplies_bfloat16
from puna.model.llama import LlamaForCausalLM
from puna.model.store import check_vocabulary, load_model
from puna.text.tokenizer import Tokenizer

__all__ = ["Completion", "Engine", "Grammar", "SamplingParams", "load_engine"]


class Engine:
    """A model and its tokenizer, ready to continue prompts. `tokenizer` may be None: then completions have no text.

    max_batch: texts written at once, at most. kv_tokens: tokens whose keys and values there is room for; by default
    those of max_batch whole contexts, or what a share of the free memory holds. step_tokens: how many one step may
    compute. deterministic: logits do not depend to the bit on batch mates, prefix cache or preemption; slower.
    decode_buckets: steps that bring one token of each text are padded to a few sizes, and on CUDA captured as graphs;
    overlap: a step's tokens are read when the next step is on its way. None: both on CUDA, unless deterministic.
    Weights that others change must be told of by `update_weights(())`.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: Tokenizer | None,
        *,
        end_ids: Sequence[int] = (),
        max_batch: int = 64,
        kv_tokens: int | None = None,
        page_size: int | None = None,
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
        # Embeddings are often padded; what the tokenizer cannot read back is never said.
        self.vocabulary = tokenizer.vocab_size if tokenizer else model.config.vocab_size
        self.deterministic = deterministic
        on_gpu = model.head_weight.device.type == "cuda" and not deterministic
        self._buckets = on_gpu if decode_buckets is None else decode_buckets
        self._overlap = on_gpu if overlap is None else overlap
        self.precision = "as the model came"
        """Why the weights have the precision they have."""
        self._pool_size: dict[str, Any] = {"kv_tokens": kv_tokens, "page_size": page_size}
        self._scheduling: dict[str, Any] = {"step_tokens": step_tokens, "prefix_cache": prefix_cache}
        self._prepared: Grammars | None = None
        self._preparing = threading.Lock()
        self._loop = Loop(self._make)

    # -- asking ------------------------------------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Continue each prompt (token ids). params: one for all, or one per prompt.

        Returns n completions for the first prompt, then those of the second, and so on. Raises PunaError for an empty
        or overlong prompt, or ids outside the vocabulary, before anything is computed.
        """
        return [done for row in self.generate_each(prompts, params) for done in row]

    def generate_each(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Iterator[list[Completion]]:
        """As `generate`, one prompt after the other: its continuations as soon as they and all before them have ended.

        Closing the iterator ends what is still being written.
        """
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(prompts):
            raise PunaError(f"{len(prompts)} prompts but {len(each)} sampling parameters.", "Give one each, or one.")
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
        """Yield (id, text piece) as they are made; a piece is empty while its characters or a stop string are open.

        Closing the iterator frees its pages. Raises PunaError as `generate`, at the call, before the first token is
        asked for; a stream has one continuation.
        """
        params = params or SamplingParams()
        if params.n != 1:
            raise PunaError(f"n = {params.n}, but a stream has one continuation.", "Use submit or generate.")
        request = self._request(prompt_ids, params)

        def pieces() -> Iterator[tuple[int, str]]:
            try:
                self._loop.enqueue(request)
                for step in self._loop.follow(request):
                    yield step.id, step.text
            finally:
                self._loop.abandon([request])

        return pieces()

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        deadline_seconds: float | None = None,
        deliver: Callable[[Step | Exception | None], None] | None = None,
    ) -> Request:
        """Hand a prompt to the engine's thread, which starts with the first; returns at once.

        Iterate the request for its steps, from any thread; or have them brought by `deliver`, which the engine's thread
        calls with each step, and at the end with None or with the error that ended the request (it must not wait).
        Raises PunaError as `generate`, at the call; iterating raises EngineError when a step failed and DeadlineError
        when the deadline passed.
        """
        deadline = None if deadline_seconds is None else monotonic() + deadline_seconds
        request = self._request(prompt_ids, params or SamplingParams(), deadline, deliver)
        self._loop.start()
        self._loop.enqueue(request)
        return request

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> int:
        """Copy tensors into the parameters of these names, in place and between two steps; returns the new version.

        Texts on their way go on under the new weights as the model itself would: all their tokens are computed again.
        Tokens say which version chose them. Raises PunaError for an unknown name or another shape; what was copied
        before is then in place, and it has a version of its own.
        """
        return self._loop.between_steps(lambda: self._update(weights))

    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """One vector per prompt, (prompts, hidden_size), float32, on the CPU: the mean of its tokens' hidden states
        after the last norm.

        Each prompt is computed whole, between two steps, and leaves nothing in the cache. Raises PunaError as
        `generate`, before anything is computed, and EngineError when a forward fails.
        """
        config = self.model.config
        for prompt in prompts:
            check_prompt(prompt, config, known=config.vocab_size)
        rows = [self._loop.between_steps(partial(embed, self.model, prompt)) for prompt in prompts]
        return torch.stack(rows) if rows else torch.empty(0, config.hidden_size)

    def close(self) -> None:
        """Stop the engine's thread, if there is one. Requests on their way fail."""
        self._loop.close()

    # -- looking -----------------------------------------------------------------------------------------------------

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for, perhaps half a character; a special token's name. Empty without a tokenizer."""
        return self.tokenizer.shown_bytes(token) if self.tokenizer else b""

    @property
    def weight_version(self) -> int:
        """How often `update_weights` was called."""
        stepper = self._loop.made
        return stepper.weight_version if stepper else 0

    def stats(self) -> dict[str, Any]:
        """Numbers for monitoring: requests, pages, steps. Never waits for the engine.

        progress_age: seconds since a step ended, or since there was something to do again after a rest.
        """
        stepper = self._loop.made
        if stepper is None:
            empty = dict.fromkeys(("running", "waiting", "page_size", "steps", "preemptions", "weight_version"), 0)
            return {**empty, "pages": {"free": 0, "cached": 0, "held": 0}, "busy": False, "progress_age": 0.0}
        scheduler = stepper.scheduler
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "pages": scheduler.pool.counts(),
            "page_size": scheduler.pool.page_size,
            "steps": stepper.steps,
            "preemptions": scheduler.preemptions,
            "weight_version": stepper.weight_version,
            "busy": self._loop.busy,
            "progress_age": self._loop.age,
        }

    def describe(self) -> list[str]:
        """What was chosen when the engine was made, a sentence each."""
        return describe(self.model, self._stepper, why=self.precision)

    def stuck(self, seconds: float) -> bool:
        """Whether there is something to do and for so long no step has ended. Never waits for the engine."""
        return self._loop.stuck(seconds)

    # -- the way of a request ----------------------------------------------------------------------------------------

    @property
    def _stepper(self) -> Stepper:
        return self._loop.stepper

    def _make(self) -> Stepper:
        """Wanted with the first request: so is the memory."""
        pool = make_pool(self.model, max_batch=self.max_batch, **self._pool_size)
        scheduler = Scheduler(pool, max_batch=self.max_batch, **self._scheduling)
        runner = Runner(self.model, pool, self.vocabulary, deterministic=self.deterministic, buckets=self._buckets)
        return Stepper(scheduler, runner, self.token_bytes, overlap=self._overlap)

    @property
    def _grammars(self) -> Grammars:
        """Made when a grammar is first asked for."""
        assert self.tokenizer is not None
        with self._preparing:
            if self._prepared is None:
                self._prepared = Grammars(self.tokenizer, self.end_ids)
            return self._prepared

    def _request(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        deadline: float | None = None,
        deliver: Callable[[Step | Exception | None], None] | None = None,
    ) -> Request:
        """A request that was found to be answerable. Raises PunaError when it is not."""
        config, pool = self.model.config, self._stepper.scheduler.pool
        # A token that is never said has no probability.
        known = self.vocabulary if params.prompt_logprobs is not None else config.vocab_size
        check_prompt(prompt, config, known=known, room=min(params.max_tokens, 1))
        check_params(params, self.vocabulary, self.tokenizer)
        limit = min(params.max_tokens, config.max_position_embeddings - len(prompt))
        check_room(len(prompt), limit, pool)
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
        stepper, shapes = self._stepper, weight_shapes(self.model)
        stepper.settle()  # tokens on their way are those of the weights before
        try:
            for name, tensor in weights:
                shape = shapes.get(name)
                if shape is None:
                    raise PunaError(f"The model has no weight {name}.", nearest(name, shapes))
                if shape != tuple(tensor.shape):
                    raise PunaError(
                        f"{name} is {tuple(tensor.shape)}, but the model's is {shape}.",
                        "The weights are those of another shape of model.",
                    )
                assign(self.model, name, tensor)
        finally:
            stepper.weight_version += 1
            stepper.scheduler.restart(stepper.weight_version)
        return stepper.weight_version


def load_engine(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    fast: bool = False,
    quantize: str | None = None,
    **options: Any,
) -> Engine:
    """Load a model directory with its tokenizer (when it has one) and its end tokens.

    fast: on a CPU, matrices are laid out for generation (see `engine.fused`), in bfloat16 where the CPU multiplies it
    and no dtype was asked for. quantize: "int8" or "int4", fast too. options: those of Engine. Raises PunaError as both
    do, and for a quantization that there is not.
    """
    directory = Path(directory)
    on_cpu = torch.device(device).type == "cpu"
    if quantize not in (None, "int8", "int4") or (quantize and not on_cpu):
        raise PunaError(
            f"Weights cannot be {quantize} on {device}.", "int8 and int4 are for the CPU; a GPU takes them as they are."
        )
    why = "as the files have it" if dtype is None else "as asked for"
    if on_cpu and quantize:
        dtype, why = torch.bfloat16, f"as {quantize}'s kernels want activations"
    elif on_cpu and fast and dtype is None and multiplies_bfloat16():
        dtype, why = torch.bfloat16, "as this CPU multiplies it fastest"
    model = load_model(directory, device=device, dtype=dtype)
    if on_cpu and (fast or quantize):
        fuse(model, quantize)
    tokenizer = None
    if any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        tokenizer = Tokenizer.load(directory)
        check_vocabulary(model.config, tokenizer.vocab_size, str(directory))
    path = directory / "generation_config.json"
    ends = (read_json(path) if path.is_file() else read_json(directory / "config.json")).get("eos_token_id")
    end_ids = [] if ends is None else ends if isinstance(ends, list) else [ends]
    engine = Engine(model, tokenizer, end_ids=end_ids, **options)
    engine.precision = why
    return engine
