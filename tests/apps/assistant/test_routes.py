"""What the page asks for: streams that are taken up again, tokens, comparing, who may see what, and foreign pages."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from live_site import Site, eventually, site
from scripted import Scripted

from puna.web.errors import ApiError

KEYS = {"key-of-ana-1": "ana", "key-of-bo-22": "bo"}
FAST, SLOW, BASE = "fast", "slow", "base"


@pytest.fixture(scope="module")
def backends() -> list[Scripted]:
    words = "One two **three** four."
    return [
        Scripted(FAST, lambda text: f"You said: *{text}*. {words}"),
        Scripted(SLOW, lambda text: words * 200, seconds=0.02),
        Scripted(BASE, lambda text: " and so on", stage="base"),
    ]


@pytest.fixture(scope="module")
def here(backends: list[Scripted], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(backends, tmp_path_factory.mktemp("data")) as made:
        yield made


def new(here: Site, model: str = FAST, **more: Any) -> str:
    made = here.api.post("/app/conversations", json={"model": model, **more})
    assert made.status_code == 200, made.text
    return made.json()["id"]


def events(text: str) -> list[tuple[int, str, dict]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "event" in fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def say(here: Site, id: str, text: str, parent: str | None = None, **body: Any) -> list[tuple[int, str, dict]]:
    answer = here.api.post(f"/app/conversations/{id}/messages", json={"content": text, "parent": parent, **body})
    assert answer.status_code == 200, answer.text
    return events(answer.text)


def applied(found: list[tuple[int, str, dict]]) -> str:
    """The HTML that a page would show after these events."""
    blocks: list[str] = []
    for _, event, data in found:
        if event == "update":
            for at, html in data["blocks"]["content"]:
                blocks[at:] = [*([""] * max(0, at - len(blocks))), html, *blocks[at + 1 :]]
            blocks = blocks[: data["sizes"]["content"]]
    return "".join(blocks)


def test_an_answer_is_streamed_and_kept(here: Site) -> None:
    id = new(here, system="Be brief.", settings={"temperature": 0.5, "max_tokens": 50})
    found = say(here, id, "hello")
    assert found[0][1] == "start"
    assert found[-1][1] == "done"
    message = found[-1][2]["message"]
    assert message["content"] == "You said: *hello*. One two **three** four."
    assert (
        applied(found) == message["html"] == "<p>You said: <em>hello</em>. One two <strong>three</strong> four.</p>\n"
    )
    assert message["usage"]["completion_tokens"] == 7
    assert message["finish_reason"] == "stop"
    assert message["weight_version"] == 3
    asked = here.assistant.server.models.get(FAST).asked[-1]
    assert [(m.role, m.text()) for m in asked.messages] == [("system", "Be brief."), ("user", "hello")]
    assert (asked.temperature, asked.max_tokens) == (0.5, 50)
    whole = here.api.get(f"/app/conversations/{id}").json()
    assert [m["role"] for m in whole["messages"]] == ["user", "assistant"]
    assert whole["conversation"]["title"] == "hello"


def test_many_answers_at_once_are_kept_wherever_conversations_lie(
    backends: list[Scripted], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))  # a database has no folder for the session's secret
    with site(backends, place) as there, ThreadPoolExecutor(8) as pool:
        ids = [new(there) for _ in range(8)]
        said = list(pool.map(lambda id: say(there, id, f"hello {id}")[-1][2]["message"]["content"], ids))
        for id, content in zip(ids, said, strict=True):
            kept = there.api.get(f"/app/conversations/{id}").json()["messages"]
            assert [message["content"] for message in kept] == [f"hello {id}", content]
        assert there.api.request("DELETE", f"/app/conversations/{ids[0]}", json={}).status_code == 200
        listed = there.api.get("/app/conversations").json()
        assert {row["id"] for row in listed["conversations"]} == set(ids[1:])


def test_edit_and_regenerate_make_branches(here: Site) -> None:
    id = new(here)
    first = say(here, id, "one")[-1][2]["message"]
    say(here, id, "two", parent=first["id"])
    again = here.api.post(f"/app/conversations/{id}/messages/{first['id']}/regenerate", json={})
    second = events(again.text)[-1][2]["message"]
    assert second["siblings"] == [first["id"], second["id"]]
    edited = say(here, id, "uno")[0][2]["messages"][0]
    assert len(edited["siblings"]) == 2
    shown = here.api.post(f"/app/conversations/{id}/branches", json={"message": first["id"]}).json()
    assert [m["content"] for m in shown["messages"] if m["role"] == "user"] == ["one", "two"]
    tree = here.api.get(f"/app/conversations/{id}/branches").json()["messages"]
    assert len(tree) == 7
    refused = here.api.post(
        f"/app/conversations/{id}/messages", json={"content": "x", "parent": shown["messages"][0]["id"]}
    )
    assert refused.status_code == 400


def test_another_token_can_be_chosen_and_continued_from(here: Site) -> None:
    id = new(here)
    message = say(here, id, "go")[-1][2]["message"]
    path = f"/app/conversations/{id}/messages/{message['id']}"
    tokens = here.api.get(f"{path}/tokens").json()["tokens"]
    assert "".join(token["text"] for token in tokens) == message["content"]
    token = tokens[2]
    assert token["alternatives"][token["chosen"]]["text"] == token["text"]
    choice = next(at for at, other in enumerate(token["alternatives"]) if other["text"] == " perhaps")
    found = events(here.api.post(f"{path}/continue", json={"position": 2, "alternative": choice}).text)
    other = found[-1][2]["message"]
    assert other["content"] == "You said: perhaps and so it goes on."
    assert other["siblings"] == [message["id"], other["id"]]
    asked = here.assistant.server.models.get(FAST).asked[-1]
    assert asked.continue_final_message
    assert asked.messages[-1].text() == "You said: perhaps"
    kept = here.api.get(f"/app/conversations/{id}/messages/{other['id']}/tokens").json()["tokens"]
    assert "".join(token["text"] for token in kept) == other["content"]
    for body in ({"position": 999, "alternative": 0}, {"position": 2, "alternative": 99}, {"position": 2}):
        assert here.api.post(f"{path}/continue", json=body).status_code == 400


def test_an_answer_cut_short_goes_on(here: Site) -> None:
    id = new(here, settings={"max_tokens": 3})
    cut = say(here, id, "x")[-1][2]["message"]
    assert (cut["content"], cut["finish_reason"]) == ("You said: *x*.", "length")
    here.api.patch(f"/app/conversations/{id}", json={"settings": {}})
    more = here.api.post(f"/app/conversations/{id}/messages/{cut['id']}/continue", json={})
    whole = events(more.text)[-1][2]["message"]
    assert whole["id"] == cut["id"]
    assert whole["content"] == "You said: *x*. One two **three** four."


def test_an_answer_goes_on_when_nobody_looks_and_is_taken_up_again(here: Site) -> None:
    id = new(here, SLOW)
    seen: list[tuple[int, str, dict]] = []
    with here.api.stream("POST", f"/app/conversations/{id}/messages", json={"content": "x", "parent": None}) as answer:
        text = ""
        for piece in answer.iter_text():
            text += piece
            seen = events(text.rpartition("\n\n")[0])
            if len(seen) > 4:
                break
    message = seen[0][2]["messages"][1]["id"]
    path = f"/app/conversations/{id}/messages/{message}"
    assert eventually(lambda: here.api.get(f"/app/conversations/{id}").json()["messages"][1]["writing"])
    time.sleep(0.3)
    with here.api.stream("GET", f"{path}/events?after={seen[-1][0]}") as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        assert here.api.post(f"{path}/stop", json={}).status_code == 200
        text += "".join(pieces)
    later = events(text)
    assert later[-1][1] == "done"
    final = later[-1][2]["message"]
    assert final["finish_reason"] == "stopped"
    assert applied(seen + later) == final["html"]
    assert len(final["content"]) > 100
    late = events(here.api.get(f"{path}/events?after=0").text)
    assert applied(late) == final["html"]
    assert eventually(lambda: here.assistant.server.in_flight() == 0)


def test_a_deleted_conversation_is_written_no_more(here: Site) -> None:
    id = new(here, SLOW)
    with here.api.stream("POST", f"/app/conversations/{id}/messages", json={"content": "x", "parent": None}) as answer:
        pieces = answer.iter_text()
        next(pieces)
        assert here.api.request("DELETE", f"/app/conversations/{id}", json={}).status_code == 200
        assert "deleted" in "".join(pieces)
    assert eventually(lambda: here.assistant.server.in_flight() == 0)
    assert here.api.get(f"/app/conversations/{id}").status_code == 404


@pytest.mark.parametrize("status", [400, 429, 503])
def test_a_refusal_leaves_the_question_and_no_answer(here: Site, backends: list[Scripted], status: int) -> None:
    id = new(here)
    backends[0].error = ApiError(status, "No room.")
    try:
        found = say(here, id, "x")
    finally:
        backends[0].error = None
    assert found[-1][1] == "failed"
    assert found[-1][2]["error"]["message"] == "No room."
    left = here.api.get(f"/app/conversations/{id}").json()["messages"]
    assert [m["role"] for m in left] == ["user"]
    again = here.api.post(f"/app/conversations/{id}/messages/{left[0]['id']}/regenerate", json={})
    assert events(again.text)[-1][1] == "done"


def test_a_base_model_continues_text(here: Site, backends: list[Scripted]) -> None:
    id = new(here, BASE)
    message = say(here, id, "Once")[-1][2]["message"]
    assert message["content"] == " and so on"
    assert backends[2].asked[-1].prompt == "Once"
    assert here.api.get(f"/app/conversations/{id}/messages/{message['id']}/tokens").json()["tokens"][0]["alternatives"]


def test_comparing_two_answers(here: Site) -> None:
    answer = here.api.post("/app/compare", json={"prompt": "hi", "models": [FAST, FAST], "settings": {"seed": 1}})
    found = events(answer.text)
    assert {data.get("side") for _, event, data in found if event == "done"} == {"a", "b"}
    id = found[0][2]["id"]
    assert here.api.post(f"/app/compare/{id}", json={"better": "b"}).json() == {"better": "b"}
    kept = here.api.get(f"/app/compare/{id}").json()
    assert kept["text_a"] == "You said: *hi*. One two **three** four."
    assert kept["better"] == "b"
    rows = [json.loads(line) for line in here.api.get("/app/preferences").text.splitlines()]
    assert rows[-1]["source"] == "comparison"
    assert here.api.post("/app/compare", json={"prompt": "hi", "models": ["no", FAST]}).status_code == 404


def test_feedback_and_files(here: Site) -> None:
    id = new(here)
    message = say(here, id, "¿Qué?")[-1][2]["message"]
    body = {"message": message["id"], "rating": -1, "correction": "Better."}
    assert here.api.post("/app/feedback", json=body).status_code == 200
    assert here.api.get(f"/app/conversations/{id}").json()["messages"][1]["feedback"] == {
        "rating": -1,
        "correction": "Better.",
    }
    text = here.api.get(f"/app/conversations/{id}/export")
    assert 'filename="qu.md"' in text.headers["content-disposition"]
    assert "¿Qué?" in text.text
    assert here.api.get(f"/app/conversations/{id}/export?format=json").json()["messages"][0]["content"] == "¿Qué?"
    assert here.api.get("/app/export").json()["feedback"][-1] == body
    for wrong in ({"message": message["id"], "rating": 5}, {"message": message["parent"], "rating": 1}):
        assert here.api.post("/app/feedback", json=wrong).status_code in (400, 404)


@pytest.mark.parametrize(
    ("title", "plain", "whole"),
    [
        ("日本の夕食", "conversation.md", "%E6%97%A5%E6%9C%AC%E3%81%AE%E5%A4%95%E9%A3%9F.md"),
        ("Größe: 5 cm", "gr-e-5-cm.md", "Gr%C3%B6%C3%9Fe%205%20cm.md"),
        ("a/b\\c<d>", "a-b-c-d.md", "a%20b%20c%20d.md"),
        ("../../etc/passwd", "etc-passwd.md", "etc%20passwd.md"),
        ("CON", "con.md", "conversation%20CON.md"),
        ("a\u202etxt.exe", "a-txt-exe.md", "a%20txt.exe.md"),
        ('"; x=y\r\nz: 1', "x-y-z-1.md", "%3B%20x%3Dy%20z%201.md"),
        ("notes", "notes.md", ""),
    ],
)
def test_files_keep_their_titles(here: Site, title: str, plain: str, whole: str) -> None:
    id = new(here, title=title)
    sent = here.api.get(f"/app/conversations/{id}/export").headers["content-disposition"]
    assert sent == f'attachment; filename="{plain}"' + (f"; filename*=UTF-8''{whole}" if whole else "")


def test_long_titles_fit_into_a_file_system(here: Site) -> None:
    id = new(here, title="日" * 200)
    sent = here.api.get(f"/app/conversations/{id}/export").headers["content-disposition"]
    assert len(unquote(sent.partition("''")[2]).encode()) <= 200


# -- models: gone, base, and what they learned -------------------------------------------------------------------------


def test_no_other_model_answers_for_one_that_is_gone(here: Site) -> None:
    id = new(here)
    answered = say(here, id, "hello")[-1][2]["message"]
    here.assistant.store.change("local", id, {"model": "gone"})
    here.assistant.store.write("local", answered["id"], model="gone")
    path = f"/app/conversations/{id}/messages"
    token = {"position": 1, "alternative": 1}
    for asked in (
        here.api.post(path, json={"content": "and now?", "parent": answered["id"]}),
        here.api.post(f"{path}/{answered['id']}/regenerate", json={}),
        here.api.post(f"{path}/{answered['id']}/continue", json={}),
        here.api.post(f"{path}/{answered['id']}/continue", json=token),
        here.api.post("/app/conversations", json={"model": "gone"}),
    ):
        assert asked.status_code == 404
        assert asked.json()["error"]["code"] == "model_not_found"
    assert len(here.api.get(f"/app/conversations/{id}").json()["messages"]) == 2  # and nothing was stored
    assert here.api.get(f"{path}/{answered['id']}/tokens").status_code == 200
    assert here.api.patch(f"/app/conversations/{id}", json={"model": SLOW}).status_code == 200
    assert here.api.post(f"{path}/{answered['id']}/continue", json={}).status_code == 404  # its beginning is not slow's


def test_an_answer_is_continued_by_the_model_that_wrote_it(here: Site) -> None:
    id = new(here, settings={"max_tokens": 3})
    answered = say(here, id, "hello")[-1][2]["message"]
    here.api.patch(f"/app/conversations/{id}", json={"model": SLOW})
    went_on = here.api.post(f"/app/conversations/{id}/messages/{answered['id']}/continue", json={})
    assert events(went_on.text)[-1][2]["message"]["model"] == FAST


def test_a_base_models_text_is_shown_as_it_is(here: Site, backends: list[Scripted]) -> None:
    base: Any = next(backend for backend in backends if backend.card.id == BASE)
    script, text = (
        base.script,
        "    return *n*\n\n# not a heading\n    <b>x</b>\n- a\n\n\n`q` $x$ https://a.example\n" * 8,
    )
    base.script = lambda _: text
    try:
        id = new(here, BASE)
        found = say(here, id, "def f(n):\n")
    finally:
        base.script = script
    message = found[-1][2]["message"]
    assert message["plain"] is True
    assert re.sub(r"</?span[^>]*>", "", message["html"]) == escape(message["content"], quote=False).replace("\r", "")
    assert applied(found) == message["html"]
    assert message["content"] == text
    here.assistant.store.write("local", message["id"], model="gone")  # it is known when the model is not
    assert here.api.get(f"/app/conversations/{id}").json()["messages"][1]["html"] == message["html"]
    compared = events(here.api.post("/app/compare", json={"prompt": "x", "models": [BASE, FAST]}).text)
    htmls = {data["side"]: data["message"]["html"] for _, event, data in compared if event == "done"}
    assert htmls["a"].startswith('<span class="plain">')
    assert htmls["b"].startswith("<p>")


def test_models_come_with_their_defaults(here: Site, backends: list[Scripted]) -> None:
    known = {one["id"]: one for one in here.api.get("/app/models").json()["models"]}
    usual = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert known[FAST]["defaults"] == {**usual, "max_tokens": 1024}
    assert known[BASE]["defaults"] == {**usual, "max_tokens": 256}
    say(here, new(here), "hello")
    asked = backends[0].asked[-1]
    assert asked.max_tokens == known[FAST]["defaults"]["max_tokens"]
    assert known[FAST]["learned"] == {"kind": "any", "prompts": []}


# -- importing ---------------------------------------------------------------------------------------------------------


def test_what_was_exported_can_be_imported(here: Site) -> None:
    id = new(here, title="Mine", settings={"temperature": 0.5})
    say(here, id, "needle")
    whole = here.api.get("/app/export").json()["conversations"]
    sent = {
        "conversations": [*whole, {"no": "conversation"}, {**whole[0], "settings": {"temperature": "hot", "seed": 3}}]
    }
    made = here.api.post("/app/import", json=sent).json()
    assert len(made["imported"]) == len([row for row in whole if row["messages"]]) + bool(whole[0]["messages"])
    assert whole[0]["messages"]
    assert made["failed"][-1]["message"].startswith("This is not a conversation of Puna, ChatGPT")
    copy = here.api.get(f"/app/conversations/{made['imported'][0]}").json()
    assert copy["conversation"]["title"] == "Mine"
    assert copy["conversation"]["settings"] == {"temperature": 0.5}
    assert [m["content"] for m in copy["messages"]] == [m["content"] for m in whole[0]["messages"]]
    last = here.api.get(f"/app/conversations/{made['imported'][-1]}").json()["conversation"]
    assert last["settings"] == {"seed": 3}
    assert here.api.post("/app/import", json={"conversations": []}).status_code == 400


# -- who may see what ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(backends: list[Scripted], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(backends, tmp_path_factory.mktemp("locked"), KEYS) as made:
        yield made


@pytest.fixture(scope="module")
def anas(locked: Site) -> dict[str, str]:
    """What ana has: a conversation, an answer in it, a comparison."""
    with locked.client("key-of-ana-1") as ana:
        id = ana.post("/app/conversations", json={}).json()["id"]
        said = ana.post(f"/app/conversations/{id}/messages", json={"content": "secret", "parent": None})
        message = events(said.text)[-1][2]["message"]["id"]
        compared = ana.post("/app/compare", json={"prompt": "secret", "models": [FAST, FAST]})
        return {"id": id, "message": message, "comparison": events(compared.text)[0][2]["id"]}


def test_user_b_finds_nothing_of_user_as(locked: Site, anas: dict[str, str]) -> None:
    """The routes that name an object are tested in test_ownership; these are the ones that list or search."""
    with locked.client("key-of-bo-22") as bo, locked.client("key-of-ana-1") as ana:
        body = {"message": anas["message"], "rating": 1}
        assert bo.post("/app/feedback", json=body).status_code == 404
        assert bo.get("/app/conversations").json()["conversations"] == []
        assert bo.get("/app/conversations?q=secret").json()["conversations"] == []
        assert bo.get("/app/export").json()["conversations"] == []
        assert bo.get("/app/preferences").text == ""
        assert len(ana.get("/app/conversations").json()["conversations"]) == 1


def test_a_cookie_stands_for_a_key(locked: Site, anas: dict[str, str]) -> None:
    with locked.client() as browser:
        assert browser.get("/app/models").status_code == 401
        wrong = browser.post("/app/login", json={"key": "not-a-key"})
        assert (wrong.status_code, wrong.json()["error"]["message"]) == (401, "This key is not known here.")
        made = browser.post("/app/login", json={"key": "key-of-ana-1"})
        assert made.json() == {"user": "ana"}
        cookie = made.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "key-of-ana" not in cookie
        assert browser.get("/app/models").json()["user"] == "ana"
        value = browser.cookies["puna_session"]
        browser.post("/app/logout", json={})
        assert browser.get("/app/models").status_code == 401
        browser.cookies.set("puna_session", value[:-2] + ("00" if value[-2:] != "00" else "11"))
        assert browser.get("/app/models").status_code == 401
    stored = (Path(locked.assistant.server.settings.data) / "assistant.db").read_bytes()
    assert value.encode() not in stored  # only its digest is stored
    assert b"key-of-ana-1" not in stored


WRITES = [
    ("POST", "/app/conversations"),
    ("PATCH", "/app/conversations/x"),
    ("DELETE", "/app/conversations/x"),
    ("POST", "/app/conversations/x/messages"),
    ("POST", "/app/conversations/x/messages/y/stop"),
    ("POST", "/app/feedback"),
    ("POST", "/app/import"),
    ("POST", "/app/compare"),
    ("POST", "/app/login"),
    ("POST", "/app/logout"),
]


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_another_page_can_write_nothing(here: Site, method: str, path: str) -> None:
    kind = {"content-type": "application/json"}
    foreign = ({}, {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": here.url + ".evil.example"})
    with httpx.Client(base_url=here.url, trust_env=False) as client:
        for headers in foreign:
            assert client.request(method, path, content=b"{}", headers=kind | headers).status_code == 403
        for form in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            headers = {"content-type": form, "origin": here.url}
            assert client.request(method, path, content=b"{}", headers=headers).status_code == 415


def test_the_page_runs_and_loads_nothing_that_is_not_ours(here: Site) -> None:
    page = here.api.get("/")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["img-src"] == "'self' data:"
    assert "unsafe" not in str(policy)
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "<style" not in page.text
    assert "style=" not in page.text
    assert " on" not in page.text.replace(" only", "")
    for name, kind in (("js/main.js", "text/javascript"), ("manifest.webmanifest", "application/manifest+json")):
        assert here.api.get(f"/static/{name}").headers["content-type"].startswith(kind)
    assert here.api.get("/static/../state.py").status_code == 404
    assert here.api.get("/static/%2e%2e/state.py").status_code == 404
