"""The computed parts of the planner's pages: constants, stacks, accelerators, accuracy, and pictures.

Everything is read from the planner's own files or from bench/results; no number is typed by hand. Pictures are SVG in
the page, drawn with the planner's functions, in the site's colours.
"""

import math
import re
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from puna.core.page import table
from puna.core.plots import STYLE as PLOTS
from puna.plan.equations.constants import CHILD_SPREAD, COMMON, CONSTANTS, GENERATION, STACK, STACKS, is_share
from puna.plan.equations.hardware import catalogue
from puna.plan.output.charts import STYLE as PICTURES
from puna.plan.output.charts import Axis, chart

# Colours of the drawings: the site's, light and dark.
COLOURS = """
:root { --ink: #212121; --soft: #616161; --faint: #9e9e9e; --line: #e0e0e0; --paper: #ffffff; --accent: #0b7a69;
  --bar: #9e9e9e; --warn: #c2600f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e2e4e9; --soft: #a9adb8; --faint: #757a87; --line: #3a3e49;
  --paper: #1e2129; --accent: #5fc9b0; --bar: #757a87; --warn: #eba15e; } }
.plot .stripe { fill: var(--line); opacity: .35; }
"""

# Descriptions of the fitted constants, for readers of the equations.
MEANINGS = {
    "half_size": "a product with a dimension of this length reaches half of its rate, at 989 TFLOP/s",
    "half_power": "that size grows with the peak to this power",
    "recompute": "time of a recomputed pass relative to the first",
    "attention_half": "at a span of this many tokens attention reaches half of its rate",
    "memory": "share of the datasheet's memory rate that element-wise work reaches",
    "nic": "share of the network cards' rate that collectives reach",
    "latency_seconds": "one step of a collective",
    "straggler": "spread of the machines: the slowest of n is 1 + this times √(2 ln n)",
    "power": "the rate of products grows with watts per TFLOP/s of peak to this power",
    "matmul_bf16": "share of the bf16 peak that a very large product reaches",
    "matmul_fp8": "the same in fp8, of its own peak",
    "matmul_mxfp8": "the same in mxfp8",
    "matmul_nvfp4": "the same in nvfp4",
    "attention": "share of the bf16 peak of flash attention's forward pass",
    "link": "share of the scale-up fabric's rate that collectives reach",
    "matmul": "factor on the generation's rate of products",
    "elementwise": "factor on the fewest passes over memory that element-wise work needs",
    "cast": "factor on the fewest passes for casting to 8 or 4 bits",
    "launch_seconds": "fixed cost of a layer, forward and backward",
    "tensor_hidden": "share of tensor-parallel traffic that computation hides",
    "data_hidden": "the same for data-parallel traffic",
    "context_hidden": "the same for context-parallel traffic",
    "pipeline_hidden": "the same for traffic between pipeline stages",
    "expert_hidden": "the same for sending tokens to experts and back",
    "expert_moves": "factor on the fewest passes for sorting tokens to experts and back",
    "expert_seconds": "fixed cost of each expert of a layer on a rank",
}
_PICTURES = {
    "scatter": "Seconds of a step: predicted without the row's family, against measured",
    "families": "Error of the step by family, predicted without it",
}
# Constants that may differ by stack, and their names in its table; factors on the generation's "attention".
_FACTORS = {"matmul": "products, times", "attention": "attention, times"}


def filled(wish: str, record: Mapping[str, Any] | None) -> str:
    """Render the part `<!-- plan WISH -->`. record: the results of plan-accuracy, None if never measured."""
    plain = {"constants": constants, "intervals": intervals, "stacks": stacks, "accelerators": accelerators}
    if wish in plain:
        return plain[wish]()
    if record is None:
        return "*Not measured yet.*"
    if wish in _PICTURES:
        # A picture of its own shows its tooltips.
        return f"[![{_PICTURES[wish]}](images/plan-{wish}.svg)](images/plan-{wish}.svg)"
    return {"scores": scores, "rows": rows}[wish](record)


def pictures(record: Mapping[str, Any]) -> dict[str, str]:
    """The SVG of each picture, by file name."""
    return {"plan-scatter.svg": _file(scatter(record)), "plan-families.svg": _file(families(record))}


