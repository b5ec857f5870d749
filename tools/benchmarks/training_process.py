"""One process of a training benchmark: steps of the engine, each beside a step of the plain loop; then saving.

    python -m tools.benchmarks.training_process CASE.json

The plain loop runs while the engine asks for its next batch, so both see the same machine at nearly the same moment. With
several ranks rank 0 runs it for the whole global batch on all cores while the others wait.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import timm.layers
import torch
from rich.console import Console
from torch import Tensor

from mavil import distributed
from mavil.commands.assemble import read_recipe
from mavil.commands.errors import EXIT_CODES
from mavil.commands.inspect import ASSUMED_SAMPLES
from mavil.commands.schedule import global_batch
from mavil.commands.training import build_trainer
from mavil.config import Recipe
from mavil.engine.checkpoints.reading import Checkpoint
from mavil.engine.metrics.tracker import Tracker
from mavil.engine.process.runtime import choose_device, random_state, seed_everything, settle
from mavil.engine.process.stopping import StopRequest
from mavil.engine.process.watchdog import Watchdog
from mavil.engine.run.folder import start_run
from mavil.engine.trainer import Trainer
from mavil.recipe import dump_recipe
from mavil.structs import Batch
from tools.benchmarks.passes import peak_bytes
from tools.benchmarks.plain_loop import PlainLoop, build_task, random_inputs, vocabulary_of

WARM_UP_STEPS = 3
READING = "reading.json"
SAVES = 3
"""The first takes its memory from the system, the others find it there."""


@dataclass(frozen=True)
class Case:
    """What one measurement runs: a recipe with changes, over so many ranks; ``plain`` is the recipe of the plain loop.

    Attributes:
        changes: ``KEY=VALUE`` for the engine; those of ``plain_changes`` are for the plain loop.
        steps: measured steps, after :data:`WARM_UP_STEPS`.
        saves: also measure checkpoints.
        fused_attention: off is the attention of textbooks, for comparison.
        folder: on the disk that checkpoints would be written to.
    """

    name: str
    recipe: str
    changes: list[str]
    plain_changes: list[str]
    folder: str
    ranks: int = 1
    steps: int = 20
    saves: bool = False
    fused_attention: bool = True


@dataclass
class Reading:
    """What rank 0 measured; seconds, and bytes. ``checkpoint`` is empty without saves."""

    step_seconds: list[float] = field(default_factory=list)
    plain_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    checkpoint: dict[str, float] = field(default_factory=dict)


class Finished(Exception):  # noqa: N818 (nothing went wrong)
    """Enough steps were measured: leave the loop, without its last checkpoint and evaluation."""


class Hook:
    """What stands in for the loader: the same clips again and again, with new masks, and the clock.

    A step lasts from when its first batch is handed over to when the next step's is asked for, as in training.
    """

    samples_per_epoch = ASSUMED_SAMPLES

    def __init__(self, case: Case, recipe: Recipe, device: torch.device) -> None:
        self.case, self.recipe, self.device = case, recipe, device
        self.reading = Reading()
        self.trainer: Trainer | None = None
        self._plain: PlainLoop | None = None
        self._num_batches = 0
        self._gathered_bytes = 0
        self._began_with = peak_bytes(device)

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(WARM_UP_STEPS):
            self._gathered_bytes = 0
            yield from self._step()
        self._wait()
        self.reading.facts["gathered_bytes"] = self._gathered_bytes
        self.reading.peak_bytes = peak_bytes(self.device) - self._began_with
        for _ in range(self.case.steps):
            self._run_plain()
            began = self._wait()
            yield from self._step()
            self.reading.step_seconds.append(self._wait() - began)
        if self.case.saves:
            yield from self._save()
        raise Finished

    def _step(self) -> Iterator[Batch]:
        """The micro-steps of one step; it is over when the generator is."""
        size = self.recipe.trainer.device_batch
        for _ in range(self.recipe.trainer.accumulation):
            first = (self._num_batches * distributed.world_size() + distributed.rank()) * size
            self._num_batches += 1
            yield Batch([f"clip{i}" for i in range(size)], torch.arange(first, first + size), position={})

    @contextmanager
    def counting_gathers(self) -> Iterator[None]:
        """Inside, note what the gathers of a step bring together on this rank, bytes; nothing with one rank."""
        plain = distributed.gather_with_gradient

        def counted(rows: Tensor) -> Tensor:
            joined = plain(rows)
            self._gathered_bytes += joined.nbytes if distributed.world_size() > 1 else 0
            return joined

        distributed.gather_with_gradient = counted
        try:
            yield
        finally:
            distributed.gather_with_gradient = plain

    def _wait(self) -> float:
        """The time when every rank and the device have done what they were given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        distributed.barrier()
        return perf_counter()

    def _run_plain(self) -> None:
        if not distributed.is_main():
            return
        if self._plain is None:
            recipe = read_recipe(Path(self.case.recipe), self.case.plain_changes)
            num_clips = global_batch(self.recipe)
            self._plain = PlainLoop(
                recipe, num_clips, self.device, recipe.trainer.num_threads or torch.get_num_threads()
            )
            for _ in range(WARM_UP_STEPS):
                self._plain.step()
        self.reading.plain_seconds.append(self._plain.step())

    def _save(self) -> Iterator[Batch]:
        """Save several times, the last time while the engine computes a step."""
        assert self.trainer is not None
        saver, blocked, written = self.trainer.saver, [], []
        for number in range(SAVES + 1):
            began = self._wait()
            saver.save(_checkpoint_of(self.trainer, self.device))
            blocked.append(self._wait() - began)
            if number == SAVES:
                now = self._wait()
                yield from self._step()
                self.reading.checkpoint["step_seconds_while_writing"] = self._wait() - now
            problem = saver.settle()
            if problem is not None:
                raise OSError(problem)
            written.append(self._wait() - began)
        newest = max((self.trainer.run / "checkpoints").glob("step_*"))
        self.reading.checkpoint |= {
            "bytes": float(sum(file.stat().st_size for file in newest.iterdir())),
            "first_blocked_seconds": blocked[0],
            "blocked_seconds": median(blocked[1:]),
            "write_seconds": median(written[1:SAVES]),
        }


