"""Maps requests to what other servers understand. Plain functions.

A parameter that a server is known not to support is rejected here rather than sent and ignored: OpenAI would answer a
request with `top_k` as if it had applied it. Neutral values (`top_k` 0) are left out.
"""

import json
from typing import Any, Literal

from puna.serve.openai.protocol import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    NamedTool,
)
from puna.web.errors import ApiError

UpstreamKind = Literal["vllm", "llama.cpp", "openai"]

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
_NAMES: dict[UpstreamKind, dict[str, str]] = {
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
# llama-server's own defaults differ from OpenAI's (top_k 40, min_p 0.05, temperature 0.8).
_LLAMA_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


def chat_body(request: ChatRequest, kind: UpstreamKind, model: str) -> dict[str, Any]:
    """The body to send to a server of this kind.

    Raises ApiError 400 for what it does not support.
    """
    body = _body(request, kind, model)
    body["messages"] = [_message(message, kind) for message in request.messages]
    if isinstance(request.tool_choice, NamedTool):
        name = request.tool_choice.function.name
        body["tool_choice"] = {"type": "function", "function": {"name": name}}
        if kind == "llama.cpp":  # it takes only a word
            body["tool_choice"] = "required"
            body["tools"] = [tool for tool in body["tools"] if tool["function"]["name"] == name]
    if request.continue_final_message:
        body["add_generation_prompt"] = False
    if kind == "llama.cpp":
        limit = body.pop("max_completion_tokens", None) or request.max_tokens
        if limit is not None:
            body["max_tokens"] = limit
        if request.logprobs:  # without alternatives it would send no logprobs
            body["top_logprobs"] = max(request.top_logprobs or 0, 1)
    return body


def completion_body(request: CompletionRequest, kind: UpstreamKind, model: str) -> dict[str, Any]:
    """The same for a completion."""
    body = _body(request, kind, model)
    body["max_tokens"] = 16 if request.max_tokens is None else request.max_tokens
    if kind == "llama.cpp":
        if request.echo:
            raise ApiError(400, "echo: llama.cpp cannot give the prompt back.", param="echo", code="not_supported")
        body.pop("echo", None)
        if request.logprobs is not None:
            body["logprobs"] = max(request.logprobs, 1)
        form = body.pop("response_format", None)  # only its chat knows it
        if form and form["type"] == "json_object":
            body["json_schema"] = {"type": "object"}
        elif form and form["type"] == "json_schema":
            body["json_schema"] = form["json_schema"].get("schema") or {"type": "object"}
    return body


def check_bias(request: GenerationRequest, models: list[dict[str, Any]]) -> None:
    """Raise ApiError for a logit_bias of an unknown token, which llama-server ignores.

    Unchecked when the server does not say how large its vocabulary is.
    """
    meta = models[0].get("meta") if len(models) == 1 else None
    size = meta.get("n_vocab") if isinstance(meta, dict) else None
    if not isinstance(size, int):
        return
    wrong = [key for key in request.logit_bias or () if int(key) >= size]
    if wrong:
        raise ApiError(400, f"logit_bias: there is no token {wrong[0]}: they end at {size - 1}.", param="logit_bias")


def _body(request: GenerationRequest, kind: UpstreamKind, model: str) -> dict[str, Any]:
    given = request.model_dump(exclude_unset=True, by_alias=True, exclude_none=True)
    body: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _NEUTRAL:
            body[name] = value
        elif name in _NAMES[kind]:
            body[_NAMES[kind][name]] = value
        elif value not in _NEUTRAL[name]:
            raise ApiError(400, f"{name}: the {kind} backend does not know it.", param=name, code="not_supported")
    if body.get("top_p") == 0:
        body["top_p"] = 1e-9  # vLLM takes no 0
    if request.response_format is not None:
        body["response_format"] = request.response_format.model_dump(by_alias=True, exclude_none=True)
    if kind == "llama.cpp":
        body = {**_LLAMA_DEFAULTS, **body}
        if request.seed is not None:
            body["seed"] = request.seed % (2**32 - 1)  # the excluded number means a random seed
        if request.structured_outputs is not None:
            body |= _llama_structure(body.pop("structured_outputs"))
    # Always a stream; for a whole response its chunks are collected.
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


def _message(message: ChatMessage, kind: UpstreamKind) -> dict[str, Any]:
    mapped = message.model_dump(exclude_unset=True, exclude_none=True)
    if mapped.pop("token_ids", None) is not None and not (message.content or message.tool_calls):
        raise ApiError(400, "messages: token_ids work only with Puna's own engine.", param="messages")
    if isinstance(message.content, list):
        mapped["content"] = [{"type": "text", "text": part.text} for part in message.content]
    for call in mapped.get("tool_calls", ()):
        call["type"] = "function"
    if kind == "openai":
        mapped.pop("reasoning_content", None)
    elif message.role == "developer":
        mapped["role"] = "system"  # as in our own templates
    if "tool_calls" not in mapped:
        mapped.setdefault("content", "")
    return mapped
