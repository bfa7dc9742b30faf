"""Turns a request into what the engine takes: token ids and sampling parameters.

This is work of its own thread: templates, tokenizers and grammars take time with long inputs. Everything here is a
plain function and raises PunaError, or ApiError where OpenAI has a code for it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from puna.core.errors import PunaError
from puna.engine.generate import SamplingParams
from puna.engine.grammar import Function, Grammar
from puna.serve.openai.protocol import (
    ChatRequest,
    CompletionRequest,
    FunctionTool,
    GenerationRequest,
    NamedTool,
    TokenizeRequest,
    Tool,
)
from puna.text.bytelevel import END_TOOL_CALL, TOOL_CALL
from puna.text.chat import render
from puna.text.tokenizer import Tokenizer
from puna.web.errors import ApiError

SMALLEST_TOP_P = 1e-9
"""Stands for 0, which OpenAI allows: only the likeliest token."""
FREE = 1 << 30
"""max_tokens of a request without a limit: the context ends first."""


class Prepared(NamedTuple):
    """A prompt and its sampling parameters."""

    ids: list[int]
    params: SamplingParams
    in_call: bool = False
    """Whether the prompt ends with <tool_call>, so that the answer starts inside a call."""


def dialogue_ids(request: ChatRequest | TokenizeRequest, tokenizer: Tokenizer) -> list[int]:
    """The ids of a dialogue, up to where the answer starts or continues."""
    messages = [message.model_dump(exclude_unset=True) for message in request.messages or ()]
    tools = offered(request)
    if request.continue_final_message:
        return render(messages, tokenizer, tools=tools).ids[:-1]  # all but the end of the turn
    return render(messages, tokenizer, tools=tools, add_generation_prompt=request.add_generation_prompt).ids


def offered(request: ChatRequest | TokenizeRequest) -> list[dict[str, Any]] | None:
    """The tools as the template shows them; None when the model must not call any."""
    if not request.tools or (isinstance(request, ChatRequest) and request.tool_choice == "none"):
        return None
    return [tool.model_dump(exclude_unset=True) for tool in request.tools]


def prepare_chat(request: ChatRequest, tokenizer: Tokenizer, *, context: int) -> Prepared:
    """The prompt of a dialogue.

    A required tool call starts in the prompt, and a grammar constrains the rest.
    """
    ids = dialogue_ids(request, tokenizer)
    stop, grammar = request.stops, None
    tools = request.tools or []
    forced = request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)
    if forced:
        if isinstance(request.tool_choice, NamedTool):
            tools = [tool for tool in tools if tool.function.name == request.tool_choice.function.name]
        mark = tokenizer.special.get(TOOL_CALL)
        ids += tokenizer.encode(f"{TOOL_CALL}\n") if mark is None else [mark, *tokenizer.encode("\n")]
        grammar = call_grammar(tools)
    else:
        grammar = wanted_grammar(request)
        if request.parallel_tool_calls is False and offered(request):
            stop = (*stop, END_TOOL_CALL)
    limit = request.max_completion_tokens or request.max_tokens
    params = sampling(
        request,
        max_tokens=limit,
        stop=stop,
        grammar=grammar,
        top_logprobs=request.top_logprobs or 0 if request.logprobs else 0,
    )
    check_length(ids, context, param="messages")
    return Prepared(ids, params, in_call=forced)


def prepare_completion(request: CompletionRequest, tokenizer: Tokenizer | None, *, context: int) -> list[Prepared]:
    """The prompts of a completion, all with the same parameters."""
    params = sampling(
        request,
        max_tokens=request.max_tokens,
        stop=request.stops,
        grammar=wanted_grammar(request),
        top_logprobs=request.logprobs or 0,
        prompt_logprobs=(request.logprobs or 0)
        if request.echo and (request.logprobs is not None or request.max_tokens == 0)
        else None,
    )
    prompts = [prompt_ids(prompt, tokenizer, bos=request.add_special_tokens) for prompt in request.prompts]
    for ids in prompts:
        check_length(ids, context, param="prompt", room=0 if request.max_tokens == 0 else 1)
    return [Prepared(ids, params) for ids in prompts]


def prompt_ids(prompt: str | Sequence[int], tokenizer: Tokenizer | None, *, bos: bool) -> list[int]:
    """The ids of one prompt, which may already be ids."""
    if not isinstance(prompt, str):
        return list(prompt)
    if tokenizer is None:
        raise PunaError("This model has no tokenizer.", "Give the prompt as token ids.")
    ids = tokenizer.encode(prompt, bos=bos)
    if not ids:
        raise ApiError(400, "The prompt is empty, and this model has no begin-of-text token.", param="prompt")
    return ids


def check_length(ids: Sequence[int], context: int, *, param: str, room: int = 1) -> None:
    """Raise ApiError when a prompt leaves less than `room` tokens of the context."""
    if len(ids) + room > context:
        raise ApiError(
            400,
            f"This model's context holds {context} tokens, but the prompt has {len(ids)}. Shorten it.",
            param=param,
            code="context_length_exceeded",
        )


def sampling(
    request: GenerationRequest,
    *,
    max_tokens: int | None,
    stop: tuple[str, ...],
    grammar: Grammar | None,
    top_logprobs: int,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """A request's sampling parameters, with OpenAI's defaults."""
    return SamplingParams(
        max_tokens=FREE if max_tokens is None else max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=max(request.top_k or 0, 0),
        top_p=1.0 if request.top_p is None else max(request.top_p, SMALLEST_TOP_P),
        min_p=request.min_p or 0.0,
        seed=request.seed,
        stop=stop,
        n=request.n or 1,
        repetition_penalty=request.repetition_penalty or 1.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias={int(key): bias for key, bias in (request.logit_bias or {}).items()},
        top_logprobs=top_logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
        ignore_end=request.ignore_eos,
    )


# -- grammars --------------------------------------------------------------------------------------------------------


def wanted_grammar(request: GenerationRequest) -> Grammar | None:
    """The grammar that response_format or structured_outputs ask for; None for free text."""
    form, structured = request.response_format, request.structured_outputs
    if form is not None and form.type == "json_object":
        return json_grammar({"type": "object"}, param="response_format")
    if form is not None and form.json_schema is not None:
        if form.json_schema.schema_ is None:
            raise ApiError(400, "response_format.json_schema has no schema.", param="response_format")
        return json_grammar(form.json_schema.schema_, param="response_format", strict=form.json_schema.strict)
    if structured is None:
        return None
    try:
        if structured.regex is not None:
            return Grammar.regex(structured.regex)
        if structured.choice is not None:
            return Grammar.choice(structured.choice)
        if structured.grammar is not None:
            return Grammar.lark(structured.grammar)
    except PunaError as error:
        raise ApiError(400, str(error), param="structured_outputs") from None
    schema = structured.json_
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ApiError(
                400, f"structured_outputs.json is not valid JSON ({error}).", param="structured_outputs"
            ) from None
    if not isinstance(schema, dict):
        raise ApiError(400, "structured_outputs.json is not a JSON object.", param="structured_outputs")
    return json_grammar(schema, param="structured_outputs")


def json_grammar(schema: Mapping[str, Any], *, param: str, strict: bool | None = False) -> Grammar:
    """A grammar of the JSON that a schema describes; only a strict one refuses what cannot be enforced."""
    try:
        return Grammar.json_schema(schema, strict=bool(strict))
    except PunaError as error:
        raise ApiError(400, str(error), param=param) from None


def call_grammar(tools: Sequence[Tool]) -> Grammar:
    """A grammar of a call of one of the tools."""
    functions = [Function(tool.function.name, _of_object(tool.function), bool(tool.function.strict)) for tool in tools]
    for function in functions:  # each by itself first, so that an error says whose it is
        try:
            Grammar.json_schema(function.schema, strict=function.strict)
        except PunaError as error:
            raise ApiError(400, f"The parameters of '{function.name}': {error}", param="tools") from None
    try:
        return Grammar.call(functions)
    except PunaError as error:
        raise ApiError(400, str(error), param="tools") from None


def _of_object(function: FunctionTool) -> Mapping[str, Any]:
    """The schema of a function's parameters, for objects only: arguments are an object."""
    schema = function.parameters or {}
    kinds = schema.get("type", "object")
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        raise ApiError(400, f"The parameters of '{function.name}' are not of type object.", param="tools")
    return {**schema, "type": "object"}
