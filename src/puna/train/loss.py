"""Cross entropy of the language model without ever holding all logits.

The logits are the largest tensor of a batch: 16k tokens of a 128k vocabulary take 8 GB in fp32, and three times that
with their gradient. Here head and loss are computed together, chunk by chunk, forward and backward in one pass: the
gradient of a chunk's logits is known as soon as its softmax is, so it is turned into gradients of the hidden states
and the head at once and then discarded. The matrix products are those of the plain computation; nothing is recomputed.
This is chunked, fused linear cross entropy (arXiv 2410.10989, 2411.09009), written with plain torch operations.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

IGNORE = -100


class VocabularyPart(NamedTuple):
    """The rows of the head that this process holds, of those that are spread over `group`."""

    first: int
    group: dist.ProcessGroup

    @classmethod
    def of(cls, weight: DTensor) -> "VocabularyPart":
        """Where the local rows of a weight that one mesh dimension splits begin."""
        mesh = weight.device_mesh
        return cls(mesh.get_local_rank() * -(-weight.shape[0] // mesh.size()), mesh.get_group())

    def holds(self, targets: Tensor, rows: int) -> Tensor:
        """Which targets are among the local rows."""
        return (targets >= self.first) & (targets < self.first + rows)

    def combine(self, log_z: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the whole sum, and the targets' logits, from each process' own (zero where it does not hold them)."""
        own, size = torch.stack((log_z, picked)), dist.get_world_size(self.group)
        parts = own.new_empty(size * 2, own.shape[1])
        dist.all_gather_into_tensor(parts, own, group=self.group)
        parts = parts.view(size, 2, -1)
        return torch.logsumexp(parts[:, 0], dim=0), parts[:, 1].sum(0)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor,
        chunk: int,
        z_loss: float,
        vocabulary: VocabularyPart | None,
    ) -> tuple[Tensor, Tensor]:
        head = weight.to(hidden.dtype)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if need_weight else None
        total = hidden.new_zeros((), dtype=wide)
        penalty = hidden.new_zeros((), dtype=wide)
        step = chunk or len(hidden) or 1
        for start in range(0, len(hidden), step):
            h, t = hidden[start : start + step], targets[start : start + step]
            logits = (h @ head.T).to(wide)  # (chunk, vocab)
            valid = t != IGNORE
            hits = valid if vocabulary is None else vocabulary.holds(t, len(weight))
            index = (t if vocabulary is None else (t - vocabulary.first) * hits).clamp_min(0).unsqueeze(1)
            log_z, picked = torch.logsumexp(logits, dim=1), logits.gather(1, index).squeeze(1)
            if vocabulary is not None:
                log_z, picked = vocabulary.combine(log_z, picked * hits)
            total += ((log_z - picked) * valid).sum()
            if z_loss:
                penalty += (log_z.square() * valid).sum()
            if not (need_hidden or need_weight):
                continue
            grad = logits.sub_(log_z.unsqueeze(1)).exp_()  # softmax, in the logits' memory
            row = (valid * scale).to(wide)
            grad *= (row * (1 + 2 * z_loss * log_z) if z_loss else row).unsqueeze(1)
            grad.scatter_add_(1, index, -(row * hits if vocabulary else row).unsqueeze(1))
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, head, out=grad_hidden[start : start + step])
            if grad_weight is not None:
                if grad.dtype == wide:
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
            None,
        )


def cross_entropy_chunked(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, scale: Tensor, chunk: int = 1024, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross entropy of next-token predictions, summed over valid targets and times `scale`.

    hidden: (..., hidden_size) in fp32 or bf16, weight: (vocab, hidden_size), targets: (...) with -100 for "do not
    count", scale: scalar tensor, 1 / (valid targets of the whole global batch), so that the sum over micro-batches and
    ranks is the exact mean however ragged the masks are. chunk: tokens whose logits exist at once (0: all).
    z_loss: weight of log(Z)^2 (PaLM, arXiv 2204.02311). A weight whose rows are spread over ranks (a DTensor) is used
    in parts, one on each of them: all have the same hidden states and get the same loss, and a share of their gradient.
    Returns (what to call backward on, the cross entropy alone in nats), both float32 scalars.
    """
    size, device, vocabulary = hidden.shape[-1], hidden.device.type, None
    if isinstance(weight, DTensor):
        vocabulary, weight = VocabularyPart.of(weight), weight.to_local()
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    # Autocast would cast the accumulating products back and forth, so dtypes are chosen explicitly here.
    with torch.autocast(device, enabled=False):
        rows = hidden.reshape(-1, size)
        return _ChunkedCrossEntropy.apply(rows, weight, targets.reshape(-1), scale, chunk, z_loss, vocabulary)


@dataclass(frozen=True)
class CrossEntropyHead:
    """`cross_entropy_chunked` as the head of a forward pass.

    place: positions of the flattened hidden states that are learned from, those of `targets`; None: all of them.
    """

    targets: Tensor
    scale: Tensor
    chunk: int
    z_loss: float = 0.0
    place: Tensor | None = None
    splits_vocabulary: ClassVar = True
    """Under tensor parallelism this head takes the weight as the ranks hold it; others get it whole."""

    def __call__(self, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(what to call backward on, the cross entropy alone)."""
        if self.place is not None:
            hidden = hidden.flatten(0, 1)[self.place]
        return cross_entropy_chunked(
            hidden, weight, self.targets, scale=self.scale, chunk=self.chunk, z_loss=self.z_loss
        )
