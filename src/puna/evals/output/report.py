"""Draws results as one self-contained page: scores with intervals and baselines, published models, wrong answers.

The page loads nothing. Its one script, which searches and filters the wrong answers, is allowed by its hash only, so
that nothing a model wrote can run; all text is escaped.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from puna.core.files import read_json, write_text
from puna.core.page import Html, document, figures, named, section, table
from puna.core.plots import STYLE, interval_bar
from puna.core.units import format_count
from puna.evals.benchmarks.dclm_core import centred
from puna.evals.output import published
from puna.model.hub import model_name

MOST_SHOWN = 60
"""The most wrong answers of one benchmark on the page; all are in items.jsonl."""
MAX_TEXT = 1_500
"""The longest question or answer on the page, in characters."""

Result = Mapping[str, Any]


def write_report(folder: Path) -> Path:
    """Draw folder/results.json and folder/items.jsonl as folder/report.html. Returns its path."""
    page = render(read_json(folder / "results.json"), list(_rows(folder / "items.jsonl")))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def render(results: Result, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page."""
    files = resources.files("puna.evals.output")
    css = files.joinpath("report.css").read_text(encoding="utf-8")
    script = files.joinpath("report.js").read_text(encoding="utf-8")
    measured = [one for one in results["benchmarks"] if one["value"] is not None]
    sections = [
        _header(results, measured),
        _scores(measured),
        _core(measured),
        _against(results),
        _published(results, measured),
        _contamination(measured),
        _groups(measured),
        _wrong(measured, rows),
        _asked(measured, results),
    ]
    body = "\n".join(part for part in sections if part)
    name = model_name(results["model"]["path"])
    return document(f"Evaluation of {name}", css + STYLE, body, origin="results.json and items.jsonl", script=script)


def _header(results: Result, measured: Sequence[Result]) -> str:
    model = results["model"]
    items = sum(one["items"] for one in measured)
    lead = (
        f"A model of <b>{format_count(model['parameters'])} parameters</b>, asked as "
        f"<b>{escape(results['settings']['form'])}</b>: {items:,} items of {len(measured)} benchmarks. "
        "Every score has its 95 % interval, and the scores of guessing and of the best constant answer."
    )
    pairs = [
        (str(len(measured)), "benchmarks"),
        (f"{items:,}", "items"),
        (results["settings"]["dtype"], "precision"),
        (str(results["settings"]["samples"]), "drawn answers to each question"),
    ]
    return (
        f'<header>\n<p class="eyebrow">Evaluation · <time>{escape(results["date"])}</time></p>\n'
        f'<h1>{escape(model_name(model["path"]))}</h1>\n<p class="lead">{lead}</p>\n{figures(pairs)}\n</header>'
    )


def _scores(measured: Sequence[Result]) -> str:
    parts = []
    for suite in dict.fromkeys(one["suites"][0] for one in measured):
        rows = []
        for one in (one for one in measured if one["suites"][0] == suite):
            low, high = one["interval"]
            constant = (one["baselines"].get("constant") or {}).get("value")
            chance = one["baselines"]["chance"]
            drawing = interval_bar(
                low,
                one["value"],
                high,
                f"{_percent(one['value'])}, 95 % {_percent(low)} to {_percent(high)}",
                marks=[mark for mark in (chance, constant) if mark],
            )
            sampled = one["sampled"] or {}
            best = _largest_k(sampled)
            rows.append(
                [
                    named(one["title"], one["metric"] + _items(one)),
                    Html(drawing),
                    _percent(one["value"]),
                    f"{100 * low:.1f} – {100 * high:.1f}",
                    _percent(sampled["pass@1"]["value"]) if sampled else "",
                    f"{_percent(sampled[best]['value'])} @{best[5:]}" if best else "",
                    _percent(chance),
                    "" if constant is None else _percent(constant),
                ]
            )
        columns = ("", "0 to 100 %", "greedy", "95 %", "drawn", "pass@k", "chance", "constant")
        drawn = table(columns, rows, numeric=(2, 3, 4, 5, 6, 7), drawing=1)
        parts.append(f"<h3>{escape(suite.capitalize())}</h3>\n{drawn}")
    text = (
        "A dot with its interval; the small marks are chance and the best constant answer. Greedy: the likeliest "
        "answer. "
        "Drawn: one random answer (for choices: the probability of the right one); pass@k: one of k is right."
    )
    return section("Scores", text, "\n".join(parts))


