"""Stop on signals: the first lets the step finish, a second SIGINT exits at once.

The first may be SIGINT or SIGTERM.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from puna.core.console import say


class StopRequest:
    """The signal that asked this process to stop; 0 if none did."""

    def __init__(self, *, first: bool) -> None:
        self.signal = 0
        self._first = first  # prints for all processes of the run

    @property
    def name(self) -> str:
        """The signal's name, such as SIGTERM."""
        return signal.Signals(self.signal).name

    def agreed(self) -> bool:
        """Whether any process of the run was asked to stop.

        All get the same answer before the next step.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self.signal != 0
        asked = torch.tensor(self.signal)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        received = int(asked.item())
        if received:  # a signal that arrives during the exchange waits for the next one
            self.signal = received
        return received != 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the two signals while the block runs (only in the main thread)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, _frame: Any) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if self._first:
            say("[yellow]Stopping after this step; a checkpoint will be saved. Ctrl-C again exits at once.[/]")
