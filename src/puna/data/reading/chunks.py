"""The bytes of text files: decompressed, without a byte-order mark, whole or in lines or parts. Time is linear.

Compressed files are read in chunks with a check that the last frame is complete: a truncated download must be an error,
not a smaller corpus. Nothing is decoded here, so a byte that is not UTF-8 costs no more than the line or part it is in.
"""

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from puna.core.errors import DataError

_CHUNK = 1 << 20
_FRAMES = 1 << 17  # of zstd at a time: what follows a frame is copied, and some writers end one after each line
HEAD = 8192  # git, too, calls a file binary if there is a NUL in so many bytes at its start
# UTF-32's marks begin with those of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in chunks, decompressed by its suffix. Raises PunaError if it is corrupt or truncated."""
    packed = path.suffix.lower()
    try:
        if packed == ".zst":
            yield from _zstd(path)
            return
        openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
        with openers.get(packed, open)(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise _corrupt(path, str(error)) from error
    except OSError as error:
        # bz2 reports corrupt data as an OSError without an errno; a disk failure has one.
        raise (_corrupt(path, str(error)) if error.errno is None else error) from error


def read_utf8(path: Path) -> Iterator[bytes]:
    """`read_chunks` of a text file, without a byte-order mark; the first chunk has `HEAD` bytes, or is all there is.

    Raises PunaError as `read_chunks` does, and for UTF-16 and UTF-32.
    """
    chunks = read_chunks(path)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= HEAD:
            break
    other = _other_encoding(head[:HEAD])
    if other:
        raise DataError(
            f"{path} is {other} text, not UTF-8.", f"Convert it (iconv -f {other} -t UTF-8), or exclude it."
        )
    if head := head.removeprefix(codecs.BOM_UTF8):
        yield head
    yield from chunks


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a text file as bytes, without their newline. Raises PunaError as `read_utf8` does."""
    parts: list[bytes] = []
    for chunk in read_utf8(path):
        *lines, rest = chunk.split(b"\n")
        if lines:
            lines[0] = b"".join([*parts, lines[0]])
            parts = []
            yield from lines
        parts.append(rest)
    if rest := b"".join(parts):
        yield rest


def split_at(chunks: Iterable[bytes], separator: str) -> Iterator[bytes]:
    """The parts between separators, the empty ones too. A newline in the separator stands for CRLF as well."""
    raw = separator.encode("utf-8")
    pattern = re.compile(re.escape(raw).replace(b"\\\n", b"\r?\n"))
    longest = len(raw) + raw.count(b"\n")
    parts: list[bytes] = []
    rest = b""  # the end of what came, where a separator may have begun
    for chunk in chunks:
        data, start = rest + chunk, 0
        for match in pattern.finditer(data):
            yield b"".join([*parts, data[start : match.start()]])
            parts, start = [], match.end()
        keep = max(start, len(data) - longest + 1)
        parts.append(data[start:keep])
        rest = data[keep:]
    yield b"".join([*parts, rest])


def _zstd(path: Path) -> Iterator[bytes]:
    """Decompress frame by frame: zstandard's own stream reader accepts a file that ends within a frame."""
    import zstandard

    with open(path, "rb") as file:
        frame = None
        try:
            while data := file.read(_FRAMES):
                while data:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    if chunk := frame.decompress(data):
                        yield chunk
                    data = b""
                    if frame.eof:
                        data, frame = frame.unused_data, None
        except zstandard.ZstdError as error:
            raise _corrupt(path, str(error)) from error
        if frame is not None:
            raise _corrupt(path, "it ends in the middle of a frame")


def _other_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32 if a file begins like that, with a byte-order mark or without, else ""."""
    if b"\0" not in head:  # every line end has one
        return ""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    zeros = "".join("0" if byte == 0 else "x" for byte in head[:4])  # where the first characters are ASCII
    encodings = {"x0x0": "utf-16-le", "0x0x": "utf-16-be", "x000": "utf-32-le", "000x": "utf-32-be"}
    encoding = encodings.get(zeros)
    if encoding is None:
        return ""
    text = head[: len(head) // 4 * 4].decode(encoding, "replace")
    like_text = all(char.isprintable() or char in "\t\r\n\f" for char in text[:-1])
    return encoding[:6].upper() if like_text and "\ufffd" not in text[:-1] else ""


def _corrupt(path: Path, why: str) -> DataError:
    return DataError(f"{path} is corrupt or truncated ({why}).", "Download it again.")
