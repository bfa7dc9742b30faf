"""Rows of the conformance table about requests and answers.

Each row checks one behaviour of a server. OpenAI's documentation says what is right; where it is silent, the better of
the reference servers do.
"""

import contextlib
import json
import threading
import time

import httpx

from conformance_target import CHAT, MESSAGES, Row, Target, refused, row_of

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "far": {"type": "boolean"}},
    "required": ["city", "far"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}]
ROWS: list[tuple[str, Row]] = []
row = row_of(ROWS)

# -- invalid requests ------------------------------------------------------------------------------------------------


@row("bad JSON")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.raw(b'{"messages": ['), 400)


@row("a body that is not an object")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.raw(b"[1]"), 400)


@row("invalid UTF-8")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.raw(b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}'), 400)


@row("a lone surrogate")
def _(t: Target) -> tuple[str, bool]:
    body = json.dumps({"model": t.model, "max_tokens": 3, "messages": [{"role": "user", "content": "a \ud800 b"}]})
    came, right = refused(answer := t.raw(body.encode()), 400)
    return came, right or answer.status_code == 200


@row("temperature −1")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.chat(temperature=-1), 400)


@row("temperature NaN")
def _(t: Target) -> tuple[str, bool]:
    body = json.dumps({"model": t.model, "max_tokens": 3, "messages": MESSAGES, "temperature": float("nan")})
    return refused(t.raw(body.encode()), 400)


@row("wrong type of a field")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.chat(messages="hello"), 400)


@row("unknown model")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.chat(model="nobody"), 404)


@row("empty messages")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.chat(messages=[]), 400)


@row("empty list of prompts")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.complete(prompt=[]), 400)


@row("unknown field")
def _(t: Target) -> tuple[str, bool]:
    answer = t.chat(a_field_of_tomorrow=1)
    return str(answer.status_code), answer.status_code == 200


@row("top_logprobs without logprobs")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.chat(top_logprobs=3), 400)


@row("prompt too long")
def _(t: Target) -> tuple[str, bool]:
    answer = t.complete(prompt=[5] * (t.context + 50))
    came, right = refused(answer, 400)
    names = str(t.context) in answer.text
    return f"{came}{', names the limit' if names else ''}", right and names


@row("prompt too long: error code")
def _(t: Target) -> tuple[str, bool]:
    answer = t.complete(prompt=[5] * (t.context + 50))
    error = answer.json().get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return str(code), code == "context_length_exceeded"


@row("max_tokens 0")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.complete(max_tokens=0), 400)


@row("logit_bias outside the vocabulary")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.chat(logit_bias={str(t.vocabulary + 7): 1}), 400)


@row("unknown response_format")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.chat(response_format={"type": "haiku"}), 400)


@row("an invalid schema")
def _(t: Target) -> tuple[str, bool]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}
    return refused(t.chat(response_format=form), 400)


@row("error status of a stream")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.chat(stream=True, temperature=-1), 400)


@row("404 body")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.api.get("/v1/nothing-here"), 404)


@row("405 body")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.api.get(CHAT), 405)


@row("a body of 11 MB")
def _(t: Target) -> tuple[str, bool]:
    try:
        return refused(t.chat(messages=[{"role": "user", "content": "a" * 11 * 2**20}]), 413)
    except httpx.TransportError as error:
        return f"{type(error).__name__}", False


# -- answers ---------------------------------------------------------------------------------------------------------


@row("max_tokens 0 with echo")
def _(t: Target) -> tuple[str, bool]:
    answer = t.complete(max_tokens=0, echo=True)
    if answer.status_code != 200:
        return f"{answer.status_code}", False
    used, text = answer.json()["usage"]["completion_tokens"], answer.json()["choices"][0]["text"]
    return (
        f"200, counts {used}, {'the prompt' if text == 'import os' else repr(text[:12])}",
        used == 0 and text == "import os",
    )


@row("echo")
def _(t: Target) -> tuple[str, bool]:
    answer = t.complete(echo=True)
    if answer.status_code != 200:
        return f"{answer.status_code}", False
    text = answer.json()["choices"][0]["text"]
    return ("the prompt first" if text.startswith("import os") else "ignored"), text.startswith("import os")


