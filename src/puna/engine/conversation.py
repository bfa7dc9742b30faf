"""A conversation with a model: keeps the messages, renders them, streams the answers.

What the model said is kept as the ids it generated and rendered as these, never encoded again. A model without chat
training has no turns: each thing that is said to it is a text it continues.
"""

from collections.abc import Generator
from typing import Any

from puna.core.errors import PunaError
from puna.engine.generate import Engine, SamplingParams
from puna.text.chat import render


class Conversation:
    """Messages so far and the engine that answers. chat: whether the model was trained to chat."""

    def __init__(self, engine: Engine, *, chat: bool, system: str = "") -> None:
        if engine.tokenizer is None:
            raise PunaError("This model has no tokenizer, so it cannot be talked to.", "Put the model's own beside it.")
        if system and not chat:
            raise PunaError(
                "A system message means nothing to a base model.", "Leave --system out, or use a chat model."
            )
        self.engine, self.tokenizer, self.chat = engine, engine.tokenizer, chat
        self._system: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._system)

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._system)

    def say(self, text: str, params: SamplingParams) -> Generator[str, None, None]:
        """Stream the answer to `text`. What came before the consumer stopped (or was interrupted) is kept.

        Raises PunaError when the conversation no longer fits into the context; `text` is then not part of it.
        """
        message = {"role": "user", "content": text}
        if self.chat:
            prompt = render([*self.messages, message], self.tokenizer, add_generation_prompt=True).ids
        else:
            prompt = self.tokenizer.encode(text, bos=True)
        ids: list[int] = []
        said: list[str] = []
        try:
            for token, piece in self.engine.stream(prompt, params):
                ids.append(token)
                said.append(piece)
                yield piece
        finally:
            if ids:
                answer = {"role": "assistant", "content": "".join(said), "token_ids": ids}
                self.messages += [message, answer]
