"""The engine loop: drives the engine core, on the caller's thread or on its own.

Without a thread of its own, steps are made on the thread of the caller that waits for one; `start` creates a thread,
which then makes them all. What other threads want done (a new request, new weights) waits in an inbox until a step has
ended.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TypeVar

from puna.engine.core.engine_core import EngineCore
from puna.engine.request import EngineError, Request, TokenOutput

T = TypeVar("T")


class EngineLoop:
    """Makes steps one at a time. build: creates the core, called when it is first needed."""

    def __init__(self, build: Callable[[], EngineCore]) -> None:
        self._build = build
        self.built: EngineCore | None = None
        self._building = threading.Lock()
        self._step_lock = threading.Lock()  # held while making a step or running the inbox
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._busy_since = monotonic()  # when there last was something to do after an idle period

    @property
    def core(self) -> EngineCore:
        """The engine core, created on first use."""
        if self.built is not None:
            return self.built
        with self._building:
            if self.built is None:
                self.built = self._build()
            return self.built

    # -- monitoring; nothing here waits ------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether there is something to do, or being done."""
        scheduling = self.built is not None and self.built.scheduler.busy
        return self._step_lock.locked() or not self._inbox.empty() or scheduling

    @property
    def age(self) -> float:
        """Seconds since a step ended, or since there was something to do again after an idle period."""
        return monotonic() - max(self.built.last_progress if self.built else self._busy_since, self._busy_since)

    def stuck(self, seconds: float) -> bool:
        """Whether there is something to do but no step has ended for so long."""
        return self._progress_expected and self.age >= seconds

    @property
    def _progress_expected(self) -> bool:
        # Without a thread, steps are made by callers as they like: only a step that runs can hang.
        return self.busy if self._thread is not None else self._step_lock.locked()

    def _end_idle(self) -> None:
        """Restart the progress clock when an idle period ends."""
        if not self._progress_expected:
            self._busy_since = monotonic()

    # -- requests ----------------------------------------------------------------------------------------------------

    def enqueue(self, request: Request) -> None:
        """Let a request join the next step."""
        self._end_idle()
        self._inbox.put(lambda: self.core.scheduler.add(request))
        if self._closed:
            self._abort_all_closed()

    def follow(self, request: Request) -> Iterator[TokenOutput]:
        """Yield the request's outputs; while the engine has no thread, steps are made here."""
        while True:
            while self._thread is None and request.outputs.empty():
                self._end_idle()
                with self._step_lock:
                    if request.outputs.empty():  # another caller's step may have brought one
                        self._run_inbox()
                        self.core.step()
            output = request.outputs.get()
            if output is None:
                return
            if isinstance(output, Exception):
                raise output
            yield output

    def abandon(self, requests: Iterable[Request]) -> None:
        """Cancel requests that nobody waits for any more, and free their blocks."""
        open_requests = [request for request in requests if not request.done]
        for request in open_requests:
            request.cancel()
        # A garbage collector may close a stream during a step on this very thread: then the next step frees them.
        if open_requests:
            self._end_idle()
        if open_requests and self._step_lock.acquire(blocking=False):
            try:
                self._run_inbox()
                self.core.scheduler.abort_expired(monotonic())
            finally:
                self._step_lock.release()

    def between_steps(self, task: Callable[[], T]) -> T:
        """Run a task while no step runs; returns its result."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)

        self._end_idle()
        self._inbox.put(run)
        if self._thread is None:
            with self._step_lock:
                self._run_inbox()
        return future.result()

    def _run_inbox(self) -> None:
        """Run the tasks in the inbox. Needs the step lock."""
        while True:
            try:
                task = self._inbox.get_nowait()
            except Empty:
                return
            task()

    # -- the engine's own thread -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread that makes all steps from now on, unless it runs already."""
        with self._building:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="puna-engine", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop the thread, if there is one. Open requests fail."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(lambda: None)  # it may be waiting for something to do
            thread.join()
        self._abort_all_closed()

    def _work(self) -> None:
        scheduler = self.core.scheduler
        while not self._closed:
            if not scheduler.busy:
                task = self._inbox.get()
                with self._step_lock:
                    task()
            with self._step_lock:
                self._run_inbox()
                try:
                    self.core.step()
                except Exception as error:  # a bug of ours: nobody may wait forever because of it
                    self._abort_all(EngineError(f"The engine failed ({type(error).__name__}: {error}).", "Report it."))

    def _abort_all_closed(self) -> None:
        with self._step_lock:
            self._run_inbox()
            self._abort_all(EngineError("The engine is closed.", "Create another one."))

    def _abort_all(self, error: EngineError) -> None:
        if self.built is None:
            return
        for request in self.built.scheduler.requests():
            self.built.scheduler.abort(request, error)
