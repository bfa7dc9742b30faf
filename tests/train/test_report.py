"""The report page: correct numbers, valid markup, nothing external, any state of a run."""

import json
import math
import random
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.cli.main import main
from puna.core.errors import PunaError
from puna.core.plots import Series, line_chart, nice_ticks, smooth, thin
from puna.core.statistics import wilson
from puna.train.report.page import write_report
from puna.train.report.run_data import load_run, summary

EVIL = '<script>alert("x")</script>&amp;'
VOID = {"meta", "br", "hr", "img", "input", "link"}


def start(**more):
    return {
        "kind": "start", "step": 0, "time": "2026-05-04T09:12:44+00:00", "device": f"Machine {EVIL}",
        "torch": "2.13.0", "python": "3.11.7", "world_size": 1, "precision": "mixed", "compiled": True,
        "parameters": 6_818_048, "tokens_per_step": 4096, "total_steps": 400,
        "flops_per_token": {"full": 3.6e7, "causal": 3.3e7}, "peak_flops": 3.81e11, "bytes_per_token": 3.62,
        "predicted": {
            "memory_bytes": 1.5 * 2**30, "tokens_per_second": 22_000.0, "seconds": 80.0,
            "step_seconds": {"low": 0.165, "value": 0.186, "high": 0.21}, "step_parts_seconds": {"matmul": 0.186},
        },
        "resumed_from": None, **more,
    }  # fmt: skip


def train(step, loss=None, **more):
    noise = random.Random(step).gauss(0, 0.05)
    loss = 2.5 + 5 * math.exp(-step / 40) + noise if loss is None else loss
    return {
        "kind": "train", "step": step, "tokens": step * 4096, "loss": loss, "bits_per_byte": loss / 2.5,
        "grad_norm": 0.4 + abs(noise), "lr_factor": 1 - step / 400, "tokens_per_second": 21_000.0 + step,
        "step_seconds": 0.2, "mfu": {"full": 0.391, "causal": 0.36}, "memory_bytes": 2**30, "data_wait_share": 0.0,
        "elapsed": step * 0.2, **more,
    }  # fmt: skip


def whole_run():
    events = [start(), *(train(step) for step in range(10, 401, 10))]
    events[6:6] = [
        {"kind": "eval", "step": 50, "tokens": 1, "loss": 3.0, "bits_per_byte": 2.9, "bytes": 9, "elapsed": 1}
    ]
    events += [
        {"kind": "sample", "step": 200, "prompt": "def ", "text": f"f():\n    return {EVIL}"},
        {"kind": "event", "step": 203, "event": "skip", "detail": "loss 14.2", "documents": ["a.py", EVIL]},
        {"kind": "event", "step": 300, "event": "checkpoint", "detail": "saved step 300"},
        {"kind": "eval", "step": 400, "tokens": 1, "loss": 3.0, "bits_per_byte": 1.4567, "bytes": 9, "elapsed": 80},
        {
            "kind": "end", "step": 400, "tokens": 1_638_400, "seconds": 81.0, "tokens_per_second": 20_227.0,
            "step_seconds": 0.2, "peak_memory_bytes": 1.2 * 2**30,
            "over_prediction": {"memory": -0.2, "step_seconds": 0.075},
            "goodput": {"compute": 75.0, "data": 1.0, "checkpoint": 2.0, "eval": 3.0},
        },
    ]  # fmt: skip
    return events


EVALUATION = {
    "bits_per_byte": [
        {"name": "this model", "value": 1.4471, "interval": [1.41, 1.48], "note": "window 256, stride 128"},
        {"name": "gzip -9", "value": 2.2233, "note": f"alone {EVIL}"},
        {"name": "zstd -19 with a trained dictionary", "value": 1.7888, "note": ""},
        {"name": "xz -9 primed", "value": None, "note": "not measured"},
    ],
    "completions": [
        {"step": 0, "label": "at initialisation", "parsed": 0, "sampled": 100, "trivial": 2},
        {"step": 400, "label": "at the end", "parsed": 63, "sampled": 100, "trivial": 5},
    ],
    "samples": [{"step": 400, "prompt": "def fibonacci(", "text": "n):\n    return n"}],
}


