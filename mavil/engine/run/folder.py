"""The run folder: everything one run leaves behind, and the rules for starting or going on in it.

::

    runs/<name>/
        config.yaml             the complete recipe, written before step 0
        lock.1.json             which job writes to the run at the moment; see lock.py
        environment.json        one entry per start: versions, device, commit (an allow-list)
        log.rank{r}.txt         the log of each rank
        metrics.jsonl           one line per log step; tensorboard/ holds the same numbers
        tensorboard/
        checkpoints/            see ../checkpoints
        nonfinite_step_XXXXXXXX.json   the clips of a step that was stopped before its update
"""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from mavil import distributed
from mavil.atomic_files import unwritable, write_text
from mavil.distributed.on_main import on_main
from mavil.engine.checkpoints.folder import step_of
from mavil.engine.checkpoints.reading import latest_checkpoint
from mavil.engine.wording import first_names
from mavil.recipe import dump_recipe, recipe_from_tree
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
        "trainer.global_batch",
        "trainer.accumulation",
        "trainer.accumulation_negatives",
        "trainer.device",
        "trainer.num_threads",
        "trainer.deterministic",
        "trainer.parallel",
        "trainer.activation_checkpointing",
        "trainer.compile",
        "trainer.log_every",
        "trainer.loggers",
        "trainer.checkpoint_every",
        "trainer.checkpoint_minutes",
        "trainer.keep_checkpoints",
        "trainer.best_metric",
        "trainer.best_is",
        "trainer.evaluate_every",
        "trainer.hang_minutes",
    }
)
"""Settings a resumed run may change: where the shards lie, who reads them and how fast, on what and in which parts it computes
and what it writes when. Another number of workers deals the rest of the epoch anew; another batch per device or accumulation
must leave the global batch as it was. Everything else enters the numbers, and half a run under other settings is an experiment
nobody described."""
_CANDIDATES = frozenset(
    {
        "trainer.device_batch",
        "trainer.global_batch",
        "trainer.accumulation",
        "trainer.accumulation_negatives",
    }
)
"""What decides how many candidates a clip is compared with where a micro-step is compared alone ("fewer")."""
SEEN_SECONDS = 30.0
"""How long another machine may take to see a new file."""
_NOT_SET = "not set"


def start_run(run: Path, recipe_yaml: str, resume: bool, force: bool = False) -> None:
    """Take a run folder into use and write its ``config.yaml``; called by every rank together.

    ``resume`` on an empty folder starts a new run, so that a job can always pass it. Which checkpoint it goes on from says
    :func:`mavil.engine.checkpoints.reading.newest_checkpoint`. With ``force`` it goes on although settings differ that must not;
    they are logged as a warning. Settings that did not exist when the run began and have their default now do not differ.

    Raises:
        UserError: the folder holds a run and ``resume`` was not given; or it was started with other settings than these
            (:data:`CHANGEABLE` ones aside); or it cannot be written; or not every rank sees it. On every rank; a run that
            was there is as it was.
    """

    def claim() -> str:
        try:
            _check_start(run, recipe_yaml, resume, force)
            run.mkdir(parents=True, exist_ok=True)
            write_text(run / "config.yaml", recipe_yaml)
            return _leave_token(run) if distributed.world_size() > 1 else ""
        except OSError as error:
            raise unwritable(run, error) from None

    token = on_main(claim)
    if token:
        _check_seen(run / token)


def compare(run: Path, recipe_yaml: str) -> list[str]:
    """What speaks against going on in a run with this recipe: ``optimizer.base_lr was 0.1, is 0.2``, one text per setting.

    Empty where nothing does, or no run has begun there. Only reads.

    Raises:
        UserError: the run's own ``config.yaml`` cannot be read.
    """
    return _differences(run, recipe_yaml)[0] if (run / "config.yaml").exists() else []


def _check_start(run: Path, recipe_yaml: str, resume: bool, force: bool) -> None:
    config, latest = run / "config.yaml", latest_checkpoint(run)
    if not config.exists() and latest is None:
        return
    if not resume:
        reached = f"step {step_of(latest)}" if latest else "no checkpoint yet"
        raise UserError(
            f"{run} already holds a run ({reached}): pass --resume to continue it or choose another folder with --out"
        )
    if not config.exists():
        raise UserError(f"{run} holds checkpoints but no config.yaml: put it back, or choose another folder with --out")
    against, allowed = _differences(run, recipe_yaml)
    if against and not force:
        raise UserError(
            f"{run} was started with other settings: {'; '.join(against)}. Resume it with its own, choose another folder "
            "with --out, or pass --force to go on with these"
        )
    # Before the log file of the run is open: a warning reaches the console without it.
    if against:
        logger.warning("%s goes on by force with other settings than it was started with: %s", run, "; ".join(against))
    if allowed:
        logger.warning("%s goes on with changed settings: %s", run, "; ".join(allowed))


def _differences(run: Path, recipe_yaml: str) -> tuple[list[str], list[str]]:
    """Differing settings as text: those that speak against going on, and those that may change."""
    config = run / "config.yaml"
    try:
        before = yaml.safe_load(config.read_text())
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{config} cannot be read as YAML ({' '.join(str(error).split())}): put the recipe of the run back"
        ) from None
    now = yaml.safe_load(recipe_yaml)
    old, new = dict(_leaves(before)), dict(_leaves(now))
    defaults = _defaults_of(now, [key for key in new if key not in old])
    differing = [
        key
        for key in old | new
        if old.get(key, _NOT_SET) != new.get(key, _NOT_SET) and not (key in defaults and defaults[key] == new[key])
    ]
    is_fewer = "fewer" in (
        tree.get("trainer.accumulation_negatives") for tree in (old, new) if tree.get("trainer.accumulation", 1) != 1
    )
    fixed = _CANDIDATES if is_fewer else frozenset[str]()
    texts = {key: f"{key} was {old.get(key, _NOT_SET)}, is {new.get(key, _NOT_SET)}" for key in differing}
    against = [text for key, text in texts.items() if key not in CHANGEABLE or key in fixed]
    return against, [text for text in texts.values() if text not in against]


def _defaults_of(recipe: Any, keys: list[str]) -> dict[str, Any]:
    """Which values these settings have when a recipe does not mention them; empty where it must."""
    if not keys:
        return {}
    try:
        without = recipe_from_tree(_without(recipe, set(keys)), "the recipe")
    except UserError:
        return {}
    completed = dict(_leaves(yaml.safe_load(dump_recipe(without))))
    return {key: completed[key] for key in keys if key in completed}


def _without(tree: Any, keys: set[str], prefix: str = "") -> Any:
    if not isinstance(tree, dict):
        return tree
    return {
        name: _without(value, keys, f"{prefix}{name}.") for name, value in tree.items() if f"{prefix}{name}" not in keys
    }


def _leave_token(run: Path) -> str:
    token = run / f".seen.{uuid.uuid4().hex}"
    token.touch()
    return token.name


def _check_seen(token: Path) -> None:
    """Make sure that every rank sees the folder rank 0 has written to; collective.

    Raises:
        UserError: one does not, on every rank.
    """
    deadline = time.monotonic() + SEEN_SECONDS
    while not (is_seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    hosts = distributed.gather_objects(None if is_seen else socket.gethostname())
    if distributed.is_main():
        with suppress(OSError):
            token.unlink(missing_ok=True)
    blind = [f"{rank} on {host}" for rank, host in enumerate(hosts) if host is not None]
    if blind:
        raise UserError(
            f"{token.parent}: the run folder of rank 0 is not there for rank {first_names(blind)}: choose a folder that all "
            "machines share with --out"
        )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
