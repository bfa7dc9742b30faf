"""What a person may start with: prompts that follow what a model learned, as its puna.json says.

A model that was tuned on tasks is asked such tasks; one that read only code, or none, is not asked for the other. The
models of others do not say what they learned, and get prompts of all kinds.
"""

import random
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from puna.core.errors import PunaError
from puna.core.files import read_json
from puna.serve.openai.protocol import ModelCard

MOSTLY = 0.85
"""The share of a corpus from which it is taken to be all code, or (the rest) all prose."""
MAX_STARTERS = 4
LONGEST = 600

Kind = Literal["code", "prose", "any"]


def starters(card: ModelCard) -> dict[str, Any]:
    """{kind, prompts}: what a model learned to read, and problems of the tasks that it learned to solve."""
    return _of_directory(card.root) if card.root else {"kind": "any", "prompts": []}


@lru_cache(maxsize=64)
def _of_directory(root: str) -> dict[str, Any]:
    path = Path(root) / "puna.json"
    try:
        lineage = read_json(path) if path.is_file() else {}
        return {"kind": kind_of(lineage), "prompts": problems_of(lineage)}
    except (PunaError, OSError, ValueError, KeyError, TypeError, AttributeError):  # written or edited by others
        return {"kind": "any", "prompts": []}


def kind_of(lineage: dict[str, Any]) -> Kind:
    """Whether a model read nothing but code, or none, by the corpus of its pretraining."""
    corpus = lineage.get("corpus") or (lineage.get("parent") or {}).get("corpus") or {}
    share = corpus.get("code_share")
    if share is None:
        share = _share_of_corpus(str(corpus.get("path", "")), str(corpus.get("content_hash", "")))
    if share is None:
        return "any"
    return "code" if share >= MOSTLY else "prose" if share <= 1 - MOSTLY else "any"


def _share_of_corpus(path: str, content_hash: str) -> float | None:
    """The share of code in the corpus itself: models of before the share was in puna.json name only the directory."""
    from puna.data.content import code_share
    from puna.data.corpus import Corpus

    if not path or not (Path(path) / "manifest.json").is_file():
        return None
    corpus = Corpus.open(Path(path))
    return code_share(corpus) if corpus.content_hash == content_hash else None


def problems_of(lineage: dict[str, Any]) -> list[str]:
    """One problem of each task that the model was tuned on, and more of them until there are enough."""
    from puna.tasks.catalogue import find

    recipe = lineage.get("recipe") or {}
    places = [recipe, *(recipe.get(name) or {} for name in ("data", "prompts", "measure"))]
    asked: list[dict[str, Any]] = next((tasks for place in places if (tasks := place.get("tasks"))), [])
    found: list[str] = []
    draw = random.Random(0)
    for turn in range(MAX_STARTERS):
        for task in asked:
            levels = task.get("levels") or [1]
            prompt = find(task["name"]).sample(draw.randrange(2**32), levels[turn % len(levels)]).prompt
            if len(prompt) <= LONGEST and prompt not in found:
                found.append(prompt)
    return found[:MAX_STARTERS]
