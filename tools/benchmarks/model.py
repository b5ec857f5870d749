"""How long forward and backward passes of recipes take and what memory they need, beside plainer ways and the public codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from mavil.commands.assemble import read_recipe
from mavil.structs import UserError
from tools.benchmarks.model_process import READING, ModelCase, ModelReading
from tools.benchmarks.plain_model import COMPLETE, OURS, complete_changes
from tools.benchmarks.references import LEAST_RATE, REFERENCES, Reference
from tools.benchmarks.training import operations_per_clip

_REPOSITORY = Path(__file__).resolve().parents[2]
_PRETRAIN = _REPOSITORY / "configs" / "pretrain"
RECIPES = tuple(
    _PRETRAIN / f"{name}.yaml"
    for name in (
        "audio_mae",
        "audio_mae_global",
        "mae_ast_patch",
        "mae_ast_frame",
        "msm_mae",
        "msm_mae_512",
        "mavil_stage1",
    )
)
"""What is measured where nothing is named."""

RunCase = Callable[[ModelCase], ModelReading]


@dataclass
class Contest:
    """One recipe: all readings by peer, a round each; ``problems`` says why a peer has none."""

    path: Path
    changes: list[str]
    cases: dict[str, ModelCase]
    readings: dict[str, list[ModelReading]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Medians over all passes of all rounds; peers as multiples of ours, and what the public code needed.

        Raises:
            UserError: ours itself did not run.
        """
        if OURS not in self.readings:
            raise UserError(f"{self.path}: {self.problems.get(OURS, 'nothing was measured')}")
        first, case = self.readings[OURS][0], self.cases[OURS]
        recipe = read_recipe(self.path, case.changes)
        peers = {peer: _figures(readings, case.batch) for peer, readings in self.readings.items()}
        ours = peers[OURS]
        for figures in peers.values():
            figures |= {f"times_{key}": figures[key] / ours[key] for key in ("seconds", "cpu_seconds") if ours[key]}
            figures["times_working_bytes"] = figures["working_bytes"] / max(1, ours["working_bytes"])
        operations = operations_per_clip(recipe) * case.batch
        ours |= {
            "operations_per_second": operations / ours["seconds"],
            "share_of_product": operations / ours["seconds"] / ours["product_rate"],
        }
        found = {"recipe": recipe.name, "changes": self.changes, "batch": case.batch}
        found |= {name: getattr(first, name) for name in ("device", "precision", "threads")}
        found |= {"operations": operations, "peers": peers, "problems": self.problems}
        found["reference"] = _beside(reference_for(self.path.stem, self.changes, first, case.batch), ours)
        return found | {"rounds": {p: [asdict(r) for r in readings] for p, readings in self.readings.items()}}


def build_contests(
    paths: Sequence[Path],
    changes: Sequence[str],
    peers: Sequence[str],
    *,
    batch: int | None = None,
    steps: int = 5,
    threads: int | None = None,
    device: str = "auto",
) -> list[Contest]:
    """The cases of every recipe; ``batch`` is by default the one the public code was measured with, else the recipe's.

    Raises:
        UserError: a recipe cannot be read, or a change does not fit it.
    """
    contests = []
    for path in paths:
        recipe = read_recipe(path, list(changes))
        reference = REFERENCES.get(path.stem)
        size = batch or (reference.batch if reference else recipe.trainer.device_batch)
        cases = {}
        for peer in peers:
            own = [*changes, *(complete_changes(recipe) if peer == COMPLETE else [])]
            cases[peer] = ModelCase(str(path), own, size, peer, steps, threads, device)
        contests.append(Contest(path, list(changes), cases))
    return contests


def run_contests(contests: Sequence[Contest], rounds: int, run: RunCase | None = None) -> Iterator[str]:
    """Measure every case in turn, ``rounds`` times, each in a process of its own; yields before each what runs next.

    A case that is not possible here is left out of later rounds.
    """
    for number in range(rounds):
        for contest in contests:
            for peer, case in contest.cases.items():
                if peer in contest.problems:
                    continue
                yield f"round {number + 1} of {rounds}: {contest.path.stem}, {peer}"
                try:
                    contest.readings.setdefault(peer, []).append((run or run_isolated)(case))
                except UserError as error:
                    contest.problems[peer] = str(error)
                    contest.readings.pop(peer, None)


def run_isolated(case: ModelCase) -> ModelReading:
    """Measure a case in a fresh process, whose memory nothing else has touched.

    Raises:
        UserError: the process ended badly; with its last line.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        path = Path(folder) / "case.json"
        path.write_text(json.dumps(asdict(case)), encoding="utf-8")
        places = [str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "tools.benchmarks.model_process", str(path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answer.returncode:
            lines = [line for line in answer.stderr.splitlines() if line] or [f"ended with {answer.returncode}"]
            raise UserError(f"{Path(case.recipe).stem}, {case.peer}: {lines[-1]}")
        return ModelReading(**json.loads(path.with_name(READING).read_text(encoding="utf-8")))


def reference_for(name: str, changes: Sequence[str], reading: ModelReading, batch: int) -> Reference | None:
    """The public code's figures, where ours were taken in the same conditions: CPU, float32, size and batch."""
    reference = REFERENCES.get(name)
    if reference is None or changes or reading.device != "cpu" or reading.precision != "fp32":
        return None
    return reference if reference.batch == batch else None


def _figures(readings: Sequence[ModelReading], batch: int) -> dict[str, float]:
    def middle(name: str) -> float:
        return float(median(value for reading in readings for value in getattr(reading, name)))

    seconds = middle("seconds")
    return {
        "seconds": seconds,
        "lowest_seconds": min(value for reading in readings for value in reading.seconds),
        "cpu_seconds": middle("cpu_seconds"),
        "clips_per_second": batch / seconds,
        "product_rate": middle("product_rates"),
        **{
            name: float(median(getattr(reading, name) for reading in readings))
            for name in ("imports_bytes", "model_bytes", "peak_bytes", "working_bytes")
        },
    }


def _beside(reference: Reference | None, ours: dict[str, float]) -> dict[str, float] | None:
    """The public code's figures, its seconds also scaled to this machine, and all as multiples of ours."""
    if reference is None:
        return None
    scaled = reference.seconds * LEAST_RATE / ours["product_rate"]
    return {
        **{name: getattr(reference, name) for name in ("seconds", "cpu_seconds", "peak_bytes", "working_bytes")},
        "scaled_seconds": scaled,
        "times_seconds": reference.seconds / ours["seconds"],
        "times_cpu_seconds": reference.cpu_seconds / max(ours["cpu_seconds"], 1e-9),
        "times_scaled_seconds": scaled / ours["seconds"],
        "times_working_bytes": reference.working_bytes / max(1, ours["working_bytes"]),
    }
