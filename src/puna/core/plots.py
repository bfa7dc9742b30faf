"""Plots as inline SVG, drawn with a few functions and no library, so that a report is one file that loads nothing.

Every function returns one <svg> as text. Colours and weights are CSS classes (`STYLE`), so one drawing works in light
and dark. Each drawing has a <title> and a <desc> for screen readers, and <title> elements as tooltips. All text is
escaped here.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Point = tuple[float, float]

# Needs the custom properties --ink, --soft, --faint, --line, --paper, --accent and --warn from the page.
STYLE = """
.plot { display: block; width: 100%; height: auto; overflow: visible; font: 12px system-ui, sans-serif; }
.plot text { fill: var(--soft); font-variant-numeric: tabular-nums; }
.plot .name { fill: var(--ink); font-weight: 600; font-size: 13px; }
.plot .value { fill: var(--ink); }
.plot .grid { stroke: var(--line); stroke-width: 1; }
.plot .axis { stroke: var(--faint); stroke-width: 1; }
.plot path { fill: none; stroke-linejoin: round; stroke-linecap: round; }
.plot .main { stroke: var(--accent); stroke-width: 2; }
.plot .raw { stroke: var(--accent); stroke-width: 1; opacity: .4; }
.plot .second { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 2 3; }
.plot .dots { stroke: var(--ink); stroke-width: 1.2; }
.plot .dot { fill: var(--paper); stroke: var(--ink); stroke-width: 2; }
.plot .dot.full { fill: var(--ink); }
.plot .reference { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 5 4; }
.plot .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.plot .mark { stroke: var(--soft); stroke-width: 1.5; fill: none; }
.plot .mark.warn { stroke: var(--warn); }
.plot .fall { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 1 4; }
.plot .fall.warn { stroke: var(--warn); }
.plot .hit rect { fill: transparent; }
.plot .hit line { stroke: var(--faint); opacity: 0; }
.plot .hit:hover line { opacity: 1; }
.plot .bar { fill: var(--bar); }
.plot .bar.ours { fill: var(--accent); }
.plot.strip { height: 14px; }
.plot.strip path { vector-effect: non-scaling-stroke; }
.plot .whisker { stroke: var(--accent); stroke-width: 3; opacity: .45; }
.plot .point { stroke: var(--accent); stroke-width: 10; }
.plot.symbol { display: inline-block; width: 14px; height: 14px; flex: none; }
.plot .part0 { fill: var(--accent); } .plot .part1 { fill: var(--soft); }
.plot .part2 { fill: var(--faint); } .plot .part3 { fill: var(--bar); } .plot .part4 { fill: var(--line); }
"""


@dataclass(frozen=True)
class Series:
    """One curve. style: main (accent line), raw (the same, faint), second (dashed), dots (joined), full (apart)."""

    name: str
    points: Sequence[Point]
    style: Literal["main", "raw", "second", "dots", "full"] = "main"


@dataclass(frozen=True)
class Mark:
    """An event at x. warn draws its shape in the warning colour."""

    x: float
    detail: str
    shape: Literal["diamond", "cross", "back", "play", "square"] = "diamond"
    warn: bool = False


_SHAPES = {
    "diamond": "M0 -4 L4 0 L0 4 L-4 0 Z",
    "cross": "M-3.5 -3.5 L3.5 3.5 M-3.5 3.5 L3.5 -3.5",
    "back": "M4 3 A4 4 0 1 0 -3 0 M-5.5 -2.5 L-3 0.5 L0 -1.5",
    "play": "M-3 -4 L4 0 L-3 4 Z",
    "square": "M-3.5 -3.5 H3.5 V3.5 H-3.5 Z",
}


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    description: str,
    y_format: Callable[[float], str],
    x_format: Callable[[float], str],
    x_label: str = "",
    x_range: Point | None = None,
    y_zero: bool = False,
    y_max: float | None = None,
    references: Sequence[tuple[str, float]] = (),
    marks: Sequence[Mark] = (),
    lane: bool = False,
    width: int = 440,
    height: int = 220,
) -> str:
    """Curves over one x axis.

    title: shown above the chart, with the unit ("Memory, GiB"). description: what a screen reader says. x_range: common
    limits of several charts. y_zero: the axis starts at 0. y_max: the upper edge; curves above it are cut off.
    references: named horizontal lines. marks: events, as thin vertical lines, and as symbols in a lane below if `lane`.
    """
    values = [y for one in series for _, y in one.points] + [y for _, y in references]
    xs = [x for one in series for x, _ in one.points]
    if not values:
        return ""
    low, high = (0.0 if y_zero else min(values)), max(values)
    if y_max is not None:
        high = max(y_max, low)
    ticks = nice_ticks(low, high, 5 if height > 300 else 4)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    labels = [y_format(tick) for tick in ticks]
    x_low, x_high = x_range or (min(xs), max(xs))
    if x_high <= x_low:
        x_high = x_low + 1
    left = max(44, 16 + 7 * max(len(label) for label in labels))
    top, right, bottom = 34, width - 12, height - (54 if lane else 32)

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (right - left)

    def py(y: float) -> float:
        return bottom - (y - low) / (high - low) * (bottom - top)

    out = [f'<text class="name" x="0" y="13">{escape(title)}</text>', _legend(series, left, right)]
    for tick, label in zip(ticks, labels, strict=True):
        y = py(tick)
        out.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    out += _x_axis(x_low, x_high, px, x_format, x_label, left, right, bottom)
    clip = _id("clip", title, width, height, series)
    out.append(
        f'<clipPath id="{clip}"><rect x="{left}" y="{top - 1}" width="{right - left}" height="{bottom - top + 2}"/>'
    )
    out.append(f'</clipPath><g clip-path="url(#{clip})">')
    for mark in marks:
        if mark.shape != "diamond":  # a line for every checkpoint would be a fence
            x, warn = px(mark.x), " warn" if mark.warn else ""
            out.append(f'<line class="fall{warn}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
    for one in series:
        if len(one.points) > 1 and one.style != "full":
            out.append(f'<path class="{one.style}" d="{_path(thin(one.points), px, py)}"/>')
    out.append("</g>")
    above = -math.inf
    for name, value in sorted(references, key=lambda reference: -reference[1]):
        if low <= value <= high:
            y = py(value)
            above = y + 14 if y - above < 24 else y - 5  # under its line where there is no room over it
            out.append(f'<line class="reference" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            out.append(f'<text class="halo" x="{right}" y="{above:.1f}" text-anchor="end">{escape(name)}</text>')
    out += _hits(series, px, x_format, y_format, top, right, bottom, left, x_label)
    for one in series:
        if one.style in ("dots", "full") or len(one.points) == 1:
            kind = "dot full" if one.style == "full" else "dot"
            for x, y in one.points:
                if low <= y <= high:
                    tip = f"{one.name}: {y_format(y)} at {x_label} {x_format(x)}"
                    out.append(
                        f'<circle class="{kind}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.5">{_title(tip)}</circle>'
                    )
    if lane:
        out += [
            f'<g transform="translate({px(mark.x):.1f} {height - 8})"><rect x="-6" y="-7" width="12" height="14"'
            f' fill="transparent"/><path class="mark{" warn" if mark.warn else ""}" d="{_SHAPES[mark.shape]}"/>'
            f"{_title(mark.detail)}</g>"
            for mark in marks
        ]
    return _svg("".join(out), width, height, title, description)


def bar(share: float, *, ours: bool = False) -> str:
    """A bar that fills `share` (0 to 1) of a table's cell; the number is in the next cell."""
    return _strip(f'<rect class="bar{" ours" if ours else ""}" width="{100 * share:.2f}" height="10"/>')


