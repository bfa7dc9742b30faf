"""What the forked processes of test_layouts.py do: Puna's own code under one layout, compared with one process.

Weights are random where fresh ones are zero, targets are ragged (one row has none), a row has several documents: what
is wrong somewhere then shows in some gradient. In fp64 equal means 1e-12.
"""

import functools
import hashlib
import json
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate
from torch.utils.checkpoint import CheckpointPolicy

from puna.core.recipe import load
from puna.model.config import ModelConfig
from puna.model.layout import LayoutConfig
from puna.model.llama import LlamaForCausalLM, copy_whole
from puna.model.store import save_model
from puna.model.tensor_file import Pending
from puna.train import parallel, pretrain
from puna.train.feed import LocalRows
from puna.train.loop import Loop
from puna.train.loss import IGNORE
from puna.train.measure.machine import Machine
from puna.train.optimizer import Optimizer
from puna.train.pretrain import Pretraining
from puna.train.recipe import CheckpointConfig, OptimizerConfig, Recipe
from puna.train.run.checkpoint import Checkpointer

ROWS, SEQ, VOCABULARY = 8, 32, 250


def shape(tie: bool = False, layers: int = 4, kv_heads: int = 2) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=tie,
    )


def random_tensor(key: str, size: torch.Size) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "little")
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def fill(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        whole = random_tensor(name, parameter.shape)
        whole = 1 + 0.1 * whole if parameter.ndim == 1 else whole * parameter.shape[1] ** -0.5
        copy_whole(whole.to(parameter.dtype), parameter)


def batch(masked: bool) -> LocalRows:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, VOCABULARY, (ROWS, SEQ), generator=generator)
    targets = torch.randint(0, VOCABULARY, (ROWS, SEQ), generator=generator)
    documents = torch.randint(0, 3, (ROWS, SEQ), generator=generator).sort(1)[0]
    for row in range(ROWS):
        targets[row, : row * 7 % SEQ] = IGNORE
    targets[ROWS - 2] = IGNORE
    return LocalRows(ids, targets, documents if masked else None)


class Fixed(Pretraining):
    """Pretraining on one batch, without a corpus."""

    def __init__(self, run: Any) -> None:
        self.run, self.recipe = run, run.recipe
        self._scale = torch.ones(())
        self._context = None
        if run.world.context_group is not None:
            self._context = parallel.ContextShare(run.world, SEQ)


class Place:
    """A network in its layout, and the loop around it as far as one step needs it."""

    def __init__(self, job: dict[str, Any], layout: dict[str, int], processes: int) -> None:
        config = shape(job.get("tie", False), job.get("layers", 4), job.get("kv_heads", 2))
        train = {"seq_len": SEQ, "batch": ROWS, "steps": 1, "precision": "fp32", "loss_chunk": 16}
        train |= {"z_loss": job.get("z_loss", 0.0)}
        world = parallel.World(dist.get_rank() if processes > 1 else 0, processes, torch.device("cpu"))
        settled = LayoutConfig(**layout).resolve(processes, batch=ROWS, micro_batch=job.get("micro", 0), on_cpu=True)
        assert not settled.problem_with(config, SEQ)
        self.world = parallel.arrange(world, settled) if processes > 1 else world
        self.world = self.world if processes > 1 else parallel.World(0, 1, torch.device("cpu"), settled)
        with torch.device("meta"):
            self.model = LlamaForCausalLM(config).to(getattr(torch, job.get("dtype", "float64")))
        parallel.apply_to_blocks(self.model, recompute=job.get("recompute", "none"), compiled=False)
        self.network: nn.Module = self.model
        if settled.model_parallel or settled.dp_shard > 1:
            self.network = parallel.spread(self.model, self.world, job.get("precision", "fp32"))
        self.model.to_empty(device="cpu")
        fill(self.model)
        run = SimpleNamespace(
            world=self.world,
            recipe=Recipe(model=config, train=train),
            share=parallel.share_of_batch(ROWS, self.world),
            network=self.network,
            device=torch.device("cpu"),
            autocast=lambda: parallel.autocast("fp32", torch.device("cpu"), sharded=True),
        )
        self.objective = Fixed(run)
        self.loop: Any = SimpleNamespace(state=run, objective=self.objective)
        rows = batch(job.get("documents", True))
        first, size, count = run.share
        own = slice(first, first + size * count)
        self.rows = LocalRows(*(None if part is None else part[own] for part in rows))  # type: ignore[arg-type]

    def step(self) -> torch.Tensor:
        """Gradients of one step; returns the loss of the whole batch."""
        loss, measures = Loop._run_micro_batches(self.loop, self.objective.parts(self.rows))
        return Loop._over_ranks(self.loop, loss, measures)[0]


