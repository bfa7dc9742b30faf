"""Predictions: parts add up, agree with the search, and list their assumptions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.model.config import ModelConfig
from puna.model.layout import Layout
from puna.plan.equations.constants import interval
from puna.plan.equations.cost import PARTS
from puna.plan.equations.cost_model import CostModel
from puna.plan.equations.hardware import find_accelerator
from puna.plan.equations.memory import PARTS as MEMORY_PARTS
from puna.plan.equations.shape import Shape, from_config
from puna.plan.layouts.convert import from_columns
from puna.plan.layouts.predict import (
    PART_NAMES,
    Choice,
    Prediction,
    Question,
    choose,
    describe_layout,
    predict,
    sensitivities,
)
from puna.plan.layouts.search import legal_layouts

LLAMA_8B = from_config(ModelConfig(preset="llama3-8b"))
MIXTURE = Shape(24, 2048, 16, 4, 128, 6144, 151936, experts=64, top_k=8, expert_ffn=768)
LAYOUT = Layout.of(tp=2, pp=2, virtual_stages=2, dp=4, sequence_parallel=True)


def question(
    shape: Shape = LLAMA_8B, gpu: str = "h100", accelerators: int = 16, batch: int = 64, **fields: object
) -> Question:
    asked = {"model": "some model", "seq_len": 8192} | fields
    asked["costs"] = CostModel(asked.pop("stack", "megatron-core"))
    return Question(shape=shape, accelerator=find_accelerator(gpu), accelerators=accelerators, batch=batch, **asked)


@pytest.fixture(scope="module")
def choice() -> Choice:
    return choose(question())


# -- one layout --------------------------------------------------------------------------------------------------------


def test_parts_make_the_step_and_the_memory():
    answer = predict(question(), LAYOUT)
    assert tuple(answer.seconds) == PARTS
    assert tuple(answer.memory) == MEMORY_PARTS
    assert answer.step_seconds == pytest.approx(sum(answer.seconds.values()))
    assert answer.memory_bytes == pytest.approx(sum(answer.memory.values()))
    assert set(PART_NAMES) == set(PARTS)


def test_rates_follow_from_the_step():
    answer = predict(question(), LAYOUT)
    assert answer.tokens_per_step == 64 * 8192
    assert answer.tokens_per_second == pytest.approx(64 * 8192 / answer.step_seconds)
    for causal, attention in ((True, "causal"), (False, "full")):
        flops = ModelConfig(preset="llama3-8b").flops_per_token(8192, attention=attention)
        assert answer.mfu(causal=causal) == pytest.approx(answer.tokens_per_second * flops / (16 * 989e12), rel=1e-4)
    assert answer.mfu(causal=False) > answer.mfu(causal=True)


def test_utilisation_is_of_the_precisions_own_peak():
    answer = predict(question(precision="fp8"), LAYOUT)
    flops = float(LLAMA_8B.flops_per_token(8192, causal=True))
    assert answer.mfu(causal=True) == pytest.approx(answer.tokens_per_second * flops / (16 * 1979e12))


@pytest.mark.parametrize(("shape", "gpu"), [(LLAMA_8B, "h100"), (MIXTURE, "h100"), (LLAMA_8B, "b200")])
def test_the_interval_is_the_kinds_own(shape, gpu):
    answer = predict(question(shape, gpu), LAYOUT)
    low, high = interval(find_accelerator(gpu).generation, mixture=shape is MIXTURE)
    assert answer.low == pytest.approx(answer.step_seconds * low)
    assert answer.high == pytest.approx(answer.step_seconds * high)


def test_it_fits_where_there_is_room():
    assert predict(question(), LAYOUT.model_copy(update={"recompute": "full"})).fits
    assert not predict(question(gpu="rtx4090"), LAYOUT.model_copy(update={"tp": 1, "dp_shard": 8})).fits


def test_half_precision_runs_as_bf16_does():
    assert predict(question(precision="fp16"), LAYOUT).seconds == predict(question(), LAYOUT).seconds


def test_a_slower_network_is_slower():
    layout = Layout.of(dp=16, sharding="zero3")
    fast, slow = (predict(question(stack="fsdp", nic_gbit_per_s=rate), layout) for rate in (None, 50))
    assert slow.seconds["data"] > fast.seconds["data"]
    assert slow.seconds["matmul"] == fast.seconds["matmul"]


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout.of(dp=8), "dp 8 is 8 accelerators, but the fleet has 16"),
        (Layout.of(tp=4, dp=8), "tp 4 x cp 1 x pp 1 x dp 8 is 32 accelerators"),
        (
            Layout.of(dp=16, micro_batch=3),
            "A batch of 64 sequences is not divisible by dp 16 x micro-batch 3.*multiple of 48",
        ),
    ],
)
def test_a_layout_that_does_not_work_out_is_refused_in_a_sentence(layout, words):
    with pytest.raises(PunaError, match=words):
        predict(question(), layout)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gpu": "a100", "precision": "fp8"}, "a100-80g has no products in fp8.*It can do fp32, bf16"),
        ({"gpu": "h100", "precision": "nvfp4"}, "no products in nvfp4"),
        ({"precision": "fp9"}, "'fp9' is not a precision.*fp8"),
        ({"stack": "megatron"}, "Stack 'megatron' is not known"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_in_a_sentence(fields, words):
    for ask in (choose, lambda asked: predict(asked, LAYOUT)):
        with pytest.raises(PunaError, match=words):
            ask(question(**fields))


# -- the best layout---------------------------------------------------------------------------------------------------


def test_the_choice_is_what_the_search_puts_first(choice):
    best = choice.best
    assert best.fits
    assert best.step_seconds == pytest.approx(choice.found.step_seconds[0], rel=1e-9)
    assert best.memory_bytes == pytest.approx(choice.found.memory_bytes[0], rel=1e-9)
    assert best.layout == from_columns(choice.found.jobs.layout, 0)
    assert choice.fitting == choice.found.fits.sum() > 0
    assert len(np.asarray(legal_layouts(question().workload()).tp)) == len(choice.found)


def test_asking_for_the_chosen_layout_gives_the_choice(choice):
    again = predict(question(), choice.best.layout)
    assert again.seconds == pytest.approx(choice.best.seconds)
    assert again.memory == pytest.approx(choice.best.memory)
    assert again.sensitivities == choice.best.sensitivities


def test_runners_up_come_after_and_differ(choice):
    times = [choice.best.step_seconds, *(other.step_seconds for other in choice.runners_up)]
    assert times == sorted(times)
    assert len(times) == 5
    layouts = [each.layout for each in (choice.best, *choice.runners_up)]
    ways = [(one.tp, one.cp, one.pp, one.data_parallel) for one in layouts]
    assert len(set(ways)) == len(ways)
    assert all(other.fits for other in choice.runners_up)
    assert len(choose(question(), runners_up=1).runners_up) == 1


def test_when_nothing_fits_the_least_is_shown():
    found = choose(question(from_config(ModelConfig(preset="llama3-70b")), "rtx4090", 8, 8))
    assert found.fitting == 0
    assert not found.best.fits
    assert found.best.memory_bytes == pytest.approx(found.found.memory_bytes.min(), rel=1e-9)


def test_more_accelerators_are_faster_and_never_perfectly_so():
    times = {count: choose(question(accelerators=count, batch=512)).best.step_seconds for count in (16, 64, 256)}
    assert times[16] > times[64] > times[256]
    assert times[16] / 16 < times[256]  # sixteen times as many are less than sixteen times as fast


def test_a_faster_accelerator_is_faster():
    times = [choose(question(gpu=gpu)).best.step_seconds for gpu in ("a100", "h100", "b200")]
    assert times == sorted(times, reverse=True)


def test_no_legal_layout_is_a_sentence():
    with pytest.raises(PunaError, match="No layout of 7 accelerators divides a batch of 5"):
        choose(question(accelerators=7, batch=5))


# -- assumptions ------------------------------------------------------------------------------------------------------


def test_sensitivities_only_ever_slow_down(choice):
    lines = choice.best.sensitivities
    assert len({line.assumption for line in lines}) == len(lines) == 7
    base = choice.best.step_seconds
    assert all(line.step_seconds >= base * (1 - 1e-9) for line in lines)
    effects = [line.step_seconds - base for line in lines]
    assert effects == sorted(effects, reverse=True)


@pytest.mark.parametrize("gpu", ["h100", "mi300x", "b200"])  # nothing was fitted for the second, so its priors move
def test_slower_products_slow_by_no_more_than_that(gpu):
    answer = predict(question(gpu=gpu, accelerators=1, batch=8, stack="puna"), Layout.of(dp=1, micro_batch=8))
    slower = {line.assumption: line.step_seconds for line in answer.sensitivities}
    share = (answer.seconds["matmul"] + answer.seconds["head"]) / answer.step_seconds
    assert 1 < slower["rate of matrix products"] / answer.step_seconds < 1 + 1.01 * share * (1 / 0.95 - 1)
    attention = answer.seconds["attention"] / answer.step_seconds
    assert slower["rate of attention"] / answer.step_seconds == pytest.approx(1 + attention / 4, rel=1e-3)
    assert slower["network cards"] == pytest.approx(answer.step_seconds)  # there is no other machine


def test_sensitivity_to_overlap_asks_for_none():
    layout = Layout.of(dp=16, sharding="zero3")
    asked = question(stack="torchtitan")
    lines = {line.assumption: line.step_seconds for line in sensitivities(asked, layout)}
    bare = predict(replace(asked, costs=asked.costs.with_value("torchtitan.data_hidden", 0.01)), layout)
    assert lines["data-parallel overlap"] == pytest.approx(bare.step_seconds)


# -- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "stack", "words"),
    [
        (
            Layout.of(tp=8, pp=16, virtual_stages=8, dp=128),
            "megatron-core",
            "tp 8 · cp 1 · pp 16 (8 chunks each) · dp 128 zero1 · micro-batch 1",
        ),
        (
            Layout.of(dp=8, micro_batch=4, sharding="zero3", recompute="full"),
            "puna",
            "dp 8 zero3 · micro-batch 4 · recompute full",
        ),
        (
            Layout.of(pp=2, dp=32, ep=8),
            "megatron-bridge-26.06",
            "tp 1 · cp 1 · pp 2 · dp 32 zero1 · ep 8 · micro-batch 1",
        ),
    ],
)
def test_a_layout_in_one_line(layout, stack, words):
    assert describe_layout(layout, stack) == words


# -- invariants -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from([LLAMA_8B, MIXTURE]),
    st.sampled_from(["h100", "a100", "b200", "gb200", "mi355x"]),
    st.sampled_from([1, 6, 16, 40]),
    st.sampled_from([1, 4]),
    st.sampled_from(["puna", "megatron-core", "torchtitan", "maxtext"]),
)
def test_every_choice_is_a_whole_answer(shape, gpu, accelerators, sequences, stack):
    asked = question(shape, gpu, accelerators, accelerators * sequences, stack=stack)
    answers = choose(asked, runners_up=1)
    for answer in (answers.best, *answers.runners_up):
        assert isinstance(answer, Prediction)
        assert 0 < answer.low < answer.step_seconds < answer.high < np.inf
        assert 0 < answer.mfu(causal=True) < 1
        assert all(value >= 0 for value in (*answer.seconds.values(), *answer.memory.values()))
        assert describe_layout(answer.layout, stack)
