"""All probes of one encoder: every kind, on every combination of modalities, with every seed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from mavil.commands.probe_clips import SHOWN, Splits, Usable, labelled, padded_scores, targets_of
from mavil.commands.probe_progress import Pieces, Show
from mavil.evaluation.classification import estimate_of
from mavil.evaluation.frozen import attentive, linear, neighbours
from mavil.evaluation.frozen.fitting import Progress
from mavil.evaluation.frozen.holding_out import hold_out
from mavil.evaluation.frozen.labelled import Labelled
from mavil.evaluation.frozen.selection import Kind, Known, Trial, headline, make_probe
from mavil.evaluation.metrics import classification_metrics
from mavil.evaluation.resampling import draw_counts, resampled_metrics
from mavil.structs import Modality

KINDS = ("linear", "attentive", "knn")
TOKEN_KINDS = ("attentive",)
"""Those that look at tokens; the others look at what is pooled."""
NUM_RESAMPLES = 1000
"""Of the evaluated clips, behind each interval."""


@dataclass(frozen=True)
class Plan:
    """What is probed: ``shown`` combinations of modalities, ``kinds`` of probes, each with the seeds 0 to ``seeds`` - 1.

    ``has_no_grid``: one usual point instead of a choice. ``group_field``: clips that are held out together.
    """

    splits: Splits
    shown: Sequence[tuple[Modality, ...]]
    kinds: Sequence[str]
    has_no_grid: bool
    seeds: int
    group_field: str | None
    device: torch.device


@dataclass(frozen=True)
class Fitted:
    """One probe: its seed, the point that was chosen with its validation score, all points, and the metrics afterwards."""

    seed: int
    chosen: Trial
    trials: list[Trial]
    num_train: int
    num_validation: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One row of the table, over all seeds.

    ``interval``: of ``metric`` of the first seed's probe, 95 %, over resampled clips. ``scores`` ``[n, classes]`` and
    ``targets`` are the first seed's too, of the evaluated clips in the order of their keys.
    """

    encoder: str
    kind: str
    shown: str
    metric: str
    fitted: list[Fitted]
    interval: tuple[float, float]
    scores: Tensor
    targets: Tensor

    @property
    def values(self) -> list[float]:
        """The metric of each seed."""
        return [one.metrics[self.metric] for one in self.fitted]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds; ``None`` with one."""
        return float(np.std(self.values, ddof=1)) if len(self.fitted) > 1 else None

    @property
    def chance(self) -> float:
        """The share of the most frequent class, or the mean average precision of a random order."""
        return self.fitted[0].metrics["accuracy_chance_majority" if self.metric == "accuracy" else "map_chance"]


def run_probes(plan: Plan, encoded: Mapping[str, Usable], encoder: str, console: Console, show: Show) -> list[Row]:
    """Probe one encoder.

    Args:
        plan: what to do.
        encoded: usable clips by the option that named them, of this encoder.
        encoder: what to call it.
        console: where the time of each row is told.
        show: told about progress.

    Raises:
        UserError: no validation clips can be held out, or a clip has no group.
    """
    rows = []
    for modalities in plan.shown:
        for name in plan.kinds:
            what = f"{encoder}, {SHOWN.join(modalities)}, {name}"
            begin = time.monotonic()
            # Of every seed the grid, then the chosen point.
            pieces = Pieces(2 * plan.seeds, lambda d, t, what=what: show(what, d, t))  # type: ignore[misc]
            rows.append(_row(plan, encoded, encoder, modalities, name, pieces))
            seeds = f"{plan.seeds} seed{'s' if plan.seeds > 1 else ''}"
            told = f"{what}: {seeds} in {time.monotonic() - begin:.1f} s"
            console.print(told, highlight=False, markup=False, soft_wrap=True)
    return rows


def _row(
    plan: Plan,
    encoded: Mapping[str, Usable],
    encoder: str,
    modalities: tuple[Modality, ...],
    name: str,
    progress: Progress,
) -> Row:
    """All seeds of one kind of probe on one combination of modalities."""
    has_tokens, splits = name in TOKEN_KINDS, plan.splits
    known_splits = [split for split in (splits.train, splits.validation) if split is not None]
    is_multi_label = any(split.has_several_labels() for split in known_splits)
    judges_several = is_multi_label or splits.evaluation.has_several_labels()
    kind = _kind(name, is_multi_label, plan, progress)
    judged, unseen = encoded[splits.evaluation.option], list(splits.unseen())
    targets = targets_of(splits.evaluation, judged.keys, [*splits.vocabulary.classes, *unseen])
    fitted: list[Fitted] = []
    first: Tensor | None = None
    for seed in range(plan.seeds):
        known = _known(plan, encoded, modalities, has_tokens, seed)
        # Nothing of the evaluated clips has been looked at until the probe is there.
        probe = make_probe(kind, known, is_multi_label, seed)
        scores = padded_scores(probe.scorer(judged.features(modalities, has_tokens)), len(unseen))
        metrics = classification_metrics(scores, targets, judges_several)
        sizes = (len(known.train), len(known.validation))
        fitted.append(Fitted(seed, probe.chosen, probe.trials, *sizes, metrics))
        first = scores if first is None else first
    assert first is not None  # there is one seed at least
    metric = headline(judges_several)
    interval = _interval(first, targets, judges_several, metric)
    return Row(encoder, name, SHOWN.join(modalities), metric, fitted, interval, first, targets)


def _known(
    plan: Plan, encoded: Mapping[str, Usable], modalities: tuple[Modality, ...], has_tokens: bool, seed: int
) -> Known:
    splits = plan.splits

    def clips(split_option: str) -> Labelled:
        split = next(split for split in splits.each() if split.option == split_option)
        found = encoded[split_option]
        # Groups matter where clips are held out.
        field = plan.group_field if splits.validation is None else None
        return labelled(split, found, splits.vocabulary, modalities, has_tokens, field)

    train = clips(splits.train.option)
    if splits.validation is not None:
        return Known(train, clips(splits.validation.option))
    kept, held = hold_out(train.targets, train.groups, splits.vocabulary.classes, seed)
    return Known(train.subset(kept), train.subset(held))


def _kind(name: str, is_multi_label: bool, plan: Plan, progress: Progress) -> Kind:
    if name == "knn":
        numbers = neighbours.NO_GRID if plan.has_no_grid else neighbours.NUMBERS
        return neighbours.NearestNeighbours(plan.device, progress, numbers)
    if name == "attentive":
        points = attentive.NO_GRID if plan.has_no_grid else attentive.SMALL_GRID
        return attentive.Attentive(is_multi_label, plan.device, progress, points, attentive.BUDGET)
    points = linear.NO_GRID if plan.has_no_grid else linear.SMALL_GRID
    return linear.Linear(is_multi_label, plan.device, progress, points, linear.BUDGET)


def _interval(scores: Tensor, targets: Tensor, is_multi_label: bool, metric: str) -> tuple[float, float]:
    """95 % of the metric over resamples of the clips, drawn with seed 0."""
    counts = draw_counts(len(scores), NUM_RESAMPLES, seed=0)
    samples = resampled_metrics(scores.double().numpy(), targets.numpy(), counts, is_multi_label)[metric]
    estimate = estimate_of(metric, samples)
    return estimate.low, estimate.high