def interval_bar(low: float, value: float, high: float, text: str, *, marks: Sequence[float] = ()) -> str:
    """A share between 0 and 1 as a dot with its interval, on a line from 0 to 100 %, for a table's cell.

    marks: shares to compare it with, such as what guessing scores.
    """
    a, b, c = (100 * share for share in (low, value, high))
    return _strip(
        '<path class="axis" d="M0 5H100M0 2V8M50 3V7M100 2V8"/>'
        + "".join(f'<path class="second" d="M{100 * mark:.2f} 0V10"/>' for mark in marks)
        + f'<path class="whisker" d="M{a:.2f} 5H{c:.2f}"/><path class="point" d="M{b:.2f} 5h.001"/>{_title(text)}'
    )


def stacked_bar(parts: Sequence[tuple[str, float]], *, value_format: Callable[[float], str]) -> str:
    """One bar divided by share: (name, amount). The page draws the legend (classes part0, part1, …)."""
    total = sum(amount for _, amount in parts) or 1.0
    out, x = [], 0.0
    for index, (name, amount) in enumerate(parts):
        size = amount / total * 100
        tip = f"{name}: {value_format(amount)}, {amount / total:.1%}"
        out.append(f'<rect class="part{index}" x="{x:.2f}" width="{size:.2f}" height="10">{_title(tip)}</rect>')
        x += size
    return _strip("".join(out))


def mark_symbol(shape: str, *, warn: bool = False) -> str:
    """A single mark, for a legend in running text."""
    return (
        '<svg class="plot symbol" viewBox="-7 -7 14 14" aria-hidden="true">'
        f'<path class="mark{" warn" if warn else ""}" d="{_SHAPES[shape]}"/></svg>'
    )