def _checkpoint_of(trainer: Trainer, device: torch.device) -> Checkpoint:
    # Each save is of another step: one that is there already would be taken away first.
    trainer.state = replace(trainer.state, step=trainer.state.step + 1)
    return Checkpoint(
        model=trainer.updater.parallel.model_state(),
        optimizer=trainer.updater.parallel.optimizer_state(),
        state=trainer.state,
        random=random_state(device),
        averages={},
    )


def measure(case: Case) -> Reading:
    """Run a case in this process, which is one of its ranks; times and memory are those of this rank.

    Raises:
        UserError: the recipe or the case is not possible here.
    """
    recipe = read_recipe(Path(case.recipe), case.changes)
    device = choose_device(recipe.trainer.device)
    with distributed.process_group(device):
        settle(device, recipe.trainer.num_threads, recipe.trainer.deterministic)
        timm.layers.set_fused_attn(case.fused_attention)
        seed_everything(recipe.seed)
        run = Path(case.folder) / "run"
        start_run(run, dump_recipe(recipe), resume=False)
        hook = Hook(case, recipe, device)
        task = build_task(recipe, device)
        inputs = random_inputs(recipe, recipe.trainer.device_batch, device)
        with Tracker(run, 1, Console(quiet=True)) as tracker, Watchdog(run, recipe.trainer.hang_minutes) as watchdog:
            loader: Any = hook
            vocabulary = vocabulary_of(recipe)
            trainer = build_trainer(
                recipe, run, task, loader, tracker, vocabulary, device, StopRequest(), watchdog, None
            )
            trainer.updater.prepare = lambda batch: replace(inputs, seeds=batch.seeds)
            hook.trainer = trainer
            try:
                with suppress(Finished), hook.counting_gathers():
                    trainer.fit()
            finally:
                trainer.saver.close()
        hook.reading.facts |= _facts(recipe, trainer, device)
    return hook.reading


def _facts(recipe: Recipe, trainer: Trainer, device: torch.device) -> dict[str, Any]:
    trained = list(trainer.updater.parallel.trained.values())
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": trainer.updater.precision,
        "ranks": distributed.world_size(),
        "device_batch": recipe.trainer.device_batch,
        "clips_per_step": global_batch(recipe),
        "parameters": sum(p.numel() for p in trained),
        "gradient_bytes": sum(p.numel() * p.element_size() for p in trained),
    }


def main() -> None:
    """Measure the case of the file that is named, and write the reading beside it."""
    path = Path(sys.argv[1])
    try:
        reading = measure(Case(**json.loads(path.read_text(encoding="utf-8"))))
    except tuple(EXIT_CODES) as error:
        print(str(error), file=sys.stderr)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
    if distributed.here().rank == 0:
        path.with_name(READING).write_text(json.dumps(asdict(reading)), encoding="utf-8")


if __name__ == "__main__":
    main()
