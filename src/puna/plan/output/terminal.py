"""A plan as text for the terminal: fit, speed, time, failures, energy and money on one screen.

Functions return text with rich's markup, of about a hundred columns. Bars use shades as well as colours, so that they
can be read without colour.
"""

from collections.abc import Mapping, Sequence

from puna.core.units import format_count
from puna.plan.layouts.defaults import TOKENS_PER_PARAMETER
from puna.plan.layouts.predict import PART_NAMES, Prediction, describe_layout
from puna.plan.output.explain import MEMORY, TIME
from puna.plan.output.format import (
    GIB,
    MEMORY_GROUPS,
    TIME_GROUPS,
    change,
    count,
    decimal_bytes,
    figures,
    grouped,
    milliseconds,
    percent,
    span,
    step_words,
    usd,
    verdict,
)
from puna.plan.run.budget import BudgetEstimate, Goal
from puna.plan.run.estimate import RunEstimate
from puna.plan.run.fleet import FleetBrief, spoken_usd
from puna.plan.run.goodput import Alternative, Goodput
from puna.plan.run.simulate import FleetYear

WIDTH = 64  # cells of a bar
_SHADES = "█▓▒░"
_COLOURS = ("green", "cyan", "blue", "magenta", "yellow", "red", "white")
_MOST_WHAT_IFS = 6


def estimate_text(estimate: RunEstimate, *, explain: bool = False, own: str = "") -> str:
    """The whole estimate. explain: add every part of the step and the memory, with equation and source.

    own: what Puna's own trainer makes of it (`format.own_stack_words`), where another software is planned.
    """
    question, best = estimate.question, estimate.best
    lines = [
        f"[bold]{escape(question.model)}[/bold] on {question.accelerators:,} x {escape(question.accelerator.name)}"
        f" · {format_count(estimate.tokens)} tokens · batch {question.batch:,} x {question.seq_len:,}"
        f" · {question.precision} · {question.stack}",
        *([f"[cyan]{escape(own)}[/cyan]"] if own else []),
        "",
        *_memory(estimate),
    ]
    if best.fits:
        lines += ["", *_run(estimate)]
    if estimate.assumptions or estimate.bill.notes:
        texts = (*estimate.assumptions, *estimate.bill.notes)
        lines += ["", "[bold]assumed[/bold]", *(f"  {escape(text)}" for text in texts)]
    if explain:
        lines += ["", *explained(best)]
    return "\n".join(lines)


def _run(estimate: RunEstimate) -> list[str]:
    """The sections of a run that fits."""
    lines = [*_time(estimate), "", f"[dim]{'':16}{'':14}80 % interval[/dim]"]
    lines += [
        f"{row.name:16}[bold]{row.value:14}[/bold]{row.interval:24}[dim]{row.note}[/dim]" for row in figures(estimate)
    ]
    lines += ["", *_layouts(estimate)]
    if estimate.what_ifs:
        lines += ["", "[bold]what if[/bold]"]
        lines += [
            f"  {f'{one.assumption}: {one.change}':48}{one.figure} {change(one.by)}"
            for one in estimate.what_ifs[:_MOST_WHAT_IFS]
        ]
    return lines


def _memory(estimate: RunEstimate) -> list[str]:
    best, have = estimate.best, estimate.question.accelerator.usable_bytes
    colour = "green" if best.fits else "red"
    parts = grouped(best.memory, MEMORY_GROUPS)
    lines = [
        f"[bold]memory[/bold]  [{colour}]{verdict(estimate)}[/{colour}]",
        bar(parts, WIDTH, scale=max(have, best.memory_bytes), mark=have) + f" {have / GIB:.1f} GiB",
        legend({name: f"{amount / GIB:.1f}" for name, amount in parts.items()}),
    ]
    if not best.fits:
        lines += ["", "[bold]what would make it fit[/bold]"]
        for one in estimate.suggestions:
            then = one.prediction
            lines.append(f"  {escape(one.change)}: {span(then.step_seconds)} a step, {then.memory_bytes / GIB:.1f} GiB")
            lines.append(f"    [dim]{describe_layout(then.layout, then.question.stack)}[/dim]")
        if not estimate.suggestions:
            lines.append(
                "  Nothing that was tried: more accelerators, larger ones, shorter sequences, smaller presets."
            )
    return lines


def _time(estimate: RunEstimate) -> list[str]:
    parts = grouped(estimate.best.seconds, TIME_GROUPS)
    total = estimate.best.step_seconds
    return [
        f"[bold]step[/bold]    {step_words(estimate)}",
        bar(parts, WIDTH, scale=total),
        legend({name: percent(amount / total) for name, amount in parts.items()}),
    ]


