"""How long the steps of a recipe take, as percents of a plain loop measured beside each of them, and what a checkpoint costs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mavil.commands.assemble import read_recipe
from mavil.commands.inspect import ASSUMED_SAMPLES, inspect_recipe
from mavil.commands.schedule import global_batch
from mavil.config import ClassifyTask, PretrainTask, Recipe
from mavil.engine.process.runtime import choose_device
from mavil.structs import UserError
from tools.benchmarks.training_process import READING, Case, Reading
from tools.scaling.inputs import CARDS

ENGINE = "engine"
GROUPS = ("precision", "attention", "blocks", "accumulation", "average", "ranks")
"""What can be measured beside the engine with the recipe as it is."""
_POLL_SECONDS = 0.05
_ENDLESS = "1000000000 steps"
_OPERATIONS_PER_FORWARD = 6
"""A multiply-add is two operations, and the backward pass has twice the forward's."""


@dataclass
class Result:
    """All readings of one case, a round each; ``problem`` says why there are none."""

    case: Case
    readings: list[Reading] = field(default_factory=list)
    problem: str | None = None

    def summary(self) -> dict[str, Any]:
        """Medians over the rounds; percents are of the plain loop's time beside it, more is slower."""
        if self.problem is not None:
            return {"name": self.case.name, "problem": self.problem}
        percents = [100 * sum(r.step_seconds) / sum(r.plain_seconds) for r in self.readings]
        seconds = [median(r.step_seconds) for r in self.readings]
        return {
            "name": self.case.name,
            "step_seconds": median(seconds),
            "clips_per_second": self.readings[0].facts["clips_per_step"] / median(seconds),
            "plain_step_seconds": median(median(r.plain_seconds) for r in self.readings),
            "percent_of_plain": median(percents),
            "percent_of_plain_lowest": min(percents),
            "percent_of_plain_highest": max(percents),
            "peak_bytes": median(r.peak_bytes for r in self.readings),
            "facts": self.readings[0].facts,
            "rounds": [asdict(r) for r in self.readings],
        }


def build_cases(
    recipe_path: Path,
    changes: Sequence[str],
    groups: Sequence[str],
    ranks: int,
    steps: int,
    folder: Path,
    threads: int | None = None,
) -> list[Case]:
    """The engine with the recipe as it is, then what the groups ask for.

    The plain loop beside each is that of the recipe as it is. Every case has as many clips per step as the recipe on one rank,
    and ``threads`` CPU threads, which ranks share; by default one per core.

    Raises:
        UserError: the recipe cannot be read, or its batch cannot be divided.
    """
    recipe = read_recipe(recipe_path, list(changes))
    device = choose_device(recipe.trainer.device)
    threads = threads or len(os.sched_getaffinity(0))
    common = [*changes, *_without_files(recipe)]
    plain = [*common, f"trainer.num_threads={threads}"]

    def case(name: str, *more: str, ranks: int = 1, **options: Any) -> Case:
        own = [*common, f"trainer.num_threads={max(1, threads // ranks)}", *more]
        return Case(name, str(recipe_path), own, plain, str(folder), ranks, steps, **options)

    cases = [case(ENGINE, saves=True)]
    if "precision" in groups:
        other = "fp32" if device.type == "cuda" else "bf16"
        cases.append(case(other, f"trainer.precision={other}"))
    if "attention" in groups:
        cases.append(case("attention not fused", fused_attention=False))
    if "blocks" in groups:
        cases += [
            case(f"activations computed again, {kind}", f"trainer.activation_checkpointing={kind}")
            for kind in ("torch", "fairscale")
        ]
        cases.append(case("blocks compiled", "trainer.compile=true"))
    if "average" in groups:
        cases.append(case("average of the weights", "trainer.ema_decay=0.999"))
    if "accumulation" in groups:
        half = f"trainer.device_batch={_part_of(recipe, 2)}"
        ways = ("fewer", "cached") if _has_contrast(recipe) else ("refuse",)
        names = {"fewer": ", each its own candidates", "cached": ", the candidates of all", "refuse": ""}
        cases += [
            case(
                f"2 micro-steps{names[kind]}",
                f"trainer.accumulation={2 * recipe.trainer.accumulation}",
                half,
                f"trainer.accumulation_negatives={kind}",
            )
            for kind in ways
        ]
    if "ranks" in groups and ranks > 1:
        part = f"trainer.device_batch={_part_of(recipe, ranks)}"
        for kind in ("ddp", "fsdp", "fairscale"):
            cases.append(case(f"{ranks} ranks, {kind}", f"trainer.parallel={kind}", part, ranks=ranks))
    return cases


def _without_files(recipe: Recipe) -> list[str]:
    """Changes that keep a recipe's steps as they are, and leave out what it would read, save or end for."""
    changes = [
        f"schedule.length={_ENDLESS}",
        "schedule.warmup=0 steps",
        f"trainer.checkpoint_every={_ENDLESS}",
        "trainer.checkpoint_minutes=null",
        "trainer.evaluate_every=null",
        "data.evaluation=null",
    ]
    if recipe.audio is not None:
        changes += ["audio.mean=0", "audio.std=1"]
    if isinstance(recipe.task, (ClassifyTask, PretrainTask)) and recipe.task.weights:
        changes.append("task.weights=null")
    return changes


def _part_of(recipe: Recipe, parts: int) -> int:
    if recipe.trainer.device_batch % parts:
        raise UserError(
            f"trainer.device_batch is {recipe.trainer.device_batch}, which {parts} ranks or micro-steps cannot share: "
            "set another one behind the recipe, e.g. trainer.device_batch=16"
        )
    return recipe.trainer.device_batch // parts


