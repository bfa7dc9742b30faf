"""The sandbox's far end: evaluations as lines of JSON on stdin and stdout, for `outer` on the other side.

    python -m puna.sandbox.relay

It runs where `outer` started it: behind bubblewrap, in a container, on another machine. The first line says what walls
that place has; then each line asked is answered by one line. Untrusted code runs behind the walls of `warm` here as
well, so a container is a second wall and not the only one. Needs Python and this package, nothing else.
"""

import json
import os
import sys
from typing import Any

from puna.core.errors import PunaError
from puna.sandbox import plain
from puna.sandbox.result import Limits
from puna.sandbox.warm import Sandbox


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever else prints must not end up between the lines
    try:
        sandbox = Sandbox()
    except PunaError as error:
        _say(answers, {"failed": str(error)})
        return
    _say(answers, {"walls": sandbox.walls, "level": sandbox.level})
    try:
        for line in sys.stdin:
            try:
                if not sandbox.alive:
                    sandbox = Sandbox()
                said = _evaluate(sandbox, json.loads(line))
            except PunaError as error:
                said = {"error": str(error)}
            _say(answers, said)
    finally:
        sandbox.close()


def _evaluate(sandbox: Sandbox, asked: dict[str, Any]) -> dict[str, Any]:
    result = sandbox.run(
        asked["source"],
        function=asked["function"],
        inputs=[plain.decode(text) for text in asked["inputs"]],
        stdin=asked["stdin"],
        limits=Limits(**asked["limits"]),
    )
    values = [[plain.encode(answer.value), answer.error] for answer in result.values]
    return {
        "values": values,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "exit": result.exit,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "reason": result.reason,
    }


def _say(answers: Any, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
