"""A private SLURM below one folder: no systemd, no cgroups, nothing of the host's is changed. Needs root.

    python tools/slurm_sandbox/sandbox.py start FOLDER --nodes 2 --cpus 4      then: export SLURM_CONF=FOLDER/slurm.conf
    python tools/slurm_sandbox/sandbox.py kill-node FOLDER 127.0.0.2           as if the machine had lost its power
    python tools/slurm_sandbox/sandbox.py start-node FOLDER 127.0.0.2
    python tools/slurm_sandbox/sandbox.py stop FOLDER

Partitions: ``main`` (the default) is preempted by ``high``. Several sandboxes run side by side: ports are looked for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    # Python puts this file's own folder first; the repository has to be there, for ``tools`` to be found from anywhere.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.slurm_sandbox.configuration import CLUSTER, Cluster, write_configuration
from tools.slurm_sandbox.processes import end_all, node_processes

PACKAGES = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "munged": "munge"}
ACCOUNTING_PACKAGES = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server-core"}
START_SECONDS = 30.0
LONGEST_SOCKET_PATH = 107
"""Bytes, on Linux."""


class SandboxError(Exception):
    """Why there is no sandbox, in one line."""


def missing(has_accounting: bool = False) -> str | None:
    """Why a sandbox cannot be started here, or ``None``."""
    programs = PACKAGES | (ACCOUNTING_PACKAGES if has_accounting else {})
    absent = sorted({package for program, package in programs.items() if _program(program) is None})
    if absent:
        return f"not installed here: {', '.join(absent)} (apt-get install --no-install-recommends {' '.join(absent)})"
    if os.geteuid() != 0:
        return "SLURM's daemons must be started as root, or they cannot start a job as its user"
    return None


def start(cluster: Cluster) -> Path:
    """Start the daemons and wait until every node is idle; return the path for ``SLURM_CONF``.

    Raises:
        SandboxError: SLURM is not installed, this is not root, or a daemon did not come up; nothing is left running.
    """
    problem = missing(cluster.has_accounting)
    if problem is not None:
        raise SandboxError(problem)
    cluster = replace(cluster, folder=cluster.folder.resolve(), ports=_free_ports(cluster.num_ports))
    folder = cluster.folder
    if len(os.fsencode(folder)) > longest_folder(cluster.nodes):
        raise SandboxError(
            f"{folder}: the path is too long for a socket, take one of at most {longest_folder(cluster.nodes)} characters"
        )
    end_all(folder)
    for name in ("state", "log", "db", *(f"spool.{node}" for node in cluster.nodes)):
        # What an earlier cluster knew about its nodes and jobs does not hold for this one.
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    try:
        write_configuration(cluster)
        _start_munge(folder)
        if cluster.has_accounting:
            _start_accounting(cluster)
        _run(cluster, "slurmctld", "-f", cluster.conf)
        for node in cluster.nodes:
            start_node(folder, node)
        _wait(lambda: _num_idle(cluster.conf) == cluster.num_nodes, f"its nodes are not idle: see {folder}/log")
    except BaseException:
        end_all(folder)
        raise
    return cluster.conf


def longest_folder(nodes: Sequence[str]) -> int:
    """Bytes of a sandbox's path: where a step's daemon cannot have its socket, no job ever runs, and nothing says why."""
    return LONGEST_SOCKET_PATH - max(len(f"/spool.{node}/{node}_99999.4294967295") for node in nodes)


def stop(folder: Path) -> int:
    """End everything that was started for ``folder``, jobs included; return how many processes that were."""
    return end_all(folder.resolve())


def start_node(folder: Path, node: str) -> None:
    """Start one node's daemon, at first or after :func:`kill_node`."""
    _execute([_program("slurmd") or "slurmd", "-f", str(folder / "slurm.conf"), "-N", node], folder)


def kill_node(folder: Path, node: str) -> int:
    """Kill a node's daemon and all that runs on it, as a power cut would; return how many processes that were."""
    killed = list(node_processes(folder.resolve(), node))
    for pid in killed:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(killed)


