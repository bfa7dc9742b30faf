"""Matrices of a linear layer as a CPU kernel wants them: plain, bfloat16 in oneDNN's layout, int8 or int4.

With compiled kernels all are in panels (`engine.panels`). The others here are for a machine without a compiler, and go
through torch's own kernels. int8 has one scale a row (symmetric); int4 has a scale and a zero for each 32 weights of a
row.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.engine.kernels import kernels
from puna.engine.panels import Panels, QuantizedPanels
from puna.engine.quantized import GROUP, int4, int8

_FEW = 8
"""Rows up to which torch's int8 kernel is faster than widening the matrix."""
_BLOCK = 64
"""Rows that int4's kernels pack together, at most: 64 with AVX-512, fewer elsewhere."""


class Pack(Protocol):
    """A matrix (out, in) that multiplies: x (..., in) -> (..., out)."""

    kind: str
    columns: int

    @property
    def nbytes(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor: ...

    def dense(self) -> Tensor:
        """(out, in) of the values it multiplies with."""
        ...

    def assign(self, row: int, weight: Tensor) -> None:
        """Replace the rows from `row` on."""
        ...


def packed(weight: Tensor, quantize: str | None) -> Pack:
    """The best form for a matrix (out, in) on its device; what int4 cannot hold becomes int8."""
    rows, columns = weight.shape
    made = kernels() if weight.device.type == "cpu" else None
    if made is not None and weight.dtype in (torch.float32, torch.bfloat16):
        if quantize is None:
            return Panels(weight, made)
        return QuantizedPanels(weight, made, "int4" if quantize == "int4" and columns % GROUP == 0 else "int8")
    if quantize == "int4" and rows % _BLOCK == 0 and columns % GROUP == 0:
        return Int4(weight)
    if quantize is not None:
        return Int8(weight)
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and _onednn_has_bfloat16():
        return OneDnn(weight)
    return Plain(weight)


def _onednn_has_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Plain:
    """As it is."""

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


class OneDnn:
    """bfloat16 in blocks that oneDNN's kernels load without reordering them at each call."""

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


class Int8:
    """w = q * scale, q in -127..127, one scale a row."""

    kind = "int8"

    def __init__(self, weight: Tensor) -> None:
        self.dtype, self.columns = weight.dtype, weight.shape[1]
        self.weight, self.scale = int8(weight)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= _FEW:
            out = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            out = F.linear(rows, self.weight.to(x.dtype)) * self.scale
        return out.view(*x.shape[:-1], out.shape[-1])

    def dense(self) -> Tensor:
        return (self.weight.float() * self.scale.float()[:, None]).to(self.dtype)

    def assign(self, row: int, weight: Tensor) -> None:
        here = slice(row, row + len(weight))
        self.weight[here], self.scale[here] = int8(weight.to(self.dtype))


class Int4:
    """w = (q - 8) * scale + zero, q in 0..15, for each 32 weights of a row; the range that errs least is taken."""

    kind = "int4"

    def __init__(self, weight: Tensor) -> None:
        self.dtype, self.columns = weight.dtype, weight.shape[1]
        self.weight, self.affine = self._pack(weight)

    def _pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(out, in / 2) uint8 in blocks of rows as the kernel reads them, (groups, out, 2) scale and zero."""
        codes, affine = int4(weight, self.dtype)
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
        if row % _BLOCK or len(weight) % _BLOCK:
            dense = self.dense()
            dense[row : row + len(weight)] = weight
            row, weight = 0, dense
        here = slice(row, row + len(weight))
        self.weight[here], self.affine[:, here] = self._pack(weight.to(self.dtype))
