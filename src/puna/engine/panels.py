"""A matrix as `engine.kernels` reads it: in panels of 16 outputs that lie side by side (see native/tile.h).

One copy serves one row and many. Rows come in and go out as torch tensors here; a step of the engine hands the same
memory to the kernels as a whole (`engine.whole`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.engine.kernels import Kernels, Matrix

PANEL = 16
"""Outputs that lie side by side, and tokens of a page."""
_KINDS = {torch.float32: 0, torch.bfloat16: 1}


class Panels:
    """A matrix (out, in), float32 or bfloat16."""

    def __init__(self, weight: Tensor, kernels: Kernels) -> None:
        self.dtype, self.shape, self.kernels = weight.dtype, tuple(weight.shape), kernels
        self.columns = self.shape[1]
        self.kind = str(weight.dtype).removeprefix("torch.")
        self._together = 4 // weight.itemsize  # inputs that lie together
        self.codes = self._panels(weight)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes

    def matrix(self, outputs: int | None = None) -> Matrix:
        """For the kernels; valid as long as this lives. outputs: only so many of them."""
        columns = self.codes.shape[1] * self._together
        return Matrix(_KINDS[self.dtype], outputs or self.shape[0], columns, self.codes.data_ptr(), None)

    def __call__(self, x: Tensor) -> Tensor:
        matrix = self.matrix()
        rows = F.pad(x.reshape(-1, self.columns).float(), (0, matrix.columns - self.columns)).contiguous()
        out = self.kernels.product(matrix, rows)
        return out[:, : self.shape[0]].to(x.dtype).reshape(*x.shape[:-1], self.shape[0])

    def dense(self) -> Tensor:
        panels, groups = self.codes.shape[:2]
        flat = self.codes.view(panels, groups, PANEL, self._together).transpose(1, 2).reshape(panels * PANEL, -1)
        return flat[: self.shape[0], : self.columns].contiguous()

    def assign(self, row: int, weight: Tensor) -> None:
        if row % PANEL or len(weight) % PANEL:
            dense = self.dense()
            dense[row : row + len(weight)] = weight
            row, weight = 0, dense
        self.codes[row // PANEL : math.ceil((row + len(weight)) / PANEL)] = self._panels(weight.to(self.dtype))

    def _panels(self, weight: Tensor) -> Tensor:
        """(panels, in / together, 16 * together), filled up with zeros."""
        rows, columns = weight.shape
        whole = F.pad(weight, (0, -columns % self._together, 0, -rows % PANEL))
        grouped = whole.view(-1, PANEL, whole.shape[1] // self._together, self._together)
        return grouped.transpose(1, 2).flatten(2).contiguous()
