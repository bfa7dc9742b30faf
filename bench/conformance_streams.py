"""Rows of the conformance table about streams, types, models, load and shutdown.

The last row stops the server.
"""

import contextlib
import json
import re
import signal
import subprocess
import threading
import time
from typing import Any

import httpx
import openai

from conformance_target import COMPLETE, MESSAGES, Row, Target, error_form, refused, row_of

ROWS: list[tuple[str, Row]] = []
row = row_of(ROWS)

# -- streams ---------------------------------------------------------------------------------------------------------


@row("stream: the role first, with empty content")
def _(t: Target) -> tuple[str, bool]:
    delta = t.events(t.chat(stream=True))[0]["choices"][0]["delta"]
    return json.dumps(delta)[:44], delta.get("role") == "assistant" and delta.get("content") == ""


@row("stream: finish_reason null until the last")
def _(t: Target) -> tuple[str, bool]:
    reasons = [
        choice.get("finish_reason", "left out") for e in t.events(t.chat(stream=True)) for choice in e["choices"]
    ]
    return f"{set(map(str, reasons[:-1]))}, then {reasons[-1]}", not any(reasons[:-1]) and reasons[-1] in (
        "stop",
        "length",
    )


@row("stream: usage without stream_options")
def _(t: Target) -> tuple[str, bool]:
    sent = [e for e in t.events(t.chat(stream=True)) if e.get("usage") or not e["choices"]]
    return ("sent" if sent else "not sent"), not sent


@row("stream: usage on request, with choices []")
def _(t: Target) -> tuple[str, bool]:
    last = t.events(t.chat(stream=True, ignore_eos=True, stream_options={"include_usage": True}))[-1]
    used = (last.get("usage") or {}).get("completion_tokens")
    return f"choices {'[]' if last['choices'] == [] else 'not empty'}, {used} tokens", last[
        "choices"
    ] == [] and used == 8


@row("stream: [DONE], frames, content type")
def _(t: Target) -> tuple[str, bool]:
    answer = t.chat(stream=True)
    done = answer.text.endswith("data: [DONE]\n\n")
    kind = answer.headers.get("content-type", "")
    return f"{'[DONE]' if done else 'none'}, {kind}", done and kind.startswith("text/event-stream")


@row("stream: n = 2")
def _(t: Target) -> tuple[str, bool]:
    events = t.events(t.chat(stream=True, n=2, temperature=1, ignore_eos=True, stream_options={"include_usage": True}))
    ends = {choice["index"] for e in events for choice in e["choices"] if choice.get("finish_reason")}
    used = (events[-1].get("usage") or {}).get("completion_tokens")
    return f"ends of {sorted(ends)}, usage {used}", ends == {0, 1} and used == 16


@row("stream: same text as without streaming")
def _(t: Target) -> tuple[str, bool]:
    whole = t.chat(max_tokens=24).json()["choices"][0]["message"]["content"]
    streamed = "".join(
        c["delta"].get("content") or "" for e in t.events(t.chat(stream=True, max_tokens=24)) for c in e["choices"]
    )
    return ("equal" if streamed == whole else "different"), streamed == whole


@row("openai-python: types of every field")
def _(t: Target) -> tuple[str, bool]:
    with openai.OpenAI(base_url=f"{t.url}/v1", api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {"model": t.model, "messages": MESSAGES, "max_tokens": 6}
        whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=1)
        list(client.chat.completions.create(**asked, stream=True))
        legacy = client.completions.create(model=t.model, prompt="import", max_tokens=3, logprobs=1)
        try:
            type(whole).model_validate(whole.model_dump(warnings="none"), strict=True)
            type(legacy).model_validate(legacy.model_dump(warnings="none"), strict=True)
        except ValueError as error:
            return f"{str(error).splitlines()[1]}", False
    return "right", True


@row("GET /v1/models")
def _(t: Target) -> tuple[str, bool]:
    listed = t.api.get("/v1/models")
    right = (
        listed.status_code == 200
        and listed.json()["object"] == "list"
        and listed.json()["data"][0]["object"] == "model"
    )
    return str(listed.status_code), right


@row("GET /v1/models/NAME, known and unknown")
def _(t: Target) -> tuple[str, bool]:
    one, none = t.api.get(f"/v1/models/{t.model}"), t.api.get("/v1/models/nobody")
    return f"{one.status_code}, {none.status_code} {error_form(none)}", one.status_code == 200 and refused(none, 404)[1]


# -- load and shutdown -----------------------------------------------------------------------------------------------


@row("a disconnect cancels the request")
def _(t: Target) -> tuple[str, bool]:
    body = t.body(prompt="a", max_tokens=t.context - 20, ignore_eos=True, stream=True, n=2)
    with t.api.stream("POST", COMPLETE, json=body) as answer:
        next(answer.iter_lines())
    left = time.monotonic()
    while (busy := _busy(t)) and time.monotonic() - left < 3:
        time.sleep(0.05)
    return ("still working after 3 s" if busy else "stopped"), not busy


def _busy(t: Target) -> bool:
    """Whether the server reports that it is generating."""
    slots = t.api.get("/slots")
    if slots.status_code == 200:
        return any(slot["is_processing"] for slot in slots.json())
    text = t.api.get("/metrics").text
    found = re.findall(r"^(?:puna_running_texts|vllm:num_requests_running)(?:\{.*\})? (\S+)$", text, re.MULTILINE)
    return not found or any(float(number) for number in found)


@row("200 requests at once: 429 with Retry-After")
def _(t: Target) -> tuple[str, bool]:
    body = t.body(prompt="a", max_tokens=128, ignore_eos=True)
    answers: list[httpx.Response] = []

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError):
            answers.append(httpx.post(t.url + COMPLETE, json=body, timeout=120, trust_env=False))

    threads = [threading.Thread(target=ask) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    many = [answer for answer in answers if answer.status_code == 429]
    lost = 200 - len(answers)
    later = all(answer.headers.get("retry-after") for answer in many)
    counts = {
        status: sum(a.status_code == status for a in answers) for status in sorted({a.status_code for a in answers})
    }
    if lost:
        return f"{counts}, {lost} without an answer in 120 s", False
    return f"{counts}{', Retry-After' if many and later else ''}", bool(many) and later and set(counts) == {200, 429}


@row("SIGTERM during a stream")
def _(t: Target) -> tuple[str, bool]:
    if t.process is None:
        return "not started here", True
    text: list[str] = []
    begun = threading.Event()
    body = t.body(prompt="a", max_tokens=t.context - 20, ignore_eos=True, stream=True)

    def read() -> None:
        with contextlib.suppress(httpx.HTTPError), t.api.stream("POST", COMPLETE, json=body) as answer:
            for line in answer.iter_lines():
                text.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    begun.wait(30)
    started = time.monotonic()
    t.process.send_signal(signal.SIGTERM)
    try:
        code = t.process.wait(60)
    except subprocess.TimeoutExpired:
        return "still running after 60 s", False
    seconds = time.monotonic() - started
    reader.join(10)
    whole = "data: [DONE]" in text
    return (
        f"{seconds:.1f} s, code {code}, stream {'complete' if whole else 'truncated'}",
        whole and code == 0 and seconds < 30,
    )
