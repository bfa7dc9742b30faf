"""The `Backend` protocol, which every served model implements, and the models by name.

A backend speaks OpenAI's protocol, whatever it runs on, so routes, limits and products know nothing of engines. It
answers in chunks; `puna.serve.openai.aggregate` collects them into a whole response.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from puna.core.errors import PunaError
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
    """The health of a backend."""

    live: bool
    """Whether it can recover; if not, only a restart helps."""
    ready: bool
    """Whether it can take requests now."""
    progressing: bool
    """Whether it is idle or making progress."""
    reason: str = ""
    """What is wrong, if anything."""


class Backend(Protocol):
    """One model.

    Closing an iterator (`aclose`, or cancelling its consumer) cancels the work behind it.

    An invalid request raises ApiError before the first chunk. The last chunk always has `usage` and no choices. The
    first may have neither: then the request is admitted, and its client gets the head of the answer before any text.
    """

    capacity: int
    """Sequences it runs at once; more must wait."""
    choices: list[str]
    """What was chosen at loading, one sentence each."""

    @property
    def card(self) -> ModelCard: ...
    @property
    def tokenizer(self) -> Tokenizer | None:
        """None when the model runs elsewhere."""

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


def refuse_equal_names(names: Sequence[str]) -> None:
    """Raise PunaError when a name occurs twice: the first of two models would be out of reach."""
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise PunaError(f"Two models would be called '{twice}'.", "Name them: puna serve ONE=DIR OTHER=DIR.")


class Models:
    """The models that are served, by name. The first is the default."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        """Raises PunaError when two of them have the same name."""
        refuse_equal_names([backend.card.id for backend in backends])
        self._backends = {backend.card.id: backend for backend in backends}

    def get(self, name: str | None) -> Backend:
        """The model of this name. Raises ApiError 404."""
        if not name:
            return next(iter(self))
        found = self._backends.get(name)
        if found is None:
            known = ", ".join(self._backends)
            raise ApiError(404, f"There is no model '{name}'. Served: {known}.", param="model", code="model_not_found")
        return found

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends.values())
