"""What a run brings to the loop: its batches, its loss, its evaluation, and its policy when it goes wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from puna.core.errors import PunaError
from puna.train.parallel import Call
from puna.train.run_state import RunState

SCORE = "score"
"""The measure of a held-out evaluation that says which weights are best (higher is better)."""

Metrics = Mapping[str, Tensor | float]


class Objective:
    """What differs between pretraining, fine-tuning, preferences and reinforcement. The rest is `train.loop`.

    It is made once the network has its first weights. `batch` and `loss` are every objective's own; all else has a
    default.
    """

    command: str = "puna train"
    """The command that resumes such a run."""
    steps: int = 0
    """The length of the run where the recipe's train.steps is 0."""
    notes: Sequence[str] = ()
    """Sentences about its data, written down at the start."""
    shown: Sequence[str] = ()
    """The measures that a person watching sees; empty: all of them."""
    knows_its_rows: bool = True
    """Whether rows are as long as the recipe says; no, where the model writes them. Else no step time is predicted."""
    fills_its_rows: bool = False
    """Whether every place of a row is learned from and all weights move, so that FLOPs can be counted (MFU)."""
    scored: bool = True
    """Whether evaluations may have a score; the weights with the highest are kept, and can be gone back to."""
    ends_with_best: bool = False
    """Whether the model directory gets the weights of the highest score instead of the last ones."""
    evaluates_first: bool = True
    """Whether there is an evaluation before the first step."""

    def __init__(self, run: RunState[Any]) -> None:
        self.run = run

    # -- learning ----------------------------------------------------------------------------------------------------

    def batch(self, data_step: int) -> Sequence[Any]:
        """This process' micro-batches of a step; none on any process means that there is nothing to learn this time.

        What is random is a function of (seed, data step) and of `state`. The data step grows by one with each step and
        does not go back when the weights are rolled back. May raise RollBack.
        """
        raise NotImplementedError

    def loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Metrics]:
        """The scalar whose gradient is taken for one micro-batch, and measures to log.

        Both are parts of a sum over the step's micro-batches and processes: divide by what counts globally. A measure
        named "..._max" is the maximum instead. "tokens" among them counts what was learned from. "loss" is what is
        logged and guarded, where that is not the scalar itself.
        """
        raise NotImplementedError

    def call(self, batch: Any) -> Call:
        """What the network is called with for a micro-batch, by objectives whose loss is what its head returns.

        Their runs may be cut into pipeline stages; the head returns (what to call backward on, the loss to log).
        """
        raise PunaError(f"{self.command} does not run in a pipeline.", "Set layout.pp = 1.")

    def state(self) -> dict[str, Any]:
        """What `batch` goes by besides the data step, plain JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""

    def close(self) -> None:
        """Called when the steps are over, however they ended."""

    def went_back(self) -> None:
        """Called after the loop rolled back: the weights are those of an earlier step."""

    # -- measuring ---------------------------------------------------------------------------------------------------

    def evaluate(self, step: int) -> dict[str, Any]:
        """Held-out measures: before the first step, every `log.eval_every` steps and at the end. Empty: none."""
        return {}

    def after_step(self) -> None:
        """Called after each step, for what is neither training nor evaluation, such as a sample."""

    # -- what is written down ----------------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same when a checkpoint is resumed."""
        raise NotImplementedError

    def lineage(self) -> dict[str, Any]:
        """Where the weights come from, for the model directory."""
        raise NotImplementedError

    def start_facts(self) -> dict[str, Any]:
        """More about the run, for its first event."""
        return {}

    def line_facts(self, loss: float, measures: dict[str, float]) -> dict[str, Any]:
        """What a line says besides loss and speed. loss: its mean over the line's steps."""
        return {"metrics": measures}

    def skip_facts(self, data_step: int) -> dict[str, Any]:
        """More about a step whose update was left out, such as the documents it learned from."""
        return {}

    def eval_facts(self, measures: dict[str, Any]) -> dict[str, Any]:
        """How held-out measures are written down."""
        return {"metrics": measures}

    def end_facts(self, measures: dict[str, Any]) -> dict[str, Any]:
        """More about the run, for its last event. measures: of the last evaluation."""
        return {}


class RollBack(Exception):
    """The policy when a run goes wrong: back to earlier weights, and on from there with data that has not been seen.

    An objective raises it from `batch`; the loop makes one, to before the first skipped step, when the guard left out
    too many. to: "best" (of the held-out evaluations so far) or a step, whose checkpoint or the newest before it is
    taken. lr_scale: factor on all learning rates from now on.
    """

    def __init__(self, reason: str, *, to: int | str = "best", lr_scale: float = 1.0) -> None:
        super().__init__(reason)
        self.reason, self.to, self.lr_scale = reason, to, lr_scale
