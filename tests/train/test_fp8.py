"""fp8 products: torch emulates them on the CPU, so their numerics are tested everywhere."""

import pytest
import torch
from torch import nn

from puna.core.errors import PunaError
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.train.parallel.fp8 import _Forward, multiply, quantize, use_fp8


def test_quantize_uses_the_whole_range_and_survives_zeros():
    x = torch.tensor([[0.0, -3.0], [1.5, 0.75]])
    low, scale = quantize(x, torch.float8_e4m3fn)
    assert low.float().abs().max() == torch.finfo(torch.float8_e4m3fn).max
    assert torch.equal(low.float() * scale, x)  # powers of two apart: exact
    zeros, scale = quantize(torch.zeros(2, 2), torch.float8_e4m3fn)
    assert torch.equal(zeros.float() * scale, torch.zeros(2, 2))


def test_products_and_gradients_are_those_of_a_linear_up_to_fp8_rounding():
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=False)
    x = torch.randn(2, 16, 64, requires_grad=True)
    exact = linear(x)
    want = torch.autograd.grad(exact.square().mean(), (x, linear.weight))
    low = _Forward(linear)(x)
    got = torch.autograd.grad(low.square().mean(), (x, linear.weight))
    for a, b in zip((low, *got), (exact, *want), strict=True):
        assert (a - b).norm() / b.norm() < 0.08  # e4m3 keeps 3 bits after the point, e5m2 two


def test_scales_keep_tiny_gradients_alive():
    a, b = torch.randn(16, 32) * 1e-9, torch.randn(32, 16) * 1e-9
    product = multiply(a, b, torch.float8_e5m2, torch.float8_e4m3fn)
    assert (product - a @ b).norm() / (a @ b).norm() < 0.1


def test_a_device_without_fp8_is_refused_with_a_sentence():
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9):
        pytest.skip("this device has fp8 units")
    with pytest.raises(PunaError, match="no fp8 units"):
        use_fp8(LlamaForCausalLM(ModelConfig(preset="nano")), torch.device("cpu"))
