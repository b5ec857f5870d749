"""What an ablation says: mean and spread over seeds, differences from a baseline seed by seed, and tables of them.

Runs of two variants with one seed have the same clips in the same order and mostly the same start: their difference varies
less than either. So differences are taken by seed first, and their standard error is that of the paired differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

MEANING = (
    "Mean ± standard deviation over seeds; in brackets the difference from the baseline, by seed, ± its standard error."
)


@dataclass(frozen=True)
class Summary:
    """One measure of one row over its seeds.

    Attributes:
        values: by seed.
        difference: the mean of the paired differences from the baseline, over the seeds both have; ``None`` without any.
        difference_error: their standard deviation / sqrt(their number); ``None`` for fewer than two.
        num_pairs: how many.
    """

    values: dict[int, float]
    difference: float | None = None
    difference_error: float | None = None
    num_pairs: int = 0

    @property
    def mean(self) -> float:
        """Over seeds."""
        return fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds, with n - 1; ``None`` for one seed."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "mean": self.mean,
            "standard_deviation": self.deviation,
            "n": len(self.values),
            "by_seed": {str(seed): value for seed, value in self.values.items()},
            "difference": self.difference,
            "difference_standard_error": self.difference_error,
            "pairs": self.num_pairs,
        }


@dataclass(frozen=True)
class MeasuredRow:
    """One row of the table.

    Attributes:
        name: of the variant.
        runs: what became of the run of each seed, e.g. ``finished`` or ``failed``; those that are not finished and measured
            have no values.
        measures: summaries by the measure's name.
    """

    name: str
    runs: dict[int, str]
    measures: dict[str, Summary]

    @property
    def missing(self) -> str:
        """Which seeds are not in the summaries, and why; empty where all are."""
        return ", ".join(f"seed {seed}: {state}" for seed, state in self.runs.items() if state != "finished")


def summarise(values: Mapping[int, float], baseline: Mapping[int, float] | None = None) -> Summary:
    """Summary of one measure: ``values`` by seed, and those of the baseline. There must be at least one."""
    both = [seed for seed in values if baseline is not None and seed in baseline]
    differences = [values[seed] - baseline[seed] for seed in both] if baseline is not None else []
    if not differences:
        return Summary(dict(values))
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    return Summary(dict(values), fmean(differences), error, len(differences))


def measured_rows(
    runs: Mapping[str, Mapping[int, str]],
    values: Mapping[str, Mapping[int, Mapping[str, float]]],
    baselines: Mapping[str, str | None],
) -> list[MeasuredRow]:
    """The rows of the table.

    Args:
        runs: by row and seed, what became of the run.
        values: by row, seed and measure; finished runs only.
        baselines: by row, the row it is compared with.
    """
    rows = []
    for name, states in runs.items():
        own, other = values.get(name, {}), values.get(baselines.get(name) or "", {})
        measures = dict.fromkeys(measure for seed in own.values() for measure in seed)
        summaries = {one: summarise(_of(own, one), None if _is_given(one) else _of(other, one)) for one in measures}
        rows.append(MeasuredRow(name, dict(states), summaries))
    return rows


def _is_given(measure: str) -> bool:
    """What was not for the model to decide and is not compared: the level of chance, how many clips were seen."""
    return measure.rpartition("/")[2].startswith(("chance", "clips"))


def _of(values: Mapping[int, Mapping[str, float]], measure: str) -> dict[int, float]:
    return {seed: one[measure] for seed, one in values.items() if measure in one}


def groups_of(rows: Sequence[MeasuredRow]) -> dict[str, list[str]]:
    """All measures by the first part of their names, ``probe/class/audio`` in ``probe``, in order of appearance."""
    names = list(dict.fromkeys(measure for row in rows for measure in row.measures))
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("/")[0], []).append(name)
    return groups


def cells_of(row: MeasuredRow, measures: Sequence[str]) -> list[str]:
    """One row of a table as text: its name, how many runs it has, and its summaries."""
    finished = sum(state == "finished" for state in row.runs.values())
    return [row.name, f"{finished}/{len(row.runs)}", *(_in_words(row.measures.get(name)) for name in measures)]


def markdown_tables(rows: Sequence[MeasuredRow], title: str) -> str:
    """All tables, one for each group of measures, to be pasted into a document."""
    parts = [f"**{title}.** {MEANING}"]
    for measures in groups_of(rows).values():
        heads = ["variant", "runs", *(name.partition("/")[2] or name for name in measures)]
        group = measures[0].partition("/")[0]
        lines = [f"| {' | '.join([f'{group}: {heads[0]}', *heads[1:]])} |", "|---" * len(heads) + "|"]
        lines += [f"| {' | '.join(cells_of(row, measures))} |" for row in rows]
        parts.append("\n".join(lines))
    absent = [f"- {row.name}: {row.missing}" for row in rows if row.missing]
    if absent:
        parts.append("\n".join(["Not in the numbers:", "", *absent]))
    return "\n\n".join(parts) + "\n"


def _in_words(summary: Summary | None) -> str:
    if summary is None:
        return "–"
    # Percents are compared by tenths, R² and losses by thousandths.
    decimals = 1 if abs(summary.mean) >= 10 else 3
    text = _number(summary.mean, decimals)
    if summary.deviation is not None:
        text += f" ± {_number(summary.deviation, decimals)}"
    if summary.difference is not None:
        error = "" if summary.difference_error is None else f" ± {_number(summary.difference_error, decimals)}"
        text += f" ({'+' if summary.difference >= 0 else '−'}{_number(abs(summary.difference), decimals)}{error})"
    return text


def _number(value: float, decimals: int) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    is_lost = value != 0 and abs(value) < 0.5 * 10**-decimals
    return f"{value:.2g}" if is_lost and decimals == 3 else f"{value:.{decimals}f}"