@functools.cache
def alone(key: str) -> tuple[float, dict[str, torch.Tensor], float]:
    """Loss, gradients by name and their norm, of one process."""
    place = Place(json.loads(key), {}, 1)
    loss = place.step()
    grads = {name: parameter.grad for name, parameter in place.model.named_parameters()}
    norm = torch.linalg.vector_norm(torch.stack([grad.norm() for grad in grads.values()]))
    return loss.item(), grads, norm.item()


def reference(job: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor], float]:
    kept = {name: job[name] for name in ("tie", "documents", "dtype", "layers", "kv_heads", "z_loss") if name in job}
    return alone(json.dumps(kept))


def gradients(job: dict[str, Any]) -> dict[str, Any]:
    """Loss, every gradient by name and the norm against one process; how far off, relative to the largest value."""
    want_loss, want, want_norm = reference(job)
    MUTATIONS[job.get("mutation", "none")]()
    place = Place(job, job["layout"], job["processes"])
    loss = place.step()
    twice = parallel.TIED if place.world.stage == place.world.layout.pp - 1 > 0 else ""
    optimizer = Optimizer(place.model.named_parameters(), OptimizerConfig(), place.world.mesh, twice=twice)
    errors, missing, unreduced = {}, [], []
    for name, parameter in place.model.named_parameters():
        grad = parameter.grad
        if grad is None:
            missing.append(name)
            continue
        if isinstance(grad, DTensor):
            if grad.placements != parameter.placements:
                unreduced.append(name)
            grad = grad.full_tensor()
        errors[name] = ((grad - want[name]).abs().max() / want[name].abs().max()).item()
    norm = optimizer.clip(0.0).item()
    found: list[Any] = [None] * job["processes"]
    mine = (errors, missing, unreduced, abs(loss.item() / want_loss - 1), abs(norm / want_norm - 1))
    dist.all_gather_object(found, mine)
    worst = max(((error, name) for one in found for name, error in one[0].items()), default=(0.0, ""))
    return {
        "gradients": worst[0],
        "where": worst[1],
        "names": len({name for one in found for name in one[0]}),
        "missing": sorted({name for one in found for name in one[1]}),
        "unreduced": sorted({name for one in found for name in one[2]}),
        "loss": max(one[3] for one in found),
        "norm": max(one[4] for one in found),
    }


def muon(job: dict[str, Any]) -> dict[str, Any]:
    """Weights after three steps of Muon and AdamW with given gradients, clipped, against one process."""
    single = {"dtype": "float32", "tie": job.get("tie", False)}
    before = Place(single, {}, 1)
    want = _three_steps(before)
    MUTATIONS[job.get("mutation", "none")]()
    place = Place({**job, "dtype": "float32"}, job["layout"], job["processes"])
    have = _three_steps(place)
    errors = {name: ((w - want[name]).abs().max() / want[name].abs().max()).item() for name, w in have.items()}
    found: list[Any] = [None] * job["processes"]
    dist.all_gather_object(found, errors)
    worst = max((error, name) for one in found for name, error in one.items())
    return {"weights": worst[0], "where": worst[1]}


def _three_steps(place: Place) -> dict[str, torch.Tensor]:
    twice = parallel.TIED if place.world.stage == place.world.layout.pp - 1 > 0 else ""
    config = OptimizerConfig(weight_decay=0.1)
    optimizer = Optimizer(place.model.named_parameters(), config, place.world.mesh, twice=twice)
    for step in range(3):
        for name, parameter in place.model.named_parameters():
            grad = torch.empty_like(parameter)
            copy_whole((0.01 * random_tensor(f"{step} {name}", parameter.shape)).float(), grad)
            parameter.grad = grad
        optimizer.clip(0.5)
        optimizer.step(1.0, torch.zeros(()))
    return {
        name: (w.full_tensor() if isinstance(w, DTensor) else w).detach() for name, w in place.model.named_parameters()
    }


