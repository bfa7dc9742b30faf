"""The records of jsonl files, JSON arrays and parquet files, each with its place for messages.

What is not UTF-8 is left to the caller, who gets it as bytes or as unpaired surrogates: it costs one record, or is
repaired, or is an error.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from puna.core.errors import DataError, nearest, reason_of
from puna.data.reading.chunks import read_lines, read_utf8
from puna.data.reading.file_types import suffix

_BATCH = 512
# Arrow's types for text, by name: older versions of pyarrow have no functions for the newer ones.
_TEXT = frozenset(("string", "large_string", "string_view", "binary", "large_binary", "binary_view"))


class Record(NamedTuple):
    """number: the line, entry or row; where: the place in words, such as "chat.jsonl, line 3"."""

    number: int
    where: str
    value: Any


def read_json(path: Path, *, strict: bool = False) -> Iterator[Record]:
    """The entries of a JSON array, or the lines of any other file, as JSON.

    Bytes that are not UTF-8 become unpaired surrogates, or with `strict` are an error. Raises PunaError naming the
    line.
    """
    this = ": this" if strict else ""
    if _is_array(path):
        text = _decoded(b"".join(read_utf8(path)), str(path), strict)
        for number, value in enumerate(_parse(text, f"{path}{this}", "Fix the file."), 1):
            yield Record(number, f"{path}, entry {number}", value)
        return
    hint = "Fix or remove that line."
    if suffix(path.name)[0] == ".json":
        hint = "A .json file holds an array of records, or one record in each line."
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}, line {number}"
        # A byte-order mark comes with each part of files that were joined.
        if text := _decoded(line, where, strict).lstrip("\ufeff").strip():
            yield Record(number, where, _parse(text, f"{where}{this}", hint))


def read_columns(path: Path, needed: Sequence[str], text: str, optional: Sequence[str]) -> Iterator[Record]:
    """The rows of a parquet file with the columns `needed` and those of `optional` that it has; texts as bytes.

    Raises PunaError for a damaged file, a column that is missing or there twice, and a column `text` that is no text.
    """
    import pyarrow as arrow

    row = 0
    with _Parquet(path) as parquet:
        names = parquet.file.schema_arrow.names
        for name in needed:
            if name not in names:
                raise missing_field(name, str(path), names)
        wanted = sorted({*needed, *(name for name in optional if name in names)})
        parquet.check_names(wanted)
        kind = parquet.file.schema_arrow.field(text).type
        if not _is_text(kind) and not arrow.types.is_null(kind):
            raise DataError(f"{path}: column '{text}' is not text.", "Set text_field.")
        for batch in parquet.batches(wanted):
            # Text as bytes: pyarrow would raise for the whole batch if one row is not UTF-8.
            values = {name: _values(arrow, batch.column(name)) for name in wanted}
            for index in range(batch.num_rows):
                yield Record(row, f"{path}, row {row}", {name: column[index] for name, column in values.items()})
                row += 1
            parquet.rows = row


def read_table(path: Path) -> Iterator[Record]:
    """The rows of a parquet file with all columns, counted from 1, without what Arrow filled in.

    Raises PunaError for a damaged file, two columns of one name and text that is not UTF-8, naming the row.
    """
    with _Parquet(path, "not a complete") as parquet:
        schema = parquet.file.schema_arrow
        parquet.check_names(schema.names)
        for batch in parquet.batches(None):
            for index in range(batch.num_rows):
                parquet.rows += 1
                where = f"{path}, row {parquet.rows}"
                try:
                    [value] = batch.slice(index, 1).to_pylist()
                except UnicodeDecodeError:
                    raise DataError(f"{where} is not UTF-8.", "Fix that row or take it out.") from None
                row = {field.name: without_filling(value[field.name], field.type) for field in schema}
                yield Record(parquet.rows, where, row)


def without_filling(value: Any, kind: Any) -> Any:
    """A value of an Arrow type as the JSON that it was made of.

    All structs of a column have the same fields, and a field that a row did not have is null; here it is left out. A
    map's entries become an object. Nulls in lists and maps were given, and stay.
    """
    import pyarrow as arrow

    if value is None:
        return None
    if isinstance(kind, arrow.BaseExtensionType):
        return without_filling(value, kind.storage_type)
    if arrow.types.is_dictionary(kind):
        return without_filling(value, kind.value_type)
    if arrow.types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        given = [field for field in fields if value[field.name] is not None]
        return {field.name: without_filling(value[field.name], field.type) for field in given}
    if arrow.types.is_map(kind):
        return {key: without_filling(item, kind.item_type) for key, item in dict(value).items()}
    if isinstance(value, list):
        return [without_filling(item, kind.value_type) for item in value]
    return value


def missing_field(field: str, where: str, known: Sequence[str]) -> DataError:
    """The error for a record without a field."""
    return DataError(f"{where} has no field '{field}'.", nearest(field, known))


class _Parquet:
    """An open parquet file. Arrow's errors become those of a damaged file, with the number of rows read so far."""

    def __init__(self, path: Path, damaged: str = "a corrupt") -> None:
        self.path, self.rows, self.damaged = path, 0, damaged
        self.file: Any = None

    def __enter__(self) -> "_Parquet":
        import pyarrow.parquet as parquet

        try:
            self.file = parquet.ParquetFile(self.path)
        except Exception as error:
            self._translate(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if error is not None:
            self._translate(error)

    def batches(self, columns: Sequence[str] | None) -> Iterator[Any]:
        """Record batches with these columns, or all."""
        return iter(self.file.iter_batches(batch_size=_BATCH, columns=columns))

    def check_names(self, wanted: Sequence[str]) -> None:
        """Raise PunaError when the file has two columns with one of these names."""
        names = self.file.schema_arrow.names
        for name in wanted:
            if names.count(name) > 1:
                raise DataError(f"{self.path} has {names.count(name)} columns called '{name}'.", "Rename all but one.")

    def _translate(self, error: BaseException) -> None:
        import pyarrow as arrow

        # pyarrow reports damaged pages as an OSError without an errno; a disk failure has one.
        if (
            not isinstance(error, arrow.ArrowException | EOFError | OSError)
            or getattr(error, "errno", None) is not None
        ):
            return
        raise DataError(
            f"{self.path} is {self.damaged} parquet file (after row {self.rows}: {reason_of(error)}).",
            "Download it again.",
        ) from error


def _is_array(path: Path) -> bool:
    return next((chunk.lstrip()[:1] == b"[" for chunk in read_utf8(path) if chunk.strip()), False)


def _decoded(data: bytes, where: str, strict: bool) -> str:
    try:
        return data.decode("utf-8", "strict" if strict else "surrogateescape")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 (byte {error.start + 1:,}).", "Fix it or take it out.") from None


def _parse(text: str, where: str, hint: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{where} is not JSON that can be read (nested too deeply).", hint) from None
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}).", hint) from None


def _storage(arrow: Any, kind: Any) -> Any:
    while isinstance(kind, arrow.BaseExtensionType) or arrow.types.is_dictionary(kind):
        kind = kind.storage_type if isinstance(kind, arrow.BaseExtensionType) else kind.value_type
    return kind


def _is_text(kind: Any) -> bool:
    import pyarrow as arrow

    return str(_storage(arrow, kind)) in _TEXT


def _values(arrow: Any, column: Any) -> list[Any]:
    """A column's values: texts as bytes, whether they are stored as they are, as views or in a dictionary."""
    while not column.type.equals(_storage(arrow, column.type)):
        column = column.storage if isinstance(column.type, arrow.BaseExtensionType) else column.dictionary_decode()
    if str(column.type) in _TEXT:
        column = column.cast(arrow.large_binary())
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # texts within lists or structs
        return [_or_none(item) for item in column]


def _or_none(item: Any) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError:
        return None
