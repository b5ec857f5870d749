"""What the ranks of a run must have in common: as many on each node, the same kind of device, the same program."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mavil import __version__
from mavil.distributed.standing import Standing

_NAMED = 8


@dataclass(frozen=True)
class Member:
    """What a rank signs the list with; ``gpu`` is its card's own number, ``versions`` are those of the program by name."""

    rank: int
    node: str
    local_world_size: int | None
    device: str
    gpu: str
    versions: dict[str, str]


def what_differs(members: list[Member]) -> str | None:
    """Why these ranks cannot train together, for people; ``None`` if they can.

    All nodes must have as many ranks, all ranks the same kind of device, each its own GPU, and the same program.
    """
    problems = []
    counts = Counter(m.node for m in members)
    sizes = [(m.node, m.local_world_size or counts[m.node]) for m in members]
    if len({size for _, size in sizes}) > 1:
        problems.append(
            f"the nodes have different numbers of processes ({_shown(sizes)}): ask for the same on each, e.g. with "
            "--ntasks-per-node or --nproc-per-node"
        )
    if len({m.device for m in members}) > 1:
        problems.append(
            f"some ranks have a GPU and some have none ({_shown([(m.node, m.device) for m in members])}): look at "
            "nvidia-smi there, or set trainer.device"
        )
    cards: dict[tuple[str, str], int] = {}
    for m in members:
        first = cards.setdefault((m.node, m.gpu), m.rank)
        if m.gpu and first != m.rank:
            problems.append(
                f"ranks {first} and {m.rank} on {m.node} have the same GPU: start one process per GPU, each seeing its own or "
                "all of its node"
            )
            break
    for name in members[0].versions:
        found = [(m.node, m.versions[name]) for m in members]
        if len({version for _, version in found}) > 1:
            problems.append(f"the nodes have different versions of {name} ({_shown(found)}): install the same on all")
    return "; ".join(problems) or None


def listed(names: list[str]) -> str:
    """The first few of many names, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _shown(values: Sequence[tuple[str, str | int]]) -> str:
    """Nodes and what they have, one of every value first, so that a difference among hundreds of nodes is seen."""
    firsts = {value: (node, value) for node, value in reversed(values)}
    order = dict.fromkeys([*reversed(firsts.values()), *values])
    return listed([f"{node}: {value}" for node, value in order])


def own_member(place: Standing, device: torch.device) -> Member:
    """What this rank signs with."""
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "mavil": f"{__version__} (source {_source_checksum()})",
    }
    return Member(place.rank, place.node, place.local_world_size, device.type, gpu, versions)


@functools.cache
def _source_checksum() -> str:
    """Of every Python file of this package: a version number stays the same while somebody works on the program."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]
