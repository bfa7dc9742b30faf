"""What a demo has done, in demo.json of its run directory: an interrupted demo continues from there.

Every part writes its result when it ends; a part that is found there is not done again. Training and tuning also keep
checkpoints of their own and continue within themselves.
"""

import itertools
import time
from pathlib import Path
from typing import Any

from puna.core.files import read_json, write_json

STATE = "demo.json"


class Progress:
    """One demo: its settings, the results of its parts, and the seconds that were spent on it, over all processes."""

    def __init__(self, run_dir: Path, settings: dict[str, Any]) -> None:
        self.run_dir = run_dir
        state = read_json(run_dir / STATE) if (run_dir / STATE).exists() else {}
        self.settings = settings
        self.done: dict[str, Any] = state.get("done", {})
        self._before: float = state.get("seconds", 0.0)
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Spent so far, earlier processes included."""
        return self._before + time.perf_counter() - self._begin

    def keep(self, part: str, result: Any) -> None:
        """Write down the result of a part (plain values)."""
        self.done[part] = result
        write_json(self.run_dir / STATE, {"settings": self.settings, "seconds": self.seconds, "done": self.done})


def find(runs: Path, settings: dict[str, Any]) -> tuple[Progress, bool]:
    """The demo to continue: the newest one that is unfinished and has the same settings, else a new one.

    Returns it and whether it was begun before. A new one is runs/demo, or the first of demo-2, demo-3, ... that is
    free: nothing of an earlier demo is lost.
    """
    begun = sorted(runs.glob(f"demo*/{STATE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in begun:
        state = read_json(path)
        if state.get("settings") == settings and "end" not in state.get("done", {}):
            return Progress(path.parent, settings), True
    names = itertools.chain(("demo",), (f"demo-{i}" for i in itertools.count(2)))
    return Progress(next(runs / name for name in names if not (runs / name).exists()), settings), False
