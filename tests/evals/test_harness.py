"""lm-evaluation-harness on our engine, and rows from the Hub: both optional, both asked for by name only."""

import json
import sys

import pytest

from puna.cli.main import main
from puna.evals.catalogue import BENCHMARKS
from puna.evals.contract import Text
from puna.evals.datasets import EvalData, MissingFiles
from puna.evals.generation import Sampling, likelihoods, write


def test_without_the_harness_one_sentence_says_what_to_install(model_directory, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    assert main(["eval", str(model_directory), "--lm-eval", "arc_easy", "--device", "cpu"]) == 2
    assert "needs the package lm-eval, 0.4.10 or later. pip install 'puna[lm-eval]'." in capsys.readouterr().err


def test_its_requests_get_what_our_own_benchmarks_get(make_engine):
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    from puna.evals.lm_eval_harness import engine_model

    def asked(kind, *pairs):
        return [instance(kind, {}, pair, number) for number, pair in enumerate(pairs)]

    engine = make_engine()
    model = engine_model(engine)
    pairs = [("Question: the apple", " is red"), ("", "the tree"), ("Question: " * 400, " dogs"), ("Which ", "fruit")]
    ours = [one.likelihood for one in likelihoods(engine, pairs)]
    assert model.loglikelihood(asked("loglikelihood", *pairs)) == [(one.logprob, one.greedy) for one in ours]
    prompts = ["Question: Which of these", "Answer: the"]
    [*texts] = model.generate_until(
        asked("generate_until", *((text, {"until": ["tree"], "max_gen_toks": 12}) for text in prompts))
    )
    mine = write(engine, [Text(t, ("tree",), 12) for t in prompts], prompts, chat=False, sampling=Sampling())
    assert texts == [one.text for one in mine]
    [whole] = model.loglikelihood_rolling(asked("loglikelihood_rolling", ("the apple",)))
    assert whole == pytest.approx(likelihoods(engine, [("", "the apple")])[0].likelihood.logprob, abs=1e-4)


def test_its_tasks_run_from_local_files(model_directory, tmp_path, capsys, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    rows = [{"question": "Which is red?", "options": ["an apple", "a stone"], "right": n % 2} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "reds",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{right}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "reds.yaml").write_text(json.dumps(task))
    command = ["eval", str(model_directory), "--include", str(tmp_path), "--device", "cpu", "--json", "--lm-eval"]
    assert main([*command, "reds"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["results"]["reds"]["acc,none"] == 0.5  # every question is asked twice, with either answer right
    assert main([*command, "redds"]) == 2
    assert "lm-eval has no task 'redds'" in capsys.readouterr().err


def test_rows_come_from_the_hub_only_when_it_was_asked(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    from puna.data.document import Input

    rows = [{"question": f"What is {n}?", "answer": f"So\n#### {n}"} for n in range(9)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0000.parquet")
    asked = []

    def list_dataset(source):
        asked.append((source.id, source.revision, source.glob))
        return [Input("0000.parquet", 1, "0000.parquet", "abc")]

    monkeypatch.setattr("puna.data.reading.hub.list_dataset", list_dataset)
    monkeypatch.setattr("puna.data.reading.hub.fetch", lambda source, item: tmp_path / item.place)
    with pytest.raises(MissingFiles, match="fetch with --hub"):
        BENCHMARKS["gsm8k"].load(EvalData(None))
    items = BENCHMARKS["gsm8k"].load(EvalData(None, hub=True))
    assert [item.target for item in items] == [str(n) for n in range(9)]
    assert asked[0] == ("openai/gsm8k", "refs/convert/parquet", ["main/test/*.parquet"])