def _core(measured: Sequence[Result]) -> str:
    found = centred(measured)
    if found is None:
        return ""
    titles = {one["benchmark"]: one["title"] for one in measured}
    rows = [[titles[name].removeprefix("CORE: "), f"{value:.3f}"] for name, value in found["centred"].items()]
    text = (
        f"CORE, the mean of centred accuracies: <b>{found['value']:.3f}</b> over {found['tasks']} of its 22 tasks. "
        "0 is guessing, 1 is all right. Jeopardy and CoQA are wanting; HellaSwag and SQuAD are samples."
    )
    return section("DCLM CORE", text, table(("task", "centred accuracy"), rows, numeric=(1,)))


def _against(results: Result) -> str:
    against = results.get("against")
    if not against:
        return ""
    titles = {one["benchmark"]: one["title"] for one in results["benchmarks"]}
    rows = []
    for one in against["benchmarks"]:
        low, high = one["interval"]
        rows.append(
            [
                titles.get(one["benchmark"], one["benchmark"]),
                f"{one['items']:,}",
                _percent(one["value"]),
                _percent(one["other"]),
                f"{100 * one['difference']:+.1f}",
                f"{100 * low:+.1f} – {100 * high:+.1f}",
                "" if one["p"] is None else f"{one['p']:.3f}",
                "yes" if low > 0 or high < 0 else "no",
            ]
        )
    other = escape(model_name(against["model"]["path"]))
    text = (
        f"Item by item against <b>{other}</b>: points of difference with a paired bootstrap interval, "
        "and McNemar's exact p where answers are right or wrong. One in twenty such intervals misses 0 by chance."
    )
    columns = ("", "items", "this", "other", "difference", "95 %", "p", "beyond chance")
    return section("Compared with another model", text, table(columns, rows, numeric=(1, 2, 3, 4, 5, 6)))


def _published(results: Result, measured: Sequence[Result]) -> str:
    own = published.own_row(measured)
    if all(cell == "–" for cell in own):
        return ""
    rows: list[list[str]] = [[model_name(results["model"]["path"]), *own]]
    rows += [[name, *(value or "–" for value in values)] for name, values in published.BASE.items()]
    columns = [named(column.title, column.settings) for column in published.COLUMNS]
    notes = [f"{column.title}: {column.note}" for column in published.COLUMNS if column.note]
    text = (
        f"Base models as published, in percent. {escape(published.SOURCE)} "
        f"* asked in another way here: {escape('; '.join(notes))}."
    )
    heads = ["", *(str(column) for column in columns)]
    drawn = table(heads, rows, numeric=range(1, len(heads)), ours=0)
    for column in columns:  # the table escapes its headers; these are markup
        drawn = drawn.replace(escape(str(column)), str(column))
    return section("Compared with published models", text, drawn)


def _contamination(measured: Sequence[Result]) -> str:
    found = [one for one in measured if one.get("contamination")]
    if not found:
        return ""
    rows = []
    for one in found:
        seen = one["contamination"]
        rows.append(
            [
                one["title"],
                f"{seen['items']:,}",
                f"{seen['seen']:,}",
                _percent(seen["seen"] / max(1, seen["items"])),
                _percent(seen["score_seen"]["value"]),
                _percent(seen["score_unseen"]["value"]),
                f"{seen['too_short']:,}",
            ]
        )
    text = (
        f"Items of which {found[0]['contamination']['ngram']} words in a row stand in the training part of "
        f"<b>{escape(found[0]['contamination']['corpus'])}</b>, and the scores of both kinds."
    )
    columns = ("", "items", "seen", "share", "score, seen", "score, unseen", "too short to tell")
    return section("What the corpus holds", text, table(columns, rows, numeric=range(1, 7)))


