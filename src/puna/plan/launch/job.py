"""One training job as every launcher needs it: what to train, in which layout, on which nodes.

The writers (`torchrun`, `slurm`, `kubeflow`, `skypilot`, `ray`) turn a `Launch` into files; `emit` checks it first.
"""

from collections.abc import Iterable

from pydantic import Field

from puna.core.recipe import Config
from puna.core.units import format_count
from puna.model.layout import Layout
from puna.plan.equations.hardware import Accelerator

PORT = 29500  # torchrun's own default for its rendezvous


class Launch(Config):
    """One job: what to train, on which accelerators, and settings of the cluster."""

    name: str = Field(min_length=1, description="names the job and its run directory runs/<name>")
    recipe: str = Field(description="the training recipe, TOML text; the fields below are written into it")
    layout: Layout = Field(description="the plan's layout, micro-batch and recomputation included")
    accelerator: Accelerator = Field(description="what the job runs on")
    nodes: int = Field(gt=0, description="hosts")
    accelerators_per_node: int = Field(gt=0, description="accelerators of one host, one process each")
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: what the recipe says")
    image: str = Field("", description="container image with puna in it; slurm: for pyxis, empty: no container")
    storage_dir: str = Field(
        ".",
        description="folder that all nodes share, with corpora/ and runs/; '.': the start folder, /storage in pods",
    )
    storage_claim: str = Field(
        "puna-storage", min_length=1, description="PersistentVolumeClaim or SkyPilot volume behind storage_dir"
    )
    wall_seconds: int = Field(0, ge=0, description="wall time limit of the scheduler; 0: no limit")
    stop_seconds: int = Field(300, gt=0, description="time to finish a step and save when asked to stop")
    max_restarts: int = Field(10, ge=0, description="restarts after failures before giving up")
    expected_step_seconds: float | None = Field(None, gt=0, description="predicted by the plan, for comments")
    expected_tokens_per_second: float | None = Field(None, gt=0, description="predicted by the plan, for comments")
    notes: tuple[str, ...] = Field((), description="more lines about the plan, for comments")

    @property
    def processes(self) -> int:
        """Processes of the run, one for each accelerator."""
        return self.nodes * self.accelerators_per_node

    def header(self) -> list[str]:
        """Lines about the plan for the head of every launch file."""
        layout = ", ".join(f"{key} {value}" for key, value in self.layout.recipe_values()["layout"].items())
        lines = [
            f"{self.name}: {self.processes} x {self.accelerator.name}, {self.nodes} "
            f"{'node' if self.nodes == 1 else 'nodes'} of {self.accelerators_per_node}. Written by puna plan.",
            f"Layout: {layout}.",
        ]
        expected = []
        if self.expected_step_seconds:
            expected.append(f"{self.expected_step_seconds:.3g} s a step")
        if self.expected_tokens_per_second:
            expected.append(f"{format_count(self.expected_tokens_per_second)} tokens/s")
        if expected:
            lines.append(f"Expected: {', '.join(expected)}.")
        return [*lines, *(line for note in self.notes for line in note.splitlines())]


def comment(lines: Iterable[str]) -> str:
    """Lines as a comment of shell, TOML or YAML."""
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)
