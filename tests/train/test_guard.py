"""The guard: what it skips, what it accepts, and the decisions after many skips."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.train.guard import Guard, decide
from puna.train.recipe import GuardConfig


def feed(guard: Guard, losses: list[float], norms: list[float] | None = None) -> list[bool]:
    """Whether each step was skipped."""
    norms = norms or [1.0 + 0.01 * (i % 7) for i in range(len(losses))]
    return [bool(guard.check(torch.tensor(a), torch.tensor(b))) for a, b in zip(losses, norms, strict=True)]


def calm(count: int) -> list[float]:
    """A loss that falls slowly with noise."""
    return [4.0 - 0.005 * i + 0.02 * math.sin(i) for i in range(count)]


def test_calm_training_is_left_alone() -> None:
    guard = Guard(GuardConfig(), "cpu")
    assert not any(feed(guard, calm(400)))
    assert guard.drain() == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_skipped_at_once(bad: float) -> None:
    guard = Guard(GuardConfig(), "cpu")
    assert feed(guard, [bad, 4.0, 4.0]) == [True, False, False]
    assert feed(guard, [4.0, 4.0], [bad, 1.0]) == [True, False]


def test_planted_spikes_are_skipped_and_drained_by_position() -> None:
    guard = Guard(GuardConfig(), "cpu")
    feed(guard, calm(64))
    assert guard.drain() == []
    losses, norms = calm(20), [1.0 + 0.01 * (i % 7) for i in range(20)]
    losses[3], norms[11] = 9.0, 50.0
    assert [i for i, skip in enumerate(feed(guard, losses, norms)) if skip] == [3, 11]
    assert guard.drain() == [3, 11]
    assert guard.drain() == []


def test_a_fall_is_no_spike() -> None:
    guard = Guard(GuardConfig(), "cpu")
    feed(guard, calm(64))
    assert feed(guard, [0.5]) == [False]


def test_spikes_are_looked_for_only_once_a_quarter_of_the_window_is_filled() -> None:
    guard = Guard(GuardConfig(window=128), "cpu")
    assert feed(guard, [*calm(31), 9.0])[-1] is False  # 31 known values
    guard = Guard(GuardConfig(window=128), "cpu")
    assert feed(guard, [*calm(32), 9.0])[-1] is True


def test_skipped_values_do_not_enter_the_statistics() -> None:
    guard = Guard(GuardConfig(window=16), "cpu")
    feed(guard, calm(16))
    assert feed(guard, [50.0] * 40) == [True] * 40  # otherwise fifty would soon be the mean
    assert feed(guard, [4.0]) == [False]


def test_equal_values_make_no_spike_of_a_rounding_error() -> None:
    guard = Guard(GuardConfig(), "cpu")
    assert not any(feed(guard, [2.0] * 64 + [2.0 + 1e-6], [1.0] * 65))


@given(st.lists(st.floats(1.0, 3.0), min_size=8, max_size=60), st.floats(1.0, 20.0))
def test_the_threshold_is_that_of_the_statistics_module(history: list[float], value: float) -> None:
    config = GuardConfig(window=8)
    guard = Guard(config, "cpu")
    accepted = [x for x, skip in zip(history, feed(guard, history, [1.0] * len(history)), strict=True) if not skip]
    window = accepted[-8:]
    mean, deviation = statistics.fmean(window), statistics.pstdev(window)
    threshold = mean + config.sigmas * max(deviation, 1e-3 * mean)
    if len(accepted) >= guard.warmup and abs(value - threshold) > 1e-3:
        assert feed(guard, [value], [1.0]) == [value > threshold]


def test_a_resumed_guard_decides_as_the_uninterrupted_one() -> None:
    values = calm(300)
    values[250] = 8.0
    straight = Guard(GuardConfig(), "cpu")
    feed(straight, values[:200])
    resumed = Guard(GuardConfig(), "cpu")
    resumed.load_state_dict({name: tensor.clone() for name, tensor in straight.state_dict().items()})
    assert feed(straight, values[200:]) == feed(resumed, values[200:])
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def test_off_means_off() -> None:
    guard = Guard(GuardConfig(enabled=False), "cpu")
    assert feed(guard, [float("nan"), 4.0]) == [False, False]


def test_few_skips_are_borne() -> None:
    config = GuardConfig(max_skips=3, window=100)
    assert decide(config, [], step=10, rollbacks=0).action == "none"
    assert decide(config, [5, 9], step=10, rollbacks=0).action == "none"
    assert decide(config, [5, 50, 106], step=106, rollbacks=0).action == "none"  # 5 has left the window


def test_many_skips_roll_back_and_then_stop_with_a_sentence() -> None:
    config = GuardConfig(max_skips=3, window=100, max_rollbacks=2)
    skipped = [20, 50, 106]
    first = decide(config, skipped, step=106, rollbacks=0)
    assert first.action == "rollback"
    assert "3 of the last 100 steps" in first.reason
    assert decide(config, skipped, step=106, rollbacks=1).action == "rollback"
    last = decide(config, skipped, step=106, rollbacks=2)
    assert last.action == "stop"
    assert "after 2 roll-backs" in last.reason
    assert decide(GuardConfig(max_skips=1, max_rollbacks=0), [4], step=4, rollbacks=0).action == "stop"
