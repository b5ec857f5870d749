"""The run folder: everything one run leaves behind, and the rules for starting or going on in it.

::

    runs/<name>/
        config.yaml             the complete recipe, written before step 0
        environment.json        one entry per start: versions, device, commit (an allow-list)
        log.rank{r}.txt         the log of each rank
        metrics.jsonl           one line per log step; tensorboard/ holds the same numbers
        tensorboard/
        checkpoints/            see checkpoint.py
        nonfinite_step_XXXXXXXX.json   the clips of a step that was stopped before its update
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mavil import distributed
from mavil.engine.checkpoint import latest_checkpoint, write_text
from mavil.structs import UserError

logger = logging.getLogger(__name__)

CHANGEABLE = frozenset(
    {
        "data.train",
        "data.evaluation",
        "data.num_workers",
        "data.shuffle_buffer",
        "data.cache_gib",
        "data.max_skip_ratio",
        "data.unusable",
        "data.clip_seconds_limit",
        "data.remote.cache",
        "data.remote.cache_gib",
        "data.remote.tries",
        "data.remote.timeout_seconds",
        "data.remote.allow_shell",
        "trainer.device_batch",
        "trainer.device",
        "trainer.num_threads",
        "trainer.log_every",
        "trainer.checkpoint_every",
        "trainer.keep_checkpoints",
        "trainer.evaluate_every",
    }
)
"""Settings a resumed run may change: where the shards lie, who reads them and how fast, on what it computes and what it
writes when. Another number of workers deals the rest of the epoch anew; another batch per device must leave the global batch
as it was. Everything else enters the numbers, and half a run under other settings is an experiment nobody described."""


def start_run(run: Path, recipe_yaml: str, resume: bool) -> Path | None:
    """Claim a run folder, write its ``config.yaml``, and say which checkpoint to go on from (``None``: step 0).

    Called by every rank together. ``resume`` on an empty folder starts a new run, so that a job can always pass it.

    Raises:
        UserError: the folder holds a run and ``resume`` was not given, or it was started with other settings than these
            (:data:`CHANGEABLE` ones aside); on every rank, and nothing was touched.
    """
    problem = None
    if distributed.is_main():
        try:
            _claim(run, recipe_yaml, resume)
        except (OSError, UserError) as error:
            problem = str(error)
    problem = distributed.broadcast_object(problem)
    if problem is not None:
        raise UserError(problem)
    return latest_checkpoint(run)


def _claim(run: Path, recipe_yaml: str, resume: bool) -> None:
    config, latest = run / "config.yaml", latest_checkpoint(run)
    if config.exists() or latest is not None:
        reached = f"step {int(latest.name.removeprefix('step_'))}" if latest else "no checkpoint yet"
        if not resume:
            raise UserError(
                f"{run} already holds a run ({reached}): pass --resume to continue it or choose another folder with --out"
            )
        if not config.exists():
            raise UserError(
                f"{run} holds checkpoints but no config.yaml: put it back, or choose another folder with --out"
            )
        _check_same(run, config.read_text(), recipe_yaml)
    run.mkdir(parents=True, exist_ok=True)
    write_text(config, recipe_yaml)


def _check_same(run: Path, before: str, now: str) -> None:
    old, new = dict(_leaves(yaml.safe_load(before))), dict(_leaves(yaml.safe_load(now)))
    differing = [key for key in old | new if old.get(key, "not set") != new.get(key, "not set")]
    described = [f"{key} was {old.get(key, 'not set')}, is {new.get(key, 'not set')}" for key in differing]
    if any(key not in CHANGEABLE for key in differing):
        kept = [text for key, text in zip(differing, described, strict=True) if key not in CHANGEABLE]
        raise UserError(
            f"{run} was started with other settings: {'; '.join(kept)}. Resume it with its own, or choose another folder "
            "with --out"
        )
    if described:
        # Before the log file of the run is open: a warning reaches the console without it.
        logger.warning("%s goes on with changed settings: %s", run, "; ".join(described))


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
