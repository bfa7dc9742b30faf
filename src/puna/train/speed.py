"""How fast a run will go, before it goes: the FLOPs of a step against the measured rate of matrix products.

No torch. The error is printed when the run ends; bench/results holds what was seen.
"""

from puna.model.config import ModelConfig
from puna.train.recipe import Recipe

# Share of the measured product rate that a training step reaches, element-wise work and attention included, by device.
# CPU: see bench/results/train-speed-*.json. CUDA: the mid-range of published dense Llama runs (40 % of the datasheet
# peak is about 50 % of the measured product rate).
_EFFICIENCY = {"cpu": 0.75, "cuda": 0.5}


def step_flops(recipe: Recipe, *, fp32: bool = False) -> float:
    """FLOPs of one optimizer step over all processes: the tokens' (causal attention), and Muon's own."""
    tokens = recipe.tokens_per_step
    flops = tokens * recipe.model.flops_per_token(recipe.train.seq_len, attention="causal")
    if recipe.optimizer.kind == "muon":
        flops += muon_flops(recipe.model, recipe.optimizer.newton_schulz_steps, fp32=fp32)
    return flops


def muon_flops(model: ModelConfig, iterations: int, *, fp32: bool = False) -> float:
    """FLOPs of orthogonalising every matrix of the blocks once, m being the shorter side and n the longer one.

    Per iteration three products, 2·m·(2·m·n + m·m); in fp32 long matrices take the way through their Gram matrix.
    """
    total = 0.0
    for name, shape in model.parameter_shapes().items():
        if ".layers." in name and len(shape) == 2:
            m, n = min(shape), max(shape)
            plain = iterations * 2.0 * m * (2 * m * n + m * m)
            through_gram = 4.0 * m * m * n + (8 * iterations - 6) * m**3
            total += through_gram if fp32 and n >= 2 * m else plain
    return total


def bigram_flops(model: ModelConfig) -> float:
    """FLOPs of `init = "bigram"`: six products for the SVD, two for the ridge, three for each polishing step."""
    return 2.0 * model.vocab_size**2 * model.hidden_size * (6 + 2 + 3 * 30)


def expected_tokens_per_second(
    recipe: Recipe, *, device_type: str, peak_flops: float | None, world_size: int
) -> float | None:
    """Tokens per second of the whole run; None when the device's rate is not known.

    peak_flops: measured FLOP/s of one process' device in the run's precision. Processes on one CPU share its cores,
    so there more of them do not go faster.
    """
    if not peak_flops:
        return None
    devices = world_size if device_type != "cpu" else 1
    flops = step_flops(recipe, fp32=device_type == "cpu")
    return recipe.tokens_per_step * devices * peak_flops * _EFFICIENCY.get(device_type, 0.5) / flops
