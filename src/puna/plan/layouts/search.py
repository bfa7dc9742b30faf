"""Cost every legal layout of a model on a number of accelerators at once.

The search is exhaustive: all sizes of the parallel dimensions that divide, all interleavings, micro-batches, shardings
and recomputations of the software stack, filtered by its rules, then one call of `cost` and `memory` over columns with
one row per layout. Nothing is pruned by heuristics, so the result is the best layout under the model.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from puna.core.errors import PunaError
from puna.model.layout import RECOMPUTE, SHARDING, shard_size
from puna.plan.equations.columns import DeviceColumns, JobColumns, LayoutColumns
from puna.plan.equations.cost import total_seconds
from puna.plan.equations.cost_model import CostModel
from puna.plan.equations.memory import fits, total
from puna.plan.equations.shape import Shape

MICRO_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Workload:
    """The job before a layout is chosen."""

    shape: Shape
    device: DeviceColumns
    generation: str
    accelerators: int
    seq_len: int
    batch: int  # sequences a step
    precision: int  # index into columns.PRECISIONS
    costs: CostModel


@dataclass(frozen=True)
class SearchResult:
    """All legal layouts of a workload with time and memory, by step time, those that fit first."""

    jobs: JobColumns
    step_seconds: np.ndarray
    memory_bytes: np.ndarray
    fits: np.ndarray

    def __len__(self) -> int:
        return len(self.step_seconds)


def search(workload: Workload) -> SearchResult:
    """Cost every legal layout. Raises PunaError when there is none."""
    layouts = legal_layouts(workload)
    jobs = jobs_for(workload, layouts)
    seconds = np.asarray(total_seconds(workload.costs.step_parts(jobs, workload.generation)))
    parts = workload.costs.memory_parts(jobs)
    needed = np.broadcast_to(np.asarray(total(parts), dtype=float), seconds.shape)
    able = np.broadcast_to(fits(parts, workload.device.memory_bytes), seconds.shape)
    order = np.lexsort((needed, seconds, ~able))
    return SearchResult(jobs_for(workload, _rows(layouts, order)), seconds[order], needed[order], able[order])


def jobs_for(workload: Workload, layouts: LayoutColumns) -> JobColumns:
    """One workload under many layouts."""
    return JobColumns(workload.shape, workload.device, layouts, workload.seq_len, workload.batch, workload.precision)


def legal_layouts(workload: Workload) -> LayoutColumns:
    """All layouts that the model, the batch and the stack allow, as columns."""
    columns = [np.concatenate(parts) for parts in zip(*_grids(workload), strict=True)]
    if not columns:
        raise PunaError(
            f"No layout of {workload.accelerators} accelerators divides a batch of {workload.batch} sequences of "
            f"{workload.seq_len} tokens.",
            "Make the batch a multiple of the number of data-parallel ranks (--batch), or change the fleet.",
        )
    return LayoutColumns(*columns)


def _grids(workload: Workload) -> Iterator[list[np.ndarray]]:
    """For each split into tp, cp, pp and dp all other choices, one array per field of LayoutColumns."""
    shape, count = workload.shape, workload.accelerators
    stack = workload.costs.facts
    layers, heads, kv_heads = int(shape.layers), int(shape.heads), int(shape.kv_heads)
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    domain = int(workload.device.link_domain)
    # A rank has whole key-value heads; beyond their number Megatron copies them, which no stack does by default.
    tensor = [n for n in divisors if n <= domain and heads % n == 0 and kv_heads % n == 0]
    context = [n for n in divisors if workload.seq_len % (2 * n) == 0 or n == 1]
    pipeline = [n for n in divisors if n <= layers]
    if not stack.model_parallel:
        tensor, context, pipeline = [1], [1], [1]
    for tp, cp, pp in itertools.product(tensor, context, pipeline):
        if count % (tp * cp * pp):
            continue
        dp = count // (tp * cp * pp)
        if workload.batch % dp or workload.seq_len // cp < 128 * (cp > 1):
            continue
        share = workload.batch // dp
        per_stage = -(-layers // pp)
        interleaved = [vp for vp in range(1, per_stage + 1) if per_stage % vp == 0] if pp > 1 else [1]
        micro = [size for size in MICRO_BATCHES if share % size == 0]
        experts = int(shape.experts)
        expert = [n for n in divisors if experts and experts % n == 0 and (dp * cp) % n == 0] or [1]
        sharding = [
            SHARDING.index(name) for name in stack.shardings if pp == 1 or not name.startswith(("zero3", "hsdp"))
        ]
        if not sharding:
            continue
        shard_sizes = np.array([shard_size(name, dp, tp, cp, domain) for name in SHARDING])
        recompute = [RECOMPUTE.index(name) for name in stack.recomputations]
        grid = np.array(list(itertools.product(interleaved, expert, micro, sharding, recompute)))
        vp, ep, size, shards, recomputed = grid.T
        # 1F1B fills a pipeline with at least pp micro-batches; interleaving moves them in groups of pp [Narayanan
        # 2021].
        passes = share // size
        keep = (pp == 1) | ((passes >= pp) & ((vp == 1) | (passes % pp == 0)))
        rows = int(keep.sum())
        if rows:
            fixed = [np.full(rows, value) for value in (tp, cp, pp)]
            yield [
                *fixed,
                vp[keep],
                np.full(rows, dp),
                ep[keep],
                size[keep],
                shards[keep],
                recomputed[keep],
                np.full(rows, tp > 1),
                shard_sizes[shards[keep]],
            ]


def _rows(layouts: LayoutColumns, order: np.ndarray) -> LayoutColumns:
    return LayoutColumns(**{field.name: getattr(layouts, field.name)[order] for field in fields(LayoutColumns)})


def distinct(found: SearchResult, count: int) -> list[int]:
    """Rows of the `count` fastest layouts that fit and differ in more than recomputation or sharding."""
    seen: set[tuple[object, ...]] = set()
    rows: list[int] = []
    layout = found.jobs.layout
    for row in range(len(found)):
        if not found.fits[row] or len(rows) == count:
            break
        key = tuple(np.asarray(getattr(layout, name))[row].item() for name in ("tp", "cp", "pp", "dp", "ep"))
        if key not in seen:
            seen.add(key)
            rows.append(row)
    return rows


def pareto(found: SearchResult) -> list[int]:
    """Rows of the Pareto front of time and memory, by rising memory."""
    order = np.argsort(found.memory_bytes, kind="stable")
    best, rows = np.inf, []
    for row in order:
        if found.step_seconds[row] < best:
            best = found.step_seconds[row]
            rows.append(int(row))
    return rows
