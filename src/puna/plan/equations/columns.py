"""Models on devices in layouts, as columns of numbers: the input of the cost model.

Nothing here computes. Every field is a number or an array with one number per job, and NumPy broadcasts them: a search
is one shape on one device under many layouts, a validation is many rows in which everything differs. Both call the same
equations (`cost`, `memory`).
"""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from puna.plan.equations.hardware import Accelerator
from puna.plan.equations.shape import Number, Shape

# Number formats of the linear layers' matrix products; the `precision` column holds indices into them.
PRECISIONS = ("fp32", "bf16", "fp8", "mxfp8", "nvfp4")


@dataclass(frozen=True)
class DeviceColumns:
    """Rates of an accelerator and its place in the network, in FLOP/s, bytes/s, bytes and watts."""

    peak: Number  # (..., len(PRECISIONS)) dense FLOP/s by precision
    memory_bytes: Number
    memory_rate: Number
    link_rate: Number  # scale-up, one direction
    link_domain: Number  # accelerators connected by it
    nic_rate: Number  # scale-out, one direction, per accelerator
    watts: Number
    pod: Number = np.inf  # accelerators below the first oversubscribed switch
    oversubscription: Number = 1.0


@dataclass(frozen=True)
class LayoutColumns:
    """How a model is spread over tp·cp·pp·dp devices; experts over `ep` of the dp·cp ranks."""

    tp: Number = 1
    cp: Number = 1
    pp: Number = 1
    vp: Number = 1  # model chunks a pipeline stage holds (interleaving)
    dp: Number = 1
    ep: Number = 1
    micro_batch: Number = 1  # sequences
    sharding: Number = 1  # an index into SHARDING: zero1
    recompute: Number = 0  # an index into RECOMPUTE: none
    sequence_parallel: Number = True
    dp_shard: Number = 0  # for hsdp: of the dp ranks, how many share a copy; 0: as many as the scale-up domain holds

    def shard_ranks(self, link_domain: Number) -> Number:
        """Ranks of dp and cp that share one copy of the weights under hsdp."""
        inside = np.clip(np.asarray(link_domain) // np.asarray(self.tp), 1, np.asarray(self.dp) * self.cp)
        shard = np.asarray(self.dp_shard)
        return np.where(shard > 0, shard * np.asarray(self.cp), inside)

    @property
    def accelerators(self) -> Number:
        """The number of devices a layout needs."""
        return np.asarray(self.tp) * self.cp * self.pp * self.dp


@dataclass(frozen=True)
class JobColumns:
    """Training jobs: a shape on a device in a layout, with sequences of `seq_len` tokens, `batch` of them a step."""

    shape: Shape
    device: DeviceColumns
    layout: LayoutColumns
    seq_len: Number
    batch: Number
    precision: Number = 1  # an index into PRECISIONS: bf16

    @property
    def micro_batches(self) -> Number:
        """Forward and backward passes of one rank in a step."""
        return np.asarray(self.batch) / (np.asarray(self.layout.dp) * self.layout.micro_batch)

    @property
    def tokens(self) -> Number:
        """Tokens that one rank holds in one pass."""
        return np.asarray(self.layout.micro_batch) * self.seq_len / np.asarray(self.layout.cp)

    def peak_flops(self) -> Number:
        """Dense peak of each job's own precision, FLOP/s."""
        return self.peak_of(self.precision)

    def peak_of(self, precision: Number) -> Number:
        """Dense peak of `precision` (a code, or one a job), FLOP/s."""
        peak = np.asarray(self.device.peak, dtype=float)
        if peak.ndim == 1:
            return peak[np.asarray(precision)]
        return np.take_along_axis(peak, np.broadcast_to(np.asarray(precision), peak.shape[:1])[:, None], 1)[:, 0]


def device_columns(accelerator: Accelerator, *, nic_gbit_per_s: float | None = None) -> DeviceColumns:
    """The columns of one accelerator.

    nic_gbit_per_s: where a cluster's network differs from the reference system's.
    """
    bf16 = accelerator.bf16_tflops * 1e12
    fp8 = (accelerator.fp8_tflops or accelerator.bf16_tflops) * 1e12
    fp4 = (accelerator.fp4_tflops or accelerator.fp8_tflops or accelerator.bf16_tflops) * 1e12
    # Without fp8 units an fp8 product runs at the bf16 rate, so such a plan is not faster.
    nic = accelerator.nic_gbit_per_s if nic_gbit_per_s is None else nic_gbit_per_s
    return DeviceColumns(
        peak=np.array([accelerator.peak_tflops("fp32") * 1e12, bf16, fp8, fp8, fp4]),
        memory_bytes=accelerator.usable_bytes,
        memory_rate=accelerator.memory_gb_per_s * 1e9,
        link_rate=accelerator.link_gb_per_s * 1e9,
        link_domain=accelerator.link_domain,
        nic_rate=(nic or 0) * 1e9 / 8,
        watts=accelerator.watts,
    )


def take(jobs: Any, rows: np.ndarray) -> Any:
    """Select rows of a record of columns (JobColumns and its parts)."""
    values = {field.name: getattr(jobs, field.name) for field in fields(jobs)}
    return type(jobs)(**{name: take(v, rows) if is_dataclass(v) else v[rows] for name, v in values.items()})


def stack_columns(items: list[Any]) -> Any:
    """Stack records of one dataclass into one whose fields are columns, one row per record."""
    kind = type(items[0])
    return kind(**{field.name: np.array([getattr(item, field.name) for item in items]) for field in fields(kind)})
