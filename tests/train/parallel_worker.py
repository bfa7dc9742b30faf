"""Run by torchrun in test_parallel.py: a few training steps of a tiny Llama under one layout, losses to a file."""

import json
import sys

import torch

from puna.model.config import ModelConfig
from puna.model.layout import LayoutConfig
from puna.model.llama import LlamaForCausalLM
from puna.train import parallel
from puna.train.loss import cross_entropy_chunked
from puna.train.optimizer import Optimizer
from puna.train.recipe import OptimizerConfig

ROWS, SEQ, STEPS = 8, 32, 4


def main(layout_json: str, recompute: str, micro: int, out: str) -> None:
    config = ModelConfig(preset="nano", num_hidden_layers=3)
    with parallel.join_world() as world:
        layout = LayoutConfig.model_validate_json(layout_json).resolve(world.size, batch=ROWS, micro_batch=micro)
        world = parallel.arrange(world, layout)
        mesh = world.mesh
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        parallel.apply_to_blocks(model, recompute=recompute, compiled=False)
        if layout.dp_shard > 1:
            parallel.shard(model, layout, mesh, "fp32")
        model.to_empty(device="cpu")
        model.init_weights(3)
        network = model if layout.dp_shard > 1 else parallel.replicate(model, mesh)
        optimizer = Optimizer(model.named_parameters(), OptimizerConfig(weight_decay=0.1), mesh)
        _, micro_rows, micro_batches = parallel.share_of_batch(ROWS, world)
        factor = parallel.gradient_factor(network, world)
        generator = torch.Generator().manual_seed(0)
        losses = []
        for _ in range(STEPS):
            ids = torch.randint(0, config.vocab_size, (ROWS, SEQ + 1), generator=generator)
            targets = ids[:, 1:].clone()
            targets[0, :20] = -100  # ragged: the ranks have different numbers of valid targets
            optimizer.zero_grad()
            scale = 1.0 / (targets != -100).sum()
            total = torch.zeros(())
            for index in range(micro_batches):
                first = (world.data_rank * micro_batches + index) * micro_rows
                rows = slice(first, first + micro_rows)

                def head(hidden, weight, rows=rows, scale=scale, targets=targets):
                    return cross_entropy_chunked(hidden, weight, targets[rows], scale=scale, chunk=64)

                with parallel.accumulating(network, last=index == micro_batches - 1):
                    objective, loss = network(ids[rows, :-1], head=head)
                    (objective * factor).backward()
                total += loss.detach()
            losses.append(parallel.sum_over_ranks(total, world).item())
            optimizer.step(1.0, torch.zeros(()))
        weights = {name: tensor.double().sum().item() for name, tensor in parallel.full_state(model).items()}
        if world.first:
            with open(out, "w", encoding="utf-8") as file:
                json.dump({"losses": losses, "weights": weights}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