def _start_munge(folder: Path) -> None:
    key = folder / "munge.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
    folder.chmod(0o755)  # munged refuses a folder that others may write to
    files = {"key-file": key, "socket": folder / "munge.sock", "pid-file": folder / "munged.pid"}
    files |= {"log-file": folder / "log" / "munged.log", "seed-file": folder / "munged.seed"}
    options = [*(f"--{name}={value}" for name, value in files.items()), "--num-threads=2"]
    # Everybody may want a credential from a host's daemon; ours is for root, whatever the folders above look like.
    _execute([_program("munged") or "munged", "--force", *options], folder)


def _start_accounting(cluster: Cluster) -> None:
    folder, port = cluster.folder, cluster.ports[2]
    where = ["--no-defaults", "--user=root", f"--datadir={folder}/db"]
    with (folder / "log" / "mariadb.log").open("ab") as log:
        options = [f"--socket={folder}/db.sock", f"--pid-file={folder}/mariadbd.pid", f"--port={port}"]
        # Without grants the database needs none of the tables that an installation makes.
        options += ["--bind-address=127.0.0.1", "--skip-grant-tables", "--skip-networking=0"]
        options += ["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M"]
        options += ["--innodb-lock-wait-timeout=900"]
        command = [_program("mariadbd") or "mariadbd", *where, *options]
        subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    _wait((folder / "db.sock").exists, f"its database did not start: see {folder}/log/mariadb.log")
    _run(cluster, "slurmdbd")
    listed = ["sacctmgr", "-n", "list", "cluster"]
    _wait(lambda: _answer(listed, cluster.conf) is not None, f"slurmdbd does not answer: see {folder}/log/slurmdbd.log")
    _answer(["sacctmgr", "-i", "add", "cluster", CLUSTER], cluster.conf)


def _run(cluster: Cluster, program: str, *arguments: object) -> None:
    _execute([_program(program) or program, *map(str, arguments)], cluster.folder)


def _execute(command: list[str], folder: Path) -> None:
    """Start a daemon. It goes to the background by itself; with a pipe of ours open it would keep us waiting, hence a file."""
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    words = folder / "log" / "start.log"
    with words.open("ab") as file:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    if done.returncode:
        last = (words.read_text(errors="replace").strip().splitlines() or [f"see {folder}/log"])[-1]
        raise SandboxError(f"{Path(command[0]).name} ended with {done.returncode}: {last}")


def _answer(command: list[str], conf: Path) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"SLURM_CONF": str(conf)})
    return done.stdout if done.returncode == 0 else None


def _num_idle(conf: Path) -> int:
    answer = _answer(["sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D"], conf)
    return int(answer) if answer and answer.strip().isdigit() else 0


def _wait(is_ready: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        if time.monotonic() > deadline:
            raise SandboxError(f"SLURM was not ready after {START_SECONDS:.0f} s: {problem}")
        time.sleep(0.05)


def _free_ports(count: int) -> tuple[int, ...]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return tuple(one.getsockname()[1] for one in sockets)


def _program(name: str) -> str | None:
    # Daemons lie in sbin, which is not on everybody's path.
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    starting = verbs.add_parser("start", help="start the daemons and wait for the nodes")
    starting.add_argument("folder", type=Path)
    starting.add_argument("--nodes", type=int, default=2)
    starting.add_argument("--cpus", type=int, default=4, help="per node, whatever this machine has")
    starting.add_argument("--gpus", type=int, default=0, help="per node, false ones")
    starting.add_argument("--accounting", action="store_true", help="with a database, so that sacct answers")
    verbs.add_parser("stop", help="end the daemons and all jobs").add_argument("folder", type=Path)
    for verb, what in (("kill-node", "kill a node and its jobs"), ("start-node", "start a node again")):
        one = verbs.add_parser(verb, help=what)
        one.add_argument("folder", type=Path)
        one.add_argument("node")
    chosen = parser.parse_args()
    try:
        if chosen.verb == "start":
            cluster = Cluster(chosen.folder, chosen.nodes, chosen.cpus, chosen.gpus, chosen.accounting)
            print(f"export SLURM_CONF={start(cluster)}")
        elif chosen.verb == "stop":
            print(f"{stop(chosen.folder)} processes ended")
        elif chosen.verb == "kill-node":
            print(f"{kill_node(chosen.folder, chosen.node)} processes killed")
        else:
            start_node(chosen.folder.resolve(), chosen.node)
    except SandboxError as problem:
        sys.exit(f"slurm sandbox: {problem}")


if __name__ == "__main__":
    main()
