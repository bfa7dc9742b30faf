"""The planner: what a training run needs, how fast it goes, what fails and what it costs, before it starts.

Equations over a catalogue of hardware and fitted constants per software stack; nothing here imports torch, and nothing
here prints. `puna plan` parses, calls one function of this package and shows the result. The names below are its public
entry points, imported when they are first used:

    from puna.plan import CostModel, Question, choose, find_accelerator
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puna.plan.equations.cost_model import CostModel
    from puna.plan.equations.hardware import find_accelerator, parse_fleet
    from puna.plan.equations.shape import from_config
    from puna.plan.layouts.predict import Prediction, Question, choose, predict
    from puna.plan.run.budget import plan_budget
    from puna.plan.run.estimate import RunEstimate, estimate_run
    from puna.plan.run.goodput import goodput

_MODULES = {
    "CostModel": "equations.cost_model",
    "Prediction": "layouts.predict",
    "Question": "layouts.predict",
    "RunEstimate": "run.estimate",
    "choose": "layouts.predict",
    "estimate_run": "run.estimate",
    "find_accelerator": "equations.hardware",
    "from_config": "equations.shape",
    "goodput": "run.goodput",
    "parse_fleet": "equations.hardware",
    "plan_budget": "run.budget",
    "predict": "layouts.predict",
}

__all__ = [
    "CostModel",
    "Prediction",
    "Question",
    "RunEstimate",
    "choose",
    "estimate_run",
    "find_accelerator",
    "from_config",
    "goodput",
    "parse_fleet",
    "plan_budget",
    "predict",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
