"""Reads benchmark files: from a local folder, or from the Hugging Face Hub if that was asked for.

A file is named by its path in the data folder without compression: `gsm8k/test.jsonl` may be stored as `test.jsonl`,
`.gz`, `.xz`, `.zst` or `.bz2`. Each use names what the Hub offers instead, as (dataset, configuration, split): rows of
the Hub's parquet conversion, which have the same columns.
"""

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from puna.core.errors import DataError, MissingFiles
from puna.data.reading.chunks import read_chunks
from puna.evals.origins import origin

PACKINGS = ("", ".gz", ".xz", ".zst", ".bz2")
Row = dict[str, Any]


class OnHub(NamedTuple):
    """A split of a dataset on the Hub."""

    dataset: str
    config: str
    split: str


class EvalData:
    """A folder with benchmark files.

    hub: fetch from the Hub what the folder does not have. instruct: give the problems of tasks with the instruction
    that explains them; False for a model that was tuned on the bare problems.
    """

    def __init__(self, place: Path | None, *, hub: bool = False, instruct: bool = True) -> None:
        self.place, self.hub, self.instruct = place, hub, instruct

    @property
    def described(self) -> str:
        """The folder in words."""
        return "no folder of evaluation data was named" if self.place is None else f"the folder is {self.place}"

    @staticmethod
    def find(given: Path | None, *, hub: bool = False, instruct: bool = True) -> "EvalData":
        """Return the given folder, or the one that PUNA_EVAL_DATA or PUNA_TEST_DATA names; its subfolder `eval` if any.

        Raises DataError if it does not exist. Without any of the three, benchmarks that make their own items still run.
        """
        named = given or os.environ.get("PUNA_EVAL_DATA") or os.environ.get("PUNA_TEST_DATA")
        if named is None:
            return EvalData(None, hub=hub, instruct=instruct)
        place = Path(named)
        if not place.is_dir():
            raise DataError(f"There is no folder of evaluation data at {place}.", "Check --data or PUNA_EVAL_DATA.")
        inner = place / "eval"
        return EvalData(inner if inner.is_dir() else place, hub=hub, instruct=instruct)

    def path(self, name: str) -> Path | None:
        """Return the file of this name, compressed or not, or None."""
        if self.place is None:
            return None
        return next((path for packing in PACKINGS if (path := self.place / (name + packing)).is_file()), None)

    def has(self, pattern: str) -> bool:
        """Whether any file here matches a pattern of names, compressed or not."""
        place = self.place
        return place is not None and any(
            path.is_file() for packing in PACKINGS for path in place.glob(_deep(pattern) + packing)
        )

    def text(self, name: str) -> str:
        """Read a file as text. Raises MissingFiles if it is missing, DataError if it is damaged."""
        path = self._required(name)
        try:
            return b"".join(read_chunks(path)).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}).", "Fetch it again.") from None

    def json(self, name: str) -> Any:
        """Read a JSON file. Raises as `text`, and DataError if it is not JSON."""
        try:
            return json.loads(self.text(name))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path(name)} is not JSON ({error}).", "Fetch it again.") from None

    def rows(self, name: str, *columns: str, hub: OnHub | None = None) -> list[Row]:
        """Return the rows of a JSON-lines, JSON, CSV or TSV file, each with `columns`.

        Raises MissingFiles if the file is missing and the Hub was not asked, and DataError naming the line for a row
        that is damaged or lacks a column.
        """
        if self.path(name) is None and hub is not None and self.hub:
            found = [(number, row) for number, row in enumerate(_from_hub(hub), 1)]
            path: Any = f"{hub.dataset} on the Hub"
        else:
            path = self._required(name)
            text = self.text(name)
            # Several datasets are JSON lines with the suffix .json.
            if name.endswith(".jsonl") or (name.endswith(".json") and not text.lstrip().startswith("[")):
                found = [(n, _row(path, n, line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
            elif name.endswith((".csv", ".tsv")):
                delimiter = "," if name.endswith(".csv") else "\t"
                lines = csv.reader(
                    io.StringIO(text),
                    delimiter=delimiter,
                    quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE,
                )
                # `columns` names the columns of a TSV without a header.
                head = next(lines, []) if delimiter == "," else list(columns)
                found = [(lines.line_num, dict(zip(head, row, strict=False))) for row in lines]
            else:
                found = [(number, row) for number, row in enumerate(self.json(name), 1)]
        for number, row in found:
            missing = next((c for c in columns if not isinstance(row, dict) or row.get(c) is None), None)
            if missing is not None:
                raise DataError(f"{path}, line {number}: '{missing}' is missing.", "Fetch the file again.")
        if not found:
            raise DataError(f"{path} has no rows.", "Fetch the file again.")
        return [row for _, row in found]

    def _required(self, name: str) -> Path:
        path = self.path(name)
        if path is None and self.place is None:
            raise MissingFiles(
                f"The benchmark's file {name} is not here: {self.described}.",
                f"{_how(name)} Give --data DIR, set PUNA_EVAL_DATA, or fetch with --hub.",
            )
        if path is None:
            raise MissingFiles(f"{self.place / name} is not there.", f"{_how(name)} Or fetch it with --hub.")  # type: ignore[operator]
        return path


def _deep(pattern: str) -> str:
    """A pattern for `glob` in which the last star also matches folders, as in fnmatch."""
    folder, star, rest = pattern.rpartition("/*")
    return f"{folder}/**/*{rest}" if star else pattern


def _how(name: str) -> str:
    """Where a missing file comes from, in a sentence."""
    found = origin(name)
    return "Check --data." if found is None else f"It comes from {found.source} ({found.form})."


class FirstFile(NamedTuple):
    """The first file that a benchmark reads. here: in the folder. hub: whether --hub fetches it."""

    name: str
    here: bool
    hub: bool


class _Found(Exception):
    pass


class _Probe(EvalData):
    """Finds out which file is read first, without reading it."""

    first: FirstFile | None = None

    def rows(self, name: str, *columns: str, hub: OnHub | None = None) -> list[Row]:
        self.first = FirstFile(name, self.path(name) is not None, hub is not None)
        raise _Found

    def _required(self, name: str) -> Path:
        self.first = FirstFile(name, self.path(name) is not None, False)
        raise _Found


def first_file(load: Callable[[EvalData], object], data: EvalData) -> FirstFile | None:
    """Return the first file that a loader reads; None for a loader that makes its own items."""
    probe = _Probe(data.place, hub=True)
    with contextlib.suppress(_Found):
        load(probe)
    return probe.first


def _row(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: this is not JSON ({str(error)[:80]}).", "Fetch it again.") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: this is not a JSON object.", "Fetch it again.")
    return row


def _from_hub(where: OnHub) -> list[Row]:
    """Fetch the rows of a split from the Hub's parquet conversion; the files stay in the Hub's cache."""
    from puna.data.reading.hub import fetch, list_dataset
    from puna.data.recipe import SourceConfig

    source = SourceConfig(
        name="evaluation",
        kind="hub",
        id=where.dataset,
        revision="refs/convert/parquet",
        glob=[f"{where.config}/{where.split}/*.parquet"],
    )
    import pyarrow.parquet as parquet

    return [row for item in list_dataset(source) for row in parquet.read_table(fetch(source, item)).to_pylist()]
