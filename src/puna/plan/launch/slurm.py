"""A launch file for Slurm 22.05 and newer (slurm.schedmd.com: sbatch, srun, scancel, scontrol).

Slurm warns the batch script before the wall time ends; the script stops the job's step and requeues the job. After a
failure it is requeued too, as often as `max_restarts` says; when a node dies Slurm does that by itself.
"""

import shlex
from pathlib import Path

from puna.plan.launch.job import PORT, Launch, comment


def slurm(job: Launch, folder: Path) -> dict[str, str]:
    """job.sbatch: one task a node, each a torchrun; requeued at the wall time and after failures."""
    directives = [
        f"--job-name={job.name}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        *([f"--gpus-per-node={job.accelerators_per_node}"] if job.accelerator.generation != "cpu" else []),
        "--exclusive",
        "--mem=0",  # all of it
        *([f"--time={_slurm_time(job.wall_seconds)}"] if job.wall_seconds else []),
        f"--signal=B:USR1@{job.stop_seconds}",
        "--requeue",
        "--open-mode=append",
        "--output=%x-%j.log",
    ]
    how = [
        f"Submit it from here:  sbatch {shlex.quote(str(folder / 'job.sbatch'))}",
        "Partition, account and the fabric's variables belong to the site: give them to sbatch or export them.",
    ]
    container = ""
    if job.image:  # pyxis (github.com/NVIDIA/pyxis)
        image = shlex.quote(job.image)
        container = (
            f' \\\n  --container-image={image} --container-mounts="$job:$job,$PWD:$PWD" --container-workdir="$PWD"'
        )
    return {
        "job.sbatch": f"""#!/usr/bin/env bash
{comment([*job.header(), "", *how])}{"".join(f"#SBATCH {line}{chr(10)}" for line in directives)}
set -euo pipefail
job={shlex.quote(str(folder))}
job=${{JOB_DIR:-$job}}
[ -f "$job/worker.sh" ] || {{ echo "$job/worker.sh is missing: set JOB_DIR to its folder." >&2; exit 2; }}
job=$(cd "$job" && pwd)
cd {shlex.quote(job.storage_dir)}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${{hosts%%$'\\n'*}}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={job.stop_seconds}

# {job.stop_seconds} seconds before the wall time: every process saves and leaves, and the job queues again.
expired=
trap 'expired=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1

srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --kill-on-bad-exit=1{container} \\
  torchrun --nnodes {job.nodes} --nproc-per-node {job.accelerators_per_node} --rdzv-backend c10d \\
  --rdzv-id "$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}" --rdzv-endpoint "$head:{PORT}" \\
  --no-python bash "$job/worker.sh" &
step=$!
while true; do # the signal ends a wait early
  code=0
  wait "$step" || code=$?
  kill -0 "$step" 2>/dev/null || break
done
if [ "$code" -eq 0 ]; then
  exit 0
fi

count="$job/failures-$SLURM_JOB_ID"
failures=$(cat "$count" 2>/dev/null || echo 0)
if [ -z "$expired" ]; then
  failures=$((failures + 1))
  echo "$failures" >"$count"
fi
if [ "$failures" -gt {job.max_restarts} ]; then
  echo "Failed $failures times; given up." >&2
  exit "$code"
fi
scontrol requeue "$SLURM_JOB_ID"
"""
    }


def _slurm_time(seconds: int) -> str:
    """Days-hours:minutes:seconds, as sbatch --time reads it."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02}:{minute:02}:{second:02}"
