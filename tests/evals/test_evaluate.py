"""A whole evaluation: the page, the model card's files, another model beside it, and what the corpus holds."""

import json
import shutil

import pytest
import yaml

from puna.cli.main import main
from puna.core.errors import PunaError
from puna.data.build import build_corpus
from puna.data.corpus import Corpus
from puna.data.recipe import DataRecipe
from puna.evals.benchmarks.dclm_core import TASKS, centred
from puna.evals.catalogue import BENCHMARKS
from puna.evals.contamination import contamination, seen_items
from puna.evals.contract import Benchmark, Item, Text
from puna.evals.output.compare import compare
from puna.evals.output.model_card import DATASETS
from puna.evals.output.published import COLUMNS, own_row
from puna.evals.output.report import render, write_report

SENTENCE = "the quick brown fox jumps over the lazy dog and then runs far away from here at night"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts").mkdir()
    for number in range(30):
        text = f"Document {number} says nothing that anybody asked for, in {number} words or more. " * 4
        if number == 7:
            text += "Before. The QUICK brown fox -- jumps over the lazy dog, and then runs far away from here at night!"
        (folder / "texts" / f"{number}.txt").write_text(text)
    recipe = DataRecipe.model_validate(
        {
            "sources": [{"name": "texts", "path": str(folder / "texts")}],
            "heldout": {"share": 0.0},
            "dedup": {"minhash": False},
            "tokenizer": {"vocab_size": 400},
        }
    )
    build_corpus(recipe, folder / "corpus")
    return folder / "corpus"


def test_items_that_the_corpus_holds_are_found(corpus):
    bodies = {
        "seen": f"Question: {SENTENCE}?",
        "other": SENTENCE.replace("lazy dog", "tired cat"),
        "short-seen": " ".join(SENTENCE.split()[:9]),
        "too-short": "the quick brown fox",
    }
    items = [Item(id, Text(body), "", body=body) for id, body in bodies.items()]
    benchmark = Benchmark("x", "X", (), lambda data: items, lambda item, text: 0, "", "", "")  # type: ignore[arg-type]
    seen, short = seen_items(Corpus.open(corpus), [(benchmark, items)])
    assert seen["x"] == {"seen", "short-seen"}
    assert short["x"] == {"too-short"}
    rows = [{"id": id, "value": float(id.endswith("seen"))} for id in bodies]
    found = contamination(rows, seen["x"], short["x"], corpus="c")
    assert (found["seen"], found["too_short"], found["score_seen"]["value"], found["score_unseen"]["value"]) == (
        2,
        1,
        1,
        0,
    )


def test_two_models_are_compared_item_by_item():
    def rows(*values):
        return {"x": [{"id": str(n), "value": value} for n, value in enumerate(values)]}

    [one] = compare(rows(*[1.0] * 12, *[0.0] * 8), rows(*[0.0] * 10, *[1.0] * 2, *[0.0] * 8))
    assert (one["items"], one["value"], one["other"], one["difference"]) == (20, 0.6, 0.1, 0.5)
    assert (one["only_ours"], one["only_theirs"], one["p"]) == (10, 0, pytest.approx(2 / 1024))
    assert 0 < one["interval"][0] < 0.5 < one["interval"][1]
    [alike] = compare(rows(1.0, 1.0), rows(1.0, 1.0))
    assert alike["interval"][0] < -0.5 < 0.5 < alike["interval"][1]
    assert compare(rows(0.5, 1.0), rows(1.0, 1.0))[0]["p"] is None
    with pytest.raises(PunaError, match="no item in common"):
        compare(rows(1.0), {"y": []})


def test_the_folder_of_an_evaluation(model_directory, data_folder, corpus, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(model_directory, other)
    command = ["eval", str(model_directory), "--data", str(data_folder), "-o", str(out), "--device", "cpu", "--fast"]
    command += ["--suite", "arc_easy,gsm8k,planning.grid", "--limit", "6", "--samples", "1", "--against", str(other)]
    assert main([*command, "--corpus", str(corpus)]) == 0
    said = capsys.readouterr()
    assert "ARC-Easy" in said.out
    assert "against" in said.out
    results = json.loads((out / "results.json").read_text())
    assert [one["difference"] for one in results["against"]["benchmarks"]] == [0, 0, 0]
    assert all(one["contamination"]["items"] == 6 for one in results["benchmarks"])
    assert results["benchmarks"][2]["groups"]
    page = (out / "report.html").read_text()
    for words in (
        "Scores",
        "Compared with another model",
        "Compared with published models",
        "What the corpus holds",
        "Wrong answers",
    ):
        assert f"<h2>{words}</h2>" in page
    entries = yaml.safe_load((out / ".eval_results" / "puna.yaml").read_text())
    assert [entry["dataset"]["id"] for entry in entries] == ["allenai/ai2_arc", "openai/gsm8k"]
    hub = pytest.importorskip("huggingface_hub")
    index = yaml.safe_load((out / "model-index.yaml").read_text())
    card = hub.ModelCardData(model_name="tiny", eval_results=None, **index)
    assert [found.metric_value for found in card.eval_results] == [
        round(100 * one["value"], 2) for one in results["benchmarks"]
    ]
    if hasattr(hub, "parse_eval_result_entries"):
        parsed = hub.parse_eval_result_entries(entries)
        assert [one.value for one in parsed] == [entry["value"] for entry in entries]


def test_what_a_model_wrote_cannot_act_on_the_page(model_directory, data_folder, tmp_path):
    out = tmp_path / "out"
    command = ["eval", str(model_directory), "--data", str(data_folder), "-o", str(out), "--device", "cpu", "--fast"]
    assert main([*command, "--suite", "gsm8k", "--limit", "2", "--samples", "0"]) == 0
    evil = '</pre><script>alert(1)</script><img src=x onerror="alert(2)">'
    rows = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    rows[0] |= {
        "response": evil,
        "answer": evil,
        "question": evil,
        "target": evil,
        "id": evil,
        "reason": evil,
        "group": evil,
    }
    rows[0]["value"] = 0.0
    page = render(json.loads((out / "results.json").read_text()), rows)
    assert page.count("<script>") == 1
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "script-src 'sha256-" in page
    assert "default-src 'none'" in page
    (out / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write_report(out).read_text() == page


def test_core_is_the_mean_of_centred_accuracies():
    results = [
        {"benchmark": "core_copa", "value": 0.75},
        {"benchmark": "core_boolq", "value": 0.62},
        {"benchmark": "x", "value": 1},
    ]
    found = centred(results)
    assert found["centred"] == {"core_copa": 0.5, "core_boolq": 0.0}
    assert (found["value"], found["tasks"], found["of"], len(TASKS)) == (0.25, 2, 22, 20)
    assert centred(results[2:]) is None


def test_a_value_beside_published_ones_says_how_it_was_measured():
    one = {"benchmark": "gsm8k", "value": 0.25, "interval": [0.2, 0.3], "items": 100, "of": 1319}
    cells = own_row([one])
    assert cells[2] == "25.0 (20.0 to 30.0, 100 items)*"  # other examples than published
    assert cells.count("–") == len(COLUMNS) - 1
    assert {column.ours for column in COLUMNS} <= set(BENCHMARKS)
    assert set(DATASETS) <= set(BENCHMARKS)
