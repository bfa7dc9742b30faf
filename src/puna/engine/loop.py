"""Who makes the engine's steps, and whether they go on.

Without a thread of its own the engine makes them on the thread of whoever waits for one; `start` makes a thread, which
then makes them all. What other threads want done (a new request, new weights) lies in an inbox until a step has ended.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TypeVar

from puna.engine.request import EngineError, Request, Step
from puna.engine.step import Stepper

T = TypeVar("T")


class Loop:
    """Makes steps one at a time. make: gives what makes them, and is called when a step is first wanted."""

    def __init__(self, make: Callable[[], Stepper]) -> None:
        self._make = make
        self.made: Stepper | None = None
        self._making = threading.Lock()
        self._turn = threading.Lock()  # held by whoever makes a step or looks into the inbox
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._began = monotonic()  # when there last was something to do after a rest

    @property
    def stepper(self) -> Stepper:
        """What makes the steps."""
        if self.made is not None:
            return self.made
        with self._making:
            if self.made is None:
                self.made = self._make()
            return self.made

    # -- looking; nothing here waits ---------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether there is something to do, or is being done."""
        return self._turn.locked() or not self._inbox.empty() or (self.made is not None and self.made.scheduler.busy)

    @property
    def age(self) -> float:
        """Seconds since a step ended, or since there was something to do again after a rest."""
        return monotonic() - max(self.made.progress if self.made else self._began, self._began)

    def stuck(self, seconds: float) -> bool:
        """Whether there is something to do and for so long no step has ended."""
        return self._expected and self.age >= seconds

    @property
    def _expected(self) -> bool:
        # Without a thread steps are made by who wants them, and nobody must: only one that runs can hang.
        return self.busy if self._thread is not None else self._turn.locked()

    def _wake(self) -> None:
        """A rest ends: the time it took is not one without progress."""
        if not self._expected:
            self._began = monotonic()

    # -- asking ------------------------------------------------------------------------------------------------------

    def enqueue(self, request: Request) -> None:
        """Let a request join the next step."""
        self._wake()
        self._inbox.put(lambda: self.stepper.scheduler.add(request))
        if self._closed:
            self._end_all()

    def follow(self, request: Request) -> Iterator[Step]:
        """The request's steps; as long as the engine has no thread they are made here."""
        while True:
            while self._thread is None and request.steps.empty():
                self._wake()
                with self._turn:
                    if request.steps.empty():  # or somebody else's turn brought one
                        self._drain()
                        self.stepper.step()
            step = request.steps.get()
            if step is None:
                return
            if isinstance(step, Exception):
                raise step
            yield step

    def abandon(self, requests: Iterable[Request]) -> None:
        """Nobody waits for these any more: free what they hold."""
        open_ones = [request for request in requests if not request.done]
        for request in open_ones:
            request.cancel()
        # A collector may close a stream in the middle of a step on this very thread: then the next step does it.
        if open_ones:
            self._wake()
        if open_ones and self._turn.acquire(blocking=False):
            try:
                self._drain()
                self.stepper.scheduler.reap(monotonic())
            finally:
                self._turn.release()

    def between_steps(self, task: Callable[[], T]) -> T:
        """Run a task while no step runs; returns what it returns."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)

        self._wake()
        self._inbox.put(run)
        if self._thread is None:
            with self._turn:
                self._drain()
        return future.result()

    def _drain(self) -> None:
        """Run what lies in the inbox. Only with the turn."""
        while True:
            try:
                task = self._inbox.get_nowait()
            except Empty:
                return
            task()

    # -- the engine's own thread -------------------------------------------------------------------------------------

    def start(self) -> None:
        """From now on a thread makes the steps."""
        with self._making:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="puna-engine", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop the thread, if there is one. Requests on their way fail."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(lambda: None)  # it may be waiting for something to do
            thread.join()
        self._end_all()

    def _work(self) -> None:
        scheduler = self.stepper.scheduler
        while not self._closed:
            if not scheduler.busy:
                task = self._inbox.get()
                with self._turn:
                    task()
            with self._turn:
                self._drain()
                try:
                    self.stepper.step()
                except Exception as error:  # a defect of ours: nobody may wait for ever because of it
                    self._drop_all(EngineError(f"The engine failed ({type(error).__name__}: {error}).", "Report it."))

    def _end_all(self) -> None:
        with self._turn:
            self._drain()
            self._drop_all(EngineError("The engine is closed.", "Make another one."))

    def _drop_all(self, error: EngineError) -> None:
        if self.made is None:
            return
        for request in self.made.scheduler.requests():
            self.made.scheduler.drop(request, error)