def _has_contrast(recipe: Recipe) -> bool:
    contrast = recipe.task.contrast if isinstance(recipe.task, PretrainTask) else None
    return contrast is not None and contrast.inter_weight + contrast.intra_weight > 0


def run_cases(cases: Sequence[Case], rounds: int) -> Iterator[tuple[str, list[Result]]]:
    """Every case in turn, ``rounds`` times, each in fresh processes; yields before each what runs next, and all results.

    A case that is not possible here (no compiler, no fairscale) is left out of later rounds.
    """
    results = [Result(case) for case in cases]
    for number in range(rounds):
        for result in results:
            if result.problem is None:
                yield f"round {number + 1} of {rounds}: {result.case.name}", results
                # The checkpoint's own figures do not need every round, and its bytes are many.
                case = result.case if number == 0 else replace(result.case, saves=False)
                try:
                    result.readings.append(run_case(case))
                except UserError as error:
                    result.problem = str(error)
    yield "done", results


def run_case(case: Case) -> Reading:
    """Measure one case in processes of its own.

    Raises:
        UserError: it is not possible here, or a process ended badly; with its last line.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark_", dir=case.folder) as folder:
        path = Path(folder) / "case.json"
        path.write_text(json.dumps(asdict(replace(case, folder=folder))), encoding="utf-8")
        logs = [Path(folder) / f"errors{rank}.txt" for rank in range(case.ranks)]
        processes = []
        for rank, log in enumerate(logs):
            with open(log, "wb") as errors:
                command = [sys.executable, "-m", "tools.benchmarks.training_process", str(path)]
                environment = _environment(rank, case.ranks)
                processes.append(subprocess.Popen(command, env=environment, stdout=errors, stderr=errors))
        code, guilty = _wait_for(processes)
        if code:
            lines = [line for line in logs[guilty].read_text(encoding="utf-8", errors="replace").splitlines() if line]
            raise UserError(f"{case.name}: {lines[-1] if lines else f'ended with {code}'}")
        reading = Reading(**json.loads((Path(folder) / READING).read_text(encoding="utf-8")))
    return reading


_port: dict[int, str] = {}


def _environment(rank: int, ranks: int) -> dict[str, str]:
    repository = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([repository, os.environ.get("PYTHONPATH", "")])}
    if ranks == 1:
        return environment
    if rank == 0:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            _port[ranks] = str(listener.getsockname()[1])
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    environment |= {name: str(value) for name, value in place.items()}
    return environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port[ranks]}


def _wait_for(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """The first exit code that is not 0, and whose; the others are ended then. (0, 0) where all went well."""
    try:
        while True:
            codes = [process.poll() for process in processes]
            for rank, code in enumerate(codes):
                if code:
                    return code, rank
            if all(code == 0 for code in codes):
                return 0, 0
            time.sleep(_POLL_SECONDS)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def report_of(recipe_path: Path, changes: Sequence[str], results: Sequence[Result]) -> dict[str, Any]:
    """What ``--json`` writes: the engine's own figures flat, as ``tools/scale.py`` reads them, and all cases.

    Raises:
        UserError: the engine itself did not run.
    """
    engine = results[0]
    if engine.problem is not None:
        raise UserError(engine.problem)
    recipe = read_recipe(recipe_path, [*changes, *_without_files(read_recipe(recipe_path, list(changes)))])
    summaries = [result.summary() for result in results]
    summary, facts = summaries[0], engine.readings[0].facts
    operations = operations_per_clip(recipe)
    report = {
        "recipe": recipe.name,
        "changes": list(changes),
        **{name: facts[name] for name in ("device", "precision", "ranks", "device_batch", "parameters")},
        "step_seconds": summary["step_seconds"],
        "clips_per_second": summary["clips_per_second"],
        "operations_per_clip": operations,
        "operations_per_second": operations * summary["clips_per_second"],
        "peak_share": None,
        "peak_bytes": summary["peak_bytes"],
        "gradient_bytes": facts["gradient_bytes"],
        "gathered_bytes": facts["gathered_bytes"],
    }
    card = next((card for name, card in CARDS.items() if name in facts["device"]), None)
    if card is not None:
        report["peak_share"] = report["operations_per_second"] / (1e12 * card.peak_tflops)
    report |= {f"checkpoint_{name}": value for name, value in engine.readings[0].checkpoint.items()}
    report |= _shares(read_recipe(recipe_path, list(changes)), report)
    return report | {"cases": summaries}


def operations_per_clip(recipe: Recipe) -> int:
    """Floating-point operations of one clip in one training step, by the counter of ``mavil inspect``; a teacher's included."""
    costs = inspect_recipe(recipe).multiply_adds
    return _OPERATIONS_PER_FORWARD * costs["forward"] + 2 * costs.get("teacher", 0)


def _shares(recipe: Recipe, report: dict[str, Any]) -> dict[str, float]:
    """How much of the time checkpoints keep training waiting at the recipe's own interval."""
    settings = recipe.trainer
    steps = max(1, settings.checkpoint_every.steps(ASSUMED_SAMPLES, global_batch(recipe)))
    seconds = steps * report["step_seconds"]
    if settings.checkpoint_minutes is not None:
        seconds = min(seconds, 60 * settings.checkpoint_minutes)
    blocked = report["checkpoint_blocked_seconds"]
    return {"checkpoint_interval_seconds": seconds, "checkpoint_share": blocked / (seconds + blocked)}


def default_ranks(recipe: Recipe) -> int:
    """2 processes on a CPU; on CUDA one per card of this machine."""
    device = choose_device(recipe.trainer.device)
    return torch.cuda.device_count() if device.type == "cuda" else 2
