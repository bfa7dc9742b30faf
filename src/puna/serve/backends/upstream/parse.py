"""Parses other servers' responses: chunks, usage, errors and lists of models.

Plain functions over JSON objects. What is missing is filled in and what is extra is left out; what is neither raises
KeyError, TypeError or the like, which `backend` reports as the other server's fault.
"""

import json
from typing import Any, NamedTuple

from puna.core.errors import PunaError
from puna.serve.backends.upstream.request_mapping import UpstreamKind
from puna.serve.openai.objects import token_name
from puna.serve.openai.protocol import (
    ChatRequest,
    CompletionRequest,
    PromptTokensDetails,
    TokenizeResponse,
    Usage,
    now,
)
from puna.web.errors import ApiError

KEPT_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry")
_REASONS = {"": None, "function_call": "tool_calls"}
_OUR_REASONS = ("stop", "length", "tool_calls", "content_filter")
_STATUSES = (400, 404, 408, 409, 413, 415, 429, 500, 501, 503, 504)


def chat_event(event: dict[str, Any], model: str, begun: set[int], request: ChatRequest) -> dict[str, Any]:
    """A chunk of theirs as one of ours.

    begun: indices of the choices that have started, updated here.
    """
    choices = []
    for choice in event.get("choices") or ():
        index = choice.get("index") or 0
        delta = {name: value for name, value in (choice.get("delta") or {}).items() if value not in (None, [])}
        if "reasoning" in delta:  # vLLM's newer name for it
            delta.setdefault("reasoning_content", delta["reasoning"])
        delta.pop("role", None)
        for number, call in enumerate(delta.get("tool_calls", ())):
            call.setdefault("index", number)
            call["function"] = call.get("function") or {}
        if index not in begun:
            begun.add(index)
            delta = {"role": "assistant", **({} if "tool_calls" in delta else {"content": ""}), **delta}
        named = choice.get("logprobs")
        choices.append(
            {
                "index": index,
                "delta": delta,
                "logprobs": _chat_logprobs(named, request.top_logprobs or 0) if named and request.logprobs else None,
                "finish_reason": _reason(choice.get("finish_reason")),
                **_ids(choice, "token_ids"),
            }
        )
    return {**_head(event, "chatcmpl", model), "choices": choices, **_ids(event, "prompt_token_ids")}


def completion_event(
    event: dict[str, Any], model: str, offsets: dict[int, int], request: CompletionRequest
) -> dict[str, Any]:
    """The same for completions. offsets: characters of each choice so far, updated here."""
    choices = []
    for choice in event.get("choices") or ():
        index, text = choice.get("index") or 0, choice.get("text") or ""
        named = choice.get("logprobs")
        choices.append(
            {
                "index": index,
                "text": text,
                "logprobs": _legacy_logprobs(named, offsets.get(index, 0), request.logprobs or 0)
                if named and request.logprobs is not None
                else None,
                "finish_reason": _reason(choice.get("finish_reason")),
                **_ids(choice, "token_ids"),
                **_ids(choice, "prompt_token_ids"),
            }
        )
        offsets[index] = offsets.get(index, 0) + len(text)
    return {**_head(event, "cmpl", model), "choices": choices}


def _head(event: dict[str, Any], prefix: str, model: str) -> dict[str, Any]:
    head = {"id": str(event.get("id") or prefix), "created": int(event.get("created") or now()), "model": model}
    head["object"] = "chat.completion.chunk" if prefix == "chatcmpl" else "text_completion"
    if isinstance(event.get("system_fingerprint"), str):
        head["system_fingerprint"] = event["system_fingerprint"]
    if event.get("usage"):
        used = {name: value for name, value in event["usage"].items() if value is not None}
        used.setdefault("completion_tokens", 0)
        used.setdefault("total_tokens", used["prompt_tokens"] + used["completion_tokens"])
        for name, part in (
            ("prompt_tokens_details", "cached_tokens"),
            ("completion_tokens_details", "reasoning_tokens"),
        ):
            if name in used:
                used[name] = {part: used[name].get(part) or 0}
        head["usage"] = used
    return head


def _ids(holder: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: holder[name]} if holder.get(name) is not None else {}


def _reason(given: str | None) -> str | None:
    if given in ("abort", "error"):
        raise ApiError(502, "The upstream server aborted its answer.", code="upstream_failed")
    reason = _REASONS.get(given, given) if given is not None else None
    return reason if reason is None or reason in _OUR_REASONS else "stop"


def _chat_logprobs(named: dict[str, Any], most: int) -> dict[str, Any]:
    entries = []
    for entry in named.get("content") or ():
        tops = [_token(top) for top in entry.get("top_logprobs") or ()]
        entries.append({**_token(entry), "top_logprobs": tops[:most]})
    return {"content": entries, "refusal": None}


def _token(entry: dict[str, Any]) -> dict[str, Any]:
    data = entry.get("bytes")
    return {
        "token": entry["token"],
        "logprob": entry["logprob"],
        "bytes": list(entry["token"].encode("utf-8", "replace")) if data is None else data,
    }


