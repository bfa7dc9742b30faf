"""Sampling compared with transformers' filters and with the intended distribution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from puna.core.errors import PunaError
from puna.engine.sampling import Constraint, History, SamplingParams, adjusted, gather_logprobs, probabilities, sample


@settings(max_examples=100, deadline=None)
@given(
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 1, 5, 40]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    seed=st.integers(0, 1000),
)
def test_filters_keep_what_transformers_keeps(
    temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(seed)) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    theirs = warpers(torch.zeros(2, 1, dtype=torch.long), logits).softmax(-1)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ours = probabilities(logits, [params, params])
    torch.testing.assert_close(ours / ours.sum(-1, keepdim=True), theirs, rtol=1e-4, atol=1e-6)


def test_even_uniform_numbers_give_the_distribution() -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 0.0, 1.0]).expand(20_000, -1)
    uniforms = [(i + 0.5) / 20_000 for i in range(20_000)]
    ids, logprobs = sample(logits, [SamplingParams()] * 20_000, uniforms)
    expected = logits[0].softmax(-1)
    torch.testing.assert_close(ids.bincount(minlength=5) / 20_000, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(logprobs, logits[0].log_softmax(-1)[ids])


def test_rows_with_unlike_parameters_do_not_disturb_each_other() -> None:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    params = [
        SamplingParams(temperature=0),
        SamplingParams(top_k=1),
        SamplingParams(top_p=1e-6),
        SamplingParams(min_p=1.0, temperature=1e-9),
    ]
    ids, _ = sample(logits, params, [0.999999] * 4)
    assert torch.equal(ids, logits.argmax(-1)), "each of the four keeps only the most likely token"


@given(edge=st.sampled_from([0.0, 0.5, 1 - 2**-53]), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_a_filtered_token_is_never_drawn(edge: float, seed: int) -> None:
    logits = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed)) * 4
    logits[0, [0, 63]] = float("-inf")  # at both ends, where a rounding error would fall
    params = [SamplingParams(top_p=0.8)]
    ids, _ = sample(logits, params, [edge])
    assert probabilities(logits, params)[0, ids[0]] > 0
    ids, _ = sample(logits, [SamplingParams()], [edge])
    assert ids[0] not in (0, 63)


SETTINGS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 3, 40]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 9),
)


@settings(max_examples=60, deadline=None)
@given(params=st.lists(SETTINGS, min_size=2, max_size=6), seed=st.integers(0, 99), bound=st.booleans())
def test_a_seed_gives_the_same_token_in_any_company(params: list[SamplingParams], seed: int, bound: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(params), 60, generator=generator) * 3
    allowed = (torch.rand(1, 60, generator=generator) < 0.3).index_fill(1, torch.tensor([7]), True)
    constraint = Constraint([len(params) - 1], allowed) if bound else None
    draws = [p.uniforms().random() for p in params]
    histories = [History([1, 2], [3])] * len(params)
    ids, logprobs = sample(logits, params, draws, histories, constraint)
    for i, p in enumerate(params):
        last = constraint is not None and i == len(params) - 1
        own = sample(logits[i : i + 1], [p], [draws[i]], histories[:1], Constraint([0], allowed) if last else None)
        assert (ids[i], logprobs[i]) == (own[0][0], own[1][0])
        assert not last or allowed[0, ids[i]]


@settings(max_examples=50, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 29), min_size=1, max_size=9),
    text=st.lists(st.integers(0, 19), max_size=9),
    penalty=st.sampled_from([0.5, 1.0, 1.3]),
    seed=st.integers(0, 99),
)
def test_penalties(prompt: list[int], text: list[int], penalty: float, seed: int) -> None:
    logits = torch.randn(2, 20, generator=torch.Generator().manual_seed(seed))
    params = [
        SamplingParams(repetition_penalty=penalty),
        SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: -7.0, 19: 2.0}),
    ]
    ours = adjusted(logits, params, [History(prompt, text)] * 2)
    seen = [token for token in [*prompt, *text] if token < 20]  # a padded embedding has more ids than the tokenizer
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen], dtype=torch.long), logits[:1].clone())
    torch.testing.assert_close(ours[:1], theirs)
    # OpenAI's formula (API reference, "Frequency and presence penalties").
    for token in range(20):
        count = text.count(token)
        expected = logits[1, token] - (count > 0) * 0.5 - count * 0.25 + {3: -7.0, 19: 2.0}.get(token, 0.0)
        assert ours[1, token].item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_bias_chooses_and_the_logprob_stays_the_models() -> None:
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(0))
    ids, logprobs = sample(logits, [SamplingParams(temperature=0, logit_bias={4: 100.0})], [0.0], [History([], [])])
    assert ids.tolist() == [4]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[:, 4])


def test_the_likeliest_tokens_come_first_and_are_no_more_than_there_are() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    [[own, *best]] = gather_logprobs(logits, [0], 20)
    assert own == (0, pytest.approx(logits.log_softmax(-1)[0, 0].item()))
    assert [token for token, _ in best] == [1, 2, 0]


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 2.0},
        {"n": 0},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {1: float("nan")}},
        {"top_logprobs": -1},
        {"prompt_logprobs": -1},
        {"stop": ("",)},
        {"stop": "end"},
    ],
)
def test_meaningless_parameters_are_refused(values: dict) -> None:
    with pytest.raises(PunaError, match=next(iter(values)) + r"|stop string"):
        SamplingParams(**values)