def _layouts(estimate: RunEstimate) -> list[str]:
    stack, best = estimate.question.stack, estimate.best
    shown = [(one, describe_layout(one.layout, stack)) for one in (best, *estimate.choice.runners_up)]
    if estimate.given:
        shown.append((estimate.given, describe_layout(estimate.given.layout, stack) + "  (the recipe's)"))
    width = max(len(words) for _, words in shown)
    lines = [f"[bold]{'layout':{width}}{'step':>12}{'GiB':>8}[/bold]"]
    for one, words in shown:
        slower = "" if one is best else f"{change(one.step_seconds / best.step_seconds - 1):>9}"
        room = f"{one.memory_bytes / GIB:>8.1f}{slower}{'' if one.fits else '  does not fit'}"
        line = f"{words:{width}}{span(one.step_seconds):>12}{room}"
        lines.append(line if one is best else f"[dim]{line}[/dim]")
    return lines


def explained(best: Prediction) -> list[str]:
    """Every part of the step in milliseconds and of the memory in GiB, with equation and source."""
    lines = [f"[bold]{'part of the step':34}{'ms':>10}{'':9}[/bold][dim]equation (source)[/dim]"]
    for name, seconds in best.seconds.items():
        equation, source = TIME[name]
        share = percent(seconds / best.step_seconds)
        lines.append(f"{PART_NAMES[name]:34}{milliseconds(seconds):>10}{share:>8} [dim]{equation} ({source})[/dim]")
    lines.append(f"{'together':34}{milliseconds(best.step_seconds):>10}")
    lines += ["", f"[bold]{'part of the memory':34}{'GiB':>10}{'':9}[/bold][dim]equation (source)[/dim]"]
    for name, amount in best.memory.items():
        equation, source = MEMORY[name]
        share = percent(amount / best.memory_bytes)
        lines.append(f"{name:34}{amount / GIB:>10.2f}{share:>8} [dim]{equation} ({source})[/dim]")
    lines.append(f"{'together':34}{best.memory_bytes / GIB:>10.2f}")
    return lines


# -- a fleet, a job's failures ---------------------------------------------------------------------------------------


def fleet_text(fleet: FleetBrief) -> str:
    """A fleet as a table by kind, then in sentences."""
    lines = [f"[bold]{escape(fleet.name)}[/bold] · {fleet.count:,} accelerators in {fleet.nodes:,} hosts", ""]
    head = f"{'':16}{'count':>10}{'H100e, peak':>14}{'H100e, measured':>18}{'alone':>18}{'all-in':>18}{'max MW':>9}"
    lines.append(f"[bold]{head}[/bold]")
    for group in fleet.groups:
        measured = f"{group.achieved_equivalents:,.0f}{'' if group.achieved_measured else '*'}"
        alone, all_in = (_short_usd(amount) for amount in (group.capex_accelerators, group.capex_all_in))
        lines.append(
            f"{escape(group.accelerator.name):16}{group.count:>10,}{group.peak_equivalents:>14,.0f}{measured:>18}"
            f"{alone:>18}{all_in:>18}{group.max_megawatts:>9,.3g}"
            + (f"  [dim]{escape(group.note)}[/dim]" if group.note else "")
        )
    if len(fleet.groups) > 1:
        lines.append(
            f"{'together':16}{fleet.count:>10,}{fleet.peak_equivalents:>14,.0f}{fleet.achieved_equivalents:>18,.0f}"
        )
    if not all(group.achieved_measured for group in fleet.groups):
        lines.append("[dim]* not measured: the peaks' ratio[/dim]")
    lines += ["", *(escape(sentence) for sentence in fleet.sentences)]
    year = fleet.year
    if year.rent:
        lines.append(f"Renting all of it for a year: {spoken_usd(year.rent)}; electricity {usd(year.electricity_usd)}.")
    lines += [f"[dim]{escape(text)}[/dim]" for text in (*year.notes, *fleet.sources)]
    return "\n".join(lines)