def _legacy_logprobs(named: dict[str, Any], offset: int, most: int) -> dict[str, Any]:
    """Logprobs in the older format, also from llama-server, which sends chat's."""
    if "content" not in named:
        if not named.get("text_offset"):
            named = {**named, "text_offset": _offsets(named["tokens"], offset)}
        return {name: named.get(name) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    entries = named["content"] or []
    tops = []
    for entry in entries:
        likeliest = {_name(top): top["logprob"] for top in (entry.get("top_logprobs") or ())[:most]}
        tops.append({**likeliest, _name(entry): entry["logprob"]})
    tokens = [_name(entry) for entry in entries]
    return {
        "tokens": tokens,
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": tops,
        "text_offset": _offsets([entry["token"] for entry in entries], offset),
    }


def _name(entry: dict[str, Any]) -> str:
    return token_name(bytes(_token(entry)["bytes"]))


def _offsets(tokens: list[str], offset: int) -> list[int]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return offsets


def whole_usage(told: list[Usage], kind: UpstreamKind, request: ChatRequest | CompletionRequest) -> Usage:
    """The usage of a request from its stream; llama-server sends one for each choice."""
    if not told:
        return Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)
    if kind != "llama.cpp" or len(told) == 1:
        last = told[-1]
        if request.max_tokens == 0:  # vLLM generates one that it does not return
            last.completion_tokens, last.total_tokens = 0, last.prompt_tokens
        return last
    prompt, completion = (
        sum(one.prompt_tokens for one in told) // (request.n or 1),
        sum(one.completion_tokens for one in told),
    )
    cached = [one.prompt_tokens_details.cached_tokens for one in told if one.prompt_tokens_details]
    usage = Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
    if cached:
        usage.prompt_tokens_details = PromptTokensDetails(cached_tokens=min(sum(cached), prompt))
    return usage


# -- errors and models ------------------------------------------------------------------------------------------------


class UpstreamError(NamedTuple):
    """An error of another server. status: 0 when its body does not say."""

    status: int
    message: str
    type: str | None
    param: str | None
    code: str | None


def error_of(value: Any) -> UpstreamError:
    """The error in a body, in OpenAI's, vLLM's older, llama.cpp's or FastAPI's format.

    Raises ValueError.
    """
    found = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(found, str):
        found = {"message": found}
    if not isinstance(found, dict):
        raise ValueError("no error")
    detail = found.get("message") or found.get("detail")
    if not detail:
        raise ValueError("no error")
    message = (detail if isinstance(detail, str) else json.dumps(detail))[:2000]
    kind, code, param = found.get("type"), found.get("code"), found.get("param")
    status = code if isinstance(code, int) else int(code) if isinstance(code, str) and code.isdigit() else 0
    if kind == "exceed_context_size_error" or "maximum context length" in message:
        kind, code = None, "context_length_exceeded"
    return UpstreamError(
        status,
        message,
        kind if isinstance(kind, str) and kind.islower() else None,
        param if isinstance(param, str) else None,
        code if isinstance(code, str) and not code.isdigit() else None,
    )


def status_of(upstream_status: int) -> int:
    """The status to answer with for a status of the other server."""
    if upstream_status in _STATUSES:
        return upstream_status
    return 400 if 400 <= upstream_status < 500 else 502


def upstream_model_name(models: list[dict[str, Any]], wanted: str, kind: UpstreamKind, url: str) -> str:
    """The name of a model on a server: the name itself, or a path that ends with it.

    wanted: "" for the first.

    models: its list, empty when it could not be had; then the name is believed. Raises PunaError when it is not there.
    """
    names = [str(model["id"]) for model in models if "id" in model]
    if not names and not wanted:
        raise PunaError(f"{url} does not say which models it has.", "Name one: puna serve MODEL --upstream …")
    if not names or wanted in names:
        return wanted
    last = wanted.rstrip("/").rpartition("/")[2]
    same = [name for name in names if name.rstrip("/").rpartition("/")[2] == last]
    if same:
        return same[0]
    if not wanted or kind == "llama.cpp":  # which has one model, whatever its name
        return names[0]
    raise PunaError(f"{url} has no model '{wanted}'.", f"It has: {', '.join(names[:10])}.")


def context_of(models: list[dict[str, Any]], name: str) -> int | None:
    """The context length of a model in their list, if given."""
    found = next((model for model in models if model.get("id") == name), models[0] if len(models) == 1 else {})
    meta = found.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    told = (found.get("max_model_len"), found.get("context_length"), meta.get("n_ctx"), meta.get("n_ctx_train"))
    return next((value for value in told if isinstance(value, int) and value > 0), None)


def llama_tokens(answer: dict[str, Any], context: int) -> TokenizeResponse:
    """llama-server's tokens, with or without their texts (bytes where they are not text)."""
    rows = answer["tokens"]
    if not rows or isinstance(rows[0], int):
        return TokenizeResponse(count=len(rows), max_model_len=context, tokens=rows)
    texts = [
        row["piece"] if isinstance(row["piece"], str) else bytes(row["piece"]).decode("utf-8", "replace")
        for row in rows
    ]
    return TokenizeResponse(
        count=len(rows), max_model_len=context, tokens=[row["id"] for row in rows], token_strs=texts
    )
