"""The terminal view of a run: expectations, progress and outcome, all on stderr.

On a terminal one block is redrawn in place at each log interval. Lasting messages (skipped steps, roll-backs, the end)
are printed above it and stay. Anywhere else, such as in a job's log, the same facts are printed as plain lines. The
view is an observer of the trainer: it is called with the events that are also written to metrics.jsonl.
"""

import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from puna.core.console import console
from puna.core.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

Event = dict[str, Any]

_BARS = "▁▂▃▄▅▆▇█"
_SAMPLE_LINES = 6


class LiveView:
    """Called with each event of a run. to: the console to draw on (default: stderr's)."""

    def __init__(self, to: "Console | None" = None) -> None:
        self._console = to or console()
        self._live: Live | None = None
        self._start: Event = {}
        self._train: Event = {}
        self._eval: Event = {}
        self._sample: Event = {}
        self._losses: list[float] = []

    def __call__(self, event: Event) -> None:
        kind = event["kind"]
        if kind == "start":  # of another run, perhaps
            self._train, self._eval, self._sample, self._losses = {}, {}, {}, []
        if kind in ("start", "train", "eval", "sample"):
            setattr(self, f"_{kind}", event)
        if kind == "train" and event["loss"] is not None:
            self._losses.append(event["loss"])
        if kind == "start":
            self._console.print(expectation(event), markup=False)
            if self._console.is_terminal:
                self._open()
        elif kind == "event":
            if "total_steps" in event:
                self._start = {**self._start, "total_steps": event["total_steps"]}
            if event["event"] != "checkpoint":
                self._console.print(f"{event['event']} at step {event['step']:,}: {event['detail']}", markup=False)
            if event["event"] in ("interrupted", "stopped"):
                self.close()
        elif kind == "end":
            self.close()
            self._console.print(outcome(event), markup=False)
        elif self._live:
            self._live.update(self._block(), refresh=True)
        else:
            self._console.print(plain_line(event, self._start), markup=False)

    def close(self) -> None:
        """Leave the last block in place and release the terminal.

        May be called at any time, and twice.
        """
        if self._live:
            self._live.stop()
            self._live = None

    def _open(self) -> None:
        from rich.live import Live

        self.close()
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)
        self._live.start()
        # rich hides the cursor. Some ways of ending a run skip clean-up, so the cursor stays visible.
        self._console.show_cursor(True)

    def _block(self) -> "Group":
        """Render the current state of the run, at most as wide as the terminal."""
        from rich.console import Group
        from rich.text import Text

        width = min(self._console.width, 100)
        lines = ["", *self._progress(width), "", *self._figures(width), *self._latest_sample()]
        texts = []
        for line in lines:
            text = Text(line, no_wrap=True, overflow="ellipsis")
            text.truncate(width, overflow="ellipsis")
            if line.startswith("  ") and line[2:14].strip() in _LABELS:
                text.stylize("dim", 0, 14)
            elif line.startswith("  │"):
                text.stylize("dim")
            text.highlight_regex("━+", "green")
            text.highlight_regex("─+", "dim")
            texts.append(text)
        return Group(*texts)

    def _progress(self, width: int) -> list[str]:
        step, total = self._train.get("step", self._start["step"]), self._start["total_steps"]
        share = min(1.0, step / max(1, total))
        right = f"  {step:,} of {total:,}  {share:.0%}"
        if self._train and step < total:
            right += f"  {format_seconds((total - step) * self._train['step_seconds'])} left"
        size = max(8, width - 4 - max(42, len(right)))
        done = round(share * size)
        return [f"  {'━' * done}{'─' * (size - done)}{right}"]

    def _figures(self, width: int) -> list[str]:
        train, start = self._train, self._start
        if not train:
            return ["  running the first steps …"]
        line = sparkline(self._losses, max(8, min(36, width - 44)))
        unit = " nats per token" if "bits_per_byte" in train else ""
        shown = [f"  {'loss':<12}{_number(train['loss'], '.4f')}{unit}  {line}"]
        if "bits_per_byte" in train:
            bits = f"{_number(train['bits_per_byte'], '.3f')} training"
            if self._eval:
                bits += f" · {_number(self._eval['bits_per_byte'], '.3f')} held-out at step {self._eval['step']:,}"
            shown.append(f"  {'bits/byte':<12}{bits}")
        else:
            shown.append(f"  {'training':<12}{measures(train, start.get('shown'))}")
            shown += [f"  {'held-out':<12}{measures(self._eval)} at step {self._eval['step']:,}"] if self._eval else []
        speed = f"{train['tokens_per_second']:,.0f} tokens/s"
        if train["mfu"]:
            speed += f" · {train['mfu']['full']:.0%} of measured peak (full attention)"
        expected = (start.get("predicted") or {}).get("memory_bytes")
        memory = format_bytes(train["memory_bytes"]) + (f" · {format_bytes(expected)} predicted" if expected else "")
        return [*shown, f"  {'speed':<12}{speed}", f"  {'memory':<12}{memory}"]

    def _latest_sample(self) -> list[str]:
        if not self._sample:
            return [""]
        text = f"{self._sample['prompt']}{self._sample['text']}"
        lines = [_printable(line) for line in text.expandtabs(4).splitlines()]
        lines = [line for line in lines if line.strip()][:_SAMPLE_LINES]
        return ["", f"  {'sample':<12}step {self._sample['step']:,}", *(f"  │ {line}" for line in lines), ""]