def budget_text(found: BudgetEstimate, *, explain: bool = False) -> str:
    """The plan of a budget: the fleet, its tokens, the model they suit, the goal, and the run."""
    question, reach = found.run.question, found.reach
    kind, spread = escape(question.accelerator.name), found.run.days.times(1 / found.run.days.value)
    lines = []
    if found.budget_usd is not None and found.rentable is not None:
        lines.append(
            f"[bold]${found.budget_usd:,.0f}[/bold] rent [bold]{found.rentable:,} x {kind}[/bold] for"
            f" {found.days:.3g} days"
            f" at ${found.rent_usd_per_hour:.2f} an hour"
            + ("." if question.accelerators == found.rentable else f"; {question.accelerators:,} of them get furthest.")
        )
    else:
        lines.append(f"[bold]{question.accelerators:,} x {kind}[/bold] for {found.days:.3g} days.")
    lines.append(
        f"{escape(reach.model)} sees [bold]{format_count(reach.tokens)} tokens[/bold] there"
        f" ({format_count(reach.tokens / spread.high)} – {format_count(reach.tokens / spread.low)}), "
        f"{count(reach.tokens_per_parameter)} for each of its {format_count(reach.parameters)} parameters"
        f" (compute-optimal: {TOKENS_PER_PARAMETER:g}, arXiv 2203.15556)."
    )
    if reach.tokens_with_larger_batch:
        lines.append(
            f"[yellow]It is limited by its batch of {format_count(reach.tokens_per_step)} tokens: with a sequence for "
            f"each accelerator (--batch {question.accelerators}) it would see "
            f"{format_count(reach.tokens_with_larger_batch)} tokens.[/yellow]"
        )
    if found.goal:
        lines += ["", *_goal(found.goal, found.budget_usd, kind)]
    lines += ["", f"[bold]{'on the same accelerators in that time':40}{'tokens':>10}{'a parameter':>14}[/bold]"]
    for one in found.presets:
        best = one.model == found.optimal
        text = f"{escape(one.model):40}{format_count(one.tokens):>10}{count(one.tokens_per_parameter):>14}"
        text = f"[green]{text}  nearest to compute-optimal[/green]" if best else text
        if one.tokens_with_larger_batch:
            text += f"  [yellow]limited by its batch of {format_count(one.tokens_per_step)}[/yellow]"
        lines.append(text)
    if any(one.tokens_with_larger_batch for one in found.presets):
        lines.append("[dim]limited: steps of that many tokens do not keep so many accelerators busy[/dim]")
    return "\n".join([*lines, "", estimate_text(found.run, explain=explain)])


def _goal(goal: Goal, budget_usd: float | None, kind: str) -> list[str]:
    size = goal.size
    what = f"{format_count(goal.tokens)} tokens in {goal.days:.3g} days"
    if not goal.in_time:
        return [
            f"[red]{what} is out of reach:[/red] the fastest fleet, {size.accelerators:,} x {kind}, takes "
            f"{size.days:.3g} days. A larger --batch would let more accelerators work."
        ]
    lines = [f"{what} take [bold]{size.accelerators:,} x {kind}[/bold] ({size.days:.3g} days)"]
    if size.rent_usd is not None:
        lines[0] += f" and [bold]{usd(size.rent_usd)}[/bold] of rent"
        if goal.over_usd is not None and budget_usd is not None:
            share = f"{abs(goal.over_usd) / budget_usd:.0%}"
            over = f"[red]{usd(goal.over_usd)} ({share}) over the budget[/red]"
            left = f"[green]{usd(-goal.over_usd)} ({share}) below the budget[/green]"
            lines[0] += f": {over if goal.over_usd > 0 else left}"
    lines[0] += "."
    return lines


def year_text(year: FleetYear) -> str:
    """A fleet's simulated days: activities of the accelerators and results per kind of job."""
    parts = {name: share for name, share in year.shares.items() if share > 0}
    lines = [
        f"[bold]{year.days:,} days of {year.accelerators:,} accelerators, simulated[/bold] (seed {year.seed}): "
        f"{year.failures:,} failures, {year.planned:,} planned stops, {year.spare_nodes:,} spare nodes "
        f"({year.spare_nodes_needed:,} needed)",
        bar(parts, WIDTH, scale=sum(parts.values())),
        legend({name: percent(share) for name, share in parts.items()}),
        "",
        f"[bold]{'jobs':30}{'interruptions':>15}{'one every':>12}{'checkpoint':>13}{'effective':>11}{'expected':>10}"
        "[/bold]",
    ]
    for one in year.kinds:
        what = f"{one.kind.jobs:,} {one.kind.name} on {one.kind.accelerators:,}"
        lines.append(
            f"{escape(what):30}{count(one.interruptions):>15}{span(one.mtti_seconds):>12}"
            f"{span(one.interval_seconds):>13}{percent(one.effective_time):>11}{percent(one.expected_effective_time):>10}"
        )
    if year.waits:
        lines.append(
            f"[dim]{year.waits:,} times a job found no spare and waited {span(year.wait_seconds)} on average[/dim]"
        )
    return "\n".join(lines)


