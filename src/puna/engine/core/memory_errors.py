"""Out of memory as a sentence: what torch and Python raise for it becomes `OutOfMemoryError`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from puna.core.errors import OutOfMemoryError


@contextmanager
def out_of_memory(what: str, hint: str) -> Iterator[None]:
    """Raise OutOfMemoryError, "There is not enough memory for `what`.", where the block runs out of memory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        # A CPU allocation that fails is a plain RuntimeError.
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        raise OutOfMemoryError(f"There is not enough memory for {what}.", hint) from None
