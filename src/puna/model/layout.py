"""How a model lies over devices: the names and sizes of the parallel dimensions. Pure Python, no torch.

A layout says how many ranks each dimension has; `train.parallel` applies it to the network from outside.
"""

from pydantic import Field

from puna.core.errors import PunaError
from puna.core.recipe import Config


class Layout(Config):
    """Sizes of the parallel dimensions; their product is the number of processes."""

    dp_replicate: int = Field(1, gt=0, description="data parallel with whole copies (DDP; outer dimension of HSDP)")
    dp_shard: int = Field(0, ge=0, description="data parallel with sharded states (FSDP2); 0 means all that is left")
    tp: int = Field(1, gt=0, description="tensor parallel: each matrix split over ranks of one node")
    cp: int = Field(1, gt=0, description="context parallel: each sequence split over ranks")
    pp: int = Field(1, gt=0, description="pipeline parallel: blocks split into stages")

    def resolve(self, world_size: int) -> "Layout":
        """Fill `dp_shard = 0` so that the product is `world_size`. Raises PunaError when that cannot be."""
        fixed = self.dp_replicate * self.tp * self.cp * self.pp
        shard = self.dp_shard or max(1, world_size // fixed)
        if fixed * shard != world_size:
            raise PunaError(
                f"The layout dp_replicate {self.dp_replicate} x dp_shard {shard} x tp {self.tp} x cp {self.cp} x "
                f"pp {self.pp} needs {fixed * shard} processes, but {world_size} run.",
                "Change layout.* or the number of processes.",
            )
        return self.model_copy(update={"dp_shard": shard})

    @property
    def data_parallel(self) -> int:
        """Ranks that see different rows of a batch. `dp_shard` must be resolved."""
        return self.dp_replicate * max(1, self.dp_shard)
