"""Bits per byte, compared with a loop over single tokens and with closed forms."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.train.measure.evaluate import bits_per_byte, documents_to_measure, windows

VOCAB = 40


class Texts:
    """A corpus of given ids: token i decodes to i % 3 bytes, except BOS (0) and end (1), which decode to none."""

    vocab_size = VOCAB
    tokenizer = SimpleNamespace(token_bytes=lambda token: b"" if token < 2 else b"x" * (token % 3))

    def __init__(self, documents, sources=None):
        self._documents = [np.array(ids, dtype=np.uint16) for ids in documents]
        self._sources = sources or ["a"] * len(documents)

    def documents(self, split):
        assert split == "heldout"
        for index, (ids, source) in enumerate(zip(self._documents, self._sources, strict=True)):
            yield f"document {index}", source, "MIT", ids


def texts(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [[0, *random.integers(2, VOCAB, size=length), 1] for length in lengths]


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def naive(model, ids, window, stride):
    """Every target by itself, from its own window, cut by hand; nats."""
    total, model = 0.0, model.double()
    for target in range(1, len(ids)):
        # the first window that reaches this target
        start = 0 if target <= window else stride * math.ceil((target - window) / stride)
        context = torch.tensor([[int(i) for i in ids[start:target]]])
        with torch.no_grad():
            logits = model(context)[0, -1]
        total += float(F.cross_entropy(logits, torch.tensor(int(ids[target]))))
    model.float()
    return total


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 8), (8, 3), (7, 1), (64, 32)])
def test_equals_a_loop_over_single_tokens(model, window, stride):
    documents = texts([1, 5, 8, 9, 30])
    result = bits_per_byte(model, Texts(documents), window=window, stride=stride, batch=3)
    nats = sum(naive(model, ids, window, stride) for ids in documents)
    num_bytes = sum(token % 3 for ids in documents for token in ids if token > 1)
    assert result["tokens"] == sum(len(ids) - 1 for ids in documents)
    assert result["bytes"] == num_bytes
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert result["loss"] == pytest.approx(nats / result["tokens"], rel=1e-5)


def test_batch_size_does_not_matter_and_the_default_stride_is_half(model):
    corpus = Texts(texts([20, 3, 41]))
    values = [bits_per_byte(model, corpus, window=10, batch=batch) for batch in (1, 4, 100)]
    assert {value["stride"] for value in values} == {5}
    assert values[0]["bits_per_byte"] == pytest.approx(values[1]["bits_per_byte"], rel=1e-6)
    assert values[0]["bits_per_byte"] == pytest.approx(values[2]["bits_per_byte"], rel=1e-6)


def test_a_model_that_knows_nothing_costs_log2_of_the_vocabulary_per_token(model):
    config = model.config
    uniform = LlamaForCausalLM(config)
    torch.nn.init.zeros_(uniform.lm_head.weight)
    result = bits_per_byte(uniform, Texts(texts([12, 30])), window=8)
    assert result["loss"] == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(result["tokens"] * math.log2(VOCAB) / result["bytes"], rel=1e-6)


def test_standard_error_agrees_with_the_bootstrap(model):
    documents = texts(np.random.default_rng(3).integers(5, 60, size=60), seed=1)
    result = bits_per_byte(model, Texts(documents), window=16, batch=64)
    parts = [bits_per_byte(model, Texts([ids]), window=16) for ids in documents]
    bits = np.array([part["bits_per_byte"] * part["bytes"] for part in parts])
    sizes = np.array([part["bytes"] for part in parts])
    random = np.random.default_rng(0)
    picks = random.integers(0, len(parts), size=(4000, len(parts)))
    bootstrap = (bits[picks].sum(1) / sizes[picks].sum(1)).std()
    assert result["bits_per_byte"] == pytest.approx(bits.sum() / sizes.sum(), rel=1e-6)
    assert result["standard_error"] == pytest.approx(bootstrap, rel=0.15)
    assert parts[0]["standard_error"] is None


def test_the_model_stays_in_the_mode_it_was_in_and_progress_reaches_one(model):
    model.train()
    seen = []
    bits_per_byte(model, Texts(texts([30])), window=8, batch=2, on_progress=seen.append)
    assert model.training
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_max_bytes_takes_each_source_by_its_share():
    corpus = Texts(texts([100, 100, 100, 100], seed=2), sources=["a", "a", "a", "b"])
    found = documents_to_measure(corpus, max_bytes=100)
    sizes = {source: sum(d.num_bytes for d in found if d.source == source) for source in "ab"}
    assert sizes["a"] == pytest.approx(75, abs=2)
    assert sizes["b"] == pytest.approx(25, abs=2)
    again = documents_to_measure(corpus, max_bytes=100)
    assert [d.ids.tolist() for d in found] == [d.ids.tolist() for d in again]
    whole = documents_to_measure(corpus)
    assert [len(d.ids) for d in whole] == [102] * 4


def test_refuses_what_cannot_be_measured(model):
    with pytest.raises(PunaError, match="stride between 1 and the window"):
        bits_per_byte(model, Texts(texts([9])), window=8, stride=9)
    with pytest.raises(PunaError, match="has no text"):
        bits_per_byte(model, Texts([[0], [0, 1]]), window=8)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 40), st.data())
def test_every_target_is_counted_exactly_once(num_tokens, window, data):
    stride = data.draw(st.integers(1, window))
    counted = []
    for start, stop, first in windows(num_tokens, window, stride):
        assert 0 <= start <= first < stop
        assert stop - start <= window
        assert first == 0 or first - start >= min(first, window - stride)  # context before the first counted target
        counted += range(first, stop)
    assert counted == list(range(max(0, num_tokens - 1)))
