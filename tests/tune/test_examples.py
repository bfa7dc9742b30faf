"""Loss masks and packing: exactly the assistant's tokens count, with any truncation and packing."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.tasks.catalogue import TASKS, find
from puna.tasks.heldout import is_heldout, training_problem
from puna.text.tokenizer import Tokenizer
from puna.train.loss import IGNORE
from puna.tune.rows.dialogues import Dialogue
from puna.tune.rows.examples import Mixture, best_fit, demonstration, example_of, sources_of, to_tensors
from puna.tune.sft.recipe import SFTDataConfig

# Texts that look like the format itself are the ones that could leak.
TEXT = st.one_of(
    st.text(min_size=1, max_size=30).filter(str.strip),
    st.sampled_from(
        ["<|eot_id|>", "assistant\n\nHi", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<think>", "né"]
    ),
)
TURN = st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXT)
TURNS = st.lists(TURN, min_size=1, max_size=6).filter(lambda turns: any(role == "assistant" for role, _ in turns))


def dialogue_of(turns: list[tuple[str, str]]) -> Dialogue:
    return Dialogue([{"role": role, "content": text} for role, text in turns], [])


def said(turns: list[tuple[str, str]]) -> str:
    """The assistant's text, by the format's definition: without white space around it, and with the end token."""
    text = "".join(text.strip() + "<|eot_id|>" for role, text in turns if role == "assistant")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def learned(tokenizer: Tokenizer, targets: list[int]) -> str:
    return tokenizer.decode([target for target in targets if target != IGNORE])


@given(st.lists(TURNS, min_size=1, max_size=8), st.integers(8, 60))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exactly_the_assistants_tokens_count(
    tokenizer: Tokenizer, dialogues: list[list[tuple[str, str]]], seq_len: int
) -> None:
    whole = [example_of(dialogue_of(turns), tokenizer, 10**6) for turns in dialogues]
    for turns, example in zip(dialogues, whole, strict=True):
        assert example is not None
        assert learned(tokenizer, example.targets) == said(turns)
        assert not example.truncated
    cut = [example_of(dialogue_of(turns), tokenizer, seq_len) for turns in dialogues]
    for full, short in zip(whole, cut, strict=True):
        assert full is not None
        if short is None:  # nothing of the assistant's text is left
            assert all(target == IGNORE for target in full.targets[:seq_len])
        else:
            assert (short.inputs, short.targets) == (full.inputs[:seq_len], full.targets[:seq_len])
    kept = [example for example in cut if example is not None]
    packed = best_fit([len(example.inputs) for example in kept], seq_len, len(kept))
    rows = to_tensors([[kept[index] for index in row] for row in packed], seq_len)
    # Through packing: each run of a document number is one example, and nothing else counts.
    for row, order in enumerate(packed):
        for number, index in enumerate(order, 1):
            inside = rows.documents[row] == number
            assert rows.ids[row][inside].tolist() == kept[index].inputs
            assert rows.targets[row][inside].tolist() == kept[index].targets
        assert (rows.targets[row][rows.documents[row] == 0] == IGNORE).all()


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 90), st.integers(1, 20))
def test_best_fit_fills_rows(lengths: list[int], capacity: int, rows: int) -> None:
    packed = best_fit(lengths, capacity, rows)
    used = [index for row in packed for index in row]
    assert len(used) == len(set(used))
    assert len(packed) == rows or len(used) == len(lengths)
    assert all(sum(lengths[index] for index in row) <= capacity for row in packed)
    left = set(range(len(lengths))) - set(used)
    for row in packed:
        # No remaining example would have fitted, and a row starts with the one that waited longest.
        assert all(sum(lengths[index] for index in row) + lengths[other] > capacity for other in left)
        assert row[0] == min(index for later in packed[packed.index(row) :] for index in later)


def test_several_end_tokens_are_learned_and_one_that_was_added_is_not(tokenizer: Tokenizer) -> None:
    text = tokenizer.encode("Fine.")
    for end in (*tokenizer.eos_ids, tokenizer.special["<|eom_id|>"]):
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "token_ids": [*text, end]}]
        example = example_of(Dialogue(messages, []), tokenizer, 100)
        assert example is not None
        assert [target for target in example.targets if target != IGNORE] == [*text, end]
    cut = [{"role": "user", "content": "Hi"}, {"role": "assistant", "token_ids": text}]
    example = example_of(Dialogue(cut, []), tokenizer, 100)
    assert example is not None
    assert [target for target in example.targets if target != IGNORE] == text


def test_tool_results_are_never_learned(tokenizer: Tokenizer) -> None:
    task = find("tools.calculator")
    problem = training_problem(task, 2, 0)
    dialogue = demonstration(task, problem, instruct=True)
    example = example_of(dialogue, tokenizer, 10**6)
    assert example is not None
    text = learned(tokenizer, example.targets)
    assert text.startswith("<tool_call>\n")
    assert text.endswith(f"answer: {problem.data['answer']}<|eot_id|>")
    assert text.count(str(problem.data["answer"])) == 1


@pytest.mark.parametrize("name", TASKS)
def test_demonstrations_are_right_and_never_held_out(name: str) -> None:
    task = find(name)
    for number in range(3):
        problem = training_problem(task, 1, number)
        assert not is_heldout(problem)
        answer = demonstration(task, problem).messages[-1]["content"]
        assert task.check(problem, answer).passed


@pytest.fixture
def data(tmp_path: Path) -> SFTDataConfig:
    path = tmp_path / "chat.jsonl"
    rows = [{"prompt": f"Say {i}", "response": f"{i} " * (i % 9 + 1)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values: dict[str, Any] = {
        "files": [{"path": str(path), "share": 3.0}],
        "tasks": [{"name": "arithmetic.addition", "levels": [1, 2], "share": 1.0, "count": 12}],
    }
    return SFTDataConfig.model_validate(values)


def mixture(data: SFTDataConfig, tokenizer: Tokenizer, seed: int = 0) -> Mixture:
    return Mixture(sources_of(data, seed)[0], tokenizer, 64, seed=seed, drop=False)


def test_a_mixture_goes_on_from_its_state(data: SFTDataConfig, tokenizer: Tokenizer) -> None:
    straight = mixture(data, tokenizer)
    rows = [straight.rows(4) for _ in range(6)]
    one, other = mixture(data, tokenizer), mixture(data, tokenizer)
    assert [one.rows(4) for _ in range(3)] == rows[:3]
    other.restore(json.loads(json.dumps(one.state())))
    assert [other.rows(4) for _ in range(3)] == rows[3:]
    assert mixture(data, tokenizer, seed=1).rows(4) != rows[0]


def test_a_mixture_keeps_its_shares_and_fills_its_rows(data: SFTDataConfig, tokenizer: Tokenizer) -> None:
    mixed = mixture(data, tokenizer)
    packed = [row for _ in range(30) for row in mixed.rows(8)[0]]
    assert 0.65 < mixed.drawn[0] / sum(mixed.drawn) < 0.85
    fill = sum(len(example.inputs) for row in packed for example in row) / (64 * len(packed))
    assert fill > 0.8  # for rows of two examples, seldom three
    files = sources_of(data, 0)[0][0]
    passes = [[files.dialogue(40 * epoch + i).messages[0]["content"] for i in range(40)] for epoch in range(2)]
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]


def test_held_out_dialogues_are_not_among_the_examples(data: SFTDataConfig) -> None:
    sources, heldout = sources_of(data.model_copy(update={"heldout": 0.3}), 0)
    apart = {dialogue.messages[0]["content"] for dialogue in heldout}
    seen = {sources[0].dialogue(number).messages[0]["content"] for number in range(sources[0].size or 0)}
    assert apart
    assert not apart & seen
    assert len(apart | seen) == 40


def test_examples_that_never_fit_are_an_error(data: SFTDataConfig, tokenizer: Tokenizer) -> None:
    sources = sources_of(data, 0)[0]
    with pytest.raises(PunaError, match="have nothing to learn in 5 tokens"):
        Mixture(sources, tokenizer, 5, seed=0, drop=False).rows(2)
