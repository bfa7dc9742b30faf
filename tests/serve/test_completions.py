"""/v1/completions, /v1/embeddings and the tokenizer's routes."""

import base64
import math
import struct
from collections.abc import Iterator

import openai
import pytest

from puna.engine.generate import SamplingParams


@pytest.fixture(scope="module")
def client(live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client, prompt, **options):
    return client.completions.create(**{"model": "tiny", "prompt": prompt, "temperature": 0, **options})


def test_sixteen_tokens_unless_asked_otherwise(client) -> None:
    answer = ask(client, "The harbour")
    assert answer.object == "text_completion"
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is None


def test_it_is_what_the_engine_says(client, live) -> None:
    ids = live.engine.tokenizer.encode("The harbour", bos=True)
    (expected,) = live.engine.generate([ids], SamplingParams(max_tokens=16, temperature=0))
    assert ask(client, "The harbour").choices[0].text == expected.text
    assert ask(client, ids).choices[0].text == expected.text


def test_several_prompts_and_several_texts(client, live) -> None:
    ids = [live.engine.tokenizer.encode(text, bos=True) for text in ("The ships", "The pilot")]
    alone = [ask(client, one).choices[0].text for one in ids]
    together = ask(client, ids)
    assert [choice.text for choice in together.choices] == alone
    assert together.usage.prompt_tokens == sum(map(len, ids))
    both = ask(client, ["The ships", "The pilot"], n=2, seed=3, temperature=1.0)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.usage.completion_tokens == 64
    second = ask(client, "The ships", seed=4, temperature=1.0)
    assert both.choices[1].text == second.choices[0].text


def test_echo_and_logprobs_score_a_prompt(client, live) -> None:
    """As lm-eval's local-completions asks."""
    ids = live.engine.tokenizer.encode("The harbour was quiet.", bos=True)
    answer = ask(client, [ids], echo=True, logprobs=1, max_tokens=1)
    found = answer.choices[0].logprobs
    (expected,) = live.engine.generate([ids], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1))
    assert len(found.tokens) == len(ids) + 1
    assert found.token_logprobs[0] is None
    assert found.top_logprobs[0] is None
    for row, value, tops, token in zip(
        expected.prompt_logprobs[1:], found.token_logprobs[1:], found.top_logprobs[1:], found.tokens[1:], strict=False
    ):
        assert value == pytest.approx(row[0].logprob, abs=1e-5)
        assert tops[token] >= value - 1e-6
        assert max(tops.values()) == pytest.approx(row[1].logprob, abs=1e-5)
    text = answer.choices[0].text
    assert text == "The harbour was quiet." + expected.text
    assert "".join(found.tokens[1:-1]) == "The harbour was quiet."
    for token, offset in list(zip(found.tokens, found.text_offset, strict=True))[1:-1]:
        assert text[offset : offset + len(token)] == token
    assert found.tokens[-1]


def test_no_token_at_all_only_with_echo(client) -> None:
    answer = ask(client, "The harbour", echo=True, logprobs=0, max_tokens=0)
    assert answer.choices[0].text == "The harbour"
    assert answer.usage.completion_tokens == 0
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.prompt_tokens
    assert ask(client, "The harbour", echo=True, max_tokens=0).choices[0].text == "The harbour"
    with pytest.raises(openai.BadRequestError):
        ask(client, "The harbour", max_tokens=0)


def test_streams_are_the_same_text(client) -> None:
    whole = ask(client, ["The ships", "The pilot"], echo=True, logprobs=2)
    rows = {0: "", 1: ""}
    offsets: dict[int, list[int]] = {0: [], 1: []}
    for chunk in ask(client, ["The ships", "The pilot"], echo=True, logprobs=2, stream=True):
        rows[chunk.choices[0].index] += chunk.choices[0].text
        offsets[chunk.choices[0].index] += chunk.choices[0].logprobs.text_offset
    assert rows == {choice.index: choice.text for choice in whole.choices}
    assert offsets == {choice.index: choice.logprobs.text_offset for choice in whole.choices}


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [1, "x"]},
        {"prompt": [99999]},
        {"prompt": [-1]},
        {"best_of": 2},
        {"suffix": "x"},
        {"logprobs": 99},
        {"max_tokens": -1},
        {"stop": [""]},
    ],
)
def test_what_is_wrong_is_refused(client, wrong: dict) -> None:
    with pytest.raises(openai.BadRequestError):
        ask(client, **{"prompt": "x", **wrong})


def test_embeddings(client) -> None:
    texts = ["The harbour", "東京"]
    answer = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64 by itself
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    assert [item.index for item in answer.data] == [0, 1]
    for one, other in zip(answer.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert math.fsum(x * x for x in one.embedding) == pytest.approx(1, abs=1e-5)
    short = client.embeddings.create(model="tiny", input=texts[0], dimensions=5, encoding_format="float")
    assert len(short.data[0].embedding) == 5
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 2


def test_embeddings_of_tokens_and_in_base64(live) -> None:
    ids = live.engine.tokenizer.encode("The harbour", bos=True)
    body = {"input": [ids], "encoding_format": "base64"}
    data = live.post("/v1/embeddings", body).json()["data"][0]["embedding"]
    values = struct.unpack("<32f", base64.b64decode(data))
    text = live.post("/v1/embeddings", {"input": "The harbour"}).json()["data"][0]["embedding"]
    assert values == pytest.approx(text, abs=1e-6)
    for wrong in ({"input": []}, {"input": "x", "dimensions": 33}, {"input": [[99999]]}, {"input": "x " * 600}):
        assert live.post("/v1/embeddings", wrong).status_code == 400, wrong


def test_tokenize_and_back(live) -> None:
    text = "Grüße aus 東京!"
    answer = live.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 512
    assert live.post("/detokenize", {"tokens": answer["tokens"][1:]}).json() == {"prompt": text}
    messages = [{"role": "user", "content": "x"}]
    rendered = live.post("/tokenize", {"messages": messages}).json()["tokens"]
    chat = live.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1, "return_token_ids": True}).json()
    assert chat["prompt_token_ids"] == rendered
    assert live.post("/detokenize", {"tokens": [10**6]}).status_code == 400
    assert live.post("/tokenize", {}).status_code == 400
