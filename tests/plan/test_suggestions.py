"""Suggestions: each changes one thing and works, and there is none where nothing helps."""

from collections.abc import Callable
from dataclasses import replace

from puna.model.layout import RECOMPUTE
from puna.plan.layouts.predict import Question
from puna.plan.layouts.search import search
from puna.plan.layouts.suggestions import fitting, suggest

Ask = Callable[..., Question]


def changed(question: Question, other: Question) -> set[str]:
    return {name for name in vars(question) if getattr(question, name) != getattr(other, name)}


def test_every_remedy_fits_and_changes_what_it_says(ask: Ask) -> None:
    question = ask("llama3-70b", 8, stack="puna")
    found = suggest(question, {})
    assert all(one.prediction.fits for one in found)
    kinds = [changed(question, one.prediction.question) for one in found]
    assert {"accelerators"} in kinds or {"accelerators", "batch"} in kinds
    assert {"accelerator"} in kinds
    assert {"model", "shape"} in kinds


def test_more_accelerators_are_no_more_than_twice_what_is_needed(ask: Ask) -> None:
    question = ask("llama3-70b", 8, stack="puna")
    more = next(one.prediction.question for one in suggest(question, {}) if "100" in one.change)
    assert fitting(more, {}) is not None
    fewer = replace(more, accelerators=more.accelerators // 2)
    assert fitting(fewer, {}) is None


def test_a_pin_that_is_in_the_way_is_left_first(ask: Ask) -> None:
    pinned = {"tp": 8, "pp": 16, "recompute": RECOMPUTE.index("none")}
    found = suggest(ask("llama3.1-405b", 256, batch=2048), pinned)
    assert found[0].change == "leave recompute none to the search"
    layout = found[0].prediction.layout
    assert (layout.tp, layout.pp) == (8, 16)


def test_shorter_sequences_keep_the_tokens_of_a_step(ask: Ask) -> None:
    question = ask("llama3-8b", 8, seq_len=2**19, batch=16, stack="puna")
    assert fitting(question, {}) is None
    shorter = next(one.prediction.question for one in suggest(question, {}) if "--seq-len" in one.change)
    assert shorter.seq_len < question.seq_len
    assert shorter.seq_len * shorter.batch == question.seq_len * question.batch


def test_where_nothing_helps_nothing_is_told(ask: Ask) -> None:
    question = ask("nano", 1, batch=64, seq_len=256, stack="puna")
    tiny = question.accelerator.model_copy(update={"memory_gb": 0.01, "generation": "cpu"})
    assert suggest(replace(question, accelerator=tiny), {}) == ()


def test_the_fastest_that_fits_is_taken(ask: Ask) -> None:
    question = ask("llama3-70b", 64)
    found = search(question.workload())
    best = fitting(question, {})
    assert best is not None
    assert best.step_seconds == min(found.step_seconds[found.fits])
    assert fitting(replace(question, batch=7), {"tp": 5}) is None
