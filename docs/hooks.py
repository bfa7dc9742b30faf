"""Fills the documentation's tables from what they describe: recipe fields, shipped recipes, benchmark results.

A page asks with an HTML comment on a line of its own, such as `<!-- recipe fields -->` or `<!-- result logits -->`.
A result that was never measured says so; no number is typed by hand.
"""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from puna.core.recipe import load
from puna.core.units import format_bytes, format_count
from puna.train.memory import predict_memory
from puna.train.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent

# What each shipped recipe is planned on: device, processes.
DEVICES = {
    "smoke": ("cpu", 1),
    "laptop": ("cpu", 1),
    "gpu-120m": ("cuda", 1),
    "llama3.2-1b": ("cuda", 1),
    "llama3-8b": ("cuda", 8),
    "llama3-70b": ("cuda", 64),
    "llama3.1-405b": ("cuda", 1024),
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this with each page's text."""
    return re.sub(r"^<!-- (recipe fields|shipped recipes|result [\w.-]+) -->$", _filled, markdown, flags=re.MULTILINE)


def _filled(match: re.Match[str]) -> str:
    wish = match[1]
    if wish == "recipe fields":
        return recipe_fields()
    if wish == "shipped recipes":
        return shipped_recipes()
    name = wish.removeprefix("result ")
    path = ROOT / "bench" / "results" / f"{name}.json"
    if not path.exists():
        return "*Not measured yet.*"
    return result(json.loads(path.read_text(encoding="utf-8")))


def recipe_fields() -> str:
    """One section and table for each part of a training recipe."""
    top = {name: field for name, field in Recipe.model_fields.items() if not _section(field.annotation)}
    parts = ["### top level\n\n" + _fields(top)]
    for name, field in Recipe.model_fields.items():
        section = _section(field.annotation)
        if section:
            parts.append(f"### [{name}]\n\n{(section.__doc__ or '').strip()}\n\n{_fields(section.model_fields)}")
    return "\n\n".join(parts)


def shipped_recipes() -> str:
    """What each recipe in recipes/ comes to."""
    rows = []
    for name, (device, processes) in DEVICES.items():
        path = ROOT / "recipes" / f"{name}.toml"
        if not path.exists():
            continue
        recipe = load(Recipe, path).value
        memory = predict_memory(recipe, device_type=device, world_size=processes).total
        tokens = recipe.total_steps * recipe.tokens_per_step
        where = "CPU" if device == "cpu" else f"{processes} GPU" + "s" * (processes > 1)
        rows.append(
            [
                f"`{name}.toml`",
                format_count(recipe.model.num_parameters()),
                format_count(tokens),
                f"{format_count(recipe.tokens_per_step)} tokens",
                recipe.optimizer.kind,
                f"{format_bytes(memory)} on each of {where}" if processes > 1 else f"{format_bytes(memory)} on {where}",
            ]
        )
    return _table(["recipe", "parameters", "tokens", "a step", "optimizer", "predicted memory"], rows)


def result(record: dict[str, Any]) -> str:
    """A benchmark's tables, under a line that says on what and when it was measured."""
    instructions = " ".join(record["instructions"])
    hardware = f"{record['device']}, {record['cores']} cores, {record['memory_gib']} GiB" + f" ({instructions})"
    peers = "".join(f", {peer} {record[peer]}" for peer in ("transformers", "nanochat") if peer in record)
    head = f"{record['date']} · {hardware} · Python {record['python']}, torch {record['torch']}{peers}, "
    head += f"Puna {record['puna']}\n\n"
    results = record["results"]
    tables = {
        "train-speed-cpu": _train_speed,
        "logits": _logits,
        "cli-start": _cli_start,
        "memory-cpu": _memory,
        "learning-cpu": _learning,
    }
    return head + tables[record["benchmark"]](results)


def _train_speed(results: dict[str, Any]) -> str:
    speeds = [
        [name, f"{v['median']:,.0f}", f"{v['min']:,.0f} to {v['max']:,.0f}"]
        for name, v in results["tokens_per_second"].items()
    ]
    ratios = [[n, f"{v['median']:.2f}", f"{v['min']:.2f} to {v['max']:.2f}"] for n, v in results["ratios"].items()]
    left_out = "".join(f"\n\nLeft out: {name} ({why})." for name, why in results["skipped"].items())
    rates = ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in results["matmul_gflops"].items())
    return (
        _table(["contender", "tokens/s, median", "range"], speeds)
        + "\n\n"
        + _table(["ratio, round by round", "median", "range"], ratios)
        + f"\n\nMatrix products on this machine: {rates}."
        + left_out
    )


def _logits(results: dict[str, Any]) -> str:
    rows = [
        [
            name,
            row["shape"],
            row["rope_scaling"],
            "tied" if row["tied"] else "untied",
            f"{row['max_abs_difference']:.1e}",
        ]
        for name, row in results.items()
    ]
    return _table(["preset, scaled down", "shape", "RoPE scaling", "head", "largest difference"], rows)


def _cli_start(results: dict[str, Any]) -> str:
    rows = [
        [f"`{name}`", f"{v['median']:.3f} s", f"{v['min']:.3f} to {v['max']:.3f} s"]
        for name, v in results["cpu_seconds"].items()
    ]
    imported = results["imported"].strip("[]") or "none"
    return _table(["command", "CPU time, median", "range"], rows) + f"\n\nHeavy packages imported: {imported}."


def _memory(results: dict[str, Any]) -> str:
    rows = [
        [name, format_bytes(row["predicted"]), format_bytes(row["measured"]), f"{row['error']:+.1%}"]
        for name, row in results["cases"].items()
    ]
    return _table(["run", "predicted", "measured", "error"], rows)


def _learning(results: dict[str, Any]) -> str:
    rows = [
        [
            name,
            format_count(row["parameters"]),
            f"{row['seconds']:,.0f} s",
            format_count(row["tokens"]),
            f"{row['tokens'] / row['seconds']:,.0f}",
            f"{row['bits_per_byte']:.3f}",
        ]
        for name, row in results.items()
        if "course" in row
    ]
    head = ["contender", "parameters", "training", "tokens", "tokens/s", "held-out bits per byte"]
    reach = results["tokens to AdamW's last value"]
    note = (
        f"AdamW with a cosine ends at {reach['bits_per_byte']:.3f} on the part of the held-out text that is measured "
        f"along the way, after {format_count(reach['adamw'])} tokens."
    )
    if reach["puna"]:
        note += f" Puna is there after {format_count(reach['puna'])} tokens: {reach['ratio']:.3f} of them."
    return _table(head, rows) + "\n\n" + note


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _fields(fields: dict[str, Any]) -> str:
    rows = [[f"`{name}`", f"`{_default(field)}`", field.description or ""] for name, field in fields.items()]
    return _table(["field", "default", "meaning"], rows)


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return "none" if value is None else str(list(value) if isinstance(value, tuple) else value)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
