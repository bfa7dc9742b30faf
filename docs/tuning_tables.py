"""Tables of tuning, for the benchmarks page."""

from typing import Any

import plan_tables


def rollouts(results: dict[str, Any]) -> str:
    """Tokens per second in reinforcement, compared with TRL, and the parts of a step's time."""
    rows = [
        [
            name,
            *(_spread(results[name][key]) for key in ("rollout_tokens_per_second", "step_tokens_per_second")),
        ]
        for name in ("puna", "trl")
    ]
    ratio = results["ratio"]
    rows.append(["ratio", *(f"{ratio[f'{key}_tokens_per_second']['median']:.2f}" for key in ("rollout", "step"))])
    shares = {name: results["puna"][f"share_{name}"]["median"] for name in ("generation", "reward", "learning", "rest")}
    parts = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return (
        plan_tables.markdown(["contender", "generated tokens/s in rollouts", "generated tokens/s of full steps"], rows)
        + f"\n\nPuna's step: {parts}. Learning is forward, backward and the optimizer's update."
    )


def demo(results: dict[str, Any]) -> str:
    """Three abilities after each stage, with intervals."""
    table = results["table"]
    rows = []
    for ability in next(iter(table.values())):
        for stage, abilities in table.items():
            found = abilities[ability]
            shares = {key: value for key, value in found.items() if isinstance(value, dict)}
            seconds = results["seconds"].get(stage)
            spent = f"{sum(seconds) / len(seconds):.0f} s" if seconds else ""
            rows.append([ability, stage, *map(_share, shares.values()), spent])
            heads = list(shares)
    return plan_tables.markdown(["ability", "model", *heads, "time of the stage"], rows)


def _spread(value: dict[str, float]) -> str:
    return f"{value['median']:,.0f} ({value['min']:,.0f} to {value['max']:,.0f})"


def _share(value: dict[str, Any]) -> str:
    low, high = value["interval"]
    return f"{value['value']:.2f} ({low:.2f} to {high:.2f})"