_LABELS = ("loss", "bits/byte", "training", "held-out", "speed", "memory", "sample")


def measures(event: Event, shown: Sequence[str] | None = None) -> str:
    """The measures of a tuning stage, during training or held-out, by name.

    shown: restrict to these.
    """
    found = event.get("metrics", {})
    names = [name for name in shown if name in found] if shown else found
    return "  ".join(f"{name} {_number(found[name], '.4g')}" for name in names)


def expectation(event: Event) -> str:
    """What is about to run and what it is expected to take, from the start event."""
    device = f"{event['world_size']} processes on {event['device']}" if event["world_size"] > 1 else event["device"]
    precision = event["precision"] + (", compiled" if event["compiled"] else "")
    each = event["tokens_per_step"]
    tokens = f", {format_count(event['total_steps'] * each)} tokens" if each else ""
    lines = [
        f"{format_count(event['parameters'])} parameters, {precision}, {device}",
        f"{event['total_steps']:,} steps{tokens}. Expected: {_expected(event)}",
    ]
    if event["resumed_from"] is not None:
        lines.append(f"Resuming from step {event['resumed_from']:,}.")
    return "\n".join(lines)


def _expected(event: Event) -> str:
    predicted = event["predicted"]
    memory, step = format_bytes(predicted["memory_bytes"]) + " of memory", predicted["step_seconds"]
    if not step:
        return f"{memory}."
    end = datetime.fromisoformat(event["time"]).astimezone() + timedelta(seconds=predicted["seconds"])
    day = "" if predicted["seconds"] < 12 * 3600 else f" on {end:%d %B %Y}"
    ends = f"{_seconds(step['low'])} to {_seconds(step['high'])} with 80 % probability"
    return (
        f"{memory}, {format_count(predicted['tokens_per_second'])} tokens/s,\n"
        f"{_seconds(step['value'])} a step ({ends}), done in\n"
        f"{format_seconds(predicted['seconds'])}, at {end:%H:%M}{day}."
    )


def plain_line(event: Event, start: Event) -> str:
    """One line for a train, eval or sample event."""
    if event["kind"] == "eval" and "bits_per_byte" not in event:
        return f"held-out at step {event['step']:,}: {measures(event)}"
    if event["kind"] == "eval":
        return f"held-out: {_number(event['bits_per_byte'], '.4f')} bits/byte at step {event['step']:,}"
    if event["kind"] == "sample":
        lines = f"{event['prompt']}{event['text']}".expandtabs(4).splitlines()
        return f"sample at step {event['step']:,}: " + "\n".join(_printable(line) for line in lines)
    total = start["total_steps"]
    left = (total - event["step"]) * event["step_seconds"]
    measured = measures(event, start.get("shown"))
    parts = [
        f"step {event['step']:>{len(str(total))}}/{total}",
        f"loss {_number(event['loss'], '.4f')}",
        f"{_number(event['bits_per_byte'], '.3f')} bits/byte" if "bits_per_byte" in event else measured,
        f"norm {_number(event['grad_norm'], '.3g')}",
        f"{format_count(event['tokens_per_second'])} tokens/s",
    ]
    if event["mfu"]:
        # Full-attention convention, relative to the rate measured on this device.
        parts.append(f"{event['mfu']['full']:.0%} of measured peak")
    if left:
        parts.append(f"{format_seconds(left)} left")
    return "  ".join(parts)


def outcome(event: Event) -> str:
    """How the run ended and how good the predictions were, from the end event."""
    over, step = event["over_prediction"], ""
    if event["step_seconds"]:
        off = "" if over["step_seconds"] is None else f" ({against_prediction(over['step_seconds'])})"
        step = f"{_seconds(event['step_seconds'])} a step{off}, "
    return (
        f"Done: {format_count(event['tokens'])} tokens in {format_seconds(event['seconds'])}, "
        f"{format_count(event['tokens_per_second'])} tokens/s, {step}"
        f"{format_bytes(event['peak_memory_bytes'])} at most ({against_prediction(over['memory'])})."
    )


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw the values as at most `width` small bars, each the mean of its part.

    The scale ends at the 90th percentile: a loss falls so steeply at first that the rest would be a flat line.
    """
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), sorted(means)[int(0.9 * (count - 1))]
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[min(len(_BARS) - 1, round((mean - low) * scale))] for mean in means)


def _printable(line: str) -> str:
    """Replace control characters: a model may write them, and they must not reach the terminal."""
    return "".join(char if char.isprintable() else "�" for char in line)


def _seconds(value: float) -> str:
    """Format a short time with three digits: 0.0123 s is 12.3 ms."""
    return f"{1e3 * value:.3g} ms" if value < 0.0995 else f"{value:.3g} s" if value < 99.5 else format_seconds(value)


def against_prediction(over: float) -> str:
    """Compare a measured time or memory with its prediction, in words.

    over: measured / predicted - 1.
    """
    if abs(over) < 0.005:
        return "as predicted"
    return f"{over:.0%} more than predicted" if over > 0 else f"{-over:.0%} less than predicted"


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)
