"""Runs many small layouts without importing torch for each: imports once, then forks the processes of each job.

Reads jobs from stdin, one JSON object a line: {"case": a function of layout_cases, "processes": N, ...}; answers each
with one line of JSON, what the case returned on rank 0, or {"error": ...} with what the first failing rank said.
Importing torch takes longer than any of the jobs. No thread may exist before the fork.
"""

import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
logging.disable(logging.WARNING)

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.distributed.pipelining  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
import layout_cases  # noqa: E402

_SECONDS = 240


def main() -> None:
    torch.set_num_threads(1)
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        out.write(json.dumps(run(json.loads(line))) + "\n")
        out.flush()


def run(job: dict[str, Any]) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    count = job["processes"]
    read, write = os.pipe()
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            os.close(read)
            if count > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            _child(job, rank, write)
        children.append(child)
    os.close(write)
    _wait(children)
    with os.fdopen(read, encoding="utf-8") as answers:
        found = [json.loads(line) for line in answers]
    errors = sorted((answer for answer in found if "error" in answer), key=lambda answer: answer["at"])
    return errors[0] if errors else next((answer for answer in found), {"error": "no process answered"})


def _child(job: dict[str, Any], rank: int, write: int) -> None:
    answer: dict[str, Any] | None = None
    try:
        if job.get("joins"):  # the case joins the others itself
            answer = getattr(layout_cases, job["case"])(job)
        else:
            dist.init_process_group("gloo", timeout=timedelta(seconds=_SECONDS))
            answer = getattr(layout_cases, job["case"])(job)
            dist.barrier()
        if rank:
            answer = None
    except BaseException:
        answer = {"error": f"rank {rank}: {traceback.format_exc()[-1800:]}", "at": time.monotonic()}
    if answer is not None:
        os.write(write, (json.dumps(answer) + "\n").encode())
    os._exit(0 if answer is None or "error" not in answer else 1)


def _wait(children: list[int]) -> None:
    """Wait for all; when one has failed the others, which would wait for it, get a moment and are killed."""
    left, deadline = set(children), time.monotonic() + _SECONDS
    while left:
        for child in list(left):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                left.discard(child)
                if status:
                    deadline = min(deadline, time.monotonic() + 3)
        if time.monotonic() > deadline:
            for child in left:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


if __name__ == "__main__":
    main()
