"""Errors of a step: the error a request ends with, and what to free before a failed step is tried again."""

import gc
import traceback

import torch

from puna.engine.request import EngineError


def as_engine_error(what: str, error: Exception) -> EngineError:
    """The error that a request ends with: what failed, and how."""
    if is_out_of_memory(error):
        result = EngineError(f"{what}: there was not enough memory.", "Send fewer requests, or lower max_batch.")
    else:
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        result = EngineError(f"{what} ({type(error).__name__}: {reason}).", "Other requests continue; try again.")
    result.__cause__ = error
    return result


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a device or on the host (whose allocator raises a bare RuntimeError)."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "allocate memory" in text)


def release_frames(error: Exception) -> None:
    """Free what a failed forward still holds: its traceback keeps the tensors of all layers alive."""
    traceback.clear_frames(error.__traceback__)
    if is_out_of_memory(error):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
