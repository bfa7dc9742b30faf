"""A chat session: keeps the messages of a conversation, renders them, and streams the answers.

The model's answers are kept as the ids it generated and rendered as such, never encoded again. A base model has no
turns: each input is a text that it continues.
"""

from collections.abc import Generator
from typing import Any

from puna.core.errors import PunaError
from puna.engine.generate import Engine, SamplingParams
from puna.text.chat import render


class ChatSession:
    """The messages so far and the engine that answers. chat: whether the model was trained for chat."""

    def __init__(self, engine: Engine, *, chat: bool, system: str = "") -> None:
        if engine.tokenizer is None:
            raise PunaError(
                "Chat needs a tokenizer, and this model has none.", "Put the model's tokenizer into its directory."
            )
        self.engine, self.tokenizer, self.chat = engine, engine.tokenizer, chat
        self.system = ""
        self.messages: list[dict[str, Any]] = []
        self.set_system(system)

    def set_system(self, text: str) -> None:
        """Set the system message and forget all others. Raises PunaError for a base model."""
        if text and not self.chat:
            raise PunaError("A base model has no system message.", "Leave it out, or use a chat model.")
        self.system = text
        self.reset()

    def reset(self) -> None:
        """Forget all messages except the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def take_back(self) -> str | None:
        """Forget the last message and its answer; returns the message, None where there is none."""
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            return None
        message, _ = self.messages[-2:]
        del self.messages[-2:]
        return str(message["content"])

    def send(self, text: str, params: SamplingParams) -> Generator[str, None, None]:
        """Stream the answer to `text`. If the consumer stops early (or is interrupted), what it received is kept.

        Raises PunaError when the conversation no longer fits into the context; `text` is then not added to it.
        """
        message = {"role": "user", "content": text}
        if self.chat:
            prompt = render([*self.messages, message], self.tokenizer, add_generation_prompt=True).ids
        else:
            prompt = self.tokenizer.encode(text, bos=True)
        ids: list[int] = []
        pieces: list[str] = []
        try:
            for token, piece in self.engine.stream(prompt, params):
                ids.append(token)
                pieces.append(piece)
                yield piece
        finally:
            if ids:
                answer = {"role": "assistant", "content": "".join(pieces), "token_ids": ids}
                self.messages += [message, answer]
