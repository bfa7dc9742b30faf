"""The checker of import cycles finds those that a reader would miss: lazy, for types only, relative."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("import_cycles", Path(__file__).with_name("import_cycles.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_kind_of_import_counts(checker: ModuleType, tmp_path: Path) -> None:
    sources = {
        "__init__": "",
        "lazy": "def f():\n    from app import typed\n",
        "typed": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from app.relative import X\n",
        "relative": "from .lazy import f\nfrom . import leaf\n",
        "leaf": "import json\n",
        "user": "import app.leaf\nfrom app.lazy import f\n",
    }
    (tmp_path / "app").mkdir()
    for name, source in sources.items():
        (tmp_path / "app" / f"{name}.py").write_text(source)
    graph = checker.import_graph(tmp_path, "app")
    assert graph["app.user"] == {"app.leaf", "app.lazy"}
    assert checker.find_cycles(graph) == [{"app.lazy", "app.typed", "app.relative"}]


def test_cycles_that_touch_are_one_and_a_diamond_is_none(checker: ModuleType) -> None:
    touching = {"a": {"b"}, "b": {"a", "c"}, "c": {"b", "d"}, "d": set()}
    assert checker.find_cycles(touching) == [{"a", "b", "c"}]
    diamond = {"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}
    assert checker.find_cycles(diamond) == []
