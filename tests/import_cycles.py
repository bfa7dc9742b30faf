"""Report import cycles between the modules of src/puna: `python tests/import_cycles.py`, run by `make lint`.

import-linter keeps the layers; this keeps the modules of one package free of cycles. Every import counts, also those in
functions and under TYPE_CHECKING. The root package is left out: it holds the version, and lazily the whole Python API.
Cycles that are still allowed are listed in pyproject.toml, [tool.import-cycles]; one that is gone must be removed.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Print what is wrong; the exit status is 1 if anything is."""
    graph = import_graph(ROOT / "src", "puna")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"].get("import-cycles", {})
    allowed = [frozenset(modules) for modules in settings.get("allowed", [])]
    cycles = find_cycles(graph)
    new = [cycle for cycle in cycles if not any(cycle <= known for known in allowed)]
    stale = [known for known in allowed if not any(cycle <= known for cycle in cycles)]
    for cycle in new:
        print(f"Import cycle: {', '.join(sorted(cycle))}")
        for source in sorted(cycle):
            print(f"    {source} imports {', '.join(sorted(graph[source] & cycle))}")
    for known in stale:
        print(f"No longer a cycle, remove it from pyproject.toml: {', '.join(sorted(known))}")
    if not new and not stale:
        print(f"No import cycles among {len(graph)} modules ({len(cycles)} allowed).")
    return bool(new or stale)


def import_graph(folder: Path, package: str) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports anywhere in its source."""
    paths = {_module_name(path, folder): path for path in (folder / package).rglob("*.py")}
    del paths[package]
    return {name: set(_imports(name, path, paths)) - {name} for name, path in paths.items()}


def find_cycles(graph: Mapping[str, set[str]]) -> list[frozenset[str]]:
    """The sets of modules that import each other, directly or through others: strongly connected components.

    Tarjan 1972, with an explicit stack.
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    component: list[str] = []
    found = []
    for root in graph:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        component.append(root)
        work = [(root, iter(sorted(graph[root])))]
        while work:
            module, imports = work[-1]
            target = next(imports, None)
            if target is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[module])
                if low[module] == index[module]:
                    at = component.index(module)
                    members, component = component[at:], component[:at]
                    if len(members) > 1:
                        found.append(frozenset(members))
            elif target not in index:
                index[target] = low[target] = len(index)
                component.append(target)
                work.append((target, iter(sorted(graph[target]))))
            elif target in component:
                low[module] = min(low[module], index[target])
    return found


def _module_name(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(name: str, path: Path, paths: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in paths)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, name, path)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if full in paths:
                    yield full
                elif base in paths:
                    yield base


def _absolute(node: ast.ImportFrom, name: str, path: Path) -> str:
    """The absolute name of the module that a `from` import names."""
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    package = parts if path.name == "__init__.py" else parts[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *(node.module.split(".") if node.module else [])])


if __name__ == "__main__":
    sys.exit(main())
