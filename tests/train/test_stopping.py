"""Stopping: every process gets the same answer, and no signal is lost between two steps."""

import os
import signal

import pytest
import torch
import torch.distributed as dist

from puna.train.run.signals import StopRequest


def test_one_process_hears_the_first_signal_and_leaves_at_the_second() -> None:
    stop = StopRequest(first=False)
    with stop.listening():
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()
        assert stop.name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_comes_while_the_processes_ask_each_other_is_heard_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop = StopRequest(first=False)

    def reduced(asked: torch.Tensor, op: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # after this process has reported that it received no signal

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", reduced)
    with stop.listening():
        assert not stop.agreed()  # as the other process, with the same information, answers
        assert stop.agreed()
        assert stop.name == "SIGTERM"


def test_what_another_process_was_asked_counts_here(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest(first=False)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda asked, op: asked.fill_(signal.SIGINT))
    assert stop.agreed()
    assert stop.name == "SIGINT"
