"""File readers: plain text and code, jsonl and parquet records, also compressed where that makes sense.

All files are streamed. Compressed files are read in chunks with a check that the last frame is complete: a truncated
download must be an error, not a smaller corpus. Text that is not UTF-8 is dropped or repaired as the recipe says, and
counted; a file with a NUL byte near its start is not text and is skipped, and counted.
"""

import bz2
import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from puna.core.errors import DataError, PunaError, nearest
from puna.data.document import Document, Drops
from puna.data.reading.file_types import CODE, suffix
from puna.data.recipe import SourceConfig

_CHUNK = 1 << 20
_LOOK_FOR_NUL = 8192  # git, too, calls a file binary if there is a NUL in so many bytes at its start


def read_file(path: Path, name: str, source: SourceConfig, invalid_utf8: str, drops: Drops) -> Iterator[Document]:
    """Yield the documents of one file. `name` is its name within the source; records append their row to it.

    Raises PunaError, naming the file and the line or row, for a file that is corrupt or lacks a field.
    """
    kind, _ = suffix(name)
    try:
        if kind == ".parquet":
            yield from _parquet(path, name, source, invalid_utf8, drops)
        elif kind in (".jsonl", ".ndjson"):
            yield from _jsonl(path, name, source, invalid_utf8, drops)
        else:
            is_code = source.content == "code" or (source.content == "auto" and kind in CODE)
            texts = _plain(path, source, invalid_utf8, drops)
            for number, text in enumerate(texts):
                yield Document(
                    text, f"{name}:{number}" if source.separator else name, source.name, source.licence, is_code
                )
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).", "Check it, or exclude it.") from error


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


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file as bytes, without their newline, decompressed by its suffix."""
    rest = b""
    for chunk in read_chunks(path):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _zstd(path: Path) -> Iterator[bytes]:
    """Decompress frame by frame: zstandard's own stream reader accepts a file that ends within a frame."""
    import zstandard

    with open(path, "rb") as file:
        frame = None
        try:
            while data := file.read(_CHUNK):
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


def _plain(path: Path, source: SourceConfig, invalid_utf8: str, drops: Drops) -> Iterator[str]:
    """The text of a file, or its parts between separators."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace" if invalid_utf8 == "replace" else "strict")
    parts: list[str] = []
    size = 0
    for chunk in read_chunks(path):
        if not size and b"\0" in chunk[:_LOOK_FOR_NUL]:
            drops.add(source.name, "binary", path.stat().st_size)
            return
        size += len(chunk)
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError:
            drops.add(source.name, "invalid_utf8", size)
            return
        parts.append(text)
        if source.separator and source.separator in (joined := "".join(parts)):
            *whole, last = joined.split(source.separator)
            yield from (part.strip("\n") for part in whole if part.strip())
            parts = [last]
    try:
        parts.append(decoder.decode(b"", final=True))
    except UnicodeDecodeError:
        drops.add(source.name, "invalid_utf8", size)
        return
    text = "".join(parts)
    if source.separator:
        text = text.strip("\n")
        if not text.strip():
            return
    yield text


def _jsonl(path: Path, name: str, source: SourceConfig, invalid_utf8: str, drops: Drops) -> Iterator[Document]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        text = _decode(line, source, invalid_utf8, drops)
        if text is None:
            continue
        try:
            record = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where} is not JSON ({error}).", "Fix or remove that line.") from None
        if not isinstance(record, dict):
            raise DataError(f"{where} is not a JSON object.", "Each line must be an object with a field for the text.")
        document = _record(record, f"{name}:{number}", where, source, invalid_utf8, drops)
        if document:
            yield document


def _parquet(path: Path, name: str, source: SourceConfig, invalid_utf8: str, drops: Drops) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = {source.text_field, *source.where, *filter(None, (source.name_field, source.licence_field))}
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            for column in sorted(wanted):
                if column not in columns:
                    raise _missing(column, str(path), columns)
            if not source.licence_field:
                wanted.update({"licence", "license"}.intersection(columns))
            if not _is_text(pa, file.schema_arrow.field(source.text_field).type):
                raise DataError(f"{path}: column '{source.text_field}' is not text.", "Set text_field.")
            for batch in file.iter_batches(batch_size=512, columns=sorted(wanted)):
                # Text as bytes: pyarrow would raise for the whole batch if one row is not UTF-8.
                binary = {n: batch.column(n).cast(pa.binary()) for n in wanted if _is_text(pa, batch.column(n).type)}
                values = {n: (binary.get(n, batch.column(n))).to_pylist() for n in wanted}
                for index in range(batch.num_rows):
                    record = {n: column[index] for n, column in values.items()}
                    document = _record(record, f"{name}:{row}", f"{path}, row {row}", source, invalid_utf8, drops)
                    row += 1
                    if document:
                        yield document
    except (pa.ArrowException, EOFError, OSError) as error:
        # pyarrow reports damaged pages as an OSError without an errno; a disk failure has one.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is a corrupt parquet file (after row {row}: {text}).", "Download it again.") from error


def _record(
    record: Mapping[str, Any], name: str, where: str, source: SourceConfig, invalid_utf8: str, drops: Drops
) -> Document | None:
    """The document of one record, or None if `where` excludes it or its text is null or not UTF-8."""
    for key in (source.text_field, *source.where, *filter(None, (source.name_field, source.licence_field))):
        if key not in record:
            raise _missing(key, where, list(record))
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
    fields = [source.licence_field] if source.licence_field else ["licence", "license"]
    given = next((record[key] for key in fields if record.get(key)), None)
    licence = str(_scalar(given)) if given else source.licence
    if source.name_field and record[source.name_field] is not None:
        name = str(_scalar(record[source.name_field]))
    return Document(text, name, source.name, licence, source.content == "code")


def _decode(text: str | bytes, source: SourceConfig, invalid_utf8: str, drops: Drops) -> str | None:
    """Valid Unicode text: bytes decoded, and unpaired surrogates from JSON dropped or replaced."""
    try:
        if isinstance(text, bytes):
            return text.decode("utf-8")
        text.encode("utf-8")
        return text
    except UnicodeError:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        if invalid_utf8 == "replace":
            return raw.decode("utf-8", "replace")
        drops.add(source.name, "invalid_utf8", len(raw))
        return None


def _scalar(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _is_text(pa: Any, kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)


def _missing(field: str, where: str, known: list[str]) -> PunaError:
    return PunaError(f"{where} has no field '{field}'.", nearest(field, known))


def _corrupt(path: Path, why: str) -> PunaError:
    return PunaError(f"{path} is corrupt or truncated ({why}).", "Download it again.")
