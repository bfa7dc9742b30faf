"""Fleets: the 350,000 H100 of January 2024 as reported, equivalents by two rules, invalid files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.plan.equations.hardware import catalogue, find_accelerator, parse_fleet
from puna.plan.run.fleet import achieved_equivalent, fleet_brief, peak_equivalent, read_fleet, spoken_usd
from puna.plan.run.pricing import Prices, Range

META = Path(__file__).parents[2] / "fleets" / "meta-2024.toml"


def test_350_000_h100_cost_what_the_news_said_and_all_in_beside_it() -> None:
    brief = fleet_brief(parse_fleet("350000xh100"))
    first = brief.sentences[0]
    assert first == "350,000 h100-sxm: $8.75-10.5 billion for the accelerators alone, $16.5-18.2 billion all-in."
    assert brief.max_megawatts == pytest.approx(446, abs=1)
    assert (brief.facility_megawatts_low, brief.facility_megawatts_high) == pytest.approx((491, 558), abs=1)
    assert brief.one_job.failures_per_day == pytest.approx(166, abs=1)
    assert "interrupted every 9 minutes: do not run it as one synchronous job" in brief.sentences[-1]
    assert brief.peak_equivalents == brief.achieved_equivalents == 350_000


@pytest.mark.parametrize(
    ("name", "peak", "achieved"),
    [
        ("a100", 0.315, 0.341),
        ("h200", 1.0, 1.0),
        ("mi300x", 1.32, 0.841),
        ("mi325x", 1.32, 0.988),
        ("b200", 2.27, 2.20),
        ("gb200", 2.48, 2.29),
        ("mi355x", 2.53, 1.97),
    ],
)
def test_equivalents_by_two_rules(name: str, peak: float, achieved: float) -> None:
    accelerator = find_accelerator(name)
    assert peak_equivalent(accelerator) == pytest.approx(peak, rel=0.005)
    assert achieved_equivalent(accelerator) == (pytest.approx(achieved, rel=0.005), True)


def test_without_a_measurement_the_peaks_stand() -> None:
    h800 = find_accelerator("h800")
    assert achieved_equivalent(h800) == (1.0, False)


def test_the_600_000_of_january_2024() -> None:
    brief = fleet_brief(read_fleet(META))
    assert brief.claimed_equivalents == 600_000
    assert brief.peak_equivalents == pytest.approx(600_000, rel=0.01)
    assert brief.achieved_equivalents == pytest.approx(350_000 + 170_000 * 0.841 + 80_000 * 0.341, rel=0.01)
    assert [group.note.partition(":")[0] for group in brief.groups] == ["announced", "assumed", "assumed"]
    assert "600,000" in " ".join(brief.sentences)
    assert brief.name == "Meta, end of 2024"


def test_a_file_can_be_overridden(tmp_path: Path) -> None:
    file = read_fleet(META, ["prices.pue=1.3", "reliability.failures_per_node_day=6.5e-3"])
    brief = fleet_brief(file)
    assert brief.year.facility_megawatts == pytest.approx(1.3 * brief.year.it_megawatts)
    assert brief.one_job.failures_per_day == pytest.approx(600_000 / 8 * 6.5e-3)
    assert fleet_brief(file, prices=Prices(pue=2.0)).year.facility_megawatts > brief.year.facility_megawatts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'groups' is missing"),
        ('[[groups]]\naccelerator = "h100"\ncount = 0', "count"),
        ('[[groups]]\naccelerator = "h100"\ncounts = 8', "Did you mean 'count'"),
        ('[[groups]]\naccelerator = "h101x"\ncount = 8', "not in the catalogue"),
    ],
)
def test_a_file_that_does_not_fit_is_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(PunaError, match=said):
        fleet_brief(read_fleet(file))


@given(st.lists(st.tuples(st.sampled_from(sorted(catalogue())), st.integers(1, 10**5)), min_size=1, max_size=4))
def test_parts_sum_to_the_whole(groups: list[tuple[str, int]]) -> None:
    brief = fleet_brief(parse_fleet("+".join(f"{count}x{name}" for name, count in groups)))
    assert brief.count == sum(group.count for group in brief.groups)
    assert brief.peak_equivalents == pytest.approx(sum(group.peak_equivalents for group in brief.groups))
    assert brief.max_megawatts == pytest.approx(sum(group.max_megawatts for group in brief.groups))
    if brief.year.capex_all_in:
        total = sum(group.capex_all_in.middle for group in brief.groups if group.capex_all_in)
        assert brief.year.capex_all_in.middle == pytest.approx(total)


def test_money_is_said_as_people_say_it() -> None:
    assert spoken_usd(Range(8.75e9, 9.6e9, 10.5e9)) == "$8.75-10.5 billion"
    assert spoken_usd(Range(16.45e9, 17e9, 18.2e9)) == "$16.5-18.2 billion"
    assert spoken_usd(Range(1599, 1599, 1599)) == "$1.6 thousand"
    assert spoken_usd(Range(0, 0, 0)) == "$0"
