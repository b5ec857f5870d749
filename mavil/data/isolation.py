"""Work in other processes that may hang or die: media decoders sometimes do, and no clip may take the program with it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import TimeoutError as TaskTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
R = TypeVar("R")

LOOK_AHEAD_PER_WORKER = 32
"""Items handed out beyond the first unfinished one, per worker: while one item hangs, the others go on."""
_FRESH_POOLS = 3


@dataclass(frozen=True)
class Outcome(Generic[T, R]):
    """What became of one item: a value, or ``failure``.

    ``timeout``: it took longer than allowed. ``killed``: its process died (a crash in a decoder, out of memory).
    """

    item: T
    value: R | None
    failure: str | None = None


def map_isolated(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int,
    seconds_per_item: float,
    description: str,
    show_progress: bool,
    total: int | None = None,
    look_ahead: int = LOOK_AHEAD_PER_WORKER,
) -> Iterator[Outcome[T, R]]:
    """``function`` of every item in worker processes, in the order of the items, with bounded look-ahead.

    A worker that hangs or dies is replaced and costs its own item only. Exceptions of ``function`` are raised here.
    Each item costs a tenth of a millisecond [measured], little beside the decoding of a clip.

    Args:
        function: importable, or a :func:`functools.partial` of such a function; it and the values are pickled. After
            the rare death of a whole pool an item may be worked on twice.
        items: drawn as they are needed.
        workers: processes; with 0 everything runs in this one, where nothing is isolated and nothing times out.
        seconds_per_item: the longest that one item may take.
        description: of the progress bar.
        show_progress: draw it.
        total: number of items where ``items`` has no length.
        look_ahead: see :data:`LOOK_AHEAD_PER_WORKER`; fewer where values are large.

    Raises:
        RuntimeError: the workers cannot be started.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(Progress(TextColumn("{task.description}"), *columns, disable=not show_progress))
        task = bar.add_task(description, total=total)
        workers = workers if total is None else min(workers, total)
        outcomes = (
            _in_workers(function, items, workers, seconds_per_item, look_ahead) if workers else _here(function, items)
        )
        stack.enter_context(contextlib.closing(outcomes))
        for outcome in outcomes:
            bar.advance(task)
            yield outcome


def _here(function: Callable[[T], R], items: Iterable[T]) -> Generator[Outcome[T, R], None, None]:
    for item in items:
        yield Outcome(item, function(item))


def _in_workers(
    function: Callable[[T], R], items: Iterable[T], workers: int, seconds: float, look_ahead: int
) -> Generator[Outcome[T, R], None, None]:
    tasks: _Tasks[T, R] = _Tasks(function, workers, seconds)
    try:
        for item in items:
            tasks.submit(item)
            if len(tasks.waiting) >= workers * look_ahead:
                yield tasks.take_first()
        while tasks.waiting:
            yield tasks.take_first()
    finally:
        tasks.stop()


class _Tasks(Generic[T, R]):
    """The items handed out, in order, and the pool that works on them; a pool that breaks is replaced."""

    def __init__(self, function: Callable[[T], R], workers: int, seconds: float) -> None:
        self._function, self._workers, self._seconds = function, workers, seconds
        self._pool, self._fresh_pools = self._new_pool(), _FRESH_POOLS
        self.waiting: deque[tuple[T, Any]] = deque()

    def submit(self, item: T) -> None:
        if not self._pool_works():
            self._replace_pool()
        self.waiting.append((item, self._schedule(item)))

    def take_first(self) -> Outcome[T, R]:
        """Wait for the first item handed out."""
        outcome = None
        while outcome is None:
            item, future = self.waiting[0]
            try:
                outcome = Outcome(item, future.result())
            except ProcessExpired:
                outcome = Outcome(item, None, "killed")
            except TaskTimeout as error:
                if error.__cause__ is not None:  # raised by the function itself, in the worker
                    raise
                outcome = Outcome(item, None, "timeout")
            except BrokenProcessPool:
                self._replace_pool()
        self.waiting.popleft()
        self._fresh_pools = _FRESH_POOLS
        return outcome

    def stop(self) -> None:
        """End the workers at once, whatever they are at."""
        self._pool.stop()
        self._pool.join()

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            self._workers, initializer=prepare_worker, context=worker_context(_package_of(self._function))
        )

    def _pool_works(self) -> bool:
        return not self.waiting or self._pool.active

    def _schedule(self, item: T) -> Any:
        return self._pool.schedule(self._function, args=(item,), timeout=self._seconds)

    def _replace_pool(self) -> None:
        """A worker that dies between two items, or before it says what it works on, takes the whole pool along."""
        if self._fresh_pools == 0:
            raise RuntimeError(f"the worker processes for {self._function} end before they have done anything")
        self._fresh_pools -= 1
        self.stop()
        self._pool = self._new_pool()
        for place, (item, future) in enumerate(self.waiting):
            if not future.done() or isinstance(future.exception(), BrokenProcessPool):
                self.waiting[place] = (item, self._schedule(item))


