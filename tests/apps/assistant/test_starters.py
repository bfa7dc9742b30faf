"""Start prompts follow what a model learned, as its puna.json says."""

import json
from pathlib import Path
from typing import Any

import pytest

from puna.apps.assistant.starters import starters
from puna.serve.openai.protocol import ModelCard


def learned(directory: Path, lineage: Any) -> dict[str, Any]:
    (directory / "puna.json").write_text(lineage if isinstance(lineage, str) else json.dumps(lineage))
    return starters(ModelCard(id="m", root=str(directory)))


@pytest.mark.parametrize(("share", "kind"), [(1.0, "code"), (0.9, "code"), (0.5, "any"), (0.02, "prose"), (0, "prose")])
def test_the_corpus_says_what_a_model_read(tmp_path: Path, share: float, kind: str) -> None:
    corpus = {"path": "corpora/x", "content_hash": "", "code_share": share}
    assert learned(tmp_path, {"stage": "base", "corpus": corpus}) == {"kind": kind, "prompts": []}


def test_a_tuned_model_has_its_parents_corpus(tmp_path: Path) -> None:
    assert learned(tmp_path, {"stage": "sft", "parent": {"corpus": {"code_share": 1.0}}})["kind"] == "code"


def test_a_model_tuned_on_tasks_is_asked_such_tasks(tmp_path: Path) -> None:
    tasks = [{"name": "rewriting.list", "levels": [1]}, {"name": "code.tracing", "levels": [1, 2]}]
    found = learned(tmp_path, {"stage": "sft", "recipe": {"data": {"tasks": tasks}}, "parent": None})
    assert len(set(found["prompts"])) == 4
    assert found == starters(ModelCard(id="m", root=str(tmp_path)))  # the same each time


@pytest.mark.parametrize(
    "lineage",
    [
        "",
        "[]",
        "{",
        '{"corpus": 1}',
        '{"corpus": {"code_share": "x"}}',
        '{"recipe": {"data": {"tasks": [{"name": "no"}]}}}',
    ],
)
def test_what_says_nothing_gets_prompts_of_all_kinds(tmp_path: Path, lineage: str) -> None:
    assert learned(tmp_path, lineage) == {"kind": "any", "prompts": []}


def test_models_elsewhere_get_prompts_of_all_kinds() -> None:
    assert starters(ModelCard(id="m")) == {"kind": "any", "prompts": []}
