"""Muon for the matrices of the blocks, AdamW for embedding, head and norms.

Muon (Keller Jordan, 2024; arXiv 2502.16982 at scale) replaces each matrix' momentum by the nearest semi-orthogonal
matrix, so every direction of the update has the same size. Matrices of one shape are stacked and orthogonalised in one
batch of products. Where matrices are spread over processes (FSDP, tensor parallelism, both) each matrix has an owner:
every process sends its part there (an all-to-all), the owner works on it whole and sends the parts of the result back.

The state is created together with the optimizer, under the parameters' names, so a checkpoint loads in place. A step
takes `found_inf`, a scalar on the device: where it is 1 neither weights nor state change, without a host sync.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.optim.adamw import adamw

from puna.model.torch_compat import multiplies_bfloat16
from puna.train.recipe import OptimizerConfig

# Polar Express (arXiv 2505.16932), table 1 and its safety factor of 1.02: the composition of these odd quintics takes
# every singular value in [1e-3, 1] close to 1 faster than one fixed quintic does. (a, b, c) per iteration.
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(matrices: Tensor, steps: int, *, bf16: bool = False) -> Tensor:
    """The nearest semi-orthogonal matrix of each, approximately.

    It is U Vᵀ of the singular value decomposition. matrices: (stack, rows, columns). Returns the same shape in float32.
    All singular values of a result are within about 0.3 of 1 after 5 steps. Products are in bf16 on CUDA (as in the
    source) and with `bf16`, otherwise in fp32. In fp32 the iteration on long matrices runs on their small Gram matrix,
    which saves a third of the operations at 1:2.7; bf16 is too coarse for that.
    """
    x = matrices.bfloat16() if matrices.is_cuda or bf16 else matrices.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) * 1.02 + 1e-6)
    coefficients = [_POLAR_EXPRESS[min(i, len(_POLAR_EXPRESS) - 1)] for i in range(steps)]
    if x.dtype == torch.float32 and x.shape[2] >= 2 * x.shape[1]:
        x = _through_gram(x, coefficients)
    else:
        for a, b, c in coefficients:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


def _through_gram(x: Tensor, coefficients: list[tuple[float, float, float]]) -> Tensor:
    """Run the same iterations on the Gram matrix.

    Every factor is a polynomial in x xᵀ, so they are applied once.
    """
    gram = x @ x.mT
    product = None
    for index, (a, b, c) in enumerate(coefficients):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if index + 1 < len(coefficients):
            gram = factor @ gram @ factor
            gram = (gram + gram.mT) / 2  # rounding must not break the symmetry
    assert product is not None
    return product @ x


class Optimizer:
    """The update rule of a run: `step` updates weights, `state_dict` goes into checkpoints.

    parameters: (name, parameter) as the network names them; DTensors where they are spread. mesh: of the run's
    processes; with a dimension "pp" this process has the parameters of some stages, and the norm is that of all. twice:
    the name of one that another stage counts in the norm. bf16: whether the run multiplies in bf16; then Muon does too,
    on CPUs with instructions for it.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        config: OptimizerConfig,
        mesh: DeviceMesh | None = None,
        *,
        bf16: bool = False,
        twice: str = "",
    ) -> None:
        self.config, self.twice = config, twice
        self.stages = mesh.get_group("pp") if mesh is not None and "pp" in (mesh.mesh_dim_names or ()) else None
        self._parts: dict[Any, list[_Part]] = {}
        self.bf16 = bf16 and multiplies_bfloat16()
        self.state: dict[str, dict[str, Tensor]] = {}
        stacks: dict[Any, list[tuple[str, nn.Parameter]]] = defaultdict(list)
        rest: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = defaultdict(list)
        for name, parameter in parameters:
            if config.kind == "muon" and parameter.ndim == 2 and re.search(r"\.layers\.\d+\.", name):
                stacks[_placed(parameter)].append((name, parameter))
                self.state[name] = {"momentum": torch.zeros_like(parameter)}
            else:
                decay = config.weight_decay if parameter.ndim == 2 else 0.0
                rest[self._rate(name), decay].append((name, parameter))
                self.state[name] = {
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                }
        self.stacks, self.rest = list(stacks.values()), list(rest.items())

    def _rate(self, name: str) -> float:
        if name.startswith("model.embed_tokens") and self.config.embedding_lr:
            return self.config.embedding_lr
        if name.startswith("lm_head") and self.config.head_lr:
            return self.config.head_lr
        return self.config.lr

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter the optimizer moves."""
        return [parameter for _, parameter in self._named()]

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for members in (*self.stacks, *(members for _, members in self.rest)):
            yield from members

    def zero_grad(self) -> None:
        """Discard the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def clip(self, limit: float) -> Tensor:
        """The global gradient norm, a scalar on the device; gradients are scaled down to `limit` (0: left alone)."""
        counted = [p.grad for name, p in self._named() if p.grad is not None and name != self.twice]
        norm = torch.nn.utils.get_total_norm(counted, foreach=True)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if self.stages is not None:
            norm = norm.square()
            dist.all_reduce(norm, group=self.stages)
            norm = norm.sqrt()
        if limit:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), limit, norm, foreach=True)
        return norm

    @torch.no_grad()
    def step(self, factor: float, found_inf: Tensor | None = None) -> None:
        """Apply one update with every rate times `factor`.

        Nothing changes if `found_inf` (a float scalar) is 1.
        """
        for members in self.stacks:
            self._muon(members, factor, found_inf)
        for (rate, decay), members in self.rest:
            self._adamw(members, rate * factor, decay, found_inf)

    def _muon(self, members: list[tuple[str, nn.Parameter]], factor: float, found_inf: Tensor | None) -> None:
        config = self.config
        shape = tuple(members[0][1].shape)
        weights = [_local(parameter) for _, parameter in members]
        momenta = [_local(self.state[name]["momentum"]) for name, _ in members]
        grads = [_local(parameter.grad) for _, parameter in members]  # type: ignore[arg-type]
        keep = 1.0 if found_inf is None else 1.0 - found_inf
        if found_inf is not None:
            # With the momentum in place of the gradient the state stays exactly as it is, even if the gradient is NaN.
            grads = [torch.where(found_inf > 0, m, g) for m, g in zip(momenta, grads, strict=True)]
        torch._foreach_lerp_(momenta, grads, 1 - config.momentum)
        # Nesterov: look ahead by one more average.
        update = torch.stack(torch._foreach_lerp(grads, momenta, config.momentum))
        update = self._orthogonalize_shared(update, members[0][1])
        # Keep the root mean square of the update equal for every shape (modded-nanogpt's rule).
        rate = config.matrix_lr * factor * max(1.0, shape[0] / shape[1]) ** 0.5
        if config.weight_decay:
            torch._foreach_mul_(weights, 1 - rate * config.weight_decay * keep)
        torch._foreach_add_(weights, list((update * (-rate * keep)).to(weights[0].dtype).unbind(0)))

    def _orthogonalize_shared(self, stack: Tensor, like: nn.Parameter) -> Tensor:
        """Orthogonalise (matrices, local rows, local columns), each process the matrices that it owns."""
        group = _spread_over(like)
        if group is None:
            return orthogonalize(stack, self.config.newton_schulz_steps, bf16=self.bf16)
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        if _placed(like) not in self._parts:
            found: list[Any] = [None] * ranks
            assert isinstance(like, DTensor)
            dist.all_gather_object(found, _Part.of(like), group=group)
            self._parts[_placed(like)] = found
        parts = self._parts[_placed(like)]
        each = -(-len(stack) // ranks)
        owned = [min(len(stack), (place + 1) * each) - min(len(stack), place * each) for place in range(ranks)]
        here, sizes = [count * stack[0].numel() for count in owned], [owned[rank] * part.numel for part in parts]
        flat = stack.new_empty(sum(sizes))
        dist.all_to_all_single(flat, stack.flatten(), sizes, here, group=group)
        whole = stack.new_empty(owned[rank], *like.shape)
        for piece, part in zip(flat.split(sizes), parts, strict=True):
            whole[part.place] = piece.view(owned[rank], part.rows, part.columns)
        if owned[rank]:
            whole = orthogonalize(whole, self.config.newton_schulz_steps, bf16=self.bf16).to(stack.dtype)
        back = torch.empty_like(stack)
        flat = torch.cat([whole[part.place].flatten() for part in parts])
        dist.all_to_all_single(back.view(-1), flat, here, sizes, group=group)
        return back

    def _adamw(
        self, members: list[tuple[str, nn.Parameter]], rate: float, decay: float, found_inf: Tensor | None
    ) -> None:
        states = [self.state[name] for name, _ in members]
        adamw(
            [_local(parameter) for _, parameter in members],
            [_local(parameter.grad) for _, parameter in members],  # type: ignore[arg-type]
            [_local(state["exp_avg"]) for state in states],
            [_local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=found_inf,
            amsgrad=False,
            beta1=self.config.betas[0],
            beta2=self.config.betas[1],
            lr=rate,
            weight_decay=decay,
            eps=self.config.eps,
            maximize=False,
        )

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The live state tensors by parameter name; loading writes into them."""
        return self.state


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class _Part(NamedTuple):
    """The part of a matrix that a process has, and how large it is."""

    top: int
    left: int
    rows: int
    columns: int

    @classmethod
    def of(cls, matrix: DTensor) -> "_Part":
        (chunk,) = matrix.__create_chunk_list__()  # where it is, for any placement
        return cls(*chunk.offsets, *chunk.sizes)

    @property
    def place(self) -> tuple[slice, slice, slice]:
        """Where it is in a stack of whole matrices."""
        return slice(None), slice(self.top, self.top + self.rows), slice(self.left, self.left + self.columns)

    @property
    def numel(self) -> int:
        return self.rows * self.columns


def _placed(parameter: Tensor) -> tuple[Any, ...]:
    """What matrices of one stack have in common: shape and parts."""
    return tuple(parameter.shape), parameter.placements if isinstance(parameter, DTensor) else None


def _spread_over(parameter: Tensor) -> dist.ProcessGroup | None:
    """The processes that have different parts of a matrix; None where each one has it whole."""
    if not isinstance(parameter, DTensor):
        return None
    mesh = parameter.device_mesh
    split = [n for n, p in enumerate(parameter.placements) if not isinstance(p, Replicate) and mesh.size(n) > 1]
    if not split:
        return None
    names = tuple((mesh.mesh_dim_names or ())[dimension] for dimension in split)
    return mesh[names[0]].get_group() if len(names) == 1 else mesh[names]._flatten("_".join(names)).get_group()
