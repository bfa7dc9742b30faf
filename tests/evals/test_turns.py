"""Conversations with tools: what the model says in the end counts, whoever is asked beside it and in what order."""

import hashlib
import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from puna.cli.main import main
from puna.core.errors import PunaError
from puna.engine.generate import Completion, load_engine
from puna.evals.catalogue import BENCHMARKS, suites
from puna.evals.contract import MultiTurn
from puna.evals.datasets import EvalData
from puna.evals.evaluate import askable
from puna.evals.generation import Sampling, converse
from puna.evals.output.report import write_report
from puna.evals.results import summarise
from puna.evals.runner import chosen, run
from puna.model.config import ModelConfig
from puna.model.store import save_model
from puna.tasks.sandboxed import require
from puna.text.bytelevel import END_OF_TURN
from puna.text.tokenizer import train_tokenizer

CALCULATOR, PYTHON = BENCHMARKS["tools.calculator"], BENCHMARKS["tools.python"]
SAMPLING = Sampling(samples=2, temperature=1.0)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory, random_model):
    """A random model whose context holds a conversation."""
    folder = tmp_path_factory.mktemp("model") / "roomy"
    tokenizer = train_tokenizer([json.dumps("You can call these functions, each described by a JSON object") * 9], 400)
    config = ModelConfig(preset="nano", vocab_size=400, max_position_embeddings=1536)
    save_model(
        folder, config, random_model(config).state_dict(), tokenizer, dtype=torch.float32, lineage={"stage": "sft"}
    )
    return folder


class Scripted:
    """An engine whose model says what `say(prompt, results)` gives: the dialogue as text, and what tools answered."""

    def __init__(self, tokenizer, say, context=4096):
        self.tokenizer, self.say = tokenizer, say
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=context))

    def generate(self, prompts, params):
        done = []
        for prompt, one in zip(prompts, params, strict=True):
            assert len(prompt) < self.model.config.max_position_embeddings
            head = "<|start_header_id|>ipython<|end_header_id|>\n\n"
            dialogue = self.tokenizer.decode(prompt, skip_special=False)
            results = [part.split(END_OF_TURN)[0] for part in dialogue.split(head)[1:]]
            text = self.say(dialogue, results)
            ids = [*self.tokenizer.encode(text), self.tokenizer.special[END_OF_TURN]]
            done += [Completion(ids, text, [0.0] * len(ids), "stop")] * one.n
        return done


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def items_of(benchmark, count):
    return chosen(benchmark, benchmark.load(EvalData(None)), count)


def rows_of(engine, benchmark, items, folder, **options):
    return run(engine, [(benchmark, items)], folder, settings={}, chat=True, **options)[benchmark.name]


@pytest.fixture(scope="module")
def tokenizer(roomy):
    return load_engine(roomy).tokenizer


def skip_without_sandbox():
    try:
        require()
    except PunaError as error:
        pytest.skip(f"needs a sandbox: {error}")


@pytest.mark.parametrize("benchmark", [CALCULATOR, PYTHON], ids=lambda one: one.name)
def test_a_model_that_uses_its_tools_well_is_right_and_one_that_guesses_is_not(benchmark, tokenizer, tmp_path):
    if benchmark.sandbox:
        skip_without_sandbox()
    items = items_of(benchmark, 10)
    data = {item.ask.prompt: item.target["data"] for item in items}

    def skilled(dialogue, results):
        if results:
            return f"answer: {results[-1]}"
        known = next(data[prompt] for prompt in data if f"\n\n{prompt}{END_OF_TURN}" in dialogue)
        if benchmark is PYTHON:
            return call("python", code=known["code"])
        return call("calculator", expression=known["expression"])

    rows = rows_of(Scripted(tokenizer, skilled), benchmark, items, tmp_path / "skilled", sampling=SAMPLING)
    result = summarise(benchmark, items, rows, of=250, temperature=1.0)
    assert (result["value"], result["sampled"]["pass@1"]["value"], result["cut"]) == (1, 1, 0)
    assert 0.6 < result["interval"][0] < 0.8
    assert result["interval"][1] == pytest.approx(1)
    assert (result["parts"]["calls"], result["parts"]["failed_calls"]) == (1, 0)
    assert result["baselines"]["chance"] == 0 <= result["baselines"]["constant"]["value"] < 0.5
    assert set(result["groups"]) <= {f"level {level}" for level in range(1, 6)}
    assert [[m["role"] for m in row["conversation"]] for row in rows] == [["assistant", "tool", "assistant"]] * 10
    guesses = rows_of(Scripted(tokenizer, lambda *_: "answer: -1"), benchmark, items, tmp_path / "guess")
    assert [row["value"] for row in guesses] == [0] * 10


