"""Quantization to GGUF's block formats.

A block format divides each row into blocks that share a scale. Q8_0, Q5_0 and Q4_0 (32 values per block) have a unique
result, which the `gguf` package computes. The K formats have 256 values per block, in sub-blocks whose scales (and
minima) are small integers themselves; how to find those is open. Here several scales are tried for each sub-block, the
weighted least-squares problem for its rounded values is solved exactly, and the best is kept; then the sub-block scales
are rounded, and the values are rounded again with the scales that the file stores. `gguf.dequantize` reads the result.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Type = GGMLQuantizationType

# For rows that are not a multiple of 256, llama.cpp uses these (and F16 if they are not a multiple of 32 either).
FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}

# The largest error of any value, relative to the largest magnitude in its block. For the simple formats: half a step, a
# full one for Q4_0 and Q5_0, where the side without the extreme value has one level less, and the rounding of the scale
# to half precision. For the K formats: the step of a sub-block that spans the full range in both directions, the
# rounding of scale and minimum to 6 or 8 bits, and the loss of least squares at the ends (hypothesis searches for worse
# ones).
ERROR_BOUND = {
    Type.Q8_0: 0.0045,
    Type.Q5_0: 0.064,
    Type.Q5_1: 0.036,
    Type.Q4_0: 0.127,
    Type.Q4_K: 0.20,
    Type.Q5_K: 0.10,
    Type.Q6_K: 0.06,
}
# Scales are half precision, whose smallest step is 2**-24: a block of tiny values may be off by as many of these as
# there are steps to its largest value.
_STEPS = {
    Type.Q8_0: 127,
    Type.Q5_0: 16,
    Type.Q5_1: 32,
    Type.Q4_0: 8,
    Type.Q4_K: 2 * 15 * 63,
    Type.Q5_K: 2 * 31 * 63,
    Type.Q6_K: 32 * 128,
}

_SUPER = 256
_CHUNK = 1 << 16  # values per thread at once, so that temporaries stay in the cache


def fitting_type(wanted: Type, columns: int) -> Type:
    """The type that rows of `columns` values can be stored in: `wanted`, its fallback, or F16."""
    for kind in (wanted, FALLBACK.get(wanted, wanted)):
        if columns % GGML_QUANT_SIZES[kind][0] == 0:
            return kind
    return Type.F16


def quantize(values: Floats, kind: Type) -> Bytes:
    """Rows of float32 to rows of bytes. values: (rows, columns), columns a multiple of the block size of `kind`.

    Uses all cores; memory beyond input and output is a few megabytes per core. Raises ValueError for any other number
    of columns.
    """
    rows, columns = values.shape
    block, size = GGML_QUANT_SIZES[kind]
    if columns % block:
        raise ValueError(f"{columns} columns are not whole blocks of {block}")
    out = np.empty((rows, columns // block * size), np.uint8)
    function = _K_FORMATS.get(kind)
    step = max(1, _CHUNK // columns)

    def work(start: int) -> None:
        part = np.ascontiguousarray(values[start : start + step], np.float32)
        if function is None:
            with np.errstate(over="ignore", invalid="ignore"):
                out[start : start + step] = gguf.quantize(part, kind)
        else:
            out[start : start + step] = function(part.reshape(-1, _SUPER)).reshape(len(part), -1)

    with ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)))) as pool:
        for _ in pool.map(work, range(0, rows, step)):
            pass
    return out


def relative_errors(values: Floats, stored: Bytes, kind: Type) -> tuple[float, float]:
    """(sum of squared errors, worst error relative to ERROR_BOUND: above 1 means a bug) of quantized rows."""
    restored = gguf.dequantize(stored, kind)
    block = GGML_QUANT_SIZES[kind][0]
    difference = np.abs(values - restored).reshape(-1, block)
    largest = np.abs(values).reshape(-1, block).max(-1, keepdims=True)
    allowed = ERROR_BOUND[kind] * largest + _STEPS[kind] * 2.0**-24
    worst = float((difference / allowed).max(initial=0.0))
    return float(np.square(difference, dtype=np.float64).sum()), worst if np.isfinite(worst) else np.inf


# -- K formats ---------------------------------------------------------------------------------------------------------


def _q4_k(blocks: Floats) -> Bytes:
    """(n, 256) to (n, 144): d, dmin (half), 12 bytes of 6-bit scales and minima, 128 bytes of 4-bit values."""
    header, levels = _scaled_and_shifted(blocks, 15)
    return np.concatenate([header, _nibbles(levels)], axis=-1)


def _q5_k(blocks: Floats) -> Bytes:
    """(n, 256) to (n, 176): as Q4_K, with 32 bytes before the 4-bit values that hold each value's fifth bit."""
    header, levels = _scaled_and_shifted(blocks, 31)
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    high = np.bitwise_or.reduce((levels >> 4) << shifts, axis=1)  # bit j of byte i: value i of sub-block j
    return np.concatenate([header, high, _nibbles(levels & 15)], axis=-1)