def prepare_worker() -> None:
    """Called first in every worker process: it takes no notice of :data:`IGNORED`, and ends with the program.

    A program that is killed cannot end its workers: they watch over it.
    """
    # Most were born so, see worker_context; not where something else of the program had started the fork server.
    signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    program = multiprocessing.parent_process()
    if program is not None:
        program.join()
        os._exit(1)


def _package_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__module__", "")).partition(".")[0]


def worker_context(package: str) -> BaseContext:
    """How worker processes are started: forked from a fork server, a fresh process that has only imported ``package``.

    Forking the program itself could copy a lock that one of torch's threads holds, and hang; spawning would import torch
    anew, seconds and hundreds of MiB for every worker. As with spawn, a script needs an ``if __name__ == "__main__"`` guard.

    A terminal sends Ctrl-C, and SLURM its signals, to every process of the program: the workers and the fork server take no
    notice of :data:`IGNORED`, so that the program can finish what it is at. They end by SIGKILL, or with the program.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    # Every worker runs the main program's imports. Done once in the server, they cost the workers nothing.
    loaded = [name for name in sys.modules if name.partition(".")[0] == package and name != "__main__"]
    # Python's own helper would be ended by some of them as well. It lets others through when it starts, so it comes first.
    with _signals_held_back(), _without_working_folder():
        resource_tracker.ensure_running()
    context = _WorkerContext()
    context.set_forkserver_preload(loaded)
    return context


if sys.platform != "win32":
    from multiprocessing import popen_forkserver, resource_tracker
    from multiprocessing.context import ForkServerContext, ForkServerProcess
    from multiprocessing.sharedctypes import RawValue

    IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    """What asks the program to stop and is no business of its workers; see :mod:`mavil.engine.process.stopping`."""

    @contextlib.contextmanager
    def _signals_held_back() -> Iterator[None]:
        """The program is sent those that come meanwhile at the end; a process that is started meanwhile never is."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    _one_start_at_a_time = threading.RLock()

    @contextlib.contextmanager
    def _without_working_folder() -> Iterator[None]:
        """A Python that is started meanwhile looks for no modules where the user stands, who may have a ``queue.py`` there.

        The fork server is ``python -c``, which does so first. Workers get the program's own list. Before Python 3.11 nothing
        changes.
        """
        with _one_start_at_a_time:  # the environment is that of all threads
            before = os.environ.get("PYTHONSAFEPATH")
            os.environ["PYTHONSAFEPATH"] = "1"
            try:
                yield
            finally:
                if before is None:
                    del os.environ["PYTHONSAFEPATH"]
                else:
                    os.environ["PYTHONSAFEPATH"] = before

    class _Popen(popen_forkserver.Popen):
        def terminate(self) -> None:
            """End the process, which is deaf to the SIGTERM that torch and the interpreter's own end would send."""
            self.kill()

    class _WorkerProcess(ForkServerProcess):
        @staticmethod
        def _Popen(process_obj: BaseProcess) -> _Popen:  # noqa: N802 - multiprocessing's name
            with _signals_held_back(), _without_working_folder():  # the first of them starts the fork server
                return _Popen(process_obj)

    class _Flag:
        """As an Event that nobody waits for, without its lock: with a process killed while it looks, that would stay locked."""

        def __init__(self) -> None:
            self._is_set = RawValue(ctypes.c_bool, False)

        def set(self) -> None:
            """From now on :meth:`is_set` is true in every process."""
            self._is_set.value = True

        def is_set(self) -> bool:
            """Whether a process has set it."""
            return bool(self._is_set.value)

    class _WorkerContext(ForkServerContext):
        Process = _WorkerProcess

        def Event(self) -> _Flag:  # type: ignore[override]  # noqa: N802 - multiprocessing's name
            """The DataLoader's sign to its workers that it was closed."""
            return _Flag()
