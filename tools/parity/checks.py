"""Comparing what we compute with what a file holds: one row per output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tools.parity.fixture import Fixture, Key

FEATURES, WINDOWED, LOSS, GRADIENT, TABLE = 1e-5, 5e-5, 1e-6, 1e-4, 1e-6
"""Limits of the absolute difference in float32 that the fixtures' authors suggest; of gradients' norms it is relative."""
IN_FLOAT64 = 1e-10
"""Their limit where model and numbers are both float64."""
NEGLIGIBLE = 1e-4
"""A gradient's norm below this share of the largest one is compared with that share: it may be nothing but rounding."""
NEGLIGIBLE_VALUE = 1e-3
"""Likewise for the values of complete gradients: with the tolerance it is one epsilon of float32 of the largest value. A bias
of keys has no effect on attention, so that its gradient is rounding and nothing else."""
Rule = Literal["relative", "absolute", "exact"]


@dataclass(frozen=True)
class Row:
    """One output: largest absolute difference and its limit, largest relative difference and its tolerance.

    The rule says which of the two decides; ``exact`` allows no difference at all. ``remark`` says what was left out.
    """

    name: str
    absolute: float
    relative: float
    limit: float
    tolerance: float
    rule: Rule
    remark: str = ""

    @property
    def passes(self) -> bool:
        """NaN does not."""
        if self.rule == "relative":
            return self.relative <= self.tolerance
        return self.absolute <= (0.0 if self.rule == "exact" else self.limit)

    @property
    def verdict(self) -> str:
        """``ok``, or what is wrong; a difference may be tolerable and still above the suggested limit."""
        if not self.passes:
            return "DIFFERS"
        return "ok" if self.absolute <= self.limit or self.rule == "exact" else "ok, above the limit"


@dataclass
class Checks:
    """The rows of one file.

    Attributes:
        fixture: the file.
        is_float64: compare with its float64 numbers alone; outputs without one are left out.
        tolerance: of relative differences, see :attr:`Row.relative`.
        rows, notes: what came out.
    """

    fixture: Fixture
    is_float64: bool = False
    tolerance: float = 1e-4
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and inputs."""
        return torch.float64 if self.is_float64 else torch.float32

    def input(self, *key: str) -> Tensor:
        """A tensor of the file in the type that is computed in."""
        return self.fixture.tensor(*key).to(self.dtype)

    def compare(
        self,
        key: Key,
        ours: Tensor | float,
        limit: float,
        f64: Key | None = None,
        rule: Rule = "relative",
        remark: str = "",
    ) -> None:
        """One output with what stands under ``key``, or, in float64, under ``f64``.

        Relative is the largest difference divided by the largest stored value: single values near zero say nothing.
        """
        if self.is_float64:
            if f64 is None or not self.fixture.has(*f64):
                return
            key, limit, rule = f64, IN_FLOAT64, "relative"
        expected = self.fixture.get(*key)
        self.add(".".join(key), ours, expected, limit, rule, remark)

    def exact(self, key: Key, ours: Tensor | float, remark: str = "") -> None:
        """One output that must be the same to the last bit."""
        self.compare(key, ours, 0.0, rule="exact", remark=remark)

    def add(
        self,
        name: str,
        ours: Tensor | float,
        expected: object,
        limit: float,
        rule: Rule,
        remark: str = "",
        tolerance: float | None = None,
    ) -> None:
        """One row of two values; ``tolerance`` instead of that of all rows."""
        tolerance = self.tolerance if tolerance is None else tolerance
        first = torch.as_tensor(ours, dtype=torch.float64).detach()
        second = torch.as_tensor(expected, dtype=torch.float64)
        if first.shape != second.shape:
            shapes = f"our shape {tuple(first.shape)} is not {tuple(second.shape)}"
            self.rows.append(Row(name, torch.nan, torch.nan, limit, tolerance, rule, shapes))
            return
        absolute = float((first - second).abs().max()) if first.numel() else 0.0
        largest = float(second.abs().max()) if second.numel() else 0.0
        relative = absolute / largest if largest > 0 else (0.0 if absolute == 0 else torch.inf)
        self.rows.append(Row(name, absolute, relative, limit, tolerance, rule, remark))

    def condition(self, name: str, holds: bool, remark: str) -> None:
        """One row of something that is so or not."""
        self.rows.append(Row(name, 0.0 if holds else torch.nan, 0.0 if holds else torch.nan, 0.0, 0.0, "exact", remark))

    def full_gradients(self, key: Key, ours: Mapping[str, Tensor], remark: str = "") -> None:
        """Complete gradients by the originals' parameter names; one of exactly zero may lack here."""
        expected: dict[str, Tensor] = self.fixture.get(*key)
        if self.is_float64:
            return
        name = ".".join(key)
        lacking = sorted({one for one, values in expected.items() if one not in ours and bool(values.any())})
        lacking += sorted(set(ours) - set(expected))
        self.condition(f"{name}: parameters reached", not lacking, f"e.g. {lacking[0]}" if lacking else str(len(ours)))
        largest = {one: float(expected[one].abs().max()) for one in expected if one in ours}
        floor = NEGLIGIBLE_VALUE * max(largest.values(), default=0.0)
        off: dict[str, tuple[float, float]] = {}
        for one, own_largest in largest.items():
            absolute = float((ours[one].double() - expected[one].double()).abs().max())
            scale = max(own_largest, floor)
            off[one] = (absolute / scale if scale > 0 else absolute, absolute)
        if off:
            # NaN is the worst of all, and max() would pass over it.
            worst = max(off, key=lambda one: math.inf if math.isnan(off[one][0]) else off[one][0])
            relative, absolute = off[worst]
            limit = GRADIENT * max(largest[worst], floor)
            where = f"most at {worst}" + (f"; {remark}" if remark else "")
            self.rows.append(Row(name, absolute, relative, limit, max(GRADIENT, self.tolerance), "relative", where))

    def gradients(self, key: Key, ours: Mapping[str, float], without: Key | None = None) -> None:
        """Norms of gradients by the originals' parameter names; ``without`` lists parameters that the loss does not touch."""
        if self.is_float64:
            return
        expected: dict[str, float] = self.fixture.get(*key)
        reached = {name for name, norm in ours.items() if norm > 0}
        name = ".".join(key)
        lacking = sorted(set(expected) ^ reached)
        remark = f"e.g. {lacking[0]}" if lacking else f"{len(expected)}"
        self.condition(f"{name}: parameters reached", not lacking, remark)
        if without is not None:
            untouched = set(self.fixture.get(*without))
            self.condition(".".join(without), not untouched & reached, f"{len(untouched)}")
        common = [one for one in expected if one in ours]
        floor = NEGLIGIBLE * max(expected.values(), default=0.0)
        off = {one: abs(ours[one] - expected[one]) / max(expected[one], floor) for one in common}
        worst = max(off, key=off.__getitem__, default=None)
        if worst is not None:
            absolute = abs(ours[worst] - expected[worst])
            self.rows.append(
                Row(
                    name,
                    absolute,
                    off[worst],
                    GRADIENT * max(expected[worst], floor),
                    max(GRADIENT, self.tolerance),
                    "relative",
                    f"most at {worst}",
                )
            )
