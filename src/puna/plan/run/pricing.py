"""Costs of a fleet for a time: rent, ownership, energy, and carbon where its intensity is given.

Ownership is given in two ways, because both are quoted: the accelerators alone, and all-in with hosts, network,
storage and building. Prices move; every default carries its source and date, and `Prices` overrides it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field

from puna.core.errors import PunaError
from puna.core.recipe import Config
from puna.plan.equations.hardware import Accelerator, AcceleratorGroup, Fleet

HOURS_PER_YEAR = 8766.0


class Prices(Config):
    """Prices and power. A field that is none uses the accelerator's figure in the catalogue."""

    rent_usd_per_hour: float | None = Field(None, gt=0, description="rent of one accelerator; none: the catalogue's")
    accelerator_usd: float | None = Field(None, gt=0, description="price of one accelerator; none: the catalogue's")
    all_in_usd: float | None = Field(
        None, gt=0, description="one accelerator with its share of the rest; none: see all_in_factor"
    )
    all_in_factor: float = Field(
        1.8,
        ge=1,
        description="all-in over accelerator where no all-in price is known: H100's 47-52k over 25-30k USD (catalogue)",
    )
    lifetime_years: float = Field(
        5.0,
        gt=0,
        description="years of depreciation: Amazon 5 (10-K, February 2025), Meta 5 since end of 2022 (10-K 2022)",
    )
    residual_share: float = Field(0.1, ge=0, lt=1, description="residual value, share of the price (assumed, 2026-11)")
    electricity_usd_per_kwh: float = Field(
        0.08, ge=0, description="industrial average of the United States: 8.06 cents in 2023 (EIA, March 2024)"
    )
    pue: float = Field(
        1.12,
        ge=1,
        description="power of the building over that of its computers: modern hyperscale 1.10-1.15, average 1.2-1.3, "
        "rented halls 1.5-1.8 (read 2026-08)",
    )
    accelerator_load: float = Field(0.9, gt=0, le=1, description="power in training over TDP (assumed; with host_load)")
    host_load: float = Field(
        0.6,
        ge=0,
        le=1,
        description="power of the rest of the host over its maximum: with 0.9 a DGX H100 draws 7.8 of 10.2 kW, where "
        "6.5-8.5 are called typical (supercluster.blog, read 2026-11)",
    )
    host_factor: float = Field(
        1.82,
        ge=1,
        description="host's maximum over its accelerators' TDP where unknown: DGX H100, 10.2 kW for 8 x 700 W",
    )
    carbon_kg_per_kwh: float | None = Field(
        None,
        ge=0,
        description="CO2 of a kWh; none: not printed. Llama 3.1's card implies 0.41 (11,390 t for 27.5 GWh, 2024-07)",
    )


@dataclass(frozen=True)
class Range:
    """An amount of money with a range, USD."""

    low: float
    middle: float
    high: float

    def times(self, factor: float) -> "Range":
        return Range(self.low * factor, self.middle * factor, self.high * factor)

    def plus(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.middle + other.middle, self.high + other.high)


@dataclass(frozen=True)
class Bill:
    """Costs of a fleet for some days. Ranges are None where a price is unknown; `notes` say which.

    it_megawatts: computers at work; max_it_megawatts: at their hosts' maximum; facility_megawatts: at work, with
    cooling and losses (PUE). energy_mwh: facility; tdp_mwh: accelerators at TDP alone, as model cards count. own_*:
    depreciation for these days and electricity. capex_*: purchase.
    """

    accelerator_hours: float
    it_megawatts: float
    max_it_megawatts: float
    facility_megawatts: float
    energy_mwh: float
    tdp_mwh: float
    electricity_usd: float
    carbon_tonnes: float | None
    rent: Range | None
    own_accelerators: Range | None
    own_all_in: Range | None
    capex_accelerators: Range | None
    capex_all_in: Range | None
    notes: tuple[str, ...]


def host_watts(accelerator: Accelerator, prices: Prices | None = None) -> float:
    """Maximum power of a host per accelerator, W."""
    return accelerator.node_watts_per_accelerator or accelerator.watts * (prices or Prices()).host_factor


def working_watts(accelerator: Accelerator, prices: Prices | None = None) -> float:
    """Power of one accelerator and its share of the host while training, W, before cooling."""
    money = prices or Prices()
    rest = max(0.0, host_watts(accelerator, money) - accelerator.watts)
    return accelerator.watts * money.accelerator_load + rest * money.host_load


def rent_per_hour(accelerator: Accelerator, prices: Prices | None = None) -> Range | None:
    """Rent of one accelerator, USD an hour, or None where unknown."""
    money = prices or Prices()
    if money.rent_usd_per_hour is not None:
        return Range(*(money.rent_usd_per_hour,) * 3)
    return Range(*accelerator.rent_usd_per_hour) if accelerator.rent_usd_per_hour else None


def price(accelerator: Accelerator, prices: Prices | None = None) -> Range | None:
    """Price of one accelerator alone, USD, or None where unknown."""
    money = prices or Prices()
    if money.accelerator_usd is not None:
        return Range(*(money.accelerator_usd,) * 3)
    return _middle(accelerator.price_usd) if accelerator.price_usd else None


