"""File readers: plain text and code, jsonl, JSON arrays and parquet, also compressed where that makes sense.

All files are streamed, except JSON arrays. A document that is not UTF-8 is dropped or repaired as the recipe says, and
counted; it costs no other document of its file. Text with a NUL byte near its start is no text: it is skipped, counted.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from puna.core.errors import DataError
from puna.data.document import Document, Drops
from puna.data.reading.chunks import HEAD, read_utf8, split_at
from puna.data.reading.file_types import CODE, suffix
from puna.data.reading.records import missing_field, read_columns, read_json
from puna.data.recipe import SourceConfig


def read_file(path: Path, name: str, source: SourceConfig, invalid_utf8: str, drops: Drops) -> Iterator[Document]:
    """Yield the documents of one file. `name` is its name within the source; records append their row to it.

    Raises PunaError, naming the file and the line or row, for a file that is corrupt, UTF-16 or lacks a field.
    """
    kind, _ = suffix(name)
    records = None
    try:
        if kind == ".parquet":
            records = read_columns(path, _fields(source), source.text_field, _licence_fields(source))
        elif kind in (".jsonl", ".ndjson") or (kind == ".json" and source.content != "code"):
            records = read_json(path)
        if records is None:
            yield from _plain(path, name, source, invalid_utf8, drops)
            return
        for number, where, record in records:
            if not isinstance(record, dict):
                raise DataError(f"{where} is not a JSON object.", "Each must be one, with a field for the text.")
            document = _record(record, f"{name}:{number}", where, source, invalid_utf8, drops)
            if document:
                yield document
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).", "Check it, or exclude it.") from error


def _plain(path: Path, name: str, source: SourceConfig, invalid_utf8: str, drops: Drops) -> Iterator[Document]:
    """The text of a file, or its parts between separators: those that are dropped keep their number."""
    kind, _ = suffix(name)
    is_code = source.content == "code" or (source.content == "auto" and kind in CODE)
    chunks = read_utf8(path)
    number = -1
    for part in split_at(chunks, source.separator) if source.separator else _whole(chunks):
        if source.separator and not part.decode("utf-8", "replace").strip():
            continue
        number += 1
        if b"\0" in part[:HEAD]:
            drops.add(source.name, "binary", len(part) if source.separator else path.stat().st_size)
            continue
        text = _decode(part, source, invalid_utf8, drops)
        if text is not None and source.separator:
            text = text.strip("\r\n")
        if text is not None:
            yield Document(text, f"{name}:{number}" if source.separator else name, source.name, source.licence, is_code)


def _whole(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """All chunks as one; the first alone if it shows that the file is binary."""
    parts: list[bytes] = []
    for chunk in chunks:
        parts.append(chunk)
        if b"\0" in parts[0][:HEAD]:
            break
    yield b"".join(parts)


def _fields(source: SourceConfig) -> list[str]:
    """The fields that every record must have."""
    return [source.text_field, *source.where, *filter(None, (source.name_field, source.licence_field))]


def _licence_fields(source: SourceConfig) -> list[str]:
    return [source.licence_field] if source.licence_field else ["licence", "license"]


def _record(
    record: Mapping[str, Any], name: str, where: str, source: SourceConfig, invalid_utf8: str, drops: Drops
) -> Document | None:
    """The document of one record, or None if `where` excludes it or its text is null or not UTF-8."""
    for key in _fields(source):
        if key not in record:
            raise missing_field(key, where, list(record))
    for key, wanted in source.where.items():
        value = _scalar(record[key])
        if value not in (wanted if isinstance(wanted, list) else [wanted]):
            drops.add(source.name, "where")
            return None
    text = record[source.text_field]
    if text is None:
        drops.add(source.name, "null")
        return None
    if not isinstance(text, str | bytes):
        raise DataError(f"{where}: field '{source.text_field}' is {type(text).__name__}, not text.", "Set text_field.")
    text = _decode(text, source, invalid_utf8, drops)
    if text is None:
        return None
    given = next((record[key] for key in _licence_fields(source) if record.get(key)), None)
    licence = str(_scalar(given)) if given else source.licence
    if source.name_field and record[source.name_field] is not None:
        name = str(_scalar(record[source.name_field]))
    return Document(text, name, source.name, licence, source.content == "code")


def _decode(text: str | bytes, source: SourceConfig, invalid_utf8: str, drops: Drops) -> str | None:
    """Valid Unicode text: what is not UTF-8, or an unpaired surrogate, is dropped or replaced."""
    try:
        if isinstance(text, bytes):
            return text.decode("utf-8")
        text.encode("utf-8")
        return text
    except UnicodeError:
        if invalid_utf8 == "replace":
            return _replaced(text)
        size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
        drops.add(source.name, "invalid_utf8", size)
        return None


def _scalar(value: Any) -> Any:
    return _replaced(value) if isinstance(value, bytes | str) else value


def _replaced(text: str | bytes) -> str:
    """Text with U+FFFD for what is not UTF-8: bytes, or surrogates that stand for bytes or for themselves."""
    if isinstance(text, bytes):
        return text.decode("utf-8", "replace")
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
