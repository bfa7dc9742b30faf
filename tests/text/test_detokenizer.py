"""Incremental detokenization: pieces join to the decoded text and never split a complete character."""

from hypothesis import given, settings
from hypothesis import strategies as st

from puna.text.detokenizer import IncrementalDetokenizer
from puna.text.tokenizer import Tokenizer


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 1030), max_size=40), skip=st.booleans())
def test_pieces_join_to_the_decoded_text(trained: Tokenizer, ids: list[int], skip: bool) -> None:
    """Any ids, also such as make no UTF-8 at all."""
    stream = IncrementalDetokenizer(trained, skip_special=skip)
    pieces = [*map(stream.push, ids), stream.close()]
    assert "".join(pieces) == trained.decode(ids, skip_special=skip)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=30))
def test_text_comes_whole_and_as_soon_as_it_is(trained: Tokenizer, text: str) -> None:
    stream, so_far, data = IncrementalDetokenizer(trained), "", b""
    for id in trained.encode(text):
        so_far += stream.push(id)
        data += trained.token_bytes(id)
        assert so_far == data.decode("utf-8", "ignore")  # all characters that are whole, and no more
    assert stream.close() == ""
    assert so_far == text


def test_an_emoji_is_held_back_until_its_last_byte(trained: Tokenizer) -> None:
    ids = trained.encode("👩")
    assert len(ids) > 1
    stream = IncrementalDetokenizer(trained)
    assert [stream.push(id) for id in ids] == [""] * (len(ids) - 1) + ["👩"]
    stream = IncrementalDetokenizer(trained)
    assert [stream.push(id) for id in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.close() == "\ufffd"


def test_a_control_token_ends_a_broken_character(trained: Tokenizer) -> None:
    ids = [trained.encode("é")[0], trained.special["<|eot_id|>"]] if len(trained.encode("é")) > 1 else []
    assert ids, "the fixture's vocabulary must not hold é"
    stream = IncrementalDetokenizer(trained)
    assert [*map(stream.push, ids), stream.close()] == ["", "\ufffd<|eot_id|>", ""]
