"""Charts of a plan as SVG and HTML text: bars of parts, fleets on log axes, layouts as a cloud of dots.

Classes and colours are those of `core.plots.STYLE` and the page; every chart has a title and a description for screen
readers, and tooltips. Input is escaped here.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from puna.core.plots import nice_ticks

Point = tuple[float, float]

STYLE = """
.plot .cloud { stroke: var(--soft); stroke-width: 3.5; opacity: .4; }
.plot .cloud.out { stroke: var(--warn); opacity: .35; }
.plot .front { stroke: var(--accent); stroke-width: 1.5; }
.plot .ideal { stroke: var(--faint); stroke-width: 1.2; stroke-dasharray: 5 4; }
.plot .limit { stroke: var(--ink); stroke-width: 1.2; }
.plot .spot { fill: var(--paper); stroke: var(--accent); stroke-width: 2; }
.plot .spot.ours { fill: var(--accent); }
.plot .reach { stroke: var(--accent); stroke-width: 5; opacity: .28; stroke-linecap: butt; }
.plot .label { fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
"""


@dataclass(frozen=True)
class Axis:
    """An axis: label, number format, whether it is logarithmic, and optional ticks and ends."""

    label: str
    form: Callable[[float], str]
    log: bool = False
    ticks: Sequence[float] = ()
    zero: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Spot:
    """A dot: position, tooltip, label, the ends of its interval, and whether it is the plan's."""

    at: Point
    tip: str
    label: str = ""
    reach: tuple[float, float] | None = None
    ours: bool = False


def parts_bar(parts: Sequence[tuple[str, float, str]], *, scale: float, mark: tuple[float, str] | None = None) -> str:
    """A bar of (name, amount, text) over `scale` with a legend; mark: a vertical line and its label."""
    pieces = "".join(
        f'<span class="part p{at}" style="width:{100 * amount / scale:.3f}%" title="{escape(name)}: {escape(words)}">'
        "</span>"
        for at, (name, amount, words) in enumerate(parts)
    )
    line = ""
    if mark:
        where = 100 * mark[0] / scale
        side = " left" if where > 70 else ""
        line = f'<span class="mark{side}" style="left:{where:.3f}%"><b>{escape(mark[1])}</b></span>'
    items = "".join(
        f'<li><span class="swatch p{at}"></span>{escape(name)} <b>{escape(words)}</b></li>'
        for at, (name, _, words) in enumerate(parts)
    )
    return (
        f'<div class="parts{" marked" if mark else ""}" role="img" aria-label="{escape(_told(parts))}">'
        f'<div class="pieces">{pieces}</div>{line}</div><ul class="legend parts-legend">{items}</ul>'
    )


def chart(
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    *,
    spots: Sequence[Spot] = (),
    joined: bool = False,
    ideal: Sequence[Point] = (),
    cloud: Sequence[Point] = (),
    cloud_out: Sequence[Point] = (),
    front: Sequence[Point] = (),
    limit: tuple[float, str] | None = None,
    width: int = 460,
    height: int = 300,
) -> str:
    """Dots and lines over two axes, each linear or logarithmic.

    joined: a line through the spots. ideal: a dashed line. cloud, cloud_out: many small dots, those within and those
    beyond a limit. front: a stepped line. limit: a vertical line at x, with its name.
    """
    every = [*ideal, *cloud, *cloud_out, *front, *(spot.at for spot in spots)]
    every += [(spot.at[0], end) for spot in spots if spot.reach for end in spot.reach]
    xs = [point[0] for point in every] + ([limit[0]] if limit else [])
    left, top, right, bottom = 62, 36, width - 14, height - 44
    to_x, x_ticks = _scale(x, xs, left + 10, right - 10, max(3, int((right - left) / 90)))
    to_y, y_ticks = _scale(y, [point[1] for point in every], bottom - 6, top + 10, 5)
    out = [f'<text class="name" x="0" y="13">{escape(title)}</text>']
    for tick in y_ticks:
        at = to_y(tick)
        out.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(y.form(tick))}</text>')
    out.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    shown = -math.inf
    for tick in x_ticks:
        text, at = x.form(tick), to_x(tick)
        if at - 3.6 * len(text) > shown:
            out.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{escape(text)}</text>')
            shown = at + 3.6 * len(text) + 6
    out.append(f'<text x="{right}" y="{bottom + 36}" text-anchor="end">{escape(x.label)}</text>')
    for points, kind in ((cloud, "cloud"), (cloud_out, "cloud out")):
        cells = sorted({(round(to_x(a)), round(to_y(b))) for a, b in points})
        if cells:
            out.append(f'<path class="{kind}" d="{"".join(f"M{a} {b}h.01" for a, b in cells)}"/>')
    if limit:
        at = to_x(limit[0])
        out.append(f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
        side = "end" if at > (left + right) / 2 else "start"
        shift = -6 if side == "end" else 6
        out.append(_label(at + shift, top + 10, limit[1], side))
    if ideal:
        out.append(f'<path class="ideal" d="{_path([(to_x(a), to_y(b)) for a, b in ideal])}"/>')
    if front:
        out.append(f'<path class="front" d="{_steps([(to_x(a), to_y(b)) for a, b in front])}"/>')
    if joined and len(spots) > 1:
        out.append(f'<path class="front" d="{_path([(to_x(spot.at[0]), to_y(spot.at[1])) for spot in spots])}"/>')
    out += [_spot(spot, to_x, to_y, right) for spot in spots]
    return _svg("".join(out), width, height, title, description)


def _spot(spot: Spot, to_x: Callable[[float], float], to_y: Callable[[float], float], right: float) -> str:
    x, y = to_x(spot.at[0]), to_y(spot.at[1])
    text = ""
    if spot.reach:
        low, high = (to_y(end) for end in spot.reach)
        text += f'<path class="reach" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
    kind, size = ("spot ours", 5) if spot.ours else ("spot", 4)
    text += f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size}"><title>{escape(spot.tip)}</title></circle>'
    if not spot.label:
        return text
    # A falling curve leaves room at the upper right of its dots.
    roomy = x + 6 + 7 * len(spot.label) < right
    return text + (_label(x + 6, y - 7, spot.label, "start") if roomy else _label(right + 8, y - 11, spot.label, "end"))


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _scale(
    axis: Axis, values: Sequence[float], start: float, end: float, about: int
) -> tuple[Callable[[float], float], list[float]]:
    """A function from values to pixels between start and end, and the ticks."""
    low = axis.low if axis.low is not None else min(values)
    high = axis.high if axis.high is not None else max(values)
    if axis.log:
        low, high = (low / 1.3, high * 1.3) if high <= low * 1.01 else (low, high)
        ticks = list(axis.ticks) or _log_ticks(low, high, about)
        a, b = math.log(low), math.log(high)
        return lambda value: start + (math.log(max(value, 1e-300)) - a) / (b - a) * (end - start), [
            tick for tick in ticks if low * 0.999 <= tick <= high * 1.001
        ]
    ticks = list(axis.ticks) or nice_ticks(0.0 if axis.zero else low, high, about)
    low = axis.low if axis.low is not None else min(low, ticks[0])
    high = axis.high if axis.high is not None else max(high, ticks[-1])
    return lambda value: start + (value - low) / (high - low) * (end - start), [
        tick for tick in ticks if low <= tick <= high
    ]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers over decades: 1, 2 and 5 of each where there are few decades, else 1 alone."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = math.log10(high / low)
    steps = (1.0,) if decades > about else (1.0, 3.0) if decades > about / 2 else (1.0, 2.0, 5.0)
    if decades < 0.8:
        return [tick for tick in nice_ticks(low, high, about) if tick > 0]
    return [step * 10.0**power for power in range(first, last + 1) for step in steps]


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _steps(points: Sequence[Point]) -> str:
    """A step line through the points."""
    return f"M{points[0][0]:.1f} {points[0][1]:.1f}" + "".join(f"H{a:.1f}V{b:.1f}" for a, b in points[1:])


def _told(parts: Sequence[tuple[str, float, str]]) -> str:
    return ", ".join(f"{name} {words}" for name, _, words in parts)


def _svg(content: str, width: int, height: int, title: str, description: str) -> str:
    name = "plan" + hashlib.sha256(content.encode()).hexdigest()[:10]
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}t {name}d">'
        f'<title id="{name}t">{escape(title)}</title><desc id="{name}d">{escape(description)}</desc>{content}</svg>'
    )