def _file(drawn: str) -> str:
    """A standalone drawing, with style, namespace and size."""
    rules = " ".join(f"{COLOURS}{PLOTS}{PICTURES}".split())
    width, height = re.findall(r"\d+", drawn)[2:4]  # viewBox="0 0 960 520"
    head, _, body = drawn.partition(">")
    attributes = head.removeprefix("<svg ")
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {attributes}>'
    return f"{opening}<style>{rules}</style>{body}\n"


# -- the parts of the planner ----------------------------------------------------------------------------------------


def constants() -> str:
    """Every fitted constant with its range over refits: common, by generation, by stack."""
    tree = tomllib.loads(CONSTANTS.read_text(encoding="utf-8"))
    generations = list(tree["generation"])
    common = [[f"`{name}`", MEANINGS[name], _entry(name, tree["common"].get(name))] for name in COMMON]
    by_generation = [
        [f"`{name}`", MEANINGS[name], *(_entry(name, tree["generation"][one].get(name)) for one in generations)]
        for name in GENERATION
    ]
    roots = [name for name in tree["stack"] if STACKS[name].parent is None]
    of_roots = [
        [f"`{name}`", MEANINGS[name], *(_entry(name, tree["stack"][one].get(name)) for one in roots)]
        for name in STACK
        if name not in _FACTORS
    ]
    factors = [
        [f"`{one}`", *(_entry(name, tree["stack"][one].get(name)) for name in CHILD_SPREAD)] for one in tree["stack"]
    ]
    return "\n\n".join(
        [
            "For all:\n\n" + markdown(["constant", "meaning", "value (range)"], common),
            "By generation:\n\n" + markdown(["constant", "meaning", *generations], by_generation),
            "By stack, for those without a parent:\n\n" + markdown(["constant", "meaning", *roots], of_roots),
            "By stack, where it differs from its parent (empty: as the parent):\n\n"
            + markdown(["stack", *(_FACTORS.get(name, name) for name in CHILD_SPREAD)], factors),
        ]
    )


