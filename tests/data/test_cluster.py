"""Building through datatrove's executors gives the corpus that building at once gives."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.core.errors import PunaError
from puna.data.build import build_corpus
from puna.data.corpus import Corpus
from puna.data.recipe import DataRecipe

pytest.importorskip("datatrove", reason="needs the extra 'cluster'")
from puna.data.cluster import build_on_cluster

Make = Callable[..., DataRecipe]


@pytest.fixture
def made(tmp_path: Path, recipe: Make) -> DataRecipe:
    """Two files of rows with near duplicates within and across them, and one document to be filtered away."""
    dice = random.Random(1)
    texts = [" ".join("".join(dice.choices("abcdefgh", k=6)) for _ in range(200)) for _ in range(20)]
    rows = [{"text": text, "title": f"t{i}"} for i, text in enumerate(texts)]
    rows += [{"text": f"{text} and more", "title": f"t{i}"} for i, text in enumerate(texts[:8])]
    rows.append({"text": "short", "title": "short"})
    (tmp_path / "in").mkdir()
    for part in range(2):
        lines = [json.dumps(row) + "\n" for row in rows[part::2]]
        (tmp_path / "in" / f"{part}.jsonl").write_text("".join(lines))
    source = {"name": "rows", "path": str(tmp_path / "in"), "name_field": "title", "licence": "CC0"}
    return recipe([source], filters={"min_bytes": 100}, heldout={"share": 0.2}, dedup={"bands": 6, "rows": 4})


def test_local_stages_give_the_same_documents(made: DataRecipe, tmp_path: Path) -> None:
    together = build_corpus(made, tmp_path / "together")
    staged = build_on_cluster(made, tmp_path / "staged", executor="local", tasks=2, workers=1)
    assert staged is not None
    for split in ("train", "heldout"):
        names = [
            sorted(name for name, *_ in Corpus.open(tmp_path / place, verify=True).documents(split))
            for place in ("together", "staged")
        ]
        assert names[0] == names[1]
    assert staged["recipe"] == together["recipe"]
    assert staged["sources"][0]["documents_read"] == 29
    assert staged["sources"][0]["files"] == 2
    counted = {reason: count["documents"] for reason, count in staged["drops"]["rows"].items()}
    assert counted == {"short": 1, "near_duplicate": 8}
    assert not (tmp_path / "staged.work").exists()


@pytest.mark.parametrize("invalid_utf8", ["drop", "replace"])
def test_a_bad_byte_costs_the_same_document_in_stages(invalid_utf8: str, tmp_path: Path, recipe: Make) -> None:
    dice = random.Random(2)
    texts = [" ".join("".join(dice.choices("abcdefgh", k=6)) for _ in range(50)).encode() for _ in range(24)]
    texts[3], texts[20] = b"caf\xe9 " + texts[3], texts[20] + b" \xf0\x9f"
    (tmp_path / "a.txt").write_bytes(b"\r\n<|end|>\r\n".join(texts[:12]))
    (tmp_path / "b.jsonl").write_bytes(
        b"".join(b'{"text": "%s", "title": "t\xff"}\n' % text for text in texts[12:])  # and a bad byte in every name
    )
    sources = [
        {"name": "plain", "path": str(tmp_path / "a.txt"), "separator": "<|end|>"},
        {"name": "rows", "path": str(tmp_path / "b.jsonl")},
    ]
    made = recipe(sources, filters={"invalid_utf8": invalid_utf8}, heldout={"share": 0.2})
    together = build_corpus(made, tmp_path / "together")
    staged = build_on_cluster(made, tmp_path / "staged", executor="local", tasks=2, workers=1)
    assert staged is not None
    assert staged["drops"] == together["drops"]
    counts = {source: entry["invalid_utf8"]["documents"] for source, entry in together["drops"].items()}
    assert counts == ({"plain": 1, "rows": 1} if invalid_utf8 == "drop" else {})
    names = [
        {name for split in ("train", "heldout") for name, *_ in Corpus.open(tmp_path / place).documents(split)}
        for place in ("together", "staged")
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 24 - sum(counts.values())


def test_slurm_jobs_wait_for_one_another(made: DataRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nn=$(wc -l < {tmp_path}/asked)\n'
        f'for last; do :; done\ncp "$last" {tmp_path}/script$n\necho Submitted batch job $n\n'
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    assert build_on_cluster(made, tmp_path / "c", executor="slurm", tasks=4, workers=1, partition="cpu") is None
    asked = [line for line in (tmp_path / "asked").read_text().splitlines() if "RUN_OFFSET" in line]
    assert ["afterok" in line for line in asked] == [False, True, True, True]  # clean, buckets, cluster, corpus
    script = (tmp_path / "script1").read_text()
    assert "#SBATCH --partition=cpu" in script
    assert "#SBATCH --array=0-3" in script
    assert "launch_pickled_pipeline" in script
    assert not (tmp_path / "c").exists()


def test_bad_input_is_said_before_any_stage(made: DataRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(recipe: DataRecipe = made, executor: str = "local", partition: str = "") -> None:
        build_on_cluster(recipe, tmp_path / "c", executor=executor, tasks=2, workers=1, partition=partition)

    gone = made.model_copy(update={"sources": [made.sources[0].model_copy(update={"path": "/nowhere"})]})
    with pytest.raises(PunaError, match="/nowhere does not exist"):
        run(gone)
    limited = made.model_copy(update={"sources": [made.sources[0].model_copy(update={"limit": 3})]})
    with pytest.raises(PunaError, match="has a limit"):
        run(limited)
    with pytest.raises(PunaError, match="needs a partition"):
        run(executor="slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PunaError, match="no `sbatch`"):
        run(executor="slurm", partition="cpu")
    (tmp_path / "c").mkdir()
    with pytest.raises(PunaError, match="exists already"):
        run()
    (tmp_path / "c").rmdir()
    (tmp_path / "c.work").mkdir(exist_ok=True)
    (tmp_path / "c.work" / "recipe.json").write_text("{}")
    with pytest.raises(PunaError, match="different recipe or number of tasks"):
        run()
