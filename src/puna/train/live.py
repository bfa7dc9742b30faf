"""What a person watching a run sees: what is expected, a line now and then, and how it ended (all on stderr).

Plain lines rather than a screen that redraws itself: they read the same on a terminal, in a job's log and over a slow
connection. An observer of the trainer: called with the events that also go to metrics.jsonl.
"""

from typing import Any

from puna.core.console import say
from puna.core.units import format_bytes, format_count, format_seconds

Event = dict[str, Any]


class LiveView:
    """Call it with each event of a run."""

    def __init__(self) -> None:
        self._start: Event = {}

    def __call__(self, event: Event) -> None:
        show = getattr(self, f"_on_{event['kind']}", None)
        if show:
            show(event)

    def _on_start(self, event: Event) -> None:
        self._start = event
        device = f"{event['world_size']} processes on {event['device']}" if event["world_size"] > 1 else event["device"]
        precision = event["precision"] + (", compiled" if event["compiled"] else "")
        say(f"{format_count(event['parameters'])} parameters, {precision}, {device}")
        expected = [format_bytes(event["predicted"]["memory_bytes"]) + " of memory"]
        if event["predicted"]["tokens_per_second"]:
            expected.append(f"{format_count(event['predicted']['tokens_per_second'])} tokens/s")
        if event["predicted"]["seconds"]:
            expected.append(format_seconds(event["predicted"]["seconds"]))
        tokens = event["total_steps"] * event["tokens_per_step"]
        say(f"{event['total_steps']:,} steps, {format_count(tokens)} tokens. Expected: {', '.join(expected)}.")
        if event["resumed_from"] is not None:
            say(f"Going on from step {event['resumed_from']:,}.")

    def _on_train(self, event: Event) -> None:
        total = self._start["total_steps"]
        left = (total - event["step"]) * event["step_seconds"]
        parts = [
            f"step {event['step']:>{len(str(total))}}/{total}",
            f"loss {_number(event['loss'], '.4f')}",
            f"{_number(event['bits_per_byte'], '.3f')} bits/byte",
            f"norm {_number(event['grad_norm'], '.3g')}",
            f"{format_count(event['tokens_per_second'])} tokens/s",
        ]
        if event["mfu"]:
            # Full-attention convention, against the rate measured on this device.
            parts.append(f"{event['mfu']['full']:.0%} of measured peak")
        if left:
            parts.append(f"{format_seconds(left)} left")
        say("  ".join(parts))

    def _on_eval(self, event: Event) -> None:
        say(f"[bold]held-out: {event['bits_per_byte']:.4f} bits/byte[/bold] at step {event['step']:,}")

    def _on_sample(self, event: Event) -> None:
        from rich.markup import escape

        say(f"[dim]{escape(event['prompt'])}[/dim]{escape(event['text'])}")

    def _on_event(self, event: Event) -> None:
        from rich.markup import escape

        if event["event"] != "checkpoint":
            say(f"[yellow]{event['event']}[/yellow] at step {event['step']:,}: {escape(event['detail'])}")

    def _on_end(self, event: Event) -> None:
        error = event["error"]
        speed = "" if error["tokens_per_second"] is None else f" (prediction {error['tokens_per_second']:+.0%})"
        say(
            f"Done: {format_count(event['tokens'])} tokens in {format_seconds(event['seconds'])}, "
            f"{format_count(event['tokens_per_second'])} tokens/s{speed}, "
            f"{format_bytes(event['peak_memory_bytes'])} at most (prediction {error['memory']:+.0%})."
        )


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)
