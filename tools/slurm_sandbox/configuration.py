"""The files a private SLURM reads: ``slurm.conf``, ``gres.conf``, ``slurmdbd.conf``.

What differs from a cluster's: no cgroups, no systemd, several nodes on one host, everything as root, and short times, so that
preemption, time limits, requeue and dead nodes take seconds.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

CLUSTER = "sandbox"
CREDENTIAL_SECONDS = 5
"""A requeued job waits at least this long; the least that SLURM accepts, its default is 120."""
KILL_WAIT_SECONDS = 8
"""Between SIGTERM and SIGKILL; SLURM's default is 30."""
GRACE_SECONDS = 30
"""What a preempted job of the partition ``main`` gets before it is stopped."""
NODE_TIMEOUT_SECONDS = 10
"""How long a node may be silent before it counts as dead."""

_SLURM_CONF = """\
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire={credential}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,bf_interval=1,batch_sched_delay=0,sched_interval=2
KillWait={kill_wait}
MinJobAge=300
OverTimeLimit=0
SlurmdTimeout={node_timeout}
BatchStartTimeout=10
CompleteWait=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{accounting}
{gres}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=localhost
DbdPort={accounting_port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=root
StorageLoc=slurm_acct_db
"""


@dataclass(frozen=True)
class Cluster:
    """What is to be started.

    Attributes:
        folder: everything lies below it.
        num_nodes: nodes, all on this host.
        num_cpus: CPUs each of them says it has, whatever the host has.
        num_gpus: GPUs each of them says it has; they are copies of ``/dev/null``.
        has_accounting: also a database and slurmdbd, so that ``sacct`` answers.
        ports: free ones, see :meth:`num_ports`.
    """

    folder: Path
    num_nodes: int
    num_cpus: int
    num_gpus: int
    has_accounting: bool
    ports: tuple[int, ...] = ()

    @property
    def num_ports(self) -> int:
        """Controller, slurmdbd, database, and one per node."""
        return 3 + self.num_nodes

    @property
    def nodes(self) -> list[str]:
        """Names that are addresses of the loopback: they resolve everywhere without a line in /etc/hosts."""
        return [f"127.0.0.{i + 1}" for i in range(self.num_nodes)]

    @property
    def conf(self) -> Path:
        """What ``SLURM_CONF`` has to be for the commands to talk to this cluster."""
        return self.folder / "slurm.conf"


def write_configuration(cluster: Cluster) -> None:
    """Write the configuration files and, with GPUs, their device nodes (root only)."""
    folder = cluster.folder
    host = os.uname().nodename.partition(".")[0]
    controller_port, accounting_port, database_port, *node_ports = cluster.ports
    accounting = "AccountingStorageType=accounting_storage/none"
    if cluster.has_accounting:
        accounting = (
            "AccountingStorageType=accounting_storage/slurmdbd\n"
            f"AccountingStorageHost=localhost\nAccountingStoragePort={accounting_port}\n"
            # Despite its name: where the credentials for the database daemon are made.
            f"AccountingStoragePass={folder}/munge.sock"
        )
    gres = f" Gres=gpu:{cluster.num_gpus}" if cluster.num_gpus else ""
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cluster.num_cpus} RealMemory=16000{gres}"
        for name, port in zip(cluster.nodes, node_ports, strict=True)
    ]
    cluster.conf.write_text(
        _SLURM_CONF.format(
            cluster=CLUSTER,
            host=host,
            folder=folder,
            controller_port=controller_port,
            credential=CREDENTIAL_SECONDS,
            kill_wait=KILL_WAIT_SECONDS,
            node_timeout=NODE_TIMEOUT_SECONDS,
            grace=GRACE_SECONDS,
            accounting=accounting,
            gres="GresTypes=gpu" if cluster.num_gpus else "",
            nodes="\n".join(nodes),
        )
    )
    if cluster.num_gpus:
        _write_gpus(cluster)
    if cluster.has_accounting:
        path = folder / "slurmdbd.conf"
        path.touch(mode=0o600)
        path.write_text(
            _SLURMDBD_CONF.format(folder=folder, accounting_port=accounting_port, database_port=database_port)
        )


def _write_gpus(cluster: Cluster) -> None:
    lines = []
    for index in range(cluster.num_gpus):
        device = cluster.folder / f"gpu{index}"
        if not device.exists():
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    for name in cluster.nodes:
        devices = f"{cluster.folder}/gpu[0-{cluster.num_gpus - 1}]"
        lines.append(f"NodeName={name} Name=gpu Count={cluster.num_gpus} File={devices}")
    (cluster.folder / "gres.conf").write_text("\n".join(lines) + "\n")
