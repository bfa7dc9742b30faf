"""The end of a demo: the model's page is served from a terminal, and only there."""

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
    """The arguments of `puna serve` after a demo without any work, run in a terminal."""
    asked: list[argparse.Namespace] = []
    console.cache_clear()  # other tests must not get the console of a terminal
    monkeypatch.setattr("puna.demo.run.run_demo", lambda **_: RESULT)
    monkeypatch.setattr(serve_command, "run", asked.append)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    yield asked
    console.cache_clear()


def test_a_demo_in_a_terminal_serves_its_model(served: list[argparse.Namespace]) -> None:
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


def test_a_port_in_use_is_not_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        assert demo_command._free_port(taken) == 0
    assert demo_command._free_port(taken) == taken
