"""Asks a model: turns questions into prompts, and engine output into answers.

All questions go through here, those of Puna's benchmarks and of lm-evaluation-harness alike, so that both get the same
numbers. As in the harness, a context and its continuation are encoded as one text and split where the context alone
ends; a space at the end of the context belongs to the continuation. A continuation that merged into the context's last
token has nothing left of its own and is encoded alone: without a token its log probability would be 0, the highest
there is. A prompt that is too long for the model loses its beginning, and the result says so.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from puna.core.errors import PunaError
from puna.engine.generate import Completion, Engine, SamplingParams
from puna.evals.contract import Likelihood, MultiTurn, Text, Transcript
from puna.tasks.catalogue import find
from puna.tasks.episodes import Attempt, Group, run_attempts
from puna.text.chat import render
from puna.text.tokenizer import Tokenizer

Pair = tuple[str, str]
"""A context and its continuation."""


class TextSamples(NamedTuple):
    """The greedy answer and the sampled ones. cut: tokens of the prompt that did not fit."""

    text: str
    samples: tuple[str, ...] = ()
    cut: int = 0


class MultiTurnSamples(NamedTuple):
    """The greedy dialogue and the sampled ones. cut: tokens of the problem that did not fit; then there is no
    dialogue."""

    greedy: Transcript
    samples: tuple[Transcript, ...] = ()
    cut: int = 0


class ScoredContinuation(NamedTuple):
    """A likelihood, and the number of tokens of the context that did not fit."""

    likelihood: Likelihood
    cut: int = 0


class Sampling(NamedTuple):
    """How answers are sampled, besides the greedy one."""

    samples: int = 0
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Encode a context, with begin-of-text if the tokenizer has one, and its continuation.

    An empty context is begin-of-text alone, or the end token of a tokenizer that has none. Raises PunaError for an
    empty continuation.
    """
    if not continuation:
        raise PunaError(
            f"A continuation is empty (after '{context[-60:]}'), so it has no probability.",
            "Give each choice at least one character.",
        )
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, continuation = context[:-blanks], context[-blanks:] + continuation
    if not context:
        return begin_ids(tokenizer), tokenizer.encode(continuation)
    start = [tokenizer.bos_id] if tokenizer.bos_id is not None else []
    whole, first = tokenizer.encode(context + continuation), tokenizer.encode(context)
    return start + first, whole[len(first) :] or tokenizer.encode(continuation)


def begin_ids(tokenizer: Tokenizer) -> list[int]:
    """Return what stands for an empty context: begin-of-text, or else an end token; empty without either."""
    return [tokenizer.bos_id] if tokenizer.bos_id is not None else tokenizer.eos_ids[:1]


def likelihoods(engine: Engine, pairs: Sequence[Pair]) -> list[ScoredContinuation]:
    """Score each continuation after its context. Raises PunaError for a model without a tokenizer."""
    tokenizer = tokenizer_of(engine)
    return score_ids(engine, [encode_pair(tokenizer, *pair) for pair in pairs])


