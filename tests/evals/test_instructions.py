"""IFEval's instructions: those that cannot be checked are a fault of the file, and no exception in a check."""

import json
import re

import pytest

from puna.core.errors import DataError
from puna.evals.benchmarks.ifeval import ARGUMENTS, BENCHMARKS, CHECKS, instructions_followed, wrong_arguments
from puna.evals.contract import Item, Text
from puna.evals.datasets import EvalData
from puna.evals.runner import scored

WRONG = [
    ("length_constraints:number_sentences", {}, "lacks 'num_sentences'"),
    ("length_constraints:number_sentences", {"num_sentences": 3}, "lacks 'relation'"),
    ("length_constraints:number_sentences", {"num_sentences": "3", "relation": "at least"}, "not a count"),
    ("length_constraints:number_sentences", {"num_sentences": True, "relation": "at least"}, "not a count"),
    ("length_constraints:number_words", {"num_words": -1, "relation": "at least"}, "not a count"),
    ("length_constraints:number_words", {"num_words": 3.5, "relation": "at least"}, "not a count"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at most"}, "not 'at least' or 'less than'"),
    ("keywords:existence", {"keywords": "mother"}, "not a list of texts"),
    ("keywords:existence", {"keywords": []}, "not a list of texts"),
    ("keywords:forbidden_words", {"forbidden_words": [3]}, "not a list of texts"),
    ("keywords:frequency", {"keyword": "", "frequency": 1, "relation": "at least"}, "not a text"),
    ("keywords:letter_frequency", {"letter": 3, "let_frequency": 1, "let_relation": "at least"}, "not a text"),
    ("startend:end_checker", {"end_phrase": ["Bye."]}, "not a text"),
    ("startend:end_checker", {"phrase": "Bye."}, "lacks 'end_phrase'"),
    ("punctuation:no_comma", {"keywords": ["a"]}, "takes no 'keywords'"),
    ("punctuation:no_colon", {}, "there is no instruction 'punctuation:no_colon'"),
]


def rows(tmp_path, *pairs, key=7):
    (tmp_path / "ifeval").mkdir(exist_ok=True)
    kinds, kwargs = [kind for kind, _ in pairs], [given for _, given in pairs]
    row = {"key": key, "prompt": "Write.", "instruction_id_list": kinds, "kwargs": kwargs}
    (tmp_path / "ifeval" / "ifeval_input_data.jsonl").write_text(json.dumps(row) + "\n")
    return BENCHMARKS[0].load(EvalData(tmp_path))


@pytest.mark.parametrize(("kind", "arguments", "reason"), WRONG)
def test_wrong_arguments_are_refused_when_the_file_is_read(kind, arguments, reason, tmp_path):
    with pytest.raises(DataError, match=f"IFEval, key 7: .*{re.escape(reason)}"):
        rows(tmp_path, ("detectable_format:title", {}), (kind, arguments))


@pytest.mark.parametrize(("kind", "arguments", "reason"), WRONG)
def test_a_check_of_wrong_arguments_gives_the_reason_and_no_exception(kind, arguments, reason):
    item = Item("1", Text(""), [[kind, arguments]])
    for score in (instructions_followed(item, "Some text."), scored(BENCHMARKS[0], item, "Some text.")):
        assert score.value == 0
        assert score.reason.startswith("cannot be checked: ")
        assert reason in score.reason


def test_as_many_kwargs_as_instructions(tmp_path):
    (tmp_path / "ifeval").mkdir()
    row = {"key": 9, "prompt": "Write.", "instruction_id_list": ["detectable_format:title"], "kwargs": []}
    (tmp_path / "ifeval" / "ifeval_input_data.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="key 9: it needs one kwargs for each instruction"):
        BENCHMARKS[0].load(EvalData(tmp_path))


def test_nulls_and_whole_floats_of_tables_are_read(tmp_path):
    """The Hub's tables have every column in every row, and numbers next to nulls are floats."""
    kwargs = {"num_words": 3.0, "relation": "at least", "keywords": None, "letter": None}
    [item] = rows(tmp_path, ("length_constraints:number_words", kwargs), ("punctuation:no_comma", None))
    assert item.target == [["length_constraints:number_words", {"num_words": 3, "relation": "at least"}],
                           ["punctuation:no_comma", {}]]  # fmt: skip
    assert instructions_followed(item, "one two three").value == 1


def test_the_real_file_is_right_throughout(test_data):
    items = BENCHMARKS[0].load(EvalData(test_data / "eval"))
    pairs = [pair for item in items for pair in item.target]
    assert len(items) == 541
    assert {kind for kind, _ in pairs} == set(CHECKS) == set(ARGUMENTS)
    assert not any(wrong_arguments(*pair) for pair in pairs)
    for item in items:
        assert "cannot" not in instructions_followed(item, "Some text, and more of it.").reason
