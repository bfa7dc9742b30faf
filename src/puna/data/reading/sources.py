"""Document sources: files and folders, the running Python's standard library, datasets on the Hub.

A source is first listed (`list_inputs`: sorted, so that a build is the same everywhere), then read file by file
(`read_documents`), so that many machines can share the files of one source. `readers` parses the files.
"""

import glob as globbing
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from puna.core.errors import DataError
from puna.data.document import Document, Drops, Input
from puna.data.reading.file_types import CODE, PROSE, RECORDS, matches, suffix
from puna.data.reading.hub import fetch, list_dataset
from puna.data.reading.readers import read_file
from puna.data.recipe import SourceConfig

# Parts of a standard library to skip: tests with deliberate nonsense, installed packages, caches.
_SKIPPED = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")


def list_inputs(source: SourceConfig, root: str = "") -> list[Input]:
    """The files of a source, sorted by name. Raises PunaError when there are none."""
    if source.kind == "hub":
        return list_dataset(source)
    if source.kind == "python-stdlib":
        folder = Path(sysconfig.get_paths()["stdlib"])
        # A link of the system's package manager may lead out of the library; names must not depend on it.
        found = _walk(folder, source.glob or ["*.py"], [*_SKIPPED, *source.exclude])
        place = f"the standard library at {folder}"
    else:
        path = Path(root).expanduser() / Path(source.path).expanduser()
        place = str(path)
        found = _files(path, source)
    inputs = [
        Input(os.fsencode(name).decode("utf-8", "replace"), file.stat().st_size, str(file)) for name, file in found
    ]
    if not inputs:
        patterns = f" that matches {', '.join(source.glob)}" if source.glob else " of a known type"
        raise DataError(
            f"Source '{source.name}': {place} contains no file{patterns}.", "Check the path, `glob` and `exclude`."
        )
    return inputs


def read_documents(
    source: SourceConfig, inputs: Iterable[Input], invalid_utf8: str, drops: Drops
) -> Iterator[tuple[Input, Document | None]]:
    """Yield (input, document) for every document of `inputs`, and (input, None) at the end of each input.

    Files that are not text are skipped and counted in `drops`. Raises PunaError for a corrupt file, naming the line.
    """
    taken = 0
    for item in inputs:
        path = Path(item.place)
        if item.revision:
            path = fetch(source, item)
        for document in read_file(path, item.name, source, invalid_utf8, drops):
            yield item, document
            taken += 1
            if source.limit and taken >= source.limit:
                yield item, None
                return
        yield item, None


def _files(path: Path, source: SourceConfig) -> list[tuple[str, Path]]:
    if any(mark in source.path for mark in "*?[") and not path.exists():
        base = Path(*path.parts[: next(i for i, part in enumerate(path.parts) if any(m in part for m in "*?["))])
        found = (Path(name) for name in globbing.glob(str(path), recursive=True))
        named = sorted((file.relative_to(base).as_posix(), file) for file in found if file.is_file())
        return [(name, file) for name, file in named if not matches(name, source.exclude, folders=True)]
    if not path.exists():
        raise DataError(f"Source '{source.name}': {path} does not exist.", "Check `path`, or set `root`.")
    if path.is_file():
        return [(path.name, path)]
    return _walk(path, source.glob, source.exclude)


def _walk(folder: Path, patterns: Sequence[str], exclude: Sequence[str]) -> list[tuple[str, Path]]:
    """(relative name, file) of every matching file under `folder` except hidden ones, sorted by name."""
    found = []
    for here, folders, files in os.walk(folder):
        relative = Path(here).relative_to(folder)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not matches((relative / name).as_posix(), exclude, folders=True)
        ]
        for file in files:
            name = (relative / file).as_posix()
            wanted = matches(name, patterns) if patterns else suffix(file)[0] in CODE | PROSE | RECORDS
            if wanted and not file.startswith(".") and not matches(name, exclude, folders=True):
                found.append((name, Path(here, file)))
    return sorted((name, path) for name, path in found if path.is_file())
