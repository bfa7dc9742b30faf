"""Grammars constrain the generated text, without affecting other requests."""

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import torch

from puna.core.errors import PunaError
from puna.engine.generate import Engine, Grammar, SamplingParams
from puna.engine.grammar import Grammars
from puna.engine.request import EngineError
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.text.tokenizer import Tokenizer, train_tokenizer

Maker = Callable[..., LlamaForCausalLM]
TEXT = '{"name": "Anna", "age": 12.5e3, "tags": ["a", "größe"], "next": null, "ok": true} 日本語 🙂 hello world\n\\"x'

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "home": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "floor": {"type": ["integer", "null"]}},
            "required": ["zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "home"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"enum": ["ja", "größe 🙂", 'a"b\\c\n', 3, None, True]},
    {"type": "array", "items": {"enum": [1, "two"]}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "number"}, {"type": "boolean"}, {"type": "string", "maxLength": 4}]},
    {"type": "object", "properties": {"é": {"const": "ü"}}, "required": ["é"], "additionalProperties": False},
    {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "integer", "minimum": 0, "maximum": 9},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                },
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
    },
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT * 40], 320)


@pytest.fixture(scope="module")
def engine(random_model: Maker, tokenizer: Tokenizer) -> Engine:
    """An engine whose tokenizer has fewer tokens than the model."""
    return Engine(random_model(ModelConfig(preset="nano")), tokenizer, block_size=8, deterministic=True, max_batch=16)


def test_200_texts_are_what_their_schemas_say(engine: Engine) -> None:
    quick = Engine(engine.model, engine.tokenizer, max_batch=100)
    asked = [(SCHEMAS[i % len(SCHEMAS)], i) for i in range(200)]
    params = [
        SamplingParams(max_tokens=120, seed=i, temperature=(0.0, 0.7, 1.5)[i % 3], grammar=Grammar.json_schema(schema))
        for schema, i in asked
    ]
    done = quick.generate([[i % 300, 1 + i % 7] for _, i in asked], params)
    finished = 0
    for (schema, _), completion in zip(asked, done, strict=True):
        if completion.finish_reason == "stop":
            jsonschema.validate(json.loads(completion.text), schema)
            finished += 1
        else:  # cut off, but a prefix of a text of the grammar
            matcher = quick._grammars.matcher(Grammar.json_schema(schema))
            assert not any(matcher.accept(token) for token in completion.ids)
    assert finished > 100


@pytest.mark.parametrize("pattern", ["[0-9]{3}-[a-c]{1,4}x", "(ja|nein)!?", "é{2}🙂?", r"[^a-z]{3}"])
def test_a_regular_expression_matches_the_whole_text(engine: Engine, pattern: str) -> None:
    for seed in range(8):
        done = engine.generate([[seed]], SamplingParams(max_tokens=40, seed=seed, grammar=Grammar.regex(pattern)))[0]
        assert done.finish_reason == "stop"
        assert re.fullmatch(pattern, done.text), done.text


