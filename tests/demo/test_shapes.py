"""The choice of the demo's model by predicted bits per byte from measured step times."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.demo.shapes import MAX_PASSES, SEQ_LEN, SHAPES, Candidate, choose, predicted_bits

CORPUS = 3_400_000


def flops(shape: Candidate) -> float:
    """FLOPs per token, roughly: products of the blocks and the head, forward and backward."""
    h, i = shape.hidden_size, shape.intermediate_size
    return 6.0 * (shape.layers * (4 * h * h + 3 * h * i) + 4096 * h)


def machine(rate: float):
    """Estimates of step times on a machine with this many FLOP/s."""
    return lambda shape, rows: rows * SEQ_LEN * flops(shape) / rate + 0.02


def chosen(rate: float, seconds: float = 300.0, **options):
    step = machine(rate)
    settings = {"corpus_tokens": CORPUS, "starting": lambda shape: 10.0, "estimate": step, "measure": step, **options}
    return choose(seconds, **settings)


@given(st.floats(1e9, 1e14), st.floats(1.01, 30))
def test_a_faster_machine_never_expects_to_end_worse(rate: float, faster: float) -> None:
    assert chosen(rate * faster)[0].bits_per_byte <= chosen(rate)[0].bits_per_byte + 1e-9


@given(st.floats(1e9, 1e14), st.floats(30, 1800), st.floats(1.1, 4))
def test_more_time_never_expects_to_end_worse(rate: float, seconds: float, more: float) -> None:
    assert chosen(rate, seconds * more)[0].bits_per_byte <= chosen(rate, seconds)[0].bits_per_byte + 1e-9


def test_what_was_measured_wins_over_what_was_estimated() -> None:
    """A shape that its estimate favours is rejected when its measured step is ten times as long."""
    step = machine(7e10)
    favourite = chosen(7e10)[0].shape
    found = chosen(7e10, measure=lambda shape, rows: step(shape, rows) * (10 if shape == favourite else 1))
    assert found[0].shape != favourite
    assert found[0].measured


def test_no_more_are_measured_than_could_win() -> None:
    asked: list[tuple[Candidate, int]] = []
    step = machine(7e10)

    def measure(shape: Candidate, rows: int) -> float:
        asked.append((shape, rows))
        return step(shape, rows)

    found = chosen(7e10, measure=measure)
    assert len(asked) == len(found) <= 3
    assert all(one.measured for one in found)


def test_a_slow_machine_takes_smaller_steps_instead_of_none() -> None:
    slow = chosen(4e9, seconds=30)[0]
    assert slow.rows < 8
    assert slow.steps * slow.step_seconds <= 30


def test_time_and_passes_over_the_corpus_bound_the_steps() -> None:
    slow, fast = chosen(1e10)[0], chosen(1e15)[0]
    assert slow.steps * slow.step_seconds <= 300
    assert fast.steps * fast.rows * SEQ_LEN <= MAX_PASSES * CORPUS


def test_no_time_for_a_single_step_is_infinitely_bad() -> None:
    assert chosen(1e5)[0].bits_per_byte == math.inf


@pytest.mark.parametrize("shape", SHAPES)
def test_curves_fall_with_tokens(shape: Candidate) -> None:
    values = [predicted_bits(shape, 8, tokens) for tokens in (50_000, 300_000, 600_000, 2_000_000, 10_000_000)]
    assert values == sorted(values, reverse=True)
    assert values[-1] > 0
