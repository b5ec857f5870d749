"""Whether one run is better than another: the same clips, paired bootstrap, McNemar's test, Holm's correction.

Two runs that are judged on the same clips share the difficulty of these clips. So both are scored on every resample of them,
and the interval is that of the difference, which is narrower than either run's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mavil.evaluation.classification import BOOTSTRAP_SEED, LEVEL
from mavil.evaluation.decisions import hits_at
from mavil.evaluation.p_values import holm, mcnemar_p, two_sided_p
from mavil.evaluation.predictions import Predictions
from mavil.evaluation.resampling import Progress, class_metrics, draw_counts, resampled_metrics
from mavil.structs import UserError

Sides = Mapping[str, Sequence[Predictions]]
"""By name what is compared, the baseline first: one run each, or the runs of several seeds, whose metrics are averaged."""
NUM_CLASSES_SHOWN = 10
"""Classes told with the largest difference each way."""


@dataclass(frozen=True)
class Paired:
    """Clips that all runs have predicted.

    Attributes:
        keys: of the clips, sorted.
        classes: names, in the order of the first run.
        targets: ``[n, classes]`` bool.
        multi_label: as the runs say.
        scores: by what was shown, by side, of each of its runs ``[n, classes]`` float64. A row is NaN where a run has no scores.
        left_out: by side how many clips each of its runs has beside these.
        dropped: what was shown to some runs and not to all, and is therefore not compared.
    """

    keys: list[str]
    classes: tuple[str, ...]
    targets: np.ndarray
    multi_label: bool
    scores: dict[str, dict[str, list[np.ndarray]]]
    left_out: dict[str, list[int]]
    dropped: list[str]


@dataclass(frozen=True)
class Difference:
    """One metric of one side against the baseline, all as shares.

    Attributes:
        low, high: bounds of the 95 % interval of ``difference``, percentiles of the resamples.
        p: two-sided: twice the share of resamples on the other side of 0, at least 1 / (resamples + 1).
        p_holm: the same after Holm's correction for the number of sides compared with the baseline.
        p_mcnemar: exact, for ``accuracy`` of two single runs; ``None`` otherwise.
        by_run, baseline_by_run: the metric of each run of a side.
    """

    shown: str
    metric: str
    side: str
    num_clips: int
    baseline: float
    value: float
    low: float
    high: float
    p: float
    by_run: list[float]
    baseline_by_run: list[float]
    p_mcnemar: float | None = None
    p_holm: float = 1.0

    @property
    def difference(self) -> float:
        """The side minus the baseline."""
        return self.value - self.baseline


@dataclass(frozen=True)
class ClassDifference:
    """Average precision of one class, of a side and of the baseline, and how many of the clips have it."""

    shown: str
    side: str
    name: str
    num_positive: int
    baseline: float
    value: float

    @property
    def difference(self) -> float:
        """The side minus the baseline."""
        return self.value - self.baseline


def pair(sides: Sides) -> Paired:
    """The clips that every run of every side has, with the classes of all in one order.

    Raises:
        UserError: other classes, kinds of labels or labels of a clip; no clip, or nothing that was shown, in common.
    """
    runs = [(name, one) for name, members in sides.items() for one in members]
    first_name, first = runs[0]
    for name, other in runs[1:]:
        _refuse_other_classes(first_name, first, name, other)
    shared = set(first.keys).intersection(*(one.keys for _, one in runs))
    if not shared:
        raise UserError(f"{', '.join(sides)}: no clip is in all of them; evaluate all runs on the same data")
    keys = sorted(shared)
    targets = [_rows(one.targets.numpy(), one, keys, first.classes) > 0.5 for _, one in runs]
    for (name, _), of_run in zip(runs[1:], targets[1:], strict=True):
        differing = np.flatnonzero((of_run != targets[0]).any(axis=1))
        if len(differing):
            raise UserError(
                f"{first_name} and {name} have other labels for {len(differing)} of {len(keys)} clips, first "
                f"{keys[differing[0]]!r}: evaluate both on the same labels"
            )
    everything = list(dict.fromkeys(shown for _, one in runs for shown in one.scores))
    common = [shown for shown in everything if all(shown in one.scores for _, one in runs)]
    if not common:
        raise UserError(
            f"{', '.join(sides)}: no modality was shown to all of them; evaluate all with the same --modalities"
        )
    return Paired(
        keys,
        first.classes,
        targets[0],
        first.multi_label,
        {
            shown: {
                name: [_rows(one.scores[shown].numpy().astype(np.float64), one, keys, first.classes) for one in members]
                for name, members in sides.items()
            }
            for shown in common
        },
        {name: [len(one.keys) - len(keys) for one in members] for name, members in sides.items()},
        [shown for shown in everything if shown not in common],
    )


def _refuse_other_classes(first_name: str, first: Predictions, name: str, other: Predictions) -> None:
    missing = sorted(set(first.classes) ^ set(other.classes))
    if missing:
        raise UserError(
            f"{first_name} has {len(first.classes)} classes and {name} {len(other.classes)}; {len(missing)} are not in both, "
            f"e.g. {missing[0]!r}: only runs with the same classes can be compared"
        )
    if first.multi_label != other.multi_label:
        kinds = {True: "several labels per clip", False: "one label per clip"}
        raise UserError(
            f"{first_name} was evaluated with {kinds[first.multi_label]} and {name} with {kinds[other.multi_label]}: "
            "evaluate both with the same task.loss"
        )


def _rows(values: np.ndarray, run: Predictions, keys: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    row_of = {key: row for row, key in enumerate(run.keys)}
    column_of = {name: column for column, name in enumerate(run.classes)}
    return np.asarray(values[[row_of[key] for key in keys]][:, [column_of[name] for name in classes]])


def differences(
    paired: Paired,
    num_resamples: int = 2000,
    progress_of: Callable[[str], Progress] = lambda name: lambda done, total: None,
) -> list[Difference]:
    """Every metric of every side against the first one, under everything that was shown.

    All sides are scored on the same resamples. The metric of several seeds is the mean over their runs, in every resample too:
    the interval then covers the choice of clips, not that of seeds.

    Args:
        paired: the clips.
        num_resamples: of the clips.
        progress_of: called with what was shown to which run, gives what is told how much of its resampling is done.

    Raises:
        UserError: no clip has scores of all runs.
    """
    found: list[Difference] = []
    for shown, by_side in paired.scores.items():
        targets = paired.targets[chosen := _scored(paired, shown)]
        counts = draw_counts(len(targets), num_resamples, BOOTSTRAP_SEED)
        metrics = {
            side: [
                resampled_metrics(one[chosen], targets, counts, paired.multi_label, progress_of(f"{name}, {shown}"))
                for name, one in zip(_names(side, runs), runs, strict=True)
            ]
            for side, runs in by_side.items()
        }
        baseline, *others = by_side
        for metric in metrics[baseline][0]:
            of_metric = [
                _difference(shown, metric, side, len(targets), metrics[baseline], metrics[side]) for side in others
            ]
            if metric == "accuracy":
                points = {side: [hits_at(one[chosen], targets, 1) for one in runs] for side, runs in by_side.items()}
                of_metric = [_with_mcnemar(one, points[baseline], points[one.side]) for one in of_metric]
            found += _with_holm(of_metric)
    return found


def _names(side: str, runs: Sequence[np.ndarray]) -> list[str]:
    """Of the runs of a side, for people."""
    return [side] if len(runs) == 1 else [f"{side}, run {number + 1}" for number in range(len(runs))]


def _scored(paired: Paired, shown: str) -> np.ndarray:
    """``[n]`` bool: clips of which every run has scores."""
    everything = [one for runs in paired.scores[shown].values() for one in runs]
    chosen = np.logical_and.reduce([np.isfinite(one).all(axis=1) for one in everything])
    if not chosen.any():
        raise UserError(f"no clip has scores of all runs from {shown}: evaluate all runs on clips that have it")
    return np.asarray(chosen)


def _difference(
    shown: str,
    metric: str,
    side: str,
    num_clips: int,
    baselines: Sequence[Mapping[str, np.ndarray]],
    own: Sequence[Mapping[str, np.ndarray]],
) -> Difference:
    """Column 0 of every array is the clips as they are, the others are resamples."""
    before, after = (np.stack([run[metric] for run in runs]) for runs in (baselines, own))
    changes = (after.mean(axis=0) - before.mean(axis=0))[1:]
    changes = changes[~np.isnan(changes)]  # a resample without a class that has clips of both kinds
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(changes, [tail, 100 - tail]) if len(changes) else (np.nan, np.nan)
    return Difference(
        shown,
        metric,
        side,
        num_clips,
        float(before[:, 0].mean()),
        float(after[:, 0].mean()),
        float(low),
        float(high),
        two_sided_p(changes),
        after[:, 0].tolist(),
        before[:, 0].tolist(),
    )


def _with_mcnemar(one: Difference, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> Difference:
    if len(before) > 1 or len(after) > 1:
        return one
    # A point shared with other classes is not right.
    is_right, was_right = after[0] == 1, before[0] == 1
    p = mcnemar_p(int((was_right & ~is_right).sum()), int((is_right & ~was_right).sum()))
    return replace(one, p_mcnemar=p)


def _with_holm(ones: Sequence[Difference]) -> list[Difference]:
    corrected = holm([one.p for one in ones])
    return [replace(one, p_holm=p) for one, p in zip(ones, corrected, strict=True)]


def class_differences(paired: Paired) -> list[ClassDifference]:
    """For each side and what was shown the classes with the largest gains, then those with the largest losses.

    Means over the runs of a side. Classes without a positive clip, and equal ones, are not told.
    """
    found: list[ClassDifference] = []
    for shown, by_side in paired.scores.items():
        targets = paired.targets[chosen := _scored(paired, shown)]
        baseline, *others = by_side
        before = _precisions([run[chosen] for run in by_side[baseline]], targets)
        for side in others:
            after = _precisions([run[chosen] for run in by_side[side]], targets)
            rows = [
                ClassDifference(shown, side, paired.classes[c], int(targets[:, c].sum()), before[c], after[c])
                for c in before
            ]
            ordered = sorted(rows, key=lambda row: (-row.difference, row.name))
            found += [row for row in ordered[:NUM_CLASSES_SHOWN] if row.difference > 0]
            found += [row for row in ordered[::-1][:NUM_CLASSES_SHOWN] if row.difference < 0]
    return found


def _precisions(runs: Sequence[np.ndarray], targets: np.ndarray) -> dict[int, float]:
    """Average precision by class, those with a positive clip, mean over runs."""
    ones = np.ones((len(targets), 1), dtype=np.int32)
    return {
        int(c): float(np.mean([class_metrics(run[:, c], targets[:, c], ones)[0][0] for run in runs]))
        for c in np.flatnonzero(targets.any(axis=0))
    }
