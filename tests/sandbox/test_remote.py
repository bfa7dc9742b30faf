"""Sandboxes elsewhere: the same evaluations through a relay, what the command lines promise, and what can go wrong."""

import shutil
import stat
import subprocess
import sys

import pytest

from puna.core.errors import PunaError
from puna.sandbox import attacks, check
from puna.sandbox import run as rooms
from puna.sandbox.remote import RemoteSandbox, command
from puna.sandbox.result import Limits
from puna.sandbox.run import run_python

RELAY = f"command:{sys.executable} -m puna.sandbox.relay"


@pytest.fixture
def relay():
    outer = RemoteSandbox(RELAY)
    yield outer
    outer.close()


def test_values_exceptions_output_and_ends_come_through(relay: RemoteSandbox) -> None:
    inputs = [[True], [1], [1.0], ["a\0é"], [(1, [2])], [{1: None}], [10**5000]]
    result = relay.run("print('hello')\ndef f(x): return x", function="f", inputs=inputs)
    assert [(type(a.value), a.value) for a in result.values] == [(type(one[0]), one[0]) for one in inputs]
    assert (result.stdout, result.reason, "command" in result.walls) == ("hello\n", "", True)
    result = relay.run("def f(x): return 6 // x", function="f", inputs=[[1], [0]])
    assert [answer.error[:17] for answer in result.values] == ["", "ZeroDivisionError"]
    assert relay.run("while True: pass", limits=Limits(seconds=0.5)).reason.startswith("time")
    assert relay.run("print(input())", stdin="x\n").stdout == "x\n"
    assert relay.run("import os; os.write(1, b'{}\\n')").stdout == "{}\n"


def test_run_python_goes_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms._close_all()
    monkeypatch.setenv("PUNA_SANDBOX", RELAY)
    try:
        result = run_python("def f(x): return x + 1", function="f", inputs=[[1]], floor="limits")
        assert result.values[0].value == 2
        assert "command" in result.walls
        for outer in rooms._idle:
            outer._process.kill()
            outer._process.wait()
        assert run_python("print(1)", floor="limits").stdout == "1\n"
    finally:
        rooms._close_all()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nowhere", "not a location of a sandbox"),
        ("docker:", "not a location of a sandbox"),
        ("command:no-such-program-here", "not installed"),
        (f"command:{sys.executable} -c 'raise SystemExit(\"no image\")'", "no image"),
        (f"command:{sys.executable} -c 'print(1)'", "did not start"),
    ],
)
def test_a_place_that_fails_is_a_sentence(where: str, said: str) -> None:
    with pytest.raises(PunaError, match=said):
        RemoteSandbox(where)


def test_a_relay_that_ends_in_the_middle_is_a_sentence(relay: RemoteSandbox) -> None:
    relay._process.kill()
    with pytest.raises(PunaError, match="ended"):
        relay.run("print(1)")
    assert not relay.alive


def test_docker_gets_no_network_no_rights_and_a_read_only_root(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Docker engine is asked: a stand-in notes its arguments and runs what the container would."""
    words = command("docker:python:3.12-slim")
    flags = set(words)
    assert {"--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"} <= flags
    assert {"--interactive", "--rm", "--user=65534:65534"} <= flags
    assert words[words.index("python:3.12-slim") + 1 :] == ["python3", "-m", "puna.sandbox.relay"]
    stand_in = tmp_path / "docker"
    stand_in.write_text(f'#!/bin/sh\nwhile [ "$1" != python3 ]; do shift; done\nshift\nexec {sys.executable} "$@"\n')
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    outer = RemoteSandbox("docker:python:3.12-slim")
    try:
        assert outer.run("print(2 + 2)").stdout == "4\n"
        assert not outer.walls["docker"]
    finally:
        outer.close()


def test_attacks_through_bubblewrap_are_contained() -> None:
    if not shutil.which("bwrap"):
        pytest.skip("needs bubblewrap (bwrap)")
    if subprocess.run(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"], check=False).returncode:
        pytest.skip("bubblewrap may not make namespaces here")
    outer = RemoteSandbox("bwrap")
    try:
        chosen = [attack for attack in attacks.ATTACKS if attack.kind == "escape"][::6]
        outcomes = check.run_attacks(outer, chosen)
        assert len(outcomes) >= 5
        assert [one for one in outcomes if not one.good] == []
    finally:
        outer.close()
