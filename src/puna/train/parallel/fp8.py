"""Tensorwise fp8 products for the blocks' linear layers, on `torch.nn.functional.scaled_mm`.

Off by default. Weights keep their precision. In each product both factors are scaled so that their largest magnitude is
fp8's largest, cast, multiplied by the fp8 units and scaled back: e4m3 for activations and weights, e5m2 for gradients,
whose range is wider (arXiv 2209.05433). There is one scale per tensor, computed from the tensor itself each time: the
fastest of the scaling recipes on Hopper, and the one with the least state. Embedding, head and small layers keep their
precision. At equal quality the gain is smaller than the raw speed-up suggests; measure both.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.core.errors import PunaError

# Below this width casting costs more than the product saves (in nanochat, d12, 768 wide, became slower on H100).
LEAST_WIDTH = 1024


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies fp8: compute capability 8.9 (Ada), 9.0 (Hopper) or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def use_fp8(model: nn.Module, device: torch.device, *, least_width: int = LEAST_WIDTH) -> int:
    """Switch every large linear layer of the blocks to fp8 on `device`, in place.

    Returns how many were switched. Raises PunaError when the device has no fp8 units or no layer is large enough.
    """
    if not has_fp8(device):
        raise PunaError(
            "train.fp8 = true, but this device has no fp8 units.",
            "It needs an Ada, Hopper or later GPU; set it to false.",
        )
    count = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name and _suits(module, least_width):
            module.forward = _Forward(module)  # type: ignore[method-assign, assignment]
            count += 1
    if not count:
        raise PunaError(
            f"train.fp8 = true, but no layer is at least {least_width} wide.",
            "Set it to false: this model would gain nothing from it.",
        )
    return count


def _suits(module: nn.Linear, least_width: int) -> bool:
    sizes = (module.in_features, module.out_features)
    return min(sizes) >= least_width and all(size % 16 == 0 for size in sizes)  # the units need multiples of 16


class _Forward:
    """`linear(x)` in fp8, reading the weight from its module at each call (FSDP swaps it)."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        dtype = torch.bfloat16 if torch.is_autocast_enabled(x.device.type) else x.dtype
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        return _Product.apply(flat, self.module.weight.to(dtype)).view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """x (tokens, in) times weight (out, in) transposed, and both gradients, in fp8 products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight.T, torch.float8_e4m3fn, torch.float8_e4m3fn)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = multiply(grad, weight, torch.float8_e5m2, torch.float8_e4m3fn)
        grad_weight = multiply(grad.T, x, torch.float8_e5m2, torch.float8_e4m3fn)
        return grad_x, grad_weight


def multiply(a: Tensor, b: Tensor, a_type: torch.dtype, b_type: torch.dtype) -> Tensor:
    """a (m, k) @ b (k, n) through fp8; the result has a's precision.

    The units need a row-major and b column-major.
    """
    a8, a_scale = quantize(a.contiguous(), a_type)
    b8, b_scale = quantize(b.T.contiguous(), b_type)
    tensorwise = F.ScalingType.TensorWise
    return F.scaled_mm(a8, b8.T, a_scale, tensorwise, b_scale, tensorwise, output_dtype=a.dtype)


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return (x / scale in `dtype`, scale).

    scale: one float32 for the tensor, so that its largest magnitude just fits.
    """
    largest = torch.finfo(dtype).max
    scale = (x.abs().amax().float() / largest).clamp_min(1e-12)
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale
