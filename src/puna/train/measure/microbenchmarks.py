"""The operations of a training step, each ready to be timed, and the timing itself.

The cost of a training step is composed from these (`plan.own`), so each operation is measured as training uses it:
products with their two gradients, causal attention forward and backward, the trainer's own loss. They are timed in
rounds, every operation once and then again: a brief disturbance by other programs then slows one call of many
operations instead of every call of one. The median over an operation's calls counts, so a constant load, which slows
the run as well, is included.
"""

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch.nn.functional import ScalingType, scaled_dot_product_attention, scaled_mm, silu

from puna.model.torch_compat import multiplies_bfloat16
from puna.plan.equations.cost import BACKWARD_FLASH
from puna.plan.evidence.local_device import Products
from puna.train.loss import cross_entropy_chunked
from puna.train.optimizer import orthogonalize
from puna.train.parallel.fp8 import has_fp8, quantize

Size = tuple[int, int, int]
Operation = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)

# Width and rows of the hidden states while the loss is timed: so narrow that the head's products hardly matter.
LOSS_WIDTH, LOSS_ROWS = 16, 1024
GATE_NUMBERS, LAUNCHES = 2**20, 100
MUON_STACK, MUON_ITERATIONS = 4, 5


def time_in_rounds(
    operations: Mapping[Name, Operation],
    device: str,
    *,
    rounds: int,
    budget: float,
    done: Callable[[], None],
    limit: float = math.inf,
) -> dict[Name, float]:
    """Seconds of each operation, after a warm-up call.

    budget: seconds per operation and round, but at least one call. done: called after every operation of every round.
    limit: seconds after which no further round begins; when the warm-up alone took longer (a busy machine), its calls
    count. Operations that do not fit into the device's memory are left out.
    """
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
    times: dict[Name, list[float]] = {name: [] for name in operations}
    begin = time.perf_counter()
    for turn in range(rounds + 1):
        if turn and time.perf_counter() - begin > limit:
            break
        if turn == 1:
            times = {name: [] for name in times}
        for name, run in operations.items():
            done()
            if name not in times:
                continue
            spent = 0.0
            try:
                while spent == 0.0 or spent < budget:
                    started = time.perf_counter()
                    run()
                    wait()
                    seconds = time.perf_counter() - started
                    spent += seconds
                    times[name].append(seconds)
                    if turn == 0:
                        break
            except torch.OutOfMemoryError:
                del times[name]
    return {name: sorted(some)[len(some) // 2] for name, some in times.items()}


@lru_cache(maxsize=4)
def has_fast_bf16(device: str) -> bool:
    """Whether bf16 products are not much slower than fp32 ones here, measured on a small one.

    A CPU without bf16 instructions emulates them, up to a hundred times slower.
    """
    small = {dtype: product((256, 256, 256), dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    seconds = time_in_rounds(small, device, rounds=3, budget=0.0, done=lambda: None)
    return seconds[torch.bfloat16] < 4 * seconds[torch.float32]


def fit_products(sizes: Sequence[Size], seconds: Sequence[float]) -> Products:
    """Fit the rate and half size of `plan.machine.Products` to the measured training products.

    Uses least squares of the logarithm and tries half sizes from 0 to 512.
    """
    dimensions, log_seconds = np.array(sizes, dtype=float), np.log(np.array(seconds))
    flops = np.log(6 * dimensions.prod(1))

    def rates(half: float) -> np.ndarray:
        return np.asarray(flops + np.log1p(half / dimensions).sum(1) - log_seconds)

    half = min(np.arange(0.0, 512.5, 0.5).tolist(), key=lambda half: float(np.var(rates(half))))
    return Products(tflops=float(np.exp(rates(half).mean())) / 1e12, half_size=half)


# -- operations ------------------------------------------------------------------------------------------------------


def product(size: Size, dtype: torch.dtype, device: str) -> Operation:
    """The product (rows, inputs) x (inputs, outputs): 2·rows·inputs·outputs FLOPs."""
    rows, inputs, outputs = size
    left = torch.randn(rows, inputs, device=device).to(dtype)
    right = torch.randn(inputs, outputs, device=device).to(dtype)
    return lambda: left @ right


def training_product(size: Size, dtype: torch.dtype, device: str) -> Operation:
    """A linear layer's product and its two gradients: 3 times the FLOPs.

    The product is of (rows, inputs) with (outputs, inputs).
    """
    rows, inputs, outputs = size
    x = torch.randn(rows, inputs, device=device).to(dtype)
    weight = torch.randn(outputs, inputs, device=device).to(dtype)
    grad = torch.randn(rows, outputs, device=device).to(dtype)
    return lambda: (x @ weight.T, grad @ weight, grad.T @ x)


def fp8_product(size: Size, device: str) -> Operation | None:
    """A product in e4m3 with one scale for each operand, as in `train.parallel.fp8`.

    None on devices without fp8.
    """
    if not has_fp8(torch.device(device)):
        return None
    rows, inputs, outputs = size
    left, left_scale = quantize(torch.randn(rows, inputs, device=device), torch.float8_e4m3fn)
    right, right_scale = quantize(torch.randn(outputs, inputs, device=device), torch.float8_e4m3fn)
    tensorwise, wanted = ScalingType.TensorWise, torch.bfloat16
    return lambda: scaled_mm(left, right.T, left_scale, tensorwise, right_scale, tensorwise, output_dtype=wanted)


def attention(seq_len: int, head_dim: int, dtype: torch.dtype, device: str) -> Operation:
    """Causal attention, forward and backward: `attention_flops`."""
    shape = _heads(seq_len, head_dim, device)
    query, key, value, grad = (torch.randn(shape, device=device).to(dtype).transpose(1, 2) for _ in range(4))
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]

    def both() -> object:
        out = scaled_dot_product_attention(query, key, value, is_causal=True)
        return torch.autograd.grad(out, inputs, grad)

    return both


def attention_forward(seq_len: int, head_dim: int, dtype: torch.dtype, device: str) -> Operation:
    """The forward pass of `attention` alone."""
    shape = _heads(seq_len, head_dim, device)
    query, key, value = (torch.randn(shape, device=device).to(dtype).transpose(1, 2) for _ in range(3))
    return lambda: scaled_dot_product_attention(query, key, value, is_causal=True)


def attention_flops(seq_len: int, head_dim: int, device: str, *, backward: bool) -> float:
    """FLOPs of `attention`.

    Two products over half of the square of scores, and 2.5 times that backward.
    """
    batch, _, heads, _ = _heads(seq_len, head_dim, device)
    return 2.0 * batch * heads * seq_len**2 * head_dim * (1 + BACKWARD_FLASH * backward)


def muon(size: int, device: str) -> Operation:
    """Muon's orthogonalisation of MUON_STACK square matrices: `muon_flops`.

    As in a run that is not in fp32.
    """
    matrices = torch.randn(MUON_STACK, size, size, device=device)
    return lambda: orthogonalize(matrices, MUON_ITERATIONS, bf16=multiplies_bfloat16())


def muon_flops(size: int) -> float:
    """FLOPs of `muon`: three products an iteration."""
    return MUON_STACK * MUON_ITERATIONS * 6.0 * size**3


def loss(vocab: int, dtype: torch.dtype, device: str) -> Operation:
    """The trainer's head and loss with their gradients, for LOSS_ROWS tokens, LOSS_WIDTH wide."""
    hidden = torch.randn(LOSS_ROWS, LOSS_WIDTH, device=device).to(dtype).requires_grad_()
    weight = torch.randn(vocab, LOSS_WIDTH, device=device).requires_grad_()
    targets = torch.randint(vocab, (LOSS_ROWS,), device=device)
    scale = torch.tensor(1.0 / LOSS_ROWS, device=device)
    return lambda: cross_entropy_chunked(hidden, weight, targets, scale=scale, chunk=LOSS_ROWS)


def gate(device: str) -> Operation:
    """SiLU times another tensor in fp32.

    Counted as if fused: 12 bytes for each of GATE_NUMBERS numbers.
    """
    one, other = torch.randn(GATE_NUMBERS, device=device), torch.randn(GATE_NUMBERS, device=device)
    return lambda: silu(one) * other


def copy(numbers: int, device: str) -> Operation:
    """Copy a tensor: 8 bytes for each number, read and written."""
    source, target = torch.randn(numbers, device=device), torch.empty(numbers, device=device)
    return lambda: target.copy_(source)


def launches(device: str) -> Operation:
    """Run the smallest operation LAUNCHES times."""
    number = torch.zeros(1, device=device)

    def many() -> None:
        for _ in range(LAUNCHES):
            number.add_(1.0)

    return many


def flops(size: Size) -> float:
    """FLOPs of `product`."""
    return 2.0 * math.prod(size)


def _heads(seq_len: int, head_dim: int, device: str) -> tuple[int, int, int, int]:
    """(batch, seq, heads, head_dim) as in the network.

    It is enough for all cores or compute units, and no more.
    """
    tokens, heads = (2048, 4) if device == "cpu" else (32768, 16)
    return max(1, tokens // seq_len), seq_len, heads, head_dim
