"""One process of a model benchmark: forward and backward passes of one recipe, and the memory they take.

    python -m tools.benchmarks.model_process CASE.json

Beside each pass the rate of a matrix product is measured, so that a busy machine shows in both.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch

from mavil.commands.assemble import read_recipe
from mavil.commands.errors import EXIT_CODES
from mavil.engine.precision import autocast, choose_precision
from mavil.engine.process.runtime import choose_device, seed_everything
from mavil.models.masked import MaskedLearner
from mavil.structs import UserError
from mavil.tasks.base import unwrapped
from mavil.tasks.pretrain import Pretraining
from tools.benchmarks.plain_loop import build_task, random_inputs
from tools.benchmarks.plain_model import OURS, PLAIN, written_plainly
from tools.benchmarks.training_process import peak_bytes

READING = "reading.json"
WARM_UP_STEPS = 1
_PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices whose product is timed: 2 and 1000 GFLOP, far more than fits a cache, far less than a pass."""


@dataclass(frozen=True)
class ModelCase:
    """What one process measures: a recipe with ``KEY=VALUE`` changes, ``batch`` made-up clips, and who computes (a peer)."""

    recipe: str
    changes: list[str]
    batch: int
    peer: str = OURS
    steps: int = 5
    threads: int | None = None
    device: str = "auto"


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
        """What weights, gradients and activations took at most: not what importing torch takes, which its build decides."""
        return self.peak_bytes - self.imports_bytes


def measure_model(case: ModelCase) -> ModelReading:
    """Run a case in this process.

    Raises:
        UserError: the recipe is not one of pre-training, or not possible here.
    """
    recipe = read_recipe(Path(case.recipe), case.changes)
    device = choose_device(case.device)  # type: ignore[arg-type]
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    reading = ModelReading(imports_bytes=peak_bytes(device), threads=torch.get_num_threads())
    seed_everything(recipe.seed)
    task = build_task(recipe, device)
    if not isinstance(task, Pretraining):
        raise UserError(f"{case.recipe}: its task is {recipe.task.kind}; name a recipe that pre-trains")
    reading.precision = choose_precision(recipe.trainer.precision, device)
    reading.device = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    inputs = random_inputs(recipe, case.batch, device)
    reading.model_bytes = peak_bytes(device)
    product = _product(device)
    model = cast(MaskedLearner, unwrapped(task.model))
    with written_plainly(model) if case.peer == PLAIN else nullcontext():
        for number in range(WARM_UP_STEPS + case.steps):
            began, cpu_began = _now(device), time.process_time()
            with autocast(device, reading.precision):
                total = task.loss(inputs, 0).total
            total.backward()
            seconds, cpu_seconds = _now(device) - began, time.process_time() - cpu_began
            task.model.zero_grad(set_to_none=True)
            inputs.seeds += len(inputs)  # other masks
            reading.losses.append(float(total.detach()))
            if number == WARM_UP_STEPS - 1:
                product()
            if number >= WARM_UP_STEPS:
                reading.seconds.append(seconds)
                reading.cpu_seconds.append(cpu_seconds)
                reading.product_rates.append(product())
    reading.peak_bytes = peak_bytes(device)
    return reading


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


def main() -> None:
    """Measure the case of the file that is named, and write the reading beside it."""
    path = Path(sys.argv[1])
    try:
        reading = measure_model(ModelCase(**json.loads(path.read_text(encoding="utf-8"))))
    except tuple(EXIT_CODES) as error:
        print(str(error), file=sys.stderr)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
    path.with_name(READING).write_text(json.dumps(asdict(reading)), encoding="utf-8")


if __name__ == "__main__":
    main()
