"""Block formats: what gguf reads back is near what went in, for any values."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from puna.convert.quants import ERROR_BOUND, fitting_type, quantize, relative_errors

# Root mean square error of normally distributed values, as a share of theirs: measured, rounded up. The least that is
# possible for 16 and 64 even levels over blocks of 32 and 16 lies about a tenth below.
TYPICAL = {Type.Q8_0: 0.006, Type.Q5_0: 0.045, Type.Q4_0: 0.09, Type.Q4_K: 0.075, Type.Q5_K: 0.038, Type.Q6_K: 0.018}


@pytest.mark.parametrize("kind", TYPICAL, ids=lambda kind: kind.name)
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_typical_error(kind: Type, size: float) -> None:
    values = (np.random.default_rng(0).standard_normal((24, 512)) * size).astype(np.float32)
    squares, worst = relative_errors(values, quantize(values, kind), kind)
    assert (squares / np.square(values, dtype=np.float64).sum()) ** 0.5 < TYPICAL[kind]
    assert worst <= 1


ROWS = arrays(
    np.float32,
    (2, 256),
    elements=st.one_of(
        st.just(0.0), st.floats(-1, 1, width=32), st.floats(-1000, 1000, width=32), st.sampled_from([1.0, -1.0, 1e-6])
    ),
)


@pytest.mark.parametrize("kind", ERROR_BOUND, ids=lambda kind: kind.name)
@settings(max_examples=40)
@given(values=ROWS)
def test_no_value_is_further_off_than_the_bound(kind: Type, values: np.ndarray) -> None:
    stored = quantize(values, kind)
    assert stored.shape == (2, 256 // gguf.GGML_QUANT_SIZES[kind][0] * gguf.GGML_QUANT_SIZES[kind][1])
    assert relative_errors(values, stored, kind)[1] <= 1


@pytest.mark.parametrize("kind", [Type.Q4_K, Type.Q5_K, Type.Q6_K], ids=lambda kind: kind.name)
def test_values_that_a_format_can_hold_come_back_nearly_as_they_were(kind: Type) -> None:
    values = np.random.default_rng(1).standard_normal((8, 256)).astype(np.float32)
    once = gguf.dequantize(quantize(values, kind), kind)
    twice = gguf.dequantize(quantize(once, kind), kind)
    first = np.square(values - once).mean()
    assert np.square(once - twice).mean() < first / 4
    zeros = np.zeros((1, 256), np.float32)
    assert not gguf.dequantize(quantize(zeros, kind), kind).any()


def test_better_than_rounding_over_the_range() -> None:
    values = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
    sub = values.reshape(-1, 32)
    low, reach = np.minimum(sub.min(1), 0)[:, None], np.ptp(np.append(sub, np.zeros((len(sub), 1)), 1), axis=1)[:, None]
    naive = np.rint((sub - low) / reach * 15) / 15 * reach + low  # its scales are not even rounded
    squares, _ = relative_errors(values, quantize(values, Type.Q4_K), Type.Q4_K)
    assert squares < 0.95 * np.square(sub - naive).sum()


def test_other_row_lengths() -> None:
    assert fitting_type(Type.Q4_K, 512) == Type.Q4_K
    assert fitting_type(Type.Q4_K, 96) == Type.Q5_0
    assert fitting_type(Type.Q6_K, 96) == Type.Q8_0
    assert fitting_type(Type.Q8_0, 50) == Type.F16
    with pytest.raises(ValueError, match="96 columns"):
        quantize(np.zeros((1, 96), np.float32), Type.Q4_K)
