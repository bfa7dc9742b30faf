"""The training loop: work between two steps must not slow down the steps."""

import contextlib
from functools import partial
from pathlib import Path

import pytest
import torch

from puna.core.recipe import load
from puna.train.loop import Loop
from puna.train.measure.machine import Machine
from puna.train.pretrain import train
from puna.train.recipe import Recipe
from puna.train.run.directory import resolve_corpus
from puna.train.run.metrics import read_metrics

RECIPES = Path(__file__).parents[2] / "recipes"
MACHINE = Machine("cpu", "test", 1, 8 << 30, {"fp32": 1e11, "bf16": 1e11}, True)


def test_a_compiled_run_samples_eagerly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    words = ["train.steps=3", "train.compile=on", "log.sample_every=1", "checkpoint.every=0"]
    with contextlib.chdir(RECIPES.parent):
        recipe = resolve_corpus(load(Recipe, RECIPES / "smoke.toml", words).value, tmp_path)
    compiled: dict[int, int] = {}

    def note(loop: Loop) -> None:
        compiled[loop.state.step] = len(graphs)

    train(recipe, tmp_path / "run", hooks={1: note, 2: note}, machine=MACHINE)
    samples = [event["step"] for event in read_metrics(tmp_path / "run") if event["kind"] == "sample"]
    assert samples == [1, 2, 3]
    # The first step compiles one graph, which serves all blocks; neither the samples nor the second step add any.
    assert compiled == {1: 1, 2: 1}
