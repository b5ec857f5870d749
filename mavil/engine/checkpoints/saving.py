"""Saving while training goes on: a copy in host memory, and a thread of rank 0 that writes it."""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mavil import __version__, distributed
from mavil.distributed.on_main import on_main
from mavil.engine.checkpoints.best import Best, best_of, mark
from mavil.engine.checkpoints.folder import AVERAGED, FORMAT, MODEL, OPTIMIZER, RANKS, folder_of
from mavil.engine.checkpoints.host_copy import HostCopy
from mavil.engine.checkpoints.reading import Checkpoint, latest_checkpoint
from mavil.engine.checkpoints.writing import keep_newest, write_folder
from mavil.engine.process.code_version import commit
from mavil.engine.run import lock as run_lock
from mavil.structs import UserError

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""So many saves in a row may fail; the run would otherwise train for nothing."""


def prefixes_of(model: nn.Module, modules: dict[str, nn.Module]) -> dict[str, str]:
    """With what the names of each module begin in the model's state: ``{"audio_encoder": "encoders.audio."}``.

    Raises:
        ValueError: a module is no part of the model.
    """
    names = {id(module): name for name, module in model.named_modules()}
    strangers = [name for name, module in modules.items() if id(module) not in names]
    if strangers:
        raise ValueError(f"{', '.join(strangers)}: not a part of the model, so no weights of it are saved")
    return {name: f"{names[id(module)]}." if module is not model else "" for name, module in modules.items()}


class Saver:
    """Writes a run's checkpoints, one at a time.

    Every method but :meth:`close` is called by every rank together. What fails is told at once by the log and counted at
    the next call; training goes on, and the next save tries again. The thread is waited for when Python ends; a process that
    is killed leaves a hidden folder, which the next save removes.

    Args:
        run: the run folder; nothing is written once another job has taken it over (:mod:`mavil.engine.run.lock`).
        modules: exported modules and their prefixes, see :func:`prefixes_of`.
        keep: so many newest checkpoints stay, and the best.

    Attributes:
        best: the best value of :attr:`best_metric` so far, also after a resume; the same on every rank.
        seconds_blocked: how long these methods have kept training waiting so far.
    """

    def __init__(self, run: Path, modules: dict[str, str], keep: int) -> None:
        self.seconds_blocked = 0.0
        self._run, self._modules, self._keep = run, modules, keep
        self._best: Best | None = on_main(lambda: best_of(run))
        if distributed.is_main():
            commit()  # now: the source may change while the run goes on
        self._copy = HostCopy()
        self._thread: threading.Thread | None = None
        self._written: str | None = None  # what the thread has to say, rank 0
        self._is_open = False  # a write whose outcome not every rank knows
        self._step = -1
        self._problem: str | None = None
        self._failures = 0

    @property
    def best(self) -> float | None:
        """The value of the best checkpoint so far, ``None`` where none was marked."""
        return self._best.value if self._best is not None else None

    @property
    def best_metric(self) -> str | None:
        """What :attr:`best` is a value of: a run may go on with another metric."""
        return self._best.metric if self._best is not None else None

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint and have it written; waits for the one before. After two failures it waits for this one too.

        Raises:
            TypeError: a part of it could not be read back.
            UserError: another job has taken the run over, or the third save in a row has failed; on every rank.
        """
        with self._blocking():
            self._settle()
            self._refuse_if_lost()
            ranks = _plain_values(checkpoint)
            self._begin(checkpoint, ranks)
            if self._failures + 1 >= MAX_FAILURES:
                self._settle()
            if self._failures >= MAX_FAILURES:
                raise UserError(self._surrender())

    def settle(self) -> str | None:
        """Wait for the last save; what went wrong with it, the same text on every rank, or ``None``."""
        with self._blocking():
            self._settle()
        return self._problem

    def mark_best(self, step: int, metric: str, value: float) -> None:
        """Make the checkpoint of a step ``checkpoints/best`` as soon as it is written; it is kept while it is the best.

        If just that one could not be written, the best stays the one before, and the log says so.

        Raises:
            ValueError: there is no checkpoint of that step, and none was tried.
        """
        with self._blocking():
            self._settle()
            if self._problem is not None and self._step == step:
                if distributed.is_main():
                    logger.warning("step %d was the best so far, but has no checkpoint: it is not marked", step)
                return
            is_there, is_marked = on_main(lambda: self._mark(Best(step, metric, value)))
            if not is_there:
                raise ValueError(f"step {step} has no checkpoint to be marked as the best: save it first")
            if is_marked:
                self._best = Best(step, metric, value)

    def close(self) -> None:
        """Wait for the write under way and give the memory back. Any rank may call it alone."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._copy = HostCopy()

    @contextmanager
    def _blocking(self) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self.seconds_blocked += perf_counter() - started

    def _settle(self) -> None:
        """Wait for the write under way, and let every rank know how it ended."""
        if not self._is_open:
            return
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._problem = on_main(lambda: self._written)
        self._is_open = False
        self._failures = 0 if self._problem is None else self._failures + 1

    def _refuse_if_lost(self) -> None:
        lost = on_main(lambda: run_lock.lost(self._run))
        if lost is not None:
            raise UserError(lost)

    def _begin(self, checkpoint: Checkpoint, ranks: list[dict[str, Any]]) -> None:
        self._is_open, self._step, self._written = True, checkpoint.state.step, None
        if not distributed.is_main():
            return
        try:
            tensors = self._copy.take(
                {MODEL: checkpoint.model, AVERAGED: checkpoint.averaged, OPTIMIZER: checkpoint.optimizer}
            )
        except RuntimeError as error:
            self._fail(f"no memory for a copy: {str(error).splitlines()[0]}")
            return
        if not tensors[AVERAGED]:
            del tensors[AVERAGED]
        files = tensors | {RANKS: {"ranks": ranks, "loss_scale": checkpoint.loss_scale}}
        # Not a daemon: Python waits for it at its end.
        self._thread = threading.Thread(target=self._write, args=(files, self._step, perf_counter()), name="checkpoint")
        self._thread.start()

    def _write(self, files: dict[str, Any], step: int, started: float) -> None:
        """The thread of rank 0."""
        target = folder_of(self._run, step)
        try:
            write_folder(target, files, _description(self._run, step, self._modules), self._check_owner)
            keep_newest(self._run, self._keep, self._best.step if self._best is not None else None)
        except Exception as error:
            self._fail(f"{error}")
        else:
            logger.info("step %d: checkpoint %s, written in %.1f s", step, target, perf_counter() - started)

    def _check_owner(self) -> None:
        lost = run_lock.lost(self._run)
        if lost is not None:
            raise UserError(lost)

    def _fail(self, why: str) -> None:
        target = folder_of(self._run, self._step)
        self._written = f"{target}: the checkpoint could not be written ({why}); earlier checkpoints are untouched"
        logger.warning("%s. Training goes on and tries again at the next save", self._written)

    def _surrender(self) -> str:
        newest = latest_checkpoint(self._run)
        rest = f"{newest} is the newest to go on from with --resume" if newest else "the run has no checkpoint at all"
        return f"{self._problem}. {self._failures} saves in a row have failed, so training stops; {rest}"

    def _mark(self, best: Best) -> tuple[bool, bool]:
        """Whether the checkpoint is there, and whether it is marked now (rank 0)."""
        if not folder_of(self._run, best.step).is_dir():
            return False, False
        try:
            self._check_owner()
            mark(self._run, best)
        except OSError as error:
            logger.warning("step %d is the best so far, but could not be marked: %s", best.step, error)
            return True, False
        return True, True


def _plain_values(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """What is each rank's own, of all ranks; collective.

    Raises:
        TypeError: on every rank, where one holds what ``torch.load(weights_only=True)`` would refuse when it is read.
    """
    own = {"state": asdict(checkpoint.state), "random": checkpoint.random, "averages": checkpoint.averages}
    strange = next(_strangers(own | {"loss_scale": checkpoint.loss_scale}, "checkpoint"), None)
    # A copy: with one rank nothing is sent, and training goes on changing its own.
    told = distributed.gather_objects((strange, copy.deepcopy(own) if strange is None else None))
    problems = [f"rank {rank}: {problem}" for rank, (problem, _) in enumerate(told) if problem is not None]
    if problems:
        raise TypeError(problems[0])
    return [values for _, values in told]


def _strangers(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _strangers(inner, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strangers(inner, f"{path}[]")
    elif type(value) not in (bool, int, float, str, type(None), Tensor):
        yield f"{path} is a {type(value)}: only plain values and tensors can be saved in a checkpoint"


def _description(run: Path, step: int, modules: dict[str, str]) -> dict[str, Any]:
    recipe = (run / "config.yaml").read_text() if (run / "config.yaml").exists() else ""
    return {
        "format": FORMAT,
        "step": step,
        "ranks": distributed.world_size(),
        "mavil": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "modules": modules,
        "recipe": {
            "name": (yaml.safe_load(recipe) or {}).get("name"),
            "sha256": hashlib.sha256(recipe.encode()).hexdigest(),
            "yaml": recipe,
        },
    }
