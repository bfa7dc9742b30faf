"""Turns the engine's steps into chunks of OpenAI's streams.

There is one writer a sequence. It takes the steps that arrived together and returns at most a few chunks; so when a
reader or the event loop is behind, chunks get longer instead of more numerous.
"""

from collections.abc import Sequence
from typing import Any

from puna.engine.generate import Engine
from puna.engine.request import Logprob, TokenOutput
from puna.serve.backends.native.output_parser import OutputParser, Piece
from puna.serve.openai.objects import construct, token_name
from puna.serve.openai.protocol import (
    ChatChunkChoice,
    ChatLogprobs,
    CompletionChunkChoice,
    CompletionLogprobs,
    CompletionTokensDetails,
    Delta,
    FinishReason,
    FunctionCallDelta,
    PromptTokensDetails,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
    new_id,
)
from puna.text.detokenizer import IncrementalDetokenizer


class ChatStreamWriter:
    """One choice of a chat completion. one_call: drop everything after the first call."""

    def __init__(
        self,
        engine: Engine,
        index: int,
        *,
        tools: bool,
        in_call: bool = False,
        one_call: bool = False,
        logprobs: bool = False,
        token_ids: bool = False,
    ) -> None:
        self._engine, self._index = engine, index
        self._parser = OutputParser(tools=tools or in_call, in_call=in_call)
        self._one_call, self._logprobs, self._token_ids = one_call or in_call, logprobs, token_ids
        self._begun = False
        self.tokens = 0
        self.reasoning_tokens = 0

    def write(self, steps: Sequence[TokenOutput]) -> list[ChatChunkChoice]:
        """The choices for these steps, each for a chunk of its own."""
        choices = []
        if not self._begun:
            self._begun = True
            choices.append(self._choice(construct(Delta, role="assistant", content="")))
        pieces: list[Piece] = []
        for step in steps:
            self.tokens += 1
            self.reasoning_tokens += self._parser.reasoning
            if step.text:
                pieces += self._parser.push(step.text)
        reason = steps[-1].finish_reason
        if reason is not None:
            pieces += self._parser.close(cut=reason == "length")
        deltas = self._deltas(pieces)
        if not deltas and (reason is not None or self._logprobs or self._token_ids):
            deltas = [construct(Delta)]
        new = [self._choice(delta) for delta in deltas]
        if new and self._logprobs:
            new[0].logprobs = construct(ChatLogprobs, content=self._named(steps), refusal=None)
        if new and self._token_ids:
            new[0].token_ids = [step.id for step in steps]
        if reason is not None:
            new[-1].finish_reason = _reason(reason) if reason == "length" or not self._parser.calls else "tool_calls"
        return choices + new

    def _choice(self, delta: Delta) -> ChatChunkChoice:
        return construct(ChatChunkChoice, index=self._index, delta=delta, logprobs=None, finish_reason=None)

    def _deltas(self, pieces: Sequence[Piece]) -> list[Delta]:
        deltas: list[Delta] = []
        last = ""
        number = self._parser.calls - sum(piece.kind == "call" for piece in pieces)
        for piece in pieces:
            if self._one_call and (number > 0):
                break
            if piece.kind == "call":
                function = construct(FunctionCallDelta, name=piece.name, arguments="")
                first = construct(ToolCallDelta, index=number, id=new_id("call"), type="function", function=function)
                rest = construct(
                    ToolCallDelta, index=number, function=construct(FunctionCallDelta, arguments=piece.text)
                )
                deltas += [construct(Delta, tool_calls=[first]), construct(Delta, tool_calls=[rest])]
                number += 1
            elif piece.kind == last:
                field = "content" if last == "content" else "reasoning_content"
                setattr(deltas[-1], field, getattr(deltas[-1], field) + piece.text)
            elif piece.kind == "content":
                deltas.append(construct(Delta, content=piece.text))
            else:
                deltas.append(construct(Delta, reasoning_content=piece.text))
            last = piece.kind
        return deltas

    def _named(self, steps: Sequence[TokenOutput]) -> list[TokenLogprob]:
        entries = []
        for step in steps:
            if step.finish_reason == "stop" and step.id in self._engine.end_ids:
                continue  # the end of the turn is not part of the answer
            data = self._engine.token_bytes(step.id)
            tops = [_top(top.bytes, top.logprob) for top in step.top]
            entries.append(
                construct(
                    TokenLogprob,
                    token=data.decode("utf-8", "replace"),
                    logprob=step.logprob,
                    bytes=list(data),
                    top_logprobs=tops,
                )
            )
        return entries


