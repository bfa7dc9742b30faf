"""The catalogue of accelerators and fleets: published figures, names, and rejected input."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.plan.equations.hardware import (
    OWN,
    Accelerator,
    aliases,
    catalogue,
    collectives,
    find_accelerator,
    parse_fleet,
)

# Every id in published_runs' `gpu` column, and the issue's list.
PUBLISHED = (
    *("a100-40g", "a100-80g", "h100-sxm", "h100-pcie", "h200", "h800-sxm", "b200", "b300", "gb200", "gb300"),
    *("mi300x", "mi325x", "mi355x", "rtx4090", "rtx5090", "h100-96g-hbm2e-500w"),
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_accelerator_is_known(name: str) -> None:
    assert find_accelerator(name).name == name


@pytest.mark.parametrize("accelerator", catalogue().values(), ids=lambda a: a.name)
def test_every_figure_has_a_source_with_a_date(accelerator: Accelerator) -> None:
    figures = {
        field
        for field in accelerator.model_fields_set - {"name", "generation", "sources"}
        if getattr(accelerator, field) is not None
    }
    assert figures == set(accelerator.sources)
    for field, source in accelerator.sources.items():
        assert re.search(r"20[12]\d", source), f"{accelerator.name}.{field}: '{source}' has no date"


@pytest.mark.parametrize("accelerator", catalogue().values(), ids=lambda a: a.name)
def test_figures_are_in_order(accelerator: Accelerator) -> None:
    for measured, peak in (("matmul_tflops", "bf16_tflops"), ("matmul_fp8_tflops", "fp8_tflops")):
        if getattr(accelerator, measured):
            assert getattr(accelerator, measured) < getattr(accelerator, peak)
    for prices in (accelerator.price_usd, accelerator.all_in_usd, accelerator.rent_usd_per_hour):
        assert prices is None or list(prices) == sorted(prices)
    assert (accelerator.node_watts_per_accelerator or accelerator.watts) >= accelerator.watts
    assert accelerator.link_domain >= accelerator.node_size


# Columns of the shared hardware.yaml, and their names here.
SHARED = {
    "bf16": "bf16_tflops",
    "fp8": "fp8_tflops",
    "fp4": "fp4_tflops",
    "hbm_gb": "memory_gb",
    "hbm_gbs": "memory_gb_per_s",
    "nvlink_uni": "link_gb_per_s",
    "xgmi_uni_all": "link_gb_per_s",
    "xgmi_uni_p2p": "link_pair_gb_per_s",
    "pcie_uni": "link_gb_per_s",
    "nvlink_domain": "link_domain",
    "nic_gbps": "nic_gbit_per_s",
    "tdp_w": "watts",
    "mamf_bf16": "matmul_tflops",
    "mamf_fp8": "matmul_fp8_tflops",
}


def test_figures_are_those_that_were_collected(test_data: Path) -> None:
    yaml = pytest.importorskip("yaml")
    file = test_data.parent / "planner-data" / "hardware.yaml"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    collected = yaml.safe_load(file.read_text())
    for name in collected.keys() - {"collectives_measured", "power"}:
        for column, value in collected[name].items():
            if column in SHARED and value is not None:
                assert getattr(catalogue()[name], SHARED[column]) == value, f"{name}: {column}"


def test_aliases_lead_into_the_catalogue() -> None:
    assert set(aliases().values()) <= set(catalogue())
    assert find_accelerator("H100") == find_accelerator("h100-sxm")
    assert find_accelerator("a100").memory_gb == 80
    assert find_accelerator("RTX 4090").name == "rtx4090"


def test_collectives_are_of_known_accelerators() -> None:
    assert {row.accelerator for row in collectives()} <= set(catalogue())
    assert max(row.gb_per_s for row in collectives() if row.accelerator == "h200") == 480.0


def test_peaks_by_precision() -> None:
    h100 = find_accelerator("h100")
    assert h100.peak_tflops("bf16") == h100.peak_tflops("fp16") == 989
    assert h100.peak_tflops("fp8") == 1979
    assert find_accelerator("b200").peak_tflops("nvfp4") == 9000
    with pytest.raises(PunaError, match="h100-sxm has no products in nvfp4"):
        h100.peak_tflops("nvfp4")
    with pytest.raises(PunaError, match="Did you mean 'bf16'"):
        h100.peak_tflops("b16")


def test_a_mesh_gives_few_ranks_only_their_links() -> None:
    """MI300X: measured all-reduce of 2 is 47.7 GB/s where 8 reach 312.9; a switch gives every group the same."""
    mi300x, h200 = find_accelerator("mi300x"), find_accelerator("h200")
    assert [mi300x.link_gb_per_s_of(ranks) for ranks in (2, 4, 8)] == [64, 192, 448]
    assert h200.link_gb_per_s_of(2) == h200.link_gb_per_s_of(8) == 450


def test_unknown_name_offers_the_nearest_and_six_lines() -> None:
    with pytest.raises(PunaError) as refused:
        find_accelerator("h1000")
    assert "h100" in str(refused.value)
    assert OWN in str(refused.value)
    assert len(OWN.splitlines()) == 6


def test_an_own_accelerator_from_six_lines(tmp_path: Path) -> None:
    file = tmp_path / "my-gpu.toml"
    file.write_text(OWN)
    mine = parse_fleet(f"16x{file}").groups[0].accelerator
    assert mine.name == "my-gpu"
    assert mine.bf16_tflops == 989
    assert mine.sources["watts"] == str(file)
    file.write_text(OWN.replace("watts", "wats"))
    with pytest.raises(PunaError, match=r"my-gpu\.toml: unknown key 'wats'. Did you mean 'watts'"):
        find_accelerator(str(file))
    file.write_text("\n".join(OWN.splitlines()[:5]))
    with pytest.raises(PunaError, match="'watts' is missing"):
        find_accelerator(str(file))


@given(st.lists(st.tuples(st.integers(1, 10**6), st.sampled_from(PUBLISHED)), min_size=1, max_size=4))
def test_a_fleet_reads_back(groups: list[tuple[int, str]]) -> None:
    fleet = parse_fleet("+".join(f"{count}x{name}" for count, name in groups))
    assert fleet.count == sum(count for count, _ in groups)
    assert parse_fleet(str(fleet)) == fleet
    assert fleet.nodes >= fleet.count / 8


def test_a_fleet_is_read_as_people_write_it() -> None:
    assert str(parse_fleet("8 × h200 + 64xA100")) == "8xh200+64xa100-80g"
    assert parse_fleet("350kxh100").count == 350_000
    assert parse_fleet("16_384xh100").nodes == 2048
    assert parse_fleet("144xgb200").nodes == 36


@pytest.mark.parametrize("text", ["", "h100", "8", "0xh100", "-8xh100", "8.5xh100", "8xh100+", "x h100", "manyxh100"])
def test_what_is_no_fleet_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(PunaError):
        parse_fleet(text)
