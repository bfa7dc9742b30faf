"""Manifests for Kubeflow: TrainJob with its TrainingRuntime, and PyTorchJob for clusters with the older operator.

Field names and types follow the published definitions: Kubeflow Trainer 2.3.0 (manifests/base/crds) with JobSet 0.12,
and Training Operator 1.9.3 (PyTorchJob). Read in November 2026, when the files written here passed both.
"""

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


def kubeflow(job: Launch, folder: Path) -> dict[str, str]:
    """trainjob.yaml (a TrainingRuntime and its TrainJob) and pytorchjob.yaml for clusters with the old operator."""
    return {
        "trainjob.yaml": yaml_text(
            [*job.header(), "", *submit_steps(job, folder / "trainjob.yaml", "Kubeflow Trainer 2")],
            [_training_runtime(job), _train_job(job)],
        ),
        "pytorchjob.yaml": yaml_text(
            [*job.header(), "", *submit_steps(job, folder / "pytorchjob.yaml", "Kubeflow Training Operator 1")],
            [_pytorch_job(job)],
        ),
    }


def _training_runtime(job: Launch) -> dict[str, Any]:
    """A runtime for this job: the cluster's torch-distributed neither mounts storage nor restarts runs."""
    pod = {"restartPolicy": "Never", **pod_spec(job, {"name": "node", **container_mounts(job)})}
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


def _train_job(job: Launch) -> dict[str, Any]:
    trainer = {
        "image": job.image,
        # Nodes, processes and the address of the first node are in PET_* variables that the operator sets.
        "command": ["torchrun", "--no-python", "bash", WORKER],
        "env": worker_environment(job),
        "numNodes": job.nodes,
        "numProcPerNode": job.accelerators_per_node,
        "resourcesPerNode": node_resources(job),
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


def _pytorch_job(job: Launch) -> dict[str, Any]:
    container = {
        "name": "pytorch",  # the operator looks for this name
        "image": job.image,
        "command": ["torchrun", "--no-python", "bash", WORKER],
        "env": worker_environment(job),
        "resources": node_resources(job),
        **container_mounts(job),
    }
    replica = {"restartPolicy": "OnFailure", "template": {"spec": pod_spec(job, container)}}
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
