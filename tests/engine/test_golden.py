"""Two small pretrained Llamas reproduce recorded results of transformers: ids, logits, loss, text."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from puna.engine.generate import Engine, SamplingParams, load_engine

MODELS = ["stories260K", "babyllama105"]
SPACE = "\u2581"  # how SentencePiece writes a space


@pytest.fixture(params=MODELS)
def golden(request: pytest.FixtureRequest, test_data: Path) -> tuple[dict[str, Any], Engine, list[str], list[float]]:
    """The recorded results, the loaded model, and its SentencePiece pieces with their scores."""
    folder = test_data / "weights" / request.param
    recorded = json.loads((folder / "golden.json").read_text())
    if request.param == "stories260K":
        table = json.loads((folder / "tok512.json").read_text())
        pieces = [piece.encode("latin-1").decode("utf-8", "replace") for piece in table["tokens"]]
        scores = table["scores"]
    else:
        lines = (folder / "tok105.vocab").read_text(encoding="utf-8").splitlines()
        pieces = [line.split("\t")[0].replace(SPACE, " ") for line in lines]
        scores = [float(line.split("\t")[1]) for line in lines]
    return recorded, load_engine(folder / "hf"), pieces, scores


def encode(text: str, pieces: list[str], scores: list[float]) -> list[int]:
    """SentencePiece BPE: from characters, join the neighbours whose piece has the best score until none is left."""
    known = {piece: i for i, piece in enumerate(pieces)}
    ids = [known[c] if c in known else known[f"<0x{ord(c):02X}>"] for c in " " + text]
    while True:
        pairs = [(scores[known[pieces[a] + pieces[b]]], -i) for i, (a, b) in enumerate(itertools.pairwise(ids))
                 if pieces[a] + pieces[b] in known]  # fmt: skip
        if not pairs:
            return [1, *ids]
        at = -max(pairs)[1]
        ids[at : at + 2] = [known[pieces[ids[at]] + pieces[ids[at + 1]]]]


def decode(ids: list[int], pieces: list[str]) -> str:
    # SentencePiece shows an unknown as U+2047 between spaces; the record has its three bytes escaped in octal.
    special = {0: r" \342\201\207 ", 1: "", 2: ""}
    return "".join(special.get(i, "\n" if pieces[i] == "<0x0A>" else pieces[i]) for i in ids).removeprefix(" ")


def test_greedy_ids_and_text(golden: tuple[dict[str, Any], Engine, list[str], list[float]]) -> None:
    recorded, engine, pieces, _ = golden
    engine.end_ids = set()  # the recording continues past an end token
    cases = recorded["greedy"]
    longest = max(len(case["new_ids"]) for case in cases)
    completions = engine.generate(
        [case["prompt_ids"] for case in cases], SamplingParams(max_tokens=longest, temperature=0)
    )
    for case, completion in zip(cases, completions, strict=True):
        new = completion.ids[: len(case["new_ids"])]
        assert new == case["new_ids"], case["prompt"]
        assert decode(case["prompt_ids"] + new, pieces) == case["text"]


@torch.no_grad()
def test_top_logits(golden: tuple[dict[str, Any], Engine, list[str], list[float]]) -> None:
    recorded, engine, _, _ = golden
    for case in recorded["next_token_top5"]:
        logits = engine.model(torch.tensor([case["prompt_ids"]]))[0, -1]
        values, ids = logits.topk(5)
        assert ids.tolist() == case["ids"]
        torch.testing.assert_close(values, torch.tensor(case["logits"]), rtol=0, atol=1e-4)
        assert logits.logsumexp(0).item() == pytest.approx(case["logsumexp"], abs=1e-4)


@torch.no_grad()
def test_loss_on_text(golden: tuple[dict[str, Any], Engine, list[str], list[float]]) -> None:
    recorded, engine, pieces, scores = golden
    for case in recorded["nll"]:
        ids = encode(case["text"], pieces, scores)[: engine.model.config.max_position_embeddings]
        assert len(ids) == case["n_ids"]
        assert ids[:16] == case["ids_head"]
        tensor = torch.tensor(ids)
        loss = F.cross_entropy(engine.model(tensor[None, :-1])[0], tensor[1:])
        assert loss.item() == pytest.approx(case["mean_nll"], abs=2e-4)
