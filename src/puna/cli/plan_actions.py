"""The other actions of `puna plan`: fleet, goodput, calibrate, predict, validate."""

import argparse
import os
from pathlib import Path

from puna.core.errors import PunaError


def fleet(args: argparse.Namespace) -> None:
    """Print a fleet, from its file or as 8xh100+64xa100; with --days, simulate that many days of jobs."""
    from puna.core.console import console, print_json
    from puna.plan.equations.hardware import parse_fleet
    from puna.plan.output.json_output import plain
    from puna.plan.output.terminal import fleet_text, year_text
    from puna.plan.run.fleet import fleet_brief, read_fleet
    from puna.plan.run.simulate import simulate_fleet
    from puna.plan.run.terms import read_terms

    if len(args.words) < 2:
        raise PunaError("No fleet was given.", "Use a file such as fleets/meta-2024.toml, or 350000xh100.")
    name, *overrides = args.words[1:]
    if name.endswith(".toml") and not name[0].isdigit():  # 8xmy-gpu.toml is a fleet of one kind
        priced = [] if args.price is None else [f"prices.rent_usd_per_hour={args.price}"]
        file = read_fleet(Path(name), [*overrides, *priced])
        found, reliability = fleet_brief(file), file.reliability
    else:
        terms, rest = read_terms(overrides, args.price)
        reliability = terms.reliability
        if rest:
            raise PunaError(
                f"'{rest[0]}' is not an option of puna plan fleet.", "Overrides begin with prices. or reliability."
            )
        found = fleet_brief(parse_fleet(name), prices=terms.prices, reliability=reliability)
    year = None
    if args.days is not None:
        if not (args.days >= 1 and args.days == int(args.days)):
            raise PunaError(f"--days {args.days:g} cannot be simulated.", "Use whole days, such as 365.")
        year = simulate_fleet(found.count, days=int(args.days), reliability=reliability)
    if args.json:
        print_json(plain(found) | ({"simulated": plain(year)} if year else {}))
    else:
        console(stderr=False).print(fleet_text(found) + (f"\n\n{year_text(year)}" if year else ""))


def goodput(args: argparse.Namespace) -> None:
    """Print one job's failures and what to do about them."""
    from puna.core.console import console, print_json
    from puna.core.units import parse_count
    from puna.plan.output.json_output import plain
    from puna.plan.output.terminal import goodput_text
    from puna.plan.run import goodput as failures
    from puna.plan.run.reliability import Reliability

    if args.gpus is None or args.days is None:
        raise PunaError("--gpus and --days were not given.", "Try: puna plan goodput --gpus 16384 --days 54.")
    if args.rate is not None and not args.rate > 0:
        raise PunaError(
            f"--rate {args.rate:g} is not a failure rate.", "Use failures per node and day, such as 3.8e-3."
        )
    rules = Reliability() if args.rate is None else Reliability(failures_per_node_day=args.rate)
    parameters = parse_count(args.parameters) if args.parameters else None
    found = failures.goodput(parse_count(args.gpus), args.days, parameters=parameters, reliability=rules)
    if args.json:
        print_json(plain(found))
    else:
        console(stderr=False).print(goodput_text(found))


def calibrate(args: argparse.Namespace) -> None:
    """Measure this device; later plans for this machine use the result."""
    from puna.core.console import print_json, say, show_table
    from puna.plan.evidence.local_device import Calibration, calibration_path
    from puna.train.measure.calibrate import calibrate as measure

    found = measure(quick=args.quick)
    if args.json:
        print_json(found.model_dump(exclude_none=True))
        return
    measured = [(name, getattr(found, name)) for name in Calibration.model_fields]
    show_table(
        ["measured", "", "meaning"],
        [
            [name, _shown(value), Calibration.model_fields[name].description or ""]
            for name, value in measured
            if value not in (None, ())
        ],
    )
    say(f"Stored in {calibration_path()}; plans for this machine use it.")


def predict(args: argparse.Namespace) -> None:
    """Print a prediction for every row of a file of published runs."""
    from puna.core.console import print_json, show_table
    from puna.plan.evidence.validate import predict_rows
    from puna.plan.output.json_output import plain

    if args.runs is None:
        raise PunaError("No runs were given.", "Give a file of published runs with --runs.")
    rows = predict_rows(args.runs)
    if args.json:
        print_json(plain(rows))
        return
    columns = ["id", "model", "gpu", "gpus", "stack", "step_s", "80 % interval", "MFU", "GiB", "measured_s", "error"]
    show_table(
        columns,
        [
            [
                row["id"],
                row["model"],
                row["gpu"],
                row["gpus"],
                row["stack"],
                f"{row['step_s']:.3g}",
                f"{row['step_s_low']:.3g} - {row['step_s_high']:.3g}",
                f"{row['mfu_causal_pct']:.1f} %",
                f"{row['mem_gib']:.1f}",
                f"{row['measured_step_s']:.3g}" if "measured_step_s" in row else "",
                f"{row['error_pct']:+.1f} %" if "error_pct" in row else "",
            ]
            for row in rows
        ],
    )


def validate(args: argparse.Namespace) -> None:
    """Compare predictions with measurements."""
    from puna.core.console import console, print_json, say
    from puna.plan.evidence.validate import validate as judge
    from puna.plan.output import accuracy

    found = judge(args.runs or _known_runs())
    if args.json:
        print_json(accuracy.accuracy_tree(found))
    else:
        console(stderr=False).print(accuracy.accuracy_text(found))
    if args.html:
        say(f"Wrote {accuracy.write_accuracy_html(found, args.html)}.")


def _known_runs() -> Path:
    """Return the file of published runs in the shared test data. Raises PunaError where there is none."""
    shared = os.environ.get("PUNA_TEST_DATA")
    path = Path(shared) / ".." / "planner-data" / "published_runs_dev.yaml" if shared else None
    if path is None or not path.is_file():
        raise PunaError("No runs were given.", "Give a file of published runs with --runs, or set PUNA_TEST_DATA.")
    return path.resolve()


def _shown(value: object) -> str:
    """Format a measurement for a table: numbers in significant digits, records field by field."""
    from pydantic import BaseModel

    if isinstance(value, tuple):
        return "\n".join(_shown(one) for one in value)
    if isinstance(value, BaseModel):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