@row("token ids, two prompts, echo, logprobs")
def _(t: Target) -> tuple[str, bool]:
    answer = t.complete(prompt=[[5, 6, 7], [8, 9]], echo=True, logprobs=1, max_tokens=1)
    if answer.status_code != 200:
        return f"{answer.status_code}", False
    rows = [choice["logprobs"] for choice in sorted(answer.json()["choices"], key=lambda choice: choice["index"])]
    if not all(isinstance(found, dict) and "token_logprobs" in found for found in rows):
        return f"{len(rows)} choices, different shape", False
    sizes = [len(found["token_logprobs"]) for found in rows]
    first = all(found["token_logprobs"][0] is None for found in rows)
    return f"{sizes} logprobs, first {'null' if first else 'not null'}", sizes == [4, 3] and first


@row("shape of legacy logprobs")
def _(t: Target) -> tuple[str, bool]:
    found = t.complete(logprobs=2).json()["choices"][0]["logprobs"]
    keys = {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    if found is None or not keys <= found.keys():
        return ("null" if found is None else "{" + ", ".join(found) + "}"), False
    lengths = {len(found[key]) for key in keys}
    return "parallel lists" if lengths == {8} else f"lengths {lengths}", lengths == {8}


@row("chat logprobs with bytes")
def _(t: Target) -> tuple[str, bool]:
    answer = t.chat(logprobs=True, top_logprobs=2).json()["choices"][0]
    found = answer["logprobs"]["content"]
    joined = b"".join(bytes(entry["bytes"] or ()) for entry in found).decode("utf-8", "replace")
    tops = {len(entry["top_logprobs"]) for entry in found}
    same = joined.startswith(answer["message"]["content"].rstrip("\ufffd"))
    return f"{'bytes match the text' if same else 'bytes differ from the text'}, {tops} tops", same and tops == {2}


@row("prompt of token ids")
def _(t: Target) -> tuple[str, bool]:
    answer = t.complete(prompt=[5, 6, 7])
    count = answer.json()["usage"]["prompt_tokens"] if answer.status_code == 200 else answer.status_code
    return f"counts {count}", count == 3


@row("n = 2")
def _(t: Target) -> tuple[str, bool]:
    answer = t.chat(n=2, temperature=1, seed=5, ignore_eos=True)
    if answer.status_code != 200:
        return f"{answer.status_code}", False
    body = answer.json()
    texts = [choice["message"]["content"] for choice in body["choices"]]
    used = body["usage"]["completion_tokens"]
    return f"{len(texts)} choices, usage {used}", len(texts) == 2 and used == 16


@row("n = 2: texts differ, reproducibly")
def _(t: Target) -> tuple[str, bool]:
    asked = {"n": 2, "temperature": 1, "seed": 5}
    first, again = (
        {choice["index"]: choice["message"]["content"] for choice in t.chat(**asked).json()["choices"]} for _ in "ab"
    )
    differ, same = len(set(first.values())) == 2, first == again
    return f"{'differ' if differ else 'equal'}, {'repeated' if same else 'not repeated'}", differ and same


@row("a seed does not depend on other requests")
def _(t: Target) -> tuple[str, bool]:
    def ask(seed: int | None, tokens: int) -> str:
        more = {} if seed is None else {"seed": seed}
        return t.complete(temperature=1, max_tokens=tokens, ignore_eos=True, **more).json()["choices"][0]["text"]

    # In bfloat16 another batch rounds differently, and after some tokens the text diverges: so use few tokens, and
    # tolerate one of six seeds that differs. A server that ignores the seed differs in all of them.
    alone = [ask(seed, 4) for seed in range(6)]
    mates = [threading.Thread(target=ask, args=(None, 120)) for _ in range(3)]
    for mate in mates:
        mate.start()
    time.sleep(0.05)
    among = [ask(seed, 4) for seed in range(6)]
    for mate in mates:
        mate.join()
    same = sum(one == other for one, other in zip(alone, among, strict=True))
    return f"{same} of 6 the same", same >= 5


@row("json_schema")
def _(t: Target) -> tuple[str, bool]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    answer = t.chat(response_format=form, max_tokens=120)
    if answer.status_code != 200:
        return f"{answer.status_code}", False
    return _valid(answer.json()["choices"][0]["message"]["content"])


def _valid(text: str) -> tuple[str, bool]:
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        right = value.keys() == {"city", "far"} and value["city"] in ("Oslo", "Rome") and isinstance(value["far"], bool)
        return ("enforced" if right else "other JSON"), right
    # A random model may continue with white space, which JSON allows, until its tokens are used up.
    said = "".join(text.split())
    whole = [f'{{"city":"{city}","far":{far}}}' for city in ("Oslo", "Rome") for far in ("true", "false")]
    right = any(one.startswith(said) for one in whole)
    return ("enforced, with much white space" if right else "not JSON"), right


@row("max_completion_tokens over max_tokens")
def _(t: Target) -> tuple[str, bool]:
    used = t.chat(max_completion_tokens=3, max_tokens=9, ignore_eos=True).json()["usage"]["completion_tokens"]
    return f"{used} tokens", used == 3


@row("stop strings across tokens, not in the text")
def _(t: Target) -> tuple[str, bool]:
    whole = t.complete(max_tokens=30, ignore_eos=True).json()["choices"][0]["text"]
    # Three characters from the middle of the text, none of them cut: somewhere they span two tokens.
    for at in range(4, len(whole) - 3):
        stop = whole[at : at + 3]
        if "\ufffd" in stop or not stop.strip():
            continue
        answer = t.complete(max_tokens=30, ignore_eos=True, stop=[stop]).json()["choices"][0]
        right = answer["text"] == whole[: whole.index(stop)] and answer["finish_reason"] == "stop"
        if not right:
            return f"{answer['text'][-8:]!r} {answer['finish_reason']}", False
        if at > 9:
            break
    return "truncated before it", True


@row("stop strings in a stream")
def _(t: Target) -> tuple[str, bool]:
    whole = t.complete(max_tokens=30, ignore_eos=True).json()["choices"][0]["text"]
    stop = next(whole[at : at + 3] for at in range(5, 99) if "\ufffd" not in whole[at : at + 3])
    chunks = t.events(t.complete(max_tokens=30, ignore_eos=True, stop=stop, stream=True))
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    return ("truncated before it" if text == whole[: whole.index(stop)] else repr(text[-8:])), text == whole[
        : whole.index(stop)
    ]


@row("characters of several tokens in a stream")
def _(t: Target) -> tuple[str, bool]:
    wanted = "東京🎉é"
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [wanted]}}}
    chunks = t.events(t.chat(response_format=form, max_tokens=60, stream=True))
    pieces = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    whole, broken = "".join(pieces), any("\ufffd" in piece for piece in pieces)
    return ("whole" if not broken else "U+FFFD") + f", {json.loads(whole) == wanted}", not broken and json.loads(
        whole
    ) == wanted


