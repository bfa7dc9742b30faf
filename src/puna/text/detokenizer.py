"""Incremental detokenization: generated ids to text, without incomplete characters.

A character may be spread over several tokens. Its bytes are held back until the last one has come; joined, the pieces
are exactly what `Tokenizer.decode` returns for all ids at once.
"""

import codecs

from puna.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns ids into text, id by id. skip_special: as in `Tokenizer.decode`."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer.drops_first_space

    def push(self, id: int) -> str:
        """The text completed by this id; "" while a character is incomplete."""
        return self._decode(self._tokenizer.shown_bytes(id, skip_special=self._skip_special), final=False)

    def close(self) -> str:
        """The rest when no id follows: U+FFFD if the last character is incomplete, else ""."""
        return self._decode(b"", final=True)

    def _decode(self, data: bytes, *, final: bool) -> str:
        text = self._decoder.decode(data, final)
        if self._at_start and text:
            text, self._at_start = text.removeprefix(" "), False
        return text
