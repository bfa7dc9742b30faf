"""What an exception within the engine becomes for whoever asked, and what can be freed before a step is tried again."""

import gc
import traceback

import torch

from puna.engine.request import EngineError


def failure(what: str, error: Exception) -> EngineError:
    """The error that a request ends with: what failed, and how."""
    if is_memory(error):
        result = EngineError(f"{what}: there was not enough memory.", "Ask for less at once, or lower max_batch.")
    else:
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        result = EngineError(f"{what} ({type(error).__name__}: {reason}).", "Other requests go on; try again.")
    result.__cause__ = error
    return result


def is_memory(error: Exception) -> bool:
    """Whether memory ran out, on a device or on the host (whose allocator raises a bare RuntimeError)."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "allocate memory" in text)


def let_go(error: Exception) -> None:
    """Free what a failed forward still holds: its traceback keeps every tensor of every layer it was in."""
    traceback.clear_frames(error.__traceback__)
    if is_memory(error):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
