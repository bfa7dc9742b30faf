"""Streaming text compared with a reference that looks at all bytes at once."""

import codecs

from hypothesis import given, settings
from hypothesis import strategies as st

from puna.engine.request import Request
from puna.engine.sampling import SamplingParams

PIECES = [*(c.encode() for c in "abc "), *("é€🙂".encode()[i : i + 1] for i in range(9)), b"\xff", b"ab", "bé".encode()]
PIECES += ["🙂a".encode()[2:], "c€".encode()[:3], b"", "é🙂".encode()]
END = len(PIECES)


class Words:
    """A tokenizer whose tokens are bytes, parts of characters and several characters."""

    vocab_size, eos_ids, drops_first_space = END + 1, [END], False

    def shown_bytes(self, token: int, *, skip_special: bool = False) -> bytes:
        return PIECES[token] if token < END else b""


def reference(tokens: list[int], stops: list[str]) -> tuple[str, str, int]:
    """(text, reason, tokens used): searches the text that is certain after each token from its start."""
    for used in range(1, len(tokens) + 1):
        last = tokens[used - 1] == END or used == len(tokens)
        data = b"".join(PIECES[token] for token in tokens[:used] if token < END)
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(data, last)
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)], "stop", used
        if last:
            return text, "stop" if tokens[used - 1] == END else "length", used
    raise AssertionError


@settings(max_examples=300)
@given(
    tokens=st.lists(st.integers(0, END), min_size=1, max_size=14),
    stops=st.lists(st.text("abcé€🙂\ufffd ", min_size=1, max_size=4), max_size=3),
)
def test_pieces_join_to_the_text_before_the_first_stop_string(tokens: list[int], stops: list[str]) -> None:
    params = SamplingParams(max_tokens=len(tokens), stop=tuple(stops))
    request = Request([0], params, limit=len(tokens), end_ids={END}, tokenizer=Words())  # type: ignore[arg-type]
    [sequence] = request.sequences
    text, reason, used = reference(tokens, stops)
    said = ""
    for token in tokens:
        said += sequence.append(token)
        assert text.startswith(said), "no text is emitted that would have to be withdrawn"
        if sequence.finish_reason:
            break
    assert (said, sequence.finish_reason, len(sequence.output_ids)) == (text, reason, used)
