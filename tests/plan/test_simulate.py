"""The simulation compared with the closed forms, within its sampling error; conservation; the fleet of 350,000."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.plan.run.reliability import DAY, Reliability, spares_needed
from puna.plan.run.simulate import ACTIVITIES, EXAMPLE_JOBS, FleetYear, JobKind, simulate_fleet


def _error(year: FleetYear, restart_seconds: float) -> float:
    """Standard error of one job's effective time: this many failures, each costing about a restart and an interval."""
    kind = year.kinds[0]
    cost = math.hypot(restart_seconds, kind.interval_seconds)
    return math.sqrt(kind.interruptions) * cost / (year.days * DAY)


@pytest.mark.parametrize(
    ("accelerators", "rules"),
    [
        (16_384, Reliability()),
        (16_384, Reliability(asynchronous=False, stall_seconds=60)),
        (131_072, Reliability(planned_per_node_day=0)),
        (65_536, Reliability(failures_per_node_day=6.5e-3, restart_seconds=1200)),
        (1_024, Reliability(failures_per_node_day=2e-2, storage_gb_per_s=1)),
    ],
)
def test_one_job_does_as_the_closed_form_says(accelerators: int, rules: Reliability) -> None:
    days = 400 * 16_384 // accelerators
    year = simulate_fleet(
        accelerators + 16_000, [JobKind("one", 1, accelerators)], days=days, seed=3, reliability=rules
    )
    job = year.kinds[0]
    assert year.waits == 0
    assert job.effective_time == pytest.approx(job.expected_effective_time, abs=4 * _error(year, rules.restart_seconds))
    expected = days * DAY / job.mtti_seconds
    assert year.failures == pytest.approx(expected, abs=4 * math.sqrt(expected))


def test_nodes_in_repair_are_as_many_as_little_says() -> None:
    """Little's law: mean in repair = failures per day x share that needs repair x days in repair."""
    rules = Reliability()
    year = simulate_fleet(20_000, [JobKind("one", 1, 16_384)], days=1000, seed=5)
    expected = 2048 * rules.failures_per_node_day * rules.hardware_share * rules.repair_days
    assert year.shares["repair"] * 2500 == pytest.approx(expected, rel=0.03)
    assert year.shares["idle"] * 2500 == pytest.approx(2500 - 2048 - expected, rel=0.03)


def test_spares_run_out_as_rarely_as_promised() -> None:
    jobs = [JobKind("one", 1, 16_384)]
    needed = spares_needed(16_384)
    enough = simulate_fleet(16_384 + 8 * needed, jobs, days=1000, seed=1)
    assert enough.waits / enough.failures < 0.02
    short = simulate_fleet(16_384 + 8 * (needed // 2), jobs, days=200, seed=1)
    assert short.waits / short.failures > 0.1
    assert short.kinds[0].shares["idle"] > 0.05
    assert short.kinds[0].effective_time < enough.kinds[0].effective_time - 0.05
    assert short.wait_seconds > 0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4_000)), min_size=1, max_size=4),
    st.integers(0, 400),
    st.integers(1, 40),
    st.integers(0, 10),
)
def test_every_day_and_every_job_adds_up(sizes: list[tuple[int, int]], spare: int, days: int, seed: int) -> None:
    kinds = [JobKind(f"kind {i}", jobs, each) for i, (jobs, each) in enumerate(sizes)]
    nodes = sum(kind.jobs * -(-kind.accelerators // 8) for kind in kinds) + spare
    rules = Reliability(failures_per_node_day=0.05)
    year = simulate_fleet(8 * nodes, kinds, days=days, seed=seed, reliability=rules)
    daily = np.array([year.daily[name] for name in ACTIVITIES])
    assert daily.shape == (len(ACTIVITIES), days)
    np.testing.assert_allclose(daily.sum(axis=0), 1, atol=1e-6)
    assert daily.min() >= -1e-6
    assert sum(year.shares.values()) == pytest.approx(1)
    for kind in year.kinds:
        assert sum(kind.shares.values()) == pytest.approx(1)
    assert year == simulate_fleet(8 * nodes, kinds, days=days, seed=seed, reliability=rules)


def test_a_year_of_350_000() -> None:
    year = simulate_fleet(seed=7)
    used = sum(kind.jobs * kind.accelerators for kind in EXAMPLE_JOBS)
    assert year.failures == pytest.approx(used / 8 * 3.8e-3 * 365, rel=0.02)
    assert year.spare_nodes > year.spare_nodes_needed
    # The larger the job, the smaller its effective share, and each equals the closed form.
    kept = [kind.effective_time for kind in year.kinds]
    assert kept == sorted(kept)
    for kind in year.kinds:
        assert kind.effective_time == pytest.approx(kind.expected_effective_time, abs=0.005)
    assert year.shares["useful"] * 350_000 * 365 == pytest.approx(year.accelerator_days)
    assert simulate_fleet(seed=8).daily != year.daily


def test_what_cannot_run_is_a_sentence() -> None:
    with pytest.raises(PunaError, match="The jobs need 2048 nodes of 8 GPUs and the fleet has 125"):
        simulate_fleet(1000, [JobKind("one", 1, 16_384)])
    for accelerators, kinds, days in (
        (0, EXAMPLE_JOBS, 1),
        (8, [], 1),
        (8, [JobKind("none", 0, 8)], 1),
        (8, EXAMPLE_JOBS, 0),
    ):
        with pytest.raises(PunaError):
            simulate_fleet(accelerators, kinds, days=days)
