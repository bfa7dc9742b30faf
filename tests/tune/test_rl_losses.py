"""Losses of reinforcement compared with TRL's and with closed forms, and with extreme inputs."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.tune.rl.losses import (
    METHODS,
    advantages,
    informative,
    k3,
    overlong_penalty,
    policy_loss,
    token_weights,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "rl_losses.json").read_text())
KINDS = list(METHODS)


def _case(name):
    case = GOLDEN["cases"][name]
    kind = name.split()[0]
    rewards = torch.tensor([float("nan") if r is None else r for r in case["rewards"]]).view(-1, case["group"])
    return case, kind, rewards


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_advantages_are_those_of_trl(name):
    case, kind, rewards = _case(name)
    scale = case["settings"].get("scale_rewards", "none")
    found = advantages(rewards, METHODS[kind].baseline, scale)
    torch.testing.assert_close(found.flatten(), torch.tensor(case["advantages_of_rewards"]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_loss_and_gradient_are_those_of_trl(name):
    case, kind, _ = _case(name)
    mask = torch.tensor(case["mask"])
    logprobs = torch.tensor(case["logprobs"], requires_grad=True)
    old = torch.tensor(case["old_logprobs"])
    if old.ndim == 1:  # TRL's RLOO stores sums: any logprobs with this sum have the same ratio
        old = old[:, None] / mask.sum(-1, keepdim=True) * mask
    clip = (case["settings"]["epsilon"], case["settings"].get("epsilon_high", case["settings"]["epsilon"]))
    reference = case["ref_logprobs"]
    loss, metrics = policy_loss(
        logprobs,
        old,
        mask,
        torch.tensor(case["advantages"]),
        token_weights(mask, kind, max_tokens=case["max_tokens"]),
        kind,
        clip=clip,
        ref_logprobs=None if reference is None else torch.tensor(reference),
        kl=case["settings"].get("beta", 0.0),
    )
    loss.backward()
    # TRL averages GRPO over all answers, including masked ones; Puna counts the others (only dapo masks here).
    torch.testing.assert_close(loss.item(), case["loss"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logprobs.grad, torch.tensor(case["gradient"]), atol=1e-6, rtol=1e-6)
    assert metrics["clipped"] > 0, "the case should clip something to be meaningful"
    assert metrics["dropped"] == 0


def test_the_overlong_penalty_is_that_of_dapo():
    golden = GOLDEN["overlong"]
    found = overlong_penalty(torch.tensor(golden["lengths"]), golden["limit"], golden["cache"])
    torch.testing.assert_close(found, torch.tensor(golden["penalties"], dtype=torch.float32))
    assert overlong_penalty(torch.tensor([4, 5]), 4, 0).tolist() == [0, -1]


def test_a_group_of_equal_rewards_teaches_nothing_and_says_so():
    rewards = torch.tensor([[1.0, 1, 1], [0, 1, 0], [0, 0, float("nan")], [float("nan")] * 3])
    assert informative(rewards).tolist() == [False, True, False, False]
    for method in METHODS.values():
        found = advantages(rewards, method.baseline, method.scale)
        assert found.isfinite().all()
        assert found[[0, 2, 3]].abs().max() == 0
        assert found[1, 1] > 0 > found[1, 0]


def test_an_unknown_reward_moves_no_other():
    with_hole = advantages(torch.tensor([[1.0, float("nan"), 0, 0]]))
    without = advantages(torch.tensor([[1.0, 0, 0]]))
    assert with_hole[0, 1] == 0
    torch.testing.assert_close(with_hole[0, [0, 2, 3]], without[0])


@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_parts_of_a_batch_add_up_to_the_whole(seed, kind, cut):
    draw = torch.Generator().manual_seed(seed)
    logprobs = (-torch.rand(6, 7, generator=draw)).requires_grad_()
    old, advantage = -torch.rand(6, 7, generator=draw), torch.randn(6, generator=draw)
    mask = (torch.rand(6, 7, generator=draw) < 0.6).long()
    weights = token_weights(mask, kind, max_tokens=7)
    whole, _ = policy_loss(logprobs, old, mask, advantage, weights, kind)
    counts = {"answers": max(1.0, float((mask.sum(-1) > 0).sum())), "tokens": max(1.0, float(mask.sum()))}
    parts = []
    for rows in (slice(None, cut), slice(cut, None)):
        part_weights = token_weights(mask[rows], kind, max_tokens=7, **counts)
        torch.testing.assert_close(part_weights, weights[rows])
        parts.append(policy_loss(logprobs[rows], old[rows], mask[rows], advantage[rows], part_weights, kind)[0])
    torch.testing.assert_close(sum(parts), whole, atol=1e-6, rtol=1e-5)


@given(st.integers(0, 10**6), st.sampled_from(KINDS))
@settings(max_examples=40, deadline=None)
def test_the_first_step_follows_the_policy_gradient(seed, kind):
    """If the policy is the writer, every ratio is 1: the gradient is -advantage * weight, as in REINFORCE."""
    draw = torch.Generator().manual_seed(seed)
    old = -torch.rand(3, 5, generator=draw)
    logprobs, advantage = old.clone().requires_grad_(), torch.randn(3, generator=draw)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    weights = token_weights(mask, kind, max_tokens=5)
    policy_loss(logprobs, old, mask, advantage, weights, kind)[0].backward()
    expected = -advantage[:, None] * (mask / 3 if kind == "rloo" else weights)
    torch.testing.assert_close(logprobs.grad, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_given_twice_counts_twice(kind):
    draw = torch.Generator().manual_seed(3)
    logprobs, old = -torch.rand(3, 4, generator=draw), -torch.rand(3, 4, generator=draw)
    mask, advantage = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1]]), torch.tensor([1.0, -0.5, 0.3])
    rows = torch.tensor([0, 1, 1, 2])
    plain = token_weights(mask[rows], kind, max_tokens=4)
    counts = {"answers": 4.0, "tokens": float(mask[rows].sum())}
    once = token_weights(mask, kind, max_tokens=4, **counts)
    whole, sums = policy_loss(
        logprobs[rows], old[rows], mask[rows], advantage[rows], plain, kind, ref_logprobs=old[rows], kl=0.1
    )
    times = torch.tensor([1.0, 2.0, 1.0])
    short, same = policy_loss(logprobs, old, mask, advantage, once, kind, times=times, ref_logprobs=old, kl=0.1)
    torch.testing.assert_close(short, whole)
    for name in sums:
        torch.testing.assert_close(same[name].float(), sums[name].float())


def test_what_is_cut_off_counts_neither_above_nor_below():
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]])
    for kind in KINDS:
        weights = token_weights(mask, kind, max_tokens=4)
        alone = token_weights(mask[1:], kind, max_tokens=4)
        torch.testing.assert_close(weights[1:], alone)
        assert weights[0].sum() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_left_out_and_counted(kind, bad):
    logprobs = torch.full((2, 3), -1.0, requires_grad=True)
    old = torch.full((2, 3), -1.2)
    old[0, 1] = bad
    mask, advantage = torch.ones(2, 3), torch.tensor([1.0, -1.0])
    weights = token_weights(mask, kind, max_tokens=3)
    loss, metrics = policy_loss(logprobs, old, mask, advantage, weights, kind)
    loss.backward()
    assert loss.isfinite()
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad[0, 1] == 0
    assert metrics["dropped"] == 1
    assert metrics["tokens"] == 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_huge_ratio_stays_finite(kind):
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    old, mask = torch.tensor([[-500.0, -1.0]]), torch.ones(1, 2)
    weights = token_weights(mask, kind, max_tokens=2)
    loss, _ = policy_loss(logprobs, old, mask, torch.tensor([-1.0]), weights, kind, ref_logprobs=old, kl=0.1)
    loss.backward()
    assert loss.isfinite()
    assert logprobs.grad.isfinite().all()


def test_k3_estimates_the_divergence():
    draw = torch.Generator().manual_seed(0)
    policy = torch.randn(8, generator=draw).log_softmax(-1)
    other = torch.randn(8, generator=draw).log_softmax(-1)
    exact = (policy.exp() * (policy - other)).sum()
    expectation = (policy.exp() * k3(policy - other)).sum()
    torch.testing.assert_close(expectation, exact)
    assert (k3(policy - other) >= 0).all()
