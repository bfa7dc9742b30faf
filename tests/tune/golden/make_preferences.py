"""Write preferences.json: results of TRL's DPO, KTO, CPO and reward trainers for given log probabilities and scores.

    pip install trl ; python tests/tune/golden/make_preferences.py

The trainers' own loss methods are called on a stand-in with only the attributes that they read; the network is a
function that returns the log probabilities. The file records the inputs, the loss, and its gradient by each log
probability.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer

PAIRS, TOKENS, PROMPT = 3, 9, 2
LENGTHS = [4, 6, 3, 6, 2, 5]  # of the chosen answers, then of the rejected ones


def stand_in(**values: Any) -> SimpleNamespace:
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x)
    common = {"model": SimpleNamespace(training=False), "accelerator": accelerator, "aux_loss_enabled": False}
    common |= {"precompute_ref_logps": True, "_metrics": {"eval": defaultdict(list)}, "_total_train_tokens": 0}
    return SimpleNamespace(**common, **values)


def inputs() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """A batch of 2 * PAIRS answers, their log probabilities (answers, TOKENS - 1) and those of the reference."""
    mask = torch.zeros(2 * PAIRS, TOKENS, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, PROMPT : PROMPT + length] = 1
    generator = torch.Generator().manual_seed(5)
    logps = -3 * torch.rand(2 * PAIRS, TOKENS - 1, generator=generator) * mask[:, 1:]
    reference = -3 * torch.rand(2 * PAIRS, TOKENS - 1, generator=generator) * mask[:, 1:]
    ids = torch.ones_like(mask)
    return {"input_ids": ids, "attention_mask": ids, "completion_mask": mask}, logps, reference


def network(logps: torch.Tensor) -> Any:
    zeros = torch.zeros_like(logps)
    outputs = SimpleNamespace(log_probs=logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    return lambda **_: outputs


def dpo(names: list[str], weights: list[float], beta: float) -> dict[str, Any]:
    batch, logps, reference = inputs()
    logps.requires_grad_()
    ref_chosen, ref_rejected = reference.sum(1).chunk(2)
    trainer = stand_in(
        loss_types=names,
        loss_weights=weights,
        beta=beta,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        label_smoothing=0.0,
    )
    batch |= {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
    loss = DPOTrainer._compute_loss(trainer, network(logps), batch, False)
    loss.backward()
    return {"beta": beta, "loss": loss.item(), "gradient": logps.grad.tolist()}


def kto(beta: float) -> dict[str, Any]:
    batch, logps, reference = inputs()
    logps.requires_grad_()
    labels = torch.tensor([True, False, True, True, False, False])
    kl = torch.tensor([-3.0, -2.0, -4.0, -1.0, -2.5, -6.0])
    ref_kl = kl - torch.tensor([0.4, -0.1, 0.9, 0.2, 0.3, 0.1])
    trainer = stand_in(loss_type="kto", beta=beta, calculate_KL=True, desirable_weight=1.2, undesirable_weight=0.8)
    trainer._compute_kl_logps = lambda model, batch: kl
    batch |= {"label": labels, "ref_logps": reference.sum(1), "ref_KL_logps": ref_kl}
    loss = KTOTrainer._compute_loss(trainer, network(logps), batch, False)
    loss.backward()
    record = {"beta": beta, "weights": [1.2, 0.8], "good": labels.tolist(), "kl": (kl - ref_kl).mean().item()}
    return {**record, "loss": loss.item(), "gradient": logps.grad.tolist()}


def simpo(beta: float, gamma: float) -> dict[str, Any]:
    batch, logps, _ = inputs()
    logps.requires_grad_()
    mean = logps.sum(1) / batch["completion_mask"].sum(1)
    trainer = stand_in(alpha=0.0, beta=beta, loss_type="simpo", simpo_gamma=gamma, label_smoothing=0.0)
    loss = CPOTrainer.cpo_loss(trainer, *mean.chunk(2))[0].mean()
    loss.backward()
    return {"beta": beta, "gamma": gamma, "loss": loss.item(), "gradient": logps.grad.tolist()}


def reward() -> dict[str, Any]:
    scores = torch.tensor([[0.3], [-1.2], [2.0], [0.1], [0.4], [1.5]], requires_grad=True)
    trainer = stand_in(args=SimpleNamespace(center_rewards_coefficient=None))
    model = lambda **_: SimpleNamespace(logits=scores)  # noqa: E731
    loss = RewardTrainer.compute_loss(trainer, model, {"attention_mask": torch.ones(6, 2)})
    loss.backward()
    return {"scores": scores.flatten().tolist(), "loss": loss.item(), "gradient": scores.grad.flatten().tolist()}


def main() -> None:
    batch, logps, reference = inputs()
    golden = {
        "lengths": batch["completion_mask"].sum(1).tolist(),
        "logps": logps.tolist(),
        "reference": reference.tolist(),
        "mask": batch["completion_mask"][:, 1:].tolist(),
        "dpo": dpo(["sigmoid"], [1.0], 0.1),
        "dpo with nll": dpo(["sigmoid", "sft"], [1.0, 0.2], 0.3),
        "ipo": dpo(["ipo"], [1.0], 0.2),
        "kto": kto(0.15),
        "simpo": simpo(2.0, 0.5),
        "reward": reward(),
    }
    text = json.dumps(golden) + "\n"
    Path(__file__).with_name("preferences.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
