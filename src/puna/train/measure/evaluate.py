"""Bits per byte of a model on whole documents, comparable between tokenizers.

It is the negative log likelihood of every token, in bits, divided by the bytes of text that the tokens decode to.
Documents are scored one by one, each from its own beginning, with a sliding window: a document longer than the window
is read in overlapping windows, and each window counts only the targets that no earlier window has counted. So every
token after the first is a target exactly once, and (with a stride of half the window) sees at least half a window of
context, as in Baevski & Auli 2018 (arXiv:1809.10853, section 5.4) and transformers' perplexity guide.

Special tokens decode to no bytes, but their cost counts: a decoder must also know where a document ends.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.core.errors import PunaError
from puna.data.corpus import Corpus

# Number of tokens whose logits exist at once: 0.5 GiB in float32 with Llama 3's 128,256 tokens.
_CHUNK = 1024


class MeasuredDocument(NamedTuple):
    """A document to measure on."""

    source: str
    ids: np.ndarray  # (tokens,)
    num_bytes: int


def bits_per_byte(
    model: nn.Module,
    corpus: Corpus,
    *,
    split: str = "heldout",
    window: int,
    stride: int | None = None,
    max_bytes: int | None = None,
    batch: int = 8,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Bits per byte of `model` on a split's documents, with a standard error over documents.

    window: tokens of context and target at once. stride: tokens by which the window moves (default: half of it).
    max_bytes: measure on only about this much text (see documents_to_measure). batch: windows per forward pass; the
    input is always (batch, window), so that a compiled model compiles once. on_progress receives the share done, 0 to
    1. Under FSDP every rank must call this; each computes the same value.

    Returns bits_per_byte, loss (nats per token), standard_error and interval (95 %; None with fewer than two
    documents), documents, tokens (targets counted), bytes, window, stride, split, and by_source.
    Raises PunaError when there is nothing to measure or when window and stride do not fit together.
    """
    stride = max(1, window // 2) if stride is None else stride
    if window < 1 or not 1 <= stride <= window:
        raise PunaError(
            f"A window of {window} tokens cannot have a stride of {stride}.",
            "Choose a stride between 1 and the window, or omit it for half the window.",
        )
    documents = documents_to_measure(corpus, split, max_bytes)
    if not documents:
        raise PunaError(
            f"The {split} part of the corpus has no text to measure on.",
            "Build the corpus with a held-out share, or measure another part.",
        )
    nats = _document_nats(model, [document.ids for document in documents], window, stride, batch, on_progress)
    num_bytes = np.array([document.num_bytes for document in documents], dtype=np.float64)
    tokens = sum(len(document.ids) - 1 for document in documents)
    value, error = _ratio(nats / math.log(2), num_bytes)
    by_source = {}
    for source in sorted({document.source for document in documents}):
        own = np.array([document.source == source for document in documents])
        by_source[source] = {
            "bits_per_byte": _ratio(nats[own] / math.log(2), num_bytes[own])[0],
            "bytes": int(num_bytes[own].sum()),
            "documents": int(own.sum()),
        }
    return {
        "bits_per_byte": value,
        "loss": float(nats.sum() / tokens),
        "standard_error": error,
        "interval": None if error is None else [value - 1.96 * error, value + 1.96 * error],
        "documents": len(documents),
        "tokens": tokens,
        "bytes": int(num_bytes.sum()),
        "window": window,
        "stride": stride,
        "split": split,
        "by_source": by_source,
    }


def windows(num_tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield where to read a document of `num_tokens`.

    Yields (start, stop, first) with inputs ids[start:stop]. The target of input position i is ids[i + 1]; positions
    from `first` on are counted. Together the counted positions are 0 … num_tokens - 2, each exactly once.
    """
    last = num_tokens - 1  # the last token is only a target
    start = done = 0
    while done < last:
        stop = min(start + window, last)
        yield start, stop, done
        done = stop
        start += stride


def documents_to_measure(
    corpus: Corpus, split: str = "heldout", max_bytes: int | None = None
) -> list[MeasuredDocument]:
    """The split's documents that have text and a token to predict.

    max_bytes: select only about this much, each source by its share of the tokens; the last document of each is cut
    at a token. The selection is always the same, so values along a run, and of compressors, can be compared.
    """
    tokenizer = corpus.tokenizer
    table = np.full(corpus.vocab_size, -1, dtype=np.int64)  # bytes of each token, filled in on first use
    left: dict[str, float] = {}
    if max_bytes is not None:
        for _, source, _, ids in corpus.documents(split):
            left[source] = left.get(source, 0) + len(ids)
        total = sum(left.values())
        left = {source: max_bytes * tokens / total for source, tokens in left.items() if total}
    found: list[MeasuredDocument] = []
    for _, source, _, ids in corpus.documents(split):
        room = left.get(source, math.inf)
        if room <= 0 or len(ids) < 2:
            continue
        for token in np.unique(ids):
            if table[token] < 0:
                table[token] = len(tokenizer.token_bytes(int(token)))
        ends = np.cumsum(table[ids])  # (tokens,) bytes up to and including each token
        if ends[-1] > room:
            ids = ids[: int(np.searchsorted(ends, room)) + 1]
        num_bytes = int(ends[len(ids) - 1])
        if len(ids) > 1 and num_bytes:
            found.append(MeasuredDocument(source, ids, num_bytes))
            left[source] = room - num_bytes
    return found


@torch.no_grad()
def _document_nats(
    model: nn.Module,
    documents: Sequence[np.ndarray],
    window: int,
    stride: int,
    batch: int,
    on_progress: Callable[[float], None] | None,
) -> np.ndarray:
    """Summed negative log likelihood of each document in nats, (documents,) float64."""
    device = next(model.parameters()).device
    nats = np.zeros(len(documents))
    plan = [(d, *span) for d, ids in enumerate(documents) for span in windows(len(ids), window, stride)]
    training = model.training
    model.eval()
    try:
        for at in range(0, len(plan), batch):
            rows = plan[at : at + batch]
            inputs = np.zeros((batch, window), dtype=np.int64)
            targets = np.full((batch, window), -100, dtype=np.int64)
            for row, (d, start, stop, first) in enumerate(rows):
                inputs[row, : stop - start] = documents[d][start:stop]
                targets[row, first - start : stop - start] = documents[d][first + 1 : stop + 1]
            sums = _row_nats(model, torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
            np.add.at(nats, [row[0] for row in rows], sums.cpu().numpy()[: len(rows)])
            if on_progress:
                on_progress(min(1.0, (at + batch) / len(plan)))
    finally:
        model.train(training)
    return nats


def _row_nats(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log likelihood of each row's counted targets, (rows,) float64.

    The head runs inside forward (FSDP gathers its weight there), only over the counted positions and in chunks, so
    that the logits of a whole window never exist.
    """

    def head(hidden: Tensor, weight: Tensor) -> Tensor:
        row, position = torch.nonzero(targets != -100, as_tuple=True)
        sums = torch.zeros(len(targets), dtype=torch.float64, device=hidden.device)
        for at in range(0, len(row), _CHUNK):
            r, p = row[at : at + _CHUNK], position[at : at + _CHUNK]
            logits = F.linear(hidden[r, p], weight).float()  # (chunk, vocab)
            sums.index_add_(0, r, F.cross_entropy(logits, targets[r, p], reduction="none").double())
        return sums

    sums: Tensor = model(inputs, head=head)
    return sums


def _ratio(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float | None]:
    """Sum over sum, and its standard error over documents.

    It is the ratio estimator's (Cochran 1977, section 6.4).
    """
    value = float(numerators.sum() / denominators.sum())
    n = len(numerators)
    if n < 2:
        return value, None
    residuals = numerators - value * denominators
    return value, float(math.sqrt(n / (n - 1) * (residuals**2).sum()) / denominators.sum())
