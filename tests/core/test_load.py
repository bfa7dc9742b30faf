"""How busy the machine is: other programs count, this one does not."""

import multiprocessing
import time

import pytest

from puna.core.load import busy, other_load


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_processes_that_compute_are_counted() -> None:
    before = other_load(0.3)
    workers = [multiprocessing.get_context("spawn").Process(target=spin, args=(20.0,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        most = 0.0
        for _ in range(40):
            most = max(most, other_load(0.2))
            if most >= before + 1.5:
                break
    finally:
        for worker in workers:
            worker.terminate()
    assert most >= before + 1.5 or most >= 3


@pytest.mark.parametrize(("load", "cores", "said"), [(0.0, 2, False), (1.0, 2, False), (2.5, 2, True), (4, 16, False)])
def test_a_warning_needs_more_than_half_of_the_cores(load: float, cores: int, said: bool) -> None:
    assert bool(busy(load, cores)) is said
