"""Published training runs: read them, derive what each measured, and turn them into jobs.

A runs file (YAML) has `models` (shapes), `sources` and `throughput` rows. Where a source does not print its whole
layout (micro-batch, interleaving, recomputation), the row becomes several candidate jobs, and the planner takes the
fastest that fits, as the authors did. Candidates never depend on what was measured.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from puna.core.errors import PunaError, nearest
from puna.model.layout import RECOMPUTE, SHARDING
from puna.plan.equations.columns import PRECISIONS, JobColumns, LayoutColumns, device_columns, stack_columns
from puna.plan.equations.hardware import Accelerator, find_accelerator
from puna.plan.equations.shape import Shape, from_published, is_whole

# Network cards that differ from the reference system's, Gbit/s for each accelerator, as the source describes its
# cluster.
CLUSTERS = {
    "fms-fsdp": {"a100-80g": 50.0, "h100-sxm": 100.0},  # 400 and 800 Gbit/s a node
    "bloom": {"a100-80g": 50.0},  # four 100 Gbit/s cards a node
    "vtrain-multi": {"a100-80g": 100.0},  # 800 Gbit/s a node
}
LLAMA3_POD, LLAMA3_OVERSUBSCRIPTION = 3072, 7.0  # arXiv 2407.21783 section 3.3.1
# Sources whose TFLOP/s count the whole square of attention; the others count the causal triangle.
FULL_SQUARE = (
    "llm-foundry",
    "mcore-readme",
    "nemo-2407",
    "nemo-longseq",
    "megascale",
    "nemotron4-15b-report",
    "fms-fsdp",
)
_RECOMPUTE = {
    "none": "none",
    "selective": "selective",
    "selective-op": "ops",
    "selective-block": "blocks",
    "full": "full",
}
_SHARDING = {"full": "zero3", "zero2": "zero2", "zero3": "zero3", "hsdp": "hsdp", "megatron-fsdp": "zero3"}
_MEASURED = ("step_s", "tok_s_gpu", "model_tflops_gpu", "hw_tflops_gpu", "mfu_pct", "mem_gib")
_NEEDED = ("id", "src", "model", "gpu", "gpus", "seq", "layout", "precision")


@dataclass(frozen=True)
class PublishedRun:
    """One published run. Unknown parts of the layout are None; step_seconds is None if not measured."""

    id: str
    source: str
    model: str
    accelerator: Accelerator
    gpus: int
    seq_len: int
    batch: int
    precision: str
    stack: str
    shape: Shape
    known: Mapping[str, Any]
    recompute: str | None
    step_seconds: float | None
    memory_gib: float | None
    split: str
    values: Mapping[str, Any] = field(repr=False)

    @property
    def full_square(self) -> bool:
        """Whether the source's TFLOP/s count the whole square of attention."""
        return self.source in FULL_SQUARE

    @property
    def family(self) -> tuple[str, str, str]:
        """(source, model, precision): rows of a family are near copies, so it counts once."""
        return self.source, self.model, str(self.values["precision"])


