"""Metrics to services outside the run folder: wandb and trackio, where a recipe asks for them.

Neither is a dependency: they are imported when a recipe names them in ``trainer.loggers``. Training never waits for one and never
ends because of one: each has a thread of its own, and one that fails is warned about once and dropped.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mavil import distributed
from mavil.atomic_files import write_text
from mavil.engine.metrics.tracker import read_metrics
from mavil.structs import UserError

logger = logging.getLogger(__name__)

LOGGERS_FILE = "loggers.json"
"""In the run folder: what the run is called at each service, so that a resumed run goes on there."""
PROJECT = "mavil"
"""Of the service; ``WANDB_PROJECT`` and ``TRACKIO_PROJECT`` name another."""
CLOSE_SECONDS = 30.0
"""How long the end of a run waits for what a service has not taken yet, s."""
_WANDB_DEFAULTS = {
    # No question for a key at a terminal: the run would stand still there until somebody answers.
    "WANDB_SILENT": "true",
    # The progress bar would be recorded line by line.
    "WANDB_CONSOLE": "off",
    "WANDB_INIT_TIMEOUT": "60",
    "WANDB_FINISH_TIMEOUT": str(int(CLOSE_SECONDS)),
}


class Service(Protocol):
    """A run at a service."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of one step."""
        ...

    def close(self) -> None:
        """Send what is left and say that the run has ended."""
        ...


class Wandb:
    """A run at Weights & Biases (tried with wandb 0.31); without a key it is kept in the run folder for ``wandb sync``."""

    def __init__(self, run: Path, identity: str, recipe: Mapping[str, Any]) -> None:
        for name, value in _WANDB_DEFAULTS.items():
            os.environ.setdefault(name, value)
        wandb = importlib.import_module("wandb")
        settings: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "dir": str(run),
            "id": identity,
            "name": run.name,
            "config": dict(recipe),
            "resume": "allow",
        }
        try:
            self._run = wandb.init(**settings)
        except Exception as error:  # no key, or no way to the service from this machine
            logger.warning("wandb keeps the run in %s, for wandb sync: %r", run / "wandb", error)
            wandb.teardown()  # or the name of the run would be taken by the attempt that failed
            self._run = wandb.init(**settings, mode="offline")
        logger.info("wandb: %s", self._run.url or self._run.dir)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of one step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left and say that the run has ended."""
        self._run.finish()


class Trackio:
    """A run of trackio (tried with 0.43): on this machine, or where ``TRACKIO_SPACE_ID`` or ``TRACKIO_SERVER_URL`` say."""

    def __init__(self, run: Path, identity: str, recipe: Mapping[str, Any]) -> None:
        trackio = importlib.import_module("trackio")
        # Trackio finds a run by its name alone, and other run folders may have the same.
        name = f"{run.name}-{identity}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = trackio.init(project=project, name=name, config=dict(recipe), resume="allow", embed=False)
        logger.info("trackio: project %s, run %s", project, name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of one step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left and say that the run has ended."""
        self._run.finish()


SERVICES: dict[str, Callable[[Path, str, Mapping[str, Any]], Service]] = {"wandb": Wandb, "trackio": Trackio}
"""By the name in ``trainer.loggers``, which is also the name of the package."""


class Logger:
    """Hands metrics to a service from a thread of its own; whatever the service does, the caller goes on.

    Args:
        name: for the log.
        connect: called in the thread; may take its time or fail.
        after_step: lines up to this step are left out, the service has them from before the run was interrupted.
    """

    def __init__(self, name: str, connect: Callable[[], Service], after_step: int = -1) -> None:
        self.name = name
        self._after_step = after_step
        self._lines: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, args=(connect,), name=f"logger {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of one step, soon."""
        if step > self._after_step and self._thread.is_alive():
            self._lines.put((step, dict(values)))

    def close(self) -> None:
        """Wait until the service has everything, but not longer than :data:`CLOSE_SECONDS`."""
        self._lines.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.warning("%s has not taken all metrics within %g s; metrics.jsonl has them", self.name, CLOSE_SECONDS)

    def _serve(self, connect: Callable[[], Service]) -> None:
        try:
            service = connect()
            while (line := self._lines.get()) is not None:
                service.log(*line)
            service.close()
        except (Exception, SystemExit) as error:  # whatever a service of others can raise
            logger.warning("metrics no longer go to %s: %r; metrics.jsonl has them, training goes on", self.name, error)


def check_loggers(names: Sequence[str]) -> None:
    """Find out before training whether the packages of ``trainer.loggers`` are there.

    Raises:
        UserError: one is not installed or cannot be imported.
    """
    for name in names:
        try:
            module = importlib.import_module(name)
            problem = "is not installed"
        except ImportError as error:
            module, problem = None, f"cannot be imported ({error})"
        # A folder of that name where Python looks for packages is imported as an empty one; wandb makes such a folder.
        if not hasattr(module, "init"):
            raise UserError(f"trainer.loggers names {name}, which {problem}: pip install {name}, or take it out")


def open_loggers(names: Sequence[str], run: Path, recipe: Mapping[str, Any]) -> list[Logger]:
    """The loggers of a run: on rank 0 one per name, elsewhere none. Call it before the run's :class:`Tracker` is made.

    The run goes by the folder's name. What it is called at each service is kept in :data:`LOGGERS_FILE`, so a resumed or
    requeued job continues there. Services do not forget lines: those that an interrupted run had sent after its last
    checkpoint are not sent again.

    Args:
        names: ``trainer.loggers``.
        run: the run folder, which must be there.
        recipe: the settings as a tree, for the service to show.
    """
    if not names or not distributed.is_main():
        return []
    path = run / LOGGERS_FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    identities = known.get("identities", {})
    sent = known.get("sent", {})
    last_step = max((line["step"] for line in read_metrics(run)), default=-1)
    loggers = []
    for name in names:
        # A service that the run has only now been given wants every line from here on.
        after_step = max(sent.get(name, -1), last_step) if name in identities else -1
        identity = identities.setdefault(name, secrets.token_hex(4))
        sent[name] = after_step

        def connect(name: str = name, identity: str = identity) -> Service:
            return SERVICES[name](run, identity, recipe)

        loggers.append(Logger(name, connect, after_step))
    write_text(path, json.dumps({"identities": identities, "sent": sent}, indent=2) + "\n")
    return loggers
