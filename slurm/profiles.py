"""What a job asks of the cluster: a profile of the cluster (YAML), changed by the pipeline, changed by the command line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mavil.pipelines.reading import PlanError, read_mapping, refuse_unknown

FOLDER = Path(__file__).parent / "profiles"


class SubmitError(PlanError):
    """A person's mistake on the way to a cluster or SLURM's refusal, in one line; exit code 2."""


@dataclass(frozen=True)
class Container:
    """Where the ranks run, for clusters with enroot and its SLURM plugin pyxis; ``None`` anywhere is "as it is".

    Attributes:
        image: ``--container-image``: a file or a registry's name.
        mounts: ``--container-mounts``, e.g. ``/data:/data,/home/me/MAViL:/home/me/MAViL``: the working folder, the shards
            and the run folders must be among them.
        workdir: ``--container-workdir``; the folder of the submission unless set.
        python: the interpreter inside.
    """

    image: str
    mounts: str | None = None
    workdir: str | None = None
    python: str = "python"


@dataclass(frozen=True)
class Profile:
    """Everything a job asks for. A rank is a task of SLURM; where there are GPUs each rank has one.

    Attributes:
        partition: as ``sinfo`` lists them; ``None``: the cluster's default.
        account: who pays.
        qos: quality of service.
        constraint: features the nodes must have.
        nodes: number of them.
        gpus_per_node: 0: a CPU job.
        gpu_type: for clusters that want one, e.g. ``h100``.
        tasks_per_node: ranks per node; one per GPU unless set.
        cpus_per_task: cores of each rank: its loader workers (``data.num_workers``) and one or two more.
        memory: per node, e.g. ``200GB``; ``0`` is all of it.
        time: limit, as SLURM writes it: ``2-00:00:00``, ``04:30:00`` or minutes. A longer training goes on by itself.
        exclusive: nobody else on the nodes.
        signal_seconds: how long before the time limit the ranks are told to save and stop. Longer than the longest step,
            one evaluation and a checkpoint together.
        max_restarts: how often in a row a job starts again without having come to a newer checkpoint.
        array_parallelism: points of a sweep that run at the same time.
        modules: loaded before the ranks start.
        setup: further lines of shell for every job, on the first node and outside any container.
        container: see :class:`Container`.
        python: the interpreter; the one that submits unless set, and ``container.python`` in a container.
        host_python: what decides after the ranks' end, outside any container: Python 3.6 or newer. ``python`` unless there
            is a container, then ``python3``.
        sbatch: further options, e.g. ``{mail-type: FAIL, reservation: mine}``.
        srun: further arguments, e.g. ``[--cpu-bind=none]``.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    gpu_type: str | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    memory: str | None = None
    time: str = "60"
    exclusive: bool = False
    signal_seconds: int = 120
    max_restarts: int = 3
    array_parallelism: int = 256
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    container: Container | None = None
    python: str | None = None
    host_python: str | None = None
    sbatch: dict[str, Any] = field(default_factory=dict)
    srun: list[str] = field(default_factory=list)

    @property
    def ranks_per_node(self) -> int:
        """One per GPU unless told otherwise."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def num_ranks(self) -> int:
        """Over all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def minutes(self) -> int:
        """The time limit, rounded up."""
        return minutes_of(self.time)


CONTAINER_PREFIX = "container_"
"""Of the command-line options that set a part of the container, e.g. ``--container-image``."""


def load_profile(name: str | None, *changes: tuple[str, Mapping[str, Any]]) -> Profile:
    """A profile by its name in ``slurm/profiles`` or its path, with ``(where they come from, settings)`` on top, in order.

    Raises:
        PlanError: no such profile, an unknown key, a value of the wrong type.
    """
    settings: dict[str, Any] = {}
    if name is not None:
        path = _profile_path(name)
        settings = checked(read_mapping(path), str(path))
    for source, change in changes:
        settings = _merge(settings, checked(dict(change), source))
    container = settings.pop("container", None)
    if container is not None:
        if "image" not in container:
            raise SubmitError(f"the container has no image: set container.image in {name or 'a profile'}")
        settings["container"] = Container(**container)
    profile = Profile(**settings)
    if profile.signal_seconds >= 60 * profile.minutes:
        raise SubmitError(
            f"signal_seconds is {profile.signal_seconds}, the time limit {60 * profile.minutes} s: the job would be told to "
            "stop when it starts; give it more time or a later signal"
        )
    return profile


