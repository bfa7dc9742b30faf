"""Write rl_losses.json: results of TRL's GRPO and RLOO trainers on a tiny network, to compare Puna's losses with.

    pip install trl ; python tests/tune/golden/make_rl_losses.py

Each case is the second optimizer step on the same answers with a large learning rate, so that ratios are far from 1 and
some are clipped. The file records the inputs of TRL's loss, the loss, and its gradient by each log probability.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.rewards import get_soft_overlong_punishment

REWARDS = [1.0, 0.0, 0.5, None, 0.25, 0.25, 0.25, 0.25, 0.0, 1.0, 1.0, 0.3]
GROUP, LONGEST = 4, 8
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "scale_rewards": "group", "epsilon": 0.2},
    "grpo with kl": {"loss_type": "grpo", "scale_rewards": "batch", "epsilon": 0.2, "beta": 0.3},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none", "epsilon": 0.2},
    "dapo": {"loss_type": "dapo", "scale_rewards": "group", "epsilon": 0.2, "epsilon_high": 0.28},
    "dapo without truncated": {
        "loss_type": "dapo",
        "scale_rewards": "group",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "mask_truncated_completions": True,
    },
    "gspo": {
        "loss_type": "grpo",
        "scale_rewards": "group",
        "epsilon": 0.1,
        "epsilon_high": 0.15,
        "importance_sampling_level": "sequence",
    },
    "rloo": {"epsilon": 0.2},
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: w0 to w11, an end and a pad token."""
    words = {f"w{i}": i for i in range(12)} | {"<end>": 12, "<pad>": 13, "<unk>": 14}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<pad>", unk_token="<unk>")


def network() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=15,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=12,
        pad_token_id=13,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config)


def run(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The recorded second step of one case."""
    rloo = name == "rloo"
    base, config_class = (RLOOTrainer, RLOOConfig) if rloo else (GRPOTrainer, GRPOConfig)
    recorded: list[dict[str, Any]] = []

    class Recorder(base):  # type: ignore[misc, valid-type]
        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            self.seen = result[0]
            return result

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            loss = super()._compute_loss(model, inputs)
            (gradient,) = torch.autograd.grad(loss, self.seen, retain_graph=True)
            reference = inputs.get("ref_per_token_logps") if options.get("beta") else None
            old = inputs["old_logps" if rloo else "old_per_token_logps"]
            recorded.append(
                {
                    "mask": inputs["completion_mask"].tolist(),
                    "logprobs": self.seen.tolist(),
                    "old_logprobs": old.tolist(),  # rloo: (answers,), sums
                    "ref_logprobs": None if reference is None else reference.tolist(),
                    "advantages": inputs["advantages"].tolist(),  # in the order of mask: TRL shuffles answers
                    "advantages_of_rewards": list(self._logs["advantages"]),
                    "loss": loss.item(),
                    "gradient": gradient.tolist(),
                }
            )
            return loss

    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return REWARDS[: len(completions)]

    with tempfile.TemporaryDirectory() as folder:
        # From a directory, because TRL loads the reference from where the policy came from.
        network().save_pretrained(folder)
        config = config_class(
            output_dir=folder,
            model_init_kwargs={"dtype": "float32"},
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            per_device_train_batch_size=len(REWARDS),
            num_generations=GROUP,
            max_completion_length=LONGEST,
            num_iterations=2,
            max_steps=2,
            learning_rate=0.03,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            seed=3,
            **({"beta": 0.0} | options),
        )
        prompts = Dataset.from_list([{"prompt": "w1 w2 w3"}, {"prompt": "w4 w5"}, {"prompt": "w6 w7 w8"}])
        Recorder(
            model=folder, reward_funcs=reward, args=config, train_dataset=prompts, processing_class=tokenizer()
        ).train()
    settings = {key: value for key, value in options.items() if key != "loss_type"}
    return {"rewards": REWARDS, "group": GROUP, "max_tokens": LONGEST, "settings": settings, **recorded[1]}


def main() -> None:
    """Write all cases into one file."""
    penalties = get_soft_overlong_punishment(20, 8)
    lengths = list(range(10, 24))
    result = {
        "trl": trl.__version__,
        "overlong": {
            "limit": 20,
            "cache": 8,
            "lengths": lengths,
            "penalties": penalties(completion_ids=[[0] * n for n in lengths]),
        },
        "cases": {name: run(name, options) for name, options in CASES.items()},
    }
    rounded = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.9g}"))
    path = Path(__file__).with_name("rl_losses.json")
    path.write_text(json.dumps(rounded, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
