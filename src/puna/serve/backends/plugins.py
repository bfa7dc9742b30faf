"""Backends of plugins, by the name that `puna serve --backend NAME` takes."""

from collections.abc import Callable
from types import ModuleType

from puna.core.errors import PluginError
from puna.core.plugins import Registry
from puna.serve.backends.base import Backend
from puna.serve.settings import Settings

BackendFactory = Callable[[str, str, Settings], Backend]
"""`open(model, name, settings) -> Backend`.

model: what stands behind NAME= on the command line, empty where no model was given. name: the name to serve it under.
Called once for each model, on a thread of its own; raises PunaError for a model that cannot be opened.
"""

BUILT_IN = ("native", "vllm", "llama.cpp", "openai")
"""Backends that come with Puna."""


def _read(module: ModuleType) -> list[tuple[str, BackendFactory]]:
    found = getattr(module, "BACKENDS", {})
    where = getattr(module, "__file__", None) or module.__name__
    if not isinstance(found, dict) or not all(isinstance(name, str) and callable(one) for name, one in found.items()):
        raise PluginError(
            f"{where}: BACKENDS is not a dictionary of functions.", 'Write BACKENDS = {"name": open_backend}.'
        )
    for name in found:
        if name in BUILT_IN:
            raise PluginError(
                f"{where} registers the backend '{name}', which is already registered in Puna itself.",
                "Choose another name.",
            )
    return list(found.items())


BACKENDS: Registry[BackendFactory] = Registry("backend", ("puna.backends",), lambda: (), _read)
"""Every backend of a plugin by its name."""
