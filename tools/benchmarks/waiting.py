"""What training feels of the loader: the share of a step that it waits for data, and what memory the workers take."""

from __future__ import annotations

import tempfile
import time
from itertools import islice
from pathlib import Path

from rich.console import Console

from mavil.commands.assemble import read_recipe
from mavil.commands.train import train_recipe
from mavil.data.loading.loader import Loader
from mavil.engine.metrics.tracker import read_metrics
from tools.benchmarks.processes import resident_mib, worker_pids

_WARM_UP_SHARE = 0.1
_MEMORY_READINGS = 100


def wait_share(loader: Loader, step_seconds: float, num_steps: int) -> float:
    """Share of the time that a program waits for batches which does nothing but sleep for ``step_seconds`` with each."""
    waited = 0.0
    batches = iter(loader)
    next(batches)  # the workers start
    begin = time.perf_counter()
    for _ in range(num_steps):
        time.sleep(step_seconds)
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
    return waited / (time.perf_counter() - begin)


def wait_share_of_recipe(recipe_path: Path, shards: Path, num_workers: int, num_steps: int) -> float:
    """Share of the time that a real training run on these shards waits for batches, as it logs it after its last step."""
    settings = {
        "data.train": shards,
        "data.num_workers": num_workers,
        "data.cache_gib": 0,
        "schedule.length": f"{num_steps} steps",
        "schedule.warmup": "0 steps",
        "trainer.log_every": max(1, num_steps // 2),
        "trainer.checkpoint_every": f"{num_steps} steps",
    }
    changes = [f"{name}={value}" for name, value in settings.items()]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train_recipe(read_recipe(recipe_path, changes), run, resume=False, console=Console(quiet=True))
        shares = [line["conditions"].get("speed/data_wait_share") for line in read_metrics(run)]
        return float([share for share in shares if share is not None][-1])


def memory_of_workers(loader: Loader, batch_size: int, num_samples: int) -> list[dict[str, object]]:
    """Resident memory of each worker process while so many samples go by; the drift begins after the first tenth."""
    before = worker_pids()
    num_batches = max(1, num_samples // batch_size)
    every = max(1, num_batches // _MEMORY_READINGS)
    readings: dict[int, list[tuple[int, float]]] = {}
    for number, _ in enumerate(islice(loader, num_batches), start=1):
        if number % every == 0:
            for pid in worker_pids() - before:
                readings.setdefault(pid, []).append((number * batch_size, resident_mib(pid)))
    return [_drift(worker, readings[pid], num_samples) for worker, pid in enumerate(sorted(readings))]


def _drift(worker: int, readings: list[tuple[int, float]], num_samples: int) -> dict[str, object]:
    warm = [mib for samples, mib in readings if samples >= _WARM_UP_SHARE * num_samples] or [readings[-1][1]]
    return {
        "worker": worker,
        "first_mib": warm[0],
        "last_mib": warm[-1],
        "highest_mib": max(mib for _, mib in readings),
        "drift_percent": 100 * (warm[-1] / warm[0] - 1),
        "readings": readings,
    }
