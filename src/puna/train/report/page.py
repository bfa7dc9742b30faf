"""Render a run as one self-contained HTML page.

It has no scripts, fonts or requests, and is readable in ten years. Reads the run directory (metrics.jsonl, and
recipe.toml and evaluation.json if they exist) and writes report.html. A run in any state has a page: finished, running,
killed after one line. The order follows a reader's questions: what is it, how good is it, compared with what, how did
it get there, what does it write, did it cost what was predicted.
"""

from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from puna.core.files import write_text
from puna.core.page import Html, document, figures, named, section, table
from puna.core.plots import (
    STYLE,
    Mark,
    Series,
    bar,
    interval_bar,
    line_chart,
    mark_symbol,
    smooth,
)
from puna.core.statistics import wilson
from puna.core.units import format_bytes, format_count, format_seconds
from puna.train.report.abilities import abilities
from puna.train.report.format import count_or_share, format_flops, number, or_dash
from puna.train.report.run_data import Points, Run, load_run, points, status, summary
from puna.train.report.sections import SHAPES, events, machine, predicted
from puna.train.report.stage_measures import stage_measures
from puna.train.run.metrics import Event


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Render `run_dir` as a page at `output` (default: run_dir/report.html) and return its path.

    Raises PunaError when the run or its metrics are missing or damaged.
    """
    page = render(load_run(run_dir))
    path = output or run_dir / "report.html"
    if path.is_dir():
        path = path / "report.html"
    write_text(path, page)
    return path


def render(run: Run) -> str:
    """The whole page."""
    facts = summary(run)
    css = resources.files("puna.train.report").joinpath("report.css").read_text(encoding="utf-8")
    sections = [
        _header(run, facts),
        abilities(run.evaluation.get("abilities", [])),
        _comparison(run),
        _learning(run),
        _completions(run),
        _samples(run),
        _course(run),
        stage_measures(run),
        predicted(run, facts),
        events(run),
        machine(run),
    ]
    body = "\n".join(part for part in sections if part)
    return document(run.name, css + STYLE, body, origin="metrics.jsonl")


# -- sections ----------------------------------------------------------------------------------------------------------


def _header(run: Run, facts: dict[str, Any]) -> str:
    state, warn = status(run)
    device = run.start.get("device")
    eyebrow = f'<span class="status{" warn" if warn else ""}">{escape(state)}</span>'
    if device:
        eyebrow += f" · {escape(str(device))}"
    if run.start.get("time"):
        eyebrow += f" · <time>{escape(str(run.start['time'])[:16].replace('T', ' '))}</time>"
    peak_share = facts["mfu"]["full"]
    pairs = [
        (number(facts["heldout_bits_per_byte"], ".3f"), "bits per byte, held-out text"),
        (or_dash(facts["tokens"], format_count), "tokens trained"),
        (or_dash(facts["seconds"], format_seconds), "training time"),
        (or_dash(facts["tokens_per_second"], lambda v: f"{v:,.0f}"), "tokens per second"),
        (number(peak_share, ".0%"), "of the measured peak, full-attention convention"),
        (or_dash(facts["peak_memory_bytes"], format_bytes), "peak memory"),
    ]
    shown = figures([pair for pair in pairs if pair[0] != "–"])
    return (
        f'<header>\n<p class="eyebrow">{eyebrow}</p>\n<h1>{escape(run.name)}</h1>\n<p class="lead">{_sentence(facts)}'
        f"</p>\n{shown}\n</header>"
    )


def _sentence(facts: dict[str, Any]) -> str:
    """One sentence about what the model is and how good it is."""
    size = facts["parameters"]
    what = f"A Llama of <b>{format_count(size)} parameters</b>" if size else "A Llama"
    steps = (
        f"{facts['step']:,} of {facts['total_steps']:,} steps" if facts["total_steps"] else f"{facts['step']:,} steps"
    )
    if facts["step"] == facts["total_steps"]:
        steps = f"{facts['step']:,} steps"
    text = f"{what}, trained for {steps} on <b>{format_count(facts['tokens'] or 0)} tokens</b>"
    if facts["seconds"] is not None:
        text += f" in {format_seconds(facts['seconds'])}"
    value = facts["heldout_bits_per_byte"]
    if facts["stage"]:
        return f"{text}: {facts['stage']} after pretraining."
    if value is None:
        return text + "; it has not been measured on held-out text yet."
    return text + f"; it needs <b>{value:.3f} bits</b> per byte of text that it has not seen."


def _comparison(run: Run) -> str:
    rows = run.evaluation.get("bits_per_byte", [])
    if not rows:
        return ""
    ours = next((row for row in rows if row.get("ours")), rows[0])
    longest = max((row["value"] for row in rows if row["value"] is not None), default=1.0)
    body = []
    rows = sorted(rows, key=lambda row: (row["value"] is None, row["value"]))
    for row in rows:
        drawing = "" if row["value"] is None else bar(row["value"] / longest, ours=row is ours)
        interval = row.get("interval")
        spread = f"{interval[0]:.3f} – {interval[1]:.3f}" if interval else ""
        body.append(
            [named(str(row["name"]), str(row.get("note") or "")), Html(drawing), number(row["value"], ".3f"), spread]
        )
    rendered = table(
        ["", "bits per byte, lower is better", "", "95 % interval"],
        body,
        numeric=(2, 3),
        drawing=1,
        ours=next(index for index, row in enumerate(rows) if row is ours),
    )
    return section(
        "Compared with compressors",
        "A language model is a compressor: text that it finds likely costs few bits. All were measured on the same "
        "held-out documents.",
        rendered,
    )


def _learning(run: Run) -> str:
    train = points(run.train, "bits_per_byte")
    heldout = points(run.evals, "bits_per_byte")
    if run.start.get("stage"):
        return ""  # its measures have a section of their own
    if not train and not heldout:
        return section("Learning", "The run has not logged any training steps yet.", "")
    half_life = max(1.0, len(train) / 40)
    smoothed = list(zip([x for x, _ in train], smooth([y for _, y in train], half_life), strict=True))
    series = [Series("raw", train, "raw"), Series("training", smoothed, "main")]
    # Evaluations during the run use part of the held-out text, the last one all of it: two curves, not one.
    part = run.evals[0].get("bytes") if run.evals else None
    in_part = points([event for event in run.evals if event.get("bytes") == part], "bits_per_byte")
    in_full = points([event for event in run.evals if event.get("bytes") != part], "bits_per_byte")
    series += [Series("held-out", in_part, "dots")] if in_part else []
    series += [Series("in full", in_full, "full")] if in_full else []
    references = _compressors(run)
    top = _frame(smoothed, heldout, [value for _, value in references])
    charts = "".join(
        f'<div class="{name}">'
        + line_chart(
            series,
            title="Bits per byte",
            description=_describe(smoothed, heldout),
            y_format=lambda value: f"{value:.3g}",
            x_format=lambda value: f"{value:,.0f}",
            x_label="step",
            x_range=_x_range(run),
            y_max=top,
            references=references,
            marks=_marks(run),
            lane=bool(run.events),
            width=width,
            height=height,
        )
        + "</div>"
        for name, width, height in (("wide", 1040, 420), ("narrow", 420, 320))
    )
    cut = [x for x, y in smoothed if top is not None and y > top]
    notes = [f"Training is smoothed with a half-life of {half_life:.0f} lines."] if half_life >= 2 else []
    if cut:
        notes.append(f"The steps up to {cut[-1]:,.0f} start above the frame, at {smoothed[0][1]:.2f}.")
    text = "How many bits the model needs per byte of text, over the course of training."
    return section(
        "Learning", text, f"<figure>{charts}{_mark_legend(run)}<figcaption>{' '.join(notes)}</figcaption></figure>"
    )


def _compressors(run: Run) -> list[tuple[str, float]]:
    """Reference lines of the chart: gzip, xz and the best other row.

    The model and untrained weights are excluded.
    """
    rows = [row for row in run.evaluation.get("bits_per_byte", [])[1:] if row["value"] is not None]
    rows = [row for row in rows if "untrained" not in row["name"] and not row.get("ours")]
    best = min(rows, key=lambda row: row["value"], default=None)
    return [
        (f"{r['name']} {r['value']:.2f}", r["value"]) for r in rows if r is best or r["name"] in ("gzip -9", "xz -9")
    ]


def _course(run: Run) -> str:
    """Draw six small charts over the same steps."""
    predicted = run.start.get("predicted") or {}
    peak = run.start.get("peak_flops")
    precision = run.start.get("precision", "")
    memory = [(x, y / 2**30) for x, y in points(run.train, "memory_bytes")]
    memory_prediction = predicted.get("memory_bytes")
    loss = points(run.train, "loss")
    loss_title = "Loss" if run.start.get("stage") else "Loss, nats per token"
    norms = points(run.train, "grad_norm")
    speeds = points(run.train, "tokens_per_second")
    full, causal = points(run.train, "mfu", "full"), points(run.train, "mfu", "causal")
    count = "{:,.0f}".format
    charts = [
        _small(run, [Series("loss", loss)], loss_title, "{:.3g}".format, _frame(loss, [], [])),
        _small(run, [Series("norm", norms)], "Gradient norm, before clipping", "{:.3g}".format, _frame(norms, [], [])),
        _small(
            run, [Series("factor", points(run.train, "lr_factor"))], "Learning rate, share of peak", "{:.0%}".format
        ),
        _small(
            run,
            [Series("speed", speeds)],
            "Tokens per second",
            count,
            references=_reference("predicted", predicted.get("tokens_per_second"), count),
        ),
        _small(
            run,
            [Series("full attention", full), Series("causal", causal, "second")],
            "Share of the measured peak",
            "{:.0%}".format,
        )
        if full
        else "",
        _small(
            run,
            [Series("peak", memory)],
            "Peak memory, GiB",
            "{:.3g}".format,
            references=_reference(
                "predicted", memory_prediction / 2**30 if memory_prediction else None, "{:.3g}".format
            ),
        ),
    ]
    figures = "".join(f"<figure>{chart}</figure>" for chart in charts if chart)
    if not figures:
        return ""
    if peak:
        text = (
            f"The peak is {format_flops(peak)}, the best matrix product measured on this device"
            f"{f' for {escape(str(precision))} training' if precision else ''}. Full attention counts the whole square "
            "of scores; causal counts only the triangle that is needed."
        )
    else:
        text = "The peak of this device was not measured, so its utilization is not shown."
    return section("The course of the run", text, f'<div class="grid">{figures}</div>')


def _small(
    run: Run,
    series: Sequence[Series],
    title: str,
    y_format: Callable[[float], str],
    y_max: float | None = None,
    *,
    references: Sequence[tuple[str, float]] = (),
) -> str:
    series = [one for one in series if one.points]
    if not series:
        return ""
    first, last = series[0].points[0], series[0].points[-1]
    return line_chart(
        series,
        title=title,
        description=f"From {y_format(first[1])} at step {first[0]:,.0f} to {y_format(last[1])} at step {last[0]:,.0f}.",
        y_format=y_format,
        x_format=lambda value: f"{value:,.0f}",
        x_label="step",
        x_range=_x_range(run),
        y_zero=True,
        y_max=y_max,
        references=references,
        marks=[mark for mark in _marks(run) if mark.shape != "diamond"],
    )


def _completions(run: Run) -> str:
    rows = [row for row in run.evaluation.get("completions", []) if row["sampled"]]
    if not rows:
        return ""
    trivial = any(row.get("trivial") is not None for row in rows)
    baseline = any(row.get("baseline") is not None for row in rows)
    columns = ["", "share that parses, 0 to 100 %", "", "95 % interval", "counted"]
    body = []
    for row in rows:
        low, high = wilson(row["parsed"], row["sampled"])
        share = row["parsed"] / row["sampled"]
        tip = f"{share:.1%}, 95 % interval {low:.1%} to {high:.1%}"
        cells = [
            named(str(row.get("label") or "model"), f"step {row['step']:,}"),
            Html(interval_bar(low, share, high, tip)),
            f"{share:.1%}",
            f"{low:.1%} – {high:.1%}",
            f"{row['parsed']:,} of {row['sampled']:,}",
        ]
        cells += [count_or_share(row.get("trivial"))] if trivial else []
        cells += [count_or_share(row.get("baseline"))] if baseline else []
        body.append(cells)
    columns += (["parse, but do nothing"] if trivial else []) + (["baseline"] if baseline else [])
    rendered = table(columns, body, numeric=tuple(range(2, len(columns))), drawing=1)
    return section(
        "Writing code",
        "Given the head of a function from a held-out file, the model writes the body. The share counts bodies that "
        "Python's own parser accepts and that do something. Parsing is only a first measure of code: it does not show "
        "that the body is right. Intervals are Wilson's.",
        rendered,
    )


def _samples(run: Run) -> str:
    samples = run.samples + [sample for sample in run.evaluation.get("samples", []) if sample.get("text")]
    samples = sorted(samples, key=lambda sample: sample.get("step", 0))
    if not samples:
        return ""
    shown = sorted({round(i * (len(samples) - 1) / 5) for i in range(6)}) if len(samples) > 6 else range(len(samples))
    rest = [index for index in range(len(samples)) if index not in set(shown)]

    def cards(indices: Sequence[int]) -> str:
        return '<div class="samples">' + "".join(_sample(samples[index]) for index in indices) + "</div>"

    body = cards(list(shown))
    if rest:
        body += f"<details><summary>{len(rest)} more samples</summary>{cards(rest)}</details>"
    return section("What it writes", "Samples over the course of training; the prompt is in colour.", body)


def _sample(sample: Event) -> str:
    prompt, text = str(sample.get("prompt") or ""), str(sample.get("text") or "")
    name = f"Step {sample.get('step', 0):,}"
    label = f" <span>{escape(str(sample['label']))}</span>" if sample.get("label") else ""
    return (
        f'<div><h3>{name}{label}</h3><pre tabindex="0" aria-label="Sample at step {sample.get("step", 0)}"><code>'
        f'<span class="prompt">{escape(prompt)}</span>{escape(text)}</code></pre></div>'
    )


# -- pieces ------------------------------------------------------------------------------------------------------------


def _mark_legend(run: Run) -> str:
    seen = {str(event.get("event")) for event in run.events}
    items = [
        f"<li>{mark_symbol(shape, warn=warn)}{escape(name)}</li>"
        for event, (shape, warn, name) in SHAPES.items()
        if event in seen
    ]
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _marks(run: Run) -> list[Mark]:
    out = []
    for event in run.events:
        shape, warn, name = SHAPES.get(str(event.get("event")), ("diamond", False, str(event.get("event"))))
        detail = f"step {event['step']:,}: {name}. {event.get('detail') or ''}".strip()
        out.append(Mark(event["step"], detail, shape, warn))  # type: ignore[arg-type]
    return out


def _frame(line: Points, dots: Points, others: Sequence[float]) -> float | None:
    """The upper edge of the frame.

    Cuts off a steep start or single spikes that would flatten the rest.
    """
    if len(line) < 30:
        return None
    values = sorted(y for _, y in line)
    usual = max([values[int(0.95 * len(values))], *others])
    spread = usual - values[0]
    return usual + 0.15 * spread if values[-1] > usual + 0.5 * spread > usual else None


def _x_range(run: Run) -> tuple[float, float]:
    steps = [event.get("step", 0) for event in (*run.train, *run.evals, *run.events)]
    return 0.0, float(max([1, *steps]))


def _describe(smoothed: Points, heldout: Points) -> str:
    parts = []
    if smoothed:
        (x0, y0), (x1, y1) = smoothed[0], smoothed[-1]
        parts.append(f"Training text: from {y0:.3f} at step {x0:,.0f} to {y1:.3f} at step {x1:,.0f}.")
    if heldout:
        parts.append(f"Held-out text: {heldout[-1][1]:.3f} at step {heldout[-1][0]:,.0f}.")
    return " ".join(parts)


def _reference(name: str, value: float | None, form: Callable[[float], str]) -> list[tuple[str, float]]:
    return [] if value is None else [(f"{name} {form(value)}", value)]