def _groups(measured: Sequence[Result]) -> str:
    parts = []
    for one in measured:
        extra = one.get("whole") or {}
        shown = [[str(name), f"{value:.3f}"] for name, value in extra.items() if isinstance(value, float)]
        shown += [[f"chrF, {name}", f"{100 * value:.1f}"] for name, value in extra.get("groups", {}).items()]
        rows = []
        for name, group in one["groups"].items():
            low, high = group["interval"]
            drawing = interval_bar(low, group["value"], high, f"{_percent(low)} to {_percent(high)}")
            rows.append([name, Html(drawing), _percent(group["value"]), f"{group['items']:,}"])
        if not rows and not shown:
            continue
        drawn = table(("", "0 to 100 %", "", "items"), rows, numeric=(2, 3), drawing=1) if rows else ""
        more = table(("", "value"), shown, numeric=(1,)) if shown else ""
        parts.append(f"<details><summary>{escape(one['title'])}</summary>{drawn}{more}</details>")
    return section("In parts", "Levels, subjects, languages.", "\n".join(parts)) if parts else ""


def _wrong(measured: Sequence[Result], rows: Sequence[Mapping[str, Any]]) -> str:
    """The list of wrong answers, and the controls that the script operates."""
    titles = {one["benchmark"]: one["title"] for one in measured}
    counts: dict[str, int] = {}
    entries = []
    for row in rows:
        name = row["benchmark"]
        if name not in titles or row["value"] >= 1:
            continue
        counts[name] = counts.get(name, 0) + 1
        if counts[name] <= MOST_SHOWN:
            entries.append(_entry(row, titles[name]))
    if not entries:
        return ""
    options = "".join(f'<option value="{escape(name)}">{escape(titles[name])}</option>' for name in counts)
    controls = (
        '<form class="browse" hidden><label>Search <input type="search" name="text"></label>'
        f'<label>Benchmark <select name="benchmark"><option value="">all</option>{options}</select></label>'
        '<output aria-live="polite"></output></form>'
    )
    total = sum(counts.values())
    most = f"{MOST_SHOWN} of each benchmark at most; all are in items.jsonl."
    text = f"{len(entries):,} of {total:,} answers that are not right, {most}"
    return section("Wrong answers", text, f'{controls}<div class="wrong">{"".join(entries)}</div>')


def _entry(row: Mapping[str, Any], title: str) -> str:
    response = row.get("response")
    answer = {"role": "assistant", "content": row["answer"] if response is None else response}
    said = "".join(
        f"<dt>{'said' if one['role'] == 'assistant' else escape(one['role'])}</dt>"
        f"<dd><pre>{_text(one['content'])}</pre></dd>"
        for one in row.get("conversation") or [answer]
    )
    samples = [one["answer"] for one in row.get("samples") or () if one["answer"]][:2]
    drawn = "".join(f"<dt>drawn</dt><dd><pre>{_text(text)}</pre></dd>" for text in samples)
    group = f" · {escape(row['group'])}" if row["group"] else ""
    return (
        f'<details data-benchmark="{escape(row["benchmark"])}"><summary>{escape(title)}{group} · {escape(row["id"])}'
        f" <small>{escape(row['reason'])}</small></summary><dl>"
        f"<dt>asked</dt><dd><pre>{_text(row['question'])}</pre></dd>"
        f"<dt>right</dt><dd><pre>{_text(row['target'])}</pre></dd>"
        f"{said}{drawn}</dl></details>"
    )


def _asked(measured: Sequence[Result], results: Result) -> str:
    rows = [[one["title"], one["prompt"], one["source"], f"{one['cut']:,}" if one["cut"] else ""] for one in measured]
    drawn = table(("benchmark", "prompt", "source", "prompts cut"), rows, numeric=(3,))
    shown = json.dumps({"settings": results["settings"], "model": results["model"]}, indent=1, ensure_ascii=False)
    text = (
        "Prompts cut: those that did not fit into the model's context and lost their beginning; a conversation whose "
        "first prompt did not fit was not held."
    )
    more = f"<details><summary>Settings and lineage</summary><pre>{escape(shown)}</pre></details>"
    return section("How it was asked", text, drawn + more)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _items(one: Result) -> str:
    part = f"{one['items']:,} items" if one["items"] == one["of"] else f"{one['items']:,} of {one['of']:,} items"
    return f"; {part}"


def _largest_k(sampled: Mapping[str, Any]) -> str:
    keys = [key for key in sampled if key.startswith("pass@") and key != "pass@1"]
    return max(keys, key=lambda key: int(key[5:]), default="")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _text(text: str) -> str:
    return escape(text if len(text) <= MAX_TEXT else f"… {text[-MAX_TEXT:]}")
