"""Writes a safetensors file from tensors that are made one after another, so that only one is in memory.

`safetensors.torch.save_file` wants all of them at once. The format (github.com/huggingface/safetensors): eight bytes
with the header's length, the header as JSON, the tensors end to end. Order and padding are those of `save_file`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Pending(NamedTuple):
    """A tensor that is not in memory yet: its shape, and how to get it whole."""

    shape: Sequence[int]
    whole: Callable[[], Tensor]


def complete(tensors: Mapping[str, Tensor | Pending]) -> dict[str, Tensor]:
    """All tensors in memory, the pending ones made."""
    return {name: tensor.whole() if isinstance(tensor, Pending) else tensor for name, tensor in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Pending], dtype: torch.dtype) -> None:
    """Write tensors in one precision, asking for each that is pending when its turn comes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        shape = list(tensors[name].shape)
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            tensor = tensors[name]
            whole = tensor.whole() if isinstance(tensor, Pending) else tensor
            plain = whole.detach().to(device="cpu", dtype=dtype).contiguous()
            file.write(plain.flatten().view(torch.uint8).numpy().data)
            del tensor, whole, plain  # before the next one is made
