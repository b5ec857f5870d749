"""Step times that somebody measured: what ``python tools/benchmark.py training --json`` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mavil.structs import UserError

MAKE_IT = "make it with tools/benchmark.py training --json"
OPTIONAL = (
    "parameters",
    "gradient_bytes",
    "gathered_bytes",
    "checkpoint_bytes",
    "checkpoint_write_seconds",
    "checkpoint_blocked_seconds",
)


@dataclass(frozen=True)
class Measurement:
    """One step time.

    ``recipe`` is its name without folder and ending, ``card`` one of the known ones, ``extras`` what else was measured.
    """

    path: Path
    recipe: str
    card: str
    ranks: int
    device_batch: int
    step_seconds: float
    extras: dict[str, float]


def read_measurements(path: Path, recipes: Sequence[str], cards: Sequence[str]) -> list[Measurement]:
    """The measurements in a file that are of one of these recipes, on one of these cards.

    A file is one measurement, or holds a list of them beside what they share.

    Raises:
        UserError: the file cannot be read, lacks a number, or is of other recipes or another machine.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--measured {path}: cannot be read ({error}); {MAKE_IT}") from None
    entries = list(_entries(tree))
    if not entries:
        raise UserError(f"--measured {path}: holds no step_seconds; {MAKE_IT}")
    found = [_measurement(path, entry, cards) for entry in entries]
    fitting = [measurement for measurement in found if measurement.recipe in recipes]
    if not fitting:
        of = ", ".join(sorted({measurement.recipe for measurement in found}))
        raise UserError(f"--measured {path}: of recipe {of}, and the estimate is for {', '.join(recipes)}")
    return fitting


def _entries(tree: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(tree, dict):
        return
    if "step_seconds" in tree:
        yield tree
        return
    for value in tree.values():
        for entry in value if isinstance(value, list) else ():
            if isinstance(entry, dict) and "step_seconds" in entry:
                yield {**tree, **entry}


def _measurement(path: Path, tree: dict[str, Any], cards: Sequence[str]) -> Measurement:
    try:
        recipe = Path(str(tree["recipe"])).name.removesuffix(".yaml")
        ranks, device_batch, seconds = int(tree["ranks"]), int(tree["device_batch"]), float(tree["step_seconds"])
        machine = json.dumps([tree.get("device"), tree["machine"]])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--measured {path}: lacks a number ({error}); {MAKE_IT}") from None
    if min(ranks, device_batch, seconds) <= 0:
        raise UserError(f"--measured {path}: ranks, device_batch and step_seconds must be above 0")
    found = [card for card in cards if card in machine]
    if len(found) != 1:
        raise UserError(f"--measured {path}: its machine is not one with {', '.join(cards)}: {machine[:200]}")
    extras = {name: float(tree[name]) for name in OPTIONAL if isinstance(tree.get(name), (int, float))}
    return Measurement(path, recipe, found[0], ranks, device_batch, seconds, extras)
