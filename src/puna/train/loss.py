"""Cross entropy of the language model without ever holding all logits.

The logits are the largest tensor of a batch: 16k tokens of a 128k vocabulary take 8 GB in fp32, and three times that
with their gradient. Here head and loss are computed together, chunk by chunk, forward and backward in one pass: the
gradient of a chunk's logits is known as soon as its softmax is, so it is turned into gradients of the hidden states
and the head at once and then discarded. The matrix products are those of the plain computation; nothing is recomputed.
This is chunked, fused linear cross entropy (arXiv 2410.10989, 2411.09009), written with plain torch operations.
"""

from typing import Any

import torch
from torch import Tensor

IGNORE = -100


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, chunk: int, z_loss: float
    ) -> tuple[Tensor, Tensor]:
        head = weight.to(hidden.dtype)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        total = hidden.new_zeros((), dtype=torch.float32)
        penalty = hidden.new_zeros((), dtype=torch.float32)
        step = chunk or len(hidden) or 1
        for start in range(0, len(hidden), step):
            h, t = hidden[start : start + step], targets[start : start + step]
            logits = (h @ head.T).float()  # (chunk, vocab)
            valid = t != IGNORE
            index = t.clamp_min(0).unsqueeze(1)
            log_z = torch.logsumexp(logits, dim=1)
            total += ((log_z - logits.gather(1, index).squeeze(1)) * valid).sum()
            if z_loss:
                penalty += (log_z.square() * valid).sum()
            if not (need_hidden or need_weight):
                continue
            grad = logits.sub_(log_z.unsqueeze(1)).exp_()  # softmax, in place
            row = valid * scale
            grad *= (row * (1 + 2 * z_loss * log_z) if z_loss else row).unsqueeze(1)
            grad.scatter_add_(1, index, -row.unsqueeze(1))
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, head, out=grad_hidden[start : start + step])
            if grad_weight is not None:
                if grad.dtype == torch.float32:
                    grad_weight.addmm_(grad.T, h)
                else:
                    grad_weight += grad.T @ h
            del logits, grad  # otherwise this chunk's memory stays allocated while the next logits are computed
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        loss = total * scale
        ctx.mark_non_differentiable(loss)
        return loss + z_loss * penalty * scale, loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_output.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad_output.to(grad_weight.dtype),
            None,
            None,
            None,
            None,
        )


def cross_entropy_chunked(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, scale: Tensor, chunk: int = 1024, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross entropy of next-token predictions, summed over valid targets and times `scale`.

    hidden: (..., hidden_size) in fp32 or bf16, weight: (vocab, hidden_size), targets: (...) with -100 for "do not
    count", scale: scalar tensor, 1 / (valid targets of the whole global batch), so that the sum over micro-batches and
    ranks is the exact mean even with ragged masks. chunk: tokens whose logits exist at once (0: all).
    z_loss: weight of log(Z)^2 (PaLM, arXiv 2204.02311).
    Returns (the scalar to call backward on, the cross entropy alone in nats), both float32.
    """
    size, device = hidden.shape[-1], hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    # Autocast would cast the accumulating products back and forth, so dtypes are chosen explicitly here.
    with torch.autocast(device, enabled=False):
        return _ChunkedCrossEntropy.apply(hidden.reshape(-1, size), weight, targets.reshape(-1), scale, chunk, z_loss)