def whole_forward(job: dict[str, Any]) -> dict[str, Any]:
    """Logits without gradients, of rows whose length nothing divides, between two steps that they must not change."""
    single = {name: job[name] for name in ("tie",) if name in job}
    ids = batch(False).ids[:3, :29]
    with torch.no_grad():
        want = Place(single, {}, 1).model(ids)
    place = Place(job, job["layout"], job["processes"])
    place.step()
    grads = [parameter.grad for parameter in place.model.parameters()]
    kept = [(grad.to_local() if isinstance(grad, DTensor) else grad).clone() for grad in grads]
    with torch.no_grad():
        have = place.model(ids)
    same = all(
        torch.equal(grad.to_local() if isinstance(grad, DTensor) else grad, before)
        for grad, before in zip(grads, kept, strict=True)
    )
    found: list[Any] = [None] * job["processes"]
    dist.all_gather_object(found, ((have - want).abs().max().item(), same))
    return {"logits": max(error for error, _ in found), "untouched": all(same for _, same in found)}


def whole_run(job: dict[str, Any]) -> dict[str, Any]:
    """A run of the trainer, or of a stage of tuning, as the command line makes it. Returns its last event."""
    machine = Machine("cpu", "test", 1, 8 << 30, {"fp32": 1e11, "bf16": 1e11}, False)
    run_dir = Path(job["run"])
    if "stage" in job:
        from puna.tune.stages import new_stage, runner

        recipe, _ = new_stage(Path(job["recipe"]), job["words"], run_dir, stage=job["stage"], first=False)
        return runner(job["stage"])(recipe, run_dir, machine=machine)
    recipe = load(Recipe, Path(job["recipe"]), job["words"]).value
    return pretrain.train(recipe, run_dir, resume=job.get("resume", False), machine=machine)


def kept_in_recomputation(_: dict[str, Any]) -> dict[str, Any]:
    """Which operations of a block's forward are kept when matrices are split, by name, and the widths of products."""
    compute = sys.modules["puna.train.parallel.compute"]
    policy, kept = compute._keep_products, []

    def noted(ctx: Any, op: Any, *args: Any, **options: Any) -> Any:
        verdict = policy(ctx, op, *args, **options)
        if verdict == CheckpointPolicy.MUST_SAVE and not ctx.is_recompute:
            width = args[1].shape[0] if "mm" in str(op) else 0
            kept.append([str(op), width])
        return verdict

    compute._keep_products = noted
    Place({"recompute": "selective", "layers": 1}, {"tp": 2}, 2).step()
    return {"kept": kept}


def _state(place: Place) -> dict[str, Any]:
    optimizer = Optimizer(place.model.named_parameters(), OptimizerConfig(), place.world.mesh)
    return {"model": place.model.state_dict(), "optimizer": optimizer.state_dict()}


