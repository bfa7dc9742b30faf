"""Small numbers on their way between host and device, without waiting for the device.

A plain copy to or from a GPU waits until everything that was asked of it before is done. From and to memory that the
system cannot move (pinned) a copy takes its turn among the kernels instead. On a CPU there is nothing to copy.
"""

from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers (a list, an array, a tensor) as a tensor on the device, there when the device's next kernel runs."""
    host = torch.as_tensor(values, dtype=dtype)
    if device.type != "cuda":
        return host.to(device)
    # torch keeps pinned memory until the copies that were asked of it are done.
    return host.pin_memory().to(device, non_blocking=True)


class Readout:
    """A tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor

    def tolist(self) -> list[Any]:
        """Its numbers, as soon as what computes them is done; what the device was asked afterwards may still run."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()
