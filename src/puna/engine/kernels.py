"""native/*, compiled where it runs: a step of the engine on a CPU as one call.

The first engine on a machine with a C compiler (`cc`, or what CC names) compiles it, in about three seconds, into the
user's cache; without one everything works as before, slower. PUNA_KERNELS=off leaves it out. Its threads are torch's:
the library binds to the OpenMP runtime that torch has loaded.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

_SOURCES = sorted(Path(__file__).with_name("native").glob("*.[ch]"))
_MAIN = Path(__file__).with_name("native") / "step.c"
# Not -ffast-math: linked with it, a library makes the whole process round subnormals to zero.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")


class Matrix(ctypes.Structure):
    """As native/product.h has it."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    )


class Layer(ctypes.Structure):
    """As native/step.c has it."""

    _fields_ = (
        ("before_attention", ctypes.c_void_p),
        ("before_ffn", ctypes.c_void_p),
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
    )


class Model(ctypes.Structure):
    """As native/step.c has it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "size")),
        ("eps", ctypes.c_float),
        ("layer", ctypes.POINTER(Layer)),
        ("norm", ctypes.c_void_p),
        ("head", Matrix),
        ("kind", ctypes.c_int64),
        ("embedding", ctypes.c_void_p),
        ("angles", ctypes.c_void_p),
    )


class Step(ctypes.Structure):
    """As native/step.c has it."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("ids", ctypes.c_void_p),
        ("texts", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("starts", "counts", "tables", "begins")),
        ("wanted", ctypes.c_int64),
        ("wanted_rows", ctypes.c_void_p),
        ("pages", ctypes.c_int64),
        ("store", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("logits_stride", ctypes.c_int64),
        ("room", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
    )


class Kernels:
    """Calls into the compiled library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._step, self._step_room = library.step, library.step_room
        self._product, self._row_room = library.matrix_product, library.row_room
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._step.argtypes, self._step.restype = [pointer, pointer], None
        self._step_room.argtypes, self._step_room.restype = [pointer, integer], integer
        self._row_room.argtypes, self._row_room.restype = [integer], integer
        self._product.argtypes = [pointer, pointer, integer, integer, pointer, integer, pointer, integer]
        self._product.restype = None

    def product(self, matrix: Matrix, x: Tensor) -> Tensor:
        """x (rows, columns) float32 times the matrix: (rows, outputs filled up to whole panels) float32."""
        rows, columns = x.shape
        out = x.new_empty(rows, -(-matrix.outputs // 16) * 16)
        room = torch.empty(rows * self._row_room(columns), dtype=torch.uint8)
        threads = torch.get_num_threads()
        self._product(
            ctypes.byref(matrix), x.data_ptr(), columns, rows, out.data_ptr(), out.shape[1], room.data_ptr(), threads
        )
        return out

    def step_room(self, model: Model, rows: int) -> int:
        """Bytes that a step of so many tokens works in."""
        return int(self._step_room(ctypes.byref(model), rows))

    def step(self, model: Model, step: Step) -> None:
        """Compute a step."""
        self._step(ctypes.byref(model), ctypes.byref(step))


@lru_cache(maxsize=1)
def kernels() -> Kernels | None:
    """The compiled kernels; None where there is no compiler, or it cannot compile them, or they are not wanted."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if os.environ.get("PUNA_KERNELS") == "off" or not compiler or platform.system() != "Linux":
        return None
    try:
        return Kernels(ctypes.CDLL(str(_library(compiler))))
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None


def _library(compiler: str) -> Path:
    """The library for this source, compiler and processor, from the cache or made now."""
    source = b"".join(path.read_bytes() for path in _SOURCES)
    machine = f"{compiler} {_FLAGS} {platform.machine()} {sorted(torch.cpu.get_capabilities().items())}"
    name = hashlib.sha256(source + machine.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "puna"
    path = cache / f"kernels-{name}.so"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = cache / f".kernels-{name}.{os.getpid()}.so"
        try:
            command = [*shlex.split(compiler), *_FLAGS, "-o", str(made), str(_MAIN), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            os.replace(made, path)
        finally:
            made.unlink(missing_ok=True)
    return path
