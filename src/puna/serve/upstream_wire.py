"""Our protocol in the words of other servers, and theirs in ours. Plain functions over JSON objects.

What a server is known not to understand is refused here instead of being sent and ignored: `top_k` sent to OpenAI would
be answered as if it had been kept. What is neutral (`top_k` 0) is left out.
"""

import json
from typing import Any, Literal, NamedTuple

from puna.core.errors import PunaError
from puna.serve.errors import ApiError
from puna.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Message,
    NamedTool,
    TokenizeResponse,
    now,
)

Kind = Literal["vllm", "llama.cpp", "openai"]
KEPT_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry")

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "repetition_penalty": (None, 1),
    "ignore_eos": (False,),
    "structured_outputs": (None,),
    "return_token_ids": (False,),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
}
_NAMES: dict[Kind, dict[str, str]] = {
    "vllm": {name: name for name in _NEUTRAL},
    "llama.cpp": {
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repeat_penalty",
        "ignore_eos": "ignore_eos",
        "structured_outputs": "structured_outputs",
        "continue_final_message": "continue_final_message",
        "add_generation_prompt": "add_generation_prompt",
    },
    "openai": {},
}
# llama-server has tastes of its own where OpenAI's API has none (top_k 40, min_p 0.05, temperature 0.8).
_LLAMA_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
_REASONS = {"": None, "function_call": "tool_calls"}
_OUR_REASONS = ("stop", "length", "tool_calls", "content_filter")
_STATUSES = (400, 404, 408, 409, 413, 415, 429, 500, 501, 503, 504)


# -- requests --------------------------------------------------------------------------------------------------------


def chat_body(request: ChatRequest, kind: Kind, model: str) -> dict[str, Any]:
    """What a server of this kind is sent. Raises ApiError 400 for what it does not know."""
    body = _body(request, kind, model)
    body["messages"] = [_message(message, kind) for message in request.messages]
    if isinstance(request.tool_choice, NamedTool):
        name = request.tool_choice.function.name
        body["tool_choice"] = {"type": "function", "function": {"name": name}}
        if kind == "llama.cpp":  # it takes a word only
            body["tool_choice"] = "required"
            body["tools"] = [tool for tool in body["tools"] if tool["function"]["name"] == name]
    if request.continue_final_message:
        body["add_generation_prompt"] = False
    if kind == "llama.cpp":
        limit = body.pop("max_completion_tokens", None) or request.max_tokens
        if limit is not None:
            body["max_tokens"] = limit
        if request.logprobs:  # none beside it would mean none at all
            body["top_logprobs"] = max(request.top_logprobs or 0, 1)
    return body


def completion_body(request: CompletionRequest, kind: Kind, model: str) -> dict[str, Any]:
    """The same for completions."""
    body = _body(request, kind, model)
    body["max_tokens"] = 16 if request.max_tokens is None else request.max_tokens
    if kind == "llama.cpp":
        if request.echo:
            raise ApiError(400, "echo: llama.cpp cannot give the prompt back.", param="echo", code="not_supported")
        body.pop("echo", None)
        if request.logprobs is not None:
            body["logprobs"] = max(request.logprobs, 1)
        form = body.pop("response_format", None)  # known to its chat only
        if form and form["type"] == "json_object":
            body["json_schema"] = {"type": "object"}
        elif form and form["type"] == "json_schema":
            body["json_schema"] = form["json_schema"].get("schema") or {"type": "object"}
    return body


def _body(request: GenerationRequest, kind: Kind, model: str) -> dict[str, Any]:
    given = request.model_dump(exclude_unset=True, by_alias=True, exclude_none=True)
    body: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _NEUTRAL:
            body[name] = value
        elif name in _NAMES[kind]:
            body[_NAMES[kind][name]] = value
        elif value not in _NEUTRAL[name]:
            raise ApiError(400, f"{name}: the {kind} backend does not know it.", param=name, code="not_supported")
    if request.response_format is not None:
        body["response_format"] = request.response_format.model_dump(by_alias=True, exclude_none=True)
    if kind == "llama.cpp":
        body = {**_LLAMA_DEFAULTS, **body}
        if request.seed is not None:
            body["seed"] = request.seed % (2**32 - 1)  # the number left out means: any
        if request.structured_outputs is not None:
            body |= _llama_structure(body.pop("structured_outputs"))
    # One way of answering. Who did not ask for a stream gets its chunks put together.
    return {**body, "model": model, "stream": True, "stream_options": {"include_usage": True}}


def _llama_structure(wanted: dict[str, Any]) -> dict[str, Any]:
    if "choice" in wanted:
        return {"grammar": "root ::= " + " | ".join(json.dumps(word, ensure_ascii=False) for word in wanted["choice"])}
    if "json" in wanted:
        schema = wanted["json"]
        try:
            return {"json_schema": json.loads(schema) if isinstance(schema, str) else schema}
        except ValueError:
            raise ApiError(400, "structured_outputs.json is no JSON.", param="structured_outputs") from None
    raise ApiError(
        400,
        f"structured_outputs: the llama.cpp backend does not know {next(iter(wanted))}.",
        param="structured_outputs",
        code="not_supported",
    )


