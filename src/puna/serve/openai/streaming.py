"""Streams in OpenAI's form: `data: {chunk}` events, then `data: [DONE]`."""

from collections.abc import AsyncGenerator

from starlette.responses import JSONResponse

from puna.serve.openai.protocol import ChatChunk, CompletionChunk, GenerationRequest
from puna.web.errors import ApiError
from puna.web.responses import EventStreamResponse, to_json

DONE = b"data: [DONE]\n\n"


def stream(
    chunks: AsyncGenerator[ChatChunk] | AsyncGenerator[CompletionChunk],
    request: GenerationRequest,
    *,
    write_seconds: float,
) -> EventStreamResponse:
    """The response that streams these chunks.

    The chunk with usage is sent only when the request asks for it; the others then have `usage: null`.
    """
    return EventStreamResponse(_events(chunks, request), write_seconds=write_seconds, failed=_error_event, done=DONE)


async def _events(
    chunks: AsyncGenerator[ChatChunk] | AsyncGenerator[CompletionChunk], request: GenerationRequest
) -> AsyncGenerator[bytes]:
    with_usage = bool(request.stream_options and request.stream_options.include_usage)
    try:
        async for chunk in chunks:
            if not chunk.choices and chunk.usage is None:
                yield b""  # admitted
            elif chunk.choices or with_usage:
                if with_usage:
                    chunk.__pydantic_fields_set__.add("usage")  # null in all but the last
                yield b"data: " + to_json(chunk) + b"\n\n"
    finally:
        await chunks.aclose()


def _error_event(error: ApiError) -> bytes:
    return b"data: " + JSONResponse(error.body()).body + b"\n\n"
