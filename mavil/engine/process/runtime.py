"""The process around a run: device, seeds, threads, log files, and a record of where it ran."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.logging import RichHandler

from mavil import distributed
from mavil.atomic_files import write_text
from mavil.engine.process.code_version import commit
from mavil.seeds import sample_seed
from mavil.structs import UserError

_PACKAGES = ("mavil", "torch", "torchvision", "torchaudio", "timm", "numpy", "av", "webdataset")
_RESERVED_GPUS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")
"""Set by SLURM on nodes of a job that has GPUs there."""
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_RESTART_COUNT")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Numbers of these options in glibc's ``malloc.h``."""


def choose_device(setting: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of this rank; ``auto`` is CUDA where torch finds one. On CUDA it also becomes the current device.

    Raises:
        UserError: CUDA was asked for and there is none, GPUs were reserved and torch cannot use them, or there are more
            ranks on this machine than CUDA devices.
    """
    if setting == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        problem = _why_no_gpu(setting, os.environ)
        if problem is not None:
            raise UserError(problem)
        return torch.device("cpu")
    place = distributed.here()
    index = _device_index(place, torch.cuda.device_count(), os.environ)
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def _device_index(place: distributed.Standing, count: int, environment: Mapping[str, str]) -> int:
    """Which of the ``count`` CUDA devices that this process sees is its own."""
    if place.local_rank < count:
        return place.local_rank
    # SLURM may show each task its own devices only (--gpus-per-task, --gpu-bind): they count from 0 in every one. Two ranks
    # that take the same device nevertheless are refused when they meet.
    bound = environment.get("SLURMD_TRES_BIND", "")
    is_bound = "SLURM_GPUS_PER_TASK" in environment or "per_task" in bound or "single" in bound
    if place.launcher == "slurm" and (count == 1 or is_bound):
        return place.local_rank % count
    raise UserError(
        f"local rank {place.local_rank} has no CUDA device: torch finds {count} on {place.node}; start at most {count} "
        "processes there"
    )


def _why_no_gpu(setting: Literal["auto", "cuda"], environment: Mapping[str, str]) -> str | None:
    """For people; ``None`` where nobody expects one."""
    reserved = [name for name in _RESERVED_GPUS if environment.get(name)]
    visible = environment.get("CUDA_VISIBLE_DEVICES", "all")
    is_hidden = visible in ("", "NoDevFiles")  # the latter is how SLURM writes none
    job = environment.get("SLURM_JOB_ID")
    if job and reserved and not is_hidden:
        what = (
            "this torch is built without CUDA"
            if torch.version.cuda is None
            else "torch cannot use them: run nvidia-smi"
        )
        gpus = environment[reserved[0]]
        return f"SLURM job {job} has GPUs ({reserved[0]}={gpus}), but {what}; or set trainer.device=cpu"
    if setting == "auto":
        return None
    if job:
        return (
            f"trainer.device is cuda, but SLURM job {job} has no GPU here: ask for some, e.g. with --gpus-per-node, or set "
            "trainer.device=cpu"
        )
    if is_hidden:
        return "trainer.device is cuda, but CUDA_VISIBLE_DEVICES is empty: unset it, or set trainer.device=cpu or auto"
    return "trainer.device is cuda, but torch finds no CUDA device here: set trainer.device=cpu or auto"


def settle(device: torch.device, num_threads: int | None, deterministic: bool = False) -> None:
    """Fix what makes results differ between runs - threads, operations without a fixed order - and what slows them down.

    On the CPU results always repeat bit for bit. On CUDA the kernels that do so are slower, so they are taken only where
    ``deterministic`` asks for them; an operation that has none is then an error.
    """
    if device.type == "cpu":
        _keep_freed_memory()
    elif deterministic:
        # cuBLAS reads it when it is first used [CUDA docs, cuBLAS, results reproducibility].
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(device.type == "cpu" or deterministic, warn_only=device.type == "cpu")
    # A debugging aid that writes every new tensor twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _keep_freed_memory() -> None:
    """Ask glibc not to hand large blocks back to the system at every step: mapping them anew costs a fifth of the time.

    No block is mapped by itself, and the heap is not cut at its end. A threshold for mapping would not do: it may not be above
    32 MiB [man mallopt].
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library: slower, not wrong
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def seed_everything(*parts: object) -> None:
    """Seed Python, NumPy and torch from ``parts``.

    Call it with the recipe's seed before the model is built, so that all ranks build the same one, and with the seed and the
    rank before training, so that ranks drop different paths.
    """
    seed = sample_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator of this process as plain values and tensors; :func:`set_random_state` restores it."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        # torch.load(weights_only=True) knows no NumPy arrays.
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put every generator of this process where :func:`random_state` found it."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    # A run may go on on another kind of device than it began on.
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def log_to(run: Path, console: Console) -> Iterator[None]:
    """Send the project's log to ``log.rank{r}.txt`` in the run folder and to the console (ranks above 0: warnings only).

    ``console`` must be the one that draws the progress bar, or the two write over each other.
    """
    logger = logging.getLogger("mavil")
    file = logging.FileHandler(run / f"log.rank{distributed.rank()}.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    screen: logging.Handler
    if console.is_terminal:
        screen = RichHandler(console=console, show_path=False, show_time=False, show_level=False)
    else:
        # Rich would break lines at 80 columns where nobody looks at columns.
        screen = logging.StreamHandler(console.file)
    screen.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    # The root logger's handlers, where a host program set some, would print every line a second time.
    logger.propagate = False
    for handler in (file, screen):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in (file, screen):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]


def record_environment(run: Path, device: torch.device) -> None:
    """Append where this start of the run happens to ``environment.json``; an allow-list, never the whole environment."""
    if not distributed.is_main():
        return
    path = run / "environment.json"
    starts = json.loads(path.read_text()) if path.exists() else []
    starts.append(
        {
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: _version(name) for name in _PACKAGES},
            "cuda": torch.version.cuda,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
            "cpu_threads": torch.get_num_threads(),
            "ranks": distributed.world_size(),
            "node": distributed.here().node,
            "launcher": distributed.here().launcher,
            "commit": commit(),
            "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        }
    )
    write_text(path, json.dumps(starts, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
