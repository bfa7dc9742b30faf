"""Parts that manifests for Kubernetes share: pods, their mounts, and how to submit them.

Pods mount two things: the folder written by `emit` at /job, from a ConfigMap, and the storage that all of them share,
from a PersistentVolumeClaim. A failure restarts all pods together, since a synchronous run cannot lose one, and
worker.sh resumes the run.
"""

import shlex
from pathlib import Path
from typing import Any

from puna.plan.launch.job import Launch, comment

JOB_MOUNT = "/job"
WORKER = f"{JOB_MOUNT}/worker.sh"
_FABRIC = (
    "A fast network between nodes may need resources of the cluster (rdma/..., hostNetwork): add them to the pods."
)


def submit_steps(job: Launch, path: Path, operator: str) -> list[str]:
    """How to submit the manifest at `path`, as lines of a comment."""
    files = " ".join(f"--from-file={shlex.quote(str(path.parent / name))}" for name in ("recipe.toml", "worker.sh"))
    return [
        f"For a cluster with {operator} and a ReadWriteMany claim '{job.storage_claim}' that has corpora/ in it:",
        f"kubectl create configmap {job.name} {files}",
        f"kubectl create -f {shlex.quote(str(path))}",
        *([_FABRIC] if job.nodes > 1 else []),
    ]


def worker_environment(job: Launch) -> list[dict[str, str]]:
    """Variables that every worker needs."""
    return [{"name": "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "value": str(job.stop_seconds)}]


def node_resources(job: Launch) -> dict[str, Any]:
    """Resource requests of a node's pod."""
    generation, count = job.accelerator.generation, job.accelerators_per_node
    if generation == "cpu":
        return {"requests": {"cpu": str(count)}}
    return {"limits": {"amd.com/gpu" if generation.startswith("cdna") else "nvidia.com/gpu": count}}


def container_mounts(job: Launch) -> dict[str, Any]:
    """Working folder and mounts that a container needs to run worker.sh."""
    return {
        "workingDir": job.storage_dir,
        "volumeMounts": [
            {"name": "job", "mountPath": JOB_MOUNT, "readOnly": True},
            {"name": "storage", "mountPath": job.storage_dir},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }


def pod_spec(job: Launch, container: dict[str, Any]) -> dict[str, Any]:
    """The pod around a container, with the job and the storage as volumes."""
    return {
        # torchrun waits stop_seconds for its processes, then needs a moment itself.
        "terminationGracePeriodSeconds": job.stop_seconds + 30,
        "containers": [container],
        "volumes": [
            {"name": "job", "configMap": {"name": job.name}},
            {"name": "storage", "persistentVolumeClaim": {"claimName": job.storage_claim}},
            # The default is 64 MiB of shared memory; NCCL needs more for eight processes.
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }


def yaml_text(lines: list[str], documents: list[dict[str, Any]]) -> str:
    """YAML documents under a comment of `lines`."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes scripts as literal blocks and repeated parts without anchors."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    body = yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=10_000, allow_unicode=True)
    return comment(lines) + body
