"""The engine: continues prompts, many at once or one as a stream, for sampling, chat and evaluation.

One loop makes one token for every living row per step; `generate` gathers what it yields and `stream` hands it on. A
row that ends leaves the batch. What a prompt gives does not depend on which others run beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.core.errors import PunaError
from puna.core.files import read_json
from puna.engine.cache import KVCache
from puna.engine.sampling import SamplingParams, sample
from puna.model.llama import LlamaForCausalLM
from puna.model.store import check_vocabulary, load_model
from puna.text.stream import TextStream
from puna.text.tokenizer import Tokenizer

__all__ = ["Completion", "Engine", "SamplingParams", "load_engine"]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Completion:
    """What the model added to one prompt."""

    ids: list[int]
    """Generated ids, with the end token or the last token of a stop string when one ended the text."""
    text: str
    """Their text, without end tokens and stop strings."""
    logprobs: list[float]
    """Log probability of each id under the model's own distribution (temperature 1, no filter), in nats."""
    finish_reason: FinishReason
    """stop: an end token or a stop string; length: max_tokens or the end of the context."""


class Step(NamedTuple):
    """One token of one row."""

    row: int
    id: int
    logprob: float
    text: str
    finish_reason: FinishReason | None


class Engine:
    """A model and its tokenizer, ready to continue prompts. `tokenizer` may be None: then completions have no text."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: Tokenizer | None,
        *,
        end_ids: Sequence[int] = (),
        max_batch: int = 64,
    ) -> None:
        if tokenizer is not None:
            check_vocabulary(model.config, tokenizer.vocab_size, "The engine")
        self.model, self.tokenizer, self.max_batch = model, tokenizer, max_batch
        self.end_ids = {*(tokenizer.eos_ids if tokenizer else ()), *end_ids}
        # Embeddings are often padded; what the tokenizer cannot read back is never said.
        self.vocabulary = tokenizer.vocab_size if tokenizer else model.config.vocab_size

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Continue each prompt (token ids). params: one for all, or one per prompt.

        Raises PunaError for an empty or overlong prompt, or ids outside the vocabulary, before anything is computed.
        """
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(prompts):
            raise PunaError(f"{len(prompts)} prompts but {len(each)} sampling parameters.", "Give one each, or one.")
        for prompt in prompts:
            self._check(prompt)
        steps: list[list[Step]] = [[] for _ in prompts]
        for first in range(0, len(prompts), self.max_batch):
            part = slice(first, first + self.max_batch)
            for step in self._run(prompts[part], each[part]):
                steps[first + step.row].append(step)
        return [
            Completion(
                ids=[step.id for step in row],
                text="".join(step.text for step in row),
                logprobs=[step.logprob for step in row],
                finish_reason=row[-1].finish_reason or "length",
            )
            for row in steps
        ]

    def stream(self, prompt_ids: Sequence[int], params: SamplingParams | None = None) -> Iterator[tuple[int, str]]:
        """Yield (id, text piece) as they are made; a piece is empty while its characters or a stop string are open.

        Raises PunaError as `generate`, at the call, before the first token is asked for.
        """
        self._check(prompt_ids)
        steps = self._run([prompt_ids], [params or SamplingParams()])
        return ((step.id, step.text) for step in steps)

    def _check(self, prompt: Sequence[int]) -> None:
        vocabulary, longest = self.model.config.vocab_size, self.model.config.max_position_embeddings
        if not prompt:
            raise PunaError("The prompt is empty.", "Give at least the begin-of-text token.")
        if len(prompt) >= longest:
            raise PunaError(
                f"The prompt has {len(prompt):,} tokens, but the model's context holds {longest:,}.", "Shorten it."
            )
        wrong = next((token for token in prompt if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise PunaError(
                f"The prompt has token id {wrong}, but the model knows 0 to {vocabulary - 1}.",
                "Was it encoded with another tokenizer?",
            )

    def _run(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> Iterator[Step]:
        rows = [self._row(i, prompt, p) for i, (prompt, p) in enumerate(zip(prompts, params, strict=True))]
        cache = KVCache(len(rows), self.model.head_weight.device)
        new_ids = [list(prompt) for prompt in prompts]
        while rows:
            logits = self._forward(new_ids, cache)
            chosen, logprobs = sample(logits, [row.params for row in rows], [row.uniforms.random() for row in rows])
            alive, next_rows, new_ids = [], [], []
            for i, (row, token, logprob) in enumerate(zip(rows, chosen.tolist(), logprobs.tolist(), strict=True)):
                text, reason = row.accept(token)
                yield Step(row.index, token, logprob, text, reason)
                if reason is None:
                    alive.append(i)
                    next_rows.append(row)
                    new_ids.append([token])
            if alive and len(alive) < len(rows):
                cache.keep(alive)
            rows = next_rows

    @torch.inference_mode()
    def _forward(self, new_ids: Sequence[list[int]], cache: KVCache) -> Tensor:
        """Run the rows' new tokens; return the logits after each row's last one, (rows, vocab)."""
        counts = [len(ids) for ids in new_ids]
        padded = torch.tensor([ids + [0] * (max(counts) - len(ids)) for ids in new_ids], device=cache.device)
        last = torch.tensor(counts, device=cache.device) - 1
        index = torch.arange(len(counts), device=cache.device)
        positions = cache.extend(counts)
        return self.model(
            padded,
            positions=positions,
            cache=cache,
            head=lambda hidden, weight: F.linear(hidden[index, last], weight[: self.vocabulary]),
        )

    def _row(self, index: int, prompt: Sequence[int], params: SamplingParams) -> "_Row":
        if params.stop and self.tokenizer is None:
            raise PunaError("Stop strings need a tokenizer, and this model has none.", "Use stop_ids.")
        room = self.model.config.max_position_embeddings - len(prompt)
        ends = self.end_ids | set(params.stop_ids)
        text = None
        if self.tokenizer is not None:
            text = TextStream(self.tokenizer, skip_special=True)
            # The text goes on where the prompt ends: perhaps within a character, and not with a space that is dropped.
            text.push(prompt[-1])
        return _Row(index, params, min(params.max_tokens, room), ends, text, params.uniforms())


@dataclass
class _Row:
    """One request on its way."""

    index: int
    params: SamplingParams
    limit: int  # tokens
    end_ids: set[int]
    text: TextStream | None
    uniforms: Random
    count: int = 0
    held: str = ""  # text that may be the beginning of a stop string

    def accept(self, token: int) -> tuple[str, FinishReason | None]:
        """Take the next id; return the text that is now certain and, when the row ends, why."""
        self.count += 1
        ended = token in self.end_ids
        full = self.count >= self.limit
        if self.text is not None:
            self.held += "" if ended else self.text.push(token)
            self.held += self.text.close() if ended or full else ""
        cut = min((at for at in (self.held.find(stop) for stop in self.params.stop) if at >= 0), default=-1)
        if cut >= 0:
            return self.held[:cut], "stop"
        keep = 0 if ended or full else _open_suffix(self.held, self.params.stop)
        text, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return text, "stop" if ended else "length" if full else None


def load_engine(directory: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Engine:
    """Load a model directory with its tokenizer (when it has one) and its end tokens. Raises PunaError as both do."""
    directory = Path(directory)
    model = load_model(directory, device=device, dtype=dtype)
    tokenizer = None
    if any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        tokenizer = Tokenizer.load(directory)
        check_vocabulary(model.config, tokenizer.vocab_size, str(directory))
    path = directory / "generation_config.json"
    ends = (read_json(path) if path.is_file() else read_json(directory / "config.json")).get("eos_token_id")
    end_ids = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return Engine(model, tokenizer, end_ids=end_ids)


def _open_suffix(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a stop string may begin."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
