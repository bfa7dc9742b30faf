"""Failures, checkpoint intervals and effective time: published records, closed forms, and properties."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.plan.run.reliability import (
    Reliability,
    best_interval,
    checkpoint_cost,
    daly_interval,
    exact_interval,
    failures_per_day,
    mean_time_to_interruption,
    meta_effective_time,
    spares_needed,
    time_shares,
    young_interval,
)

seconds = st.floats(1.0, 1e3)
mtti = st.floats(1e3, 1e7)


@pytest.mark.parametrize(("accelerators", "hours"), [(16_384, 1.8), (131_072, 0.23)])
def test_meta_research_cluster_projections(accelerators: int, hours: float) -> None:
    """arXiv 2410.21680: MTTF of 1.8 h on 16,384 and 0.23 h on 131,072 GPUs at 6.50 failures per 1000 node-days."""
    rules = Reliability(failures_per_node_day=6.5e-3)
    assert mean_time_to_interruption(accelerators, rules) / 3600 == pytest.approx(hours, rel=0.05)


def test_llama3_was_interrupted_every_three_hours() -> None:
    assert mean_time_to_interruption(16_384) / 3600 == pytest.approx(24 * 54 / 419, rel=0.01)
    assert failures_per_day(350_000) == pytest.approx(166, rel=0.01)


def test_checkpoints_are_bound_by_storage() -> None:
    """Llama 3 405B: about 5.7 TB, three seconds at 2 TB/s; BLOOM: 2.3 TB in 40 s from 48 hosts."""
    llama = checkpoint_cost(405e9, 2048)
    assert llama.bytes == pytest.approx(5.67e12)
    assert llama.write_seconds == pytest.approx(2.8, abs=0.1)
    assert checkpoint_cost(405e9, 2048, Reliability(storage_gb_per_s=100)).write_seconds == pytest.approx(56.7)
    bloom = checkpoint_cost(176e9, 48, Reliability(asynchronous=False, bytes_per_parameter=13))
    assert bloom.stall_seconds == pytest.approx(40, rel=0.25)
    assert bloom.write_seconds == 0


@given(seconds, mtti)
def test_the_exact_interval_is_the_minimum(stall: float, mean: float) -> None:
    best = exact_interval(stall, mean)

    def useful(interval: float) -> float:
        return time_shares(interval, stall, mean, 300).useful

    assert useful(best) >= max(useful(best * factor) for factor in (0.5, 0.9, 1.1, 2.0)) - 1e-12


@given(st.floats(1.0, 100.0), st.floats(1e5, 1e8))
def test_all_rules_agree_while_failures_are_rare(stall: float, mean: float) -> None:
    exact = exact_interval(stall, mean)
    assert daly_interval(stall, mean) == pytest.approx(exact, rel=2e-3)
    assert young_interval(stall, mean) == pytest.approx(exact, rel=0.06)


def test_daly_is_closer_than_young_where_failures_are_frequent() -> None:
    exact = exact_interval(60, 1000)
    assert abs(daly_interval(60, 1000) - exact) < abs(young_interval(60, 1000) - exact)
    assert daly_interval(3000, 1000) == 1000


@given(seconds, seconds, mtti, st.floats(1.0, 2e3), st.floats(0.0, 100.0), st.floats(0.0, 0.1))
def test_shares_sum_to_one(
    interval: float, stall: float, mean: float, restart: float, write: float, planned: float
) -> None:
    shares = time_shares(interval, stall, mean, restart, write_seconds=write, planned_share=planned)
    parts = (shares.useful, shares.checkpoint, shares.recompute, shares.restart, shares.planned)
    assert sum(parts) == pytest.approx(1)
    assert min(parts) >= -1e-12
    worse = time_shares(interval, stall, mean / 2, restart, write_seconds=write, planned_share=planned)
    assert worse.useful < shares.useful


def test_metas_linear_form_is_the_limit_of_the_exact_one() -> None:
    for mean in (1e5, 1e6):
        exact = time_shares(300, 5, mean, 600).useful
        assert meta_effective_time(300, 5, mean, 600) == pytest.approx(exact, abs=2 * (905 / mean) ** 2 + 1e-4)
    # RSC, 16k GPUs at 6.5e-3: the paper's figure of about 0.9 for its large runs with minutes of overhead.
    assert 0.85 < meta_effective_time(300, 5, 6490, 600) < 0.95


def test_intervals_are_no_shorter_than_a_write() -> None:
    slow = Reliability(storage_gb_per_s=10)
    checkpoint = checkpoint_cost(405e9, 2048, slow)
    assert best_interval(16_384, checkpoint, slow)[0] == checkpoint.write_seconds == pytest.approx(567)


def test_spares_as_opt_kept_them() -> None:
    """OPT-175B lost about two of its 124 hosts per day and kept 12 to 18 spare hosts (its logbook, 2022)."""
    rules = Reliability(failures_per_node_day=2 / 124, hardware_share=1)
    assert 12 <= spares_needed(992, rules) <= 18


@given(st.integers(8, 10**6))
def test_spares_hold_the_promised_probability(accelerators: int) -> None:
    rules = Reliability()
    spares = spares_needed(accelerators, rules)
    mean = failures_per_day(accelerators, rules) * rules.hardware_share * rules.repair_days

    def none_left(count: int) -> float:
        terms = (math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count))
        return 1 - math.fsum(terms)

    assert none_left(spares) <= 0.01 + 1e-9
    assert none_left(spares - 1) > 0.01 - 1e-9
    assert spares_needed(2 * accelerators, rules) >= spares
