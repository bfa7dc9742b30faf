"""show every field of a recipe, its value and its origin"""

import argparse
from pathlib import Path
from typing import Any

from puna.core.console import print_json, show_table
from puna.core.recipe import describe, load, read_toml
from puna.core.units import format_count


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", choices=["show"], help="show: print key, value, origin and meaning of every field")
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="recipe of training, data or tuning (.toml)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe's values")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> None:
    """Print the recipe; for a training recipe also parameters, FLOPs per token and tokens."""
    tree, totals = read_toml(args.recipe), dict[str, Any]()
    if "sources" in tree:
        from puna.data.recipe import DataRecipe

        rows = describe(load(DataRecipe, args.recipe, args.overrides))
    elif "stage" in tree:
        from puna.tune.recipe import load_stage

        rows = describe(load_stage(args.recipe, args.overrides))
    else:
        from puna.train.recipe import Recipe

        loaded = load(Recipe, args.recipe, args.overrides)
        rows, value = describe(loaded), loaded.value
        seq_len = value.train.seq_len
        totals = {
            "parameters": value.model.num_parameters(),
            "tokens": value.total_steps * value.tokens_per_step,
            "steps": value.total_steps,
            "tokens_per_step": value.tokens_per_step,
            "flops_per_token": {
                "full": value.model.flops_per_token(seq_len, attention="full"),
                "causal": value.model.flops_per_token(seq_len, attention="causal"),
            },
        }
    if args.json:
        fields = [dict(zip(("key", "value", "origin", "meaning"), row, strict=True)) for row in rows]
        print_json({"recipe": str(args.recipe), "fields": fields, **totals})
        return
    show_table(("key", "value", "from", "meaning"), rows)
    if totals:
        flops = totals["flops_per_token"]
        print()
        print(f"parameters       {totals['parameters']:,}")
        print(f"tokens           {totals['tokens']:,} ({format_count(totals['tokens'])})")
        print(f"steps            {totals['steps']:,} of {totals['tokens_per_step']:,} tokens")
        print(f"FLOPs per token  {flops['full']:.4g} (full attention), {flops['causal']:.4g} (causal)")
