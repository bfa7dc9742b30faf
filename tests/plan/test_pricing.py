"""Rent, ownership and energy, compared with figures in model cards and in the news."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.plan.equations.hardware import catalogue, find_accelerator, parse_fleet
from puna.plan.run.pricing import (
    Prices,
    accelerators_for,
    all_in_price,
    bill,
    host_watts,
    own_per_hour,
    price,
    rent_per_hour,
    working_watts,
)

H100 = find_accelerator("h100")


def test_renting_llama_3_1_405b() -> None:
    """30.84M H100 hours (its model card) at the median of 2.95 USD, May 2026: 91 million."""
    hours = 30.84e6
    answer = bill(parse_fleet("16384xh100"), hours / 16_384 / 24)
    assert answer.accelerator_hours == pytest.approx(hours)
    assert answer.rent is not None
    assert answer.rent.middle == pytest.approx(91e6, rel=0.01)
    assert bill(parse_fleet("16384xh100"), 1, Prices(rent_usd_per_hour=2.0)).rent.low == 16_384 * 24 * 2.0  # type: ignore[union-attr]
    # The card counts only 700 W for each hour: 21.6 GWh.
    assert answer.tdp_mwh == pytest.approx(21.6e3, rel=0.01)


def test_buying_350_000_h100() -> None:
    answer = bill(parse_fleet("350000xh100"), 365)
    assert answer.capex_accelerators is not None
    assert (answer.capex_accelerators.low, answer.capex_accelerators.high) == (8.75e9, 10.5e9)
    assert answer.capex_all_in is not None
    assert (answer.capex_all_in.low, answer.capex_all_in.high) == pytest.approx((16.45e9, 18.2e9))
    assert answer.max_it_megawatts == pytest.approx(446, abs=1)  # 350,000 / 8 x 10.2 kW
    assert answer.notes == ()


def test_power_of_a_host_at_work_is_in_the_typical_range() -> None:
    assert 6.5e3 < 8 * working_watts(H100) < 8.5e3 < 8 * host_watts(H100) == 10.2e3


def test_energy_goes_through_the_building() -> None:
    answer = bill(parse_fleet("8xh100"), 10, Prices(pue=1.5, carbon_kg_per_kwh=0.4))
    assert answer.energy_mwh == pytest.approx(8 * working_watts(H100) * 240 * 1.5 / 1e6)
    assert answer.facility_megawatts == pytest.approx(1.5 * answer.it_megawatts)
    assert answer.carbon_tonnes == pytest.approx(answer.energy_mwh * 0.4)
    assert answer.electricity_usd == pytest.approx(answer.energy_mwh * 80)
    assert bill(parse_fleet("8xh100"), 10).carbon_tonnes is None


def test_owning_for_a_life_costs_the_price_less_what_is_left_and_the_power() -> None:
    prices = Prices(residual_share=0.2, lifetime_years=4)
    answer = bill(parse_fleet("8xh100"), 4 * 365.25, prices)
    assert answer.own_all_in is not None
    assert answer.own_all_in.middle == pytest.approx(8 * 49_500 * 0.8 + answer.electricity_usd)
    assert answer.own_accelerators is not None
    assert answer.own_accelerators.middle == pytest.approx(8 * 27_500 * 0.8 + answer.electricity_usd)


def test_what_is_not_known_is_said() -> None:
    answer = bill(parse_fleet("8xh100+8xh100-pcie"), 1)
    assert answer.rent is None
    assert answer.capex_all_in is None
    assert "no rent is known for h100-pcie" in answer.notes
    assert "no price is known for h100-pcie" in answer.notes
    a100 = find_accelerator("a100")
    assert all_in_price(a100) == price(a100).times(1.8)  # type: ignore[union-attr]
    assert any("all-in price of a100-80g estimated" in note for note in bill(parse_fleet("8xa100"), 1).notes)


def test_prices_override_the_catalogue() -> None:
    mine = Prices(accelerator_usd=20_000, all_in_factor=2)
    assert all_in_price(H100, mine).middle == 40_000  # type: ignore[union-attr]
    assert all_in_price(H100, Prices(all_in_usd=1.0)).high == 1.0  # type: ignore[union-attr]


@given(st.sampled_from(sorted(catalogue())), st.integers(1, 10**6), st.floats(0, 4000))
def test_bills_add_up(name: str, count: int, days: float) -> None:
    one, both = bill(parse_fleet(f"{count}x{name}"), days), bill(parse_fleet(f"{count}x{name}+{count}x{name}"), days)
    assert both.energy_mwh == pytest.approx(2 * one.energy_mwh)
    assert one.it_megawatts <= one.max_it_megawatts
    for name_of in ("rent", "own_accelerators", "own_all_in", "capex_accelerators", "capex_all_in"):
        single, double = getattr(one, name_of), getattr(both, name_of)
        assert (single is None) == (double is None)
        if single is not None:
            assert 0 <= single.low <= single.middle <= single.high
            assert double.middle == pytest.approx(2 * single.middle)


def test_a_budget_rents_so_many() -> None:
    prices = Prices(rent_usd_per_hour=2.95)
    count = accelerators_for(2e6, 30, H100, prices)
    assert count == 941
    rent = bill(parse_fleet(f"{count}xh100"), 30, prices).rent
    assert rent is not None
    assert rent.middle <= 2e6 < rent.middle * (count + 1) / count
    with pytest.raises(PunaError, match="rent no h100-sxm for 30 days"):
        accelerators_for(100, 30, H100)
    with pytest.raises(PunaError, match="No rent is known for h100-pcie"):
        accelerators_for(1e6, 30, find_accelerator("h100-pcie"))
    with pytest.raises(PunaError):
        accelerators_for(1e6, 0, H100)


def test_owning_is_cheaper_than_renting_while_it_is_used() -> None:
    own, rent = own_per_hour(H100), rent_per_hour(H100)
    assert own is not None
    assert rent is not None
    assert own.high < rent.low


def test_negative_days_are_a_sentence() -> None:
    with pytest.raises(PunaError, match="-1 days cannot be paid for"):
        bill(parse_fleet("8xh100"), -1)
