"""Results of several splits and seeds as one table: folders ``SET_METHOD_SPLIT/seed_SEED`` of runs and of baselines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mavil.engine.metrics.tracker import read_metrics
from mavil.evaluation.ablation import Summary, summarise
from mavil.evaluation.predictions import Predictions, read_predictions, write_predictions
from mavil.structs import UserError
from tools.baselines.cnn import Scored

PREDICTIONS = Path("evaluation") / "predictions.npz"
"""Below a run folder and below a baseline's, so that both can be compared clip by clip."""
_FOLDER = re.compile(r"(?P<set>\w+?)_(?P<method>[a-z]+)_(?P<split>[0-9]+)/seed_(?P<seed>[0-9]+)")

Counts = dict[str, dict[int, dict[int, tuple[float, int]]]]
"""By method, seed and split: clips named rightly, and all clips."""


def write_scored(folder: Path, scored: Scored, classes: tuple[str, ...], facts: Mapping[str, object]) -> None:
    """Write a baseline's scores to ``FOLDER/evaluation/predictions.npz``."""
    place = folder / PREDICTIONS
    place.parent.mkdir(parents=True, exist_ok=True)
    known = {**facts, **scored.facts, "training_seconds": scored.seconds}
    scores = {"audio": scored.scores.float()}
    write_predictions(place, Predictions(scored.keys, classes, scored.targets, False, scores, known))


def read_counts(folder: Path) -> dict[str, Counts]:
    """What lies below a folder, by set: finished runs by their last evaluation, baselines by their predictions.

    Raises:
        UserError: nothing is there, or a run has not been evaluated.
    """
    found: dict[str, Counts] = {}
    for path in sorted(folder.glob("*/seed_*")):
        match = _FOLDER.fullmatch(path.relative_to(folder).as_posix())
        if match is None:
            continue
        method = found.setdefault(match["set"], {}).setdefault(match["method"], {})
        method.setdefault(int(match["seed"]), {})[int(match["split"])] = _count(path)
    if not found:
        raise UserError(f"{folder}: no folder SET_METHOD_SPLIT/seed_SEED is in it, e.g. esc10_random_1/seed_0")
    return found


def pooled(counts: Counts) -> dict[str, dict[int, float]]:
    """Accuracy in percent by method and seed, over the clips of all splits together.

    Raises:
        UserError: a run lacks a split that another one has, or was scored on another number of its clips.
    """
    splits: dict[int, int] = {}
    for method, seed, split, total in _totals(counts):
        if splits.setdefault(split, total) != total:
            raise UserError(
                f"{method}, seed {seed}: split {split} was scored on {total} clips, elsewhere on {splits[split]}: "
                "see its log for clips that could not be used, and repeat the run that lacks some"
            )
    accuracies: dict[str, dict[int, float]] = {}
    for method, seeds in counts.items():
        for seed, own in seeds.items():
            if missing := sorted(set(splits) - set(own)):
                raise UserError(f"{method}, seed {seed}: split {missing[0]} is missing: finish it first")
            right, clips = (sum(pair[place] for pair in own.values()) for place in (0, 1))
            accuracies.setdefault(method, {})[seed] = 100 * right / clips
    return accuracies


def _totals(counts: Counts) -> Iterator[tuple[str, int, int, int]]:
    for method, seeds in counts.items():
        for seed, own in seeds.items():
            for split, (_, total) in own.items():
                yield method, seed, split, total


def markdown(name: str, counts: Counts, baseline: str) -> str:
    """One table of a set: mean ± standard deviation over seeds, paired difference from ``baseline`` ± its standard error.

    Raises:
        UserError: there is no such method, or :func:`pooled` raises.
    """
    accuracies = pooled(counts)
    if baseline not in accuracies:
        raise UserError(f"{name}: no method {baseline!r}; there are {', '.join(accuracies)}")
    clips = sum(total for _, total in next(iter(counts[baseline].values())).values())
    splits = sorted(next(iter(counts[baseline].values())))
    heads = [f"{name}, {clips} clips", "accuracy, %", f"minus {baseline}", "each seed", *(f"split {s}" for s in splits)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, values in sorted(accuracies.items(), key=lambda item: -max(item[1].values())):
        other = None if method == baseline else accuracies[baseline]
        each = ", ".join(f"{values[seed]:.1f}" for seed in sorted(values))
        means = [_mean_of_split(counts[method], split) for split in splits]
        cells = [method, *_in_words(summarise(values, other)), each, *(f"{mean:.1f}" for mean in means)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean_of_split(seeds: Mapping[int, Mapping[int, tuple[float, int]]], split: int) -> float:
    shares = [100 * own[split][0] / own[split][1] for own in seeds.values()]
    return sum(shares) / len(shares)


def _in_words(summary: Summary) -> tuple[str, str]:
    spread = f" ± {summary.deviation:.1f}" if summary.deviation is not None else ""
    if summary.difference is None:
        return f"{summary.mean:.1f}{spread}", ""
    error = f" ± {summary.difference_error:.1f}" if summary.difference_error is not None else ""
    return f"{summary.mean:.1f}{spread}", f"{summary.difference:+.1f}{error}"


def _count(path: Path) -> tuple[float, int]:
    evaluations = [line["metrics"] for line in read_metrics(path) if "evaluation/accuracy" in line["metrics"]]
    if evaluations:
        total = int(evaluations[-1]["evaluation/num_clips"])
        return evaluations[-1]["evaluation/accuracy"] * total, total
    if not (path / PREDICTIONS).is_file():
        raise UserError(f"{path}: neither an evaluated run nor a baseline's predictions: finish it first")
    predictions = read_predictions(path / PREDICTIONS)
    is_right = predictions.scores["audio"].argmax(dim=1) == predictions.targets.argmax(dim=1)
    return float(is_right.sum()), len(predictions)
