"""Predict how fast a run will be on this machine, with the planner's cost model.

No torch. `plan.own` has the equations and `train.measure.machine` the rates; this module turns a recipe into the
planner's question. The error is printed when the run ends; bench/plan_own.py lists measured errors.
"""

from typing import TYPE_CHECKING

from puna.core.errors import PunaError
from puna.model.config import ModelConfig
from puna.plan.equations.cost_model import CostModel
from puna.plan.equations.hardware import Accelerator
from puna.plan.equations.shape import from_config
from puna.plan.evidence.calibrated import predict_calibrated
from puna.plan.evidence.local_device import Calibration, accelerator_here, calibrated
from puna.plan.layouts.predict import Prediction, Question
from puna.train.recipe import Recipe

if TYPE_CHECKING:
    from puna.train.measure.machine import Machine

# For a GPU that is not in the catalogue: the usual shares of its peaks that measured products and copies reach.
_REACHED_PRODUCTS, _REACHED_BANDWIDTH = 0.78, 0.9
_GPU_LINK_GB_PER_S, _GPU_NIC_GBIT_PER_S, _GPU_WATTS = 32.0, 100.0, 400.0  # PCIe 4 x16, 100 Gbit Ethernet


def expected_step(recipe: Recipe, machine: "Machine", world_size: int = 1) -> Prediction | None:
    """Predict a step of `recipe` on this many processes, each on a device like `machine`.

    None when rates are unknown.

    machine: as measured by one of the processes while the others measured too, so that on a CPU its rates are those of
    a share of the cores. Raises PunaError when the layout or the batch does not fit the number of processes.
    """
    if not all(machine.matmul_flops.get(name) for name in ("fp32", "bf16")):
        return None
    layout = recipe.resolve_layout(world_size, on_cpu=machine.device == "cpu")
    if layout.model_parallel:
        return None  # the planner's constants for this trainer are of data parallelism alone
    rates = _rates(machine)
    muon = recipe.optimizer
    return predict_calibrated(
        recipe_question(recipe, _accelerator(machine, rates, world_size), machine, world_size),
        layout,
        rates,
        muon_iterations=muon.newton_schulz_steps if muon.kind == "muon" else 0,
        compiled=recipe.train.compile == "on" or (recipe.train.compile == "auto" and machine.has_compiler),
    )


def recipe_question(recipe: Recipe, accelerator: Accelerator, machine: "Machine", world_size: int) -> Question:
    """Turn a recipe into a question for the planner."""
    train = recipe.train
    precision = machine.fast_precision if train.precision == "auto" else train.precision
    return Question(
        model=recipe.name,
        shape=from_config(recipe.model),
        accelerator=accelerator,
        accelerators=world_size,
        seq_len=train.seq_len,
        batch=train.batch,
        precision="fp8" if train.fp8 else "fp32" if precision == "fp32" else "bf16",
        costs=CostModel("puna"),
    )


def bigram_flops(model: ModelConfig) -> float:
    """FLOPs of `init = "bigram"`.

    Six products for the SVD, two for the ridge, three for each polishing step.
    """
    return 2.0 * model.vocab_size**2 * model.hidden_size * (6 + 2 + 3 * 30)


def _rates(machine: "Machine") -> Calibration:
    """The machine's measured rates, or at least its best products."""
    bf16, fp32 = (machine.matmul_flops[name] / 1e12 for name in ("bf16", "fp32"))
    return machine.rates or Calibration(device=machine.name, date="", matmul_tflops=bf16, matmul_fp32_tflops=fp32)


def _accelerator(machine: "Machine", rates: Calibration, world_size: int) -> Accelerator:
    """The machine's device for the planner; processes on a CPU communicate through its memory."""
    try:
        found = calibrated(accelerator_here(machine.device), rates)
    except PunaError:
        found = _unknown(machine, rates)
    if found.generation == "cpu":
        found = found.model_copy(update={"link_domain": world_size, "node_size": world_size})
    return found


def _unknown(machine: "Machine", rates: Calibration) -> Accelerator:
    """A GPU that is not in the catalogue, described by its measured rates."""
    stream = rates.stream_gb_per_s or 1e3
    return Accelerator(
        name=machine.name,
        bf16_tflops=machine.matmul_flops["bf16"] / 1e12 / _REACHED_PRODUCTS,
        memory_gb=machine.memory_bytes / 1e9,
        memory_gb_per_s=stream / _REACHED_BANDWIDTH,
        link_gb_per_s=rates.allgather_gb_per_s or _GPU_LINK_GB_PER_S,
        nic_gbit_per_s=_GPU_NIC_GBIT_PER_S,
        watts=_GPU_WATTS,
    )
