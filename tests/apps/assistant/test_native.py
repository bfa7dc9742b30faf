"""The page before a real engine: what a model said goes back as the very tokens it chose."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from live_site import site

from puna.apps.assistant.answer import continued
from puna.engine.generate import load_engine
from puna.serve.backends.native.backend import NativeBackend
from puna.serve.settings import Settings


@pytest.mark.parametrize("stage", ["chat", "base"])
def test_tokens_of_a_real_model(chat_model: Path, tmp_path: Path, stage: str) -> None:
    engine = load_engine(chat_model, max_batch=2)
    backend = NativeBackend(engine, "tiny", Settings(), stage=stage)  # type: ignore[arg-type]
    with site([backend], tmp_path / "data") as here:
        ask = json_of(here.api.post)
        id = ask("/app/conversations", {"settings": {"max_tokens": 24, "temperature": 0}})["id"]
        path = f"/app/conversations/{id}/messages"
        first = done(here.api.post(path, json={"content": "The harbour", "parent": None}).text)
        kept = here.assistant.store.tokens("local", id, first["id"])
        ids = [token[0] for token in kept]
        assert ids
        assert None not in ids
        assert first["content"].strip().startswith(continued(kept).content.strip())
        assert first["usage"]["prompt_tokens"] > 0
        # Taking the token that was taken, greedily, gives the rest that was given.
        tokens = here.api.get(f"{path}/{first['id']}/tokens").json()["tokens"]
        # Completions name alternatives by their text, and bytes that are no text have one name.
        assert all(len(token["alternatives"]) >= (5 if stage == "chat" else 1) for token in tokens)
        at = len(ids) // 2
        body = {"position": at, "alternative": tokens[at]["chosen"]}
        done(here.api.post(f"{path}/{first['id']}/continue", json={**body}).text)
        again = here.api.get(f"/app/conversations/{id}").json()["messages"][-1]
        more = [token[0] for token in here.assistant.store.tokens("local", id, again["id"])]
        assert more[: len(ids)] == ids
        # Another one gives another answer, which begins with the tokens before it.
        other = next(
            n
            for n, alternative in enumerate(tokens[at]["alternatives"])
            if n != tokens[at]["chosen"] and not alternative["ends"] and "\ufffd" not in alternative["text"]
        )
        changed = done(
            here.api.post(f"{path}/{first['id']}/continue", json={"position": at, "alternative": other}).text
        )
        told = [token[0] for token in here.assistant.store.tokens("local", id, changed["id"])]
        assert told[:at] == ids[:at]
        assert told[at] != ids[at]
        if stage == "chat":
            said = here.assistant.store.dialogue("local", id, changed["id"], ids_of="tiny")
            assert said[-1]["token_ids"] == told
            whole = done(here.api.post(path, json={"content": "and more", "parent": changed["id"]}).text)
            assert whole["usage"]["cached_tokens"] >= 0
        long = here.api.post(path, json={"content": "harbour " * 2000, "parent": None}).text
        assert "event: failed" in long
        assert "context" in long


def json_of(post: Callable) -> Callable:
    return lambda path, body: post(path, json=body).json()


def done(text: str) -> dict:
    assert "event: done" in text, text[-500:]
    return json.loads(text.rpartition("data: ")[2])["message"]
