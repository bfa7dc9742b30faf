"""Summarize a fleet: H100 equivalents, price, power and failures.

"H100 equivalents" has no agreed definition, so there are two: by datasheet (dense bf16 peaks) and by what the best
measured matrix product reaches. They differ by half for some accelerators. Plain
data only: `puna plan fleet` prints it. Fleets are TOML files such as fleets/meta-2024.toml.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from puna.core.recipe import Config, load
from puna.plan.equations.hardware import Accelerator, AcceleratorGroup, Fleet, find_accelerator
from puna.plan.run.goodput import Goodput, goodput
from puna.plan.run.pricing import Bill, Prices, Range, all_in_price, bill, host_watts, price
from puna.plan.run.reliability import Reliability

# A modern hyperscale hall to an average one (read 2026-08).
PUE_RANGE = (1.10, 1.25)


class FleetGroup(Config):
    """A number of one accelerator in a fleet file."""

    accelerator: str = Field(description="its name or alias, or the path of a TOML file that describes it")
    count: int = Field(gt=0, description="how many")
    note: str = Field("", description="source of the number, or that it is assumed")


class FleetFile(Config):
    """A fleet file."""

    name: str = Field("", description="whose fleet, and when")
    claimed_h100_equivalents: float | None = Field(None, gt=0, description="H100 equivalents that its owner claims")
    sources: tuple[str, ...] = Field((), description="sources of the numbers")
    groups: tuple[FleetGroup, ...] = Field(min_length=1, description="the accelerators, kind by kind")
    prices: Prices = Field(Prices(), description="overrides of the default prices")
    reliability: Reliability = Field(Reliability(), description="overrides of the default failure rates")

    def fleet(self) -> Fleet:
        """The fleet. Raises PunaError for an accelerator that the catalogue does not have."""
        return Fleet(
            groups=tuple(
                AcceleratorGroup(count=one.count, accelerator=find_accelerator(one.accelerator)) for one in self.groups
            )
        )


@dataclass(frozen=True)
class GroupBrief:
    """One kind of accelerator in the fleet.

    achieved_measured: False where the ratio of peaks is used, as there is no measurement. Ranges are in USD, None where
    no price is known.
    """

    accelerator: Accelerator
    count: int
    note: str
    peak_equivalents: float
    achieved_equivalents: float
    achieved_measured: bool
    capex_accelerators: Range | None
    capex_all_in: Range | None
    max_megawatts: float


@dataclass(frozen=True)
class FleetBrief:
    """The fleet as a whole.

    year: the bill of a year at work. max_megawatts: computers at their maximum; facility: that times PUE_RANGE.
    one_job: goodput and advice if the whole fleet ran one job.
    """

    name: str
    sources: tuple[str, ...]
    claimed_equivalents: float | None
    groups: tuple[GroupBrief, ...]
    count: int
    nodes: int
    peak_equivalents: float
    achieved_equivalents: float
    max_megawatts: float
    facility_megawatts_low: float
    facility_megawatts_high: float
    year: Bill
    one_job: Goodput
    sentences: tuple[str, ...]


def read_fleet(path: Path, overrides: Sequence[str] = ()) -> FleetFile:
    """Read a fleet's TOML file, with overrides such as "prices.pue=1.3". Raises PunaError for invalid values."""
    return load(FleetFile, path, overrides).value


def peak_equivalent(accelerator: Accelerator) -> float:
    """H100 SXM equivalents of one accelerator by dense bf16 peak."""
    return accelerator.bf16_tflops / find_accelerator("h100-sxm").bf16_tflops


def achieved_equivalent(accelerator: Accelerator) -> tuple[float, bool]:
    """H100 SXM equivalents by the best measured bf16 product, and whether it was measured.

    Without a measurement it is the ratio of peaks.
    """
    reference = find_accelerator("h100-sxm").matmul_tflops
    if accelerator.matmul_tflops is None or reference is None:
        return peak_equivalent(accelerator), False
    return accelerator.matmul_tflops / reference, True


