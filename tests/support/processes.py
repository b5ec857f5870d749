"""Command lines in processes of their own, as a person or a scheduler starts them, to be killed and looked at from outside.

Two ways to the same command line. :class:`Fresh` starts the interpreter anew: seconds of imports for the program and seconds
more for the fork server of its loader. :class:`Launcher` has imported everything once, has no second thread, and forks a
child for each command; a test can then afford dozens of starts. What a child inherits that a fresh process would not is the
order of its sets (one hash seed for all), so the runs it is compared with must come from :class:`Fresh`.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import json
import multiprocessing.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A process with several threads must not be forked."""
_FORK_SERVER = "from multiprocessing.forkserver import main"


class Running(Protocol):
    """A process that leads a session of its own, so that everything it starts can be found."""

    pid: int

    def code(self) -> int | None:
        """Its exit code, minus the signal that ended it, ``None`` while it runs."""


class Starter(Protocol):
    """Something that starts ``mavil ARGUMENTS`` in ``folder``; both streams go to the end of the file ``log``."""

    def start(
        self, arguments: Sequence[object], folder: Path, log: Path, batches: Path | None = None, **environment: str
    ) -> Running:
        """Start it.

        Args:
            batches: also write the clips of every training batch there, a line of JSON each.
            environment: variables to add.
        """


def start_ranks(
    starter: Starter, count: int, arguments: Sequence[object], folder: Path, log: Path, batches: Path | None = None
) -> list[Running]:
    """Start the ranks of one run one by one as a scheduler may, with nobody who would end one when another dies.

    ``batches``, with the number of the rank behind it, is the file of each rank.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        starter.start(
            arguments,
            folder,
            log,
            batches.with_name(f"{batches.name}.{rank}") if batches else None,
            **shared,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(count)
    ]


def wait_for(running: Running, seconds: float) -> int:
    """The exit code of a process that must end by itself within some seconds."""
    code = wait_until(running.code, seconds)
    assert code is not None, f"process {running.pid} has not ended within {seconds:g} s"
    return code


def wait_until(look: Callable[[], Any], seconds: float, pause: float = 0.02) -> Any:
    """Look again and again until there is something to see (not ``None``), at most for some seconds."""
    deadline = time.monotonic() + seconds
    while (seen := look()) is None and time.monotonic() < deadline:
        time.sleep(pause)
    return seen


def survivors(session: int) -> list[str]:
    """``pid command`` of the processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # The name, in brackets, may hold spaces; behind it: state, parent, group, session.
            state, _, _, of_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state not in "ZX":
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{entry.name} {command[:120]}")
    return found


def kill_session(session: int) -> None:
    """End every process of a session with SIGKILL."""
    for line in survivors(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)


class Fresh:
    """Starts the interpreter anew for every command, by default ``python -m mavil``.

    Args:
        program: what stands before the arguments; ``sys.executable`` is put in front.
    """

    def __init__(self, *program: str) -> None:
        self._program = [sys.executable, *(program or ("-m", "mavil"))]
        self._running: list[subprocess.Popen[bytes]] = []

    def start(
        self, arguments: Sequence[object], folder: Path, log: Path, batches: Path | None = None, **environment: str
    ) -> Running:
        assert batches is None, "only a Launcher can look inside"
        with open(log, "ab") as file:
            command = [*self._program, *map(str, arguments)]
            process = subprocess.Popen(
                command, cwd=folder, env=_environment() | environment, stdout=file, stderr=file, start_new_session=True
            )
        self._running.append(process)
        return _OwnChild(process)

    def close(self) -> None:
        for process in self._running:
            kill_session(process.pid)
            process.wait()


class _OwnChild:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process

    def code(self) -> int | None:
        return self._process.poll()


