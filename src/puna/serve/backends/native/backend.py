"""Puna's own engine as a backend."""

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, Literal

import torch

from puna.engine.cpu.fused_model import packed_matrices, weight_shapes
from puna.engine.generate import Engine
from puna.engine.request import TokenOutput
from puna.serve.backends.base import Health
from puna.serve.backends.native.engine_client import Generation, in_thread
from puna.serve.backends.native.preprocess import (
    FREE,
    Prepared,
    dialogue_ids,
    offered,
    prepare_chat,
    prepare_completion,
)
from puna.serve.backends.native.streaming import ChatStreamWriter, CompletionStreamWriter, usage
from puna.serve.backends.native.thread_bridge import ThreadBridge
from puna.serve.openai.objects import Introduction, construct
from puna.serve.openai.protocol import (
    ChatChunk,
    ChatChunkChoice,
    ChatRequest,
    CompletionChunk,
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    ModelCard,
    TokenizeRequest,
    TokenizeResponse,
    new_id,
    now,
)
from puna.serve.settings import Settings
from puna.text.tokenizer import Tokenizer
from puna.version import __version__
from puna.web.errors import ApiError


class NativeBackend:
    """An engine and the name it is served by. The engine is closed with the backend."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        settings: Settings,
        *,
        stage: Literal["base", "chat"] = "chat",
        root: str = "",
        introduction: Introduction | None = None,
    ) -> None:
        self.engine, self.settings = engine, settings
        self.capacity = engine.max_batch
        self.context = engine.model.config.max_position_embeddings
        self.choices = engine.describe()  # allocates the KV cache, so too little memory fails at startup
        """What was chosen at loading, one sentence each."""
        self._card = ModelCard(
            id=name,
            max_model_len=self.context,
            stage=stage,
            parameters=sum(math.prod(shape) for shape in weight_shapes(engine.model).values()),
            root=root or None,
            introduction=introduction,
        )
        self._fingerprint = _fingerprint(engine, name)
        self._workers = ThreadPoolExecutor(4, thread_name_prefix="puna-prepare")
        self._bridge: ThreadBridge | None = None
        self._closed = False

    @property
    def card(self) -> ModelCard:
        return self._card.model_copy(update={"weight_version": self.engine.weight_version})

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.engine.tokenizer

    async def chat(self, request: ChatRequest, *, deadline_seconds: float | None = None) -> AsyncGenerator[ChatChunk]:
        """See Backend."""
        tokenizer = self._tokenizer()
        generation = self._generation(deadline_seconds)
        try:
            prepared = await self._started(generation, lambda: [prepare_chat(request, tokenizer, context=self.context)])
            prompt = prepared[0]
            writers = [
                ChatStreamWriter(
                    self.engine,
                    index,
                    tools=offered(request) is not None,
                    in_call=prompt.in_call,
                    one_call=request.parallel_tool_calls is False,
                    logprobs=bool(request.logprobs),
                    token_ids=request.return_token_ids,
                )
                for index in range(request.texts)
            ]
            chunk = _chat_chunks(new_id("chatcmpl"), self._card.id, self.fingerprint)
            yield chunk([])
            first = True
            async for steps in generation.batches():
                for index, group in _by_text(steps, request.texts):
                    for choice in writers[index].write(group):
                        piece = chunk([choice])
                        if first and request.return_token_ids:
                            piece.prompt_token_ids = prompt.ids
                        first = False
                        yield piece
            end = chunk([])
            end.usage = usage(
                len(prompt.ids),
                generation.requests[0].cached_tokens,
                sum(writer.tokens for writer in writers),
                sum(writer.reasoning_tokens for writer in writers),
            )
            yield end
        finally:
            generation.close()

    async def complete(
        self, request: CompletionRequest, *, deadline_seconds: float | None = None
    ) -> AsyncGenerator[CompletionChunk]:
        """See Backend."""
        generation = self._generation(deadline_seconds)
        try:
            prepared = await self._started(
                generation, lambda: prepare_completion(request, self.tokenizer, context=self.context)
            )
            n = request.n or 1
            writers = [
                CompletionStreamWriter(
                    self.engine,
                    number * n + i,
                    one.ids,
                    logprobs=request.logprobs,
                    token_ids=request.return_token_ids,
                    echo=bool(request.echo),
                )
                for number, one in enumerate(prepared)
                for i in range(n)
            ]
            head = {
                "id": new_id("cmpl"),
                "object": "text_completion",
                "created": now(),
                "model": self._card.id,
                "system_fingerprint": self.fingerprint,
            }
            yield construct(CompletionChunk, **head, choices=[])
            async for steps in generation.batches():
                for index, group in _by_text(steps, n):
                    scored = generation.requests[index // n].prompt_logprobs
                    for choice in writers[index].write(group, scored):
                        yield construct(CompletionChunk, **head, choices=[choice])
            if request.max_tokens == 0:
                for writer, scored_by in zip(writers, (r for r in generation.requests for _ in range(n)), strict=True):
                    yield construct(CompletionChunk, **head, choices=writer.write([], scored_by.prompt_logprobs))
            count = usage(
                sum(len(one.ids) for one in prepared),
                sum(asked.cached_tokens for asked in generation.requests),
                sum(writer.tokens for writer in writers),
            )
            yield construct(CompletionChunk, **head, choices=[], usage=count)
        finally:
            generation.close()

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """See Backend."""
        from puna.serve.backends.native.embeddings import embed

        return await in_thread(
            self._workers, self.settings.request_seconds, lambda: embed(self.engine, request, self._card.id)
        )

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResponse:
        """See Backend."""
        tokenizer = self._tokenizer()

        def work() -> TokenizeResponse:
            if request.messages is not None:
                ids = dialogue_ids(request, tokenizer)
            else:
                ids = tokenizer.encode(request.prompt or "", bos=request.add_special_tokens)
            answer = TokenizeResponse(count=len(ids), max_model_len=self.context, tokens=ids)
            if request.return_token_strs:
                answer.token_strs = [tokenizer.shown_bytes(id).decode("utf-8", "replace") for id in ids]
            return answer

        return await in_thread(self._workers, self.settings.prepare_seconds, work)

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse:
        """See Backend."""
        tokenizer = self._tokenizer()
        wrong = next((id for id in request.tokens if id >= tokenizer.vocab_size), None)
        if wrong is not None:
            raise ApiError(
                400, f"There is no token {wrong}: the last one is {tokenizer.vocab_size - 1}.", param="tokens"
            )
        return DetokenizeResponse(prompt=tokenizer.decode(request.tokens))

    def stats(self) -> dict[str, Any]:
        """See Engine.stats."""
        return self.engine.stats()

    def health(self) -> Health:
        """See Backend."""
        if self._closed:
            return Health(False, False, False, "The engine is closed.")
        if self.engine.stuck(self.settings.stuck_seconds):
            return Health(True, False, False, "The engine is busy but makes no progress.")
        return Health(True, True, True)

    async def close(self) -> None:
        """Stop the engine."""
        self._closed = True
        self._workers.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.engine.close)

    @property
    def fingerprint(self) -> str:
        """Identifies software and weights: if equal, a seed and request give the same text."""
        return f"{self._fingerprint}-{self.engine.weight_version}"

    def _tokenizer(self) -> Tokenizer:
        if self.engine.tokenizer is None:
            raise ApiError(400, "This model has no tokenizer: it supports only /v1/completions with token ids.")
        return self.engine.tokenizer

    def _generation(self, deadline_seconds: float | None) -> Generation:
        loop = asyncio.get_running_loop()
        if self._bridge is None or self._bridge.loop is not loop:
            self._bridge = ThreadBridge(loop)
        deadline = None if deadline_seconds is None else monotonic() + deadline_seconds
        return Generation(self.engine, self._bridge, deadline=deadline, buffer=self.settings.stream_buffer)

    async def _started(self, generation: Generation, prepare: Callable[[], list[Prepared]]) -> list[Prepared]:
        def work() -> list[Prepared]:
            prepared = [self._fitting(one) for one in prepare()]
            generation.start(prepared)
            return prepared

        return await in_thread(self._workers, self.settings.prepare_seconds, work)

    def _fitting(self, one: Prepared) -> Prepared:
        """Limit a request without max_tokens to what the KV cache can hold."""
        if one.params.max_tokens != FREE:
            return one
        stats = self.engine.stats()
        pages = stats["blocks"]
        room = sum(pages[name] for name in ("free", "cached", "held")) * stats["block_size"] - len(one.ids)
        return one._replace(params=replace(one.params, max_tokens=max(min(room, self.context - len(one.ids)), 1)))


def _by_text(steps: list[tuple[int, TokenOutput]], n: int) -> list[tuple[int, list[TokenOutput]]]:
    """Group steps by the index of their sequence, in order of arrival."""
    if len(steps) == 1:
        number, step = steps[0]
        return [(number * n + step.sequence, [step])]
    groups: dict[int, list[TokenOutput]] = {}
    for number, step in steps:
        groups.setdefault(number * n + step.sequence, []).append(step)
    return list(groups.items())


def _chat_chunks(id: str, model: str, fingerprint: str) -> Callable[[list[ChatChunkChoice]], ChatChunk]:
    return partial(_chat_chunk, id, now(), model, fingerprint)


def _chat_chunk(id: str, created: int, model: str, fingerprint: str, choices: list[ChatChunkChoice]) -> ChatChunk:
    return construct(
        ChatChunk,
        id=id,
        object="chat.completion.chunk",
        created=created,
        model=model,
        system_fingerprint=fingerprint,
        choices=choices,
    )


def _fingerprint(engine: Engine, name: str) -> str:
    """Hash a few numbers of every weight, or of its product with ones: fast, and distinct."""
    digest = hashlib.sha256(f"{name} {__version__}".encode())
    for key, parameter in engine.model.named_parameters():
        flat = parameter.detach().reshape(-1)
        few = flat[:: max(len(flat) // 16, 1)][:16].double().cpu()
        digest.update(f"{key} {tuple(parameter.shape)} {parameter.dtype} {few.tolist()}".encode())
    for matrix in packed_matrices(engine.model):
        row = torch.ones(1, matrix.columns, dtype=engine.model.head_weight.dtype)
        digest.update(f"{matrix.kind} {matrix(row)[0, :16].tolist()}".encode())
    return f"puna-{__version__}-{digest.hexdigest()[:10]}"
