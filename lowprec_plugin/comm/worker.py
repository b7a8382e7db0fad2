"""A thread that does one thing after another while its caller goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import torch
from torch import Tensor
from torch.futures import Future


class Worker:
    """Runs what is submitted in the order of submission, on one thread that starts with the first.

    On the CPU a collective blocks whoever waits for it; a backward pass must not.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[tuple[Callable[[], Tensor], Future[Tensor]]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    def submit(self, task: Callable[[], Tensor]) -> Future[Tensor]:
        """A future of what ``task`` returns or raises. Once one has failed, so do all after it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        future: Future[Tensor] = torch.futures.Future()
        self._queue.put((task, future))
        return future

    def _work(self) -> None:
        torch.set_grad_enabled(False)  # per thread
        while True:
            task, future = self._queue.get()
            try:
                if self._failed is not None:
                    raise RuntimeError(f"an earlier exchange of gradients failed: {self._failed}")
                result = task()
            except BaseException as error:  # whoever waits for the future is told
                self._failed = self._failed or error
                future.set_exception(error)  # type: ignore[arg-type]  # torch annotates it with the result's type
            else:
                future.set_result(result)
            del task, future
