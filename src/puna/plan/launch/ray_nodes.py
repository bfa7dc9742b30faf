"""Run torchrun on every node of a Ray cluster: the entrypoint of RayJobs written by `launch.ray`.

    python -m puna.plan.launch.ray_nodes --nodes 8 --per-node 8 --directory /storage /job/worker.sh

Ray finds the nodes and holds them; torchrun starts the processes, and `puna train` does not know about either. All
nodes must be available before the first one starts (a placement group with strict spread), and the first node that
fails ends the job, which KubeRay retries with a new cluster. Ray 2 (docs.ray.io, placement groups).
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from puna.core.errors import PunaError
from puna.plan.launch.job import PORT


def torchrun_command(*, nodes: int, per_node: int, rank: int, address: str, worker: str) -> list[str]:
    """The command of node `rank`: `per_node` processes that run `worker` and rendezvous at `address`."""
    where = ["--node-rank", str(rank), "--master-addr", address, "--master-port", str(PORT)]
    size = ["--nnodes", str(nodes), "--nproc-per-node", str(per_node)]
    return ["torchrun", *size, *where, "--no-python", "bash", worker]


def run_on_nodes(*, nodes: int, per_node: int, resource: str, directory: str, worker: str) -> None:
    """Start torchrun in `directory` on `nodes` nodes that have `per_node` of `resource` ("GPU" or "CPU") free.

    Waits for the nodes and for the end. Raises PunaError when a node's torchrun fails.
    """
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init()
    group = placement_group([{resource: per_node}] * nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())

    def on(rank: int) -> dict[str, Any]:
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        amount = {"num_gpus": per_node, "num_cpus": 0} if resource == "GPU" else {"num_cpus": per_node}
        return {"scheduling_strategy": place, "max_retries": 0, **amount}

    address = ray.get(ray.remote(ray.util.get_node_ip_address).options(**on(0)).remote())
    running = {}
    for rank in range(nodes):
        command = torchrun_command(nodes=nodes, per_node=per_node, rank=rank, address=address, worker=worker)
        running[ray.remote(_exit_code).options(**on(rank)).remote(command, directory)] = rank
    while running:
        done, _ = ray.wait(list(running))
        rank, code = running.pop(done[0]), ray.get(done[0])
        if code:
            raise PunaError(f"torchrun on node {rank} of {nodes} ended with {code}.", "Its output above says why.")


def _exit_code(command: Sequence[str], directory: str) -> int:
    return subprocess.run(command, cwd=directory, check=False).returncode


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line and run. Exits with 1 when a node fails."""
    parser = argparse.ArgumentParser(
        prog="python -m puna.plan.launch.ray_nodes", description="torchrun on every Ray node"
    )
    parser.add_argument("--nodes", type=int, required=True, help="nodes to wait for")
    parser.add_argument("--per-node", type=int, required=True, help="processes on a node, one for each accelerator")
    parser.add_argument("--resource", choices=("GPU", "CPU"), default="GPU", help="what a process takes one of")
    parser.add_argument("--directory", default=".", help="folder with corpora/ and runs/, the same on every node")
    parser.add_argument("worker", help="script that each process runs")
    try:
        run_on_nodes(**vars(parser.parse_args(words)))
    except PunaError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