def _entry(name: str, entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return ""
    value, low, high = (_said(name, entry[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} – {high})"


def _said(name: str, value: float) -> str:
    if name.endswith("_seconds"):
        return f"{value * 1e6:.3g} µs" if value < 1e-3 else f"{value * 1e3:.3g} ms"
    return f"{value:.1%}" if is_share(name) or name.startswith("matmul_") else f"{value:.3g}"


def intervals() -> str:
    """Widths of the 80 % intervals by kind of job."""
    names = {
        "dense": "dense models on A100 and H100",
        "dense_newer": "dense models on newer accelerators",
        "mixture": "mixtures of experts",
    }
    widths = tomllib.loads(CONSTANTS.read_text(encoding="utf-8"))["interval"]
    rows = [
        [names[kind], f"x {width:.2f}", f"{1 / width - 1:+.0%} to {width - 1:+.0%}"] for kind, width in widths.items()
    ]
    return markdown(["jobs", "multiplied and divided by", "range of the step"], rows)


def stacks() -> str:
    """Known, not fitted, properties of each software stack."""
    rows = [
        [
            f"`{name}`",
            one.description,
            f"`{one.parent}`" if one.parent else "",
            "yes" if one.flash else "no",
            f"{one.gradient_bytes}",
            ", ".join(one.shardings),
            ", ".join(one.recomputations),
        ]
        for name, one in STACKS.items()
    ]
    return markdown(
        ["stack", "description", "parent", "flash attention", "bytes per gradient", "sharding", "recomputation"], rows
    )


def accelerators() -> str:
    """The catalogue: peaks, memory, fabrics, power, prices."""
    rows = [
        [
            f"`{name}`",
            " / ".join(f"{peak:,.0f}" if peak else "–" for peak in (one.bf16_tflops, one.fp8_tflops, one.fp4_tflops)),
            f"{one.matmul_tflops:,.0f}" if one.matmul_tflops else "–",
            f"{one.memory_gb:g} at {one.memory_gb_per_s:,.0f}",
            f"{one.link_gb_per_s:,.0f} among {one.link_domain}",
            f"{one.nic_gbit_per_s:g}",
            f"{one.watts:,.0f}",
            _dollars(one.price_usd),
            f"{one.rent_usd_per_hour[1]:.2f}" if one.rent_usd_per_hour else "–",
        ]
        for name, one in catalogue().items()
    ]
    columns = ["accelerator", "bf16 / fp8 / fp4, TFLOP/s dense", "best bf16 product", "memory, GB and GB/s"]
    columns += ["scale-up, GB/s", "network, Gbit/s", "W", "price, USD", "rent, USD/h"]
    return markdown(columns, rows)


def _dollars(price: tuple[float, float] | None) -> str:
    return (
        "–" if price is None else f"{price[0]:,.0f}" if price[0] == price[1] else f"{price[0]:,.0f} – {price[1]:,.0f}"
    )


# -- accuracy --------------------------------------------------------------------------------------------------------


def accuracy(results: Mapping[str, Any]) -> str:
    """All results of bench/plan_accuracy.py except its rows: scores, rankings, memory, Llama 3's run."""
    off = [abs(row["predicted_gib"] / row["measured_gib"] - 1) for row in results["memory"]["rows"]]
    memory = [
        [row["row"], f"{row['measured_gib']:.1f}", f"{row['predicted_gib']:.1f}", _change(row)]
        for row in results["memory"]["rows"]
    ]
    llama = [[name, _value(name, value)] for name, value in results["llama3"].items()]
    return "\n\n".join(
        [
            scores(results),
            "Layouts of one model on the same accelerators, each predicted without its family:",
            rankings(results),
            f"Peaks of torch's allocator in GiB, median error {results['memory']['median_error']:.1%}, "
            f"worst {max(off):.1%}:",
            markdown(["row", "measured", "predicted", "error"], memory),
            "Llama 3 405B on 16,384 H100:",
            markdown(["figure", "predicted"], llama),
        ]
    )


def scores(results: Mapping[str, Any]) -> str:
    """Errors of the step time by set of rows, with equal weight per family, and those of a constant MFU."""
    lines = [
        [
            one["name"] + (", without their family" if kind == "left out" else ""),
            f"{one['rows']} in {one['families']}",
            *(f"{one[key]:.1%}" for key in ("median", "mean", "p90", "coverage", "rival_median", "rival_p90")),
        ]
        for kind, chosen in results["scores"].items()
        for one in chosen
    ]
    columns = ["rows", "number, families", "median", "mean", "p90", "inside 80 %", "constant MFU, median", "its p90"]
    return markdown(columns, lines)


def rankings(results: Mapping[str, Any]) -> str:
    """Spearman's rank correlation and regret of each group of layouts."""
    lines = [
        [one["name"], one["layouts"], f"{one['spread']:.1f}x", f"{one['spearman']:.2f}", f"{one['regret']:.1%}"]
        for one in results["rankings"]
    ]
    return markdown(["layouts of", "number", "slowest over fastest", "Spearman", "regret of the chosen one"], lines)


def rows(results: Mapping[str, Any]) -> str:
    """Every development row, collapsed."""
    lines = [
        [row["id"], row["family"], f"{row['measured_s']:g}", f"{row['left_out_s']:g}", f"{row['error_pct']:+.1f} %"]
        for row in results["rows"]
    ]
    body = table(["row", "family", "measured s", "predicted s", "error"], lines, numeric=(2, 3, 4))
    return f"<details data-search-exclude><summary>All {len(lines)} rows</summary>{body}</details>"


def scatter(results: Mapping[str, Any]) -> str:
    """Predicted and measured seconds of a step, every row predicted without its family."""
    points = [(row["measured_s"], row["left_out_s"]) for row in results["rows"]]
    near = [abs(row["error_pct"]) <= 10 for row in results["rows"]]
    ends = [min(map(min, points)), max(map(max, points))]
    drawn = chart(
        "Seconds of a step: predicted without the row's family, against measured",
        f"{len(points)} rows on logarithmic axes; {sum(near)} are within 10 percent, the others in another colour; the "
        "dashed line is no error",
        Axis("measured", _seconds, log=True),
        Axis("", _seconds, log=True),
        cloud=[point for point, good in zip(points, near, strict=True) if good],
        cloud_out=[point for point, good in zip(points, near, strict=True) if not good],
        ideal=[(end, end) for end in ends],
        width=960,
        height=520,
    )
    return drawn


def families(results: Mapping[str, Any]) -> str:
    """One line per family, the worst first: a small dot for each row's error, a large one for their mean."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in results["rows"]:
        groups[row["family"]].append(row["error_pct"])
    order = sorted(groups.items(), key=lambda item: -_mean([abs(error) for error in item[1]]))
    return _strips(order)


def _strips(groups: Sequence[tuple[str, Sequence[float]]], width: int = 960, line: int = 17) -> str:
    every = [error for _, errors in groups for error in errors]
    low, high = 10 * math.floor(min(every) / 10), 10 * math.ceil(max(every) / 10)
    left, right, top = 340, width - 24, 44
    height = top + line * len(groups) + 8

    def x(error: float) -> float:
        return left + (error - low) / (high - low) * (right - left)

    out = ['<text class="name" x="0" y="13">Error of the step by family, predicted without it</text>']
    out.append(
        f'<rect class="stripe" x="{x(-10):.1f}" y="{top}" width="{x(10) - x(-10):.1f}" height="{height - top}"/>'
    )
    for tick in range(low - low % 20 + (20 if low % 20 else 0), high + 1, 20):
        kind = "axis" if tick == 0 else "grid"
        out.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height}"/>')
        out.append(f'<text x="{x(tick):.1f}" y="{top - 8}" text-anchor="middle">{tick:+d} %</text>')
    for at, (name, errors) in enumerate(groups):
        y = top + line * (at + 0.5)
        mean = _mean(errors)
        tip = f"{name}: {len(errors)} rows, mean {mean:+.1f} %"
        out.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for kind, chosen in (
            ("cloud", [e for e in errors if abs(e) <= 10]),
            ("cloud out", [e for e in errors if abs(e) > 10]),
        ):
            if chosen:
                path = "".join(f"M{x(error):.1f} {y:.1f}h.01" for error in chosen)
                out.append(f'<path class="{kind}" d="{path}"/>')
        spot = f'<circle class="spot" cx="{x(mean):.1f}" cy="{y:.1f}" r="3.5"><title>{escape(tip)}</title></circle>'
        out.append(spot)
    title = "Error of the step by family"
    about = f"{len(groups)} families, the worst first; small dots are rows, circles their means, the band is 10 percent"
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{title}: {about}">'
        f"{''.join(out)}</svg>"
    )


def speed(results: Mapping[str, Any]) -> str:
    """Searches, evaluations compared with Calculon, and the time to an answer."""
    lines = [
        [
            name,
            f"{one['layouts']:,}",
            f"{one['seconds']['median']:.3f} s",
            f"{one['layouts_per_second']['median']:,.0f}",
            f"{one['layouts_per_second']['min']:,.0f} to {one['layouts_per_second']['max']:,.0f}",
        ]
        for name, one in results.items()
        if isinstance(one, dict) and "layouts" in one
    ]
    parts = [markdown(["search over all legal layouts", "layouts", "time", "layouts/s", "range"], lines)]
    answer = results["start_to_answer_seconds"]
    parts.append(
        f"From the start of the process to the end of `puna plan llama3-8b --fleet 8xh100 --json`: "
        f"{answer['median']:.2f} s, {answer['min']:.2f} to {answer['max']:.2f}."
    )
    if peer := results.get("calculon"):
        rate = peer["evaluations_per_second"]
        parts.append(
            f"Calculon in the same run, its 175B example made smaller: {rate['median']:,.0f} evaluations per second "
            f"({rate['min']:,.0f} to {rate['max']:,.0f}); Puna's faster search does {peer['ratio']:,.0f} times as "
            "many."
        )
    return "\n\n".join(parts)


# -- pieces ----------------------------------------------------------------------------------------------------------


def markdown(columns: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A Markdown table; upright bars within cells are escaped."""
    whole = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in whole)


def _change(row: Mapping[str, float]) -> str:
    return f"{row['predicted_gib'] / row['measured_gib'] - 1:+.1%}"


def _value(name: str, value: float) -> str:
    if "error" in name:
        return f"{value:+.1%}"
    return f"{value:.3f}" if value < 1 else f"{value:,.0f}" if value > 100 else f"{value:.1f}"


def _seconds(value: float) -> str:
    return f"{value:g} s"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
