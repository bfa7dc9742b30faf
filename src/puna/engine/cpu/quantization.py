"""Weight quantization: int8 with one scale per row, int4 with a scale and a zero point per 32 weights of a row."""

import torch
from torch import Tensor

GROUP = 32
"""Weights that share an int4 scale."""
_SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (out, in) int8 in -127..127 and scales (out,) in the weight's precision: w = code * scale."""
    wide = weight.float()
    scale = (wide.abs().amax(1).clamp_min(1e-12) / 127).to(weight.dtype)
    return (wide / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


def quantize_int4(weight: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes (out, in) uint8 in 0..15 and (out, groups, 2) scale and zero: w = (code - 8) * scale + zero.

    Several ranges are tried, and the one with the smallest error is taken.
    """
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    middle = (low + high) / 2
    best = torch.full_like(low, torch.inf)
    codes, affine = torch.zeros_like(groups, dtype=torch.uint8), torch.zeros(*low.shape, 2, dtype=precision)
    for shrink in _SHRINKS:
        scale = ((high - low) * shrink / 15).clamp_min(1e-8).to(precision)
        zero = (middle + scale.float() / 2).to(precision)  # of code 8; 7.5 is the middle
        q = ((groups - zero.float()[..., None]) / scale.float()[..., None] + 8).round_().clamp_(0, 15)
        error = ((q - 8) * scale.float()[..., None] + zero.float()[..., None] - groups).square_().sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        codes[better] = q[better].to(torch.uint8)
        affine[better] = torch.stack((scale, zero), -1)[better]
    return codes.flatten(1), affine
