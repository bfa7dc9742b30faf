"""The equation and source of every part of a step and of the memory, in words.

`puna plan --explain` prints these next to the numbers. The equations themselves are in `cost` and `memory`.
"""

# part of cost.PARTS: (equation, source)
TIME: dict[str, tuple[str, str]] = {
    "matmul": (
        "products of a block, 3 x forward: FLOPs / (peak · share · d/(d+half) of each side)",
        "roofline, Williams 2009",
    ),
    "attention": ("4·s·s/2·heads·width forward, 2.5 x that backward, at attention's own rate", "Dao 2023, 2307.08691"),
    "elementwise": (
        "bytes of norms, residuals, rotary, activation, casts / memory rate, 3 passes",
        "Korthikanti 2022, 2205.05198",
    ),
    "launch": ("a fixed cost of each layer and pass", "fitted"),
    "recompute": ("forward computation that the backward pass repeats", "Korthikanti 2022, 2205.05198"),
    "head": (
        "tokens x hidden x vocabulary, 3 passes, and the loss over fp32 logits; on the last stage",
        "Llama 3, 2407.21783 §3.3",
    ),
    "tensor": (
        "gathers and scatters of 2·tokens·hidden bytes around each split product, less what is hidden",
        "Narayanan 2021, 2104.04473",
    ),
    "context": ("keys and values passed among cp ranks, less what attention hides", "Llama 3, 2407.21783 §3.3"),
    "expert": ("tokens sent to their experts and back, 4 all-to-alls a layer", "DeepSeek-V3, 2412.19437 §3.2"),
    "pipeline": ("activations to the next stage, gradients back, each chunk", "Narayanan 2021, 2104.04473"),
    "bubble": ("(pp - 1) / chunks stages of waiting", "Narayanan 2021, 2104.04473"),
    "data": ("gradients reduced, weights gathered, less what the passes hide", "ZeRO 1910.02054, FSDP 2304.11277"),
    "optimizer": ("30 bytes a parameter of the rank's shard / memory rate", "AdamW, mixed precision"),
    "straggler": ("the slowest of n machines: step · sigma · sqrt(2 ln n)", "extreme values of a normal"),
}

# part of memory.PARTS: (equation, source)
MEMORY: dict[str, tuple[str, str]] = {
    "weights": ("stored weights of the fullest stage / (tp · what sharding splits)", "ZeRO, 1910.02054"),
    "gradients": ("as many, in the bytes the stack reduces them in", "ZeRO, 1910.02054"),
    "optimizer": ("two moments and, where weights are not it, a master copy", "ZeRO, 1910.02054"),
    "activations": ("what a block keeps for its backward pass x layers in flight", "Korthikanti 2022, 2205.05198"),
    "logits": ("tokens x vocabulary of the loss, where the last stage is the fullest", "counted in torch"),
    "workspace": ("one block's recomputed activations and flowing gradients", "counted in torch"),
    "gathered": ("unsharded blocks, communication in passing", "FSDP, 2304.11277"),
    "fragmentation": ("gaps of the allocator, a share of what comes and goes", "fitted on torchtitan"),
    "context": ("CUDA's context and the communicators' buffers", "measured by others, see memory"),
}
