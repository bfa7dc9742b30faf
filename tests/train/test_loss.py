"""The chunked loss compared with torch's plain cross entropy, value and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.train.loss import cross_entropy_chunked


def _inputs(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(37, 16, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, 37, (tokens,), generator=generator)
    return hidden, weight, targets


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 40), chunk=st.integers(0, 41), ignored=st.integers(0, 3), seed=st.integers(0, 99))
def test_equals_the_plain_loss_for_any_chunk_and_mask(tokens, chunk, ignored, seed):
    hidden, weight, targets = _inputs(tokens, seed)
    targets[:ignored] = -100
    valid = (targets != -100).sum().clamp_min(1)
    objective, loss = cross_entropy_chunked(hidden, weight, targets, scale=1.0 / valid, chunk=chunk)
    plain = F.cross_entropy(hidden @ weight.T, targets, ignore_index=-100, reduction="sum") / valid
    assert torch.allclose(loss, plain, atol=1e-5)
    got = torch.autograd.grad(objective, (hidden, weight))
    want = torch.autograd.grad(plain, (hidden, weight))
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_micro_batches_with_ragged_masks_add_up_to_the_whole_batch():
    hidden, weight, targets = _inputs(24)
    targets[:9] = -100  # the first micro-batch has far fewer valid targets than the second
    scale = 1.0 / (targets != -100).sum()
    whole, _ = cross_entropy_chunked(hidden, weight, targets, scale=scale)
    parts = sum(
        cross_entropy_chunked(hidden[part], weight, targets[part], scale=scale)[0]
        for part in (slice(0, 12), slice(12, 24))
    )
    assert torch.allclose(whole, parts)
    for a, b in zip(
        torch.autograd.grad(whole, (hidden, weight)), torch.autograd.grad(parts, (hidden, weight)), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)


def test_z_loss_adds_its_term_and_gradient_but_stays_out_of_the_reported_loss():
    hidden, weight, targets = _inputs(12)
    scale = torch.tensor(1 / 12)
    objective, loss = cross_entropy_chunked(hidden, weight, targets, scale=scale, chunk=5, z_loss=0.01)
    logits = hidden @ weight.T
    plain = F.cross_entropy(logits, targets)
    want = plain + 0.01 * torch.logsumexp(logits, 1).square().mean()
    assert torch.allclose(loss, plain)
    assert torch.allclose(objective, want)
    for a, b in zip(
        torch.autograd.grad(objective, (hidden, weight)), torch.autograd.grad(want, (hidden, weight)), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)


def test_bf16_hidden_states_give_gradients_in_their_own_precision():
    hidden, weight, targets = _inputs(16, dtype=torch.bfloat16)
    objective, loss = cross_entropy_chunked(hidden, weight, targets, scale=torch.tensor(1 / 16), chunk=4)
    objective.backward()
    assert loss.dtype == torch.float32
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    plain = F.cross_entropy(hidden.float() @ weight.float().T, targets)
    assert loss.item() == pytest.approx(plain.item(), rel=0.02)