def test_what_a_tool_said_is_nobodys_answer(tokenizer, tmp_path):
    skip_without_sandbox()
    [item] = items_of(PYTHON, 1)
    right = f"answer: {item.target['data']['answer']}"
    prints = call("python", code=f"print({right!r})")

    def silent(dialogue, results):
        return "It is done." if results else prints

    def endless(dialogue, results):
        return f"{right}\n{prints}"

    [row] = rows_of(Scripted(tokenizer, silent), PYTHON, [item], tmp_path / "silent")
    assert row["conversation"][1] == {"role": "tool", "content": right}
    assert (row["value"], row["answer"], row["response"]) == (0, "It is done.", "It is done.")
    [row] = rows_of(Scripted(tokenizer, endless), PYTHON, [item], tmp_path / "endless")
    assert (row["value"], row["answer"], row["reason"]) == (0, "", "There was no answer after 8 turns.")
    # The context ends before the turns do: what stands there last is a tool's.
    asked = len(tokenizer.encode(json.dumps(row["conversation"][:2])))
    [held] = converse(Scripted(tokenizer, endless), [item.ask], ["x"], sampling=Sampling())
    assert len(held.greedy.messages) == 16
    short = Scripted(tokenizer, endless, context=900 + 2 * asked)
    [held] = converse(short, [item.ask], ["x"], sampling=Sampling())
    assert 2 <= len(held.greedy.messages) < 16
    assert (held.greedy.answer, held.greedy.verdict.reason) == ("", "There was no room for another turn.")
    tiny = Scripted(tokenizer, endless, context=64)
    [row] = rows_of(tiny, PYTHON, [item], tmp_path / "tiny", sampling=SAMPLING)
    assert row["cut"] > 0 == row["value"]
    assert row["conversation"] == []


def test_scores_depend_on_neither_order_nor_batch_size(roomy, tmp_path):
    def make(**options):
        """The model's own random ids decide whether it calls, what it computes and what it answers."""
        engine = load_engine(roomy, deterministic=True, **options)
        generate = engine.generate

        def noisy(prompts, params):
            done = []
            for one in generate(prompts, params):
                number = int.from_bytes(hashlib.sha256(repr(one.ids).encode()).digest()[:2], "big")
                text = call("calculator", expression=f"{number}+1") if number % 3 else f"answer: {number}"
                done.append(replace(one, text=text))
            return done

        engine.generate = noisy
        return engine

    def odd(item, talk):
        return CALCULATOR.score(item, talk)._replace(value=float(int(talk.answer.removeprefix("answer: ") or 0) % 2))

    benchmark = replace(CALCULATOR, score=odd)
    items = [replace(item, ask=item.ask._replace(max_tokens=6)) for item in items_of(benchmark, 6)]
    plain = rows_of(make(max_batch=16), benchmark, items, tmp_path / "a", sampling=SAMPLING)
    mixed = random.Random(2).sample(items, len(items))
    engine = make(max_batch=2, prefix_cache=False, step_tokens=64)
    other = rows_of(engine, benchmark, mixed, tmp_path / "b", sampling=SAMPLING, chunk=4)
    assert {row["id"]: row for row in plain} == {row["id"]: row for row in other}
    # The test would see nothing if all were alike.
    assert len({len(row["conversation"]) for row in plain}) > 1
    assert len({one["value"] for row in plain for one in row["samples"]}) == 2


def test_the_whole_conversation_is_on_the_page(roomy, tmp_path, monkeypatch):
    def says(dialogue, results):
        return "answer: 7<b>" if results else call("calculator", expression="6*111")

    def tricked(engine, asks, keys, *, sampling):
        return converse(Scripted(engine.tokenizer, says), asks, keys, sampling=sampling)

    monkeypatch.setattr("puna.evals.runner.converse", tricked)
    out = tmp_path / "out"
    command = ["eval", str(roomy), "-o", str(out), "--device", "cpu", "--suite", "tools.calculator", "--limit", "2"]
    assert main([*command, "--samples", "1"]) == 0
    page = (out / "report.html").read_text()
    browser = page[page.index('<div class="wrong">') :]
    assert "6*111" in browser
    assert "<dt>tool</dt><dd><pre>666</pre>" in browser
    assert "answer: 7&lt;b&gt;" in browser
    assert write_report(out).read_text() == page


def test_without_a_sandbox_programs_are_refused_before_anything_is_asked(roomy, tmp_path, capsys, monkeypatch):
    def low(*args, **options):
        raise PunaError("This machine's sandbox reaches level 'none', below the floor 'confined'.", "Lower the floor.")

    monkeypatch.setattr("puna.sandbox.run.run_python", low)
    command = ["eval", str(roomy), "-o", str(tmp_path / "out"), "--device", "cpu", "--limit", "1", "--suite"]
    assert main([*command, "tools.python"]) == 2
    said = capsys.readouterr().err.strip()
    assert "below the floor 'confined'" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    assert main([*command, "tools.calculator", "--samples", "0", "--fast"]) == 0


def test_a_model_that_is_asked_in_text_is_asked_nothing_in_turns():
    talks = [(BENCHMARKS[name], items_of(BENCHMARKS[name], 1), 250) for name in suites()["tools"] if "." in name]
    text = (BENCHMARKS["planning.grid"], items_of(BENCHMARKS["planning.grid"], 1), 250)
    said = []
    assert askable([*talks, text], chat=True, say=said.append) == [*talks, text]
    assert said == []
    assert askable([*talks, text], chat=False, say=said.append) == [text]
    assert "tools.calculator, tools.python" in said[0]
    with pytest.raises(PunaError, match="asked in chat turns only"):
        askable(talks, chat=False)


def test_the_instruction_can_be_left_out(tokenizer):
    seen = []

    def says(dialogue, results):
        seen.append(dialogue)
        return "answer: 1"

    [item] = items_of(CALCULATOR, 1)
    bare = MultiTurn(item.ask.problem, 9, instruct=False)
    converse(Scripted(tokenizer, says), [item.ask, bare], ["x", "y"], sampling=Sampling())
    assert ["with the calculator" in dialogue for dialogue in seen] == [True, False]
    assert all('"name": "calculator"' in dialogue for dialogue in seen)