class CompletionStreamWriter:
    """One choice of a completion. prompt_ids: shown with `echo`."""

    def __init__(
        self,
        engine: Engine,
        index: int,
        prompt_ids: Sequence[int],
        *,
        logprobs: int | None,
        token_ids: bool,
        echo: bool,
    ) -> None:
        self._engine, self._index, self._prompt = engine, index, list(prompt_ids)
        self._logprobs, self._token_ids, self._echo = logprobs, token_ids, echo
        self._text = IncrementalDetokenizer(engine.tokenizer, skip_special=True) if engine.tokenizer else None
        self._offset = 0
        self._begun = False
        self.tokens = 0

    def write(
        self, steps: Sequence[TokenOutput], prompt_logprobs: Sequence[tuple[Logprob, ...] | None] = ()
    ) -> list[CompletionChunkChoice]:
        """The choice for the next chunk, if there is anything to send.

        prompt_logprobs: for the first.
        """
        begins, self._begun = not self._begun, True
        text = "".join(step.text for step in steps)
        self.tokens += len(steps)
        rows: list[tuple[int, float | None, Sequence[Logprob]]] = []
        if begins:
            shown = self._prompt_text()
            if self._echo:
                text = shown + text
                for id, row in zip(self._prompt, prompt_logprobs, strict=False):
                    # A row is the token itself, then the likeliest alternatives.
                    rows.append((id, row[0].logprob, row[1:]) if row else (id, None, ()))
        rows += [(step.id, step.logprob, step.top) for step in steps]
        reason = steps[-1].finish_reason if steps else "length"
        choice = construct(
            CompletionChunkChoice, index=self._index, text=text, logprobs=None, finish_reason=_reason(reason)
        )
        if self._logprobs is not None:
            choice.logprobs = self._named(rows, echoed=begins and self._echo)
        if self._token_ids:
            choice.token_ids = [step.id for step in steps]
            if begins:
                choice.prompt_token_ids = self._prompt
        worth_sending = text or reason is not None or self._logprobs is not None or self._token_ids
        return [choice] if worth_sending else []

    def _prompt_text(self) -> str:
        """The prompt as text, up to its last complete character."""
        if self._text is None:
            return ""
        text = "".join(map(self._text.push, self._prompt))
        self._offset = len(text) if self._echo else 0
        return text

    def _named(
        self, rows: Sequence[tuple[int, float | None, Sequence[Logprob]]], *, echoed: bool
    ) -> CompletionLogprobs:
        tokens, logprobs, tops, offsets = [], [], [], []
        if echoed and self._engine.tokenizer:
            self._text, self._offset = IncrementalDetokenizer(self._engine.tokenizer, skip_special=True), 0
        for id, logprob, likeliest in rows:
            token = token_name(self._engine.token_bytes(id))
            tokens.append(token)
            logprobs.append(logprob)
            best: dict[str, float] = {}
            for top in likeliest:
                best.setdefault(token_name(top.bytes), top.logprob)
            if logprob is not None:
                best[token] = max(best.get(token, logprob), logprob)
            tops.append(best if logprob is not None else None)
            offsets.append(self._offset)
            self._offset += len(self._text.push(id)) if self._text else 0
        return construct(
            CompletionLogprobs, tokens=tokens, token_logprobs=logprobs, top_logprobs=tops, text_offset=offsets
        )


def usage(prompt: int, cached: int, completion: int, reasoning: int = 0) -> Usage:
    """The usage of a request, summed over its sequences."""
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning),
    )


def _reason(reason: Any) -> FinishReason | None:
    return None if reason is None else "length" if reason == "length" else "stop"


def _top(data: bytes, logprob: float) -> TopLogprob:
    return construct(TopLogprob, token=data.decode("utf-8", "replace"), logprob=logprob, bytes=list(data))
