"""The live view: one block on a terminal, plain lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from puna.train.report.live import LiveView, sparkline

START = {
    "kind": "start", "step": 0, "device": "a machine", "world_size": 1, "precision": "mixed", "compiled": True,
    "parameters": 6_800_000, "total_steps": 100, "tokens_per_step": 4096, "resumed_from": None,
    "time": "2026-11-23T10:00:00+00:00",
    "predicted": {
        "memory_bytes": 2**30, "tokens_per_second": 20_480.0, "seconds": 20.0,
        "step_seconds": {"low": 0.18, "value": 0.2, "high": 0.222}, "step_parts_seconds": {"matmul": 0.2},
    },
}  # fmt: skip
TRAIN = {
    "kind": "train", "step": 50, "loss": 2.71828, "bits_per_byte": 1.0834, "grad_norm": 0.5, "step_seconds": 0.2,
    "tokens_per_second": 21_437.0, "mfu": {"full": 0.392, "causal": 0.37}, "memory_bytes": 2**30, "tokens": 1,
}  # fmt: skip
EVAL = {"kind": "eval", "step": 50, "bits_per_byte": 1.2345, "loss": 3.0}
SAMPLE = {"kind": "sample", "step": 50, "prompt": "def ", "text": "f(x):\n\treturn [bold]x \x1b[31m" + "y" * 200}
SKIP = {"kind": "event", "step": 41, "event": "skip", "detail": "loss [14.2]: the update was skipped"}
END = {
    "kind": "end", "step": 100, "tokens": 409_600, "seconds": 20.0, "tokens_per_second": 20_480.0,
    "step_seconds": 0.208, "peak_memory_bytes": 2**30, "over_prediction": {"memory": -0.01, "step_seconds": 0.04},
    "goodput": {},
}  # fmt: skip


def show(events, terminal):
    file = io.StringIO()
    view = LiveView(Console(file=file, force_terminal=terminal, width=80, soft_wrap=True, highlight=False))
    for event in events:
        view(event)
    view.close()
    return file.getvalue()


def frames(text):
    """The text without colours and cursor moves."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("terminal", [True, False])
def test_says_how_the_run_stands(terminal):
    text = frames(show([START, EVAL, SAMPLE, TRAIN, SKIP, END], terminal))
    for part in ("6.8M parameters", "2.7183", "1.083", "39%", "10 s left", "1.23", "loss [14.2]", "Done: 410k tokens"):
        assert part in text


def test_the_block_names_its_figures_and_fits_80_columns():
    text = frames(show([START, EVAL, SAMPLE, TRAIN], True))
    for part in ("50 of 100", "50%", "21,437 tokens/s", "measured peak (full attention)", "1.234 held-out at step 50"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def test_says_what_it_expects_and_how_far_off_that_was():
    text = show([START, END], False)
    assert (
        "1 GiB of memory, 20.5k tokens/s,\n0.2 s a step (0.18 s to 0.222 s with 80 % probability), done in\n20 s, at"
        in text
    )
    assert "0.208 s a step (4% more than predicted), 1 GiB at most (1% less than predicted)" in text
    unknown = {**START["predicted"], "tokens_per_second": None, "step_seconds": None, "seconds": None}
    none = {**END, "step_seconds": None, "over_prediction": {"memory": -0.01, "step_seconds": None}}
    text = show([{**START, "predicted": unknown}, none], False)
    assert "Expected: 1 GiB of memory." in text
    assert "a step" not in text
    assert "1 GiB at most" in text


def test_a_long_run_ends_on_a_day():
    predicted = {**START["predicted"], "seconds": 3 * 86400.0}
    assert "November 2026" in show([{**START, "predicted": predicted}], False)


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_model_writes_cannot_steer_the_terminal(terminal):
    text = show([START, TRAIN, SAMPLE, TRAIN], terminal)
    assert "\x1b[31m" not in text
    assert "[bold]x" in text


def test_the_cursor_is_visible_while_the_run_goes_on():
    text = show([START, TRAIN], True)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "\x1b" not in show([START, TRAIN, END], False)


def test_a_log_gets_one_line_an_interval():
    lines = show([START, TRAIN, {**TRAIN, "step": 100, "loss": None, "mfu": None}], False).splitlines()
    assert sum(line.startswith("step") for line in lines) == 2
    assert "loss not finite" in lines[-1]
    assert "peak" not in lines[-1]
    assert "left" not in lines[-1]


def test_closing_twice_or_before_the_start_is_fine():
    view = LiveView(Console(file=io.StringIO(), force_terminal=True))
    view.close()
    view(START)
    view({"kind": "event", "step": 3, "event": "interrupted", "detail": "resume with: …"})
    view.close()


def test_sparkline_falls_where_the_loss_falls():
    line = sparkline([9.0 - i / 10 for i in range(80)], 20)
    assert len(line) == 20
    assert line[0] == "█"
    assert line[-1] == "▁"
    assert list(line) == sorted(line, reverse=True)
    assert sparkline([], 10) == ""
    assert sparkline([2.0, 2.0], 10) == "▁▁"
