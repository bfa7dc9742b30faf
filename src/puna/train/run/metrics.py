"""The log of a run: one JSON object per line, and the same events to every observer.

The file is the source of truth: the live view, the report, TensorBoard and the trackers all get the events that are in
it. Each line reaches the kernel in one write, so a killed process leaves complete lines (at worst one partial line
after a power cut or on a full disk, which reading tolerates and resuming removes). Floats are written with repr, so two
runs can be compared bit for bit; NaN and infinity become null, because JSON has neither.
"""

import json
import math
import os
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from puna.core.console import say
from puna.core.errors import PunaError
from puna.core.files import disk_errors, read_json, write_bytes, write_json
from puna.train.recipe import TrackConfig

Event = dict[str, Any]

FILE = "metrics.jsonl"
DROPPED = "metrics.dropped.jsonl"
_TAIL = 1 << 20  # bytes that hold the last line, however many measures it has


class MetricsLog:
    """Writes events to `run_dir`/metrics.jsonl and forwards them.

    log: which trackers to use. resume_step: the step that the run resumes from; lines of later steps are moved to
    metrics.dropped.jsonl, because those steps will run again. None: a new run. observers: called with every event.
    Raises PunaError when a new run finds lines already there, or a requested tracker is not installed.

    A tracker that fails later is disabled with a note: a dashboard must not end a run.
    """

    def __init__(
        self,
        run_dir: Path,
        log: TrackConfig,
        *,
        resume_step: int | None = None,
        observers: Sequence[Callable[[Event], None]] = (),
    ) -> None:
        self.path = run_dir / FILE
        self._observers = list(observers)
        if resume_step is None:
            if self.path.exists() and self.path.stat().st_size:
                raise PunaError(
                    f"{self.path} already contains a run.",
                    f"Resume it (puna train --resume {run_dir}) or choose another run directory.",
                )
        elif self.path.exists():
            _truncate(self.path, resume_step)
        self._trackers = _trackers(run_dir, log, resume_step)
        with disk_errors(self.path):
            run_dir.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open for the life of the log)

    def write(self, event: Event) -> None:
        """Write one event and forward it to every observer. Raises PunaError when the disk is full."""
        line = memoryview((json.dumps(_finite(event), ensure_ascii=False, allow_nan=False) + "\n").encode())
        with disk_errors(self.path):
            while line:
                line = line[self._file.write(line) :]
        for tracker in list(self._trackers):
            self._attempt(tracker, partial(tracker.write, event))
        for observer in self._observers:
            observer(event)

    def close(self) -> None:
        """Flush to the disk and close the trackers. May be called twice."""
        if self._file.closed:
            return
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
        self._file.close()
        for tracker in list(self._trackers):
            self._attempt(tracker, tracker.close)

    def _attempt(self, tracker: Any, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._trackers.remove(tracker)
            from rich.markup import escape

            say(f"{tracker.name} is disabled for this run: {escape(f'{type(error).__name__}: {error}')}")


def read_metrics(run_dir: Path) -> list[Event]:
    """Read all events of a run, in the order written. A partial last line is left out.

    Raises PunaError when the directory or its metrics are missing, or a line in the middle is damaged.
    """
    path = run_dir / FILE
    if not run_dir.is_dir():
        raise PunaError(f"{run_dir} is not a run directory: it does not exist.", "Check the path.")
    if not path.is_file():
        raise PunaError(f"{run_dir} has no {FILE}.", "Give the directory of a run that has started.")
    lines = path.read_bytes().split(b"\n")
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        event = _parse(line)
        if event is None:
            if number == len(lines):
                break
            raise PunaError(f"{path}, line {number} is not a JSON object.", "The file is damaged; fix that line.")
        events.append(event)
    return events


def last_event(run_dir: Path) -> Event | None:
    """The newest event of a run, read from the end of its file; None where there is none or the last line is torn."""
    path = run_dir / FILE
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().splitlines()
    return _parse(lines[-1]) if lines else None


def without_abandoned(events: Sequence[Event]) -> list[Event]:
    """Keep the events of the steps that count: those undone by a roll-back are left out.

    Lines of kind "event" and "start" are all kept. A roll-back returns to an earlier step and the steps after it run
    again; the later line of a step is the valid one.
    """
    kept: list[Event] = []
    newest = -1
    for event in events:
        if event["kind"] == "train":
            step = event["step"]
            if step <= newest:
                kept = [earlier for earlier in kept if earlier["kind"] in ("event", "start") or earlier["step"] < step]
            newest = step
        kept.append(event)
    return kept


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except (ValueError, UnicodeDecodeError):
        return None
    return event if isinstance(event, dict) else None


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _truncate(path: Path, resume_step: int) -> None:
    """Move lines after `resume_step`, and a partial last line, to metrics.dropped.jsonl.

    Other bytes stay.
    """
    kept: list[bytes] = []
    dropped: list[bytes] = []
    for line in path.read_bytes().splitlines(keepends=True):
        event = _parse(line) if line.endswith(b"\n") else None
        (dropped if event is None or event.get("step", 0) > resume_step else kept).append(line)
    if not dropped:
        return
    with disk_errors(path), open(path.with_name(DROPPED), "ab") as file:
        file.writelines(line if line.endswith(b"\n") else line + b"\n" for line in dropped)
        file.flush()
        os.fsync(file.fileno())
    # The dropped lines are stored before the file shrinks: a crash in between repeats them there, and loses none.
    write_bytes(path, b"".join(kept))


# -- trackers ----------------------------------------------------------------------------------------------------------


def _trackers(run_dir: Path, log: TrackConfig, resume_step: int | None) -> list[Any]:
    trackers: list[Any] = []
    if log.tensorboard:
        trackers.append(_TensorBoard(run_dir, resume_step))
    if log.wandb:
        trackers.append(_Wandb(run_dir, log.wandb))
    if log.trackio:
        trackers.append(_Trackio(run_dir, log.trackio))
    return trackers


def scalars(event: Event) -> dict[str, float]:
    """The finite numbers of a train, eval or end event as flat names.

    An example is {"train/loss": 2.3, "train/mfu/full": 0.4, …}.
    """
    if event["kind"] not in ("train", "eval", "end"):
        return {}
    flat: dict[str, float] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}/{key}", item)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            flat[prefix] = value

    walk(event["kind"], {key: value for key, value in event.items() if key not in ("kind", "step")})
    return flat


