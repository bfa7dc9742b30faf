"""The report of all stages: a table of stages, and for each task the results of every stage.

No torch.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from puna.core.files import read_json
from puna.core.page import document, section, table
from puna.core.plots import STYLE
from puna.train.report.abilities import abilities

_NOTE = (
    "Means over the tasks and levels below, on held-out problems. A control is further supervised fine-tuning from the "
    "weights that the stage started with, for as long as the stage took. The gain of a stage is relative to the better "
    "of its control and these weights; the interval is of the difference of pass@1 (greedy without samples), at 95 %."
)


def render(name: str, rows: Sequence[Mapping[str, Any]], done: Mapping[str, Mapping[str, Any]]) -> str:
    """Render the page. rows: of `Pipeline.rows`; done: the contents of all.json."""
    css = resources.files("puna.train.report").joinpath("report.css").read_text(encoding="utf-8")
    columns, cells = stage_table(rows)
    stages = section("Stage by stage", _NOTE, f'<div class="scroll">{table(columns, cells, numeric=(1, 2, 3))}</div>')
    left_out = [[key, str(entry["note"])] for key, entry in done.items() if entry.get("note") and not entry["model"]]
    missing = section("Left out", "", table(["stage", "why"], left_out)) if left_out else ""
    body = f"<header><h1>{name}</h1></header>\n{stages}\n{missing}\n{abilities(_abilities(done))}"
    return document(name, css + STYLE, body, origin="all.json")


def stage_table(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and cells of the table of stages."""
    cells = [
        [
            str(row["stage"]),
            f"{row['greedy']:.1%}",
            "–" if row["pass_1"] is None else f"{row['pass_1']:.1%}",
            f"{row['seconds']:,}",
            str(row["verdict"]),
        ]
        for row in rows
    ]
    return ("stage", "greedy", "pass@1", "seconds", "what it gained"), cells


def ability_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Rows for `train.report.abilities` of a run so far, one per task and level."""
    return _abilities(read_json(run_dir / "all.json"))


def _abilities(done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows for `train.report.abilities`: one per task and level."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for name, entry in done.items():
        for measured in entry.get("measured", []):
            key = (measured["task"], measured["level"])
            ability = measured["task"].partition(".")[0].capitalize()
            row = rows.setdefault(key, {"ability": ability, "task": key[0], "level": key[1], "stages": []})
            row["stages"].append({**measured, "stage": name})
    return list(rows.values())
