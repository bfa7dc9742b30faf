"""The CPU kernels in native/, compiled on the machine that runs them: a whole engine step as one call.

The first engine on a machine with a C compiler (`cc`, or the one that CC names) compiles them, in about three seconds,
into the user's cache; without a compiler everything works, only slower. PUNA_KERNELS=off disables them; any other value
is the compiler's -march (default: native), which holds a processor to fewer instructions. They use torch's threads: the
library binds to the OpenMP runtime that torch has loaded.
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
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")


class MatrixStruct(ctypes.Structure):
    """`Matrix` of native/product.h."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    )


class LayerStruct(ctypes.Structure):
    """`Layer` of native/step.c."""

    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("ffn_norm", ctypes.c_void_p),
        *((name, MatrixStruct) for name in ("qkv", "out", "gate_up", "down")),
    )


class ModelStruct(ctypes.Structure):
    """`Model` of native/step.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim")),
        ("eps", ctypes.c_float),
        ("layer", ctypes.POINTER(LayerStruct)),
        ("norm", ctypes.c_void_p),
        ("head", MatrixStruct),
        ("kind", ctypes.c_int64),
        ("embedding", ctypes.c_void_p),
        ("rotations", ctypes.c_void_p),
    )


class StepStruct(ctypes.Structure):
    """`Step` of native/step.c."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("ids", ctypes.c_void_p),
        ("sequences", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("starts", "counts", "tables", "table_starts")),
        ("outputs", ctypes.c_int64),
        ("output_rows", ctypes.c_void_p),
        ("blocks", ctypes.c_int64),
        ("store", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("logits_stride", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
    )


class Kernels:
    """Calls into the compiled library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._step, self._step_workspace = library.step, library.step_workspace
        self._product, self._row_workspace = library.matrix_product, library.row_workspace
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._step.argtypes, self._step.restype = [pointer, pointer], None
        self._step_workspace.argtypes, self._step_workspace.restype = [pointer, integer], integer
        self._row_workspace.argtypes, self._row_workspace.restype = [integer], integer
        self._product.argtypes = [pointer, pointer, integer, integer, pointer, integer, pointer, integer]
        self._product.restype = None

    def product(self, matrix: MatrixStruct, x: Tensor) -> Tensor:
        """x (rows, columns) float32 times the matrix: (rows, outputs padded to whole panels) float32."""
        rows, columns = x.shape
        out = x.new_empty(rows, -(-matrix.outputs // 16) * 16)
        workspace = torch.empty(rows * self._row_workspace(columns), dtype=torch.uint8)
        threads = torch.get_num_threads()
        self._product(
            ctypes.byref(matrix),
            x.data_ptr(),
            columns,
            rows,
            out.data_ptr(),
            out.shape[1],
            workspace.data_ptr(),
            threads,
        )
        return out

    def step_workspace(self, model: ModelStruct, rows: int) -> int:
        """Bytes of workspace that a step of so many tokens needs."""
        return int(self._step_workspace(ctypes.byref(model), rows))

    def step(self, model: ModelStruct, step: StepStruct) -> None:
        """Compute a step."""
        self._step(ctypes.byref(model), ctypes.byref(step))


@lru_cache(maxsize=1)
def kernels() -> Kernels | None:
    """The compiled kernels; None without a compiler, when compiling fails, and when they are disabled."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if os.environ.get("PUNA_KERNELS") == "off" or not compiler or platform.system() != "Linux":
        return None
    try:
        return Kernels(ctypes.CDLL(str(_library(compiler))))
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None


def _library(compiler: str) -> Path:
    """The library for this source, compiler and processor, from the cache or compiled now."""
    source = b"".join(path.read_bytes() for path in _SOURCES)
    target = f"-march={os.environ.get('PUNA_KERNELS') or 'native'}"
    machine = f"{compiler} {target} {_FLAGS} {platform.machine()} {sorted(torch.cpu.get_capabilities().items())}"
    name = hashlib.sha256(source + machine.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "puna"
    path = cache / f"kernels-{name}.so"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        built = cache / f".kernels-{name}.{os.getpid()}.so"
        try:
            command = [*shlex.split(compiler), target, *_FLAGS, "-o", str(built), str(_MAIN), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            os.replace(built, path)
        finally:
            built.unlink(missing_ok=True)
    return path