def write(folder, events, evaluation=None, recipe='name = "laptop"\n'):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    if recipe:
        (folder / "recipe.toml").write_text(recipe)
    return folder


class Page(HTMLParser):
    """Checks that tags close in order and collects text, ids and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.pieces = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.pieces.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.pieces).split())


@pytest.fixture
def page(tmp_path):
    return Page(write_report(write(tmp_path / "laptop", whole_run(), EVALUATION)).read_text())


def test_the_numbers_are_on_the_page(page):
    for part in (
        "laptop", "6.82M parameters", "400 steps", "1.64M tokens", "1 min 21 s", "1.447", "2.223", "1.789",
        "1.410 – 1.480", "20,227", "39%", "1.2 GiB", "381 GFLOP/s", "full-attention convention", "2.13.0", "finished",
        "63 of 100", "63.0%", "def fibonacci(",
    ):  # fmt: skip
        assert part in page.text, part


def test_wilson_interval_is_shown_and_agrees_with_the_published_example(page):
    # Newcombe 1998 (Statistics in Medicine 17, table I): 81/263 -> 0.2553 to 0.3662; 0/20 -> 0 to 0.1611.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    low, high = wilson(63, 100)
    assert f"{low:.1%} – {high:.1%}" in page.text


def test_a_miss_has_one_sign_for_memory_time_and_speed(page):
    assert "−20.0%" in page.text  # 1.5 GiB predicted, 1.2 GiB used
    assert f"{81 / 80 - 1:+.1%}" in page.text
    assert "a step, usually 0.186 s 0.2 s +7.5%" in page.text
    assert "between 0.165 s and 0.21 s with 80 % probability" in page.text


def test_nothing_that_was_given_becomes_markup(page, tmp_path):
    assert "script" not in page.tags
    assert EVIL in "".join(page.pieces)  # the sample is shown literally
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_asks_nobody_for_anything(tmp_path):
    text = write_report(write(tmp_path / "laptop", whole_run(), EVALUATION)).read_text()
    for forbidden in ("http://", "https://", "@import", "url(h", "src=", "<link", "<script"):
        assert forbidden not in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_is_sound_for_screen_readers(page):
    assert len(page.ids) == len(set(page.ids))
    names = dict(page.attributes)
    assert names["lang"] == "en"
    referred = [part for name, value in page.attributes if name == "aria-labelledby" for part in value.split()]
    assert referred
    assert set(referred) <= set(page.ids)
    assert {value for name, value in page.attributes if name == "scope"} == {"row", "col"}
    assert page.tags.count("svg") >= 8
    assert page.tags.count("h1") == 1


def test_events_are_marked_and_told(page):
    assert "step skipped" in page.text
    assert "step 203: step skipped. loss 14.2" in page.text  # the tooltip in the chart
    assert "One checkpoint was saved, the last at step 300." in page.text


def test_the_same_run_draws_the_same_page(tmp_path):
    folder = write(tmp_path / "laptop", whole_run(), EVALUATION)
    first = write_report(folder).read_text()
    assert write_report(folder).read_text() == first


@pytest.mark.parametrize(
    "events",
    [
        [start()],
        [train(10)],
        [start(), train(10)],
        [start(), train(10), train(20, loss=None, bits_per_byte=None, grad_norm=None, mfu=None)],
        [start(predicted=None, peak_flops=None, flops_per_token=None), *(train(s, mfu=None) for s in range(1, 60))],
        [{"kind": "event", "step": 0, "event": "something new", "detail": "?"}],
        whole_run()[:20],
        [start(), *(train(s, loss=2.0) for s in range(1, 50))],
    ],
)
@pytest.mark.parametrize("evaluation", [None, {}, {"bits_per_byte": [], "completions": [], "samples": []}])
def test_every_state_of_a_run_has_a_page(tmp_path, events, evaluation):
    page = Page(write_report(write(tmp_path / "young", events, evaluation, recipe="")).read_text())
    assert "young" in page.text
    assert "unfinished" in page.text
    assert "nan" not in page.text
    assert "None" not in page.text


def test_a_torn_last_line_is_no_obstacle(tmp_path):
    folder = write(tmp_path / "laptop", whole_run())
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    assert summary(load_run(folder))["status"] == "finished"


def test_a_resumed_run_is_unfinished_until_it_ends_again(tmp_path):
    events = [*whole_run(), start(step=400, resumed_from=400, total_steps=800), train(410)]
    run = load_run(write(tmp_path / "laptop", events))
    assert summary(run)["status"] == "unfinished"
    assert [event["step"] for event in run.events if event["event"] == "resume"] == [400]
    again = [*events, {**whole_run()[-1], "step": 800}]
    assert summary(load_run(write(tmp_path / "laptop", again)))["status"] == "finished"


def test_an_interrupted_run_says_so(tmp_path):
    events = [start(), train(10), {"kind": "event", "step": 12, "event": "interrupted", "detail": "resume with …"}]
    assert summary(load_run(write(tmp_path / "laptop", events)))["status"] == "interrupted"


def test_bad_input_is_a_sentence_and_leaves_the_old_page(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    folder = write(tmp_path / "laptop", [start()])
    path = write_report(folder)
    before = path.read_text()
    (folder / "metrics.jsonl").write_text("")
    assert main(["report", str(folder)]) == 2
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    assert main(["report", str(folder)]) == 2
    write(folder, [start()], {"completions": [{"step": 1}]})
    assert main(["report", str(folder)]) == 2
    (folder / "evaluation.json").write_text("[1, 2")
    assert main(["report", str(folder)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("puna report: ") for line in lines)
    assert path.read_text() == before


def test_the_command_writes_where_it_is_told_and_prints_figures(tmp_path, capsys):
    folder = write(tmp_path / "laptop", whole_run(), EVALUATION)
    out = tmp_path / "elsewhere" / "page.html"
    assert main(["report", str(folder), "-o", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["report"] == str(out)
    assert out.is_file()
    assert not (folder / "report.html").exists()
    assert figures["heldout_bits_per_byte"] == 1.4471
    assert figures["mfu"] == {"full": 0.391, "causal": 0.36}
    with pytest.raises(PunaError):
        write_report(tmp_path / "nowhere")


# -- plots -------------------------------------------------------------------------------------------------------------

finite = st.floats(-1e9, 1e9, allow_nan=False)


@settings(deadline=None)
@given(finite, finite, st.integers(2, 8))
def test_ticks_span_the_values_and_are_few(a, b, count):
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high, count)
    assert ticks == sorted(set(ticks))
    assert 2 <= len(ticks) <= 2 * count + 3
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack


@settings(deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=900, unique_by=lambda point: point[0]))
def test_thinning_keeps_ends_and_extremes(points):
    points.sort()
    kept = thin(points, 100)
    assert len(kept) <= 110
    assert set(kept) <= set(points)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert {min(y for _, y in points), max(y for _, y in points)} <= {y for _, y in kept}


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.5, 20))
def test_smoothing_stays_within_the_values(values, half_life):
    out = smooth(values, half_life)
    assert len(out) == len(values)
    assert out[0] == pytest.approx(values[0])
    assert all(min(values) - 1e-6 <= value <= max(values) + 1e-6 for value in out)
    assert smooth([3.0] * 9, half_life) == pytest.approx([3.0] * 9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 10_000), finite), max_size=60, unique_by=lambda point: point[0]))
def test_a_chart_of_any_points_is_sound_markup_with_finite_numbers(points):
    points.sort()
    svg = line_chart(
        [Series("a <b>", points), Series("c", points[:2], "dots")],
        title="t & t",
        description="d",
        y_format="{:.3g}".format,
        x_format="{:.0f}".format,
        x_label="step",
    )
    Page(svg)
    assert bool(svg) == bool(points)
    assert not re.search(r"[\" ](nan|inf|-inf)[\" ]", svg)
