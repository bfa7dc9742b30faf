"""Convert a `Layout` to the planner's columns and to JSON, and back. Nothing else converts them.

The cost model works on columns of numbers (`LayoutColumns`), in which names are indices; `puna plan --json` writes a
layout as a mapping with names. Both say `dp` for all data-parallel ranks, `dp_shard` for those that share one copy of
the states, and `vp` for virtual stages. Plans written by older versions have no `dp_shard`; it then follows from the
sharding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from puna.core.errors import PunaError
from puna.model.layout import RECOMPUTE, SHARDING, Layout
from puna.plan.equations.columns import LayoutColumns

PLAN_HINT = "Make one with: puna plan RECIPE --fleet 8xh100 --stack puna --json > plan.json"


def to_columns(layout: Layout) -> LayoutColumns:
    """One layout as scalar columns, which broadcast."""
    return LayoutColumns(
        tp=layout.tp,
        cp=layout.cp,
        pp=layout.pp,
        vp=layout.virtual_stages,
        dp=layout.data_parallel,
        ep=layout.ep,
        micro_batch=layout.micro_batch,
        sharding=SHARDING.index(layout.sharding),
        recompute=RECOMPUTE.index(layout.recompute),
        sequence_parallel=layout.sequence_parallel,
        dp_shard=layout.dp_shard,
    )


def from_columns(columns: LayoutColumns, row: int) -> Layout:
    """One row of a table of layouts. Its `dp_shard` must be set."""

    def number(name: str) -> Any:
        return np.asarray(getattr(columns, name))[row].item()

    shard = number("dp_shard")
    return Layout(
        dp_replicate=number("dp") // shard,
        dp_shard=shard,
        tp=number("tp"),
        cp=number("cp"),
        pp=number("pp"),
        virtual_stages=number("vp"),
        schedule="interleaved" if number("vp") > 1 else "1f1b",
        ep=number("ep"),
        sharding=SHARDING[number("sharding")],
        sequence_parallel=number("sequence_parallel"),
        micro_batch=number("micro_batch"),
        recompute=RECOMPUTE[number("recompute")],
    )


def to_json(layout: Layout) -> dict[str, Any]:
    """The layout as `puna plan --json` writes it."""
    return {
        "tp": layout.tp,
        "cp": layout.cp,
        "pp": layout.pp,
        "vp": layout.virtual_stages,
        "dp": layout.data_parallel,
        "ep": layout.ep,
        "micro_batch": layout.micro_batch,
        "sharding": layout.sharding,
        "recompute": layout.recompute,
        "sequence_parallel": layout.sequence_parallel,
        "dp_shard": layout.dp_shard,
    }


def from_json(tree: Mapping[str, Any], path: Path, link_domain: int | None = None) -> Layout:
    """Read the layout of a plan; missing parts are 1, ddp or none.

    link_domain: of the plan's accelerator; required for hsdp without `dp_shard`.
    Raises PunaError naming `path` and the part that is wrong.
    """
    sizes = {name: _count(tree, name, path) for name in ("tp", "cp", "pp", "vp", "dp", "ep", "micro_batch")}
    names = {
        "sharding": _name(tree, "sharding", SHARDING, path),
        "recompute": _name(tree, "recompute", RECOMPUTE, path),
    }
    parts: dict[str, Any] = {name: sizes[name] for name in ("tp", "cp", "pp", "ep", "micro_batch")}
    parts |= {"virtual_stages": sizes["vp"] if sizes["pp"] > 1 else 1, "recompute": names["recompute"]}
    parts["sequence_parallel"] = tree.get("sequence_parallel", sizes["tp"] > 1) is True
    dp, sharding = sizes["dp"], names["sharding"]
    if "dp_shard" in tree:
        shard = _count(tree, "dp_shard", path)
        possible = {"ddp": shard == 1, "hsdp": dp % shard == 0}.get(sharding, shard == dp)
        if not possible:
            raise PunaError(f"{path}: dp_shard {shard} does not go with dp {dp} and {sharding}.", PLAN_HINT)
        parts |= {"dp_replicate": dp // shard, "dp_shard": shard}
    elif sharding == "hsdp" and link_domain is None:
        raise PunaError(f"{path}: the layout has hsdp but no dp_shard.", PLAN_HINT)
    return Layout.of(dp=dp, sharding=sharding, link_domain=link_domain or 1, **parts)


def _count(tree: Mapping[str, Any], name: str, path: Path) -> int:
    value = tree.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value % 1 != 0:
        raise PunaError(f"{path}: best.layout.{name} = {value!r} is not a whole number of at least 1.", PLAN_HINT)
    return int(value)


def _name(tree: Mapping[str, Any], part: str, names: tuple[str, ...], path: Path) -> str:
    value = tree.get(part, names[0])
    if value not in names:
        raise PunaError(f"{path}: best.layout.{part} = {value!r} is not one of {', '.join(names)}.", PLAN_HINT)
    return str(value)
