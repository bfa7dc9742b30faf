"""Choose the model with the fewest predicted bits per byte after the time allowed.

A larger model learns more from each token and sees fewer of them. Which effect wins depends on the machine, so the
choice starts from measured step times, never from a peak rate: a processor with fast bf16 products reaches only a small
share of it on matrices this small. Each shape's bits per byte after a number of tokens were measured (docs/log.md,
2026-11-30) and are stored here as one curve per shape.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SEQ_LEN = 512
MAX_PASSES = 4
"""Passes over the corpus.

Up to four, repeated text is nearly as good as new text (Muennighoff 2023, arXiv 2305.16264).
"""


@dataclass(frozen=True)
class Candidate:
    """A Llama's shape and its learning curve: bits per byte = scale * (tokens / 1M) ** -power."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    scale: float
    power: float


@dataclass(frozen=True)
class Option:
    """A shape with rows per step, and its result in the time allowed.

    measured: whether step_seconds was.
    """

    shape: Candidate
    rows: int
    step_seconds: float
    steps: int
    bits_per_byte: float
    measured: bool = False


# Measured with steps of 8 x 512 tokens, one seed each. 256 wide: 1.474 after 0.32M tokens, 1.352 after 0.59M, 1.126
# after 2.0M. 320: 1.453 after 0.32M, 1.190 after 1.1M. 192: 1.398 after 0.64M, 1.322 after 0.89M, 1.304 after 0.98M.
# 128: 1.493 after 0.64M, 1.344 after 1.63M.
SHAPES = (
    Candidate(128, 3, 4, 344, 1.42, 0.112),
    Candidate(192, 4, 4, 512, 1.30, 0.164),
    Candidate(256, 4, 4, 688, 1.247, 0.147),
    Candidate(320, 6, 5, 864, 1.209, 0.1615),
)
ROW_COSTS = {8: 0.0, 4: 0.004, 2: 0.02}
"""Rows in a step, and bits per byte that fewer cost at the same tokens (4: docs/log.md, 2026-11-23; 2: a guess)."""
FEWEST_STEPS = 24
"""With fewer steps a schedule has no room, so smaller steps are preferred."""


def choose(
    seconds: float,
    *,
    corpus_tokens: int,
    starting: Callable[[Candidate], float],
    estimate: Callable[[Candidate, int], float],
    measure: Callable[[Candidate, int], float],
    shapes: Sequence[Candidate] = SHAPES,
) -> list[Option]:
    """Rank the options for `seconds` of training, best first, then the other measured ones.

    corpus_tokens: training tokens of the corpus. starting: seconds to create a shape's initial weights. estimate,
    measure: seconds of a step of a shape with this many rows. All options are estimated, and the two best shapes are
    measured; a third one too, if it would win at the pace of the others.
    """

    def option(shape: Candidate, rows: int, step: float, *, measured: bool) -> Option:
        left = max(0.0, seconds - starting(shape))
        steps = min(int(left / step), most_steps(rows, corpus_tokens))
        return Option(shape, rows, step, steps, predicted_bits(shape, rows, steps * rows * SEQ_LEN), measured)

    guesses = {(shape, rows): estimate(shape, rows) for shape in shapes for rows in ROW_COSTS}
    found: list[Option] = []
    pace = 1.0  # measured over estimated step times, which is similar for all shapes
    for number in range(min(3, len(shapes))):
        rest = [
            option(shape, rows, pace * step, measured=False)
            for (shape, rows), step in guesses.items()
            if shape not in {one.shape for one in found}
        ]
        best = min(rest, key=_rank)
        if number == 2 and _rank(best) >= min(map(_rank, found)):
            break
        step = measure(best.shape, best.rows)
        found.append(option(best.shape, best.rows, step, measured=True))
        pace = math.exp(sum(math.log(one.step_seconds / guesses[one.shape, one.rows]) for one in found) / len(found))
    return sorted(found, key=_rank)


def _rank(option: Option) -> tuple[bool, float]:
    """Sort key: enough steps first, then bits per byte."""
    return option.steps < FEWEST_STEPS, option.bits_per_byte


def most_steps(rows: int, corpus_tokens: int) -> int:
    """Steps with this many rows that the allowed passes over the corpus permit."""
    return int(MAX_PASSES * corpus_tokens / (rows * SEQ_LEN))


def predicted_bits(shape: Candidate, rows: int, tokens: int) -> float:
    """Predict a shape's bits per byte after a number of tokens, from its measured curve.

    Infinite for no tokens.
    """
    if tokens <= 0:
        return math.inf
    return shape.scale * (tokens / 1e6) ** -shape.power + ROW_COSTS[rows]
