"""Prices and failure rates of a run, with overrides from the command line."""

from collections.abc import Sequence

from pydantic import Field

from puna.core.errors import PunaError
from puna.core.recipe import Config, load
from puna.plan.run.pricing import Prices
from puna.plan.run.reliability import Reliability


class Terms(Config):
    """Prices and failure rates of a run."""

    prices: Prices = Field(default_factory=Prices, description="rent, purchase, electricity")
    reliability: Reliability = Field(default_factory=Reliability, description="failures, repairs, checkpoints")


def read_terms(overrides: Sequence[str], rent: float | None = None) -> tuple[Terms, list[str]]:
    """Terms with overrides such as "prices.pue=1.3", and the overrides that belong elsewhere.

    rent: USD per accelerator and hour. Raises PunaError for a rent that is not positive and for unknown keys.
    """
    own = [text for text in overrides if text.startswith(("prices.", "reliability."))]
    rest = [text for text in overrides if text not in own]
    if rent is not None:
        if not rent > 0:
            raise PunaError(f"--price {rent:g} is not a rent.", "Give USD per accelerator and hour, such as 2.95.")
        own.append(f"prices.rent_usd_per_hour={float(rent)}")
    return load(Terms, None, own).value, rest