class _TensorBoard:
    name = "TensorBoard"

    def __init__(self, run_dir: Path, resume_step: int | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise PunaError(
                "log.tensorboard is on but TensorBoard is not installed.", "pip install tensorboard"
            ) from None
        # purge_step makes TensorBoard discard the steps that will run again.
        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)

    def write(self, event: Event) -> None:
        step = event.get("step", 0)
        for name, value in scalars(event).items():
            self._writer.add_scalar(name, value, step)
        if event["kind"] == "sample":
            text = f"{event.get('prompt', '')}{event.get('text', '')}"
            self._writer.add_text("sample", "\n".join("    " + line for line in text.splitlines()), step)
        if event["kind"] == "event":
            self._writer.add_text(f"event/{event.get('event')}", str(event.get("detail", "")), step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    name = "Weights & Biases"

    def __init__(self, run_dir: Path, project: str) -> None:
        try:
            import wandb
        except ImportError:
            raise PunaError(
                f"log.wandb = '{project}' needs Weights & Biases, which is not installed.", "pip install 'puna[wandb]'"
            ) from None
        self._run = wandb.init(
            project=project, name=run_dir.name, dir=str(run_dir), id=_tracker_id(run_dir, "wandb"), resume="allow"
        )
        # Puna's step is a separate metric: wandb's counter only grows, and a resumed run returns to its checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, event: Event) -> None:
        step = event.get("step", 0)
        if event["kind"] == "start":
            self._run.config.update({"start": _finite(event)}, allow_val_change=True)
        elif event["kind"] == "sample":
            self._run.log({"sample": f"{event.get('prompt', '')}{event.get('text', '')}", "step": step})
        elif values := scalars(event):
            self._run.log(values | {"step": step})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    name = "trackio"

    def __init__(self, run_dir: Path, project: str) -> None:
        try:
            import trackio
        except ImportError:
            raise PunaError(
                f"log.trackio = '{project}' needs trackio, which is not installed.", "pip install 'puna[trackio]'"
            ) from None
        self._trackio = trackio
        name = f"{run_dir.name}-{_tracker_id(run_dir, 'trackio')}"
        trackio.init(project=project, name=name, resume="allow")

    def write(self, event: Event) -> None:
        if values := scalars(event):
            self._trackio.log(values, step=event.get("step", 0))

    def close(self) -> None:
        self._trackio.finish()


def _tracker_id(run_dir: Path, tracker: str) -> str:
    """A random id stored in the run directory, under which a resumed run continues."""
    path = run_dir / "trackers.json"
    ids = read_json(path) if path.exists() else {}
    if tracker not in ids:
        ids[tracker] = uuid.uuid4().hex[:8]
        write_json(path, ids)
    return str(ids[tracker])
