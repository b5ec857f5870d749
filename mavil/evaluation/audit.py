"""Whether a clip's logits depend on anything but the clip: what an audit compares, and its verdicts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""Largest movement of a logit computed in float32 [our choice: sums in another order move logits of a ViT-B by some 1e-6]."""
SPREAD_RATIO = 0.001
"""A movement must also be small beside the differences between clips [our choice]: a head that has learned nothing yet gives
every clip nearly the same logits, which hardly move whatever is wrong."""
ROUNDING = 2e-6
"""Of the largest logit: what float32 may lose by rounding [our choice, about 16 units of its last place]."""
Row = tuple[str, int]
"""Key and seed: windows of a clip have the same key."""
Logits = Sequence[tuple[Row, Mapping[str, Tensor]]]
"""Of each row in the order it came, ``[classes]`` by the name of the head that judges it."""


@dataclass(frozen=True)
class Check:
    """One thing that must not move the logits.

    Attributes:
        name: what was changed.
        passed: ``None`` where it could not be checked.
        movement: largest absolute movement of a logit; ``None`` where the check is not about logits.
        clip: key of the clip with that movement.
        detail: what else there is to say: why it failed, or was not checked.
    """

    name: str
    passed: bool | None
    movement: float | None = None
    clip: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Reference:
    """The logits of an ordinary evaluation.

    Attributes:
        logits: by row.
        tolerance: largest movement that is none.
        spread: largest deviation of a logit between clips.
        why: why the tolerance is less than 1e-4; empty where it is not.
    """

    logits: dict[Row, Mapping[str, Tensor]]
    tolerance: float
    spread: float
    why: str

    @classmethod
    def of(cls, logits: Logits) -> Reference:
        """The reference, with its tolerance: 1e-4, less where clips hardly differ, see :data:`SPREAD_RATIO`."""
        by_row = dict(logits)
        names = sorted({name for values in by_row.values() for name in values})
        columns = [torch.stack([v[name] for v in by_row.values() if name in v]) for name in names]
        largest = max((float(values.abs().max()) for values in columns), default=0.0)
        spread = max((float(v.double().std(dim=0, correction=0).max()) for v in columns), default=0.0)
        if SPREAD_RATIO * spread >= TOLERANCE:
            return cls(by_row, TOLERANCE, spread, "")
        tolerance = min(TOLERANCE, max(SPREAD_RATIO * spread, ROUNDING * largest))
        return cls(by_row, tolerance, spread, f"less than {TOLERANCE:g}, because clips differ by {spread:.2g} only")


def check_movement(name: str, reference: Reference, found: Logits, hint: str = "", is_whole: bool = True) -> Check:
    """Compare logits made in another way with the reference.

    Args:
        name: what was done otherwise.
        reference: of the same clips.
        found: rows may come several times; each is compared.
        hint: what a movement says; told where the check fails.
        is_whole: each row of the reference must have come exactly once.
    """
    if is_whole and (wrong := _wrong_rows(reference.logits, [row for row, _ in found])):
        return Check(name, False, detail=wrong)
    worst, clip = 0.0, ""
    for row, values in found:
        expected = reference.logits[row]
        for head in expected:
            if head not in values:
                return Check(name, False, clip=row[0], detail=f"no logits from {head}")
            moved = float((values[head].double() - expected[head].double()).abs().max())
            moved = math.inf if math.isnan(moved) else moved
            if moved > worst:
                worst, clip = moved, row[0]
    passed = worst <= reference.tolerance
    return Check(name, passed, worst, clip, "" if passed else hint)


def _wrong_rows(expected: Iterable[Row], found: Sequence[Row]) -> str:
    """Which clips are missing, too many or unknown; empty where none is."""
    counts = Counter(found)
    wanted = set(expected)
    missing = sorted(wanted - set(counts))
    if missing:
        return f"{len(missing)} of {len(wanted)} clips are missing, first {missing[0][0]!r}"
    strange = sorted(set(counts) - wanted) or sorted(row for row, count in counts.items() if count > 1)
    return f"{len(strange)} clips came that should not have, or twice, first {strange[0][0]!r}" if strange else ""


def check_state(training: Sequence[str], changed: Sequence[str]) -> Check:
    """That every module is in evaluation mode, and that nothing of the model has changed by being evaluated.

    Args:
        training: names of modules in training mode.
        changed: names of parameters and buffers that are not what they were.
    """
    details = []
    if training:
        details.append(f"{len(training)} modules are in training mode, first {training[0] or 'the model'!r}")
    if changed:
        details.append(f"evaluation has changed {len(changed)} tensors of the model, first {changed[0]!r}")
    return Check("evaluation mode, weights unchanged", not details, detail="; ".join(details))


def check_to_dict(check: Check) -> dict[str, Any]:
    """For JSON."""
    state = {True: "passed", False: "failed", None: "not checked"}[check.passed]
    return {
        "name": check.name,
        "result": state,
        "largest_movement": check.movement,
        "clip": check.clip or None,
        "detail": check.detail or None,
    }