class Launcher:
    """Forks a process that has imported everything for every command."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.processes"],
            cwd=ROOT,
            env=_environment() | ONE_THREAD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started: list[int] = []

    def start(
        self, arguments: Sequence[object], folder: Path, log: Path, batches: Path | None = None, **environment: str
    ) -> Running:
        order = [list(map(str, arguments)), str(folder), str(log), str(batches) if batches else None, environment]
        pid = self._ask({"start": order})
        self._started.append(pid)
        return _LaunchersChild(self, pid)

    def code_of(self, pid: int) -> int | None:
        return self._ask({"code": pid})

    def close(self) -> None:
        for pid in self._started:
            kill_session(pid)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline() or '"the launcher has ended"')


@functools.cache
def shared_launcher() -> Launcher:
    """One launcher for all tests of this session: its imports are most of what it costs."""
    launcher = Launcher()
    atexit.register(launcher.close)
    return launcher


class _LaunchersChild:
    def __init__(self, launcher: Launcher, pid: int) -> None:
        self.pid = pid
        self._launcher = launcher

    def code(self) -> int | None:
        return self._launcher.code_of(self.pid)


def _environment() -> dict[str, str]:
    # So that the package under test is found from any folder, also where it is not installed.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "GLOO_SOCKET_IFNAME": "lo"}


def _serve() -> None:
    """What the launcher's process does: an order in, an answer out, one line of JSON each."""
    import typer.main

    from mavil.cli import app

    dict(typer.main.get_command(app).commands)  # every verb: what a child then has already imported

    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads: a fork would copy their locks"
    codes: dict[int, int] = {}
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        if "start" in order:
            pid = os.fork()
            if pid == 0:
                _become(*order["start"])
            answer: int | None = pid
        else:
            pid = order["code"]
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                codes.update({pid: os.waitstatus_to_exitcode(status)} if ended else {})
            answer = codes.get(pid)
        print(json.dumps(answer), flush=True)


def _become(arguments: list[str], folder: str, log: str, batches: str | None, environment: dict[str, str]) -> None:
    """Turn this fork of the launcher into ``python -m mavil ARGUMENTS``; does not return."""
    os.setsid()
    os.environ.update(environment)
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for opened, number in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(opened, number)
    _keep_fork_server_ready()
    if batches is not None:
        _write_batches(batches)
    sys.argv = ["mavil", *arguments]
    code: object = 0
    try:
        runpy.run_module("mavil", run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # Not os._exit: what a program does at its end (threads joined, workers ended) belongs to it.
    sys.exit(code if isinstance(code, int) else 0 if code is None else 1)


def _keep_fork_server_ready() -> None:
    """Have a fork of this process wait to become its fork server, in place of a new interpreter that imports everything."""
    own, other = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        own.close()
        order, received, *_ = socket.recv_fds(other, 1 << 20, 16)
        if not order:  # the program has ended without one
            os._exit(0)
        other.close()
        wanted = json.loads(order)
        _renumber(received, wanted["numbers"])
        exec(wanted["code"], {"__name__": "__main__"})
        os._exit(0)
    other.close()
    spawn = multiprocessing.util.spawnv_passfds

    def start(path: Any, arguments: Sequence[Any], numbers: Sequence[int]) -> int:
        if not str(arguments[-1]).startswith(_FORK_SERVER) or own.fileno() < 0:
            return spawn(path, arguments, numbers)
        order = json.dumps({"code": arguments[-1], "numbers": list(numbers)}).encode()
        socket.send_fds(own, [order], list(numbers))
        own.close()
        return pid

    multiprocessing.util.spawnv_passfds = start  # type: ignore[assignment]


def _renumber(received: Sequence[int], wanted: Sequence[int]) -> None:
    """Give open files the numbers that the command line of a fork server names."""
    aside = [fcntl.fcntl(number, fcntl.F_DUPFD, 1 + max(*received, *wanted)) for number in received]
    for number in received:
        os.close(number)
    for number, target in zip(aside, wanted, strict=True):
        os.dup2(number, target)
        os.close(number)


def _write_batches(path: str) -> None:
    """Write the keys of every training batch that the loader hands over, in order."""
    from mavil.data.loading.loader import Loader

    batches_of = Loader.__iter__

    def noting(loader: Loader) -> Iterator[Any]:
        for batch in batches_of(loader):
            if batch.position is not None:  # only training has a place to continue from
                with open(path, "a") as file:
                    file.write(json.dumps(batch.keys) + "\n")
            yield batch

    Loader.__iter__ = noting  # type: ignore[method-assign]


if __name__ == "__main__":
    _serve()
