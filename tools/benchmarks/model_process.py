"""One process of a model benchmark: forward and backward passes of one recipe, and the memory they take.

Started as ``python -m tools.benchmarks.model_process CASE.json``.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from mavil.commands.assemble import read_recipe
from mavil.commands.errors import EXIT_CODES
from mavil.engine.precision import autocast, choose_precision
from mavil.engine.process.runtime import choose_device, seed_everything, settle
from mavil.models.masked import MaskedLearner
from mavil.structs import UserError
from mavil.tasks.base import unwrapped
from mavil.tasks.pretrain import Pretraining
from tools.benchmarks.passes import READING, ModelCase, ModelReading, measure_passes, peak_bytes
from tools.benchmarks.plain_loop import build_task, random_inputs
from tools.benchmarks.plain_model import PLAIN, written_plainly


def measure_model(case: ModelCase) -> ModelReading:
    """Run a case in this process.

    Raises:
        UserError: the recipe is not one of pre-training, or not possible here.
    """
    recipe = read_recipe(Path(case.recipe), case.changes)
    device = choose_device(case.device)  # type: ignore[arg-type]
    settle(device, case.threads)
    reading = ModelReading(imports_bytes=peak_bytes(device), threads=torch.get_num_threads())
    seed_everything(recipe.seed)
    task = build_task(recipe, device)
    if not isinstance(task, Pretraining):
        raise UserError(f"{case.recipe}: its task is {recipe.task.kind}; name a recipe that pre-trains")
    precision = choose_precision(recipe.trainer.precision, device)
    reading.precision = precision
    reading.device = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    inputs = random_inputs(recipe, case.batch, device)
    reading.model_bytes = peak_bytes(device)

    def forward() -> Tensor:
        inputs.seeds += len(inputs)  # other masks
        with autocast(device, precision):
            return task.loss(inputs, 0).total

    model = cast(MaskedLearner, unwrapped(task.model))
    with written_plainly(model) if case.peer == PLAIN else nullcontext():
        measure_passes(reading, task.model, forward, case.steps, device)
    return reading


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
