"""A SkyPilot task, for clouds and clusters; `sky jobs launch` restarts it when a node is lost or it fails.

Fields follow SkyPilot 0.14.1 (sky/utils/schemas.py). Read in November 2026, when the file written here passed it.
"""

import shlex
from pathlib import Path
from typing import Any

from puna.plan.equations.hardware import Accelerator
from puna.plan.launch.job import PORT, Launch
from puna.plan.launch.kubernetes import yaml_text

# How SkyPilot 0.14.1 spells accelerators (sky/utils/gpu_names.py and the fetchers of sky/catalog, October 2026).
SKYPILOT_NAMES = {
    "a100-40g": "A100",
    "a100-80g": "A100-80GB",
    "h100-sxm": "H100",
    "h200": "H200",
    "b200": "B200",
    "b300": "B300",
    "gb200": "GB200",
    "gb300": "GB300",
    "mi300x": "MI300X",
    "rtx4090": "RTX4090",
    "rtx5090": "RTX5090",
}


def skypilot(job: Launch, folder: Path) -> dict[str, str]:
    """job.yaml, a SkyPilot task; `sky jobs launch` restarts it when a node is lost or it fails."""
    path = shlex.quote(str(folder / "job.yaml"))
    lines = [
        *job.header(),
        "",
        f"Run it from here:  sky jobs launch {path}",
        f"The volume '{job.storage_claim}' has corpora/ in it; make it first with sky volumes apply.",
    ]
    resources: dict[str, Any] = {"image_id": f"docker:{job.image}"}
    if job.accelerator.generation == "cpu":
        resources["cpus"] = f"{job.accelerators_per_node}+"
    else:
        resources["accelerators"] = f"{skypilot_name(job.accelerator)}:{job.accelerators_per_node}"
    if job.nodes > 1:
        resources["network_tier"] = "best"
    resources["job_recovery"] = {"max_restarts_on_errors": job.max_restarts}
    run = f"""job=$PWD
cd {shlex.quote(job.storage_dir)}
head=${{SKYPILOT_NODE_IPS%%$'\\n'*}}
exec torchrun --nnodes {job.nodes} --nproc-per-node {job.accelerators_per_node} \\
  --node-rank "$SKYPILOT_NODE_RANK" --master-addr "$head" --master-port {PORT} \\
  --no-python bash "$job/worker.sh"
"""
    task = {
        "name": job.name,
        "workdir": str(folder),  # copied to every node; `run` begins in it
        "num_nodes": job.nodes,
        "resources": resources,
        "volumes": {job.storage_dir: job.storage_claim},
        "envs": {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(job.stop_seconds)},
        "run": run,
    }
    return {"job.yaml": yaml_text(lines, [task])}


def skypilot_name(accelerator: Accelerator) -> str:
    """SkyPilot's name for an accelerator; an unknown one in capitals, like most of its names."""
    return SKYPILOT_NAMES.get(accelerator.name, accelerator.name.upper())
