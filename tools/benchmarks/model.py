"""How long forward and backward passes of recipes take and what memory they need, beside plainer ways and public codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from mavil.commands.assemble import read_recipe
from mavil.structs import UserError
from tools.benchmarks.passes import READING, ModelCase, ModelReading
from tools.benchmarks.plain_model import COMPLETE, OURS, PUBLIC, complete_changes
from tools.benchmarks.public_process import CODES
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
        """Medians over all passes of all rounds; peers also as multiples of ours.

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
            figures |= {f"times_{key}": figures[key] / max(1, ours[key]) for key in ("peak_bytes", "working_bytes")}
        operations = operations_per_clip(recipe) * case.batch
        ours |= {
            "operations_per_second": operations / ours["seconds"],
            "share_of_product": operations / ours["seconds"] / ours["product_rate"],
        }
        found = {"recipe": recipe.name, "changes": self.changes, "batch": case.batch}
        found |= {name: getattr(first, name) for name in ("device", "precision", "threads")}
        found |= {"operations": operations, "peers": peers, "problems": self.problems}
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
    public: Path | None = None,
) -> list[Contest]:
    """The cases of every recipe; ``batch`` is by default the one of :data:`CODES`, else the recipe's.

    ``public`` is the folder of the public codes, each of which is a peer of the recipes that compute the same, unchanged.

    Raises:
        UserError: a recipe cannot be read, or a change does not fit it.
    """
    contests = []
    for path in paths:
        recipe = read_recipe(path, list(changes))
        code = CODES.get(path.stem)
        size = batch or (code.batch if code else recipe.trainer.device_batch)
        cases = {}
        for peer in peers:
            own = [*changes, *(complete_changes(recipe) if peer == COMPLETE else [])]
            cases[peer] = ModelCase(str(path), own, size, peer, steps, threads, device)
        if public is not None and code is not None and not changes:
            cases[PUBLIC] = replace(cases[OURS], peer=PUBLIC, public=str(public))
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
        module = "public_process" if case.peer == PUBLIC else "model_process"
        command = [sys.executable, "-m", f"tools.benchmarks.{module}", str(path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answer.returncode:
            lines = [line for line in answer.stderr.splitlines() if line] or [f"ended with {answer.returncode}"]
            raise UserError(f"{Path(case.recipe).stem}, {case.peer}: {lines[-1]}")
        return ModelReading(**json.loads(path.with_name(READING).read_text(encoding="utf-8")))


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
