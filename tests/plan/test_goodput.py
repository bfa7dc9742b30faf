"""The complete answer for one job compared with Llama 3's record, and the advice on 350,000 GPUs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.plan.run.goodput import goodput, largest_good_job
from puna.plan.run.reliability import Reliability


def test_llama3_405b_in_54_days() -> None:
    """arXiv 2407.21783: 466 interruptions, 47 of them planned; more than 90 % effective training time."""
    answer = goodput(16_384, 54, parameters=405e9)
    assert answer.interruptions == pytest.approx(466, rel=0.15)
    assert answer.planned == pytest.approx(47, rel=0.15)
    assert 0.88 <= answer.effective_time <= 0.95
    assert answer.interruptions_low < 466 < answer.interruptions_high
    assert answer.effective_low < answer.effective_time < answer.effective_high
    assert answer.effective_time == pytest.approx(answer.meta_effective_time, abs=0.01)
    assert answer.advice == "One job on 16,384 GPUs is interrupted every 3.1 hours and keeps 91% of its time."


def test_350_000_gpus_are_no_one_job() -> None:
    answer = goodput(350_000, 365)
    assert answer.mtti_seconds / 60 == pytest.approx(8.7, abs=0.1)
    assert "interrupted every 9 minutes: do not run it as one synchronous job" in answer.advice
    for word in ("several jobs", "hot spares", "checkpoints in other hosts' memory"):
        assert word in answer.advice
    several, hot, both = answer.alternatives
    assert several.jobs * several.accelerators <= 350_000
    assert answer.effective_time < hot.effective_time < several.effective_time < both.effective_time


def test_in_between_it_says_what_is_lost() -> None:
    assert "keeps only 88% of its time: 2 jobs" in goodput(24_576, 54).advice


@given(st.integers(1, 10**6), st.floats(0.5, 400), st.sampled_from([4, 8]))
def test_parts_sum_to_the_whole(accelerators: int, days: float, node_size: int) -> None:
    answer = goodput(accelerators, days, node_size=node_size)
    shares = answer.shares
    assert sum(vars(shares).values()) == pytest.approx(1)
    assert answer.interruptions == pytest.approx(answer.failures + answer.planned)
    assert goodput(accelerators + 80, days, node_size=node_size).effective_time <= answer.effective_time + 1e-9


def test_a_job_of_a_good_size_keeps_nine_tenths() -> None:
    size = largest_good_job(350_000, 25e6)
    assert goodput(size, 30).effective_time >= 0.90 > goodput(size + 800, 30).effective_time
    assert largest_good_job(64, 25e6) == 64
    assert largest_good_job(350_000, 25e6, reliability=Reliability(failures_per_node_day=6.5e-3)) < size


@pytest.mark.parametrize(
    ("accelerators", "days", "parameters"), [(0, 1, None), (8, 0, None), (8, 1, 0), (8, float("nan"), 1)]
)
def test_what_cannot_be_is_a_sentence(accelerators: int, days: float, parameters: float | None) -> None:
    with pytest.raises(PunaError):
        goodput(accelerators, days, parameters=parameters)