def score_ids(engine: Engine, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[ScoredContinuation]:
    """Score ids of (context, continuation). Of a continuation longer than the model's context, the last ids are scored.

    Raises PunaError if there is nothing to score: no id in the continuation, or none before its only one.
    """
    longest = engine.model.config.max_position_embeddings
    prompts, params, cuts, counts = [], [], [], []
    for context, continuation in pairs:
        begins = bool(context) and engine.tokenizer is not None and context[0] == engine.tokenizer.bos_id
        ids, cut = _fit([*context, *continuation], longest, keep_first=begins)
        count = min(len(continuation), len(ids) - 1)
        if count < 1:
            raise PunaError(
                f"A continuation of {len(continuation)} tokens after {len(context)} of context has no token to score.",
                "Give it one token or more, and a context (or a tokenizer with a begin or end token).",
            )
        prompts.append(ids)
        cuts.append(cut)
        counts.append(count)
        params.append(SamplingParams(max_tokens=0, prompt_logprobs=1, prompt_logprobs_from=max(1, len(ids) - count)))
    done = engine.generate(prompts, params) if prompts else []
    scored = []
    for completion, count, cut in zip(done, counts, cuts, strict=True):
        rows = completion.prompt_logprobs[len(completion.prompt_logprobs) - count :]
        total = sum(row[0].logprob for row in rows)
        greedy = all(row[0].logprob >= row[1].logprob for row in rows)
        scored.append(ScoredContinuation(Likelihood(total, count, greedy), cut))
    return scored


def write(
    engine: Engine, asks: Sequence[Text], keys: Sequence[str], *, chat: bool, sampling: Sampling
) -> list[TextSamples]:
    """Generate the answers to each question. keys: a name for each, the source of its random numbers.

    So an answer depends neither on the order of the questions nor on the other questions. chat: whether the model was
    trained to chat. Raises PunaError for a model without a tokenizer.
    """
    tokenizer = tokenizer_of(engine)
    prompts, params, cuts = [], [], []
    for ask, key in zip(asks, keys, strict=True):
        ids, cut = prompt_ids(ask, tokenizer, engine.model.config.max_position_embeddings, chat=chat)
        stop = () if chat and ask.messages else ask.stop
        cuts.append(cut)
        prompts.append(ids)
        params.append(SamplingParams(max_tokens=ask.max_tokens, temperature=0, stop=stop))
        if sampling.samples:
            prompts.append(ids)
            params.append(
                SamplingParams(
                    max_tokens=ask.max_tokens,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    seed=_seed(sampling.seed, key),
                    n=sampling.samples,
                    stop=stop,
                )
            )
    texts = [completion.text for completion in (engine.generate(prompts, params) if prompts else [])]
    each = 1 + sampling.samples
    return [
        TextSamples(texts[at * each], tuple(texts[at * each + 1 : (at + 1) * each]), cut) for at, cut in enumerate(cuts)
    ]


def converse(
    engine: Engine, asks: Sequence[MultiTurn], keys: Sequence[str], *, sampling: Sampling
) -> list[MultiTurnSamples]:
    """Let the model solve each problem with its tools; keys as for `write`.

    Raises PunaError for a tokenizer without chat tokens, and if a program must be run and there is no sandbox.
    """
    tokenizer, longest = tokenizer_of(engine), engine.model.config.max_position_embeddings

    def attempts(ask: MultiTurn, key: str, number: int) -> list[Attempt]:
        task, seed = find(ask.problem.task), _seed(sampling.seed, key)
        return [
            Attempt(
                task,
                ask.problem,
                tokenizer,
                max_tokens=ask.max_tokens,
                seed=seed,
                sample=sample,
                instruct=ask.instruct,
            )
            for sample in range(number)
        ]

    greedy = [attempts(ask, key, 1) for ask, key in zip(asks, keys, strict=True)]
    drawn = [attempts(ask, key, sampling.samples) for ask, key in zip(asks, keys, strict=True)]
    cuts = [max(0, len(one.prompt) - longest + 1) for [one] in greedy]
    fits = [at for at, cut in enumerate(cuts) if not cut]
    _work(engine, [greedy[at] for at in fits], temperature=0.0)
    if sampling.samples:
        _work(engine, [drawn[at] for at in fits], temperature=sampling.temperature, top_p=sampling.top_p)
    return [
        MultiTurnSamples(_conversation(one), tuple(map(_conversation, others)), cut)
        for [one], others, cut in zip(greedy, drawn, cuts, strict=True)
    ]


def _work(engine: Engine, groups: Sequence[Group], *, temperature: float, top_p: float = 1.0) -> None:
    def turn(waiting: Sequence[Group]) -> list[Completion]:
        params = [
            SamplingParams(
                max_tokens=group[0].max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=group[0].turn_seed,
                n=len(group),
            )
            for group in waiting
        ]
        return engine.generate([group[0].prompt for group in waiting], params)

    run_attempts(groups, turn, longest=engine.model.config.max_position_embeddings)


def _conversation(attempt: Attempt) -> Transcript:
    assert attempt.verdict is not None
    messages = ({"role": message["role"], "content": message["content"]} for message in attempt.transcript)
    return Transcript(tuple(messages), attempt.verdict)


def prompt_ids(ask: Text, tokenizer: Tokenizer, longest: int, *, chat: bool) -> tuple[list[int], int]:
    """Return the ids of a question, and how many tokens of its beginning were cut to leave room for an answer."""
    if chat and ask.messages:
        ids = render(list(ask.messages), tokenizer, tools=list(ask.tools) or None, add_generation_prompt=True).ids
    else:
        ids = tokenizer.encode(ask.prompt, bos=True) or tokenizer.eos_ids[:1]
    return fitted(ids, tokenizer, longest, ask.max_tokens)


def fitted(ids: list[int], tokenizer: Tokenizer, longest: int, max_tokens: int) -> tuple[list[int], int]:
    """Return the end of a prompt that leaves room for max_tokens (at most half the context), and the ids cut."""
    begins = tokenizer.bos_id is not None and ids[:1] == [tokenizer.bos_id]
    return _fit(ids, longest - min(max_tokens, longest // 2), keep_first=begins)


def _fit(ids: list[int], longest: int, *, keep_first: bool) -> tuple[list[int], int]:
    """Keep at most `longest` ids: the last ones, and the first if it begins a text."""
    cut = len(ids) - longest
    if cut <= 0:
        return ids, 0
    return ([ids[0], *ids[cut + 1 :]] if keep_first else ids[cut:]), cut


def _seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:6], "big")


def tokenizer_of(engine: Engine) -> Tokenizer:
    """Return the engine's tokenizer. Raises PunaError if there is none."""
    if engine.tokenizer is None:
        raise PunaError(
            "The model has no tokenizer, so it cannot be asked anything.", "Put the model's own next to its weights."
        )
    return engine.tokenizer
