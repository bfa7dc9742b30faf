"""Rejection sampling, averaging, long contexts."""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from puna.core.errors import PunaError
from puna.core.recipe import check, load
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.store import load_config, load_lineage, load_model, save_model
from puna.tasks.heldout import is_heldout
from puna.text.tokenizer import Tokenizer
from puna.train.measure.machine import Machine
from puna.train.recipe import Recipe
from puna.train.run.directory import resolve_corpus
from puna.train.run.metrics import read_metrics
from puna.tune.average import stage as average
from puna.tune.average.recipe import AverageRecipe
from puna.tune.extend import stage as extend
from puna.tune.extend.recipe import ExtendRecipe
from puna.tune.preference.pairs import read_preferences
from puna.tune.rejection import stage as rejection
from puna.tune.rejection.recipe import RejectionRecipe
from puna.tune.rejection.stage import Sample, pick
from puna.tune.rows.dialogues import read_dialogues
from puna.tune.rows.examples import example_of

RECIPES = Path(__file__).parents[2] / "recipes"


def said(text: str, score: float, *, ended: bool = True, tokens: int = 5) -> Sample:
    return Sample([{"role": "assistant", "content": text}], score, ended, tokens)


# -- rejection sampling ------------------------------------------------------------------------------------------------


def test_the_best_is_picked_and_of_equals_the_shortest() -> None:
    samples = [said("long", 1.0, tokens=9), said("short", 1.0, tokens=2), said("cut", 1.0, ended=False, tokens=1)]
    samples += [said("short", 1.0, tokens=2), said("wrong", 0.0, tokens=1), said(" ", 1.0, tokens=1)]
    assert [entry.messages[0]["content"] for entry in pick(samples, least=0.999, keep=1)] == ["short"]
    assert [entry.messages[0]["content"] for entry in pick(samples, least=0.999, keep=9)] == ["short", "long"]
    assert pick([said("wrong", 0.5)], least=0.999, keep=1) == []


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that solves every other sample."""
    from puna.tasks.catalogue import find

    def answer(engine: Any, problems: Any, *, samples: int, seed: int, **_: Any) -> list[Any]:
        made = []
        for problem in problems:
            task = find(problem.task)
            for number in range(samples):
                text = task.solution(problem) if number % 2 else f"answer: {seed}"
                messages = [{"role": "assistant", "content": text}]
                made.append(rejection_answer(problem, text, task.check(problem, text), messages))
        return made

    from puna.tune.measure import Answer

    def rejection_answer(problem: Any, text: str, verdict: Any, messages: Any) -> Answer:
        return Answer(problem, text, verdict, True, len(text), messages)

    monkeypatch.setattr("puna.tune.rejection.stage.answer", answer)


def values(model_dir: Path) -> dict[str, Any]:
    tasks = [{"name": "planning.grid", "levels": [1, 2], "count": 40}]
    return {"model": str(model_dir), "tasks": tasks, "samples": 4, "max_tokens": 16}


@pytest.mark.usefixtures("scripted")
def test_right_answers_become_dialogues_and_pairs(model_dir: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    event = rejection.run(check(RejectionRecipe, values(model_dir), "test"), tmp_path / "run")
    assert (event["prompts"], event["answers"], event["kept"], event["pairs"]) == (40, 160, 40, 40)
    assert event["right"] == 0.5
    dialogues = read_dialogues(tmp_path / "run" / "sft.jsonl")
    assert example_of(dialogues[0], tokenizer, 10**6) is not None
    row = json.loads((tmp_path / "run" / "sft.jsonl").read_text().splitlines()[0])
    assert row["source"]["model"]["path"] == str(model_dir)
    assert row["source"]["of"] == 4
    preference = read_preferences(tmp_path / "run" / "preferences.jsonl")[0]
    assert preference.answers[0] == dialogues[0].messages[-1:]
    prompts = list(rejection.prompts_of(check(RejectionRecipe, values(model_dir), "test")))
    assert not any(is_heldout(prompt.problem) for prompt in prompts if prompt.problem)


@pytest.mark.usefixtures("scripted")
def test_an_interrupted_run_goes_on_behind_the_last_whole_line(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = check(RejectionRecipe, values(model_dir), "test")
    rejection.run(recipe, tmp_path / "straight")
    original = rejection.sample

    def interrupting(*args: Any, **options: Any) -> Any:
        if options["first"] == 16:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **options)

    monkeypatch.setattr("puna.tune.rejection.stage.sample", interrupting)
    assert rejection.run(recipe, tmp_path / "run")["event"] == "interrupted"
    monkeypatch.setattr("puna.tune.rejection.stage.sample", original)
    with open(tmp_path / "run" / "samples.jsonl", "ab") as file:
        file.write(b'{"prompt": 32, "sam')
    with pytest.raises(PunaError, match="already exists"):
        rejection.run(recipe, tmp_path / "run")
    assert rejection.run(recipe, tmp_path / "run", resume=True)["kind"] == "end"
    for name in ("samples.jsonl", "sft.jsonl", "preferences.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_model_that_is_never_right_is_an_error(model_dir: Path, tmp_path: Path) -> None:
    small = values(model_dir) | {"tasks": [{"name": "arithmetic.addition", "count": 3}], "samples": 2, "max_tokens": 4}
    with pytest.raises(PunaError, match="None of 6 answers to 3 prompts can be kept"):
        rejection.run(check(RejectionRecipe, small, "test"), tmp_path / "run")
    with pytest.raises(PunaError, match="have no verifier"):
        check(RejectionRecipe, {"model": "m", "files": ["chat.jsonl"]}, "test")
    with pytest.raises(PunaError, match="needs reward_model"):
        check(RejectionRecipe, {"model": "m", "files": ["chat.jsonl"], "pick": "reward"}, "test")


# -- averaging ---------------------------------------------------------------------------------------------------------


def test_the_mean_of_models(
    model_dir: Path,
    tmp_path: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    random_model: Callable[..., LlamaForCausalLM],
) -> None:
    other = tmp_path / "other"
    save_model(other, config, random_model(config, 7).state_dict(), tokenizer, dtype=torch.float32, lineage={})
    models = [{"path": str(model_dir), "weight": 3.0}, {"path": str(other), "weight": 1.0}]
    average.run(check(AverageRecipe, {"models": models}, "test"), tmp_path / "run")
    mean, one, two = (load_file(p / "model.safetensors") for p in (tmp_path / "run" / "model", model_dir, other))
    for name in one:
        assert torch.allclose(mean[name], 0.75 * one[name] + 0.25 * two[name], atol=1e-6)
    assert [parent["path"] for parent in load_lineage(tmp_path / "run" / "model")["parent"]] == [
        str(model_dir),
        str(other),
    ]
    wide = config.model_copy(update={"intermediate_size": 96})
    save_model(tmp_path / "wide", wide, random_model(wide).state_dict(), tokenizer, dtype=torch.float32, lineage={})
    with pytest.raises(PunaError, match=r"differs from .* in intermediate_size"):
        average.average_models([model_dir, tmp_path / "wide"], [1.0, 1.0])
    with pytest.raises(PunaError, match="fewer than two"):
        check(AverageRecipe, {"models": models[:1]}, "test")


# -- long contexts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rope", ["theta", "linear", "llama3"])
def test_a_longer_context_keeps_the_weights_and_slows_the_angles(rope: str) -> None:
    from puna.model.llama import rotary_frequencies

    config = ModelConfig(max_position_embeddings=512)
    recipe = check(ExtendRecipe, {"model": "m", "corpus": "c", "rope": rope, "train": {"seq_len": 2048}}, "test")
    longer = recipe.longer(config)
    assert longer.max_position_embeddings == 2048
    assert longer.parameter_shapes() == config.parameter_shapes()
    before, after = rotary_frequencies(config), rotary_frequencies(longer)
    assert after[-1].item() == pytest.approx(before[-1].item() / 4, rel=1e-4)  # the slowest rotates four times slower
    assert (after <= before * (1 + 1e-6)).all()
    if rope == "theta":
        assert after[0] == before[0]


def test_a_model_is_extended_and_measured_before_and_after(tmp_path: Path, machine: Machine) -> None:
    from puna.data.corpus import Corpus

    with contextlib.chdir(RECIPES.parent):
        corpus = resolve_corpus(load(Recipe, RECIPES / "smoke.toml").value, tmp_path / "corpora").corpus
    tokenizer = Corpus.open(Path(corpus)).tokenizer
    config = ModelConfig(preset="nano", vocab_size=tokenizer.vocab_size, max_position_embeddings=64)
    model = LlamaForCausalLM(config)
    model.init_weights(0)
    save_model(tmp_path / "base", config, model.state_dict(), tokenizer, dtype=torch.float32, lineage={})
    values = {"model": str(tmp_path / "base"), "corpus": corpus, "optimizer": {"lr": 0.003}}
    values |= {"train": {"steps": 6, "batch": 4, "seq_len": 128, "precision": "fp32"}}
    event = extend.run(check(ExtendRecipe, values, "test"), tmp_path / "run", machine=machine)
    assert event["kind"] == "end"
    assert event["bits_per_byte"] < event["before"]
    assert load_config(tmp_path / "run" / "model").max_position_embeddings == 128
    assert load_model(tmp_path / "run" / "model")(torch.ones(1, 100, dtype=torch.long)).shape[1] == 100
    measured = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "eval"]
    assert [line["step"] for line in measured] == [0, 6]
    # The first measurement is kept across an interruption.

    def interrupt(line: dict[str, Any]) -> None:
        if line["kind"] == "train":
            os.kill(os.getpid(), signal.SIGINT)

    recipe = check(ExtendRecipe, values | {"log": {"every": 2}}, "test")
    extend.run(recipe, tmp_path / "cut", machine=machine, observers=[interrupt])
    again = extend.run(recipe, tmp_path / "cut", machine=machine, resume=True)
    assert (again["before"], again["bits_per_byte"]) == (event["before"], event["bits_per_byte"])
    same = check(ExtendRecipe, values | {"train": {"seq_len": 64}}, "test")
    with pytest.raises(PunaError, match="is not longer than the model's context"):
        extend.run(same, tmp_path / "again")
