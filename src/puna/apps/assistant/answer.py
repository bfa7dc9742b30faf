"""Turns a conversation into a request, and a backend's chunks into a draft of the answer.

A chat model gets the dialogue, with its own earlier answers as the token ids it generated. A base model has no turns:
it gets the last message, and continues it.
"""

import time
from codecs import getincrementaldecoder
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydantic import Field, ValidationError

from puna.serve.backends.base import Backend
from puna.serve.openai.objects import token_data
from puna.serve.openai.protocol import (
    ChatChunkChoice,
    ChatRequest,
    CompletionChunkChoice,
    CompletionRequest,
    ModelCard,
    Usage,
)
from puna.serve.server import Server
from puna.text.tokenizer import Tokenizer
from puna.web.errors import ApiError
from puna.web.request_body import Body

ALTERNATIVES = 8  # kept with each token
DEFAULT_TOKENS = {"chat": 1024, "base": 256}  # the default length limit of an answer, by stage

Token = list[Any]
"""[id or None, bytes in hex, logprob, [[bytes in hex, logprob], …]]: how a token is stored (schema.Message.tokens)."""


class SamplingSettings(Body):
    """Sampling settings; null means the default."""

    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int | None = Field(default=None, ge=0, lt=2**31)


def default_sampling(card: ModelCard) -> dict[str, float | int]:
    """The numbers that null in `Sampling` stands for, as far as they are known: a missing seed is random.

    Puna's engine takes OpenAI's defaults and sends them to llama.cpp; other engines have defaults of their own.
    """
    found: dict[str, float | int] = {"max_tokens": DEFAULT_TOKENS[card.stage]}
    if card.owned_by in ("puna", "llama.cpp"):
        found |= {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    if card.introduction:
        found["temperature"] = card.introduction.temperature
    return found


def known_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings of a file that `Sampling` accepts."""
    kept: dict[str, Any] = {}
    for name, value in given.items():
        try:
            kept |= SamplingSettings.model_validate({name: value}).model_dump(exclude_none=True)
        except ValidationError:
            continue
    return kept


@dataclass
class AnswerDelta:
    """The content of one chunk."""

    content: str = ""
    reasoning: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass
class Draft:
    """An answer while it is written.

    Its first `kept` tokens come from the answer that it continues.
    """

    content: str = ""
    reasoning: str = ""
    tokens: list[Token] = field(default_factory=list)
    kept: int = 0
    finish_reason: str | None = None
    usage: Usage | None = None
    begun: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None
    pieces: int = 0

    def add(self, piece: AnswerDelta) -> None:
        self.content += piece.content
        self.reasoning += piece.reasoning
        self.tokens += piece.tokens
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.usage = piece.usage or self.usage
        if piece.content or piece.reasoning or piece.tokens:
            self.pieces += 1
            self.last = time.monotonic()
            self.first = self.first or self.last

    def counts(self) -> dict[str, Any]:
        """Tokens so far, tokens_per_second after the first, and seconds until the first."""
        made = len(self.tokens) - self.kept if len(self.tokens) > self.kept else self.pieces
        if self.usage is not None:
            made = self.usage.completion_tokens
        counts: dict[str, Any] = {"completion_tokens": made}
        if self.first is not None and self.last is not None:
            counts["first_seconds"] = round(self.first - self.begun, 3)
            if self.last > self.first and made > 1:
                counts["tokens_per_second"] = round((made - 1) / (self.last - self.first), 2)
        if self.usage is not None:
            details = self.usage.prompt_tokens_details
            counts["prompt_tokens"] = self.usage.prompt_tokens
            counts["cached_tokens"] = details.cached_tokens if details else 0
        return counts


def continued(tokens: Sequence[Token]) -> Draft:
    """A draft that starts with these tokens. An incomplete character at the end is not text yet."""
    data = b"".join(bytes.fromhex(token[1]) for token in tokens)
    text = getincrementaldecoder("utf-8")("replace").decode(data)
    reasoning, content = "", text
    if text.lstrip().startswith("<think>"):
        reasoning, _, content = text.lstrip().removeprefix("<think>").partition("</think>")
    return Draft(content.lstrip(), reasoning.strip(), list(tokens), kept=len(tokens))


async def generate(
    server: Server,
    backend: Backend,
    messages: Sequence[dict[str, Any]],
    sampling: SamplingSettings,
    *,
    prefix: Draft | None = None,
) -> AsyncGenerator[AnswerDelta]:
    """Stream the answer to a dialogue in OpenAI's form, or its continuation after `prefix`.

    Raises ApiError before the first piece when the request is invalid.
    """
    options = {key: value for key, value in sampling.model_dump().items() if value is not None}
    options.setdefault("max_tokens", DEFAULT_TOKENS[backend.card.stage])
    if backend.card.introduction:
        options.setdefault("temperature", backend.card.introduction.temperature)
    options |= {"model": backend.card.id, "stream": True, "stream_options": {"include_usage": True}}
    options["return_token_ids"] = backend.tokenizer is not None
    stream: AsyncGenerator[Any]
    if backend.card.stage == "base":
        request = {**options, "prompt": _text_to_continue(backend, messages, prefix), "logprobs": ALTERNATIVES}
        stream = server.complete(CompletionRequest.model_validate(request))
    else:
        dialogue = list(messages)
        if prefix is not None:
            dialogue.append(_begun(prefix))
            options["continue_final_message"] = True
            options["add_generation_prompt"] = False
        request = {**options, "messages": dialogue, "logprobs": True, "top_logprobs": ALTERNATIVES}
        stream = server.chat(ChatRequest.model_validate(request))
    try:
        async for chunk in stream:
            piece = AnswerDelta(usage=chunk.usage)
            for choice in chunk.choices:
                piece.finish_reason = choice.finish_reason
                if isinstance(choice, ChatChunkChoice):
                    piece.content = choice.delta.content or ""
                    piece.reasoning = choice.delta.reasoning_content or ""
                    piece.tokens = _chat_tokens(choice)
                else:
                    piece.content = choice.text
                    piece.tokens = _completion_tokens(choice, backend.tokenizer)
            yield piece
    finally:
        await stream.aclose()


def alternative(backend: Backend, token: Token, choice: int) -> Token:
    """The token that results from taking alternative `choice` instead.

    Raises ApiError when there is none.
    """
    if not 0 <= choice < len(token[3]):
        raise ApiError(400, f"There is no alternative {choice}; this token has {len(token[3])}.", param="alternative")
    data, logprob = token[3][choice]
    if data == token[1]:
        return token
    ids = _ids(backend.tokenizer) if backend.tokenizer else {}
    return [ids.get(bytes.fromhex(data)), data, logprob, token[3]]


def shown(token: Token, special: frozenset[str] = frozenset()) -> dict[str, Any]:
    """A token for the page: text, logprob and alternatives; `ends` marks special tokens."""

    def text(data: str) -> str:
        return bytes.fromhex(data).decode("utf-8", "replace")

    others = [{"text": text(data), "logprob": lp, "ends": text(data) in special} for data, lp in token[3]]
    chosen = next((at for at, (data, _) in enumerate(token[3]) if data == token[1]), None)
    return {"text": text(token[1]), "logprob": token[2], "alternatives": others, "chosen": chosen}


def _begun(prefix: Draft) -> dict[str, Any]:
    """The answer to continue, as the last message."""
    ids = [token[0] for token in prefix.tokens]
    message: dict[str, Any] = {"role": "assistant", "content": prefix.content}
    if ids and None not in ids:
        message["token_ids"] = ids
    return message


def _text_to_continue(backend: Backend, messages: Sequence[dict[str, Any]], prefix: Draft | None) -> str | list[int]:
    text = str(next(m["content"] for m in reversed(messages) if m["role"] == "user"))
    if prefix is None:
        return text
    ids = [token[0] for token in prefix.tokens]
    if backend.tokenizer is None or None in ids:
        return text + prefix.content
    return [*backend.tokenizer.encode(text, bos=True), *ids]


def _chat_tokens(choice: ChatChunkChoice) -> list[Token]:
    """The end-of-turn token has an id but no logprobs entry: it is not part of the answer."""
    entries = choice.logprobs.content if choice.logprobs else []
    ids: Sequence[int | None] = choice.token_ids or [None for _ in entries]
    return [
        [
            id,
            bytes(entry.bytes).hex(),
            round(entry.logprob, 4),
            [[bytes(top.bytes).hex(), round(top.logprob, 4)] for top in entry.top_logprobs],
        ]
        for id, entry in zip(ids, entries, strict=False)
    ]


def _completion_tokens(choice: CompletionChunkChoice, tokenizer: Tokenizer | None) -> list[Token]:
    if choice.logprobs is None:
        return []
    named = choice.logprobs
    ids: Sequence[int | None] = choice.token_ids or [None for _ in named.tokens]
    rows = zip(ids, named.tokens, named.token_logprobs, named.top_logprobs or [None] * len(ids), strict=False)
    made: list[Token] = []
    for id, text, logprob, tops in rows:
        if tokenizer is not None and id in tokenizer.eos_ids:
            continue
        data = tokenizer.token_bytes(id) if tokenizer and id is not None else token_data(text)
        best = sorted((tops or {}).items(), key=lambda pair: -pair[1])[:ALTERNATIVES]
        others = [[data.hex() if t == text else token_data(t).hex(), round(p, 4)] for t, p in best]
        made.append([id, data.hex(), round(logprob or 0.0, 4), others])
    return made


@lru_cache(maxsize=16)
def _ids(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Token ids by their bytes; of duplicates, the first."""
    found: dict[bytes, int] = {}
    for id in range(tokenizer.vocab_size):
        found.setdefault(tokenizer.token_bytes(id), id)
    return found
