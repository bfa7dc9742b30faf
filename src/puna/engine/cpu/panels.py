"""Matrices in panels of 16 adjacent outputs, as the compiled kernels read them (see native/tile.h).

The layout is that of BLIS's micro-panels. One copy serves a single row and many. Here rows are torch tensors; the
native step gives the same memory to the kernels directly (`engine.cpu.native_step`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.engine.cpu.kernels import Kernels, MatrixStruct
from puna.engine.cpu.quantization import GROUP, quantize_int4, quantize_int8

PANEL = 16
"""Adjacent outputs of a matrix, and tokens of a KV block."""
_KINDS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}


class PanelMatrix:
    """A matrix (out, in), float32 or bfloat16."""

    def __init__(self, weight: Tensor, kernels: Kernels, kind: str | None = None) -> None:
        self.dtype, self.shape, self.kernels = weight.dtype, tuple(weight.shape), kernels
        self.columns = self.shape[1]
        self.kind = kind or str(weight.dtype).removeprefix("torch.")
        self.codes, self.scales = self._pack(weight)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def matrix(self, outputs: int | None = None) -> MatrixStruct:
        """For the kernels; valid as long as this object lives. outputs: only the first so many."""
        columns = self.columns + -self.columns % self._interleave
        return MatrixStruct(
            _KINDS[self.kind], outputs or self.shape[0], columns, self.codes.data_ptr(), self.scales.data_ptr()
        )

    def __call__(self, x: Tensor) -> Tensor:
        matrix = self.matrix()
        rows = F.pad(x.reshape(-1, self.columns).float(), (0, matrix.columns - self.columns)).contiguous()
        out = self.kernels.product(matrix, rows)
        return out[:, : self.shape[0]].to(x.dtype).reshape(*x.shape[:-1], self.shape[0])

    def dense(self) -> Tensor:
        """The values it multiplies with, (out, in)."""
        return self._unpack()[: self.shape[0], : self.columns].contiguous()

    def assign(self, row: int, weight: Tensor) -> None:
        """Replace the rows from `row` on."""
        first, last = row // PANEL, -(-(row + len(weight)) // PANEL)
        if row % PANEL or len(weight) % PANEL:
            around = self.dense()[first * PANEL : last * PANEL]
            around[row - first * PANEL : row - first * PANEL + len(weight)] = weight
            weight = around
        codes, scales = self._pack(weight.to(self.dtype))
        self.codes[first:last] = codes
        self.scales[first : first + len(scales)] = scales

    @property
    def _interleave(self) -> int:
        """Number of inputs stored together; inputs are padded to a multiple of it."""
        return 4 // self.dtype.itemsize

    def _pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (panels, ...) and scales (panels, ...), padded with zeros."""
        return _to_panels(weight, self._interleave), torch.empty(0)

    def _unpack(self) -> Tensor:
        """The matrix with its padding."""
        return _from_panels(self.codes, self._interleave)


class QuantizedPanelMatrix(PanelMatrix):
    """A matrix in int8 or int4."""

    _interleave = GROUP

    def _pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "int8":
            codes, scales = quantize_int8(weight.float())
            scales = F.pad(scales, (0, -len(scales) % PANEL)).view(-1, PANEL)
            return _to_panels(F.pad(codes, (0, -self.columns % GROUP)), 4), scales
        codes, affine = quantize_int4(weight, torch.bfloat16)
        panels, groups = -(-len(codes) // PANEL), self.columns // GROUP
        fours = F.pad(codes, (0, 0, 0, -len(codes) % PANEL)).view(panels, PANEL, groups, 4, 2, 4)
        pairs = (fours[..., 0, :] | fours[..., 1, :] << 4).permute(0, 2, 3, 1, 4)  # of the first four and the next
        affine = F.pad(affine, (0, 0, 0, 0, 0, -len(codes) % PANEL)).view(panels, PANEL, groups, 2).transpose(1, 2)
        parts = (pairs.reshape(panels, groups, -1), affine.contiguous().view(torch.uint8).reshape(panels, groups, -1))
        return torch.cat(parts, -1), torch.empty(0)

    def _unpack(self) -> Tensor:
        if self.kind == "int8":
            return (_from_panels(self.codes, 4).float() * self.scales.view(-1, 1)).to(self.dtype)
        panels, groups = self.codes.shape[:2]
        pairs = self.codes[..., : GROUP * PANEL // 2].view(panels, groups, 4, PANEL, 4)
        codes = torch.stack((pairs & 15, pairs >> 4), 3).permute(0, 4, 1, 2, 3, 5)  # panel, output, group, 4, 2, 4
        affine = self.codes[..., GROUP * PANEL // 2 :].contiguous().view(torch.bfloat16)
        affine = affine.view(panels, groups, PANEL, 2).transpose(1, 2).float()
        values = (codes.reshape(panels, PANEL, groups, GROUP).float() - 8) * affine[..., :1] + affine[..., 1:]
        return values.view(panels * PANEL, -1).to(self.dtype)


def _to_panels(weight: Tensor, interleave: int) -> Tensor:
    """(out, in) -> (panels, in / interleave, 16 * interleave)."""
    rows, columns = weight.shape
    padded = F.pad(weight, (0, -columns % interleave, 0, -rows % PANEL))
    grouped = padded.view(-1, PANEL, padded.shape[1] // interleave, interleave)
    return grouped.transpose(1, 2).flatten(2).contiguous()


def _from_panels(panels: Tensor, interleave: int) -> Tensor:
    """The inverse: (out, in), padded."""
    return panels.view(*panels.shape[:2], PANEL, interleave).transpose(1, 2).reshape(len(panels) * PANEL, -1)
