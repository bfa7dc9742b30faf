"""Compare the CPU time and imports of `puna --help` with a bare interpreter's, in turns.

python bench/cli_start.py [--rounds 15]
"""

import argparse
import os
import subprocess
import sys

import common

COMMANDS = {
    "puna --help": [sys.executable, "-m", "puna", "--help"],
    "python -c pass": [sys.executable, "-c", "pass"],
}
HEAVY = ("torch", "numpy", "pydantic", "rich", "tokenizers", "pyarrow")
WATCH = f"""
import contextlib, io, json, sys
from puna.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["--help"])
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.rounds):
        for name, command in COMMANDS.items():
            seconds[name].append(cpu_seconds(command))
    imported = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, check=True).stdout.strip()
    results = {"cpu_seconds": {name: common.spread(values) for name, values in seconds.items()}, "imported": imported}
    common.save("cli-start", {"rounds": args.rounds, "goal_cpu_seconds": 0.3}, results)
    for name, values in results["cpu_seconds"].items():
        print(f"{name}: {values['median']:.3f} s of CPU ({values['min']:.3f} to {values['max']:.3f})")
    print(f"heavy packages imported: {imported}")


def cpu_seconds(command: list[str]) -> float:
    """User and system seconds of one run of `command`."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command} ended with status {status}")
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
