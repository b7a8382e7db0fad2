"""A thread that does one thing after another while its caller goes on."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from datetime import timedelta
from queue import SimpleQueue

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

#: How often a waiting thread looks whether the process is about to end.
_POLL = timedelta(seconds=0.25)
#: Seconds that exchanges under way are given to finish at the end of the process.
_GRACE = 1.0
_ending = threading.Event()
_never = threading.Lock()
_never.acquire()


class Worker:
    """Runs what is submitted in the order of submission, on one thread: from the first until the worker is gone.

    On the CPU a collective blocks whoever waits for it; a backward pass must not.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: _Thread | None = None

    def submit(self, task: Callable[[], Tensor]) -> Future[Tensor]:
        """A future of what ``task`` returns, or that says what it raised. Once one has failed, so do all after it."""
        if self._thread is None:
            self._thread = _Thread(name=self._name, daemon=True)
            self._thread.start()
            weakref.finalize(self, self._thread.tasks.put, None).atexit = False
        future: Future[Tensor | BaseException] = torch.futures.Future()
        # Future.set_exception is for Python's eyes only: DDP would try to cast the exception to a tensor. What a
        # callback raises, torch passes on.
        result = future.then(_result_of)
        self._thread.tasks.put((task, future))
        return result


def wait(work: dist.Work) -> None:
    """Wait for a collective; on a worker's thread not beyond the end of the process.

    A thread that wakes while the interpreter shuts down is unwound through C++ that does not allow it, which aborts
    the process. So what still waits then never wakes, and keeps what it holds: destroyed, a process group would wait
    for its collectives.
    """
    thread = threading.current_thread()
    if not isinstance(thread, _Thread):
        work.wait()
        return
    while not _ending.is_set():
        try:
            work.wait(_POLL)
        except RuntimeError:
            if not work.is_completed():
                continue
            work.wait()
        return
    thread.parked.set()
    _never.acquire()


class _Thread(threading.Thread):
    """Holds no worker, so that a worker that nobody else holds is gone."""

    def __init__(self, name: str, daemon: bool) -> None:
        super().__init__(name=name, daemon=daemon)
        self.tasks: SimpleQueue[tuple[Callable[[], Tensor], Future[Tensor | BaseException]] | None] = SimpleQueue()
        self.parked = threading.Event()
        _threads.add(self)

    def run(self) -> None:
        torch.set_grad_enabled(False)  # per thread
        failed: BaseException | None = None
        while (given := self.tasks.get()) is not None:
            task, future = given
            result: Tensor | BaseException
            try:
                if failed is not None:
                    raise RuntimeError(f"an earlier exchange of gradients failed: {failed}")
                result = task()
            except BaseException as error:  # raised again where the future is waited for
                failed = failed or error
                result = error
            future.set_result(result)
            del given, task, future, result


_threads: weakref.WeakSet[_Thread] = weakref.WeakSet()


def _result_of(future: Future[Tensor | BaseException]) -> Tensor:
    result = future.value()
    if isinstance(result, BaseException):
        raise result
    return result


@atexit.register
def _end() -> None:
    """Let every thread end, or else rest for good, before the interpreter shuts down."""
    threads = [thread for thread in _threads if thread.is_alive()]
    for thread in threads:
        thread.tasks.put(None)
    for thread in threads:
        thread.join(_GRACE)
    _ending.set()
    for thread in threads:
        while thread.is_alive() and not thread.parked.wait(0.01):
            pass
