"""The progress of a demo, stored in demo.json of its run directory.

An interrupted demo continues from there. Every part records its result when it ends; a part with a recorded result is
skipped. Training and tuning also have their own checkpoints and continue within themselves.
"""

import itertools
import time
from pathlib import Path
from typing import Any

from puna.core.files import read_json, write_json

STATE = "demo.json"


class DemoProgress:
    """One demo: its settings, the results of its parts, and the seconds spent on it.

    Seconds cover all processes.
    """

    def __init__(self, run_dir: Path, settings: dict[str, Any]) -> None:
        self.run_dir = run_dir
        state = read_json(run_dir / STATE) if (run_dir / STATE).exists() else {}
        self.settings = settings
        self.done: dict[str, Any] = state.get("done", {})
        self._before: float = state.get("seconds", 0.0)
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds spent so far, including earlier processes."""
        return self._before + time.perf_counter() - self._begin

    def keep(self, part: str, result: Any) -> None:
        """Record the result of a part (plain values)."""
        self.done[part] = result
        write_json(self.run_dir / STATE, {"settings": self.settings, "seconds": self.seconds, "done": self.done})


def find(runs: Path, settings: dict[str, Any]) -> tuple[DemoProgress, bool]:
    """Find the demo to continue: the newest unfinished one with the same settings, or a new one.

    Returns it and whether it had been started before. A new one is runs/demo, or the first free one of demo-2, demo-3,
    ...: nothing of an earlier demo is lost.
    """
    begun = sorted(runs.glob(f"demo*/{STATE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in begun:
        state = read_json(path)
        if state.get("settings") == settings and "end" not in state.get("done", {}):
            return DemoProgress(path.parent, settings), True
    names = itertools.chain(("demo",), (f"demo-{i}" for i in itertools.count(2)))
    return DemoProgress(next(runs / name for name in names if not (runs / name).exists()), settings), False
