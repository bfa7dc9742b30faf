"""The remote end of a sandbox: evaluations as lines of JSON on stdin and stdout, for `remote`.

    python -m puna.sandbox.relay

It runs where `remote` started it: inside bubblewrap, in a container, on another machine. The first line lists the walls
of that location; then each request line gets one response line. Untrusted code runs in a `worker` here as well, so a
container is a second wall and not the only one. Needs only Python and this package.
"""

import json
import os
import sys
from typing import Any

from puna.core.errors import PunaError
from puna.sandbox.child import typed_json
from puna.sandbox.result import Limits
from puna.sandbox.worker import Sandbox


def main() -> None:
    """Respond to requests until stdin ends."""
    responses = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # other output must not end up between the lines
    try:
        sandbox = Sandbox()
    except PunaError as error:
        _send(responses, {"failed": str(error)})
        return
    _send(responses, {"walls": sandbox.walls, "level": sandbox.level})
    try:
        for line in sys.stdin:
            try:
                if not sandbox.alive:
                    sandbox = Sandbox()
                response = _evaluate(sandbox, json.loads(line))
            except PunaError as error:
                response = {"error": str(error)}
            _send(responses, response)
    finally:
        sandbox.close()


def _evaluate(sandbox: Sandbox, request: dict[str, Any]) -> dict[str, Any]:
    result = sandbox.run(
        request["source"],
        function=request["function"],
        inputs=[typed_json.decode(text) for text in request["inputs"]],
        stdin=request["stdin"],
        limits=Limits(**request["limits"]),
    )
    values = [[typed_json.encode(call.value), call.error] for call in result.values]
    return {
        "values": values,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "exit": result.exit,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "reason": result.reason,
    }


def _send(responses: Any, value: dict[str, Any]) -> None:
    responses.write(json.dumps(value) + "\n")
    responses.flush()


if __name__ == "__main__":
    main()
