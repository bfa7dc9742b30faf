"""Decontamination finds items of real evaluation sets in documents, and leaves other documents alone."""

import gzip
import json
import lzma
import random
from pathlib import Path

import pytest

from puna.core.errors import PunaError
from puna.data.cleaning.decontaminate import Evaluations
from puna.data.recipe import DecontaminateConfig


def evaluations(*paths: Path, **fields: object) -> Evaluations:
    return Evaluations(DecontaminateConfig.model_validate({"paths": [str(path) for path in paths], **fields}))


def test_planted_humaneval_prompts_are_found(test_data: Path) -> None:
    path = test_data / "eval" / "humaneval" / "HumanEval.jsonl.gz"
    found = evaluations(path)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for line in file]
    for prompt in prompts[::20]:
        document = "import os\n\n\ndef mine():\n    return os.getcwd()\n\n\n" + prompt.upper() + "\n\nprint(mine())\n"
        assert found.match(document) == "humaneval/HumanEval"
    for module in (random, json, gzip):
        assert found.match(Path(module.__file__).read_text(encoding="utf-8")) == ""


def test_a_folder_of_sets_in_several_formats(test_data: Path) -> None:
    folder, table = test_data / "eval" / "ifeval", test_data / "eval" / "mgsm" / "mgsm_de.tsv"
    found = evaluations(folder, table)
    with lzma.open(folder / "ifeval_input_data.jsonl.xz", "rt", encoding="utf-8") as file:
        prompt = json.loads(file.readline())["prompt"]
    assert found.match(f"Homework. {prompt} Answer below.") == "ifeval/ifeval_input_data"
    german = table.read_text(encoding="utf-8").splitlines()[0].split("\t")[0]
    assert found.match(german) == "mgsm/mgsm_de"
    assert found.match("A text about nothing in particular, and certainly not about anything sold in April.") == ""


def test_short_items_count_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(
        '{"question": "how many red apples are in the basket today", "answer": "there are seven of them"}\n'
    )
    found = evaluations(tmp_path / "set.jsonl")
    assert found.match("So: how many red apples are in the basket today? Nobody knew.").endswith("/set")
    assert found.match("how many red apples are in the basket") == ""
    assert found.match("there are seven of them") == ""  # five words say nothing


def test_only_the_given_fields_count(tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    (tmp_path / "set.json").write_text(json.dumps([{"data": {"prompt": words, "licence": words.replace(" ", " x ")}}]))
    found = evaluations(tmp_path / "set.json", fields=["prompt"])
    assert found.match(words)
    assert not found.match(words.replace(" ", " x "))
    (tmp_path / "set.csv").write_text(f"id,prompt,other\n1,{words},{words[::-1]}\n")
    found = evaluations(tmp_path / "set.csv", fields=["prompt"])
    assert found.match(words)
    assert not found.match(words[::-1])


def test_bad_sets_are_named(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match="does not exist"):
        evaluations(tmp_path / "nothing.jsonl")
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(PunaError, match=r"broken\.json cannot be read as an evaluation set"):
        evaluations(tmp_path / "broken.json")
    (tmp_path / "short.txt").write_text("too short\n")
    with pytest.raises(PunaError, match=r"short\.txt contains no text of at least 8 words"):
        evaluations(tmp_path / "short.txt")
