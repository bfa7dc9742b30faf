"""Rollouts: ids as they were chosen, tool results marked as others' words, ends of every kind."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from puna.core.errors import PunaError
from puna.engine.generate import Completion, SamplingParams
from puna.tasks.catalogue import find
from puna.text.bytelevel import END_OF_TURN
from puna.text.chat import render
from puna.tune.rl.sampling import generate_rollouts
from puna.tune.rollout import VLLMGenerator, make_generator, send_weights, vllm_generator

GRID, TOOLS = find("planning.grid"), find("tools.calculator")


@pytest.fixture
def generator(config, tokenizer, model_dir, random_model):
    engine = make_generator(
        config, tokenizer, model_dir, device=torch.device("cpu"), dtype=torch.float32, max_batch=8, seq_len=200
    )
    send_weights(random_model(config), engine)
    return engine


class Scripted:
    """Writes given texts, tokenised oddly: one token a character, which is not how the tokenizer would."""

    def __init__(self, tokenizer, texts, end=END_OF_TURN):
        self.tokenizer, self.texts, self.end, self.asked = tokenizer, list(texts), end, []

    def generate_each(self, prompts, params):
        for prompt, one in zip(prompts, params, strict=True):
            self.asked.append(list(prompt))
            done = []
            for _ in range(one.n):
                text = self.texts.pop(0)
                ids = [self.tokenizer.encode(letter)[0] for letter in text]
                if self.end:
                    ids.append(self.tokenizer.special[self.end])
                logprobs = [-0.5 - 0.01 * at for at in range(len(ids))]
                done.append(Completion(ids, text, logprobs, "stop" if self.end else "length", [1] * len(ids)))
            yield done


def test_the_trainers_forward_finds_the_engines_log_probabilities(generator, tokenizer, config, random_model):
    model = random_model(config)
    groups = generate_rollouts(
        generator, tokenizer, [(GRID, GRID.sample(1, 1))], samples=3, seeds=[5], max_tokens=20, seq_len=200
    )
    assert len(groups[0].samples) == 3
    for sample in groups[0].samples:
        answer = sample.answer
        assert sum(answer.mask) == len(answer.ids) == len(answer.logprobs) <= 20
        ids = torch.tensor([groups[0].prompt + answer.ids])
        with torch.no_grad():
            logprobs = model(ids)[0].log_softmax(-1)[len(groups[0].prompt) - 1 : -1]
        own = logprobs.gather(1, torch.tensor(answer.ids)[:, None]).squeeze(1)
        torch.testing.assert_close(own, torch.tensor(answer.logprobs), atol=1e-4, rtol=1e-4)
        assert set(sample.versions) == {1}


def test_answers_do_not_depend_on_who_is_asked_beside(generator, tokenizer):
    problems = [(GRID, GRID.sample(number, 1)) for number in range(3)]
    options = {"samples": 2, "max_tokens": 12, "seq_len": 200}
    together = generate_rollouts(generator, tokenizer, problems, seeds=[7, 8, 9], **options)
    alone = generate_rollouts(generator, tokenizer, problems[1:2], seeds=[8], **options)
    assert [s.answer.ids for s in together[1].samples] == [s.answer.ids for s in alone[0].samples]


def test_programs_are_heard_of_first_and_the_order_stays_that_of_the_problems(generator, tokenizer):
    code, ended = find("code.synthesis"), []
    problems = [(GRID, GRID.sample(1, 1)), (code, code.sample(1, 1)), (GRID, GRID.sample(2, 1))]
    options = {"samples": 2, "seeds": [1, 2, 3], "max_tokens": 8, "seq_len": 250}
    groups = generate_rollouts(
        generator, tokenizer, problems, **options, ended=lambda sample: ended.append(sample.problem.task)
    )
    assert ended == ["code.synthesis"] * 2 + ["planning.grid"] * 4
    assert [one.problem for one in groups] == [problem for _, problem in problems]


def test_an_episode_keeps_its_ids_and_marks_what_tools_said(tokenizer):
    problem = TOOLS.sample(3, 1)
    call = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2*3"}}\n</tool_call>'
    scripted = Scripted(tokenizer, [call, "so", f"answer: {problem.data['answer']}"])
    # The second sample answers at once; the first calls and then answers.
    groups = generate_rollouts(
        scripted, tokenizer, [(TOOLS, problem)], samples=2, seeds=[1], max_tokens=99, seq_len=2000
    )
    first, second = groups[0].samples
    assert first.verdict.passed
    assert first.verdict.breakdown["calls"] == 1
    assert not second.verdict.passed
    answer = first.answer
    assert len(answer.ids) == len(answer.mask) == len(answer.logprobs)
    chosen = [token for token, learn in zip(answer.ids, answer.mask, strict=True) if learn]
    final = f"answer: {problem.data['answer']}"
    end = tokenizer.special[END_OF_TURN]
    assert chosen == [*(tokenizer.encode(c)[0] for c in call), end, *(tokenizer.encode(c)[0] for c in final), end]
    others = [token for token, learn in zip(answer.ids, answer.mask, strict=True) if not learn]
    assert "6" in tokenizer.decode(others)
    assert all(lp == 0 for lp, learn in zip(answer.logprobs, answer.mask, strict=True) if not learn)
    # What the model went on from is what the trainer will see, token for token.
    assert scripted.asked[1] == groups[0].prompt + answer.ids[: len(scripted.asked[1]) - len(groups[0].prompt)]


def test_an_episode_that_is_cut_off_learns_no_end_it_did_not_choose(tokenizer):
    call = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2*3"}}\n</tool_call>'
    scripted = Scripted(tokenizer, [call, "answer: 1"], end="")
    groups = generate_rollouts(
        scripted, tokenizer, [(TOOLS, TOOLS.sample(3, 1))], samples=1, seeds=[1], max_tokens=99, seq_len=2000
    )
    answer = groups[0].samples[0].answer
    end = tokenizer.special[END_OF_TURN]
    assert not answer.ended
    assert end in answer.ids
    assert all(not learn for token, learn in zip(answer.ids, answer.mask, strict=True) if token == end)


@pytest.mark.parametrize("end", ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"])
def test_every_end_token_ends_and_is_learned(tokenizer, end):
    scripted = Scripted(tokenizer, ["answer: U"], end=end)
    groups = generate_rollouts(
        scripted, tokenizer, [(GRID, GRID.sample(3, 1))], samples=1, seeds=[1], max_tokens=20, seq_len=200
    )
    answer = groups[0].samples[0].answer
    assert answer.ended
    assert answer.ids[-1] == tokenizer.special[end]
    assert answer.mask[-1] == 1


def test_the_engine_stops_at_any_of_its_end_tokens(generator, tokenizer):
    assert {tokenizer.special[name] for name in ("<|eot_id|>", "<|end_of_text|>")} <= generator.end_ids


def test_a_problem_without_room_says_so(generator, tokenizer):
    problem = GRID.sample(1, 1)
    length = len(render(problem.messages(), tokenizer, add_generation_prompt=True).ids)
    with pytest.raises(PunaError, match=f"is {length} tokens long"):
        generate_rollouts(generator, tokenizer, [(GRID, problem)], samples=1, seeds=[1], max_tokens=8, seq_len=length)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_recipe_is_refused(config, tokenizer, model_dir):
    with pytest.raises(PunaError, match="not installed"):
        vllm_generator(config, tokenizer, model_dir, max_batch=1, seq_len=8)


def test_vllms_answers_become_completions(config, tokenizer):
    """Against vLLM's shapes, without vLLM: outputs have token_ids, logprobs by id, and a finish reason."""
    end = tokenizer.special[END_OF_TURN]
    ids = [*tokenizer.encode("answer: U"), end]
    logprobs = [{token: SimpleNamespace(logprob=-0.25)} for token in ids]
    seen = {}

    class LLM:
        def generate(self, prompts, params, use_tqdm):
            seen.update(prompts=prompts, params=params)
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason="stop")])]

        def collective_rpc(self, name, args):
            seen["weights"] = (name, args)

        def reset_prefix_cache(self):
            seen["reset"] = True

    vllm = SimpleNamespace(SamplingParams=lambda **options: SimpleNamespace(**options))
    generator = VLLMGenerator(vllm, LLM(), tokenizer, config, [])
    assert generator.update_weights([("w", torch.zeros(1))]) == 1
    (done,) = generator.generate([[1, 2]], SamplingParams(max_tokens=9, n=1, seed=4))
    assert done.text == "answer: U"
    assert done.ids == ids
    assert done.logprobs == [-0.25] * len(ids)
    assert done.finish_reason == "stop"
    assert end in seen["params"][0].stop_token_ids
    assert list(generator.generate_each([[1, 2]], SamplingParams(max_tokens=9, seed=4))) == [[done]]
    assert seen["weights"][0] == "load_weights"
    assert seen["reset"]
