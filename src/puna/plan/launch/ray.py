"""A manifest for Ray on Kubernetes: a RayJob whose entrypoint starts torchrun on every node (`ray_nodes`).

Field names and types follow KubeRay 1.7.0 (RayJob; the same fields are in 1.4.2). Read in November 2026, when the file
written here passed it.
"""

import shlex
from pathlib import Path
from typing import Any

from puna.plan.launch.job import Launch
from puna.plan.launch.kubernetes import (
    WORKER,
    container_mounts,
    node_resources,
    pod_spec,
    submit_steps,
    worker_environment,
    yaml_text,
)


def ray(job: Launch, folder: Path) -> dict[str, str]:
    """rayjob.yaml: a head without accelerators, and a worker pod with torchrun for each node."""
    resource = "CPU" if job.accelerator.generation == "cpu" else "GPU"
    entrypoint = ["python", "-m", "puna.plan.launch.ray_nodes", "--nodes", str(job.nodes), "--per-node"]
    entrypoint += [str(job.accelerators_per_node), "--resource", resource, "--directory", job.storage_dir, WORKER]
    head = {
        "name": "ray-head",
        "image": job.image,
        "resources": {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"memory": "8Gi"}},
        **container_mounts(job),
    }
    node = {
        "name": "ray-worker",
        "image": job.image,
        "env": worker_environment(job),
        "resources": node_resources(job),
        **container_mounts(job),
    }
    spec: dict[str, Any] = {
        "entrypoint": shlex.join(entrypoint),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "backoffLimit": job.max_restarts,  # each retry is a new cluster
        "rayClusterSpec": {
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": pod_spec(job, head)}},
            "workerGroupSpecs": [
                {
                    "groupName": "nodes",
                    "replicas": job.nodes,
                    "minReplicas": job.nodes,
                    "maxReplicas": job.nodes,
                    "rayStartParams": {},
                    "template": {"spec": pod_spec(job, node)},
                }
            ],
        },
    }
    if job.wall_seconds:
        spec["activeDeadlineSeconds"] = job.wall_seconds
    lines = [*submit_steps(job, folder / "rayjob.yaml", "KubeRay 1"), "The image has Ray in it too: ray[default]."]
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": job.name}, "spec": spec}
    return {"rayjob.yaml": yaml_text([*job.header(), "", *lines], [manifest])}