def checked(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """The settings, with the types that :class:`Profile` says.

    Raises:
        PlanError: an unknown key or a value of another type; ``source`` opens the message.
    """
    known = {one.name: str(one.type) for one in fields(Profile)}
    for key, value in settings.items():
        refuse_unknown(key, known, f"{source}: no setting")
        if key == "container" and isinstance(value, dict):
            for part in value:
                refuse_unknown(part, [one.name for one in fields(Container)], f"{source}: container has no")
            continue
        if not _fits(value, known[key]):
            raise SubmitError(f"{source}: {key} is {value!r}, it must be {_in_words(known[key])}")
        if key == "time":
            minutes_of(str(value))
    # YAML reads `memory: 0` and `time: 90` as numbers.
    texts = {key for key, kind in known.items() if kind.startswith("str")}
    return {key: str(value) if key in texts and value is not None else value for key, value in settings.items()}


def minutes_of(time: str) -> int:
    """Minutes of a time as SLURM writes it: ``M``, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M``, ``D-H:M:S``; rounded up.

    Raises:
        SubmitError: it is none of these, or nothing.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time.strip())
    if match is None:
        raise SubmitError(
            f"time is {time!r}: SLURM writes 2-00:00:00 (days-hours:minutes:seconds), 04:30:00 or minutes"
        )
    days, first, second, third = (int(part) if part is not None else None for part in match.groups())
    if days is not None:
        parts = (days * 24 + (first or 0), second or 0, third or 0)
    elif third is not None:
        parts = (first or 0, second or 0, third)
    else:
        parts = (0, first or 0, second or 0)
    seconds = 3600 * parts[0] + 60 * parts[1] + parts[2]
    if seconds == 0:
        raise SubmitError(f"time is {time!r}: a job needs some")
    return -(-seconds // 60)


def _profile_path(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise SubmitError(f"{path}: no such profile")
        return path
    names = sorted(one.stem for one in FOLDER.glob("*.yaml"))
    refuse_unknown(name, names, "no profile")
    return FOLDER / f"{name}.yaml"


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` wins; mappings are merged, lists are replaced."""
    merged = dict(below)
    for key, value in above.items():
        is_both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if is_both else value
    return merged


def _fits(value: Any, kind: str) -> bool:
    if value is None:
        return "None" in kind
    if kind.startswith("str"):
        return isinstance(value, (str, int)) and not isinstance(value, bool)
    if kind.startswith("int"):
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if kind.startswith("bool"):
        return isinstance(value, bool)
    if kind.startswith("list"):
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    return isinstance(value, dict)


def _in_words(kind: str) -> str:
    words = {"str": "a text", "int": "a whole number", "bool": "true or false", "list": "a list of texts"}
    return next((text for start, text in words.items() if kind.startswith(start)), "a mapping")


def option_types() -> dict[str, type]:
    """The settings that are options of the command line, with their types: those that hold one value."""
    kinds: dict[str, type] = {"str": str, "int": int, "bool": bool}
    options = {one.name: kinds[name] for one in fields(Profile) for name in kinds if str(one.type).startswith(name)}
    return options | {CONTAINER_PREFIX + one.name: str for one in dataclasses.fields(Container)}


def from_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the command line as settings; those that were not given are ``None`` and left out."""
    given = {key: value for key, value in options.items() if value is not None}
    parts = {
        key.removeprefix(CONTAINER_PREFIX): given.pop(key) for key in list(given) if key.startswith(CONTAINER_PREFIX)
    }
    return {**given, **({"container": parts} if parts else {})}
