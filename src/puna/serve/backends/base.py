"""What a model behind the server must be able to do, and which models there are.

A backend speaks OpenAI's protocol, whatever it runs on, so routes, limits and products know nothing of engines. It
answers in chunks; `puna.serve.openai.aggregate` collects them into a whole response.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from puna.serve.openai.protocol import (
    ChatChunk,
    ChatRequest,
    CompletionChunk,
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    ModelCard,
    TokenizeRequest,
    TokenizeResponse,
)
from puna.text.tokenizer import Tokenizer
from puna.web.errors import ApiError


class Health(NamedTuple):
    """How a backend is."""

    live: bool
    """It can still be of use; when not, only a new start helps."""
    ready: bool
    """It can take requests now."""
    progressing: bool
    """It is idle, or gets on with its work."""
    reason: str = ""
    """What is wrong, when something is."""


class Backend(Protocol):
    """One model. Closing an iterator (`aclose`, or the cancellation of who iterates) stops the work behind it.

    The first chunk is not made before the request was found to be all right: what is wrong with it raises ApiError
    there. The last chunk has `usage` and no choices, always.
    """

    capacity: int
    """Texts it writes at once; more have to wait."""
    choices: list[str]
    """What was chosen when it was made, a sentence each."""

    @property
    def card(self) -> ModelCard: ...
    @property
    def tokenizer(self) -> Tokenizer | None:
        """None when the model is elsewhere."""

    def chat(self, request: ChatRequest, *, deadline_seconds: float | None = None) -> AsyncGenerator[ChatChunk]: ...
    def complete(
        self, request: CompletionRequest, *, deadline_seconds: float | None = None
    ) -> AsyncGenerator[CompletionChunk]: ...
    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse: ...
    async def tokenize(self, request: TokenizeRequest) -> TokenizeResponse: ...
    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse: ...
    def stats(self) -> dict[str, Any]: ...
    def health(self) -> Health: ...
    async def close(self) -> None: ...


class Models:
    """The models that are served, by name. The first is the one that a request without a name means."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = {backend.card.id: backend for backend in backends}

    def get(self, name: str | None) -> Backend:
        """The model of this name. Raises ApiError 404 when there is none."""
        if not name:
            return next(iter(self))
        found = self._backends.get(name)
        if found is None:
            known = ", ".join(self._backends)
            raise ApiError(404, f"There is no model '{name}'. Served: {known}.", param="model", code="model_not_found")
        return found

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends.values())
