"""The loader: a pure function from (corpus, seed, step) to the global batch of that step.

The training stream (`Corpus.read`) is cut into rows: row i is tokens i*seq_len .. (i+1)*seq_len, with the token after
each as its target. Epoch e visits the rows in the order of a keyed permutation, so every token of the stream except the
first is a target exactly once per epoch; the last row is padded and its padding does not count. The permutation is
computed for each row separately (a Feistel network with cycle walking, Black and Rogaway 2002), in constant time and
memory whatever the size of the corpus.

The loader has no state and knows no ranks: a rank requests its slice of the rows, so the number of processes may change
between two steps, and the step number is the whole state.
"""

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from puna.core.errors import PunaError
from puna.data.cleaning.shingles import mix
from puna.data.corpus import Corpus

IGNORED = -100  # a target that is not counted, as in torch's cross entropy
_ROUNDS = 6  # Luby and Rackoff need 4 for a strong permutation; two more cost nothing

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step.

    input_ids, targets: (rows, seq_len) int64; targets are -100 where they are not counted.
    document_ids: (rows, seq_len) int32, the document of each input token within its row, counted from 0; or None.
    """

    input_ids: np.ndarray
    targets: np.ndarray
    document_ids: np.ndarray | None


def batch(
    corpus: Corpus,
    *,
    seed: int,
    step: int,
    rows: int,
    seq_len: int,
    document_mask: bool = False,
    start: int = 0,
    stop: int | None = None,
) -> Batch:
    """Rows start..stop (default: all) of the global batch of `rows` rows at `step` (from 0).

    Raises PunaError if the corpus has too few tokens for one row.
    """
    stop = rows if stop is None else stop
    if not 0 <= start <= stop <= rows:
        raise ValueError(f"rows {start}..{stop} are not within a batch of {rows}")
    order = row_order(corpus, seed=seed, first=step * rows + start, count=stop - start, seq_len=seq_len)
    input_ids = np.zeros((len(order), seq_len), dtype=np.int64)
    targets = np.full((len(order), seq_len), IGNORED, dtype=np.int64)
    document_ids = np.zeros((len(order), seq_len), dtype=np.int32) if document_mask else None
    for row, place in enumerate(order.tolist()):
        low = place * seq_len
        high = min(low + seq_len, corpus.stream_tokens - 1)
        tokens = corpus.read(low, high + 1)
        input_ids[row, : high - low] = tokens[:-1]
        targets[row, : high - low] = tokens[1:]
        if document_ids is not None:
            document_ids[row, : high - low] = corpus.read_document_ids(low, high)
            # The padding of the last row is a document of its own, so that no real token sees it.
            document_ids[row, high - low :] = document_ids[row, high - low - 1] + 1
    return Batch(input_ids, targets, document_ids)


def documents_of(corpus: Corpus, *, seed: int, step: int, rows: int, seq_len: int) -> list[str]:
    """Names ("source/name") of the documents in the batch of `step`, each once, in the order of the rows."""
    names: dict[str, None] = {}
    for place in row_order(corpus, seed=seed, first=step * rows, count=rows, seq_len=seq_len).tolist():
        low = place * seq_len
        names.update(dict.fromkeys(corpus.documents_between(low, min(low + seq_len + 1, corpus.stream_tokens))))
    return list(names)


def rows_per_epoch(corpus: Corpus, seq_len: int) -> int:
    """Rows of one pass over the training stream. Raises PunaError if there is not even one full row."""
    usable = corpus.stream_tokens - 1
    if usable < seq_len:
        raise PunaError(
            f"{corpus.path} has {corpus.stream_tokens:,} training tokens, too few for one row of {seq_len:,} and its "
            "last target.",
            "Lower train.seq_len, or build a larger corpus.",
        )
    return -(-usable // seq_len)


def row_order(corpus: Corpus, *, seed: int, first: int, count: int, seq_len: int) -> np.ndarray:
    """The rows of the stream visited as number first .. first + count since the start of training: (count,)."""
    total = rows_per_epoch(corpus, seq_len)
    visits = np.arange(first, first + count, dtype=np.int64)
    out = np.empty(count, dtype=np.int64)
    for epoch in np.unique(visits // total).tolist():
        now = visits // total == epoch
        out[now] = permute(visits[now] % total, total, seed=seed, epoch=epoch)
    return out


def permute(index: np.ndarray, size: int, *, seed: int, epoch: int) -> np.ndarray:
    """Apply a keyed permutation of range(size) to each index, (n,) int64.

    The Feistel network permutes the next power of four; a value outside the range is permuted again until it is inside,
    fewer than four times on average.
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)
    values = index.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (mix(right ^ key) & mask)
        values[outside] = (left << half) | right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def prefetch(iterator: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The items of `iterator`, produced up to `depth` ahead in a background thread.

    An error in the iterator is raised here in place of the item. When the consumer stops early (break, error, close),
    the thread ends after its current item and is joined.
    """
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: tuple[bool, T | BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in iterator:
                put((True, item))
                if stopped.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, name="puna-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if not more:
                if isinstance(item, BaseException):
                    raise item
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
