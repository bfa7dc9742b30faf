"""What a stage of tuning brings to the loop: its batches, its loss, its state; and how it asks to go back."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

SCORE = "score"
"""The measure of a held-out evaluation that says which weights are best (higher is better)."""

Metrics = Mapping[str, Tensor | float]


class Objective(Protocol):
    """What a stage brings to the loop.

    It may also have `evaluate(step) -> dict[str, float]`, called before the first step, every `log.eval_every` steps
    and at the end; the largest value under "score" marks the best weights. And `steps`, the length of the stage where
    the recipe's train.steps is 0. And `notes`, sentences about its data that are written down at the start. And
    `SHOWN`, the measures that a person watching sees, where these are not all.
    """

    def batch(self, data_step: int) -> Sequence[Any]:
        """This process' micro-batches of a step; none on any process means that there is nothing to learn this time.

        What is random is a function of (seed, data step) and of `state`. The data step grows by one with each step and
        does not go back when the weights are rolled back.
        """
        ...

    def loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Metrics]:
        """The scalar whose gradient is taken for one micro-batch, and measures to log.

        Both are parts of a sum over the step's micro-batches and processes: divide by what counts globally. A measure
        named "..._max" is the maximum instead. "tokens" among them counts what was learned from.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What `batch` goes by besides the data step, plain JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        ...


class RollBack(Exception):
    """Raised by an objective whose run goes wrong: back to earlier weights, and on from there.

    to: "best" (of the held-out evaluations so far) or a step, whose checkpoint or the newest before it is taken.
    lr_scale: factor on all learning rates from now on.
    """

    def __init__(self, reason: str, *, to: int | str = "best", lr_scale: float = 1.0) -> None:
        super().__init__(reason)
        self.reason, self.to, self.lr_scale = reason, to, lr_scale


class Share(NamedTuple):
    """The rows of a batch that this process computes: `micro_batches` times `rows`, from row `first` on."""

    first: int
    rows: int
    micro_batches: int
