"""Fit the planner's constants to published runs and write its constants.toml.

The written file is src/puna/plan/constants.toml; the result is reproducible.

    python bench/plan_fit.py RUNS.yaml [--processes 2]

Only rows marked `split: dev` are used. Every constant is written with its range over refits that leave one family of
runs out, and the widths of the 80 % intervals come from the predictions of those refits for the family that was left
out. Takes two to five minutes; needs scipy.
"""

import argparse
from pathlib import Path

from puna.core.console import say
from puna.plan.equations.constants import CONSTANTS
from puna.plan.evidence.fit import cross_validate, fit, write_constants
from puna.plan.evidence.published_runs import read_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="published runs")
    parser.add_argument("--processes", type=int, default=2, help="parallel refits")
    args = parser.parse_args()
    rows = [row for row in read_runs(args.runs) if row.split == "dev" and row.step_seconds is not None]
    values = fit(rows)
    write_constants(CONSTANTS, cross_validate(rows, processes=args.processes), values, args.runs.name)
    say(f"written: {CONSTANTS} ({len(values)} constants from {len(rows)} rows)")


if __name__ == "__main__":
    main()
