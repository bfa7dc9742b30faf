"""/v1/responses through the openai-python client, with its fields, items, events and memory."""

import json
from collections.abc import Iterator

import openai
import pytest

TOOL = {
    "type": "function",
    "name": "get_time",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
# Those that servers are known to leave out or to make null.
ALWAYS = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "temperature": 1.0,
    "top_p": 1.0,
    "tool_choice": "auto",
    "truncation": "disabled",
    "background": False,
    "service_tier": "default",
    "tools": [],
    "status": "incomplete",
    "error": None,
    "parallel_tool_calls": True,
    "metadata": {},
}


@pytest.fixture(scope="module")
def client(live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client, **options):
    return client.responses.create(**{"model": "tiny", "input": "The time?", "max_output_tokens": 6, **options})


def test_an_answer_with_all_its_fields(live) -> None:
    answer = live.post("/v1/responses", {"input": "The time?", "max_output_tokens": 6}).json()
    assert {key: answer[key] for key in ALWAYS} == ALWAYS
    assert answer["id"].startswith("resp")
    message = answer["output"][0]
    assert message["id"]
    assert message["status"] == "incomplete"
    assert message["content"][0]["logprobs"] == []
    assert message["content"][0]["annotations"] == []
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["usage"]["output_tokens"] == 6


def test_the_client_reads_it(client) -> None:
    answer = ask(client, temperature=0, instructions="Be brief.")
    assert answer.output_text
    assert answer.instructions == "Be brief."
    assert answer.usage.input_tokens > 0


def test_events_of_a_stream(client) -> None:
    events = list(ask(client, stream=True, temperature=0))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == ask(client, temperature=0).output_text


def test_a_function_that_must_be_called(client) -> None:
    answer = ask(client, tools=[TOOL], tool_choice="required", max_output_tokens=150)
    call = answer.output[0]
    assert (call.type, call.name, call.status) == ("function_call", "get_time", "completed")
    assert json.loads(call.arguments) == {"city": "Oslo"}
    events = list(ask(client, tools=[TOOL], tool_choice="required", max_output_tokens=150, stream=True))
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(pieces)) == {"city": "Oslo"}
    following = ask(
        client,
        previous_response_id=answer.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "12:00"}],
        tools=[TOOL],
        tool_choice="none",
    )
    assert following.output_text


def test_text_by_schema(client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "name": "x", "schema": {**schema, "additionalProperties": False}}
    answer = ask(client, text={"format": form}, max_output_tokens=150)
    assert isinstance(json.loads(answer.output_text)["a"], bool)
    assert answer.text.format.name == "x"


def test_an_answer_is_built_on(client, live) -> None:
    first = ask(client, temperature=0, instructions="Be brief.")
    said = live.server.models.get(None).engine.stats()["steps"]
    second = ask(client, temperature=0, previous_response_id=first.id, input="And now?")
    assert live.engine.stats()["steps"] > said
    whole = [
        {"role": "user", "content": "The time?"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And now?"},
    ]
    again = ask(client, temperature=0, input=whole)
    assert second.output_text == again.output_text  # the first one's instructions were for the first
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        ask(client, previous_response_id=first.id)
    kept = ask(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(kept.id)


def test_the_oldest_messages_give_way(client) -> None:
    long = [{"role": "user", "content": "harbour " * 150} for _ in range(4)] + [{"role": "user", "content": "Now?"}]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, input=long)
    assert caught.value.code == "context_length_exceeded"
    assert ask(client, input=long, truncation="auto").output_text


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": []},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"background": True},
        {"tools": [{"type": "function"}]},
        {"temperature": -1},
        {"tool_choice": "required"},
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 3}}}},
    ],
)
def test_what_is_wrong_is_refused(client, wrong: dict) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **wrong)
    assert caught.value.body["message"]


def test_logprobs(client) -> None:
    answer = ask(client, top_logprobs=2, include=["message.output_text.logprobs"])
    logprobs = answer.output[0].content[0].logprobs
    assert logprobs
    assert all(len(token.top_logprobs) == 2 for token in logprobs)