def _message(message: Message, kind: Kind) -> dict[str, Any]:
    told = message.model_dump(exclude_unset=True, exclude_none=True)
    if told.pop("token_ids", None) is not None and not (message.content or message.tool_calls):
        raise ApiError(400, "messages: token_ids mean something only to Puna's own engine.", param="messages")
    if isinstance(message.content, list):
        told["content"] = [{"type": "text", "text": part.text} for part in message.content]
    for call in told.get("tool_calls", ()):
        call["type"] = "function"
    if kind == "openai":
        told.pop("reasoning_content", None)
    elif message.role == "developer":
        told["role"] = "system"  # as our own templates have it
    if "tool_calls" not in told:
        told.setdefault("content", "")
    return told


# -- answers ---------------------------------------------------------------------------------------------------------


def chat_event(event: dict[str, Any], model: str, begun: set[int], request: ChatRequest) -> dict[str, Any]:
    """One chunk of theirs as one of ours. begun: indices of the texts that have begun, kept up to date."""
    choices = []
    for choice in event.get("choices") or ():
        index = choice.get("index") or 0
        delta = {name: value for name, value in (choice.get("delta") or {}).items() if value not in (None, [])}
        if "reasoning" in delta:  # vLLM's newer name
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
    """The same for completions. offsets: characters of each text so far, kept up to date."""
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
        raise ApiError(502, "The upstream server gave up on its answer.", code="upstream_failed")
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
    """The older form, also of what llama-server sends, which is chat's."""
    if "content" not in named:
        if not named.get("text_offset"):
            named = {**named, "text_offset": _offsets(named["tokens"], offset)}
        return {name: named.get(name) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    entries = named["content"] or []
    tops = []
    for entry in entries:
        likeliest = {top["token"]: top["logprob"] for top in (entry.get("top_logprobs") or ())[:most]}
        tops.append({**likeliest, entry["token"]: entry["logprob"]})
    tokens = [entry["token"] for entry in entries]
    return {
        "tokens": tokens,
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": tops,
        "text_offset": _offsets(tokens, offset),
    }


def _offsets(tokens: list[str], offset: int) -> list[int]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return offsets


# -- failures and facts ----------------------------------------------------------------------------------------------


class TheirError(NamedTuple):
    """A failure in another server's words. status: 0 when its body does not say."""

    status: int
    message: str
    type: str | None
    param: str | None
    code: str | None


def error_of(value: Any) -> TheirError:
    """What a body says went wrong: OpenAI's form, vLLM's older one, llama.cpp's, FastAPI's. Raises ValueError."""
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
    return TheirError(
        status,
        message,
        kind if isinstance(kind, str) and kind.islower() else None,
        param if isinstance(param, str) else None,
        code if isinstance(code, str) and not code.isdigit() else None,
    )


def status_of(theirs: int) -> int:
    """The status that we answer with when they answer with `theirs`."""
    if theirs in _STATUSES:
        return theirs
    return 400 if 400 <= theirs < 500 else 502


def their_name(models: list[dict[str, Any]], wanted: str, kind: Kind, url: str) -> str:
    """The name by which a server has a model: as it is, or as a path that ends with it. wanted: "" for the first.

    models: its list, empty when it could not be had; then the name is believed. Raises PunaError when it is not there.
    """
    names = [str(model["id"]) for model in models if "id" in model]
    if not names and not wanted:
        raise PunaError(
            f"{url} does not say which models it has.", "Name one: puna serve MODEL --backend … --upstream …"
        )
    if not names or wanted in names:
        return wanted
    last = wanted.rstrip("/").rpartition("/")[2]
    same = [name for name in names if name.rstrip("/").rpartition("/")[2] == last]
    if same:
        return same[0]
    if not wanted or kind == "llama.cpp":  # which has one model, whatever it is called
        return names[0]
    raise PunaError(f"{url} has no model '{wanted}'.", f"It has: {', '.join(names[:10])}.")


def context_of(models: list[dict[str, Any]], name: str) -> int | None:
    """Tokens of context of a model in their list, when it is told."""
    found = next((model for model in models if model.get("id") == name), models[0] if len(models) == 1 else {})
    meta = found.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    told = (found.get("max_model_len"), found.get("context_length"), meta.get("n_ctx"), meta.get("n_ctx_train"))
    return next((value for value in told if isinstance(value, int) and value > 0), None)


def llama_tokens(answer: dict[str, Any], context: int) -> TokenizeResponse:
    """llama-server's tokens, with or without their texts, which are bytes where they are no text."""
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
