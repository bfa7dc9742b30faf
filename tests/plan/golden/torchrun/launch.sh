#!/usr/bin/env bash
# llama3-70b: 64 x h100-sxm, 8 nodes of 8. Written by puna plan.
# Layout: dp_replicate 2, dp_shard 32, tp 1, cp 1, pp 1.
# Expected: 97.3 s a step, 86.2k tokens/s.
# 80 % interval of a step: 91 to 104 s.
#
# Run it on every node, HEAD being one of them:
# HEAD=node-0 bash job/launch.sh
set -euo pipefail
job=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${HEAD:?Set HEAD to the host name of one node, the same on all of them.}"
cd .
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300
exec torchrun --nnodes 8 --nproc-per-node 8 --max-restarts 10 \
  --rdzv-backend c10d --rdzv-id llama3-70b --rdzv-endpoint "$HEAD:29500" \
  --no-python bash "$job/worker.sh"
