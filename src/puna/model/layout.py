"""How a model is spread over devices: one typed layout for recipe, plan and trainer.

`LayoutConfig` is what a recipe sets, and may leave the sharded size open. `Layout` is resolved: every size is known,
and it includes the micro-batch and what is recomputed. `LayoutConfig.resolve` creates one from a recipe, and
`Layout.recipe_values` converts it back to recipe keys; `plan.layouts.convert` does the same for the planner's columns
and for JSON. `train.parallel` applies a layout to the network from outside. Pure Python, no torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from puna.core.errors import PunaError
from puna.core.recipe import Config
from puna.model.config import ModelConfig

# What data parallelism shards: nothing; optimizer states; with gradients; with weights; weights within groups of ranks.
SHARDING = ("ddp", "zero1", "zero2", "zero3", "hsdp")
# How much of the forward pass is recomputed in the backward pass. "selective" is only the core of attention
# (Megatron's; free with flash attention, whose backward pass recomputes it anyway); "ops" is all but matrix products
# and attention (torch's selective checkpointing); "blocks" is every second block; "full" is every block.
RECOMPUTE = ("none", "selective", "ops", "blocks", "full")
# The layout's names for a recipe's `train.recompute`.
_RECIPE_RECOMPUTE = {"none": "none", "selective": "ops", "full": "full"}


class LayoutConfig(Config):
    """Sizes of the parallel dimensions in a recipe; their product is the number of processes."""

    dp_replicate: int = Field(1, gt=0, description="data parallelism with full copies (DDP; outer dimension of HSDP)")
    dp_shard: int = Field(
        0, ge=0, description="data parallelism with sharded states (FSDP2); 0: all remaining processes"
    )
    tp: int = Field(1, gt=0, description="tensor parallelism: split each matrix over ranks of one node")
    cp: int = Field(1, gt=0, description="context parallelism: split each sequence over ranks")
    pp: int = Field(1, gt=0, description="pipeline parallelism: split the blocks into stages")
    virtual_stages: int = Field(1, gt=0, description="pipeline parallelism: model chunks on each rank")
    schedule: Literal["1f1b", "interleaved"] = Field(
        "1f1b", description="pipeline parallelism: order of micro-batches; interleaved if virtual_stages is above 1"
    )

    @model_validator(mode="after")
    def _schedule_fits(self) -> "LayoutConfig":
        if self.virtual_stages > 1 and self.pp == 1:
            raise ValueError(f"layout.virtual_stages = {self.virtual_stages} needs layout.pp above 1")
        if (self.schedule == "interleaved") != (self.virtual_stages > 1):
            raise ValueError(
                f"layout.schedule = '{self.schedule}' does not fit layout.virtual_stages = {self.virtual_stages}. "
                "Use interleaved with more than one virtual stage, 1f1b with one"
            )
        return self

    def resolve(
        self, processes: int, *, batch: int = 0, micro_batch: int = 0, recompute: str = "none", on_cpu: bool = False
    ) -> "Layout":
        """Resolve a recipe's layout on `processes` processes: the only conversion from a recipe.

        batch, micro_batch, recompute: the recipe's `train` values; a batch of 0 leaves a rank's rows unknown, and a
        micro-batch of 0 means all of them. on_cpu: replicate by default, because sharding saves nothing there.
        Raises PunaError when the product of the sizes is not `processes`, or the batch is not divisible.
        """
        others = self.tp * self.cp * self.pp
        replicate, shard = self.dp_replicate, self.dp_shard
        if on_cpu and replicate == 1 and not shard and others == 1:
            replicate, shard = max(1, processes // others), 1
        shard = shard or max(1, processes // (replicate * others))
        if replicate * shard * others != processes:
            raise PunaError(
                f"The layout dp_replicate {replicate} x dp_shard {shard} x tp {self.tp} x cp {self.cp} x "
                f"pp {self.pp} needs {replicate * shard * others} processes, but {processes} are running.",
                "Change layout.* or the number of processes.",
            )
        rows = max(1, micro_batch)
        if batch:
            rows, count = share_batch(batch, micro_batch, replicate * shard)
            if self.pp > 1 and not micro_batch:
                rows, count = fill_pipeline(batch // (replicate * shard), self.pp)
            if count < self.pp:
                raise PunaError(
                    f"layout.pp = {self.pp} stages want at least {self.pp} micro-batches in a step, but "
                    f"train.batch = {batch} leaves {count} to each pipeline.",
                    "Lower train.micro_batch or layout.pp, or raise train.batch.",
                )
            if self.virtual_stages > 1 and count % (count // self.pp):
                raise PunaError(
                    f"The interleaved schedule takes micro-batches in rounds of about layout.pp = {self.pp}, and "
                    f"{count} do not divide evenly.",
                    f"Choose train.micro_batch so that there are a multiple of {self.pp} of them.",
                )
        return Layout(
            dp_replicate=replicate,
            dp_shard=shard,
            tp=self.tp,
            cp=self.cp,
            pp=self.pp,
            virtual_stages=self.virtual_stages,
            schedule=self.schedule,
            sequence_parallel=self.tp > 1,
            micro_batch=rows,
            recompute=_RECIPE_RECOMPUTE[recompute],
        )

    def problem_with(self, model: ModelConfig, seq_len: int) -> str:
        """Why a model cannot be spread like this, with what would divide; empty where it can."""
        heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
        fitting = [size for size in range(1, kv_heads + 1) if heads % size == 0 and kv_heads % size == 0]
        if self.tp not in fitting:
            return (
                f"layout.tp = {self.tp} does not divide the model's {heads} attention heads and {kv_heads} key-value "
                f"heads. It can be {_or(fitting)}"
            )
        if model.vocab_size < self.tp * self.tp or model.intermediate_size % self.tp:
            return (
                f"layout.tp = {self.tp} does not split vocab_size = {model.vocab_size} and intermediate_size = "
                f"{model.intermediate_size}. Use a smaller one"
            )
        pieces = (2 * self.cp if self.cp > 1 else 1) * self.tp
        if (self.tp > 1 or self.cp > 1) and seq_len % pieces:
            lower = seq_len - seq_len % pieces
            near = [length for length in (lower, lower + pieces) if length]
            return (
                f"train.seq_len = {seq_len} is not a multiple of {'2 x cp x tp' if self.cp > 1 else 'tp'} = {pieces}. "
                f"It can be {_or(near)}"
            )
        stages = self.pp * self.virtual_stages
        if stages > model.num_hidden_layers:
            return (
                f"layout.pp = {self.pp} with {self.virtual_stages} virtual stages makes {stages} stages of "
                f"{model.num_hidden_layers} layers. Each needs a layer: at most {model.num_hidden_layers} stages"
            )
        return ""

    @property
    def model_parallel(self) -> bool:
        """Whether a row's computation is spread over processes: tp, cp or pp above 1."""
        return self.tp * self.cp * self.pp > 1

    @property
    def data_parallel(self) -> int:
        """Ranks that see different rows of a batch. `dp_shard` must be resolved."""
        return self.dp_replicate * max(1, self.dp_shard)


