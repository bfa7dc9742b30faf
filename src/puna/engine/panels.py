"""A matrix as `engine.kernels` reads it: in panels of 16 outputs that lie side by side (see native/tile.h).

One copy serves one row and many. Rows come in and go out as torch tensors here; a step of the engine hands the same
memory to the kernels as a whole (`engine.whole`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.engine.kernels import Kernels, Matrix
from puna.engine.quantized import GROUP, int4, int8

PANEL = 16
"""Outputs that lie side by side, and tokens of a page."""
_KINDS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}


class Panels:
    """A matrix (out, in), float32 or bfloat16."""

    def __init__(self, weight: Tensor, kernels: Kernels, kind: str | None = None) -> None:
        self.dtype, self.shape, self.kernels = weight.dtype, tuple(weight.shape), kernels
        self.columns = self.shape[1]
        self.kind = kind or str(weight.dtype).removeprefix("torch.")
        self.codes, self.scales = self._laid_out(weight)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def matrix(self, outputs: int | None = None) -> Matrix:
        """For the kernels; valid as long as this lives. outputs: only so many of them."""
        columns = self.columns + -self.columns % self._together
        return Matrix(
            _KINDS[self.kind], outputs or self.shape[0], columns, self.codes.data_ptr(), self.scales.data_ptr()
        )

    def __call__(self, x: Tensor) -> Tensor:
        matrix = self.matrix()
        rows = F.pad(x.reshape(-1, self.columns).float(), (0, matrix.columns - self.columns)).contiguous()
        out = self.kernels.product(matrix, rows)
        return out[:, : self.shape[0]].to(x.dtype).reshape(*x.shape[:-1], self.shape[0])

    def dense(self) -> Tensor:
        """(out, in) of the values it multiplies with."""
        return self._whole()[: self.shape[0], : self.columns].contiguous()

    def assign(self, row: int, weight: Tensor) -> None:
        """Replace the rows from `row` on."""
        first, last = row // PANEL, -(-(row + len(weight)) // PANEL)
        if row % PANEL or len(weight) % PANEL:
            around = self.dense()[first * PANEL : last * PANEL]
            around[row - first * PANEL : row - first * PANEL + len(weight)] = weight
            weight = around
        codes, scales = self._laid_out(weight.to(self.dtype))
        self.codes[first:last] = codes
        self.scales[first : first + len(scales)] = scales

    @property
    def _together(self) -> int:
        """Inputs are filled up to a multiple of this."""
        return 4 // self.dtype.itemsize

    def _laid_out(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (panels, ...) and scales (panels, ...), filled up with zeros."""
        return _side_by_side(weight, self._together), torch.empty(0)

    def _whole(self) -> Tensor:
        """The matrix with all that it was filled up with."""
        return _row_by_row(self.codes, self._together)


class QuantizedPanels(Panels):
    """The same in int8 or int4."""

    _together = GROUP

    def _laid_out(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "int8":
            codes, scales = int8(weight.float())
            scales = F.pad(scales, (0, -len(scales) % PANEL)).view(-1, PANEL)
            return _side_by_side(F.pad(codes, (0, -self.columns % GROUP)), 4), scales
        codes, affine = int4(weight, torch.bfloat16)
        panels, groups = -(-len(codes) // PANEL), self.columns // GROUP
        fours = F.pad(codes, (0, 0, 0, -len(codes) % PANEL)).view(panels, PANEL, groups, 4, 2, 4)
        pairs = (fours[..., 0, :] | fours[..., 1, :] << 4).permute(0, 2, 3, 1, 4)  # of the first four and the next
        affine = F.pad(affine, (0, 0, 0, 0, 0, -len(codes) % PANEL)).view(panels, PANEL, groups, 2).transpose(1, 2)
        parts = (pairs.reshape(panels, groups, -1), affine.contiguous().view(torch.uint8).reshape(panels, groups, -1))
        return torch.cat(parts, -1), torch.empty(0)

    def _whole(self) -> Tensor:
        if self.kind == "int8":
            return (_row_by_row(self.codes, 4).float() * self.scales.view(-1, 1)).to(self.dtype)
        panels, groups = self.codes.shape[:2]
        pairs = self.codes[..., : GROUP * PANEL // 2].view(panels, groups, 4, PANEL, 4)
        codes = torch.stack((pairs & 15, pairs >> 4), 3).permute(0, 4, 1, 2, 3, 5)  # panel, output, group, 4, 2, 4
        affine = self.codes[..., GROUP * PANEL // 2 :].contiguous().view(torch.bfloat16)
        affine = affine.view(panels, groups, PANEL, 2).transpose(1, 2).float()
        values = (codes.reshape(panels, PANEL, groups, GROUP).float() - 8) * affine[..., :1] + affine[..., 1:]
        return values.view(panels * PANEL, -1).to(self.dtype)


def _side_by_side(weight: Tensor, together: int) -> Tensor:
    """(panels, in / together, 16 * together) of (out, in)."""
    rows, columns = weight.shape
    whole = F.pad(weight, (0, -columns % together, 0, -rows % PANEL))
    grouped = whole.view(-1, PANEL, whole.shape[1] // together, together)
    return grouped.transpose(1, 2).flatten(2).contiguous()


def _row_by_row(panels: Tensor, together: int) -> Tensor:
    """The other way: (out, in), filled up."""
    return panels.view(*panels.shape[:2], PANEL, together).transpose(1, 2).reshape(len(panels) * PANEL, -1)
