"""Render the computed parts of the documentation: recipe fields, recipes, benchmark results, plans, pictures.

    python docs/render.py           refresh docs/*.md and docs/images/
    python docs/render.py --check   change nothing; exit with 1 and name the pages that are stale

In a page, an HTML comment such as `<!-- recipe fields -->` or `<!-- result logits -->` marks the start of a computed
part, and `<!-- end -->` its end. `<!-- output -->` under a block of commands is filled with their output. The text in
between is committed, so that the pages are readable wherever the repository is shown. A result that was never measured
is marked as such; no number is typed by hand.
"""

import argparse
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from functools import lru_cache
from pathlib import Path
from typing import Any

import plan_tables
import serving_tables
import tuning_tables
from pydantic import BaseModel

from puna.core.recipe import load
from puna.core.units import format_bytes, format_count
from puna.train.planning.memory import predict_memory
from puna.train.recipe import Recipe

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
WIDTH = 120  # columns of the output of commands

# The device and number of processes that each included recipe is planned for.
DEVICES = {
    "smoke": ("cpu", 1),
    "laptop": ("cpu", 1),
    "gpu-120m": ("cuda", 1),
    "llama3.2-1b": ("cuda", 1),
    "llama3-8b": ("cuda", 8),
    "llama3-70b": ("cuda", 64),
    "llama3.1-405b": ("cuda", 1024),
}


_END = "<!-- end -->"
# The text rendered before, which contains no comment.
_BEFORE = rf"(?:\n\n(?:(?!<!--).)*?^{_END}$)?"
_FLAGS = re.MULTILINE | re.DOTALL
_WISH = re.compile(rf"^<!-- (recipe fields|shipped recipes|result [\w.-]+|plan \w+) -->${_BEFORE}", _FLAGS)
_COMMANDS = re.compile(rf"^```sh\n([^`]*)```\n\n<!-- output -->${_BEFORE}", _FLAGS)


