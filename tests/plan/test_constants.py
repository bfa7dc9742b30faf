"""The shipped constants are consistent, stacks inherit from their parents, and a job gets its own stack's."""

import tomllib
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.model.layout import RECOMPUTE, SHARDING
from puna.plan.equations.columns import PRECISIONS
from puna.plan.equations.constants import (
    CHILD_SPREAD,
    COMMON,
    CONSTANTS,
    DEFAULT_STACK,
    GENERATION,
    STACK,
    STACKS,
    Owners,
    constants_for,
    find_stack,
    from_free,
    generation_value,
    interval,
    is_share,
    kind_of,
    load_constants,
    owners,
    to_free,
    value_of,
)
from puna.plan.equations.cost import Constants
from puna.plan.equations.hardware import catalogue

SHIPPED = load_constants()
TABLES = {"common": COMMON, "generation": GENERATION, "stack": STACK}


def one(stack: str, generation: str = "hopper", precision: str = "bf16", values: dict[str, float] | None = None):
    """The constants of a single job."""
    values = SHIPPED if values is None else values
    return constants_for(values, Owners(((stack, generation, PRECISIONS.index(precision)),), 0))


def test_shipped_constants_are_known_quantities_within_their_ranges():
    tree = tomllib.loads(CONSTANTS.read_text(encoding="utf-8"))
    entries = [("common", quantity, entry) for quantity, entry in tree["common"].items()]
    for group in ("generation", "stack"):
        entries += [(group, name, entry) for owned in tree[group].values() for name, entry in owned.items()]
    assert len(entries) > 80
    for group, quantity, entry in entries:
        _, _, lowest, highest = TABLES[group][quantity]
        assert lowest <= entry["value"] <= highest, (group, quantity)
        # The range over refits has three digits.
        assert entry["low"] * 0.994 <= entry["value"] <= entry["high"] * 1.006, (group, quantity)
    assert set(tree["stack"]) <= set(STACKS)
    assert set(tree["generation"]) <= {accelerator.generation for accelerator in catalogue().values()}


def test_the_file_is_read_flat():
    assert set(COMMON) >= {name for name in SHIPPED if "." not in name}
    assert 0.3 < SHIPPED["hopper.matmul_bf16"] < 0.95
    assert "torchtitan.elementwise" in SHIPPED


def test_every_fitted_quantity_begins_inside_its_range():
    for table in TABLES.values():
        for quantity, (expected, spread, lowest, highest) in table.items():
            assert lowest < expected < highest, quantity
            assert spread > 1
            assert not is_share(quantity) or (lowest > 0 and highest < 1)
    assert set(CHILD_SPREAD) <= set(STACK)


@settings(deadline=None)
@given(st.sampled_from([*COMMON, *GENERATION, *STACK]), st.floats(1e-6, 0.999))
def test_fitting_scale_and_back(quantity, value):
    assert from_free(quantity, to_free(quantity, value)) == pytest.approx(value, rel=1e-9)


@given(st.floats(-30, 30))
def test_shares_stay_shares(free):
    assert 0 <= from_free("data_hidden", free) <= 1
    assert from_free("half_size", free) > 0


# -- stacks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_has_ancestors_and_sensible_facts(name):
    stack, seen = STACKS[name], [name]
    while (parent := STACKS[seen[-1]].parent) is not None:
        assert parent not in seen
        seen.append(parent)
    assert stack.description
    assert set(stack.shardings) <= set(SHARDING)
    assert set(stack.recomputations) <= set(RECOMPUTE)
    assert stack.gradient_bytes in (2, 4)
    assert find_stack(name) == name


def test_default_stack_is_punas():
    assert STACKS[DEFAULT_STACK].description.startswith("Puna")


def test_unknown_stack_gets_the_nearest():
    with pytest.raises(PunaError, match="Stack 'torchtitna' is not known") as caught:
        find_stack("torchtitna")
    assert "torchtitan" in str(caught.value)


def test_a_child_has_its_own_value_or_its_parents_or_the_expected_one():
    values = {"megatron-core.matmul": 1.1, "megatron-bridge-26.02.matmul": 1.2}
    assert value_of(values, "megatron-core", "matmul") == 1.1
    assert value_of(values, "megatron-bridge-2025", "matmul") == 1.1
    assert value_of(values, "megatron-bridge-26.06", "matmul") == 1.2  # its parent is 26.02
    assert value_of(values, "torchtitan", "matmul") == STACK["matmul"][0]


def test_a_generation_nothing_was_fitted_for_has_what_is_expected():
    assert generation_value({}, "cdna3", "attention") == GENERATION["attention"][0]
    assert generation_value({"cdna3.attention": 0.4}, "cdna3", "attention") == 0.4


# -- constants of jobs -------------------------------------------------------------------------------------------------


def test_constants_are_a_generations_times_a_stacks():
    values = {"hopper.matmul_bf16": 0.7, "hopper.matmul_fp8": 0.6, "hopper.attention": 0.5, "puna.matmul": 1.1}
    constants = one("puna", precision="fp8", values=values)
    assert constants.matmul == pytest.approx(0.6 * 1.1)
    assert constants.matmul_bf16 == pytest.approx(0.7 * 1.1)
    assert constants.attention == pytest.approx(0.5)
    for precision in ("fp32", "bf16"):
        assert one("puna", precision=precision, values=values).matmul == pytest.approx(0.7 * 1.1)


def test_facts_of_a_stack():
    old, new = one("megatron-2021", "ampere"), one("megatron-core")
    assert (old.flash, new.flash) == (0, 1)
    # It overlaps nothing, regardless of its parents and the fit.
    assert old.tensor_hidden == old.data_hidden == old.pipeline_hidden == 0
    assert new.tensor_hidden > 0
    assert one("deepspeed-zero3", "ampere").rails == 0
    assert one("llama3").gradient_bytes == 4


names, generations = st.sampled_from(sorted(STACKS)), st.sampled_from(["ampere", "hopper", "blackwell", "cdna3", "cpu"])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(names, generations, st.sampled_from(PRECISIONS)), min_size=1, max_size=8))
def test_columns_of_constants_are_the_jobs_own(jobs):
    stacks, kinds, precisions = zip(*jobs, strict=True)
    together = constants_for(SHIPPED, owners(stacks, kinds, [PRECISIONS.index(name) for name in precisions]))
    for index, job in enumerate(jobs):
        alone = one(*job)
        for field in fields(Constants):
            column = np.broadcast_to(getattr(together, field.name), len(jobs))
            assert column[index] == float(getattr(alone, field.name)), field.name
            assert np.isfinite(column[index])


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_kinds_of_jobs_whose_error_differs():
    assert kind_of("hopper", mixture=True) == "mixture"
    assert kind_of("ampere", mixture=False) == kind_of("hopper", mixture=False) == "dense"
    assert kind_of("blackwell", mixture=False) == kind_of("cpu", mixture=False) == "dense_newer"


@pytest.mark.parametrize("mixture", [True, False])
@pytest.mark.parametrize("generation", ["ampere", "hopper", "blackwell", "cdna4", "cpu"])
def test_an_interval_lies_around_the_prediction(generation, mixture):
    low, high = interval(generation, mixture=mixture)
    assert low * high == pytest.approx(1)
    assert 1.02 < high < 3
    known = interval("hopper", mixture=False)[1]
    assert high >= known  # dense models on A100 and H100 have the narrowest interval
