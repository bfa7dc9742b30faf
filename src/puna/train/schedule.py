"""Learning rate over a run: a factor on the peak rates by the share of the run done.

A share instead of a step, so that changing the batch size or the number of steps keeps the shape of the schedule.
"""

import math

from puna.train.recipe import ScheduleConfig


def lr_factor(config: ScheduleConfig, done: float) -> float:
    """Factor in [0, 1] for the step that starts when the share `done` of the run is over.

    done: in [0, 1]. Linear warm-up over `warmup` of the run; then "wsd" holds 1 and falls linearly to `final` over the
    last `decay` of the run (arXiv 2405.18392), "cosine" falls from 1 to `final` (arXiv 1608.03983).
    """
    if done < config.warmup:
        # The first step already has a rate: a factor of exactly 0 would waste it.
        return max(done, 1e-3 * config.warmup) / config.warmup
    if config.kind == "cosine":
        through = (done - config.warmup) / max(1e-9, 1 - config.warmup)
        return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, through)))
    left = max(0.0, 1 - done)
    if left >= config.decay:
        return 1.0
    return config.final + (1 - config.final) * left / config.decay
