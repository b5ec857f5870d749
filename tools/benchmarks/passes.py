"""Time and memory of forward and backward passes in one process, whosever model makes them.

Beside each pass the rate of a matrix product is measured, so that a busy machine shows in both. Nothing of ``mavil`` is
imported here: a process that runs public code holds nothing but that code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

READING = "reading.json"
"""What a process writes beside the file of its case."""
WARM_UP_STEPS = 2
_PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices whose product is timed: 2 and 1000 GFLOP, far more than fits a cache, far less than a pass."""


@dataclass(frozen=True)
class ModelCase:
    """What one process measures.

    Attributes:
        recipe: a file.
        changes: ``KEY=VALUE`` to it.
        batch: made-up clips per pass.
        peer: who computes.
        steps: measured passes, after :data:`WARM_UP_STEPS`.
        threads: of the CPU; ``None`` is torch's own choice.
        device: ``auto``, ``cpu`` or ``cuda``.
        public: the folder of the public codes, for the peer that is one of them.
    """

    recipe: str
    changes: list[str]
    batch: int
    peer: str = "ours"
    steps: int = 5
    threads: int | None = None
    device: str = "auto"
    public: str | None = None


@dataclass
class ModelReading:
    """Per measured pass: seconds by the clock, of all cores together, and operations per second of a product beside it.

    ``imports_bytes``, ``model_bytes`` and ``peak_bytes`` are the most memory until the code was there, the model was built, and
    all passes were done: resident memory of the process on a CPU, on CUDA what torch has allocated of the card.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    product_rates: list[float] = field(default_factory=list)
    imports_bytes: int = 0
    model_bytes: int = 0
    peak_bytes: int = 0
    losses: list[float] = field(default_factory=list)
    device: str = ""
    precision: str = ""
    threads: int = 0

    @property
    def working_bytes(self) -> int:
        """What weights, gradients and activations took at most: not what importing code takes."""
        return self.peak_bytes - self.imports_bytes


def measure_passes(
    reading: ModelReading, model: nn.Module, forward: Callable[[], Tensor], steps: int, device: torch.device
) -> None:
    """Pass forward and backward :data:`WARM_UP_STEPS` + ``steps`` times; ``forward`` gives a loss of ``model``."""
    product = _product(device)
    for number in range(WARM_UP_STEPS + steps):
        began, cpu_began = _now(device), time.process_time()
        total = forward()
        total.backward()
        seconds, cpu_seconds = _now(device) - began, time.process_time() - cpu_began
        model.zero_grad(set_to_none=True)
        reading.losses.append(float(total.detach()))
        if number == WARM_UP_STEPS - 1:
            product()
        if number >= WARM_UP_STEPS:
            reading.seconds.append(seconds)
            reading.cpu_seconds.append(cpu_seconds)
            reading.product_rates.append(product())
    reading.peak_bytes = peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of the device, or on a CPU of this process; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii").splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _product(device: torch.device) -> Callable[[], float]:
    """Measures the rate of a product of two square matrices, float32 on a CPU and bf16 on CUDA, operations per second."""
    side = _PRODUCT_SIDE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    first, second, result = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))

    def measure() -> float:
        began = _now(device)
        torch.mm(first, second, out=result)
        return 2 * side**3 / (_now(device) - began)

    return measure


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