def all_in_price(accelerator: Accelerator, prices: Prices | None = None) -> Range | None:
    """Price of one accelerator with its share of host, network, storage and building, USD.

    Its own where known, else `all_in_factor` times the price alone; None where neither is known.
    """
    money = prices or Prices()
    if money.all_in_usd is not None:
        return Range(*(money.all_in_usd,) * 3)
    if accelerator.all_in_usd and money.accelerator_usd is None:
        return _middle(accelerator.all_in_usd)
    alone = price(accelerator, money)
    return alone.times(money.all_in_factor) if alone else None


def own_per_hour(accelerator: Accelerator, prices: Prices | None = None, *, all_in: bool = True) -> Range | None:
    """Cost of owning one accelerator, USD per hour at work: depreciation and electricity; or None."""
    money = prices or Prices()
    capex = all_in_price(accelerator, money) if all_in else price(accelerator, money)
    if capex is None:
        return None
    written_off = capex.times((1 - money.residual_share) / (money.lifetime_years * HOURS_PER_YEAR))
    power = working_watts(accelerator, money) / 1e3 * money.pue * money.electricity_usd_per_kwh
    return written_off.plus(Range(power, power, power))


def bill(fleet: Fleet, days: float, prices: Prices | None = None) -> Bill:
    """Costs of `fleet` for `days` at work. Raises PunaError for a negative number of days."""
    if not days >= 0:
        raise PunaError(f"{days} days cannot be paid for.", "Give 0 or more.")
    money, hours = prices or Prices(), days * 24
    work = sum(group.count * working_watts(group.accelerator, money) for group in fleet.groups)
    most = sum(group.count * host_watts(group.accelerator, money) for group in fleet.groups)
    tdp = sum(group.count * group.accelerator.watts for group in fleet.groups)
    energy_kwh = work / 1e3 * hours * money.pue
    carbon = None if money.carbon_kg_per_kwh is None else energy_kwh * money.carbon_kg_per_kwh / 1e3

    def total(each: Callable[[Accelerator], Range | None], times: float = 1.0) -> Range | None:
        """Sum of `each` accelerator's amount; None when one kind's is unknown."""
        result = Range(0.0, 0.0, 0.0)
        for group in fleet.groups:
            amount = each(group.accelerator)
            if amount is None:
                return None
            result = result.plus(amount.times(group.count * times))
        return result

    return Bill(
        accelerator_hours=fleet.count * hours,
        it_megawatts=work / 1e6,
        max_it_megawatts=most / 1e6,
        facility_megawatts=work / 1e6 * money.pue,
        energy_mwh=energy_kwh / 1e3,
        tdp_mwh=tdp * hours / 1e6,
        electricity_usd=energy_kwh * money.electricity_usd_per_kwh,
        carbon_tonnes=carbon,
        rent=total(lambda one: rent_per_hour(one, money), hours),
        own_accelerators=total(lambda one: own_per_hour(one, money, all_in=False), hours),
        own_all_in=total(lambda one: own_per_hour(one, money), hours),
        capex_accelerators=total(lambda one: price(one, money)),
        capex_all_in=total(lambda one: all_in_price(one, money)),
        notes=tuple(note for group in fleet.groups for note in _notes(group, money)),
    )


def accelerators_for(budget_usd: float, days: float, accelerator: Accelerator, prices: Prices | None = None) -> int:
    """Accelerators that a budget rents for `days`. Raises PunaError where no rent is known, or for none."""
    rent = rent_per_hour(accelerator, prices)
    if rent is None:
        raise PunaError(
            f"No rent is known for {accelerator.name}.", "Give one with --price, USD per accelerator and hour."
        )
    if not (days > 0 and budget_usd > 0):
        raise PunaError(f"{budget_usd} USD for {days} days rent nothing.", "Give more than 0 of both.")
    count = int(budget_usd / (rent.middle * days * 24) * (1 + 1e-12))
    if count < 1:
        raise PunaError(
            f"{budget_usd:,.0f} USD rent no {accelerator.name} for {days:g} days at {rent.middle:.2f} an hour.",
            "Raise the budget or take fewer days.",
        )
    return count


def _notes(group: AcceleratorGroup, money: Prices) -> list[str]:
    accelerator, notes = group.accelerator, []
    if rent_per_hour(accelerator, money) is None:
        notes.append(f"no rent is known for {accelerator.name}")
    if price(accelerator, money) is None and all_in_price(accelerator, money) is None:
        notes.append(f"no price is known for {accelerator.name}")
    elif money.all_in_usd is None and (accelerator.all_in_usd is None or money.accelerator_usd is not None):
        notes.append(f"all-in price of {accelerator.name} estimated as {money.all_in_factor:g} x the accelerator's")
    if accelerator.node_watts_per_accelerator is None:
        notes.append(f"host power of {accelerator.name} estimated as {money.host_factor:g} x TDP")
    return notes


def _middle(prices: tuple[float, float]) -> Range:
    low, high = prices
    return Range(low, (low + high) / 2, high)
