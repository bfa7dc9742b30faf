"""Resumable streams: what a reader gets that was there from the start, came back, or never left."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.web.errors import ApiError
from puna.web.live_markdown import LiveMarkdown
from puna.web.streams import STREAMS_PER_USER, Stream, Streams, sse


class Words(Stream):
    """A stream of a growing text."""

    def __init__(self, user: str = "ana") -> None:
        super().__init__(user)
        self.text = LiveMarkdown()

    def write(self, text: str) -> None:
        self.version += 1
        self.text.put(self.text.render(text), self.version)
        self.publish()

    def changes_since(self, version: int) -> dict[str, Any]:
        return {"blocks": self.text.changes_since(version), "size": len(self.text)}

    async def stop(self, reason: str = "stopped") -> None:
        self.end({"reason": reason})


def applied(blocks: list[str], data: dict[str, Any]) -> list[str]:
    blocks = [*blocks, *[""] * (data["size"] - len(blocks))][: data["size"]]
    for at, html in data["blocks"]:
        blocks[at] = html
    return blocks


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["word ", "\n\n", "- item\n", "`code` ", "# Head\n"]), max_size=25), st.data())
def test_a_reader_that_comes_and_goes_sees_what_one_that_stays_sees(pieces: list[str], data: st.DataObject) -> None:
    async def run() -> None:
        stream, text = Words(), ""
        seen, blocks = 0, list[str]()
        for piece in pieces:
            text += piece
            stream.write(text)
            if data.draw(st.booleans()):  # connects, reads one event, and leaves
                seen, event, found = await anext(stream.events(seen))
                assert event == "update"
                blocks = applied(blocks, found)
        await stream.stop()
        last: list[tuple[int, str, dict[str, Any]]] = [one async for one in stream.events(seen)]
        for _, event, found in last:
            if event == "update":
                blocks = applied(blocks, found)
        assert last[-1][1:] == ("done", {"reason": "stopped"})
        whole = [one async for one in stream.events()]
        assert blocks == applied([], whole[0][2])

    asyncio.run(run())


def test_a_reader_is_woken_by_every_change_and_told_of_a_failure() -> None:
    async def run() -> list[tuple[str, Any]]:
        stream, found = Words(), []

        async def read() -> None:
            async for _, event, data in stream.events():
                found.append((event, data.get("size", data.get("error"))))

        reader = asyncio.create_task(read())
        for text in ("one", "one\n\ntwo"):
            await asyncio.sleep(0.01)
            stream.write(text)
        await asyncio.sleep(0.01)
        stream.end({"error": "broken"})
        await reader
        return found

    assert asyncio.run(run()) == [("update", 0), ("update", 1), ("update", 2), ("failed", "broken")]


def test_streams_belong_to_their_user_and_are_limited() -> None:
    async def run() -> None:
        streams: Streams[Words] = Streams()
        for number in range(STREAMS_PER_USER):
            streams.check("ana")
            streams.add(str(number), Words())
        with pytest.raises(ApiError, match="being written already"):
            streams.check("ana")
        streams.check("bo")
        assert streams.get("bo", "0") is None
        await streams.stop("bo", "0")
        assert streams.active("0")
        await streams.stop("ana", "0")
        assert not streams.active("0")
        streams.check("ana")
        await streams.close()
        assert streams.get("ana", "1").result == {"reason": "interrupted"}  # type: ignore[union-attr]

    asyncio.run(run())


def test_events_on_the_wire() -> None:
    assert sse(3, "update", {"a": "é\n"}, side="b") == 'id: 3\nevent: update\ndata: {"a":"é\\n","side":"b"}\n\n'
    assert sse(3, "", {}).startswith(":")