# -- numbers -----------------------------------------------------------------------------------------------------------


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten apart) that span low to high."""
    if not math.isfinite(low) or not math.isfinite(high):
        return [0.0, 1.0]
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, as far as labels can tell
        pad = abs(low) * 0.05 or 1.0
        low, high = low - pad if low else 0.0, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def smooth(values: Sequence[float], half_life: float) -> list[float]:
    """Exponential moving average without the bias at its start; after `half_life` values a value counts half.

    Near the start the half-life is shorter (a tenth of the values so far), so that the average does not lag behind a
    curve that falls steeply there.
    """
    out, total, weight = [], 0.0, 0.0
    for count, value in enumerate(values, 1):
        keep = 0.5 ** (1 / max(0.1, min(half_life, count / 10)))
        total, weight = keep * total + value, keep * weight + 1
        out.append(total / weight)
    return out


def thin(points: Sequence[Point], most: int = 400) -> list[Point]:
    """About `most` points at most that keep the shape: the lowest and the highest of each stretch."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most / 2))
    kept: list[Point] = [points[0]]
    for at in range(0, len(points), size):
        stretch = points[at : at + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    kept.append(points[-1])
    return list(dict.fromkeys(kept))


# -- pieces ------------------------------------------------------------------------------------------------------------


def _svg(content: str, width: float, height: float, title: str, description: str) -> str:
    name, about = _id("title", title, content), _id("desc", title, content)
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name} {about}">'
        f'<title id="{name}">{escape(title)}</title><desc id="{about}">{escape(description)}</desc>{content}</svg>'
    )


def _id(prefix: str, *content: object) -> str:
    """An id that is unique within a page and the same whenever the page is drawn from the same numbers."""
    return prefix + hashlib.sha256(repr(content).encode()).hexdigest()[:10]


def _strip(content: str) -> str:
    """A drawing of 100 by 10 that fills its cell; the numbers are next to it, so screen readers skip it."""
    return f'<svg class="plot strip" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{content}</svg>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _path(points: Sequence[Point], px: Callable[[float], float], py: Callable[[float], float]) -> str:
    return "M" + "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in points)


def _legend(series: Sequence[Series], left: float, right: float) -> str:
    """Names at the upper right, if there is more than one curve."""
    if len(series) < 2:
        return ""
    out, x = [], float(right)
    for one in reversed(series):
        out.append(f'<text x="{x:.0f}" y="13" text-anchor="end">{escape(one.name)}</text>')
        x -= 6.2 * len(one.name) + 8
        out.append(
            f'<circle class="dot {one.style}" cx="{x - 9:.0f}" cy="9" r="3.5"/>'
            if one.style in ("dots", "full")
            else f'<path class="{one.style}" d="M{x - 18:.0f} 9 h18"/>'
        )
        x -= 30
    return "".join(out)


def _x_axis(
    low: float,
    high: float,
    px: Callable[[float], float],
    text: Callable[[float], str],
    label: str,
    left: float,
    right: float,
    bottom: float,
) -> list[str]:
    out = [f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>']
    ticks = [tick for tick in nice_ticks(low, high, 8 if right - left > 700 else 4) if low <= tick <= high]
    for tick in ticks:
        if px(tick) < right - 8 * len(label) - 12:  # the label stands at the end of the axis
            out.append(f'<text x="{px(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{escape(text(tick))}</text>')
    out.append(f'<text x="{right}" y="{bottom + 17}" text-anchor="end">{escape(label)}</text>')
    return out


def _hits(
    series: Sequence[Series],
    px: Callable[[float], float],
    x_format: Callable[[float], str],
    y_format: Callable[[float], str],
    top: float,
    right: float,
    bottom: float,
    left: float,
    x_label: str,
) -> list[str]:
    """Invisible columns over the first line's points: a hairline and a tooltip with every curve's value there."""
    lines = sorted(
        (one for one in series if one.style not in ("dots", "full") and len(one.points) > 1),
        key=lambda one: one.style != "main",
    )
    if not lines:
        return []
    every = max(1, len(lines[0].points) // 120)
    xs = [x for x, _ in lines[0].points][::every]
    values = [dict(one.points) for one in lines]
    edges = [left, *((px(a) + px(b)) / 2 for a, b in itertools.pairwise(xs)), right]
    out = []
    for x, a, b in zip(xs, edges, edges[1:], strict=False):
        tip = [f"{x_label} {x_format(x)}"]
        tip += [f"{one.name} {y_format(known[x])}" for one, known in zip(lines, values, strict=True) if x in known]
        out.append(
            f'<g class="hit"><rect x="{a:.1f}" y="{top}" width="{max(b - a, 0.1):.1f}" height="{bottom - top}"/>'
            f'<line x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{top}" y2="{bottom}"/>{_title(" · ".join(tip))}</g>'
        )
    return out
