"""How a demo ends: in the model's page where a person sits, and nowhere else."""

import argparse
import socket
import sys
from collections.abc import Iterator

import pytest

from puna.cli import demo_command, serve_command
from puna.cli.main import main
from puna.core.console import console

RESULT = {
    "bits_per_byte": [],
    "completions": [],
    "abilities": [],
    "report": "runs/demo/report.html",
    "model": "models/demo",
}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[argparse.Namespace]]:
    """What would have been served, by a demo that took no time, in a terminal."""
    asked: list[argparse.Namespace] = []
    console.cache_clear()  # or the console for a terminal would serve other tests too
    monkeypatch.setattr("puna.demo.run.run_demo", lambda **_: RESULT)
    monkeypatch.setattr(serve_command, "run", asked.append)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    yield asked
    console.cache_clear()


def test_a_demo_ends_in_the_page_of_its_model(served: list[argparse.Namespace]) -> None:
    assert main(["demo"]) == 0
    assert served[0].models == ["models/demo"]
    assert served[0].host == "127.0.0.1"


def test_no_chat_and_no_terminal_serve_nothing(
    served: list[argparse.Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["demo", "--no-chat"]) == 0
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert main(["demo"]) == 0
    assert not served


def test_a_taken_port_is_left_to_whoever_has_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        assert demo_command._free_port(taken) == 0
    assert demo_command._free_port(taken) == taken
