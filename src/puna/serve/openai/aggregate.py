"""Collects a stream of chunks into one non-streaming response."""

from collections.abc import AsyncIterator

from puna.serve.openai.protocol import (
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
    FunctionCall,
    ToolCall,
    Usage,
)


async def aggregate_chat(chunks: AsyncIterator[ChatChunk]) -> ChatResponse:
    """Collect the chunks of a chat completion."""
    rows: dict[int, list[ChatChunkChoice]] = {}
    prompt_ids = None
    async for chunk in chunks:
        last = chunk
        prompt_ids = chunk.prompt_token_ids or prompt_ids
        for choice in chunk.choices:
            rows.setdefault(choice.index, []).append(choice)
    answer = ChatResponse(
        id=last.id,
        object="chat.completion",
        created=last.created,
        model=last.model,
        choices=[_chat_choice(index, rows[index]) for index in sorted(rows)],
        usage=last.usage or Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0),
    )
    if last.system_fingerprint is not None:
        answer.system_fingerprint = last.system_fingerprint
    if prompt_ids is not None:
        answer.prompt_token_ids = prompt_ids
    return answer


def _chat_choice(index: int, row: list[ChatChunkChoice]) -> ChatChoice:
    calls: dict[int, ToolCall] = {}
    for choice in row:
        for delta in choice.delta.tool_calls or ():
            call = calls.setdefault(
                delta.index,
                ToolCall(id=delta.id or "", type="function", function=FunctionCall(name="", arguments="")),
            )
            call.function.name += delta.function.name or ""
            call.function.arguments += delta.function.arguments or ""
    content = "".join(choice.delta.content or "" for choice in row)
    reasoning = "".join(choice.delta.reasoning_content or "" for choice in row)
    message = AnswerMessage(role="assistant", content=content or (None if calls else ""), refusal=None)
    if reasoning:
        message.reasoning_content = reasoning
    if calls:
        message.tool_calls = [calls[number] for number in sorted(calls)]
    reason = next((choice.finish_reason for choice in reversed(row) if choice.finish_reason), None)
    whole = ChatChoice(index=index, message=message, logprobs=None, finish_reason=reason or "stop")
    named = [choice.logprobs for choice in row if choice.logprobs is not None]
    if named:
        whole.logprobs = ChatLogprobs(content=[token for part in named for token in part.content], refusal=None)
    ids = [choice.token_ids for choice in row if choice.token_ids is not None]
    if ids:
        whole.token_ids = [id for part in ids for id in part]
    return whole


async def aggregate_completion(chunks: AsyncIterator[CompletionChunk]) -> CompletionResponse:
    """Collect the chunks of a completion."""
    rows: dict[int, list[CompletionChunkChoice]] = {}
    async for chunk in chunks:
        last = chunk
        for choice in chunk.choices:
            rows.setdefault(choice.index, []).append(choice)
    answer = CompletionResponse(
        id=last.id,
        object="text_completion",
        created=last.created,
        model=last.model,
        choices=[_completion_choice(index, rows[index]) for index in sorted(rows)],
        usage=last.usage,
    )
    if last.system_fingerprint is not None:
        answer.system_fingerprint = last.system_fingerprint
    return answer


def _completion_choice(index: int, row: list[CompletionChunkChoice]) -> CompletionChunkChoice:
    reason = next((choice.finish_reason for choice in reversed(row) if choice.finish_reason), None)
    text = "".join(choice.text for choice in row)
    whole = CompletionChunkChoice(index=index, text=text, logprobs=None, finish_reason=reason or "stop")
    named = [choice.logprobs for choice in row if choice.logprobs is not None]
    if named:
        tops = [part.top_logprobs for part in named if part.top_logprobs is not None]
        whole.logprobs = CompletionLogprobs(
            tokens=[token for part in named for token in part.tokens],
            token_logprobs=[value for part in named for value in part.token_logprobs],
            top_logprobs=[top for part in tops for top in part] if tops else None,
            text_offset=[offset for part in named for offset in part.text_offset],
        )
    ids = [choice.token_ids for choice in row if choice.token_ids is not None]
    if ids:
        whole.token_ids = [id for part in ids for id in part]
    prompts = [choice.prompt_token_ids for choice in row if choice.prompt_token_ids is not None]
    if prompts:
        whole.prompt_token_ids = prompts[0]
    return whole
