"""The catalogue of attacks, each against real targets; after each, all is as it was and the next answer right."""

from collections.abc import Iterator
from typing import Any

import pytest

from puna.sandbox import check
from puna.sandbox.attacks import ATTACKS, ESCAPE, NEEDS, Attack
from puna.sandbox.worker import Sandbox


@pytest.fixture(scope="module")
def host() -> Iterator[dict[str, Any]]:
    with check.targets() as made:
        yield made


def _contained(sandbox: Sandbox, attack: Attack, host: dict[str, Any]) -> None:
    outcome = check._run(sandbox, attack, host, check._state(sandbox))
    assert outcome.contained, outcome.stopped_by
    assert not outcome.left


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_isolated_contains(attack: Attack, isolated: Sandbox, host: dict[str, Any]) -> None:
    _contained(isolated, attack, host)


# Limits and harness are those of the level above; what differs is who stops an escape.
@pytest.mark.parametrize("attack", ESCAPE, ids=lambda attack: attack.name)
def test_confined_contains(attack: Attack, confined: Sandbox, host: dict[str, Any]) -> None:
    _contained(confined, attack, host)


def test_names_are_unique_and_exceptions_are_named() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names)
    assert set(NEEDS) <= set(names)


def test_the_check_notices_what_gets_through(isolated: Sandbox) -> None:
    """A check that cannot fail is worth nothing: an attack that wins, and one that solves the task, are seen."""
    wins = Attack("wins", "escape", "def attack(host): return 'got it'")
    solves = Attack("solves", "reward", "def solve(x): return x * x")
    broken = Attack("broken", "escape", "def attack(host): return nonsense")
    assert [outcome.good for outcome in check.run_attacks(isolated, [wins, solves, broken])] == [False] * 3


def test_the_check_notices_what_is_left(isolated: Sandbox) -> None:
    with check.targets() as host:
        before = check._state(isolated)
        (check.Path(host["folder"]) / "victim").write_text("changed")
        assert check._left(isolated, host, before) == "a file outside"
        host["_victim"].kill()
        host["_victim"].wait()
        assert "killed" in check._left(isolated, host, before)
