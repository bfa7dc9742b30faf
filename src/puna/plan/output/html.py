"""A plan as one self-contained HTML page: no script, no font, no request.

The order is that of the terminal: fit, speed, time, cost; then other fleets and layouts, the assumptions that matter,
and every part with its equation.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from puna.core.files import write_text
from puna.core.page import Html, document, figures, named, section, table
from puna.core.plots import STYLE, bar
from puna.core.units import format_count
from puna.plan.layouts.predict import PART_NAMES, describe_layout
from puna.plan.layouts.search import pareto
from puna.plan.output import charts as pictures
from puna.plan.output.explain import MEMORY, TIME
from puna.plan.output.format import (
    GIB,
    MEMORY_GROUPS,
    TIME_GROUPS,
    change,
    count,
    grouped,
    milliseconds,
    percent,
    span,
    step_words,
    usd,
    verdict,
)
from puna.plan.output.format import figures as figure_rows
from puna.plan.run.budget import FleetSize, Sized, sizes
from puna.plan.run.estimate import RunEstimate
from puna.plan.run.terms import Terms

# Other fleets, as multiples of the planned one; none larger than the largest on record.
_MULTIPLES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
_LARGEST_FLEET = 2**20
# Layouts that need more than this multiple of the memory are left out of the chart.
_FAR_OUT = 2.0


def write_html(estimate: RunEstimate, path: Path, *, sized: Sized, terms: Terms, own: str = "") -> Path:
    """Write the estimate as a page to `path`, with other fleet sizes searched too. Returns the path.

    own: what Puna's own trainer makes of it, where another software is planned.
    """
    if path.is_dir():
        path = path / "plan.html"
    write_text(path, render(estimate, _other_sizes(estimate, sized, terms), own=own))
    return path


def render(estimate: RunEstimate, fleets: Sequence[FleetSize] = (), *, own: str = "") -> str:
    """The whole page. fleets: the same run on fleets of several sizes, for the charts."""
    parts = [_header(estimate, own), _memory(estimate)]
    if estimate.best.fits:
        parts += [_time(estimate), _figures(estimate), _fleets(estimate, fleets)]
    parts += [_layouts(estimate), _what_if(estimate), _every_part(estimate), _assumed(estimate)]
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8") + STYLE + pictures.STYLE
    body = "\n".join(part for part in parts if part)
    return document(f"{estimate.question.model}, planned", css, body, origin="a plan")


def _other_sizes(estimate: RunEstimate, sized: Sized, terms: Terms) -> list[FleetSize]:
    if not estimate.best.fits:
        return []
    asked = estimate.question.accelerators
    counts = sorted({round(asked * by) for by in _MULTIPLES if 1 <= asked * by <= max(asked, _LARGEST_FLEET)})
    return sizes(sized, counts, estimate.tokens, terms)


# -- sections --------------------------------------------------------------------------------------------------------


def _header(estimate: RunEstimate, own: str) -> str:
    question, best = estimate.question, estimate.best
    fits = '<span class="status">fits</span>' if best.fits else '<span class="status warn">does not fit</span>'
    lead = (
        f"<b>{format_count(estimate.tokens)} tokens</b> on <b>{question.accelerators:,} x "
        f"{escape(question.accelerator.name)}</b>, {escape(question.precision)}, batches of {question.batch:,} "
        f"sequences of {question.seq_len:,} tokens, software {escape(question.stack)}"
    )
    have = question.accelerator.usable_bytes / GIB
    large = [(f"{best.memory_bytes / GIB:.1f} GiB", f"of {have:.1f} on the fullest accelerator")]
    if best.fits:
        lead += f". It takes <b>{span(estimate.days.value * 86400)}</b>"
        lead += f" and <b>{usd(estimate.rent_usd.value)}</b> of rent." if estimate.rent_usd else "."
        large += [
            (span(best.step_seconds), "a step"),
            (percent(estimate.mfu_causal.value), "MFU, causal half of attention counted"),
            (format_count(estimate.tokens_per_second.value), "tokens per second"),
            (count(estimate.interruptions.value), "interruptions"),
            (percent(estimate.effective_time.value), "effective time"),
        ]
    else:
        lead += "."
    title = f'<p class="eyebrow">{fits} · plan</p>\n<h1>{escape(question.model)}</h1>\n<p class="lead">{lead}</p>'
    title += f'\n<p class="lead">{escape(own)}</p>' if own else ""
    return f"<header>\n{title}\n{figures(large)}\n</header>"


def _memory(estimate: RunEstimate) -> str:
    best, have = estimate.best, estimate.question.accelerator.usable_bytes
    parts = [(name, amount, f"{amount / GIB:.1f}") for name, amount in grouped(best.memory, MEMORY_GROUPS).items()]
    body = pictures.parts_bar(
        parts, scale=1.02 * max(have, best.memory_bytes), mark=(have, f"{have / GIB:.1f} GiB usable")
    )
    if not best.fits:
        rows = [
            [
                named(one.change, describe_layout(one.prediction.layout, one.prediction.question.stack)),
                span(one.prediction.step_seconds),
                f"{one.prediction.memory_bytes / GIB:.1f}",
            ]
            for one in estimate.suggestions
        ]
        nothing = "<p>Nothing that was tried: more or larger accelerators, shorter sequences, smaller presets.</p>"
        body += "<h3>What would make it fit</h3>" + (
            table(["change", "a step", "GiB"], rows, numeric=(1, 2)) if rows else nothing
        )
    return section("Memory", f"{escape(verdict(estimate))} GiB of each part, on that accelerator.", body)


def _time(estimate: RunEstimate) -> str:
    parts = [(name, seconds, span(seconds)) for name, seconds in grouped(estimate.best.seconds, TIME_GROUPS).items()]
    text = f"One step takes {escape(step_words(estimate))}; 80 % of steps like it lie between the ends."
    return section("Time", text, pictures.parts_bar(parts, scale=estimate.best.step_seconds))


def _figures(estimate: RunEstimate) -> str:
    rows = [[row.name, row.value, row.interval, row.note] for row in figure_rows(estimate)]
    body = table(["", "expected", "80 % interval", ""], rows, numeric=(1, 2))
    return section("The run", "Figures of the whole run, failures counted.", body)


def _fleets(estimate: RunEstimate, fleets: Sequence[FleetSize]) -> str:
    if len(fleets) < 2:
        return ""
    ours = estimate.question.accelerators
    first = fleets[0]
    speed = [
        pictures.Spot(
            (one.accelerators, one.best.tokens_per_second),
            f"{one.accelerators:,}: {format_count(one.best.tokens_per_second)} tokens/s, MFU "
            f"{percent(one.best.mfu(causal=True))}, {describe_layout(one.best.layout, one.best.question.stack)}",
            reach=(one.best.tokens_per_step / one.best.high, one.best.tokens_per_step / one.best.low),
            ours=one.accelerators == ours,
        )
        for one in fleets
    ]
    base = max(one.best.tokens_per_second / one.accelerators for one in fleets)
    ideal = [(one.accelerators, base * one.accelerators) for one in (first, fleets[-1])]
    counts = pictures.Axis(
        "accelerators", lambda size: f"{size:,.0f}", log=True, ticks=[one.accelerators for one in fleets]
    )
    charts = [
        pictures.chart(
            "Tokens per second",
            f"from {first.accelerators:,} to {fleets[-1].accelerators:,} accelerators, each with its own layout; "
            "dashed: all as fast as the most efficient of them",
            counts,
            pictures.Axis("", format_count, log=True),
            spots=speed,
            joined=True,
            ideal=ideal,
        )
    ]
    paid = [one for one in fleets if one.rent_usd is not None]
    if len(paid) > 1:
        charts.append(
            pictures.chart(
                "Rent against days",
                "what the run costs and how long it takes, for each size of fleet",
                pictures.Axis("days", count, log=True),
                pictures.Axis("", usd, zero=True, low=0.0, high=1.15 * max(one.rent_usd or 0.0 for one in paid)),
                spots=[
                    pictures.Spot(
                        (one.days, one.rent_usd or 0.0),
                        f"{one.accelerators:,}: {count(one.days)} days, {usd(one.rent_usd or 0.0)}",
                        label=f"{one.accelerators:,}",
                        ours=one.accelerators == ours,
                    )
                    for one in paid
                ],
                joined=True,
            )
        )
    text = (
        "The same run on other fleets, each with its own layout. Filled: this plan. Dashed: all as fast as the fastest."
    )
    return section("More or fewer accelerators", text, _grid(charts))


def _layouts(estimate: RunEstimate) -> str:
    question, found = estimate.question, estimate.choice.found
    have = question.accelerator.usable_bytes
    near = found.memory_bytes <= _FAR_OUT * max(have, found.memory_bytes.min())
    memory, seconds = found.memory_bytes / GIB, found.step_seconds
    inside = np.flatnonzero(near & found.fits)
    outside = np.flatnonzero(near & ~found.fits)
    front = [row for row in pareto(found) if near[row]]

    def points(rows: Sequence[int]) -> list[tuple[float, float]]:
        return [(float(memory[row]), float(seconds[row])) for row in rows]

    def drawn(width: int, height: int) -> str:
        return pictures.chart(
            "Seconds of a step, against memory",
            f"{len(found):,} legal layouts as dots; the staircase is the fastest for so much memory",
            pictures.Axis("GiB on the fullest accelerator", count, zero=True, low=0.0),
            pictures.Axis("", count, log=True, low=0.93 * float(seconds[near].min())),
            cloud=points(inside.tolist()),
            cloud_out=points(outside.tolist()),
            front=points(front),
            limit=(have / GIB, f"{have / GIB:.1f} GiB"),
            spots=[
                pictures.Spot(
                    (estimate.best.memory_bytes / GIB, estimate.best.step_seconds),
                    describe_layout(estimate.best.layout, question.stack),
                    ours=True,
                )
            ],
            width=width,
            height=height,
        )

    picture = ""
    if len(found) > 1:
        picture = f'<figure class="wide">{drawn(960, 380)}</figure><figure class="narrow">{drawn(400, 300)}</figure>'
    shown = [(estimate.best, ""), *((one, "") for one in estimate.choice.runners_up)]
    if estimate.given:
        shown.append((estimate.given, "the recipe's own"))
    rows = [
        [
            named(describe_layout(one.layout, question.stack), note),
            span(one.step_seconds),
            "" if one is estimate.best else change(one.step_seconds / estimate.best.step_seconds - 1),
            f"{one.memory_bytes / GIB:.1f}",
            percent(one.mfu(causal=True)),
        ]
        for one, note in shown
    ]
    body = picture + table(["layout", "a step", "", "GiB", "MFU"], rows, numeric=(1, 2, 3, 4), ours=0)
    text = f"All {len(found):,} legal layouts were searched; {estimate.choice.fitting:,} fit. Green: chosen."
    return section("Layouts", text, body)


def _what_if(estimate: RunEstimate) -> str:
    if not estimate.what_ifs or not estimate.best.fits:
        return ""
    most = max(abs(one.by) for one in estimate.what_ifs)
    rows = [
        [
            named(one.assumption, one.change),
            Html(bar(abs(one.by) / most)),
            f"{one.figure} {change(one.by)}",
        ]
        for one in estimate.what_ifs
    ]
    body = table(["", "", "then"], rows, numeric=(2,), drawing=1, head=False)
    return section("What if", "The assumptions that move the estimate most, each moved by itself.", body)


def _every_part(estimate: RunEstimate) -> str:
    best = estimate.best
    time = [
        [
            named(PART_NAMES[name], "; ".join(TIME[name])),
            milliseconds(value),
            percent(value / best.step_seconds),
        ]
        for name, value in best.seconds.items()
    ]
    memory = [
        [named(name, "; ".join(MEMORY[name])), f"{value / GIB:.2f}", percent(value / best.memory_bytes)]
        for name, value in best.memory.items()
    ]
    tables = (
        (f"the step, {milliseconds(best.step_seconds)} ms", ["part", "ms", ""], time),
        (f"the memory, {best.memory_bytes / GIB:.2f} GiB", ["part", "GiB", ""], memory),
    )
    body = "".join(
        f"<details><summary>Every part of {escape(title)}</summary>{table(columns, rows, numeric=(1, 2))}</details>"
        for title, columns, rows in tables
    )
    return section("Every part", "With its equation and where that is from.", body)


def _assumed(estimate: RunEstimate) -> str:
    lines = [*estimate.assumptions, *estimate.bill.notes]
    if not lines:
        return ""
    return section("Assumed", "", f'<ul class="plain">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>')


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(f"<figure>{chart}</figure>" for chart in charts)}</div>'