class Layout(LayoutConfig):
    """A resolved layout, with the micro-batch and what is recomputed.

    It has tp x cp x pp x dp_replicate x dp_shard processes. sharding: defaults to what the two sizes mean to the
    trainer, ddp, zero3 or hsdp; a plan may have zero1 or zero2.
    """

    dp_shard: int = Field(1, gt=0, description="ranks that share one copy of the optimizer states")
    ep: int = Field(1, gt=0, description="expert parallelism: data-parallel ranks over which experts are spread")
    sharding: Literal["ddp", "zero1", "zero2", "zero3", "hsdp"] = Field(
        "ddp", description="what data parallelism shards"
    )
    sequence_parallel: bool = Field(False, description="tensor parallelism: also split activations between blocks")
    micro_batch: int = Field(1, gt=0, description="sequences that a rank computes at once")
    recompute: Literal["none", "selective", "ops", "blocks", "full"] = Field(
        "none", description="what is recomputed in the backward pass"
    )

    @model_validator(mode="before")
    @classmethod
    def _sharding_by_size(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "sharding" in values:
            return values
        sharded, copies = values.get("dp_shard", 1) != 1, values.get("dp_replicate", 1) != 1
        return {**values, "sharding": "hsdp" if sharded and copies else "zero3" if sharded else "ddp"}

    @model_validator(mode="after")
    def _sharding_fits(self) -> "Layout":
        whole = self.sharding == "ddp" and self.dp_shard > 1
        if whole or (self.sharding.startswith("zero") and self.dp_replicate > 1):
            raise ValueError(
                f"sharding = '{self.sharding}' does not fit dp_replicate {self.dp_replicate} and "
                f"dp_shard {self.dp_shard}"
            )
        return self

    @staticmethod
    def of(*, dp: int = 1, sharding: str = "zero1", link_domain: int = 1, **parts: Any) -> "Layout":
        """Create a layout from its data-parallel ranks and what they shard.

        This is how planners and published runs state it. link_domain: accelerators connected by the scale-up network,
        within which HSDP keeps a copy. parts: the other fields.
        """
        shard = shard_size(sharding, dp, parts.get("tp", 1), parts.get("cp", 1), link_domain)
        schedule = "interleaved" if parts.get("virtual_stages", 1) > 1 else "1f1b"
        sizes = {"dp_replicate": dp // shard, "dp_shard": shard, "schedule": schedule}
        return Layout(**{**sizes, "sharding": sharding, **parts})

    @property
    def processes(self) -> int:
        """Number of processes of the layout, one per accelerator."""
        return self.data_parallel * self.tp * self.cp * self.pp

    def micro_batches(self, batch: int) -> int:
        """Forward and backward passes of one rank in a step of `batch` sequences."""
        return batch // (self.data_parallel * self.micro_batch)

    def recipe_values(self) -> dict[str, dict[str, Any]]:
        """Convert to sections and keys of a training recipe: the only conversion back.

        The trainer also shards weights where a plan shards less (zero1, zero2), and recomputes either a whole block or
        all but its products.
        """
        sizes = {name: getattr(self, name) for name in ("dp_replicate", "dp_shard", "tp", "cp", "pp")}
        if self.pp > 1:
            sizes |= {"virtual_stages": self.virtual_stages, "schedule": self.schedule}
        recompute = {"none": "none", "blocks": "full", "full": "full"}.get(self.recompute, "selective")
        return {"layout": sizes, "train": {"micro_batch": self.micro_batch, "recompute": recompute}}


def shard_size(sharding: str, dp: int, tp: int = 1, cp: int = 1, link_domain: int = 1) -> int:
    """Data-parallel ranks that share one copy of the states.

    None for ddp, all for zero1 to zero3. For hsdp, the largest number that divides `dp` and stays within a scale-up
    domain of `link_domain` accelerators, including tp and cp.
    """
    if sharding == "ddp":
        return 1
    if sharding != "hsdp":
        return dp
    room = max(1, link_domain // (tp * cp))
    return max(size for size in range(1, min(dp, room) + 1) if dp % size == 0)


def fill_pipeline(rows: int, stages: int) -> tuple[int, int]:
    """(rows in a micro-batch, micro-batches) of a pipeline that is left to choose: the fewest that keep it busy."""
    count = next((count for count in range(stages, rows + 1) if rows % count == 0), rows)
    return rows // count, count


def _or(sizes: Sequence[int]) -> str:
    words = [str(size) for size in sizes]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def share_batch(batch: int, micro_batch: int, ranks: int) -> tuple[int, int]:
    """(Sequences that a rank computes at once, micro-batches per step).

    A micro-batch of 0, or too large, means all. Raises PunaError when the ranks do not divide the batch, or the
    micro-batch does not divide a rank's rows.
    """
    if batch % ranks:
        raise PunaError(
            f"train.batch = {batch} rows cannot be divided evenly among {ranks} processes.",
            f"Make it a multiple of {ranks}, or change the number of processes.",
        )
    rows = batch // ranks
    micro = min(micro_batch or rows, rows)
    if rows % micro:
        raise PunaError(
            f"train.micro_batch = {micro} does not divide the {rows} rows of a process.", f"Choose a divisor of {rows}."
        )
    return micro, rows // micro
