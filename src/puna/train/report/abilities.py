"""What a model can do before and after each stage of tuning, as a section of a report.

The rows are those of `tune.measure`, as plain JSON, so that a report can be drawn without torch.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from puna.core.page import Html, named, section, table
from puna.core.plots import interval_bar

_NOTE = (
    "Problems that no stage was trained on, the same for all stages. Greedy: the most likely answer. {sampled}The bar "
    "is greedy accuracy, intervals are 95 %."
)
_SAMPLED = (
    "pass@1: the share of correct answers sampled at temperature 1; pass@k: the share of problems that at least one of "
    "k samples solves. "
)


def abilities(rows: Sequence[Mapping[str, Any]]) -> str:
    """Render the section; empty without rows.

    rows: one for each ability and task, {"ability", "task", "level", "about", "constant", "stages": [...],
    "examples": [...]}. A stage is {"stage": its name, ...} with the fields of `tune.measure.Measured`; an example is
    {"stage", "prompt", "text", "right"}; constant is the score of the best constant answer.
    """
    if not rows:
        return ""
    body = "".join(_ability(row) for row in rows)
    sampled = any(stage.get("pass_k") is not None for row in rows for stage in row["stages"])
    note = _NOTE.format(sampled=_SAMPLED if sampled else "")
    return section("What it learned to do", escape(note), body)


def _ability(row: Mapping[str, Any]) -> str:
    stages = row["stages"]
    k = next((stage["k"] for stage in stages if stage.get("pass_k") is not None), 0)
    sampled = ["pass@1", "95 % interval", f"pass@{k}"] if k else []
    columns = ["", "greedy, 0 to 100 %", "", "95 % interval", *sampled, "problems"]
    cells = [_stage(stage, sampled=k > 0) for stage in stages]
    constant = row.get("constant")
    about = f"{row['task']}, level {row['level']}: {row.get('about', '')}".rstrip(": ")
    if constant is not None:
        about += f"; the best constant answer scores {constant:.0%}"
    head = f"<h3>{escape(str(row['ability']))}</h3><p class='note'>{escape(about)}.</p>"
    rendered = table(columns, cells, numeric=tuple(range(2, len(columns))), drawing=1)
    return f'<div class="ability">{head}{rendered}{_examples(row)}</div>'


def _stage(stage: Mapping[str, Any], *, sampled: bool) -> list[str]:
    greedy, interval = stage.get("greedy"), stage.get("greedy_interval")
    drawing = ""
    if greedy is not None and interval:
        tip = f"{greedy:.1%}, 95 % interval {interval[0]:.1%} to {interval[1]:.1%}"
        drawing = interval_bar(interval[0], greedy, interval[1], tip)
    drawn = [_share(stage.get("pass_1")), _range(stage.get("pass_1_interval")), _share(stage.get("pass_k"))]
    return [
        named(str(stage["stage"]), str(stage.get("note") or "")),
        Html(drawing),
        _share(greedy),
        _range(interval),
        *(drawn if sampled else []),
        f"{stage['problems']:,}",
    ]


def _examples(row: Mapping[str, Any]) -> str:
    examples = row.get("examples") or []
    if not examples:
        return ""
    cards = "".join(
        f"<div><h4>{escape(str(example['stage']))} <span>{'right' if example['right'] else 'wrong'}</span></h4>"
        f'<pre tabindex="0"><code><span class="prompt">{escape(str(example["prompt"]))}</span>\n'
        f"{escape(str(example['text']))}</code></pre></div>"
        for example in examples
    )
    return f'<details><summary>One problem, stage by stage</summary><div class="samples">{cards}</div></details>'


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _range(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.1%} – {interval[1]:.1%}" if interval else ""
