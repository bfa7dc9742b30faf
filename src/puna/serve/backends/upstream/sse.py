"""Parses server-sent events as their bytes arrive.

See https://html.spec.whatwg.org/multipage/server-sent-events.html.
Bytes are split at line ends only, so characters that arrive in several pieces stay whole, and so do Unicode's other
line ends (JSON may contain U+2028).
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator

LARGEST = 16 * 2**20
"""The largest event in bytes; nothing that writes token by token needs as many."""
_LINE_END = re.compile(rb"\r\n|\n|\r")


async def events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The data of each event, up to [DONE] or the end.

    Raises ValueError when an event is too large.

    An event that the end of the stream cuts off is dropped, as the specification says.
    """
    held = b""
    data: list[bytes] = []
    async for piece in pieces:
        held += piece
        lines = _LINE_END.split(held)
        # A line end may arrive in two pieces, \r and \n; the \r alone would look like an empty line.
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
