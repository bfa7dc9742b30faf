"""One network, many layouts: DDP, FSDP2 and HSDP give the losses and weights of one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from puna.core.errors import PunaError
from puna.model.layout import LayoutConfig, share_batch
from puna.train import parallel
from puna.train.recipe import TrainConfig

WORKER = Path(__file__).with_name("parallel_worker.py")


def _run(tmp_path: Path, processes: int, layout: str = "{}", recompute: str = "none", micro: int = 0) -> dict:
    out = tmp_path / f"{processes}-{recompute}-{micro}-{abs(hash(layout))}.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = (launch if processes > 1 else [sys.executable]) + [str(WORKER), layout, recompute, str(micro), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stderr[:6000]} … {done.stderr[-2000:]}"
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.parametrize(
    ("processes", "layout", "recompute", "micro"),
    [
        (1, "{}", "full", 0),
        (1, "{}", "selective", 2),
        (2, '{"dp_replicate": 2, "dp_shard": 1}', "none", 2),  # DDP, accumulating
        (2, '{"dp_shard": 2}', "none", 2),  # FSDP2, accumulating; three matrices a stack over two owners
        (4, '{"dp_replicate": 2, "dp_shard": 2}', "full", 0),  # HSDP
    ],
)
def test_every_layout_trains_like_one_process(alone, tmp_path, processes, layout, recompute, micro):
    result = _run(tmp_path, processes, layout, recompute, micro)
    assert result["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert result["weights"] == pytest.approx(alone["weights"], abs=2e-3)
    assert alone["losses"][-1] != alone["losses"][0]


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(PunaError, match="multiple of 3"):
        share_batch(8, 0, 3)
    with pytest.raises(PunaError, match="divisor of 4"):
        share_batch(8, 3, 2)
    assert share_batch(8, 2, 2) == (2, 2)


def test_a_world_alone_has_all_rows_and_sums_are_its_own():
    world = parallel.arrange(
        parallel.World(0, 1, torch.device("cpu")), LayoutConfig(dp_shard=1).resolve(1, batch=8, micro_batch=2)
    )
    assert (world.data_rank, world.data_size, world.mesh) == (0, 1, None)
    assert parallel.share_of_batch(8, world) == (0, 2, 4)
    assert parallel.sum_over_ranks(torch.tensor(3.0), world).item() == 3
    assert parallel.gather_over_ranks("mine", world) == ["mine"]


def test_a_layout_that_needs_other_processes_is_refused():
    with pytest.raises(PunaError, match="needs 4 processes, but 3 are running"):
        LayoutConfig(dp_replicate=2, dp_shard=2).resolve(3)
    assert LayoutConfig(dp_replicate=2).resolve(8).dp_shard == 4


def test_auto_precision_is_settled_by_the_device():
    cpu = parallel.resolve_precision(TrainConfig(), torch.device("cpu"))
    assert cpu in ("mixed", "fp32")
    assert parallel.resolve_precision(TrainConfig(precision="bf16"), torch.device("cpu")) == "bf16"
