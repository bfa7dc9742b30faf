"""The harness in the process of untrusted code: reads the job, calls the function, writes the values.

Nothing here knows the expected values. Each value is sent in the strict format of `typed_json` and compared outside.
Code in this process can do anything to this module: patch it, walk its frames, write to its pipe. All it can achieve is
to send a value, which it could have returned as well. Standard library only.
"""

import atexit
import json
import os
import sys
import traceback
import types
from typing import Any, NoReturn

from puna.sandbox.child import typed_json


def run(job: int, values: int) -> NoReturn:
    """Run the job in file `job` and exit. Values go to the pipe `values`, one per line: nonce, index, kind, body."""
    with os.fdopen(job, "rb") as file:
        task = json.load(file)
    encode, decode, write = typed_json.encode, typed_json.decode, os.write
    source, function, inputs, prefix = task["source"], task["function"], task["inputs"], task["nonce"] + " "
    del task

    def send(text: str) -> None:
        data = (prefix + text + "\n").encode("ascii")
        while data:
            data = data[write(values, data) :]

    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv[:] = ["solution.py"]
    code = 0
    try:
        exec(compile(source, "solution.py", "exec"), module.__dict__)
        called: Any = getattr(module, function) if function else None
    except BaseException as error:
        code = _leave(error)
        if function:
            send("0 x " + encode(describe(error)))
    else:
        for index, text in enumerate(inputs):
            try:
                body = "v " + encode(called(*decode(text)))
            except BaseException as error:
                body = "e " + encode(describe(error))
            send(f"{index} {body}")
    if not function:
        _quietly(atexit._run_exitfuncs)
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        _quietly(lambda stream=stream: stream.flush())
    send("end")
    os._exit(code)


def describe(error: BaseException) -> str:
    """Type and message of an exception in at most 500 characters, whatever its own methods do."""
    try:
        name = str(type(error).__name__)
        return f"{name}: {error}"[:500] if str(error) else name[:500]
    except BaseException:
        return "an exception that cannot be described"


def _leave(error: BaseException) -> int:
    """Exit code of an uncaught exception, after printing its message as the interpreter would."""
    if isinstance(error, SystemExit):
        if error.code is None or type(error.code) is int:
            return (error.code or 0) & 0xFF
        _quietly(lambda: print(error.code, file=sys.stderr))
        return 1
    _quietly(lambda: traceback.print_exception(error.with_traceback(_below(error))))
    return 1


def _below(error: BaseException) -> Any:
    return error.__traceback__.tb_next if error.__traceback__ else None


def _quietly(do: Any) -> None:
    try:
        do()
    except BaseException:
        return
