"""An estimate as plain values for `--json`: units in the keys, nothing rounded, infinity and NaN as null.

The keys are stable and tested; new ones are only added.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel

from puna.plan.layouts.convert import to_json
from puna.plan.layouts.predict import Prediction
from puna.plan.run.budget import BudgetEstimate, FleetSize, Goal
from puna.plan.run.estimate import Estimate, RunEstimate
from puna.plan.run.pricing import Range


def estimate_tree(estimate: RunEstimate) -> dict[str, Any]:
    """The whole estimate. {"low", "value", "high"} is an 80 % interval, for prices the full range."""
    question, choice, good = estimate.question, estimate.choice, estimate.goodput
    tree = {
        "model": question.model,
        "parameters": question.shape.num_parameters(),
        "accelerator": question.accelerator.name,
        "accelerators": question.accelerators,
        "stack": question.stack,
        "precision": question.precision,
        "seq_len_tokens": question.seq_len,
        "batch_sequences": question.batch,
        "tokens_per_step": estimate.best.tokens_per_step,
        "tokens": estimate.tokens,
        "steps": estimate.steps,
        "fits": estimate.best.fits,
        "memory_available_bytes": question.accelerator.usable_bytes,
        "legal_layouts": len(choice.found),
        "fitting_layouts": choice.fitting,
        "best": _layout(estimate.best),
        "runners_up": [_layout(one) for one in choice.runners_up],
        "recipe_layout": _layout(estimate.given) if estimate.given else None,
        "step_seconds": estimate.step_seconds,
        "tokens_per_second": estimate.tokens_per_second,
        "mfu_causal_attention": estimate.mfu_causal,
        "mfu_full_attention": estimate.mfu_full,
        "mfu_peak_tflops": estimate.peak_tflops,
        "training_days": estimate.training_days,
        "days": estimate.days,
        "accelerator_hours": estimate.accelerator_hours,
        "interruptions": estimate.interruptions,
        "effective_time_share": estimate.effective_time,
        "checkpoint_interval_seconds": good.interval_seconds,
        "checkpoint_bytes": good.checkpoint.bytes,
        "mean_time_to_interruption_seconds": good.mtti_all_seconds,
        "spare_nodes": good.spares,
        "energy_mwh": estimate.energy_mwh,
        "facility_megawatts": estimate.bill.facility_megawatts,
        "carbon_tonnes": estimate.bill.carbon_tonnes,
        "rent_usd": estimate.rent_usd,
        "rent_usd_per_accelerator_hour": estimate.rent_usd_per_hour,
        "own_all_in_usd": estimate.own_usd,
        "capex_accelerators_usd": estimate.bill.capex_accelerators,
        "capex_all_in_usd": estimate.bill.capex_all_in,
        "what_if": estimate.what_ifs,
        "remedies": [{"change": one.change, **_layout(one.prediction)} for one in estimate.suggestions],
        "assumptions": [*estimate.assumptions, *estimate.bill.notes],
    }
    return {key: plain(value) for key, value in tree.items()}


def own_stack_tree(own: FleetSize | None) -> dict[str, Any] | None:
    """The run in Puna's own trainer; None where no layout of it fits."""
    return None if own is None else {"stack": "puna", "days": own.days, "rent_usd": own.rent_usd, **_layout(own.best)}


def budget_tree(budget: BudgetEstimate) -> dict[str, Any]:
    """The plan of a budget; "run" is the whole estimate of the run it pays for."""
    return {
        "budget_usd": budget.budget_usd,
        "days": budget.days,
        "rent_usd_per_accelerator_hour": budget.rent_usd_per_hour,
        "rentable_accelerators": budget.rentable,
        "reach": plain(budget.reach),
        "presets": plain(budget.presets),
        "optimal_model": budget.optimal,
        "goal": _goal(budget.goal) if budget.goal else None,
        "run": estimate_tree(budget.run),
    }


def plain(value: Any) -> Any:
    """Convert dataclasses, settings and numbers of any kind to JSON values."""
    if isinstance(value, Estimate):
        return {name: plain(getattr(value, name)) for name in ("low", "value", "high")}
    if isinstance(value, Range):
        return {"low": plain(value.low), "value": plain(value.middle), "high": plain(value.high)}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, BaseModel):
        name = getattr(value, "name", None)
        return name if name is not None else plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _layout(one: Prediction) -> dict[str, Any]:
    return {
        "accelerator": one.question.accelerator.name,
        "accelerators": one.question.accelerators,
        "layout": to_json(one.layout),
        "fits": one.fits,
        "step_seconds": plain(Estimate(one.low, one.step_seconds, one.high)),
        "step_parts_seconds": dict(one.seconds),
        "memory_bytes": one.memory_bytes,
        "memory_parts_bytes": dict(one.memory),
    }


def _goal(goal: Goal) -> dict[str, Any]:
    return {
        "tokens": goal.tokens,
        "days": goal.days,
        "in_time": goal.in_time,
        "needed_days": goal.size.days,
        "rent_usd": goal.size.rent_usd,
        "over_budget_usd": goal.over_usd,
        **_layout(goal.size.best),
    }