def _q6_k(blocks: Floats) -> Bytes:
    """(n, 256) to (n, 210): lower 4 bits, upper 2 bits, sixteen 8-bit scales, d (half). Values are in -32 … 31."""
    count = len(blocks)
    sub = blocks.reshape(count, 16, 16)
    scale = _best_scale(sub, 32)  # (n, 16)
    # The scale furthest from zero becomes -128 or 127; the sign of d allows the wider side.
    at = np.abs(scale).argmax(-1, keepdims=True)
    d = _half(np.take_along_axis(scale, at, -1) / np.float32(-128))
    small = np.clip(np.rint(_divide(scale, d)), -128, 127)
    levels = np.clip(np.rint(_divide(sub, (d * small)[..., None])), -32, 31)
    packed = (levels.astype(np.int8) + np.int8(32)).astype(np.uint8).reshape(count, 2, 4, 32)
    low = np.stack([packed[:, :, 0] & 15 | packed[:, :, 2] << 4, packed[:, :, 1] & 15 | packed[:, :, 3] << 4], axis=2)
    high = np.bitwise_or.reduce((packed >> 4) << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=2)
    return np.concatenate(
        [low.reshape(count, 128), high.reshape(count, 64), small.astype(np.int8).view(np.uint8), _half_bytes(d)],
        axis=-1,
    )


_K_FORMATS: dict[Type, Callable[[Floats], Bytes]] = {Type.Q4_K: _q4_k, Type.Q5_K: _q5_k, Type.Q6_K: _q6_k}


def _scaled_and_shifted(blocks: Floats, top: int) -> tuple[Bytes, Bytes]:
    """The header of a block (n, 16) and its levels 0 … top, (n, 8, 32), so that x ~ d·sc·level - dmin·m."""
    count = len(blocks)
    sub = blocks.reshape(count, 8, 32)
    scale, shift = _best_scale_and_shift(sub, top)  # each (n, 8), neither below zero
    d = _half(scale.max(-1, keepdims=True) / np.float32(63))
    dmin = _half(shift.max(-1, keepdims=True) / np.float32(63))
    small_scale = np.clip(np.rint(_divide(scale, d)), 0, 63)
    small_shift = np.clip(np.rint(_divide(shift, dmin)), 0, 63)
    step, offset = (d * small_scale)[..., None], (dmin * small_shift)[..., None]
    levels = np.clip(np.rint(_divide(sub + offset, step)), 0, top).astype(np.uint8)
    sc, m = small_scale.astype(np.uint8), small_shift.astype(np.uint8)
    # Six bits each: the first four whole in bytes 0-7, the last four split between 8-11 and the free bits of 0-7.
    packed = np.concatenate(
        [
            sc[:, :4] | (sc[:, 4:] >> 4) << 6,
            m[:, :4] | (m[:, 4:] >> 4) << 6,
            sc[:, 4:] & 15 | (m[:, 4:] & 15) << 4,
        ],
        axis=-1,
    )
    return np.concatenate([_half_bytes(d), _half_bytes(dmin), packed], axis=-1), levels


