"""Weight layouts of a linear layer on a CPU: plain, bfloat16 in oneDNN's layout, int8 or int4.

With compiled kernels all matrices are in panels (`engine.cpu.panels`). The other layouts are for a machine without a
compiler and use torch's own kernels. int8 has one scale per row (symmetric); int4 has a scale and a zero point per 32
weights of a row.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.engine.cpu.kernels import kernels
from puna.engine.cpu.panels import PanelMatrix, QuantizedPanelMatrix
from puna.engine.cpu.quantization import GROUP, quantize_int4, quantize_int8

_INT8_KERNEL_ROWS = 8
"""Up to so many rows, torch's int8 kernel is faster than widening the matrix."""
_INT4_ROWS = 64
"""Rows that torch's int4 kernels pack together at most: 64 with AVX-512, fewer elsewhere."""


class PackedMatrix(Protocol):
    """A matrix (out, in) in some layout, and its product: x (..., in) -> (..., out)."""

    kind: str
    columns: int

    @property
    def nbytes(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor: ...

    def dense(self) -> Tensor:
        """The values it multiplies with, (out, in)."""
        ...

    def assign(self, row: int, weight: Tensor) -> None:
        """Replace the rows from `row` on."""
        ...


def pack(weight: Tensor, quantize: str | None) -> PackedMatrix:
    """The best layout for a matrix (out, in) on its device; shapes that int4 does not support become int8."""
    rows, columns = weight.shape
    library = kernels() if weight.device.type == "cpu" else None
    if library is not None and weight.dtype in (torch.float32, torch.bfloat16):
        if quantize is None:
            return PanelMatrix(weight, library)
        return QuantizedPanelMatrix(weight, library, "int4" if quantize == "int4" and columns % GROUP == 0 else "int8")
    if quantize == "int4" and rows % _INT4_ROWS == 0 and columns % GROUP == 0:
        return Int4Matrix(weight)
    if quantize is not None:
        return Int8Matrix(weight)
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and _onednn_has_bfloat16():
        return OneDnnMatrix(weight)
    return PlainMatrix(weight)


def _onednn_has_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class PlainMatrix:
    """A matrix as torch stores it."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.columns = weight, weight.shape[-1]
        self.kind = str(weight.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def dense(self) -> Tensor:
        return self.weight

    def assign(self, row: int, weight: Tensor) -> None:
        self.weight[row : row + len(weight)] = weight


class OneDnnMatrix:
    """bfloat16 in blocks that oneDNN's kernels load without reordering at each call."""

    kind = "bfloat16"

    def __init__(self, weight: Tensor) -> None:
        self.columns = weight.shape[1]
        self._pack(weight)

    def _pack(self, weight: Tensor) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)

    @property
    def nbytes(self) -> int:
        return 2 * self.weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, None, "none", [], "")

    def dense(self) -> Tensor:
        return self.weight.to_dense()

    def assign(self, row: int, weight: Tensor) -> None:
        dense = self.dense()
        dense[row : row + len(weight)] = weight
        self._pack(dense)


class Int8Matrix:
    """w = q * scale, q in -127..127, one scale per row."""

    kind = "int8"

    def __init__(self, weight: Tensor) -> None:
        self.dtype, self.columns = weight.dtype, weight.shape[1]
        self.weight, self.scale = quantize_int8(weight)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= _INT8_KERNEL_ROWS:
            out = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            out = F.linear(rows, self.weight.to(x.dtype)) * self.scale
        return out.view(*x.shape[:-1], out.shape[-1])

    def dense(self) -> Tensor:
        return (self.weight.float() * self.scale.float()[:, None]).to(self.dtype)

    def assign(self, row: int, weight: Tensor) -> None:
        rows = slice(row, row + len(weight))
        self.weight[rows], self.scale[rows] = quantize_int8(weight.to(self.dtype))


class Int4Matrix:
    """w = (q - 8) * scale + zero, q in 0..15, with a scale and a zero per 32 weights of a row."""

    kind = "int4"

    def __init__(self, weight: Tensor) -> None:
        self.dtype, self.columns = weight.dtype, weight.shape[1]
        self.weight, self.affine = self._pack(weight)

    def _pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(out, in / 2) uint8 in blocks of rows as the kernel reads them, (groups, out, 2) scale and zero."""
        codes, affine = quantize_int4(weight, self.dtype)
        return torch._convert_weight_to_int4pack_for_cpu(codes.int(), 1), affine.transpose(0, 1).contiguous()

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.affine.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = torch._weight_int4pack_mm_for_cpu(rows, self.weight, GROUP, self.affine)
        return out.view(*x.shape[:-1], out.shape[-1])

    def dense(self) -> Tensor:
        return self(torch.eye(self.columns, dtype=self.dtype)).t()

    def assign(self, row: int, weight: Tensor) -> None:
        if row % _INT4_ROWS or len(weight) % _INT4_ROWS:
            dense = self.dense()
            dense[row : row + len(weight)] = weight
            row, weight = 0, dense
        rows = slice(row, row + len(weight))
        self.weight[rows], self.affine[:, rows] = self._pack(weight.to(self.dtype))
