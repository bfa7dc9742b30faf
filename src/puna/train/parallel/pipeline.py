"""Pipeline parallelism: the blocks cut into stages, micro-batches sent through them (arXiv 1806.03377, 2104.04473).

A process keeps the blocks of its stages under the names they have in the whole network, so a checkpoint and a model
directory fit every layout. torch's schedules (1F1B, interleaved) move hidden states and their gradients. The last stage
computes the loss inside its forward, where FSDP has the head gathered. Weights are gathered once a step and gradients
reduced once, after the last micro-batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from puna.model.llama import Block, Cache, DocumentMask, LlamaForCausalLM
from puna.train.parallel.mesh import World
from puna.train.parallel.tensor import WholeHead, fill_rows

TIED = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Call:
    """What a network is called with for one micro-batch; see `LlamaForCausalLM.forward`."""

    ids: Tensor
    head: Callable[[Tensor, Tensor], Any]
    positions: Tensor | None = None
    mask: DocumentMask | None = None
    cache: Cache | None = None

    def of(self, network: nn.Module) -> Any:
        """Call a whole network."""
        return network(self.ids, positions=self.positions, mask=self.mask, cache=self.cache, head=self.head)


def stage_blocks(layers: int, stages: int) -> list[range]:
    """The blocks of each stage: at least one, and one less where embedding or head are, as far as it goes.

    Llama 3's 126 blocks on 16 stages are 7, fourteen times 8, and 7.
    """
    sizes = [1] * stages
    for _ in range(layers - stages):
        weights = [size + (place in (0, stages - 1)) for place, size in enumerate(sizes)]
        sizes[weights.index(min(weights))] += 1
    ends = [sum(sizes[: place + 1]) for place in range(stages)]
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


class Stage(nn.Module):
    """Some blocks of a network, and what is before the first and after the last of them."""

    def __init__(self, model: LlamaForCausalLM, blocks: Sequence[int], *, first: bool, last: bool, ways: int) -> None:
        super().__init__()
        self.first, self.last, self.ways = first, last, ways
        self.blocks = nn.ModuleList(cast(Block, model.model.layers[number]) for number in blocks)
        if first:
            self.embed_tokens = model.model.embed_tokens
        if last:
            self.norm = model.model.norm
            self.head = model.model.embed_tokens if model.config.tie_word_embeddings else model.lm_head
        self._rotary = [model.model.rotary]  # in a list: it is no part of this module
        self.calls: Sequence[Call] = ()
        """The micro-batches of the step, set before it."""
        self.losses: list[Tensor] = []

    def forward(self, x: Tensor, number: Tensor, measuring: bool = False) -> Any:
        """One micro-batch, number (1,) on the CPU; x: hidden states, and on the first stage nothing of interest.

        Returns hidden states, or on the last stage what its head gives: the objective (1,) in training.
        """
        call = self.calls[int(number)]
        answer = self._compute(x, call)
        if not self.last or measuring:
            return answer
        objective, loss = answer
        self.losses.append(loss.detach())
        return torch.stack((objective,))  # no view: FSDP's hook on it would be lost

    def _compute(self, x: Tensor, call: Call) -> Any:
        """Hidden states after the stage's blocks; on the last stage what the call's head returns."""
        length = call.ids.shape[1]
        ids, positions, mask = fill_rows(call.ids, call.positions, call.mask, self.ways)
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        rope = self._rotary[0](positions)
        if self.first:
            x = self.embed_tokens(ids)
        for block in self.blocks:
            x = block(x, rope, mask, call.cache)
        if not self.last:
            return x
        head = WholeHead(call.head, length) if self.ways > 1 else call.head
        return head(self.norm(x), cast(Tensor, self.head.weight))


class Pipeline(nn.Module):
    """The network of a run whose blocks are on several processes. `run` takes a step's micro-batches through all."""

    def __init__(self, model: LlamaForCausalLM, world: World, *, mixed: bool) -> None:
        """Cut `model`, in place and with parameters on meta, down to the blocks of this process' stages.

        mixed: whether FSDP casts weights to bf16, and so what goes between stages.
        """
        super().__init__()
        self.mixed = mixed
        assert world.layout is not None
        assert world.stage_group is not None
        self.world, self.layout, self.group = world, world.layout, world.stage_group
        self.count = self.layout.pp * self.layout.virtual_stages
        cuts = stage_blocks(model.config.num_hidden_layers, self.count)
        self.numbers = range(world.stage, self.count, self.layout.pp)
        self.tied = model.config.tie_word_embeddings and world.stage in (0, self.layout.pp - 1)
        self.hidden_size = model.config.hidden_size
        _keep(model, [block for number in self.numbers for block in cuts[number]], world.stage, self.layout.pp)
        self._model, self._cuts = [model], cuts  # in a list: the stages hold the parts of it that are here
        self._schedules: dict[tuple[int, int, int], Any] = {}
        self.stages = nn.ModuleList()

    def make_stages(self) -> list[Stage]:
        """The stages of this process, once the matrices of the network are as split as they will be."""
        for number in self.numbers:
            ends = {"first": number == 0, "last": number == self.count - 1}
            blocks = [str(block) for block in self._cuts[number]]
            self.stages.append(Stage(self._model[0], blocks, **ends, ways=self.layout.tp))  # type: ignore[arg-type]
        self._model[0].forward = self.forward  # type: ignore[method-assign]
        return cast(list[Stage], list(self.stages))

    # -- learning ----------------------------------------------------------------------------------------------------

    def run(self, calls: Sequence[Call]) -> Tensor:
        """Forward and backward of a step's micro-batches; their losses summed, zero where the last stage is not."""
        numbers = torch.arange(len(calls))
        stages = cast(list[Stage], list(self.stages))
        for stage in stages:
            stage.calls, stage.losses = calls, []
        args = (numbers,) if stages[0].first else ()
        targets = numbers if stages[-1].last else None
        self._schedule(calls).step(*args, number=numbers, target=targets, return_outputs=False)
        if self.tied:
            self._add_tied_gradients()
        losses = [loss for stage in stages for loss in stage.losses]
        for stage in stages:
            stage.calls = ()
        if losses:
            return torch.stack(losses).sum()
        return torch.zeros((), dtype=self._loss_dtype, device=self.world.device)

    def _schedule(self, calls: Sequence[Call]) -> Any:
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

        rows, length = calls[0].ids.shape
        key = (len(calls), rows, length)
        if key not in self._schedules:
            shape = (rows, length // self.layout.tp, self.hidden_size)
            hidden = torch.empty(shape, dtype=self._stream_dtype, device="meta", requires_grad=True)
            loss = torch.empty(1, dtype=self._loss_dtype, device="meta", requires_grad=True)
            number = torch.empty(1, dtype=torch.long, device="meta")
            stages: list[Any] = [
                PipelineStage(
                    stage,
                    place,
                    self.count,
                    self.world.device,
                    # Shapes are known: nothing is run to find them, which would forget the gradients so far.
                    input_args=number if stage.first else hidden,
                    output_args=loss if stage.last else hidden,
                    group=self.group,
                )
                for place, stage in zip(self.numbers, cast(list[Stage], list(self.stages)), strict=True)
            ]
            # Scaling by the number of micro-batches is off: losses are shares of the whole batch's already.
            same: dict[str, Any] = {"n_microbatches": len(calls), "loss_fn": _as_it_is, "scale_grads": False}
            if self.layout.virtual_stages > 1:
                self._schedules[key] = ScheduleInterleaved1F1B(cast(list[Any], stages), **same)
            else:
                self._schedules[key] = Schedule1F1B(stages[0], **same)
        return self._schedules[key]

    @property
    def _stream_dtype(self) -> torch.dtype:
        """Of what goes from stage to stage."""
        return torch.bfloat16 if self.mixed else next(self.stages.parameters()).dtype

    @property
    def _loss_dtype(self) -> torch.dtype:
        return torch.promote_types(self._stream_dtype, torch.float32)

    def _add_tied_gradients(self) -> None:
        """First and last stage have a copy of the embedding each: both get the sum of its gradients, to the bit."""
        parameter = dict(self._model[0].named_parameters())[TIED]
        grad = cast(Tensor, parameter.grad)
        own = grad.to_local() if isinstance(grad, DTensor) else grad
        theirs = torch.empty_like(own)
        last = self.layout.pp - 1
        other = dist.get_global_rank(self.group, last if self.world.stage == 0 else 0)
        exchange = [dist.P2POp(dist.isend, own.contiguous(), other), dist.P2POp(dist.irecv, theirs, other)]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()
        own.add_(theirs)

    # -- measuring ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        *,
        positions: Tensor | None = None,
        mask: DocumentMask | None = None,
        cache: Cache | None = None,
        head: Callable[[Tensor, Tensor], Any] = F.linear,
    ) -> Any:
        """The whole network's answer, on every process of the pipeline, without gradients: one stage after another."""
        call = Call(input_ids, head, positions, mask, cache)
        stages = dict(zip(self.numbers, cast(list[Stage], list(self.stages)), strict=True))
        x: Any = torch.empty(0, device=self.world.device)
        with torch.no_grad():
            for number in range(self.count):
                here, there = number % self.layout.pp, (number + 1) % self.layout.pp
                if number in stages:
                    stages[number].calls = (call,)
                    x = stages[number](x, torch.zeros(1), measuring=True)
                if number < self.count - 1 and here != there and self.world.stage in (here, there):
                    x = self._pass_on(x, call, here, there)
        # Between steps weights are shards: the optimizer and checkpoints work on those.
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return self._from_last(x)

    def _pass_on(self, x: Tensor, call: Call, here: int, there: int) -> Tensor:
        if self.world.stage == here:
            dist.send(x.contiguous(), group=self.group, group_dst=there)
            return x
        rows, length = call.ids.shape
        shape = (rows, -(-length // self.layout.tp), self.hidden_size)
        x = torch.empty(shape, dtype=self._stream_dtype, device=self.world.device)
        dist.recv(x, group=self.group, group_src=here)
        return x

    def _from_last(self, answer: Any) -> Any:
        last = self.layout.pp - 1
        kind: list[Any] = [None]
        if self.world.stage == last:
            answer = answer.contiguous()
            kind = [(answer.shape, answer.dtype)]
        dist.broadcast_object_list(kind, group=self.group, group_src=last, device=self.world.device)
        if self.world.stage != last:
            answer = torch.empty(kind[0][0], dtype=kind[0][1], device=self.world.device)
        dist.broadcast(answer, group=self.group, group_src=last)
        return answer


def _keep(model: LlamaForCausalLM, blocks: Sequence[int], stage: int, stages: int) -> None:
    """Remove from a network what other processes have; names stay as they are."""
    model.model.layers = nn.ModuleDict({str(number): model.model.layers[number] for number in blocks})  # type: ignore[assignment]
    first, last = stage == 0, stage == stages - 1
    if not first and not (last and model.config.tie_word_embeddings):
        del model.model.embed_tokens
    if not last:
        del model.model.norm
        if not model.config.tie_word_embeddings:
            del model.lm_head


def _as_it_is(objective: Tensor, _: Tensor) -> Tensor:
    return objective.sum()
