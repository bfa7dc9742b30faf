"""Plugins: tasks, benchmarks and backends that live outside Puna.

A plugin is a Python module with one or more of these names:

    TASKS = (task, ...)             values of puna.Task
    BENCHMARKS = (benchmark, ...)   values of puna.Benchmark
    BACKENDS = {"name": factory}    see puna.serve.backends.base.BackendFactory

It is found in one of two ways. `include` loads a file that somebody named (`--include FILE.py`): whatever is wrong with
it is an error. An installed package names its module in an entry point of the group puna.tasks, puna.benchmarks or
puna.backends: there a module that fails is left out with a warning, so that one broken package breaks nothing else.

Nothing is imported before a `Registry` is first read, so `import puna` and `puna --help` never load a plugin.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Generic, NamedTuple, TypeVar

from puna.core.errors import PluginError, PunaError, nearest

ATTRIBUTES = ("TASKS", "BENCHMARKS", "BACKENDS")
"""The names that a plugin's module may have."""
BUILT_IN = "Puna itself"

T = TypeVar("T")
Items = Iterable[tuple[str, T]]
"""Names and what they stand for."""


class Plugin(NamedTuple):
    """A loaded module, where it came from, and whether an error in it ends the command."""

    module: ModuleType
    origin: str
    included: bool


_included: dict[Path, Plugin] = {}
"""Files that were included in this process, by their resolved path."""


def include(path: Path | str) -> None:
    """Load a plugin file; its tasks, benchmarks and backends are then found by their names. Including twice is once.

    Raises PluginError when the file does not exist, does not import or registers nothing. What it registers is checked
    when the registries are next read.
    """
    path = Path(path)
    if not path.is_file():
        raise PluginError(f"{path} is not a file.", "Give the path of a Python file to --include.")
    if path.suffix != ".py":
        raise PluginError(f"{path} is not a Python file.", "Name the file with .py.")
    resolved = path.resolve()
    if resolved in _included:
        return
    module = _import(path, resolved)
    if not any(getattr(module, name, None) for name in ATTRIBUTES):
        del sys.modules[module.__name__]
        raise PluginError(
            f"{path} registers nothing.", "Define TASKS, BENCHMARKS or BACKENDS in it, for example TASKS = (task,)."
        )
    _included[resolved] = Plugin(module, str(path), True)


def include_all(paths: Sequence[Path | str]) -> None:
    """Include several files, in this order. Raises PluginError as `include`."""
    for path in paths:
        include(path)


def _import(path: Path, resolved: Path) -> ModuleType:
    """Run the file as a module of its own name, so that dataclasses and pickle find what it defines.

    It may import files next to it, as it could when run by itself; they never hide an installed module.
    """
    name = f"puna_include_{resolved.stem}_{len(_included)}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(resolved.parent) not in sys.path:
        sys.path.append(str(resolved.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        where = f"python {path} shows where."
        raise PluginError(f"{path} does not import ({_reason(error)}).", f"Fix it; {where}") from error
    return module


class Registry(Mapping[str, T], Generic[T]):
    """What Puna brings along and what plugins add, by name, in that order; built when it is first read.

    kind: the word for one entry, used in errors. groups: entry points to look for. built_in: Puna's own entries.
    read: the entries of a plugin's module; raises PluginError for what is not one.
    """

    def __init__(
        self,
        kind: str,
        groups: Sequence[str],
        built_in: Callable[[], Items[T]],
        read: Callable[[ModuleType], Items[T]],
    ) -> None:
        self._kind, self._groups, self._built_in, self._read = kind, groups, built_in, read
        self._entries: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._seen: set[Path] = set()
        self._filled = False

    def __getitem__(self, name: str) -> T:
        return self._current()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current())

    def __len__(self) -> int:
        return len(self._current())

    def find(self, name: str) -> T:
        """The entry of this name. Raises PunaError naming the nearest known one."""
        entries = self._current()
        if name not in entries:
            hint = nearest(name, entries)
            raise PunaError(f"There is no {self._kind} '{name}'.", f"{hint} One in a file of your own needs --include.")
        return entries[name]

    def _current(self) -> dict[str, T]:
        if not self._filled:
            self._filled = True
            self._add(self._built_in(), BUILT_IN)
            for plugin in installed(self._groups):
                try:
                    self._add(self._read(plugin.module), plugin.origin)
                except PluginError as error:
                    warn(str(error))
        for path, plugin in list(_included.items()):
            if path not in self._seen:
                self._add(self._read(plugin.module), plugin.origin)
                self._seen.add(path)
        return self._entries

    def _add(self, items: Items[T], origin: str) -> None:
        """All of a module's entries, or none of them. Raises PluginError for a name that is taken."""
        added: dict[str, T] = {}
        for name, value in items:
            if name in added or name in self._entries:
                owner = self._origins.get(name, origin)
                where = "twice" if owner == origin else f"which is already registered in {owner}"
                comma = "" if owner == origin else ","
                raise PluginError(
                    f"{origin} registers the {self._kind} '{name}'{comma} {where}.", "Choose another name."
                )
            added[name] = value
        self._entries |= added
        self._origins |= dict.fromkeys(added, origin)


def entries(module: ModuleType, attribute: str, kind: type[T]) -> list[T]:
    """A module's tuple or list of `kind` values; empty when it has none. Raises PluginError for anything else."""
    found = getattr(module, attribute, ())
    where = getattr(module, "__file__", None) or module.__name__
    if not isinstance(found, tuple | list):
        raise PluginError(
            f"{where}: {attribute} is a {type(found).__name__}.",
            f"Make it a tuple of {kind.__name__} values: {attribute} = (value,).",
        )
    for value in found:
        if not isinstance(value, kind):
            raise PluginError(
                f"{where}: {attribute} contains a {type(value).__name__}.", f"Put {kind.__name__} values into it."
            )
    return list(found)


def installed(groups: Sequence[str]) -> list[Plugin]:
    """The modules that installed packages name in these entry point groups, each once, sorted by name.

    A module that cannot be imported is left out with a warning on stderr.
    """
    from importlib.metadata import entry_points

    found: dict[str, Plugin] = {}
    points = {(point.value, point.name): point for group in groups for point in entry_points(group=group)}
    for _, point in sorted(points.items()):
        package = point.dist.name if point.dist else point.name
        origin = f"the plugin {package}"
        try:
            module = point.load()
        except (Exception, SystemExit) as error:
            warn(f"{origin} could not be loaded ({_reason(error)}) and is left out. Reinstall or uninstall it.")
            continue
        if not isinstance(module, ModuleType):
            warn(f"{origin} names {point.value}, which is not a module, and is left out.")
            continue
        found[module.__name__] = Plugin(module, origin, False)
    return list(found.values())


def warn(sentence: str) -> None:
    """Print one line on stderr."""
    print(f"puna: {sentence[:1].upper()}{sentence[1:]}", file=sys.stderr)


def _reason(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
