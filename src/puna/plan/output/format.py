"""Figures of a plan as text, in readable units, shared by the terminal and the HTML page."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from puna.core.units import format_count
from puna.plan.equations.memory import MARGIN
from puna.plan.layouts.predict import describe_layout
from puna.plan.run.budget import FleetSize
from puna.plan.run.estimate import Estimate, RunEstimate
from puna.plan.run.pricing import Range
from puna.plan.run.reliability import DAY

GIB = 2**30
_FEW = 0.01  # fewer interruptions are not counted

# Groups of parts in bars: names, and the members of `cost.PARTS` and `memory.PARTS`.
TIME_GROUPS: dict[str, tuple[str, ...]] = {
    "compute": ("matmul", "attention", "elementwise", "launch", "head"),
    "recomputation": ("recompute",),
    "exposed communication": ("tensor", "context", "expert", "pipeline", "data"),
    "pipeline bubble": ("bubble",),
    "optimizer": ("optimizer",),
    "waiting for the slowest": ("straggler",),
}
MEMORY_GROUPS: dict[str, tuple[str, ...]] = {
    "weights": ("weights",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer",),
    "activations": ("activations",),
    "logits": ("logits",),
    "buffers": ("workspace", "gathered"),
    "overhead": ("fragmentation", "context"),
}


@dataclass(frozen=True)
class PublishedRun:
    """One figure as text. interval: its 80 % interval, or ""."""

    name: str
    value: str
    interval: str = ""
    note: str = ""


def grouped(parts: Mapping[str, float], groups: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """Amounts by group without zeros. Every part is in exactly one group (tested)."""
    sums = {name: sum(parts[part] for part in members) for name, members in groups.items()}
    return {name: amount for name, amount in sums.items() if amount > 0}


def figures(estimate: RunEstimate) -> list[PublishedRun]:
    """All figures of the run, in the order in which they are printed."""
    question, good, cost = estimate.question, estimate.goodput, estimate.bill
    each = estimate.tokens_per_second.value / question.accelerators
    peak = f"{estimate.peak_tflops:,.4g} TFLOP/s dense {question.precision}"
    rows = [
        _row("MFU", estimate.mfu_causal, percent, f"of {peak}, attention's causal half counted"),
        _row("", estimate.mfu_full, percent, "its whole square counted (PaLM's convention)"),
        _row("tokens/s", estimate.tokens_per_second, format_count, f"{count(each)} for each accelerator"),
        _row(
            "time",
            estimate.days.times(DAY),
            span_like(estimate.days.value * DAY),
            f"{span(estimate.training_days.value * DAY)} of training: {estimate.steps:,} steps of "
            f"{format_count(estimate.best.tokens_per_step)} tokens",
        ),
        PublishedRun("interruptions", f"less than {_FEW}", "", f"one every {span(good.mtti_all_seconds)}")
        if estimate.interruptions.high < _FEW
        else _row(
            "interruptions",
            estimate.interruptions,
            count,
            f"one every {span(good.mtti_all_seconds)}, planned ones counted; spares: {_nodes(good.spares)}",
        ),
        _row(
            "effective time",
            estimate.effective_time,
            percent,
            f"with a checkpoint of {decimal_bytes(good.checkpoint.bytes)} every {span(good.interval_seconds)}",
        ),
        _row(
            "energy",
            estimate.energy_mwh,
            energy_like(estimate.energy_mwh.value),
            f"{power(cost.facility_megawatts)} with the building",
        ),
    ]
    if estimate.rent_usd and estimate.rent_usd_per_hour:
        hourly = estimate.rent_usd_per_hour
        span_of = "" if hourly.low == hourly.high else f" ({hourly.low:.2f}–{hourly.high:.2f})"
        hours = f"{count(estimate.accelerator_hours.value)} accelerator-hours"
        rows.append(_row("rent", estimate.rent_usd, usd, f"{hours} at ${hourly.middle:.2f}{span_of}"))
    if estimate.own_usd:
        rows.append(_row("or owning", estimate.own_usd, usd, "these days' share of the all-in price, and electricity"))
    for name, amount, note in (
        ("to buy", cost.capex_accelerators, "the accelerators alone"),
        ("", cost.capex_all_in, "all-in: hosts, network, storage, building"),
    ):
        if amount:
            rows.append(PublishedRun(name, usd(amount.middle), _between(amount, usd), note))
    if cost.carbon_tonnes is not None:
        rows.append(PublishedRun("carbon", f"{count(cost.carbon_tonnes)} t", "", "of CO2"))
    return rows


def verdict(estimate: RunEstimate) -> str:
    """Whether it fits, and how many layouts do, in one sentence."""
    best, choice = estimate.best, estimate.choice
    need, have = best.memory_bytes / GIB, estimate.question.accelerator.usable_bytes / GIB
    looked = f"{len(choice.found):,} legal layout{'' if len(choice.found) == 1 else 's'}"
    if best.fits:
        return f"It fits: {need:.1f} of {have:.1f} GiB on the fullest accelerator ({choice.fitting:,} of {looked} fit)."
    return (
        f"It does not fit: the leanest of {looked} needs {need:.1f} GiB and {MARGIN:.0%} to spare, and an accelerator "
        f"has {have:.1f}."
    )


def count(value: float) -> str:
    """Three significant digits, with a suffix above 10,000: 0.0934, 503, 8,204, 22.8M."""
    if not math.isfinite(value):
        return str(value)
    return format_count(value) if abs(value) >= 9999.5 else f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def usd(amount: float) -> str:
    """1.25e9 -> "$1.25B"."""
    return f"${format_count(amount)}" if amount >= 1 else f"${amount:.2f}"


def percent(share: float) -> str:
    """0.4123 -> "41.2 %"."""
    return f"{100 * share:.1f} %"


def change(share: float) -> str:
    """0.0123 -> "+1.2 %"."""
    return f"{100 * share:+.1f} %"


def span(seconds: float) -> str:
    """A time in a suitable unit: "54.3 days", "3.1 h", "4.9 s", "12 ms"."""
    return span_like(seconds)(seconds)


def span_like(seconds: float) -> Callable[[float], str]:
    """A format for times in the unit that suits `seconds`, so that both ends of an interval share it."""
    for unit, size in ((" years", 365.25 * DAY), (" days", DAY), (" h", 3600.0), (" min", 60.0), (" s", 1.0)):
        least = 3 if unit == " years" else 2 if unit == " days" else 1
        if seconds >= least * size:
            return lambda value: f"{count(value / size)}{unit}"
    return lambda value: f"{count(value * 1e3)} ms"


def energy_like(mwh: float) -> Callable[[float], str]:
    """A format for energies in the unit that suits `mwh`."""
    for unit, size in (("TWh", 1e6), ("GWh", 1e3), ("MWh", 1.0), ("kWh", 1e-3)):
        if mwh >= size:
            return lambda value: f"{count(value / size)} {unit}"
    return lambda value: f"{count(value * 1e6)} Wh"


def power(megawatts: float) -> str:
    """A power in a suitable unit."""
    for unit, size in (("GW", 1e3), ("MW", 1.0), ("kW", 1e-3)):
        if megawatts >= size:
            return f"{count(megawatts / size)} {unit}"
    return f"{count(megawatts * 1e6)} W"


def decimal_bytes(value: float) -> str:
    """Bytes in powers of 1000, as storage is sold: "5.67 TB"."""
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{count(value / size)} {unit}"
    return f"{count(value / 1e3)} kB"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with significant digits only."""
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _row(name: str, estimate: Estimate, form: Callable[[float], str], note: str) -> PublishedRun:
    return PublishedRun(name, form(estimate.value), _between(estimate, form), note)