def main() -> int:
    """Refresh all pages and pictures, or name the stale ones."""
    parser = argparse.ArgumentParser(description="Refresh the computed parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is stale")
    check = parser.parse_args().check
    found = {path: rendered(path.read_text(encoding="utf-8")) for path in sorted(DOCS.glob("*.md"))} | pictures()
    stale = [path for path, text in found.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is stale' if check else 'refreshed'}")
        if not check:
            path.write_text(found[path], encoding="utf-8")
    if check and stale:
        print("Refresh with: make docs")
    return int(check and bool(stale))


def rendered(markdown: str) -> str:
    """Render every computed part of a page."""
    return _WISH.sub(_with_result, _COMMANDS.sub(_with_output, markdown))


def pictures() -> dict[Path, str]:
    """The pages' pictures by their path."""
    record = _record("plan-accuracy")
    if record is None:
        return {}
    return {DOCS / "images" / name: text for name, text in plan_tables.pictures(record["results"]).items()}


def _with_result(match: re.Match[str]) -> str:
    return f"<!-- {match[1]} -->\n\n{_filled(match)}\n\n{_END}"


def _filled(match: re.Match[str]) -> str:
    wish = match[1]
    if wish == "recipe fields":
        return recipe_fields()
    if wish == "shipped recipes":
        return shipped_recipes()
    if wish.startswith("plan "):
        found = _record("plan-accuracy")
        return plan_tables.filled(wish.removeprefix("plan "), found and found["results"])
    record = _record(wish.removeprefix("result "))
    return "*Not measured yet.*" if record is None else result(record)


def _record(name: str) -> dict[str, Any] | None:
    path = ROOT / "bench" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _with_output(match: re.Match[str]) -> str:
    printed = "\n".join(_wrapped(output(line)) for line in match[1].splitlines() if line.strip())
    return f"```sh\n{match[1]}```\n\n<!-- output -->\n\n```text\n{printed}```\n\n{_END}"


def _wrapped(text: str) -> str:
    """Wrap sentences at the page's width, as a terminal would; tables and bars are unchanged."""
    lines = [
        textwrap.wrap(line, WIDTH) if len(line) > WIDTH and "  " not in line else [line] for line in text.split("\n")
    ]
    return "\n".join(itertools.chain.from_iterable(lines))


@lru_cache(maxsize=32)
def output(line: str) -> str:
    """The output of `puna ...`, run in the repository, wide and without colours. Raises if it fails."""
    program, *words = shlex.split(line, comments=True)
    if program != "puna":
        raise ValueError(f"'{line}' is not a command of puna, so no page shows its output.")
    environment = {**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "puna", *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, encoding="utf-8"
    ).stdout


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
    """Size, tokens and predicted memory of each recipe in recipes/."""
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
    return plan_tables.markdown(["recipe", "parameters", "tokens", "a step", "optimizer", "predicted memory"], rows)


def result(record: dict[str, Any]) -> str:
    """A benchmark's tables, under a line with the machine, versions and date of the measurement."""
    instructions = " ".join(record["instructions"])
    hardware = f"{record['device']}, {record['cores']} cores, {record['memory_gib']} GiB" + f" ({instructions})"
    packages = ("torch", "transformers", "nanochat", "numpy", "scipy")
    versions = "".join(f", {name} {record[name]}" for name in packages if name in record)
    head = f"{record['date']} · {hardware} · Python {record['python']}{versions}, Puna {record['puna']}\n\n"
    results = record["results"]
    tables = {
        "train-speed-cpu": _train_speed,
        "logits": _logits,
        "cli-start": _cli_start,
        "memory-cpu": _memory,
        "learning-cpu": _learning,
        "plan-accuracy": plan_tables.accuracy,
        "plan-speed": plan_tables.speed,
        "engine-speed-cpu": serving_tables.engine_speed,
        "serve-overhead-cpu": serving_tables.serve_overhead,
        "conformance": serving_tables.conformance,
        "gguf-parity": serving_tables.gguf,
        "rl-rollouts": tuning_tables.rollouts,
        "tune-demo": tuning_tables.demo,
        "lm-eval-scores": serving_tables.lm_eval,
        "gguf-quants": serving_tables.gguf_quants,
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
        plan_tables.markdown(["contender", "tokens/s, median", "range"], speeds)
        + "\n\n"
        + plan_tables.markdown(["ratio, round by round", "median", "range"], ratios)
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
    return plan_tables.markdown(["preset, scaled down", "shape", "RoPE scaling", "head", "largest difference"], rows)


def _cli_start(results: dict[str, Any]) -> str:
    rows = [
        [f"`{name}`", f"{v['median']:.3f} s", f"{v['min']:.3f} to {v['max']:.3f} s"]
        for name, v in results["cpu_seconds"].items()
    ]
    imported = results["imported"].strip("[]") or "none"
    return (
        plan_tables.markdown(["command", "CPU time, median", "range"], rows)
        + f"\n\nHeavy packages imported: {imported}."
    )


def _memory(results: dict[str, Any]) -> str:
    rows = [
        [name, format_bytes(row["predicted"]), format_bytes(row["measured"]), f"{row['error']:+.1%}"]
        for name, row in results["cases"].items()
    ]
    return plan_tables.markdown(["run", "predicted", "measured", "error"], rows)


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
        f"during training, after {format_count(reach['adamw'])} tokens."
    )
    if reach["puna"]:
        note += f" Puna reaches it after {format_count(reach['puna'])} tokens: {reach['ratio']:.3f} of them."
    return plan_tables.markdown(head, rows) + "\n\n" + note


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _fields(fields: dict[str, Any]) -> str:
    rows = [[f"`{name}`", f"`{_default(field)}`", field.description or ""] for name, field in fields.items()]
    return plan_tables.markdown(["field", "default", "meaning"], rows)


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return "none" if value is None else str(list(value) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    sys.exit(main())
