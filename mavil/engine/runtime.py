"""The process around a run: device, precision, seeds, threads, signals, log files, and a record of where it ran."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.logging import RichHandler

from mavil import distributed
from mavil.engine.checkpoint import write_text
from mavil.structs import UserError, sample_seed

Precision = Literal["fp32", "bf16"]

_PACKAGES = ("mavil", "torch", "torchvision", "torchaudio", "timm", "numpy", "av", "webdataset")
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "WORLD_SIZE")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of these options in glibc's ``malloc.h``."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SAME_REQUEST_SECONDS = 3.0
"""torchrun passes on a Ctrl-C that the terminal has already sent to its ranks: two signals, one request."""


def choose_device(setting: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of this rank; ``auto`` is CUDA where torch finds one. On CUDA it also becomes the current device.

    Raises:
        UserError: CUDA was asked for and there is none, or there are more ranks on this machine than CUDA devices.
    """
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("trainer.device is cuda, but torch finds no CUDA device here: set trainer.device=cpu or auto")
    index, count = distributed.local_rank(), torch.cuda.device_count()
    if index >= count:
        raise UserError(
            f"local rank {index} has no CUDA device: torch finds {count} on this machine; start at most {count} processes"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def choose_precision(setting: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """``auto`` is bf16 on CUDA devices that compute in it and fp32 elsewhere; bf16 on the CPU only when asked for.

    Raises:
        UserError: bf16 was asked for and the device cannot.
    """
    has_bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if setting == "auto":
        return "bf16" if device.type == "cuda" and has_bf16 else "fp32"
    if setting == "bf16" and not has_bf16:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"trainer.precision is bf16, but {name} does not compute in it: set trainer.precision=fp32")
    return setting


def settle(device: torch.device, num_threads: int | None) -> None:
    """Fix what makes CPU results differ between runs - threads, operations without a fixed order - and what slows them down."""
    if device.type == "cpu":
        _keep_freed_memory()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    # On CUDA the deterministic kernels are slower and some do not exist; results there repeat only closely.
    torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
    # A debugging aid that writes every new tensor twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _keep_freed_memory() -> None:
    """Ask glibc not to hand large blocks back to the system at every step: mapping them anew costs a fifth of the time."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library: slower, not wrong
        return
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        mallopt(option, 2**30)


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


@dataclass
class StopRequest:
    """Whether somebody asked this process to stop, by which signal, and when (``time.monotonic``)."""

    signal_name: str | None = None
    at: float = 0.0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGTERM, SIGUSR1 or SIGINT into a request that the loop looks at.

    Another one more than :data:`SAME_REQUEST_SECONDS` later acts as usual. Ctrl-C in a terminal reaches loader workers as
    well: they must ignore it, or the step cannot be finished. Outside the main thread Python cannot handle signals, and
    nothing is requested.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        if request.signal_name is None:
            request.signal_name = signal.Signals(number).name
            request.at = time.monotonic()
        elif time.monotonic() - request.at > SAME_REQUEST_SECONDS:
            put_back()
            signal.raise_signal(number)

    for number in _STOP_SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        put_back()


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
            "commit": _commit(),
            "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        }
    )
    write_text(path, json.dumps(starts, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit this source belongs to, ``+changed`` where the tree differs from it; ``None`` outside git."""
    # An installed copy may lie inside somebody else's repository: only a tracked file speaks for its own.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changed")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
