"""Measure how fast devices exchange tensors over torch.distributed, NCCL or gloo.

The collectives are all-reduce and all-gather. Inside a run that a launcher started, its own processes are measured.
Otherwise processes are started for the purpose: one per GPU, or two on a CPU, which share its cores as training
processes would. Such a process is `python -m puna.train.measure.collectives DEVICE BYTES FILE`; the first one writes
the result.
"""

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from puna.core.errors import PunaError
from puna.core.files import read_json, write_json

# Message size in bytes, large enough that bandwidth dominates latency.
_LARGE = {"cuda": 256 * 2**20, "cpu": 32 * 2**20}
_QUICK = {"cuda": 64 * 2**20, "cpu": 4 * 2**20}
_CALLS = 10


def collective_rates(device: str, *, quick: bool = False) -> dict[str, float]:
    """Measure bus bandwidths in GB/s, and the seconds to all-reduce one number.

    Returns fields of `plan.machine.Calibration`. Bus bandwidth is what each rank sends per second: 2·(n-1)/n of the
    message in an all-reduce, (n-1)/n of the complete tensor in an all-gather (nccl-tests, doc/PERFORMANCE.md). Empty
    when there is only one process or GPU, or when processes cannot be joined ("mps"). Raises PunaError when processes
    that were started for it fail.
    """
    size = (_QUICK if quick else _LARGE).get(device)
    if size is None:
        return {}
    if "RANK" in os.environ:
        return _measure(device, size) if int(os.environ["WORLD_SIZE"]) > 1 else {}
    import torch

    processes = torch.cuda.device_count() if device == "cuda" else 2
    return _started(device, size, processes) if processes > 1 else {}


def _started(device: str, size: int, processes: int) -> dict[str, float]:
    from puna.train.run.launch import launch

    with tempfile.TemporaryDirectory(prefix="puna-") as folder:
        result = Path(folder, "rates.json")
        code = launch(
            [sys.executable, "-m", "puna.train.measure.collectives", device, str(size), str(result)], processes
        )
        if code == 130:
            raise KeyboardInterrupt
        if code or not result.exists():
            raise PunaError(
                f"The {processes} processes that measure collectives failed with exit code {code}.",
                "Their output is above.",
            )
        return {name: float(value) for name, value in read_json(result).items()}


def _measure(device: str, size: int) -> dict[str, float]:
    """Measure the rates among the processes of this run, joining them first if needed."""
    import torch
    import torch.distributed as dist

    from puna.train.parallel import join_world

    if not dist.is_initialized():
        with join_world():
            return _measure(device, size)
    ranks = dist.get_world_size()
    share = max(1, size // 4 // ranks)  # numbers in fp32
    part, whole = torch.ones(share, device=device), torch.ones(share * ranks, device=device)
    number = torch.ones(1, device=device)
    sent = 4.0 * len(whole) * (ranks - 1) / ranks

    def seconds(run: Callable[[], object]) -> float:
        """Mean over the same number of calls on every rank.

        A rank that made fewer calls would leave the others waiting.
        """
        run()
        dist.barrier()
        started = time.perf_counter()
        for _ in range(_CALLS):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / _CALLS

    # Torch 2.13 calls it all_gather_single; 2.11 does not have that name.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor", category=FutureWarning)
    return {
        "allreduce_gb_per_s": 2 * sent / seconds(lambda: dist.all_reduce(whole)) / 1e9,
        "allgather_gb_per_s": sent / seconds(lambda: dist.all_gather_into_tensor(whole, part)) / 1e9,
        "latency_seconds": seconds(lambda: dist.all_reduce(number)),
    }


if __name__ == "__main__":
    found = _measure(sys.argv[1], int(sys.argv[2]))
    if os.environ["RANK"] == "0":
        write_json(Path(sys.argv[3]), found)
