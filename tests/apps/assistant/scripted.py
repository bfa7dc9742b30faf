"""A backend that says what it was told to say, word by word, with alternatives to each word."""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, Literal

from puna.serve.backends.base import Health
from puna.serve.openai.protocol import (
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatRequest,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogprobs,
    CompletionRequest,
    Delta,
    ModelCard,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from puna.web.errors import ApiError

OTHERS = (" perhaps", " indeed", " the", " never", "\n", " tide")


class Scripted:
    """One model. script: from the last user's text to the answer; seconds: how long each word takes."""

    tokenizer = None
    capacity = 64

    def __init__(
        self,
        name: str,
        script: Callable[[str], str],
        *,
        stage: Literal["base", "chat"] = "chat",
        seconds: float = 0.0,
    ) -> None:
        self.card = ModelCard(id=name, stage=stage, max_model_len=8192, weight_version=3)
        self.script, self.seconds = script, seconds
        self.asked: list[ChatRequest | CompletionRequest] = []
        self.error: ApiError | None = None

    async def chat(self, request: ChatRequest, *, deadline_seconds: float | None = None) -> AsyncGenerator[ChatChunk]:
        self.asked.append(request)
        text = next(m.text() for m in reversed(request.messages) if m.role == "user")
        begun = request.messages[-1].text() if request.continue_final_message else ""
        async for word, reason in self._words(text, begun, request.max_tokens):
            logprobs = ChatLogprobs(content=[_named(word)])
            choice = ChatChunkChoice(
                index=0, delta=Delta(content=word), logprobs=logprobs, finish_reason=reason, token_ids=None
            )
            yield ChatChunk(id="x", created=0, model=self.card.id, choices=[choice])
        yield ChatChunk(id="x", created=0, model=self.card.id, choices=[], usage=self._usage())

    async def complete(
        self, request: CompletionRequest, *, deadline_seconds: float | None = None
    ) -> AsyncGenerator[CompletionChunk]:
        self.asked.append(request)
        async for word, reason in self._words(str(request.prompt), "", request.max_tokens):
            named = _named(word)
            best = {top.token: top.logprob for top in named.top_logprobs}
            logprobs = CompletionLogprobs(
                tokens=[word], token_logprobs=[named.logprob], top_logprobs=[best], text_offset=[0]
            )
            choice = CompletionChunkChoice(index=0, text=word, logprobs=logprobs, finish_reason=reason)
            yield CompletionChunk(id="x", created=0, model=self.card.id, choices=[choice])
        yield CompletionChunk(id="x", created=0, model=self.card.id, choices=[], usage=self._usage())

    async def _words(self, text: str, begun: str, most: int | None) -> AsyncGenerator[tuple[str, Any]]:
        if self.error is not None:
            raise self.error
        answer = self.script(text)
        if begun:
            answer = answer[len(begun) :] if answer.startswith(begun) else " and so it goes on."
        words = re.findall(r"\s*\S+\s*?|\s+", answer) or [""]
        self._made = 0
        for word in words:
            await asyncio.sleep(self.seconds)
            self._made += 1
            last = self._made == len(words)
            cut = self._made == most and not last
            yield word, "stop" if last else "length" if cut else None
            if cut:
                return

    def _usage(self) -> Usage:
        return Usage(prompt_tokens=12, completion_tokens=self._made, total_tokens=12 + self._made)

    def stats(self) -> dict[str, Any]:
        return {}

    def health(self) -> Health:
        return Health(True, True, True)

    async def close(self) -> None:
        pass

    async def embed(self, request: Any) -> Any:
        raise ApiError(400, "no")

    tokenize = detokenize = embed


def _named(word: str) -> TokenLogprob:
    """The word, likely or not by its letters, and others beside it."""
    sure = (0.97, 0.99, 0.93, 0.72, 0.96, 0.45, 0.98, 0.91, 0.22, 0.95, 0.07)[sum(word.encode()) % 11]
    others = list(_shares(1 - sure))
    tops = sorted([(word, sure), *zip(OTHERS, others, strict=False)], key=lambda pair: -pair[1])
    made = [TopLogprob(token=t, logprob=math.log(p), bytes=list(t.encode())) for t, p in tops if p > 1e-6]
    return TokenLogprob(token=word, logprob=math.log(sure), bytes=list(word.encode()), top_logprobs=made)


def _shares(left: float) -> Iterator[float]:
    for part in (0.5, 0.2, 0.12, 0.08, 0.06, 0.04):
        yield left * part