def _flat(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in state.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


@torch.no_grad()
def checkpoints(job: dict[str, Any]) -> dict[str, Any]:
    """Save in each layout, load in each: every tensor must be what was saved, to the bit."""
    wrong = []
    states = [_state(Place({**job, "dtype": "float32", "micro": 2}, layout, 4)) for layout in job["layouts"]]
    for number, (layout, state) in enumerate(zip(job["layouts"], states, strict=True)):
        for name, tensor in _flat(state):
            copy_whole(random_tensor(f"{number} {name}", tensor.shape).float(), tensor)
        keeper = Checkpointer(Path(job["folder"]) / str(number), CheckpointConfig(), {"run": 1})
        keeper.save(1, state, {}, wait=True)
        for other, target in zip(job["layouts"], states, strict=True):
            for _, tensor in _flat(target):
                (tensor.to_local() if isinstance(tensor, DTensor) else tensor).fill_(float("nan"))
            keeper.load(target)
            for name, tensor in _flat(target):
                whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                if not torch.equal(whole, random_tensor(f"{number} {name}", tensor.shape).float()):
                    wrong.append(f"{layout} -> {other}: {name}")
        keeper.close()
    found: list[Any] = [None] * 4
    dist.all_gather_object(found, wrong)
    return {"pairs": len(states) ** 2, "wrong": sorted({one for part in found for one in part})[:10]}


def export(job: dict[str, Any]) -> dict[str, Any]:
    """A model directory written from a spread network; how many whole tensors were alive at once."""
    place = Place({"dtype": "float32", "micro": 2}, job["layout"], job["processes"])
    folder, alive, most = Path(job["folder"]), 0, 0
    with parallel.pending_weights(place.model, place.world) as weights:
        if place.world.first:
            counted = {}
            for name, pending in weights.items():

                def whole(get: Any = pending.whole) -> torch.Tensor:
                    nonlocal alive, most
                    tensor = get()
                    alive += 1
                    most = max(most, alive)
                    weakref.finalize(tensor, forget)
                    return tensor

                counted[name] = Pending(pending.shape, whole)

            def forget() -> None:
                nonlocal alive
                alive -= 1

            save_model(folder / "spread", shape(), counted, None, dtype=torch.float32, lineage={})
    single = Place({"dtype": "float32"}, {}, 1) if dist.get_rank() == 0 else None
    if single is None:
        return {}
    save_model(folder / "alone", shape(), single.model.state_dict(), None, dtype=torch.float32, lineage={})
    files = [(folder / where / "model.safetensors").read_bytes() for where in ("spread", "alone")]
    return {"equal": files[0] == files[1], "most": most}


# -- what goes wrong silently ------------------------------------------------------------------------------------------


def _averaged() -> None:
    parallel.data.FSDPModule.set_gradient_divide_factor = lambda *_: None


def _mean_of_each_rank() -> None:
    parallel.sum_over_ranks = lambda value, _: value


def _without_fsdp() -> None:
    spread = sys.modules["puna.train.parallel.spread"]  # the package has a function of that name
    spread.shard_part = lambda *_, **__: None


def _scaled() -> None:
    import torch.distributed.pipelining as pipelining

    class Scaled(pipelining.Schedule1F1B):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "scale_grads": True})

    pipelining.Schedule1F1B = Scaled


def _tied_apart() -> None:
    parallel.Pipeline._add_tied_gradients = lambda _: None


def _positions_from_zero() -> None:
    init = parallel.ContextShare.__init__

    def wrong(self: Any, *args: Any) -> None:
        init(self, *args)
        columns = self.positions
        self.cut = lambda rows: rows[:, columns]
        self.positions = torch.arange(len(columns))

    parallel.ContextShare.__init__ = wrong


def _one_document() -> None:
    keys = parallel.ContextShare.keys
    parallel.ContextShare.keys = lambda self, _: keys(self, None)


def _hidden_not_partial() -> None:
    sys.modules["puna.train.parallel.tensor"].Partial = Replicate


def _rows_by_rank() -> None:
    parallel.World.data_rank = property(lambda self: self.rank % self.data_size)


def _clip_by_stage() -> None:
    init = Optimizer.__init__

    def wrong(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.stages = None

    Optimizer.__init__ = wrong


def _norm_counts_tied_twice() -> None:
    init = Optimizer.__init__

    def wrong(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **{**options, "twice": ""})

    Optimizer.__init__ = wrong


def _muon_on_parts() -> None:
    import puna.train.optimizer as module

    module._spread_over = lambda _: None


MUTATIONS = {
    "none": lambda: None,
    "averaged": _averaged,
    "mean of each rank": _mean_of_each_rank,
    "without fsdp": _without_fsdp,
    "scaled": _scaled,
    "tied apart": _tied_apart,
    "positions from zero": _positions_from_zero,
    "one document": _one_document,
    "hidden not partial": _hidden_not_partial,
    "rows by rank": _rows_by_rank,
    "clip by stage": _clip_by_stage,
    "tied counted twice": _norm_counts_tied_twice,
    "muon on parts": _muon_on_parts,
}