def _best_scale_and_shift(sub: Floats, top: int) -> tuple[Floats, Floats]:
    """Scale a ≥ 0 and shift b ≥ 0 of each sub-block for which a·level - b fits best, level in 0 … top.

    sub: (n, 8, 32). Tries steps around the one that spans the range. For the levels of a step, the best (a, b) solves
    two normal equations; the pair with the smallest weighted error is kept.
    """
    x = _columns(sub)
    weight = _weight(x)
    low = np.minimum(x.min(0), 0)
    reach = np.maximum(x.max(0) - low, np.float32(1e-30))
    above = x - low
    weighted_x = weight * x
    total, first = weight.sum(0), weighted_x.sum(0)
    best_gain, best_scale, best_shift = np.full_like(low, -np.inf), np.zeros_like(low), np.zeros_like(low)
    levels, product = np.empty_like(x), np.empty_like(x)
    for extra in np.linspace(-1.0, 0.9, 12, dtype=np.float32):
        np.multiply(above, (top + extra) / reach, out=levels)
        np.rint(levels, out=levels)
        np.minimum(levels, top, out=levels)
        cross = np.multiply(weighted_x, levels, out=product).sum(0)
        one = np.multiply(weight, levels, out=product).sum(0)
        two = np.multiply(product, levels, out=product).sum(0)
        determinant = total * two - one * one
        scale = _divide(total * cross - one * first, determinant)
        shift = _divide(one * cross - two * first, determinant)
        # If all levels are equal, scale and shift are not determined separately: the equations give noise. Level 0
        # needs the shift, any other only the scale; so does a sub-block of positive values, which has no shift.
        same = determinant <= np.float32(1e-5) * total * two
        scale = np.where(same | (shift < 0), _divide(cross, two), scale)
        shift = np.maximum(np.where(same, np.where(two > 0, 0, _divide(-first, total)), shift), 0)
        gain = scale * cross - shift * first  # reduction of the error compared with all zeros
        better = (gain > best_gain) & (scale >= 0)
        best_gain = np.where(better, gain, best_gain)
        best_scale, best_shift = np.where(better, scale, best_scale), np.where(better, shift, best_shift)
    return best_scale.reshape(sub.shape[:2]), best_shift.reshape(sub.shape[:2])


def _best_scale(sub: Floats, half: int) -> Floats:
    """Scale of each sub-block (n, 16, 16) for levels -half … half - 1, of either sign. As above."""
    x = _columns(sub)
    weight = _weight(x)
    extreme = np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0]
    weighted_x = weight * x
    best_gain, best = np.zeros_like(extreme), np.zeros_like(extreme)
    levels, product = np.empty_like(x), np.empty_like(x)
    for extra in np.linspace(-0.9, 0.9, 13, dtype=np.float32):
        np.multiply(x, _divide(np.float32(-half) - extra, extreme), out=levels)
        np.rint(levels, out=levels)
        np.clip(levels, -half, half - 1, out=levels)
        cross = np.multiply(weighted_x, levels, out=product).sum(0)
        np.multiply(weight, levels, out=product)
        two = np.multiply(product, levels, out=product).sum(0)
        gain = _divide(cross * cross, two)
        better = gain > best_gain
        best_gain, best = np.where(better, gain, best_gain), np.where(better, _divide(cross, two), best)
    return best.reshape(sub.shape[:2])


def _columns(sub: Floats) -> Floats:
    """(n, k, size) to (size, n·k): a sub-block is a column, so that sums over it are sums of whole rows."""
    return np.ascontiguousarray(sub.reshape(-1, sub.shape[-1]).T)


def _weight(x: Floats) -> Floats:
    """The weight of an error at each value, (size, columns): larger for large values, which contribute more."""
    rms = np.sqrt(np.square(x).mean(0))
    # Normalised to about 1, so that sums over tiny or huge blocks neither underflow nor overflow.
    return cast(Floats, np.abs(x) * _divide(np.float32(1), rms) + np.float32(1))


def _divide(a: Any, b: Any) -> Any:
    """a / b, and 0 where b is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.divide(a, b, dtype=np.float32)
    return np.where(np.isfinite(quotient), quotient, np.float32(0))


def _nibbles(levels: Any) -> Bytes:
    """(n, 8, 32) values below 16 to (n, 128): two sub-blocks share 32 bytes, the first in the lower halves."""
    pairs = levels.reshape(len(levels), 4, 2, 32)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(levels), 128).astype(np.uint8)


def _half(values: Floats) -> Floats:
    """Rounded to half precision and clipped to its range, as float32."""
    return np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)


def _half_bytes(values: Floats) -> Bytes:
    return np.ascontiguousarray(values, np.float16).view(np.uint8).reshape(len(values), 2)
