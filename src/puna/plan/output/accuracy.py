"""The planner's accuracy as text for the terminal, as plain values, and as an HTML page with charts."""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from puna.core.files import write_text
from puna.core.page import Html, document, figures, named, section, table
from puna.core.plots import STYLE, bar
from puna.plan.evidence.validate import Validation
from puna.plan.output import charts as pictures
from puna.plan.output.format import change, count, percent
from puna.plan.output.json_output import plain
from puna.plan.output.terminal import escape as plain_text

_SHOWN_FAMILIES = 12


def accuracy_text(found: Validation) -> str:
    """Errors per set of rows next to the constant MFU's, the worst families, rankings, memory."""
    head = f"{'median':>9}{'mean':>9}{'p90':>9}{'in 80 %':>9}{'constant MFU':>15}{'its p90':>9}"
    lines = [f"[bold]{'set of rows':54}{'rows':>6}{'families':>10}{head}[/bold]"]
    for one in found.scores:
        lines.append(
            f"{one.name:54}{one.rows:>6}{one.families:>10}{percent(one.median):>9}{percent(one.mean):>9}"
            f"{percent(one.p90):>9}{percent(one.coverage):>9}{percent(one.rival_median):>15}{percent(one.rival_p90):>9}"
        )
    families = found.families()
    lines += ["", f"[bold]{'families, the worst first':54}{'rows':>6}{'mean error':>13}{'mean absolute':>15}[/bold]"]
    for family, rows, bias, off in families[:_SHOWN_FAMILIES]:
        lines.append(f"{plain_text(' '.join(family)):54}{rows:>6}{change(bias):>13}{percent(off):>15}")
    if len(families) > _SHOWN_FAMILIES:
        lines.append(f"[dim]and {len(families) - _SHOWN_FAMILIES} with less (--json, --html)[/dim]")
    if found.rankings:
        lines += ["", f"[bold]{'layouts ranked':54}{'number':>8}{'spread':>8}{'Spearman':>10}{'regret':>9}[/bold]"]
        for rank in found.rankings:
            lines.append(
                f"{plain_text(rank.name):54}{rank.layouts:>8}{rank.spread:>7.1f}x{rank.spearman:>10.2f}"
                f"{percent(rank.regret):>9}"
            )
    if found.memory:
        lines += ["", f"Memory: {memory_words(found)}"]
    return "\n".join(lines)


def accuracy_tree(found: Validation) -> dict[str, Any]:
    """The validation as plain values; errors are shares, predicted over measured less 1."""
    return {
        "runs": str(found.path),
        "scores": plain(found.scores),
        "families": [
            {"family": list(family), "rows": rows, "mean_error": bias, "mean_absolute_error": off}
            for family, rows, bias, off in found.families()
        ],
        "rankings": plain(found.rankings),
        "memory_gib": [{"id": name, "measured": real, "predicted": told} for name, real, told in found.memory],
        "rows": [
            {"id": row.id, "measured_step_seconds": row.step_seconds, "step_seconds": seconds, "error": error}
            for row, seconds, error in zip(found.rows, found.seconds.tolist(), found.errors.tolist(), strict=True)
        ],
    }


def write_accuracy_html(found: Validation, path: Path) -> Path:
    """Draw the validation as a page at `path` and return the path."""
    if path.is_dir():
        path = path / "validation.html"
    first = found.scores[0]
    large = [
        (percent(first.median), "median error"),
        (percent(first.p90), "of nine rows in ten at most"),
        (percent(first.coverage), "inside the 80 % interval"),
        (percent(first.rival_median), "median error of a constant MFU"),
        (f"{first.rows:,}", f"rows of {first.families} families"),
    ]
    lead = f'<p class="eyebrow">{escape(first.name)}</p>\n<h1>Predicted and measured</h1>'
    body = "\n".join([f"<header>{lead}\n{figures(large)}</header>", _scores(found), _times(found), _families(found)])
    body += _rankings(found) + _memory(found)
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8") + STYLE + pictures.STYLE
    write_text(path, document("Predicted and measured", css, body, origin=found.path.name))
    return path