def fleet_brief(
    source: Fleet | FleetFile, *, prices: Prices | None = None, reliability: Reliability | None = None
) -> FleetBrief:
    """Summarize a fleet from its file or from `parse_fleet`.

    prices, reliability: override the file's. Raises PunaError for an unknown accelerator.
    """
    file = source if isinstance(source, FleetFile) else None
    fleet = source.fleet() if isinstance(source, FleetFile) else source
    money = prices or (file.prices if file else Prices())
    rules = reliability or (file.reliability if file else Reliability())
    notes = [group.note for group in file.groups] if file else [""] * len(fleet.groups)
    groups = tuple(_group(group, note, money) for group, note in zip(fleet.groups, notes, strict=True))
    year = bill(fleet, 365, money)
    one_job = goodput(fleet.count, 365, reliability=rules)
    peak = sum(group.peak_equivalents for group in groups)
    achieved = sum(group.achieved_equivalents for group in groups)
    claimed = file.claimed_h100_equivalents if file else None
    return FleetBrief(
        name=(file.name if file else "") or str(fleet),
        sources=file.sources if file else (),
        claimed_equivalents=claimed,
        groups=groups,
        count=fleet.count,
        nodes=fleet.nodes,
        peak_equivalents=peak,
        achieved_equivalents=achieved,
        max_megawatts=year.max_it_megawatts,
        facility_megawatts_low=year.max_it_megawatts * PUE_RANGE[0],
        facility_megawatts_high=year.max_it_megawatts * PUE_RANGE[1],
        year=year,
        one_job=one_job,
        sentences=_sentences(groups, peak, achieved, claimed, year, one_job),
    )


def _group(group: AcceleratorGroup, note: str, money: Prices) -> GroupBrief:
    accelerator, count = group.accelerator, group.count
    achieved, measured = achieved_equivalent(accelerator)
    alone, all_in = price(accelerator, money), all_in_price(accelerator, money)
    return GroupBrief(
        accelerator=accelerator,
        count=count,
        note=note,
        peak_equivalents=count * peak_equivalent(accelerator),
        achieved_equivalents=count * achieved,
        achieved_measured=measured,
        capex_accelerators=alone.times(count) if alone else None,
        capex_all_in=all_in.times(count) if all_in else None,
        max_megawatts=count * host_watts(accelerator, money) / 1e6,
    )


def _sentences(
    groups: tuple[GroupBrief, ...], peak: float, achieved: float, claimed: float | None, year: Bill, one_job: Goodput
) -> tuple[str, ...]:
    """The summary in sentences: money per kind, equivalents, power, failures."""
    told = []
    for group in groups:
        alone, all_in = group.capex_accelerators, group.capex_all_in
        name = f"{group.count:,} {group.accelerator.name}"
        if alone and all_in:
            told.append(f"{name}: {spoken_usd(alone)} for the accelerators alone, {spoken_usd(all_in)} all-in.")
        elif all_in:
            told.append(f"{name}: {spoken_usd(all_in)} all-in.")
        else:
            told.append(f"{name}: no price is known.")
    said = f"; its owner says {claimed:,.0f}" if claimed else ""
    told.append(f"H100 equivalents: {peak:,.0f} by datasheet, {achieved:,.0f} by measured matrix products{said}.")
    low, high = (year.max_it_megawatts * pue for pue in PUE_RANGE)
    told.append(
        f"Power: {year.max_it_megawatts:,.3g} MW of computers at most, {low:,.3g}-{high:,.3g} MW with the building "
        f"(PUE {PUE_RANGE[0]:.2f}-{PUE_RANGE[1]:.2f})."
    )
    told.append(f"{one_job.failures_per_day:.3g} failures a day. {one_job.advice}")
    return tuple(told)


def spoken_usd(amount: Range) -> str:
    """A range of money in words: "$8.75-10.5 billion"."""
    for size, word in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand"), (1.0, "")):
        if amount.high >= size:
            # Round half up: 16.45 is 16.5.
            low, high = (f"{bound / size * (1 + 1e-9):.3g}" for bound in (amount.low, amount.high))
            return f"${low}{word}" if low == high else f"${low}-{high}{word}"
    return "$0"
