"""The loader's guarantee: nothing lost, nothing repeated, the same batches however the rows are shared out."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.data import loader
from puna.data.corpus import Corpus

documents = st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=20), min_size=1, max_size=12)


@st.composite
def corpora(draw: st.DrawFn) -> tuple[dict[str, list[list[int]]], dict[str, int], int]:
    """(documents by source, stream tokens by source, tokens after which a shard is closed)."""
    sources = {name: draw(documents) for name in ("a", "b", "c")[: draw(st.integers(1, 3))]}
    stream = {}
    for name, docs in sources.items():
        total = sum(map(len, docs))
        part = sum(map(len, docs[: draw(st.integers(0, len(docs)))]))
        stream[name] = draw(st.integers(0, 3)) * total + part
    if not any(stream.values()):
        stream["a"] = sum(map(len, sources["a"]))
    return sources, stream, draw(st.integers(1, 60))


def stream_of(sources: dict[str, list[list[int]]], stream: dict[str, int]) -> tuple[list[int], list[str]]:
    """The training stream written out: its tokens, and the document each is from."""
    tokens, names = [], []
    for name, docs in sources.items():
        once = [(token, f"{name}/doc{i}") for i, ids in enumerate(docs) for token in ids]
        for token, document in itertools.islice(itertools.cycle(once), stream[name]):
            tokens.append(token)
            names.append(document)
    return tokens, names


@settings(max_examples=25, deadline=None)
@given(
    content=corpora(), seq_len=st.integers(1, 17), rows=st.integers(1, 7), seed=st.integers(0, 2**31), data=st.data()
)
def test_an_epoch_visits_every_token_once_in_rows_of_the_stream(
    write_corpus: Callable[..., Corpus], content: tuple, seq_len: int, rows: int, seed: int, data: st.DataObject
) -> None:
    sources, stream, shard_tokens = content
    tokens, names = stream_of(sources, stream)
    with TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder), sources, stream, shard_tokens)
        assert corpus.stream_tokens == len(tokens)
        if len(tokens) - 1 < seq_len:
            with pytest.raises(PunaError, match="too few"):
                loader.batch(corpus, seed=seed, step=0, rows=rows, seq_len=seq_len)
            return
        total = loader.rows_per_epoch(corpus, seq_len)
        seen = []
        for step in range(-(-2 * total // rows)):
            arguments = {"seed": seed, "step": step, "rows": rows, "seq_len": seq_len, "document_mask": True}
            whole = loader.batch(corpus, **arguments)
            # Any split of the rows over ranks gives the same batch.
            cuts = [0, *sorted(data.draw(st.lists(st.integers(0, rows), max_size=3))), rows]
            parts = [loader.batch(corpus, **arguments, start=a, stop=b) for a, b in itertools.pairwise(cuts)]
            for field in ("input_ids", "targets", "document_ids"):
                joined = np.concatenate([getattr(part, field) for part in parts])
                np.testing.assert_array_equal(joined, getattr(whole, field))
            order = loader.row_order(corpus, seed=seed, first=step * rows, count=rows, seq_len=seq_len).tolist()
            in_batch = []
            for row, place in enumerate(order):
                low, high = place * seq_len, min((place + 1) * seq_len, len(tokens) - 1)
                length = high - low
                assert whole.input_ids[row, :length].tolist() == tokens[low:high]
                assert whole.targets[row, :length].tolist() == tokens[low + 1 : high + 1]
                assert (whole.targets[row, length:] == -100).all()
                # Equal document ids within a row if and only if the tokens are from the same document (a document
                # that follows itself, as the only one of its source, begins anew).
                ids, own = whole.document_ids[row, :length], names[low:high]
                assert ids[0] == 0
                assert set(np.diff(ids)) <= {0, 1}
                for a, b, left, right in zip(ids[:-1], ids[1:], own[:-1], own[1:], strict=True):
                    assert a == b or left != right or len(sources[left.split("/")[0]]) == 1
                    assert a != b or left == right
                in_batch += names[low : high + 1]
            assert set(loader.documents_of(corpus, seed=seed, step=step, rows=rows, seq_len=seq_len)) == set(in_batch)
            seen += order
        assert sorted(seen[:total]) == list(range(total))
        assert sorted(seen[total : 2 * total]) == list(range(total))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 10**6))
def test_the_permutation_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    assert sorted(loader.permute(np.arange(size), size, seed=seed, epoch=epoch)) == list(range(size))


@given(st.integers(2**33, 2**50), st.integers(0, 2**32))
def test_the_permutation_costs_nothing_for_huge_corpora(size: int, seed: int) -> None:
    index = np.random.default_rng(seed).choice(2**33, 500, replace=False)
    sent = loader.permute(index, size, seed=seed, epoch=0)
    assert len(set(sent.tolist())) == 500
    assert ((sent >= 0) & (sent < size)).all()


def test_the_order_is_mixed_and_differs_between_epochs_and_seeds() -> None:
    size = 10_000
    orders = [loader.permute(np.arange(size), size, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0))]
    for a, b in itertools.combinations(orders, 2):
        assert (a == b).mean() < 0.01
    # A random permutation has no serial correlation; |r| < 5 / sqrt(n) holds with probability 1 - 6e-7.
    for order in orders:
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / np.sqrt(size)


def test_the_same_seed_gives_the_same_batches_after_reopening(stdlib_corpus: Path) -> None:
    arguments = {"seed": 5, "step": 7, "rows": 4, "seq_len": 64}
    first = loader.batch(Corpus.open(stdlib_corpus), **arguments)
    again = loader.batch(Corpus.open(stdlib_corpus), **arguments)
    np.testing.assert_array_equal(first.input_ids, again.input_ids)
    other = loader.batch(Corpus.open(stdlib_corpus), **{**arguments, "seed": 6})
    assert (first.input_ids != other.input_ids).any()
    assert first.input_ids.dtype == first.targets.dtype == np.int64
    assert first.document_ids is None


def test_document_ids_agree_with_the_begin_tokens_of_a_real_corpus(stdlib_corpus: Path) -> None:
    corpus = Corpus.open(stdlib_corpus)
    batch = loader.batch(corpus, seed=1, step=0, rows=32, seq_len=512, document_mask=True)
    begins = batch.input_ids == corpus.tokenizer.bos_id
    from_tokens = np.cumsum(begins, axis=1) - begins[:, :1]
    assert batch.document_ids is not None
    real = batch.targets != -100
    np.testing.assert_array_equal(batch.document_ids[real], from_tokens[real])


def test_rows_outside_the_batch_are_refused(stdlib_corpus: Path) -> None:
    with pytest.raises(ValueError, match="are not within a batch of 4"):
        loader.batch(Corpus.open(stdlib_corpus), seed=0, step=0, rows=4, seq_len=8, start=2, stop=5)


def test_prefetch_keeps_order_and_works_ahead() -> None:
    made: list[int] = []

    def slow() -> Iterator[int]:
        for number in range(6):
            made.append(number)
            yield number

    items = loader.prefetch(slow(), depth=2)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) >= 3
    assert list(items) == [1, 2, 3, 4, 5]


def test_prefetch_raises_the_producers_error_where_the_item_would_come() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise PunaError("the disk is gone.")

    items = loader.prefetch(broken())
    assert next(items) == 1
    with pytest.raises(PunaError, match="the disk is gone"):
        next(items)


def test_prefetch_ends_its_thread_when_the_consumer_stops() -> None:
    before = set(threading.enumerate())
    items = loader.prefetch(itertools.count(), depth=3)
    assert next(items) == 0
    assert set(threading.enumerate()) - before
    items.close()  # type: ignore[attr-defined]
    assert not set(threading.enumerate()) - before
