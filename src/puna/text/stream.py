"""Ids to text while they are being generated, without half characters.

A character may be spread over several tokens. Pieces are held back until their last byte has come; joined, they are
exactly what `Tokenizer.decode` makes of all ids at once.
"""

import codecs
from collections.abc import Iterable, Iterator

from puna.text.tokenizer import Tokenizer


class TextStream:
    """Turns ids into text, id by id. skip_special: as in `Tokenizer.decode`."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer.drops_first_space

    def push(self, id: int) -> str:
        """The text that became whole with this id; "" when it ends within a character."""
        return self._piece(self._tokenizer.shown_bytes(id, skip_special=self._skip_special), final=False)

    def close(self) -> str:
        """What is left when no id follows: U+FFFD when the last character is not whole, else ""."""
        return self._piece(b"", final=True)

    def _piece(self, data: bytes, *, final: bool) -> str:
        text = self._decoder.decode(data, final)
        if self._at_start and text:
            text, self._at_start = text.removeprefix(" "), False
        return text


def stream_text(tokenizer: Tokenizer, ids: Iterable[int], *, skip_special: bool = False) -> Iterator[str]:
    """Pieces of text, none empty, as `ids` come in; joined they equal `tokenizer.decode(ids)`."""
    stream = TextStream(tokenizer, skip_special=skip_special)
    for id in ids:
        if piece := stream.push(id):
            yield piece
    if piece := stream.close():
        yield piece
