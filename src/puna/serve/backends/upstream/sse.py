"""Server-sent events, read as bytes come (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Bytes are cut at line ends only, so neither characters in several pieces nor the other line ends that Unicode knows
(U+2028 may stand in JSON) are taken apart.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator

LARGEST = 16 * 2**20
"""Bytes of one event at most; nothing that writes token by token needs as many."""
_LINE_END = re.compile(rb"\r\n|\n|\r")


async def events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The data of each event, up to [DONE] or the end. Raises ValueError when an event is too large.

    An event that the end cuts off is none, as the specification has it.
    """
    held = b""
    data: list[bytes] = []
    async for piece in pieces:
        held += piece
        lines = _LINE_END.split(held)
        # A line end in two pieces, \r and \n: what looks like an empty line would end the event too early.
        if held.endswith(b"\r"):
            held = lines[-2] + b"\r"
            lines = lines[:-2]
        else:
            held = lines.pop()
        if len(held) + sum(map(len, data)) > LARGEST:
            raise ValueError(f"sent an event of more than {LARGEST} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                whole, data = b"\n".join(data), []
                if whole.strip() == b"[DONE]":
                    return
                yield whole
