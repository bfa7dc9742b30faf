"""Running benchmarks: nothing but the item decides its score, and a stopped run goes on."""

import json
import random

import pytest

from puna.cli.main import main
from puna.core.errors import PunaError
from puna.evals.catalogue import BENCHMARKS
from puna.evals.contract import Benchmark, Item, Score, Text
from puna.evals.datasets import EvalData
from puna.evals.generation import Sampling
from puna.evals.runner import chosen, run

SAMPLING = Sampling(samples=2, temperature=1.0)


def load(data_folder, *names):
    data = EvalData(data_folder)
    return [(BENCHMARKS[name], chosen(BENCHMARKS[name], BENCHMARKS[name].load(data), None)) for name in names]


def test_order_and_batch_size_change_nothing(make_engine, data_folder, tmp_path):
    plan = load(data_folder, "arc_easy", "gsm8k")
    plain = run(make_engine(max_batch=16), plan, tmp_path / "a", settings={}, sampling=SAMPLING)
    mixed = [(benchmark, random.Random(1).sample(items, len(items))) for benchmark, items in reversed(plan)]
    engine = make_engine(max_batch=3, prefix_cache=False, step_tokens=32)
    other = run(engine, mixed, tmp_path / "b", settings={}, sampling=SAMPLING, chunk=5)
    for name, rows in plain.items():
        assert {row["id"]: row for row in rows} == {row["id"]: row for row in other[name]}


def test_a_limit_takes_the_same_items_and_a_larger_one_contains_them(data_folder):
    benchmark = BENCHMARKS["arc_easy"]
    items = benchmark.load(EvalData(data_folder))
    few, more = (chosen(benchmark, items[::-1], n) for n in (5, 12))
    assert more[:5] == few == chosen(benchmark, items, 5)


def test_a_stopped_run_goes_on_where_it_was(make_engine, data_folder, tmp_path):
    plan = load(data_folder, "arc_easy")
    whole = run(make_engine(), plan, tmp_path / "whole", settings={"seed": 0})

    def stop(benchmark, done, total):
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_engine(), plan, tmp_path / "part", settings={"seed": 0}, chunk=8, on_progress=stop)
    path = tmp_path / "part" / "items.jsonl"
    kept = path.read_text()
    assert kept.count("\n") == 16
    path.write_text(kept + kept[:37])  # the machine went down within a line
    asked = []
    rows = run(make_engine(), plan, tmp_path / "part", settings={"seed": 0}, chunk=8,
               on_progress=lambda benchmark, done, total: asked.append(done))  # fmt: skip
    assert asked[0] == 16
    assert rows == whole
    assert path.read_text().startswith(kept)
    with pytest.raises(PunaError, match="another seed"):
        run(make_engine(), plan, tmp_path / "part", settings={"seed": 1})


def test_a_scorer_that_fails_ends_nothing_and_long_answers_go_unread(make_engine, tmp_path):
    def score(item, text):
        raise RecursionError

    items = [Item(str(n), Text("Question:", max_tokens=3), None) for n in range(3)]
    benchmark = Benchmark("x", "X", (), lambda data: items, score, "", "", "")
    rows = run(make_engine(), [(benchmark, items)], tmp_path / "x", settings={})["x"]
    assert [row["reason"] for row in rows] == ["the scorer failed (RecursionError)"] * 3
    from puna.evals.runner import scored

    assert scored(benchmark, items[0], "9" * 10_000_000) == Score(0.0, "", "longer than 200,000 characters")


def evaluate(model_directory, data_folder, tmp_path, *more):
    command = ["eval", str(model_directory), "--data", str(data_folder), "-o", str(tmp_path / "out"), "--device", "cpu"]
    return main([*command, *more])


def test_the_command_writes_results_with_intervals_and_baselines(model_directory, data_folder, tmp_path, capsys):
    assert (
        evaluate(model_directory, data_folder, tmp_path, "--suite", "arc_easy,gsm8k", "--samples", "1", "--json") == 0
    )
    results = json.loads(capsys.readouterr().out)
    arc, gsm8k = results["benchmarks"]
    assert arc["items"] == 40
    assert arc["interval"][0] <= arc["value"] <= arc["interval"][1]
    assert arc["baselines"]["chance"] == pytest.approx(1 / 3)
    assert arc["baselines"]["constant"] == {"answer": "always choice 1", "value": 14 / 40, "items": 40}
    assert 0 < arc["sampled"]["pass@1"]["value"] < 1
    assert gsm8k["sampled"]["samples"] == 1
    assert results["model"]["weights_sha256"]
    lines = (tmp_path / "out" / "items.jsonl").read_text().splitlines()
    assert len(lines) == 49
    rows = [row for row in map(json.loads, lines) if row["benchmark"] == "arc_easy"]
    assert sum(row["value"] for row in rows) / 40 == pytest.approx(arc["value"])


@pytest.mark.parametrize(
    ("damage", "more", "sentence"),
    [
        (None, ["--suite", "knowlege"], "no suite or benchmark 'knowlege'. Did you mean 'knowledge'?"),
        (None, [], "No benchmark was given."),
        (None, ["--suite", "arc_easy", "--limit", "0"], "--limit 0 is below 1."),
        (None, ["--suite", "arc_easy", "--data", "/no/such/folder"], "no folder of evaluation data at /no/such/folder"),
        ("cut", ["--suite", "arc_easy"], "arc_easy_validation.jsonl, line 2: this is not JSON"),
        ("list", ["--suite", "arc_easy"], "arc_easy_validation.jsonl, line 1: this is not a JSON object."),
        ("field", ["--suite", "arc_easy"], "arc_easy_validation.jsonl, line 1: 'choices' is missing."),
        ("gone", ["--suite", "arc_easy"], "arc_easy_validation.jsonl is not there."),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    model_directory, data_folder, tmp_path, capsys, damage, more, sentence
):
    packed = data_folder / "mc" / "arc_easy_validation.jsonl.xz"
    if damage:
        packed.unlink()
        good = '{"id": "a", "question": "q", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "A"}\n'
        text = {"cut": good + good[:40], "list": "[1]\n", "field": '{"id": "a", "question": "q"}\n'}.get(damage)
        if text:
            packed.with_suffix("").write_text(text)
    assert evaluate(model_directory, data_folder, tmp_path, *more) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
