"""Launch files that a platform reads: Kubeflow (TrainJob, and PyTorchJob before it), SkyPilot, and Ray on Kubernetes.

Field names and types follow the published definitions: Kubeflow Trainer 2.3.0 (manifests/base/crds) with JobSet 0.12,
Training Operator 1.9.3 (PyTorchJob), KubeRay 1.7.0 (RayJob; the same fields are in 1.4.2), SkyPilot 0.14.1
(sky/utils/schemas.py). Read in November 2026, when the files written here passed all of them.

Pods mount two things: the folder written here at /job, from a ConfigMap, and the storage that all of them share, from
a PersistentVolumeClaim. What goes wrong restarts all pods together, since a synchronous run cannot lose one, and
worker.sh resumes the run.
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.plan.emit_scripts import PORT, comment
from puna.plan.hardware import Accelerator

if TYPE_CHECKING:
    from puna.plan.emit import Launch

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

_JOB = "/job"
_WORKER = f"{_JOB}/worker.sh"
_FABRIC = (
    "A fast network between nodes may need resources of the cluster (rdma/..., hostNetwork): add them to the pods."
)


def kubeflow(job: "Launch", folder: Path) -> dict[str, str]:
    """trainjob.yaml (a TrainingRuntime and its TrainJob) and pytorchjob.yaml for clusters with the old operator."""
    return {
        "trainjob.yaml": _yaml(
            [*job.header(), "", *_kubernetes_steps(job, folder / "trainjob.yaml", "Kubeflow Trainer 2")],
            [_training_runtime(job), _train_job(job)],
        ),
        "pytorchjob.yaml": _yaml(
            [*job.header(), "", *_kubernetes_steps(job, folder / "pytorchjob.yaml", "Kubeflow Training Operator 1")],
            [_pytorch_job(job)],
        ),
    }


def _kubernetes_steps(job: "Launch", path: Path, operator: str) -> list[str]:
    files = " ".join(f"--from-file={shlex.quote(str(path.parent / name))}" for name in ("recipe.toml", "worker.sh"))
    return [
        f"For a cluster with {operator} and a ReadWriteMany claim '{job.storage_claim}' that has corpora/ in it:",
        f"kubectl create configmap {job.name} {files}",
        f"kubectl create -f {shlex.quote(str(path))}",
        *([_FABRIC] if job.nodes > 1 else []),
    ]


def _training_runtime(job: "Launch") -> dict[str, Any]:
    """A runtime of the job's own: the cluster's torch-distributed mounts no storage and restarts no run."""
    pod = {"restartPolicy": "Never", **_pod(job, {"name": "node", **_container(job)})}
    ancestor = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {"name": job.name, "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": job.nodes, "torch": {}},
            "template": {
                "spec": {
                    "failurePolicy": {"maxRestarts": job.max_restarts},
                    "replicatedJobs": [
                        {
                            "name": "node",
                            "template": {
                                "metadata": {"labels": ancestor},
                                "spec": {"backoffLimit": 0, "template": {"spec": pod}},
                            },
                        }
                    ],
                }
            },
        },
    }


def _train_job(job: "Launch") -> dict[str, Any]:
    trainer = {
        "image": job.image,
        # Nodes, processes and the address of the first node are in PET_* variables that the operator sets.
        "command": ["torchrun", "--no-python", "bash", _WORKER],
        "env": _environment(job),
        "numNodes": job.nodes,
        "numProcPerNode": job.accelerators_per_node,
        "resourcesPerNode": _resources(job),
    }
    runtime = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": job.name}
    spec: dict[str, Any] = {"runtimeRef": runtime, "trainer": trainer}
    if job.wall_seconds:
        spec["activeDeadlineSeconds"] = job.wall_seconds
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": job.name},
        "spec": spec,
    }


def _pytorch_job(job: "Launch") -> dict[str, Any]:
    container = {
        "name": "pytorch",  # the operator looks for this name
        "image": job.image,
        "command": ["torchrun", "--no-python", "bash", _WORKER],
        "env": _environment(job),
        "resources": _resources(job),
        **_container(job),
    }
    replica = {"restartPolicy": "OnFailure", "template": {"spec": _pod(job, container)}}
    replicas = {"Master": {"replicas": 1, **replica}}
    if job.nodes > 1:
        replicas["Worker"] = {"replicas": job.nodes - 1, **replica}
    # The operator adds up the restarts of all containers, which restart together, and gives up when the sum has
    # reached the limit (pkg/core/job.go, PastBackoffLimit).
    policy: dict[str, Any] = {"cleanPodPolicy": "Running", "backoffLimit": job.max_restarts * job.nodes + 1}
    if job.wall_seconds:
        policy["activeDeadlineSeconds"] = job.wall_seconds
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": job.name},
        "spec": {
            "runPolicy": policy,
            "nprocPerNode": str(job.accelerators_per_node),
            "pytorchReplicaSpecs": replicas,
        },
    }


def ray(job: "Launch", folder: Path) -> dict[str, str]:
    """rayjob.yaml: a head without accelerators, and a worker pod for each node on which torchrun is started."""
    resource = "CPU" if job.accelerator.generation == "cpu" else "GPU"
    entrypoint = ["python", "-m", "puna.plan.ray_nodes", "--nodes", str(job.nodes), "--per-node"]
    entrypoint += [str(job.accelerators_per_node), "--resource", resource, "--directory", job.storage_dir, _WORKER]
    head = {
        "name": "ray-head",
        "image": job.image,
        "resources": {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"memory": "8Gi"}},
        **_container(job),
    }
    node = {
        "name": "ray-worker",
        "image": job.image,
        "env": _environment(job),
        "resources": _resources(job),
        **_container(job),
    }
    spec: dict[str, Any] = {
        "entrypoint": shlex.join(entrypoint),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "backoffLimit": job.max_restarts,  # each retry is a new cluster
        "rayClusterSpec": {
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": _pod(job, head)}},
            "workerGroupSpecs": [
                {
                    "groupName": "nodes",
                    "replicas": job.nodes,
                    "minReplicas": job.nodes,
                    "maxReplicas": job.nodes,
                    "rayStartParams": {},
                    "template": {"spec": _pod(job, node)},
                }
            ],
        },
    }
    if job.wall_seconds:
        spec["activeDeadlineSeconds"] = job.wall_seconds
    lines = [*_kubernetes_steps(job, folder / "rayjob.yaml", "KubeRay 1"), "The image has Ray in it too: ray[default]."]
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": job.name}, "spec": spec}
    return {"rayjob.yaml": _yaml([*job.header(), "", *lines], [manifest])}


def skypilot(job: "Launch", folder: Path) -> dict[str, str]:
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
    return {"job.yaml": _yaml(lines, [task])}


def skypilot_name(accelerator: Accelerator) -> str:
    """How SkyPilot spells it; a name that is not in SKYPILOT_NAMES in capitals, as most of its names are."""
    return SKYPILOT_NAMES.get(accelerator.name, accelerator.name.upper())


# -- parts of a pod --------------------------------------------------------------------------------------------------


def _environment(job: "Launch") -> list[dict[str, str]]:
    return [{"name": "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "value": str(job.stop_seconds)}]


def _resources(job: "Launch") -> dict[str, Any]:
    generation, count = job.accelerator.generation, job.accelerators_per_node
    if generation == "cpu":
        return {"requests": {"cpu": str(count)}}
    return {"limits": {"amd.com/gpu" if generation.startswith("cdna") else "nvidia.com/gpu": count}}


def _container(job: "Launch") -> dict[str, Any]:
    """What a container of any kind needs to run worker.sh: the storage as its folder, and what it mounts."""
    return {
        "workingDir": job.storage_dir,
        "volumeMounts": [
            {"name": "job", "mountPath": _JOB, "readOnly": True},
            {"name": "storage", "mountPath": job.storage_dir},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }


def _pod(job: "Launch", container: dict[str, Any]) -> dict[str, Any]:
    return {
        # torchrun waits stop_seconds for its processes; then it needs a moment itself.
        "terminationGracePeriodSeconds": job.stop_seconds + 30,
        "containers": [container],
        "volumes": [
            {"name": "job", "configMap": {"name": job.name}},
            {"name": "storage", "persistentVolumeClaim": {"claimName": job.storage_claim}},
            # A container has 64 MiB of shared memory otherwise; NCCL needs more for eight processes.
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _yaml(lines: list[str], documents: list[dict[str, Any]]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Scripts as blocks of lines, and repeated parts written out rather than as anchors."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    body = yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=10_000, allow_unicode=True)
    return comment(lines) + body
