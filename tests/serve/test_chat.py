"""Chat as the openai-python client asks for it."""

import json
from collections.abc import Iterator

import openai
import pytest

MESSAGES = [{"role": "user", "content": "What is the time in the harbour?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Oslo", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.fixture(scope="module")
def client(live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client, **options):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_completion_tokens": 12, **options}
    )


def test_an_answer(client) -> None:
    answer = ask(client)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.system_fingerprint.startswith("puna-")
    assert ask(client).usage.prompt_tokens_details.cached_tokens > 0


def test_a_stream_is_the_same_answer(client) -> None:
    chunks = list(ask(client, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ask(client).choices[0].message.content


def test_usage_of_a_stream_comes_when_asked_for(client) -> None:
    last = list(ask(client, stream=True, stream_options={"include_usage": True}))[-1]
    assert last.choices == []
    assert last.usage.completion_tokens == 12


def test_frames_of_a_stream(live) -> None:
    body = {"messages": MESSAGES, "max_tokens": 3, "stream": True}
    answer = live.post("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = answer.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    first = json.loads(frames[0].removeprefix("data: "))
    assert first["choices"][0]["finish_reason"] is None


def test_two_answers_with_seeds_of_their_own(client) -> None:
    answer = ask(client, n=2, seed=7, temperature=1.0)
    first, second = (choice.message.content for choice in answer.choices)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert first != second
    assert answer.usage.completion_tokens == 24
    assert ask(client, seed=7, temperature=1.0).choices[0].message.content == first
    assert ask(client, seed=8, temperature=1.0).choices[0].message.content == second


def test_stop_strings_end_the_text_before_them(client) -> None:
    whole = ask(client, max_completion_tokens=30).choices[0].message.content
    cut = whole[4:7]
    answer = ask(client, max_completion_tokens=30, stop=[cut])
    assert answer.choices[0].message.content == whole[: whole.index(cut)]
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs_with_bytes(client) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 12
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert all(token.logprob == pytest.approx(token.top_logprobs[0].logprob) for token in tokens)
    joined = b"".join(bytes(token.bytes) for token in tokens)
    assert joined.decode("utf-8", "replace").startswith(answer.choices[0].message.content.rstrip("\ufffd"))
    streamed = [
        token
        for chunk in ask(client, logprobs=True, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]


def test_logit_bias_forbids_and_forces(live) -> None:
    ids = live.post("/tokenize", {"prompt": " the", "add_special_tokens": False}).json()["tokens"]
    body = {"messages": MESSAGES, "max_tokens": 3, "temperature": 0, "return_token_ids": True}
    forced = live.post("/v1/chat/completions", {**body, "logit_bias": {str(ids[0]): 100}}).json()
    assert forced["choices"][0]["token_ids"] == [ids[0]] * 3
    assert forced["prompt_token_ids"]
    outside = live.post("/v1/chat/completions", {**body, "logit_bias": {"99999": 1}})
    assert outside.status_code == 400


def test_content_in_parts_and_developer(client) -> None:
    parts = [{"type": "text", "text": "What is the time "}, {"type": "text", "text": "in the harbour?"}]
    answer = ask(client, messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == ask(client).choices[0].message.content
    system = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    developer = [{"role": "developer", "content": "Be brief."}, *MESSAGES]
    assert (
        ask(client, messages=system).choices[0].message.content
        == ask(client, messages=developer).choices[0].message.content
    )


def test_an_answer_goes_on_from_a_beginning(client) -> None:
    whole = ask(client, extra_body={"return_token_ids": True}).choices[0]
    begun = {"role": "assistant", "content": "x", "token_ids": whole.token_ids[:6]}
    rest = ask(
        client,
        messages=[*MESSAGES, begun],
        max_completion_tokens=6,
        extra_body={"continue_final_message": True, "return_token_ids": True},
    ).choices[0]
    assert rest.token_ids == whole.token_ids[6:]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_time"}}])
def test_a_tool_that_must_be_called(client, choice) -> None:
    answer = ask(client, tools=TOOLS, tool_choice=choice, max_completion_tokens=60)
    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.type == "function"
    assert call.id
    assert call.function.name == "get_time"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    assert answer.choices[0].message.content is None


def forced_text(text: str) -> dict:
    return {"structured_outputs": {"choice": [text]}}


def test_a_call_is_streamed_as_openai_streams_it(client) -> None:
    chunks = list(
        ask(client, tools=TOOLS, stream=True, max_completion_tokens=120, extra_body=forced_text(f"Yes.\n{CALL}"))
    )
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert (deltas[0].id, deltas[0].type, deltas[0].function.name) == (deltas[0].id, "function", "get_time")
    assert all(delta.id is None and delta.type is None and delta.function.name is None for delta in deltas[1:])
    assert json.loads("".join(delta.function.arguments for delta in deltas)) == {"city": "Oslo"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Yes."
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tools_that_may_not_be_called_are_text(client) -> None:
    answer = ask(client, tools=TOOLS, tool_choice="none", max_completion_tokens=120, extra_body=forced_text(CALL))
    assert answer.choices[0].message.content == CALL
    assert answer.choices[0].message.tool_calls is None


def test_only_one_call_when_not_in_parallel(client) -> None:
    options = {"tools": TOOLS, "max_completion_tokens": 200, "extra_body": forced_text(f"{CALL}\n{CALL}")}
    assert len(ask(client, **options).choices[0].message.tool_calls) == 2
    assert len(ask(client, parallel_tool_calls=False, **options).choices[0].message.tool_calls) == 1


def test_a_malformed_call_is_text(client) -> None:
    broken = '<tool_call>{"name": }</tool_call>'
    answer = ask(client, tools=TOOLS, max_completion_tokens=120, extra_body=forced_text(broken))
    assert answer.choices[0].message.content == broken
    assert answer.choices[0].finish_reason == "stop"


def test_reasoning_is_apart(client) -> None:
    text = "<think>\nHm.\n</think>\n\nYes."
    answer = ask(client, max_completion_tokens=120, extra_body=forced_text(text))
    assert answer.choices[0].message.content == "Yes."
    assert answer.choices[0].message.reasoning_content == "Hm."
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0


def test_a_dialogue_with_calls_and_results(client) -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "get_time", "arguments": '{"city": "Oslo"}'}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call-1", "content": "12:00"},
    ]
    assert ask(client, messages=messages, tools=TOOLS).choices[0].message.content


def test_json_by_schema(client) -> None:
    schema = {
        "type": "object",
        "properties": {"ship": {"enum": ["Fram", "Gjøa"]}, "ready": {"type": "boolean"}},
        "required": ["ship", "ready"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "ship", "schema": schema, "strict": True}}
    value = json.loads(ask(client, response_format=form, max_completion_tokens=150).choices[0].message.content)
    assert value["ship"] in ("Fram", "Gjøa")
    assert isinstance(value["ready"], bool)


def test_a_choice_and_a_pattern(client) -> None:
    one = ask(client, extra_body={"structured_outputs": {"choice": ["ja", "nei"]}}).choices[0].message.content
    assert one in ("ja", "nei")
    time = ask(client, extra_body={"structured_outputs": {"regex": "[0-2][0-9]:[0-5][0-9]"}}).choices[0].message
    assert len(time.content) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 3}}}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "xml"}},
        {"extra_body": {"structured_outputs": {"regex": "("}}},
        {"extra_body": {"structured_outputs": {"regex": "a", "choice": ["b"]}}},
        {"extra_body": {"structured_outputs": {"grammar": "nonsense ::="}}},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tool_choice": "required"},
        {"messages": []},
        {"messages": [{"role": "pope", "content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        {"temperature": -1},
        {"top_p": -0.1},
        {"n": 0},
        {"stop": [""]},
        {"top_logprobs": 3},
        {"logit_bias": {"x": 1}},
        {"max_completion_tokens": 0},
        {"stream_options": {"include_usage": True}},
        {"extra_body": {"functions": [{"name": "f"}]}},
        {"modalities": ["text", "audio"]},
    ],
)
def test_what_is_wrong_is_refused_in_a_sentence(client, wrong: dict) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **wrong)
    assert caught.value.body["message"]
    assert caught.value.body["type"] == "invalid_request_error"


def test_unknown_fields_are_ignored(client) -> None:
    assert ask(client, extra_body={"something_new": {"a": 1}}).choices


def test_typed_exceptions(client, live) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-9")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": "harbour " * 600}])
    assert caught.value.code == "context_length_exceeded"
    numbers = [int(word) for word in str(caught.value).replace(",", " ").replace(".", " ").split() if word.isdigit()]
    assert 512 in numbers
    assert any(number > 512 for number in numbers)
    assert live.settled()


def test_models(client) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "puna"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
