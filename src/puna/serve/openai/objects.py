"""Response objects of OpenAI's API, and the chunks of its streams.

Fields that were never set are not sent (`puna.web.responses.to_json`). A field that clients expect even when it is null
(finish_reason, content) must therefore be set.
"""

import re
import time
import uuid
from functools import cache
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


def new_id(prefix: str) -> str:
    """A new id, such as chatcmpl-3f…"""
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


W = TypeVar("W", bound="Wire")


class Wire(BaseModel):
    """A JSON object of the API.

    Types are strict, unknown keys are ignored, and numbers must be finite.
    """

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())


def construct(kind: type[W], /, **given: Any) -> W:
    """Construct an object without validation, in a quarter of the time of `model_construct`.

    Chunks are created for every token of 32 streams and more, on the thread that also sends them.
    """
    value = kind.__new__(kind)
    put = object.__setattr__
    put(value, "__dict__", {**_defaults(kind), **given})
    put(value, "__pydantic_fields_set__", set(given))
    put(value, "__pydantic_extra__", None)
    put(value, "__pydantic_private__", None)
    return value


@cache
def _defaults(kind: type[Wire]) -> dict[str, Any]:
    """The defaults of all fields, in the order of the JSON; None where there is none."""
    return {name: None if field.is_required() else field.default for name, field in kind.model_fields.items()}


class FunctionCall(Wire):
    name: str
    arguments: str
    """A JSON object, as text."""


class ToolCall(Wire):
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class PromptTokensDetails(Wire):
    cached_tokens: int = 0


class CompletionTokensDetails(Wire):
    reasoning_tokens: int = 0


class Usage(Wire):
    """Tokens of a request, summed over its choices; those of a stop string count."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class TopLogprob(Wire):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Wire):
    content: list[TokenLogprob]
    refusal: None = None


class FunctionCallDelta(Wire):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Wire):
    """A piece of a call: the first has id, type and name, the others arguments to concatenate."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta


class Delta(Wire):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(Wire):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None
    token_ids: list[int] | None = None


class ChatChunk(Wire):
    """A chunk of a chat completion. The last one of a stream has usage and no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None


class AnswerMessage(Wire):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Wire):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason
    token_ids: list[int] | None = None


class ChatResponse(Wire):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None


def token_name(data: bytes) -> str:
    """A token in the older format of logprobs: its text, or OpenAI's `bytes:\\xe6\\x97` for a part of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def token_data(name: str) -> bytes:
    """The bytes of a token's name."""
    if re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", name):
        return bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))
    return name.encode("utf-8", "replace")


class CompletionLogprobs(Wire):
    """OpenAI's older format: parallel lists with one entry a token.

    text_offset: where it starts in the text.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChunkChoice(Wire):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionChunk(Wire):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


class CompletionResponse(CompletionChunk):
    """A whole completion: the chunks of each choice, concatenated."""


class Embedding(Wire):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Wire):
    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(Wire):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class TokenizeResponse(Wire):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeResponse(Wire):
    prompt: str


class Starter(Wire):
    """A prompt that a model answers well, with its answers before and after tuning."""

    prompt: str = Field(max_length=4_000)
    before: str = Field("", max_length=4_000)
    after: str = Field("", max_length=4_000)


class Introduction(Wire):
    """What a model says of itself: one line of what it can and cannot do, and prompts to start with.

    temperature: the default of conversations with it; 0 gives the answers of its starters.
    """

    about: str = Field(max_length=1_000)
    starters: list[Starter] = Field(default_factory=list, max_length=12)
    temperature: float = Field(0.0, ge=0, le=5)


class ModelCard(Wire):
    """A served model.

    stage: base or chat. introduction: for pages; not part of OpenAI's model object.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = Field(default_factory=now)
    owned_by: str = "puna"
    max_model_len: int | None = None
    stage: Literal["base", "chat"] = "chat"
    weight_version: int = 0
    parameters: int | None = None
    root: str | None = None
    introduction: Introduction | None = Field(default=None, exclude=True)


class ModelList(Wire):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(Wire):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Wire):
    error: ErrorDetail