def memory_words(found: Validation) -> str:
    """Median and worst error of rows that print their memory, and the largest underestimate."""
    errors = np.array([predicted / measured - 1 for _, measured, predicted in found.memory])
    low = f"; at most {percent(-errors.min())} too little" if errors.min() < 0 else "; never too little"
    return (
        f"{len(errors)} rows, median error {percent(float(np.median(np.abs(errors))))}, worst "
        f"{percent(float(np.abs(errors).max()))}{low}."
    )


# -- sections --------------------------------------------------------------------------------------------------------


def _scores(found: Validation) -> str:
    columns = ["", "rows", "families", "median", "mean", "p90", "inside 80 %", "constant MFU", "its p90"]
    rows = [
        [
            one.name,
            f"{one.rows:,}",
            f"{one.families}",
            *map(percent, (one.median, one.mean, one.p90, one.coverage, one.rival_median, one.rival_p90)),
        ]
        for one in found.scores
    ]
    text = "Errors of the step's time; every family (source, model, precision) counts once."
    return section("Errors", text, table(columns, rows, numeric=tuple(range(1, 9))))


def _times(found: Validation) -> str:
    measured = np.array([row.step_seconds for row in found.rows], dtype=float)
    points = list(zip(measured.tolist(), found.seconds.tolist(), strict=True))
    ends = (min(min(point) for point in points), max(max(point) for point in points))
    near = np.abs(found.errors) <= 0.1

    def drawn(width: int, height: int) -> str:
        return pictures.chart(
            "Seconds of a step: predicted, against measured",
            f"{len(points)} rows; those more than 10 % off in another colour; the dashed line is no error",
            pictures.Axis("measured", count, log=True),
            pictures.Axis("", count, log=True),
            cloud=[point for point, good in zip(points, near, strict=True) if good],
            cloud_out=[point for point, good in zip(points, near, strict=True) if not good],
            ideal=[(end, end) for end in ends],
            width=width,
            height=height,
        )

    body = f'<figure class="wide">{drawn(960, 460)}</figure><figure class="narrow">{drawn(400, 340)}</figure>'
    share = percent(float(near.mean()))
    return section("Every row", f"{share} of rows are within 10 %; the others are orange.", body)


def _families(found: Validation) -> str:
    families = found.families()
    most = max(off for *_, off in families) or 1.0
    rows = [
        [named(" · ".join(family), f"{number} rows"), Html(bar(off / most)), change(bias), percent(off)]
        for family, number, bias, off in families
    ]
    body = table(["family", "", "mean error", "mean absolute"], rows, numeric=(2, 3), drawing=1)
    few = table(["family", "", "mean error", "mean absolute"], rows[:_SHOWN_FAMILIES], numeric=(2, 3), drawing=1)
    rest = (
        f"<details><summary>All {len(rows)} families</summary>{body}</details>" if len(rows) > _SHOWN_FAMILIES else ""
    )
    return section("Families", "The worst first.", few + rest)


def _rankings(found: Validation) -> str:
    if not found.rankings:
        return ""
    rows = [
        [one.name, count(one.layouts), f"{one.spread:.1f}x", f"{one.spearman:.2f}", percent(one.regret)]
        for one in found.rankings
    ]
    text = (
        "Many layouts of one model on the same accelerators: are they in the right order, and what does the one that "
    )
    text += "is predicted best cost over the one that was?"
    columns = ["", "layouts", "spread", "Spearman", "regret"]
    return section("Layouts ranked", text, table(columns, rows, numeric=(1, 2, 3, 4)))


def _memory(found: Validation) -> str:
    if not found.memory:
        return ""
    rows = [
        [name, f"{measured:.1f}", f"{predicted:.1f}", change(predicted / measured - 1)]
        for name, measured, predicted in found.memory
    ]
    body = table(["", "measured GiB", "predicted", ""], rows, numeric=(1, 2, 3))
    return section("Memory", f"{memory_words(found)} Peaks of torch's allocator.", body)
