"""Request objects of OpenAI's API. Response objects are in `objects` and re-exported here.

Requests accept what OpenAI documents, and a few extensions under vLLM's names. Unknown fields are ignored; known fields
that are not supported are rejected, since text is no answer to a request for audio.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from puna.serve.openai.messages import (  # noqa: F401
    ChatMessage,
    ContentPart,
    FunctionTool,
    NamedFunction,
    NamedTool,
    TokenIds,
    Tool,
)
from puna.serve.openai.objects import (  # noqa: F401  (both sides of the protocol in one place)
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatResponse,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogprobs,
    CompletionResponse,
    CompletionTokensDetails,
    Delta,
    DetokenizeResponse,
    Embedding,
    EmbeddingResponse,
    EmbeddingUsage,
    ErrorDetail,
    ErrorResponse,
    FinishReason,
    FunctionCall,
    FunctionCallDelta,
    ModelCard,
    ModelList,
    PromptTokensDetails,
    TokenizeResponse,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
    Usage,
    Wire,
    new_id,
    now,
)

Text = Annotated[str, StringConstraints(min_length=1)]
# -- structured output ----------------------------------------------------------------------------------------------


class JsonSchema(Wire):
    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("a response_format of type json_schema needs json_schema.")
        return self


class StructuredOutputs(Wire):
    """An extension: exactly one of the four.

    json: a schema (or its text). grammar: in Lark's notation.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[Text] | None = Field(default=None, min_length=1)
    grammar: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "StructuredOutputs":
        if sum(value is not None for value in (self.json_, self.regex, self.choice, self.grammar)) != 1:
            raise ValueError("give exactly one of json, regex, choice and grammar.")
        return self


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: bool = False


# -- requests --------------------------------------------------------------------------------------------------------


class GenerationRequest(Wire):
    """What chat and completion requests have in common."""

    model: str | None = None
    """The model's name; the first one by default."""
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, ge=0, le=1)
    n: int | None = Field(default=None, ge=1, le=128)
    stop: Text | Annotated[list[Text], Field(max_length=64)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    # Extensions.
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    ignore_eos: bool = False
    structured_outputs: StructuredOutputs | None = None
    return_token_ids: bool = False

    @field_validator("logit_bias")
    @classmethod
    def _ids_as_text(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for key in bias or ():
            if not (key.isascii() and key.isdigit() and len(key) < 12):
                raise ValueError(f"'{key}' is not a token id.")
        return bias

    @model_validator(mode="after")
    def _stream_options_of_a_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: set it to true.")
        if self.structured_outputs and self.response_format and self.response_format.type != "text":
            raise ValueError("give response_format or structured_outputs, not both.")
        return self

    @property
    def texts(self) -> int:
        """How many sequences this request generates: its share of the queue."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def with_functions_only(given: dict[str, Any]) -> dict[str, Any]:
    """A request without tools that a server cannot run, and with a choice among the others.

    Clients send what their own service offers (custom tools, web search, a shell) to any server.
    """
    tools, choice = given.get("tools"), given.get("tool_choice")
    if isinstance(tools, list):
        tools = [tool for tool in tools if not isinstance(tool, dict) or tool.get("type", "function") == "function"]
    if isinstance(choice, dict) and choice.get("type", "function") != "function":
        allowed = choice.get("allowed_tools", choice)
        choice = None
        if isinstance(allowed, dict) and isinstance(allowed.get("tools"), list):
            names = [_function_name(tool) for tool in allowed["tools"]]
            tools = [tool for tool in tools or () if _function_name(tool) in names]
            choice = allowed.get("mode", "auto")
    changed = {name: value for name, value in (("tools", tools), ("tool_choice", choice)) if name in given}
    return {**given, **changed}


def _function_name(tool: Any) -> Any:
    """The name of a function, in the form of chat or of /v1/responses."""
    if not isinstance(tool, dict):
        return None
    inner = tool.get("function")
    return inner.get("name") if isinstance(inner, dict) else tool.get("name")


def _refuse(given: Any, names: tuple[str, ...]) -> Any:
    """Raise ValueError when one of these fields is used."""
    if isinstance(given, dict):
        for name in names:
            if given.get(name):
                raise ValueError(f"{name} is not supported.")
    return given


class ChatRequest(GenerationRequest):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    # Extensions.
    continue_final_message: bool = False
    """Continue the last message, which is an assistant's."""
    add_generation_prompt: bool = True

    @model_validator(mode="before")
    @classmethod
    def _possible(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("modalities") not in (None, ["text"]):
            raise ValueError("modalities: only text is supported.")
        given = with_functions_only(given)
        return _refuse(given, ("functions", "function_call", "audio", "prediction", "web_search_options"))

    @model_validator(mode="after")
    def _belong_together(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: set it to true.")
        if self.max_tokens == 0:
            raise ValueError("max_tokens is 0; ask for at least one token.")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message needs a last message of role assistant.")
        names = [tool.function.name for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names '{self.tool_choice.function.name}', which is not among the tools.")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice is required, but there are no tools.")
        return self


class CompletionRequest(GenerationRequest):
    prompt: str | TokenIds | list[str] | list[TokenIds]
    max_tokens: int | None = Field(default=16, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    # Extensions.
    add_special_tokens: bool = True
    """Put the begin-of-text token before a prompt that is text."""

    @model_validator(mode="before")
    @classmethod
    def _possible(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("best_of") == 1:
            given = {key: value for key, value in given.items() if key != "best_of"}
        return _refuse(given, ("suffix", "best_of"))

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, prompt: Any) -> Any:
        if prompt == [] or (isinstance(prompt, list) and any(item == [] for item in prompt)):
            raise ValueError("the prompt is empty.")
        return prompt

    @model_validator(mode="after")
    def _belong_together(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which is allowed only with echo.")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One entry a prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]

    @property
    def texts(self) -> int:
        return (self.n or 1) * len(self.prompts)


class EmbeddingRequest(Wire):
    model: str | None = None
    input: Text | TokenIds | list[Text] | list[TokenIds]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None

    @field_validator("input")
    @classmethod
    def _not_empty(cls, given: Any) -> Any:
        if given == [] or (isinstance(given, list) and any(item == [] for item in given)):
            raise ValueError("there is nothing to embed.")
        if isinstance(given, list) and not isinstance(given[0], int) and len(given) > 2048:
            raise ValueError("there can be at most 2,048 inputs.")
        return given

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """One entry an input."""
        if isinstance(self.input, str):
            return [self.input]
        return [self.input] if isinstance(self.input[0], int) else self.input


class TokenizeRequest(Wire):
    """Tokenise a text (prompt) or a dialogue (messages)."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    tools: list[Tool] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages.")
        return self


class DetokenizeRequest(Wire):
    model: str | None = None
    tokens: TokenIds
