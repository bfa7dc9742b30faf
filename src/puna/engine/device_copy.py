"""Small copies between host and device that do not wait for the device.

A plain copy to or from a GPU waits until all earlier work on it is done. From and to memory that the system cannot move
(pinned), a copy takes its turn among the kernels instead. On a CPU there is nothing to copy.
"""

from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers (a list, an array, a tensor) as a tensor on the device, ready when the device's next kernel runs."""
    host = torch.as_tensor(values, dtype=dtype)
    if device.type != "cuda":
        return host.to(device)
    # torch keeps pinned memory until the copies from it are done.
    return host.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """A copy of a tensor to the host that is under way."""

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
        """Wait for its numbers only: work that the device was given later may still run."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()
