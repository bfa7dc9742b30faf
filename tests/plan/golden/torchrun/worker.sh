#!/usr/bin/env bash
# One process of the run: starts it, or resumes it when its directory already contains one.
set -euo pipefail
job=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
run_dir=runs/llama3-70b

# All processes find the same answer: recipe.toml is written by the first of them after every one has joined. Listing
# the folder makes a network file system forget what it remembered of it.
ls "$run_dir" >/dev/null 2>&1 || true
if [ -f "$run_dir/recipe.toml" ]; then
  exec python -m puna train --resume "$run_dir" layout.dp_replicate=2 layout.dp_shard=32 layout.tp=1 layout.cp=1 layout.pp=1 train.micro_batch=1
fi
exec python -m puna train "$job/recipe.toml" --run-dir "$run_dir"
