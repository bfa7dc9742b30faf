"""Launch files for torchrun by hand, and worker.sh, which every launcher runs as each process of the run.

torchrun 2.11 and newer (pytorch.org/docs/stable/elastic/run.html). How a job stops and continues:

- `puna train` saves and leaves at the first SIGTERM. torchrun passes the signal on and waits as long as
  TORCH_ELASTIC_SHUTDOWN_TIMEOUT says, 30 seconds by default (torch/distributed/launcher/api.py, 2.13).
- A process that is started again finds its run directory and resumes it (worker.sh).
"""

import shlex
from pathlib import Path

from puna.plan.launch.job import PORT, Launch, comment


def worker(job: Launch) -> str:
    """worker.sh: what torchrun runs as each process, in the folder that has corpora/ and runs/."""
    run_dir = shlex.quote(f"runs/{job.name}")
    sizes = job.layout.recipe_values()["layout"]
    overrides = " ".join(f"layout.{key}={value}" for key, value in sizes.items())
    overrides += f" train.micro_batch={job.layout.micro_batch}"
    return f"""#!/usr/bin/env bash
# One process of the run: starts it, or resumes it when its directory already contains one.
set -euo pipefail
job=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
run_dir={run_dir}

# All processes find the same answer: recipe.toml is written by the first of them after every one has joined. Listing
# the folder makes a network file system forget what it remembered of it.
ls "$run_dir" >/dev/null 2>&1 || true
if [ -f "$run_dir/recipe.toml" ]; then
  exec python -m puna train --resume "$run_dir" {overrides}
fi
exec python -m puna train "$job/recipe.toml" --run-dir "$run_dir"
"""


def torchrun(job: Launch, folder: Path) -> dict[str, str]:
    """launch.sh, which a person runs on every node."""
    one = job.nodes == 1
    start = f"bash {shlex.quote(str(folder / 'launch.sh'))}"
    how = [f"Run it:  {start}"] if one else ["Run it on every node, HEAD being one of them:", f"HEAD=node-0 {start}"]
    arguments = ["--nnodes", str(job.nodes), "--nproc-per-node", str(job.accelerators_per_node)]
    arguments += ["--max-restarts", str(job.max_restarts)]
    meet = ["--standalone"]
    if not one:
        meet = ["--rdzv-backend", "c10d", "--rdzv-id", job.name, "--rdzv-endpoint", f'"$HEAD:{PORT}"']
    need_head = "" if one else ': "${HEAD:?Set HEAD to the host name of one node, the same on all of them.}"\n'
    return {
        "launch.sh": f"""#!/usr/bin/env bash
{comment([*job.header(), "", *how])}set -euo pipefail
job=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
{need_head}cd {shlex.quote(job.storage_dir)}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={job.stop_seconds}
exec torchrun {" ".join(arguments)} \\
  {" ".join(meet)} \\
  --no-python bash "$job/worker.sh"
"""
    }
