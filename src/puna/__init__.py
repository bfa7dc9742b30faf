"""Puna raises an open Llama-class language model and puts it in people's hands.

    import puna

    with puna.load_model("models/demo") as model:
        print(model.generate("Once upon a time", max_tokens=40).text)

Everything in `__all__` is the public API, documented in docs/python.md. It is loaded when it is first used, so that
`import puna` costs nothing. All other modules may change between versions.
"""

import importlib

from puna.version import __version__

TYPE_CHECKING = False  # as in `typing`, whose import takes longer than all the rest of this

# Each name of the API and the module it is in.
_WHERE = {
    **dict.fromkeys(
        ("Message", "Model", "RunResult", "include", "load_model", "plan_run", "train_model", "tune_model"), "puna.api"
    ),
    **dict.fromkeys(("Completion", "SamplingParams"), "puna.engine.generate"),
    **dict.fromkeys(("Problem", "Task", "Verdict", "refused"), "puna.tasks.contract"),
    **dict.fromkeys(
        ("Benchmark", "Choices", "Item", "Likelihood", "MultiTurn", "Score", "Text", "most_likely"),
        "puna.evals.contract",
    ),
    "EvalData": "puna.evals.datasets",
    "evaluate_model": "puna.evals.evaluate_model",
    **dict.fromkeys(("Prompt", "TextBackend"), "puna.serve.backends.text"),
    **dict.fromkeys(
        (
            "DataError",
            "DeadlineError",
            "EngineError",
            "MissingFiles",
            "ModelError",
            "OutOfMemoryError",
            "PluginError",
            "PunaError",
            "RecipeError",
            "SandboxError",
        ),
        "puna.core.errors",
    ),
}

if TYPE_CHECKING:
    from typing import Any

    from puna.api import (
        Message,
        Model,
        RunResult,
        include,
        load_model,
        plan_run,
        train_model,
        tune_model,
    )
    from puna.core.errors import (
        DataError,
        DeadlineError,
        EngineError,
        MissingFiles,
        ModelError,
        OutOfMemoryError,
        PluginError,
        PunaError,
        RecipeError,
        SandboxError,
    )
    from puna.engine.generate import Completion, SamplingParams
    from puna.evals.contract import Benchmark, Choices, Item, Likelihood, MultiTurn, Score, Text, most_likely
    from puna.evals.datasets import EvalData
    from puna.evals.evaluate_model import evaluate_model
    from puna.serve.backends.text import Prompt, TextBackend
    from puna.tasks.contract import Problem, Task, Verdict, refused

__all__ = [
    "Benchmark",
    "Choices",
    "Completion",
    "DataError",
    "DeadlineError",
    "EngineError",
    "EvalData",
    "Item",
    "Likelihood",
    "Message",
    "MissingFiles",
    "Model",
    "ModelError",
    "MultiTurn",
    "OutOfMemoryError",
    "PluginError",
    "Problem",
    "Prompt",
    "PunaError",
    "RecipeError",
    "RunResult",
    "SamplingParams",
    "SandboxError",
    "Score",
    "Task",
    "Text",
    "TextBackend",
    "Verdict",
    "__version__",
    "evaluate_model",
    "include",
    "load_model",
    "most_likely",
    "plan_run",
    "refused",
    "train_model",
    "tune_model",
]


def __getattr__(name: str) -> "Any":
    if name not in _WHERE:
        raise AttributeError(f"module 'puna' has no attribute '{name}'")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