def _between(ends: Estimate | Range, form: Callable[[float], str]) -> str:
    """ "47.1 – 53.2 %": the unit once, where both ends have the same."""
    low, high = form(ends.low), form(ends.high)
    if low == high:
        return ""
    number, gap, unit = low.partition(" ")
    if gap and high.endswith(f" {unit}"):
        return f"{number} – {high}"
    return f"{low} – {high}"


def _nodes(nodes: int) -> str:
    return f"{nodes:,} node{'' if nodes == 1 else 's'}"


def step_words(estimate: RunEstimate) -> str:
    """The step and its interval: "4.93 s (4.58 – 5.32 s)"."""
    form = span_like(estimate.step_seconds.value)
    return f"{form(estimate.step_seconds.value)} ({_between(estimate.step_seconds, form)})"


def own_stack_words(own: FleetSize | None, planned: RunEstimate) -> str:
    """What Puna's own trainer makes of a run planned for another software; own: None where it cannot run it."""
    question = planned.question
    if own is None:
        fleet = f"{question.accelerators:,} x {question.accelerator.name}"
        return f"puna train itself (--stack puna) has no layout that fits {fleet}."
    best = own.best
    batch = "" if best.question.batch == question.batch else f" with a batch of {best.question.batch:,}"
    return (
        f"puna train itself (--stack puna){batch}: {span(best.step_seconds)} a step, {own.days:.3g} days, "
        f"{best.memory_bytes / GIB:.1f} GiB: {describe_layout(best.layout, best.question.stack)}"
    )
