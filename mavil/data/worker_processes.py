"""How worker processes are started and how they end: by all that decode in processes of their own."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing import util
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

LONGEST_SOCKET_FOLDER = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes of the folder for temporary files: 107 is the longest path of a socket on Linux, and that comes behind it."""
SHORT_FOLDER = "/tmp"


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


def package_of(function: Any) -> str:
    """The package in which a function is, or the one that a :func:`functools.partial` calls."""
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
    _keep_socket_paths_short()
    # Every worker runs the main program's imports. Done once in the server, they cost the workers nothing.
    loaded = [name for name in sys.modules if name.partition(".")[0] == package and name != "__main__"]
    # Python's own helper would be ended by some of them as well. It lets others through when it starts, so it comes first.
    with _signals_held_back(), _without_working_folder():
        resource_tracker.ensure_running()
    context = _WorkerContext()
    context.set_forkserver_preload(loaded)
    return context


def _keep_socket_paths_short() -> None:
    """Where ``TMPDIR`` is deep, as on some clusters, a program's sockets lie elsewhere: no process could be started otherwise.

    A program decides once, when it first needs that folder; its workers take it over.
    """
    if len(os.fsencode(tempfile.gettempdir())) <= LONGEST_SOCKET_FOLDER or not os.access(SHORT_FOLDER, os.W_OK):
        return
    before, tempfile.tempdir = tempfile.tempdir, SHORT_FOLDER
    try:
        util.get_temp_dir()
    finally:
        tempfile.tempdir = before


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
