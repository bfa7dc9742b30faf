"""Rows with a shared prompt: all results equal those of each answer on its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.tune.rows.packing import EMPTY, Answer, AnswerGroup, Row, collate, grouped, split, token_logprobs

IDS = st.lists(st.integers(0, 500), min_size=1, max_size=6)


@st.composite
def answers(draw):
    ids = draw(IDS)
    mask = draw(st.lists(st.integers(0, 1), min_size=len(ids), max_size=len(ids)))
    return Answer(ids, mask, [-float(i) * m for i, m in enumerate(mask, 1)], True)


@st.composite
def groups(draw):
    found = draw(st.lists(answers(), min_size=1, max_size=4))
    return AnswerGroup(draw(IDS), found, [float(i) for i in range(len(found))], [1 + i for i in range(len(found))])


@given(st.lists(groups(), min_size=1, max_size=4), st.integers(12, 30))
@settings(max_examples=60, deadline=None)
def test_every_chosen_token_is_there_once_with_its_own(some, seq_len):
    rows = split(some, seq_len)
    assert all(row.width <= seq_len for row in rows)
    wanted = sorted(
        (advantage, place, token, logprob)
        for group in some
        for answer, advantage in zip(group.answers, group.advantages, strict=True)
        for place, (token, logprob) in enumerate(
            (token, logprob)
            for token, learn, logprob in zip(answer.ids, answer.mask, answer.logprobs, strict=True)
            if learn
        )
    )
    if not rows:
        assert not wanted
        return
    laid = collate(rows)
    flat = zip(
        laid.advantage[laid.answer].tolist(),
        laid.place.tolist(),
        laid.target.tolist(),
        laid.old_logprobs[laid.answer, laid.place].tolist(),
        strict=True,
    )
    assert sorted(flat) == wanted
    assert laid.mask.sum() == len(wanted)
    assert torch.equal(laid.times, laid.advantage + 1)


def test_numbers_are_those_of_each_answer_alone(config, random_model):
    model = random_model(config)
    draw = torch.Generator().manual_seed(1)

    def ids(count):
        return torch.randint(0, 500, (count,), generator=draw).tolist()

    def answer(count):
        return Answer(ids(count), [1] * (count - 2) + [0, 1], [0.0] * count, True)

    three = [answer(5), answer(3), answer(7)]
    some = [AnswerGroup(ids(9), three, [1.0, 2.0, 3.0], [1, 1, 1]), AnswerGroup(ids(4), [answer(6)], [4.0], [1])]
    laid = collate(split(some, 40))
    assert laid.ids.shape == (2, 24)
    with torch.no_grad():
        hidden = model.model(laid.ids, laid.positions, laid.document_mask())
        found, entropy = token_logprobs(hidden, model.head_weight, laid.source, laid.target)
        alone = {}
        for group in some:
            for one, advantage in zip(group.answers, group.advantages, strict=True):
                logprobs = model(torch.tensor([group.prompt + one.ids]))[0].log_softmax(-1)[len(group.prompt) - 1 :]
                chosen = [at for at, learn in enumerate(one.mask) if learn]
                exact = -(logprobs.exp() * logprobs).sum(-1)
                alone[advantage] = [(logprobs[at, one.ids[at]].item(), exact[at].item()) for at in chosen]
    for advantage, expected in alone.items():
        own = laid.advantage[laid.answer] == advantage
        torch.testing.assert_close(found[own], torch.tensor([e[0] for e in expected]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy[own], torch.tensor([e[1] for e in expected]), atol=1e-5, rtol=1e-5)


def test_chunks_change_no_number_and_no_gradient():
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 6, 8, generator=draw), torch.randn(30, 8, generator=draw)
    source, target = torch.tensor([0, 3, 7, 7, 11]), torch.tensor([1, 2, 3, 4, 5])
    results = []
    for chunk in (0, 2):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logprobs, entropy = token_logprobs(h, w, source, target, chunk)
        (logprobs * torch.arange(5)).sum().backward()
        results.append((logprobs, entropy, h.grad, w.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_an_answer_that_does_not_fit_is_refused_with_its_size():
    with pytest.raises(PunaError, match="5 tokens with an answer of 6"):
        split([AnswerGroup([1] * 5, [Answer([1] * 6, [1] * 6, [0.0] * 6, True)], [0.0], [1])], 10)


def test_a_process_without_rows_computes_a_loss_of_nothing():
    laid = collate([EMPTY])
    hidden = torch.randn(1, 1, 4, requires_grad=True)
    logprobs, _ = token_logprobs(hidden, torch.randn(9, 4), laid.source, laid.target)
    laid.matrix(logprobs).sum().backward()
    assert hidden.grad.abs().sum() == 0


def test_one_answer_in_a_row_needs_no_mask():
    rows = [Row([1, 2], [(Answer([3], [1], [0.0], True), 1.0, 1)])]
    assert collate(rows).document_mask() is None


@given(st.lists(st.tuples(answers(), st.sampled_from([0.0, 1.0])), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_equal_answers_stand_once_and_count_as_often_as_they_were_given(given_answers):
    twice = [*given_answers, *given_answers]
    group = grouped([1], [answer for answer, _ in twice], [worth for _, worth in twice])
    assert sum(group.times) == len(twice)
    keys = {(tuple(answer.ids), tuple(answer.mask), worth) for answer, worth in twice}
    assert len(group.answers) == len(keys)
    for answer, worth, times in zip(group.answers, group.advantages, group.times, strict=True):
        same = [one for one, other in twice if (one.ids, one.mask, other) == (answer.ids, answer.mask, worth)]
        assert len(same) == times
