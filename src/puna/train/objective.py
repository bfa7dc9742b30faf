"""What a run gives the loop: its batches, loss, evaluation, and policy for failures."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from puna.core.errors import PunaError
from puna.train.parallel import Call
from puna.train.run_state import RunState

SCORE = "score"
"""The measure of a held-out evaluation that ranks weights (higher is better)."""

Metrics = Mapping[str, Tensor | float]


class Objective:
    """What differs between pretraining, fine-tuning, preferences and reinforcement.

    `train.loop` does the rest. An objective is created once the network has its initial weights. Every objective
    implements `batch` and `loss`; everything else has a default.
    """

    command: str = "puna train"
    """The command that resumes such a run."""
    steps: int = 0
    """The length of the run when the recipe's train.steps is 0."""
    notes: Sequence[str] = ()
    """Sentences about the objective's data, logged at the start."""
    shown: Sequence[str] = ()
    """The measures that the live view shows; empty: all of them."""
    knows_its_rows: bool = True
    """Whether rows are as long as the recipe says; not if the model generates them.

    Otherwise no step time is predicted.
    """
    fills_its_rows: bool = False
    """Whether every token is learned from and all weights are trained, so that FLOPs can be counted (MFU)."""
    scored: bool = True
    """Whether evaluations may have a score.

    The weights with the highest score are kept, and roll-backs may return to them.
    """
    ends_with_best: bool = False
    """Whether the model directory gets the weights with the highest score instead of the last ones."""
    evaluates_first: bool = True
    """Whether to evaluate before the first step."""

    def __init__(self, run: RunState[Any]) -> None:
        self.run = run

    # -- learning ----------------------------------------------------------------------------------------------------

    def batch(self, data_step: int) -> Sequence[Any]:
        """Return this process's micro-batches of a step.

        None on all processes means that there is nothing to learn. Anything random is a function of (seed, data step)
        and of `state`. The data step increases by one with each step and does not go back when the weights are rolled
        back. May raise RollBack.
        """
        raise NotImplementedError

    def loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Metrics]:
        """Return the scalar to differentiate for one micro-batch, and measures to log.

        Both are parts of a sum over the step's micro-batches and processes: divide by the global count. A measure named
        "..._max" is the maximum instead. "tokens" counts the tokens that were learned from. "loss" is the value that is
        logged and guarded, if that is not the scalar itself.
        """
        raise NotImplementedError

    def call(self, batch: Any) -> Call:
        """What the network is called with for a micro-batch, by objectives whose loss is what its head returns.

        Their runs may be cut into pipeline stages; the head returns (what to call backward on, the loss to log).
        """
        raise PunaError(f"{self.command} does not run in a pipeline.", "Set layout.pp = 1.")

    def state(self) -> dict[str, Any]:
        """What `batch` depends on in addition to the data step, as plain JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""

    def close(self) -> None:
        """Called when the steps have ended, for whatever reason."""

    def after_rollback(self) -> None:
        """Called after the loop rolled back: the weights are those of an earlier step."""

    # -- measuring ---------------------------------------------------------------------------------------------------

    def evaluate(self, step: int) -> dict[str, Any]:
        """Return held-out measures; empty: none.

        Called before the first step, every `log.eval_every` steps and at the end.
        """
        return {}

    def after_step(self) -> None:
        """Called after each step, for other work such as generating a sample.

        That is work that is neither training nor evaluation.
        """

    # -- what is recorded ----------------------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any]:
        """What must be unchanged when a checkpoint is resumed."""
        raise NotImplementedError

    def lineage(self) -> dict[str, Any]:
        """Where the weights come from, for the model directory."""
        raise NotImplementedError

    def start_facts(self) -> dict[str, Any]:
        """Further facts about the run, for its first event."""
        return {}

    def line_facts(self, loss: float, measures: dict[str, float]) -> dict[str, Any]:
        """What a log line records in addition to loss and speed.

        loss: its mean over the line's steps.
        """
        return {"metrics": measures}

    def skip_facts(self, data_step: int) -> dict[str, Any]:
        """Further facts about a skipped step, such as the documents in its batch."""
        return {}

    def eval_facts(self, measures: dict[str, Any]) -> dict[str, Any]:
        """How held-out measures are recorded."""
        return {"metrics": measures}

    def end_facts(self, measures: dict[str, Any]) -> dict[str, Any]:
        """Further facts about the run, for its last event. measures: of the last evaluation."""
        return {}


class RollBack(Exception):
    """The policy when a run goes wrong: return to earlier weights.

    Training continues with data that has not been seen. An objective raises it from `batch`. The loop creates one, to
    before the first skipped step, when the guard skipped too many steps. to: "best" (of the held-out evaluations so
    far) or a step, which selects its checkpoint or the newest before it. lr_scale: factor for all learning rates from
    now on.
    """

    def __init__(self, reason: str, *, to: int | str = "best", lr_scale: float = 1.0) -> None:
        super().__init__(reason)
        self.reason, self.to, self.lr_scale = reason, to, lr_scale