def test_a_choice_and_a_lark_grammar(engine: Engine) -> None:
    options = ["yes", "yes, but", 'größe 🙂 "\n\\']
    said = set()
    for seed in range(12):
        params = SamplingParams(max_tokens=40, seed=seed, temperature=2.0, grammar=Grammar.choice(options))
        said.add(engine.generate([[seed]], params)[0].text)
    assert len(said) > 1
    assert said <= {*options}
    balanced = Grammar.lark('start: "(" start? ")"')
    text = engine.generate([[5]], SamplingParams(max_tokens=200, seed=1, grammar=balanced))[0].text
    assert text == "(" * (len(text) // 2) + ")" * (len(text) // 2)


def test_any_json_and_any_object(engine: Engine) -> None:
    for seed in range(6):
        for grammar, kind in ((Grammar.json_schema(), object), (Grammar.json_schema({"type": "object"}), dict)):
            params = SamplingParams(max_tokens=120, seed=seed, grammar=grammar)
            done = engine.generate([[seed]], params)[0]
            if done.finish_reason == "stop":
                assert isinstance(json.loads(done.text), kind)


def test_max_tokens_cuts_and_the_end_may_come_only_where_the_grammar_accepts(engine: Engine) -> None:
    digits = Grammar.regex("[0-9]+")
    end = min(engine.end_ids)
    wants_end = SamplingParams(max_tokens=9, temperature=0, grammar=digits, logit_bias={end: 1000.0})
    done = engine.generate([[1]], wants_end)[0]
    assert re.fullmatch("[0-9]+", done.text)
    assert done.ids[-1] == end
    assert (len(done.ids), done.finish_reason) == (2, "stop")
    no_end = SamplingParams(max_tokens=9, temperature=0, grammar=digits, logit_bias=dict.fromkeys(engine.end_ids, -1e4))
    done = engine.generate([[1]], no_end)[0]
    assert (len(done.ids), done.finish_reason) == (9, "length")


def test_neighbours_are_equal_to_the_bit_and_logprobs_stay_the_models(engine: Engine) -> None:
    free = SamplingParams(max_tokens=20, seed=4, top_logprobs=3)
    alone = engine.generate([[1, 2, 3]], free)[0]
    bound = SamplingParams(max_tokens=20, seed=4, grammar=Grammar.json_schema(PERSON))
    beside, text = engine.generate([[1, 2, 3], [4, 5]], [free, bound])
    assert beside == alone
    with torch.no_grad():
        logits = engine.model(torch.tensor([[4, 5, *text.ids]]))[0, 1:-1, : engine.vocabulary]
    own = logits.log_softmax(-1).gather(-1, torch.tensor(text.ids)[:, None]).flatten()
    assert text.logprobs == pytest.approx(own.tolist(), abs=1e-4)


def test_continuations_have_matchers_of_their_own_and_preemption_changes_nothing(
    random_model: Maker, tokenizer: Tokenizer, engine: Engine
) -> None:
    params = SamplingParams(max_tokens=50, seed=7, n=4, grammar=Grammar.regex("[a-z]{30,40}"))
    plenty = engine.generate([[1, 2, 3]], params)
    small = Engine(engine.model, tokenizer, block_size=8, kv_tokens=64, deterministic=True)
    scarce = small.generate([[1, 2, 3]], params)
    assert small.stats()["preemptions"] > 0
    assert [done.text for done in scarce] == [done.text for done in plenty]
    assert len({done.text for done in plenty}) == 4
    small._core.scheduler.pool.check()


def test_the_grammar_may_begin_after_a_token(engine: Engine) -> None:
    marker = engine.generate([[1, 2]], SamplingParams(max_tokens=8, temperature=0))[0].ids[5]
    params = SamplingParams(max_tokens=60, temperature=0, grammar=Grammar.choice(["yes", "no"]), grammar_after=marker)
    done = engine.generate([[1, 2]], params)[0]
    at = done.ids.index(marker)
    said = b"".join(map(engine.token_bytes, done.ids[at + 1 :]))
    assert said in (b"yes", b"no")
    assert done.finish_reason == "stop"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grammar.json_schema({"type": "nonsense"}), "Invalid type: nonsense"),
        (lambda: Grammar.json_schema({"type": "object", "if": {}}), "Unimplemented keys"),
        (lambda: Grammar.json_schema({"enum": [{1}]}), "not valid JSON"),
        (lambda: Grammar.json_schema([1]), "is an object"),  # type: ignore[arg-type]
        (lambda: Grammar.json_schema({"$ref": "#/$defs/none"}), "not valid"),
        (lambda: Grammar.regex("[a"), "unclosed character class"),
        (lambda: Grammar.regex("\ud800"), "surrogate"),
        (lambda: Grammar.lark("start: nothing"), "not valid"),
        (lambda: Grammar.choice([]), "nothing to choose"),
    ],
)
def test_a_bad_grammar_is_refused_at_once(engine: Engine, make: Callable[[], Grammar], words: str) -> None:
    steps = engine.stats()["steps"]
    with pytest.raises(PunaError, match=words):
        engine.submit([1], SamplingParams(grammar=make()))
    assert engine.stats()["steps"] == steps


def test_a_grammar_that_fails_on_the_way_ends_its_own_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SamplingParams(max_tokens=12, seed=1)
    alone = engine.generate([[9, 8]], free)[0]
    allowed = Grammars.allowed
    token = engine.tokenizer.encode("b")[0] if engine.tokenizer else 0
    params = SamplingParams(max_tokens=12, temperature=0, grammar=Grammar.regex("a{9}"), logit_bias={token: 1e4})
    monkeypatch.setattr(
        Grammars, "allowed", lambda self, matchers: allowed(self, matchers).index_fill(1, torch.tensor([token]), True)
    )
    bad, good = engine._request([1], params), engine._request([9, 8], free)
    for request in (bad, good):
        engine._loop.enqueue(request)
    assert good.completions(list(engine._loop.follow(good)))[0] == alone
    with pytest.raises(EngineError, match="grammar could not go on"):
        list(engine._loop.follow(bad))
    monkeypatch.setattr(Grammars, "allowed", lambda self, matchers: allowed(self, matchers) & False)
    with pytest.raises(EngineError, match="grammar could not go on"):
        engine.generate([[1]], params)
    engine._core.scheduler.pool.check()
    assert engine.stats()["blocks"]["held"] == 0


def test_a_grammar_needs_a_tokenizer(random_model: Maker) -> None:
    with pytest.raises(PunaError, match="needs a tokenizer"):
        Engine(random_model(ModelConfig(preset="nano")), None).generate(
            [[1]], SamplingParams(grammar=Grammar.json_schema())
        )