@row("half a character at the end")
def _(t: Target) -> tuple[str, bool]:
    if t.half is None:
        return "no such token", False
    asked = {"logit_bias": {str(t.half): 100}, "max_tokens": 2}
    whole = t.complete(**asked).json()["choices"][0]["text"]
    chunks = t.events(t.complete(**asked, stream=True))
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    right = text == whole and "\ufffd" in whole
    return (f"U+FFFD, {'as' if text == whole else 'not as'} in a stream" if "\ufffd" in whole else repr(whole)), right


@row("tool_choice none")
def _(t: Target) -> tuple[str, bool]:
    answer = t.chat(tools=TOOLS, tool_choice="none")
    if answer.status_code != 200:
        return f"{answer.status_code}", False
    calls = answer.json()["choices"][0]["message"].get("tool_calls")
    return f"200, {'no call' if not calls else 'a call'}", not calls


@row("null content with tool calls")
def _(t: Target) -> tuple[str, bool]:
    call = {"id": "call-1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    said = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call-1", "content": "noon"},
    ]
    status = t.chat(messages=said, tools=TOOLS, tool_choice="none").status_code
    return str(status), status == 200


@row("null content of a user")
def _(t: Target) -> tuple[str, bool]:
    return refused(t.chat(messages=[{"role": "user", "content": None}]), 400)


@row("content in parts, role developer")
def _(t: Target) -> tuple[str, bool]:
    said = [{"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]}]
    status = t.chat(messages=[*said, *MESSAGES]).status_code
    return str(status), status == 200


@row("cached tokens in usage")
def _(t: Target) -> tuple[str, bool]:
    said = [{"role": "user", "content": "Which of all the cities in the world is it? " * 12}]
    t.chat(messages=said)
    details = t.chat(messages=said).json()["usage"].get("prompt_tokens_details") or {}
    return f"{details.get('cached_tokens')}", bool(details.get("cached_tokens"))