def read_runs(path: Path) -> list[PublishedRun]:
    """Read a runs file. Raises PunaError naming the row and field that is missing or unknown."""
    import yaml

    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise PunaError(f"{path} does not exist.", "Give a YAML file of published runs.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PunaError(f"{path} cannot be read as YAML: {error}.", "Fix it, or give another file.") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("throughput"), list) or not tree["throughput"]:
        raise PunaError(f"{path} has no list 'throughput'.", "Put rows under 'throughput' and shapes under 'models'.")
    models = tree.get("models") or {}
    if not isinstance(models, dict):
        raise PunaError(f"{path}: 'models' is not a mapping.", "Give each model's shape under its name.")
    shapes = {str(name): from_published(values, str(name)) for name, values in models.items()}
    return [_row(values, number, shapes) for number, values in enumerate(tree["throughput"])]


def _row(values: Any, number: int, shapes: Mapping[str, Shape]) -> PublishedRun:
    name = values.get("id") if isinstance(values, dict) else None
    name = f"number {number}" if name is None else name
    if not isinstance(values, dict) or not isinstance(values.get("layout", {}), dict):
        raise PunaError(f"row {name}: is not a mapping with a 'layout'.", "Write it as in the published runs file.")
    if missing := [key for key in _NEEDED if values.get(key) is None]:
        raise PunaError(f"row {name}: {', '.join(missing)} is missing.", "Every row needs " + ", ".join(_NEEDED) + ".")
    values = {**values, **{key: str(values[key]) for key in ("src", "model", "gpu", "precision")}}
    layout = values["layout"]
    if layout.get("gbs") is None:
        raise PunaError(f"row {name}: layout.gbs is missing.", "Give the sequences of one step.")
    for key, value in (("gpus", values["gpus"]), ("seq", values["seq"]), *layout.items()):
        if key in ("sp", "sched", "fsdp") or value is None:
            continue
        if not is_whole(value, 1):
            raise PunaError(f"row {name}: {key} = {value!r} is not a positive whole number.", "Fix that row.")
    values["measured"] = _figures(values.get("measured") or {}, name)
    if values["model"] not in shapes:
        raise PunaError(f"row {name}: model '{values['model']}' is not in 'models'.", nearest(values["model"], shapes))
    precision = "bf16" if values["precision"] == "fp16" else values["precision"]
    if precision not in PRECISIONS:
        raise PunaError(
            f"row {name}: precision '{values['precision']}' is not known.", nearest(str(precision), PRECISIONS)
        )
    recompute = values.get("recompute")
    if recompute is not None and str(recompute) not in _RECOMPUTE:
        raise PunaError(f"row {name}: recompute '{recompute}' is not known.", nearest(str(recompute), _RECOMPUTE))
    try:
        accelerator = find_accelerator(values["gpu"])
    except PunaError as error:
        raise PunaError(f"row {name}: {error}") from None
    shape = _variant(shapes[values["model"]], values)
    return PublishedRun(
        id=str(values["id"]),
        source=str(values["src"]),
        model=str(values["model"]),
        accelerator=accelerator,
        gpus=values["gpus"],
        seq_len=values["seq"],
        batch=layout["gbs"],
        precision=precision,
        stack=stack_of(values),
        shape=shape,
        known={key: value for key, value in layout.items() if value is not None},
        recompute=None if recompute is None else _RECOMPUTE[str(recompute)],
        step_seconds=_measured(values, shape),
        memory_gib=values["measured"].get("mem_gib"),
        split=str(values.get("split", "dev")),
        values=values,
    )


def _figures(measured: Any, name: object) -> dict[str, float]:
    """A row's measurements without nulls. Raises PunaError for a value that is not a positive number."""
    if not isinstance(measured, dict):
        raise PunaError(f"row {name}: measured is not a mapping.", f"Give one of {', '.join(_MEASURED)}.")
    figures = {str(key): value for key, value in measured.items() if value is not None and key in _MEASURED}
    for key, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise PunaError(f"row {name}: measured.{key} = {value!r} is not a positive number.", "Fix that row.")
    return figures


def _variant(shape: Shape, values: Mapping[str, Any]) -> Shape:
    """DeepSeek-V3 trains with a multi-token prediction layer unless a row says otherwise."""
    from dataclasses import replace

    with_mtp = values["model"] == "deepseek-v3" and "w/o MTP" not in str(values.get("variant", ""))
    return replace(shape, mtp_layers=1) if with_mtp else shape


def stack_of(values: Mapping[str, Any]) -> str:
    """The software stack of a row, by its source and description; a name in constants.toml."""
    source, system = str(values["src"]), str(values.get("system") or "")
    layout = values["layout"]
    if source == "mbridge":
        version = re.search(r"([0-9]{2})\.([0-9]{2})", str(values.get("stack", "")))
        key = (int(version[1]), int(version[2])) if version else (25, 9)
        return (
            "megatron-bridge-2025"
            if key < (26, 0)
            else "megatron-bridge-26.02"
            if key < (26, 6)
            else "megatron-bridge-26.06"
        )
    if system in ("maxtext", "paxml"):
        return system
    if source == "sc21-t2" and layout.get("fsdp"):
        return "deepspeed-zero3"
    if source == "torchtitan" and values.get("compile") is False:
        return "torchtitan-eager"
    if source == "torchtitan" and values.get("tp_overlap"):
        return "torchtitan-async"
    if source == "torchtitan" and str(values.get("stack", "")).startswith("2025"):
        return "torchtitan-2025"
    if source == "nemo-longseq" and values["gpu"].startswith("h100"):
        return "megatron-core-early"  # NeMo 24.03; its B200 rows are from 25.04
    if source == "megascale" and system == "MegaScale":
        return "megascale"
    known = {
        "sc21": "megatron-2021",
        "sc21-t2": "megatron-2021",
        "seqsel": "megatron-2022",
        "bloom": "megatron-deepspeed",
        "vtrain-multi": "megatron-deepspeed",
        "megascale": "megatron-2023",
        "opt": "metaseq",
        "fms-fsdp": "fsdp",
        "llm-foundry": "composer",
        "torchtitan": "torchtitan",
        "llama3-paper": "llama3",
        "dgxc-v25.05": "megatron-core-25.04",
        "nemo-longseq": "megatron-core-25.04",
        "nemotron4-15b-report": "megatron-core-early",
        "nemotron4-340b-report": "megatron-core-early",
    }
    return known.get(source, "megatron-core")


def _measured(values: Mapping[str, Any], shape: Shape) -> float | None:
    """Seconds of a step: as printed, else from tokens/s, else from FLOP/s in the source's convention."""
    measured, layout = values["measured"], values["layout"]
    tokens = layout["gbs"] * values["seq"]
    if "step_s" in measured:
        return float(measured["step_s"])
    if "tok_s_gpu" in measured:
        return float(tokens / (measured["tok_s_gpu"] * values["gpus"]))
    flops = tokens * shape.flops_per_token(values["seq"], causal=values["src"] not in FULL_SQUARE)
    if "model_tflops_gpu" in measured:
        return float(flops / (measured["model_tflops_gpu"] * 1e12 * values["gpus"]))
    if "hw_tflops_gpu" in measured:
        # Narayanan 2021 equation 3: F = 96·B·s·L·h²·(1 + s/6h + V/16Lh), four passes of which three are the model's.
        wide = tokens * 8.0 * (shape.block_parameters() - 2 * shape.layers * shape.hidden)
        square = tokens * 16.0 * shape.layers * values["seq"] * shape.hidden
        head = tokens * 6.0 * shape.embedding_parameters()
        return float((wide + square + head) / (measured["hw_tflops_gpu"] * 1e12 * values["gpus"]))
    if "mfu_pct" in measured:
        peak = find_accelerator(values["gpu"]).bf16_tflops * 1e12
        return float(flops / (measured["mfu_pct"] / 100 * peak * values["gpus"]))
    return None


# -- jobs --------------------------------------------------------------------------------------------------------------


def layouts_of(row: PublishedRun) -> list[LayoutColumns]:
    """Every legal reading of the row's layout; one when the source printed all of it."""
    known = row.known
    names = ("tp", "cp", "pp", "vp", "mbs")
    if "tp" not in known and "pp" not in known:  # nothing published: every power-of-two split
        sizes = [2**i for i in range(7)]
        readings = [{"tp": tp, "pp": pp} for tp in sizes[:4] for pp in sizes if row.gpus % (tp * pp) == 0]
    else:
        readings = [{}]
    result = []
    for reading in readings:
        base = {name: known.get(name, reading.get(name)) for name in names}
        tp, cp, pp = (base[name] or 1 for name in ("tp", "cp", "pp"))
        dp = max(1, row.gpus // (tp * cp * pp))  # one source's dp column does not multiply out; GPU counts do
        for vp in [base["vp"]] if base["vp"] else _interleavings(row, pp):
            for micro_batch in [base["mbs"]] if base["mbs"] else _micro_batches(row, dp, pp):
                for recompute in [row.recompute] if row.recompute else ["none", "full"]:
                    result.append(_layout(row, tp, cp, pp, vp, dp, micro_batch, recompute))
    if not result:
        raise PunaError(f"row {row.id}: no legal layout.", "Check gpus, tp, pp, gbs and the model's layers.")
    return result


def _layout(
    row: PublishedRun, tp: int, cp: int, pp: int, vp: int, dp: int, micro_batch: int, recompute: str
) -> LayoutColumns:
    old = row.stack in ("megatron-2021", "megatron-deepspeed", "megatron-2022", "metaseq")
    unsaid = "ddp" if old and row.source != "bloom" else "zero1"  # BLOOM ran DeepSpeed's stage 1
    return LayoutColumns(
        tp=tp,
        cp=cp,
        pp=pp,
        vp=vp,
        dp=dp,
        ep=row.known.get("ep", 1),
        micro_batch=micro_batch,
        sharding=SHARDING.index(_SHARDING.get(str(row.known.get("fsdp")), unsaid)),
        recompute=RECOMPUTE.index(recompute),
        sequence_parallel=bool(row.known.get("sp", tp > 1 and not old)),
    )


def _interleavings(row: PublishedRun, pp: int) -> list[int]:
    """Interleavings that a source may have used without printing them: divisors of a stage's layers."""
    unprinted = row.source in (
        "mcore-readme",
        "llama3-paper",
        "nemotron4-15b-report",
        "nemotron4-340b-report",
        "nemo-longseq",
    )
    if pp == 1 or not unprinted:
        return [1]
    per_stage = int(-(-row.shape.layers // pp))
    return [vp for vp in range(1, per_stage + 1) if per_stage % vp == 0]


def _micro_batches(row: PublishedRun, dp: int, pp: int) -> list[int]:
    """Micro-batches that divide a rank's share of the batch and fill the pipeline."""
    share = max(1, row.batch // dp)
    sizes = [size for size in (1, 2, 4, 8) if share % size == 0 and (pp == 1 or share // size >= pp)]
    return sizes or [1]


def jobs_of(rows: Sequence[PublishedRun]) -> tuple[JobColumns, np.ndarray]:
    """All readings of all rows as jobs, and for each job the index of its row.

    A row without printed recomputation gives two consecutive jobs, with none and with full recomputation.
    """
    layouts, index = [], []
    for number, row in enumerate(rows):
        readings = layouts_of(row)
        layouts += readings
        index += [number] * len(readings)
    owners = [rows[number] for number in index]
    devices = []
    for row in owners:
        device = device_columns(row.accelerator, nic_gbit_per_s=CLUSTERS.get(row.source, {}).get(row.accelerator.name))
        if row.source == "llama3-paper":
            from dataclasses import replace

            device = replace(device, pod=LLAMA3_POD, oversubscription=LLAMA3_OVERSUBSCRIPTION)
        devices.append(device)
    jobs = JobColumns(
        shape=stack_columns([row.shape for row in owners]),
        device=stack_columns(devices),
        layout=stack_columns(layouts),
        seq_len=np.array([row.seq_len for row in owners]),
        batch=np.array([row.batch for row in owners]),
        precision=np.array([PRECISIONS.index(row.precision) for row in owners]),
    )
    return jobs, np.array(index)
