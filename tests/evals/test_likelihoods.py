"""How likely continuations are: each has a token of its own, whatever was merged; checked on the model's logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.engine.generate import Engine
from puna.evals.benchmarks.multiple_choice import BENCHMARKS
from puna.evals.contract import Choices, Item, Likelihood, exact_continuation, most_likely
from puna.evals.datasets import EvalData
from puna.evals.generation import encode_pair, likelihoods, score_ids
from puna.evals.runner import scored
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.text.tokenizer import Tokenizer, train_tokenizer

# Each continuation is swallowed by a token that begins in the context.
MERGED = [
    ("我爱中", "国"),
    ("Ans", "wer"),
    ("The capital of Fra", "nce"),
    ("ありがと", "う"),
    ("x = foo(", ")"),
    (".", "."),
]


@pytest.fixture(scope="module")
def llama3(test_data):
    return Tokenizer.load(test_data / "tokenizer" / "llama3")


@pytest.fixture(scope="module")
def small():
    return train_tokenizer(["the answer is here, and the answers are there. " * 30], 400)


@pytest.mark.parametrize(("context", "continuation"), MERGED)
def test_a_merged_continuation_is_encoded_alone(llama3, context, continuation):
    whole, alone = llama3.encode(context + continuation), llama3.encode(context)
    assert len(whole) <= len(alone)
    assert encode_pair(llama3, context, continuation) == ([llama3.bos_id, *alone], llama3.encode(continuation))


@settings(max_examples=300, deadline=None)
@given(context=st.text(max_size=12), continuation=st.text(min_size=1, max_size=6))
def test_every_continuation_has_a_token(llama3, small, context, continuation):
    for tokenizer in (llama3, small):
        before, after = encode_pair(tokenizer, context, continuation)
        assert before
        assert after


@pytest.mark.parametrize("cut", range(1, 12))
def test_every_split_of_a_word_has_a_token(small, cut):
    text = " the answers"
    assert encode_pair(small, text[:cut], text[cut:])[1]


def test_the_log_probability_is_the_models_and_never_certain(llama3, random_model):
    config = ModelConfig(preset="nano", vocab_size=llama3.vocab_size, max_position_embeddings=64)
    model: LlamaForCausalLM = random_model(config)
    engine = Engine(model, llama3, deterministic=True)
    for (context, continuation), found in zip(MERGED, likelihoods(engine, MERGED), strict=True):
        before, after = encode_pair(llama3, context, continuation)
        with torch.no_grad():
            logits = model(torch.tensor([before + after]))[0].float().log_softmax(-1)
        rows = logits[len(before) - 1 : -1]
        wanted = rows.gather(1, torch.tensor(after)[:, None]).sum().item()
        assert found.likelihood.tokens == len(after) >= 1
        assert found.likelihood.logprob == pytest.approx(wanted, abs=1e-4)
        assert found.likelihood.logprob < -1
        assert not found.likelihood.greedy
    engine.close()


def test_what_has_no_token_is_refused(make_engine):
    engine = make_engine()
    with pytest.raises(PunaError, match="continuation is empty"):
        likelihoods(engine, [("Question:", "")])
    with pytest.raises(PunaError, match="continuation is empty"):
        likelihoods(engine, [("Question: ", "")])
    for pair in ([1, 2], []), ([], [5]), ([], []):
        with pytest.raises(PunaError, match="no token to score"):
            score_ids(engine, [pair])


@pytest.mark.parametrize("by", ["sum", "character", "token"])
def test_a_choice_without_tokens_never_wins(by):
    item = Item("1", Choices.after("Q:", ["right", "wrong"]), 0)
    benchmark = type("B", (), {"score": staticmethod(most_likely(by))})
    assert scored(benchmark, item, [Likelihood(0.0, 0, True), Likelihood(-3.0, 1, False)]).value == 0
    benchmark = type("B", (), {"score": staticmethod(exact_continuation)})
    assert scored(benchmark, item, [Likelihood(0.0, 0, True)]).value == 0


def test_every_choice_of_the_real_sets_has_a_token(test_data, llama3):
    data = EvalData(test_data / "eval")
    for benchmark in BENCHMARKS:
        for item in benchmark.load(data)[:200]:
            if isinstance(item.ask, Choices):
                tail = [context[-40:] for context in item.ask.contexts]
                assert all(encode_pair(llama3, *pair)[1] for pair in zip(tail, item.ask.continuations, strict=True))


def test_the_harness_is_given_no_score_for_an_empty_document(make_engine):
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    from puna.evals.lm_eval_harness import engine_model

    model = engine_model(make_engine())
    with pytest.raises(PunaError, match="Document 2 of the task is empty"):
        model.loglikelihood_rolling(
            [instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(("the tree", ""))]
        )
    with pytest.raises(PunaError, match="continuation is empty"):
        model.loglikelihood([instance("loglikelihood", {}, ("Which", ""), 0)])
