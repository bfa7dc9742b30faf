"""The output on the terminal: bars to scale, every figure with its interval, one line per part."""

import io
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from puna.plan.equations import cost, memory
from puna.plan.equations.hardware import find_accelerator, parse_fleet
from puna.plan.layouts.predict import PART_NAMES, Question
from puna.plan.output.explain import MEMORY, TIME
from puna.plan.output.format import MEMORY_GROUPS, TIME_GROUPS, grouped
from puna.plan.output.terminal import bar, budget_text, estimate_text, fleet_text, goodput_text, legend
from puna.plan.run.budget import plan_budget
from puna.plan.run.estimate import estimate_run
from puna.plan.run.fleet import fleet_brief
from puna.plan.run.goodput import goodput
from puna.plan.run.terms import Terms

Ask = Callable[..., Question]


def shown(markup: str) -> str:
    """The text as a wide terminal without colours shows it."""
    console = Console(file=io.StringIO(), width=250, soft_wrap=True, highlight=False, color_system=None)
    console.print(markup)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


amounts = st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(lambda values: sum(values) > 1e-3)


@given(amounts, st.integers(10, 120), st.floats(1.0, 4.0))
def test_a_bar_has_as_many_cells_as_its_share(values: list[float], width: int, room: float) -> None:
    total = sum(values)
    parts = {f"part {at}": value for at, value in enumerate(values)}
    text = Text.from_markup(bar(parts, width, scale=total * room)).plain
    assert len(text) == width
    assert len(text.rstrip(" ")) <= width
    filled = len(text) - text.count(" ")
    assert filled == pytest.approx(width / room, abs=0.51)


@given(st.floats(0.01, 3.0))
def test_the_mark_stands_where_it_lies(where: float) -> None:
    scale = max(1.0, where)
    text = Text.from_markup(bar({"all": 1.0}, 60, scale=scale, mark=where)).plain
    assert text.index("┃") == pytest.approx(60 * where / scale, abs=0.51)
    assert len(text) == 61


def test_every_part_is_in_one_group_and_explained() -> None:
    for groups, parts, told in ((TIME_GROUPS, cost.PARTS, TIME), (MEMORY_GROUPS, memory.PARTS, MEMORY)):
        members = [part for group in groups.values() for part in group]
        assert sorted(members) == sorted(parts) == sorted(told)
    assert set(TIME) == set(PART_NAMES)


def test_groups_sum_to_the_whole(ask: Ask) -> None:
    best = estimate_run(ask("llama3-70b", 512), tokens=1e12).best
    assert sum(grouped(best.seconds, TIME_GROUPS).values()) == pytest.approx(best.step_seconds)
    assert sum(grouped(best.memory, MEMORY_GROUPS).values()) == pytest.approx(best.memory_bytes)


def test_one_screen_says_it_all(ask: Ask) -> None:
    found = estimate_run(ask("llama3.1-405b", 16384, batch=2048), tokens=15.6e12, assumptions=("software: x",))
    text = shown(estimate_text(found))
    for word in (
        "llama3.1-405b on 16,384 x h100-sxm",
        "It fits:",
        "exposed communication",
        "pipeline bubble",
        "80 % interval",
        "MFU",
        "989 TFLOP/s dense bf16",
        "PaLM",
        "tokens/s",
        "interruptions",
        "effective time",
        "GWh",
        "rent",
        "all-in",
        "micro-batch",
        "what if",
        "failure rate",
        "software: x",
    ):
        assert word in text, word
    lines = text.splitlines()
    assert len(lines) < 50
    assert max(map(len, lines)) <= 130
    assert text.count(" – ") >= 8, "intervals"
    assert "[" not in text.replace("[0", ""), "no markup is left"


def test_what_does_not_fit_has_no_run_but_suggest(ask: Ask) -> None:
    text = shown(estimate_text(estimate_run(ask("llama3-70b", 8, stack="puna"), tokens=1e12)))
    assert "It does not fit" in text
    assert "what would make it fit" in text
    assert "--fleet" in text
    assert "MFU" not in text
    bars = next(line for line in text.splitlines() if "┃" in line)
    assert re.search(r"┃[█▓▒░]", bars), "the bar continues beyond the limit"


def test_explain_tells_every_part_and_its_source(ask: Ask) -> None:
    found = estimate_run(ask(), tokens=1e12)
    text = shown(estimate_text(found, explain=True))
    for name in [*PART_NAMES.values(), *memory.PARTS]:
        assert name in text
    assert text.count("arXiv") + text.count("23") > 4
    assert f"{found.best.step_seconds * 1e3:,.0f}" in text


def test_names_with_brackets_are_shown_as_they_are(ask: Ask) -> None:
    question = ask()
    odd = Question(**{**vars(question), "model": "my[bold]model"})
    assert "my[bold]model" in shown(estimate_text(estimate_run(odd, tokens=1e12)))


def test_a_fleet_in_words() -> None:
    text = shown(fleet_text(fleet_brief(parse_fleet("350000xh100+170000xmi300x"))))
    assert "$8.75-10.5B" in text
    assert "$16.5-18.2B" in text
    assert "together" in text
    assert "do not run it as one synchronous job" in text


def test_the_largest_job_is_advised_against() -> None:
    text = shown(goodput_text(goodput(350_000, 365)))
    assert "interrupted every 9 minutes: do not run it as one synchronous job" in text
    assert "Run several jobs" in text
    assert "60.8k failures" in text or "60.7k failures" in text
    assert "e+0" not in text


def test_llama_3_in_54_days() -> None:
    text = shown(goodput_text(goodput(16_384, 54)))
    assert "420 failures, 47 planned" in text
    assert "91.3 %" in text


def test_a_budget_in_words(ask: Ask) -> None:
    found = plan_budget(
        lambda count: ask("llama3-8b", count, batch=max(512, count)),
        find_accelerator("h100"),
        budget_usd=2e5,
        days=30,
        accelerators=None,
        tokens=1e14,
        presets=["llama3-8b", "llama3.2-1b"],
        preset_question=lambda name, count: ask(name, count),
        terms=Terms(),
    )
    text = shown(budget_text(found))
    assert "$200,000 rent" in text
    assert "nearest to compute-optimal" in text
    assert "over the budget" in text or "out of reach" in text


def test_a_legend_names_each_part() -> None:
    assert Text.from_markup(legend({"a": "1", "b": "2"})).plain == "█ a 1  ▓ b 2"
