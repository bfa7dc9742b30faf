"""kernels.c, compiled where it runs: the steps of a layer in bfloat16 on a CPU while few texts are written.

The first engine on a machine with a C compiler (`cc`, or what CC names) compiles them, in about two seconds, into the
user's cache; without one everything works as before, slower. PUNA_KERNELS=off leaves them out. Their threads are
torch's: the library binds to the OpenMP runtime that torch has loaded.
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

FEW = 8
"""Rows up to which reading the matrix once takes longer than multiplying."""
_SOURCE = Path(__file__).with_name("kernels.c")
# Sums may be reordered. Not -ffast-math: linked with it, a library makes the whole process round subnormals to zero.
_MATH = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math")
_FLAGS = ("-O3", "-march=native", *_MATH, "-fopenmp", "-shared", "-fPIC")


class Kernels:
    """Calls into the compiled library. Tensors are contiguous, bfloat16 unless said otherwise, on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._product, self._norm, self._swiglu = library.product, library.norm, library.swiglu
        self._turn, self._attend = library.turn, library.attend
        pointer, integer, small, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
        self._product.argtypes = [*[pointer] * 3, *[integer] * 3, *[pointer] * 2, small]
        self._norm.argtypes = [pointer, pointer, number, integer, integer, pointer, small]
        self._swiglu.argtypes = [pointer, integer, integer, pointer, small]
        self._turn.argtypes = [*[pointer] * 3, *[integer] * 5, *[pointer] * 3, small]
        self._attend.argtypes = [*[pointer] * 5, *[integer] * 8, *[pointer] * 2, small]
        for function in (self._product, self._norm, self._swiglu, self._turn, self._attend):
            function.restype = None

    def product(self, weight: Tensor, scales: Tensor | None, x: Tensor) -> Tensor:
        """x (..., columns), FEW rows at most, times a matrix (outputs, columns): bfloat16, or int8 with a float32 scale
        for each output."""
        outputs, columns = weight.shape
        rows = x.numel() // columns
        room = torch.empty(rows * columns if scales is not None else 0)
        out = x.new_empty(*x.shape[:-1], outputs)
        self._product(
            weight.data_ptr(),
            None if scales is None else scales.data_ptr(),
            x.data_ptr(),
            rows,
            outputs,
            columns,
            room.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm of x (..., columns); weight: (columns,) float32."""
        out = torch.empty_like(x)
        columns = x.shape[-1]
        rows = x.numel() // columns
        self._norm(x.data_ptr(), weight.data_ptr(), eps, rows, columns, out.data_ptr(), torch.get_num_threads())
        return out

    def swiglu(self, both: Tensor) -> Tensor:
        """silu(gate) * up of both (..., 2 * columns), gates first."""
        columns = both.shape[-1] // 2
        out = both.new_empty(*both.shape[:-1], columns)
        rows = both.numel() // (2 * columns)
        self._swiglu(both.data_ptr(), rows, columns, out.data_ptr(), torch.get_num_threads())
        return out

    def turn(self, qkv: Tensor, angles: Tensor, slots: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
        """Rotate, write keys and values to their places, return the queries (rows, heads, head_dim).

        qkv: (rows, (heads + 2 * kv_heads) * head_dim), pairs side by side; angles: (rows, head_dim / 2) complex64;
        slots: (rows,) int64; keys and values: (kv_heads, pages, page_size, head_dim) of one layer.
        """
        kv_heads, pages, page_size, size = keys.shape
        query = qkv.new_empty(len(qkv), heads, size)
        self._turn(
            qkv.data_ptr(),
            angles.data_ptr(),
            slots.data_ptr(),
            len(qkv),
            heads,
            kv_heads,
            size,
            pages * page_size,
            query.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            torch.get_num_threads(),
        )
        return query

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, longest: int
    ) -> Tensor:
        """Attention of one query a text, (rows, heads, head_dim), over the pages of one layer.

        tables: (rows, width) int64 pages of each text; lengths: (rows,) int64, `longest` at most.
        """
        rows, heads, size = query.shape
        kv_heads, pages, page_size, _ = keys.shape
        room = torch.empty(rows * heads * (longest + size))
        out = torch.empty_like(query)
        self._attend(
            query.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            tables.data_ptr(),
            lengths.data_ptr(),
            rows,
            heads,
            kv_heads,
            size,
            pages,
            page_size,
            tables.shape[1],
            longest,
            room.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out


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
    source = _SOURCE.read_bytes()
    machine = f"{compiler} {_FLAGS} {platform.machine()} {sorted(torch.cpu.get_capabilities().items())}"
    name = hashlib.sha256(source + machine.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "puna"
    path = cache / f"kernels-{name}.so"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = cache / f".kernels-{name}.{os.getpid()}.so"
        try:
            command = [*shlex.split(compiler), *_FLAGS, "-o", str(made), str(_SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            os.replace(made, path)
        finally:
            made.unlink(missing_ok=True)
    return path
