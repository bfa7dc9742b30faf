"""Evaluation files: what is missing is named with where it comes from, and a suite without any is refused."""

import json

import pytest

from puna.cli.main import main
from puna.core.errors import MissingFiles, PunaError
from puna.evals.catalogue import BENCHMARKS, suites
from puna.evals.contract import Benchmark, Item, Score, Text
from puna.evals.datasets import EvalData, first_file
from puna.evals.evaluate import load_items
from puna.evals.evaluate_model import evaluate_model
from puna.evals.origins import ORIGINS, origin
from puna.evals.runner import run


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    monkeypatch.delenv("PUNA_EVAL_DATA", raising=False)
    monkeypatch.delenv("PUNA_TEST_DATA", raising=False)


def loaded(suite, data, notes=None, benchmarks=None):
    chosen = benchmarks or [BENCHMARKS[name] for name in suites()[suite]]
    return load_items(chosen, data, 2, named=False, suites=[suite], say=(notes if notes is not None else []).append)


@pytest.mark.parametrize("suite", ["code", "math", "planning", "reasoning", "knowledge", "instruction", "tools", "all"])
def test_a_suite_of_which_nothing_is_there_is_refused(suite, tmp_path):
    with pytest.raises(
        MissingFiles, match=f"Nothing of {suite} is here: no folder of evaluation data was named"
    ) as error:
        loaded(suite, EvalData(None))
    assert "None" not in str(error.value)
    assert "github.com/" in str(error.value) or "huggingface.co/" in str(error.value)
    assert "--data" in str(error.value)
    with pytest.raises(MissingFiles, match=f"Nothing of {suite} is here: the folder is {tmp_path}"):
        loaded(suite, EvalData(tmp_path))


def test_what_the_hub_has_is_said():
    with pytest.raises(MissingFiles, match="--hub fetches humaneval, mbpp, mbpp_sanitized"):
        loaded("code", EvalData(None))
    with pytest.raises(MissingFiles) as error:
        loaded("planning", EvalData(None))
    assert "--hub" not in str(error.value)


def test_puna_s_own_tasks_need_no_files():
    quick = [BENCHMARKS[name] for name in ("arithmetic.addition", "arithmetic.chain")]
    assert [benchmark for benchmark, *_ in loaded("puna", EvalData(None), [], quick)] == quick


def test_of_a_suite_that_is_partly_there_the_rest_is_left_out_with_a_note(data_folder):
    notes = []
    found = loaded("math", EvalData(data_folder), notes)
    assert [benchmark.name for benchmark, *_ in found] == ["gsm8k"]
    assert notes == [
        f"Left out, as their files are not here (the folder is {data_folder}): mgsm, math500, math. See puna eval list."
    ]


def test_a_benchmark_of_a_plugin_that_needs_no_files_is_there():
    own = Benchmark(
        "own", "Own", ("code",), lambda data: [Item("1", Text("?"), "")], lambda item, text: Score(0.0), "", "", ""
    )
    found = loaded("code", EvalData(None), [], [BENCHMARKS["humaneval"], own])
    assert [benchmark.name for benchmark, *_ in found] == ["own"]


def test_the_command_and_the_api_say_so_before_a_model_is_loaded(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")  # looks like a model, and is never opened
    model = str(tmp_path)
    assert main(["eval", model, "--suite", "code"]) == 2
    message = capsys.readouterr().err
    assert "Nothing of code is here" in message
    assert "humaneval/HumanEval.jsonl, from github.com/openai/human-eval" in message
    with pytest.raises(MissingFiles, match="Nothing of knowledge is here"):
        evaluate_model(model, "knowledge,gsm8k")
    assert main(["eval", model, "--suite", "gsm8k"]) == 2
    message = capsys.readouterr().err
    assert "gsm8k/test.jsonl is not here: no folder of evaluation data was named" in message
    assert "github.com/openai/grade-school-math" in message


def test_the_list_says_where_files_come_from_and_how_they_are_laid_out(capsys, data_folder):
    assert main(["eval", "list"]) == 0
    text = capsys.readouterr().out
    assert all(one.files in text and one.source.split(",")[0] in text for one in ORIGINS)
    assert main(["eval", "list", "--data", str(data_folder)]) == 0
    text = capsys.readouterr().out
    assert "gsm8k/*.jsonl" not in text
    assert "humaneval/HumanEval.jsonl" in text
    assert main(["eval", "list", "--json"]) == 0
    rows = {row["benchmark"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["gsm8k"]["held"], rows["gsm8k"]["hub"], rows["gsm8k"]["file"]) == (False, True, "gsm8k/test.jsonl")
    assert (rows["math"]["held"], rows["math"]["hub"]) == (False, False)
    assert "github.com/hendrycks" not in (rows["code.repair"]["from"] or "")
    assert rows["code.repair"]["held"]


def test_every_file_has_an_origin_and_every_origin_a_file(test_data):
    for name, benchmark in BENCHMARKS.items():
        if "puna" not in benchmark.suites:
            file = first_file(benchmark.load, EvalData(None))
            assert file is not None, name
            assert origin(file.name) is not None, file
    held = EvalData(test_data / "eval")
    assert [one.files for one in ORIGINS if not held.has(one.files)] == []


SETTINGS = {
    "weights_sha256": {"model.safetensors": "aa"}, "tokenizer_sha256": "bb", "form": "text", "dtype": "float32",
    "device": "cpu", "deterministic": True, "samples": 4, "temperature": 0.8, "top_p": 0.95, "seed": 0, "puna": "0.1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"weights_sha256": {"model.safetensors": "cc"}}, "another model (its weights differ)."),
        ({"tokenizer_sha256": "dd"}, "another tokenizer."),
        ({"form": "chat"}, "another form of asking (text, now chat)."),
        ({"dtype": "bfloat16"}, "another precision (float32, now bfloat16)."),
        ({"deterministic": False}, "another arithmetic (without --fast, now with --fast)."),
        ({"samples": 2, "temperature": 0.5},
         "another number of sampled answers (4, now 2), another temperature (0.8, now 0.5)."),
        ({"puna": "0.2"}, "another version of Puna (0.1, now 0.2)."),
        ({"extra": 1}, "another extra (not recorded, now 1)."),
    ],
)  # fmt: skip
def test_results_of_other_settings_are_refused_in_words(changed, words, tmp_path):
    run(None, [], tmp_path, settings=SETTINGS)
    with pytest.raises(PunaError) as error:
        run(None, [], tmp_path, settings=SETTINGS | changed)
    assert words in str(error.value)
    assert "sha256" not in str(error.value)