def goodput_text(good: Goodput) -> str:
    """One job's failures: how often, advice, shares of the time, and alternatives."""
    shares = {
        "useful": good.shares.useful,
        "checkpoints": good.shares.checkpoint,
        "done twice": good.shares.recompute,
        "restarts": good.shares.restart,
        "planned": good.shares.planned,
    }
    parts = {name: share for name, share in shares.items() if share > 0}
    rows = [
        (
            "interruptions",
            count(good.interruptions),
            f"{count(good.interruptions_low)} – {count(good.interruptions_high)}",
            f"{count(good.failures)} failures, {count(good.planned)} planned, in {good.days:g} days",
        ),
        ("one every", span(good.mtti_all_seconds), "", f"{span(good.mtti_seconds)} between failures alone"),
        (
            "effective time",
            percent(good.effective_time),
            f"{percent(good.effective_low)} – {percent(good.effective_high)}",
            f"{percent(good.meta_effective_time)} by Meta's linear form (arXiv 2410.21680)"
            if good.meta_effective_time > 0
            else "",
        ),
        (
            "checkpoint",
            f"every {span(good.interval_seconds)}",
            "",
            f"Young {span(good.young_seconds)}, Daly {span(good.daly_seconds)}, exact {span(good.exact_seconds)}",
        ),
        (
            "",
            decimal_bytes(good.checkpoint.bytes),
            "",
            f"{format_count(good.parameters)} parameters; stops training for {span(good.checkpoint.stall_seconds)}, "
            f"written in {span(good.checkpoint.write_seconds or good.checkpoint.stall_seconds)}",
        ),
        ("spare nodes", f"{good.spares:,}", "", f"in addition to {good.nodes:,}; all in use 1 % of the time"),
    ]
    lines = [
        f"[bold]One job on {good.accelerators:,} accelerators[/bold] in {good.nodes:,} nodes for {good.days:g} days",
        "",
        escape(good.advice),
        "",
        bar(parts, WIDTH, scale=sum(parts.values())),
        legend({name: percent(share) for name, share in parts.items()}),
        "",
        f"[dim]{'':16}{'':16}80 % interval[/dim]",
        *(f"{name:16}[bold]{value:16}[/bold]{interval:20}[dim]{note}[/dim]" for name, value, interval, note in rows),
        "",
        f"[bold]{'instead':52}{'interrupted every':>18}{'checkpoint every':>18}{'effective':>11}[/bold]",
    ]
    distinct: dict[tuple[int, int, float], Alternative] = {}  # of one job, several are the same as one
    for one in good.alternatives:
        if one.jobs > 1 or "hot" in one.what:
            distinct.setdefault((one.jobs, one.accelerators, one.effective_time), one)
    for one in distinct.values():
        what = f"{one.jobs:,} x {one.accelerators:,}: {one.what.removeprefix('one job ').removeprefix('jobs ')}"
        lines.append(
            f"{what:52}{span(one.mtti_seconds):>18}{span(one.interval_seconds):>18}{percent(one.effective_time):>11}"
        )
    return "\n".join(lines)


# -- bars ------------------------------------------------------------------------------------------------------------


def bar(parts: Mapping[str, float], width: int, *, scale: float, mark: float | None = None) -> str:
    """Amounts as a bar of `width` cells for `scale`, each in its shade; `mark` is a vertical line."""
    cells = _cells(list(parts.values()), width, scale)
    shown = [(_SHADES[at % 4], _COLOURS[at % 7]) for at, count in enumerate(cells) for _ in range(count)]
    shown += [(" ", "")] * (width - len(shown))
    if mark is not None:
        at = min(width, round(width * mark / scale))
        shown.insert(at, ("┃", "bold"))
    text, last = "", None
    for sign, style in shown:
        if style != last:
            text += ("[/]" if last else "") + (f"[{style}]" if style else "")
            last = style
        text += sign
    return text + ("[/]" if last else "")


def legend(parts: Mapping[str, str]) -> str:
    """Each part's shade, name and amount, in the order of the bar."""
    return "  ".join(
        f"[{_COLOURS[at % 7]}]{_SHADES[at % 4]}[/] {name} {amount}" for at, (name, amount) in enumerate(parts.items())
    )


def _cells(amounts: Sequence[float], width: int, scale: float) -> list[int]:
    """Whole cells for amounts by largest remainder, so that they add up to the total."""
    exact = [width * amount / scale for amount in amounts]
    cells = [int(size) for size in exact]
    left = round(sum(exact)) - sum(cells)
    for at in sorted(range(len(exact)), key=lambda i: cells[i] - exact[i])[:left]:
        cells[at] += 1
    return cells


def escape(text: str) -> str:
    """Escape brackets for rich."""
    from rich.markup import escape as rich_escape

    return rich_escape(text)


def _short_usd(amount: object) -> str:
    from puna.plan.run.pricing import Range

    return spoken_usd(amount).replace(" billion", "B").replace(" million", "M") if isinstance(amount, Range) else "–"
