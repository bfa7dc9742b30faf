"""The last sections of a run's page: predicted and measured costs, events, and the machine.

Each takes a `Run` and returns HTML, empty if the run has no such data.
"""

from html import escape
from typing import Any

from puna.core.page import section, table
from puna.core.plots import stacked_bar
from puna.core.units import format_bytes, format_count, format_seconds
from puna.train.report.format import format_flops, or_dash
from puna.train.report.run_data import Run
from puna.train.run.metrics import Event

SHAPES = {
    # event: shape, warn, name in the legend
    "checkpoint": ("diamond", False, "checkpoint"),
    "skip": ("cross", True, "step skipped"),
    "rollback": ("back", True, "rolled back"),
    "resume": ("play", False, "resumed"),
    "pace": ("diamond", False, "number of steps changed"),
    "interrupted": ("square", False, "interrupted"),
    "stopped": ("square", True, "stopped by the guard"),
}


def predicted(run: Run, facts: dict[str, Any]) -> str:
    """Compare the prediction before the run with the result, and show where the time went."""
    predicted = run.start.get("predicted") or {}
    step = predicted.get("step_seconds") or {}
    rows = []
    for name, expected, actual, form in (
        ("peak memory", predicted.get("memory_bytes"), facts["peak_memory_bytes"], format_bytes),
        ("a step, usually", step.get("value"), (run.end or {}).get("step_seconds"), _step_seconds),
        ("tokens per second", predicted.get("tokens_per_second"), facts["tokens_per_second"], "{:,.0f}".format),
        (
            "time",
            (run.first_start.get("predicted") or {}).get("seconds"),
            facts["seconds"] if run.end else None,
            format_seconds,
        ),
    ):
        if expected is None and actual is None:
            continue
        over = "–"
        if expected and actual:  # a speed is compared as the time per token
            ratio = expected / actual if name == "tokens per second" else actual / expected
            over = f"{ratio - 1:+.1%}".replace("-", "−")
        rows.append([name, or_dash(expected, form), or_dash(actual, form), over])
    parts = _goodput(run)
    if not rows and not parts:
        return ""
    rendered = table(["", "predicted", "measured", "cost"], rows, numeric=(1, 2, 3)) if rows else ""
    text = "The predictions made before the run started, and the measured values. + means higher cost than predicted:"
    text += " more memory, more time, more time per token."
    if rows and not run.end:
        text += " The run is unfinished: measured values are those so far."
    if step:
        ends = f"{_step_seconds(step['low'])} and {_step_seconds(step['high'])}"
        text += f" A step was predicted to take between {ends} with 80 % probability. Compilation counts only in the"
        text += " total time and in the tokens per second, which cover the whole run."
    body = rendered or ""
    return section("Predicted and actual", text, body + parts)


def _step_seconds(value: float) -> str:
    return f"{value:.3g} s"


def _goodput(run: Run) -> str:
    goodput = (run.end or {}).get("goodput") or {}
    names = {"compute": "computing", "data": "waiting for data", "checkpoint": "checkpoints", "eval": "evaluation"}
    parts = [(names.get(key, key), float(value)) for key, value in goodput.items() if isinstance(value, int | float)]
    total = sum(amount for _, amount in parts)
    if total <= 0:
        return ""
    drawing = stacked_bar(parts, value_format=format_seconds)
    legend = "".join(
        f'<li><span class="swatch part{index}"></span>{escape(name)} {amount / total:.1%}, '
        f"{format_seconds(amount)}</li>"
        for index, (name, amount) in enumerate(parts)
    )
    return f'<figure><figcaption>Where the time went</figcaption>{drawing}<ul class="legend">{legend}</ul></figure>'


def events(run: Run) -> str:
    """List events other than training."""
    listed = [event for event in run.events if event.get("event") != "checkpoint"]
    checkpoints = [event["step"] for event in run.events if event.get("event") == "checkpoint"]
    if not listed and not checkpoints:
        return ""
    text = ""
    if checkpoints:
        many = f"{len(checkpoints)} checkpoints were" if len(checkpoints) > 1 else "One checkpoint was"
        text = f"{many} saved, the last at step {checkpoints[-1]:,}."
    rows = [
        [
            f"{event['step']:,}",
            SHAPES.get(str(event.get("event")), ("", False, str(event.get("event"))))[2],
            _detail(event),
        ]
        for event in listed
    ]
    body = table(["step", "what", "detail"], rows[:50]) if rows else ""
    if len(rows) > 50:
        body += f'<p class="note">{len(rows) - 50} more are in metrics.jsonl.</p>'
    return section("Events", text or "Events other than training.", body)


def _detail(event: Event) -> str:
    documents = event.get("documents")
    text = str(event.get("detail") or "")
    if isinstance(documents, list) and documents:
        text = f"{text.rstrip('.')}. Documents in the batch: {', '.join(map(str, documents[:3]))}"
        text += f" and {len(documents) - 3} more." if len(documents) > 3 else "."
    return text


def machine(run: Run) -> str:
    """Device, versions, counts and the resolved recipe."""
    start, flops = run.start, run.start.get("flops_per_token") or {}
    facts = [
        ("device", start.get("device")),
        ("processes", start.get("world_size")),
        ("precision", start.get("precision")),
        ("compiled", None if start.get("compiled") is None else "yes" if start["compiled"] else "no"),
        ("measured peak of a matrix product", start.get("peak_flops") and format_flops(start["peak_flops"])),
        ("FLOPs per token, full attention", flops.get("full") and format_count(flops["full"])),
        ("FLOPs per token, causal attention", flops.get("causal") and format_count(flops["causal"])),
        ("tokens per step", start.get("tokens_per_step")),
        ("bytes per token", start.get("bytes_per_token") and f"{start['bytes_per_token']:.3f}"),
        ("resumed from step", start.get("resumed_from")),
        ("torch", start.get("torch")),
        ("python", start.get("python")),
        ("puna", start.get("puna")),
    ]
    rows = [[name, f"{v:,}" if isinstance(v, int) else str(v)] for name, v in facts if v not in (None, "")]
    body = table(["", "value"], rows, head=False) if rows else ""
    if run.recipe:
        recipe = f'<pre tabindex="0"><code>{escape(run.recipe)}</code></pre>'
        body += f"<details><summary>The resolved recipe</summary>{recipe}</details>"
    return section("Machine, versions, recipe", "", body) if body else ""
