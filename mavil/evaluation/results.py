"""All numbers of one evaluation: of each thing that was shown, of the gap between them, and of a second list of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mavil.evaluation.classification import BOOTSTRAP_SEED, LEVEL, Estimate, Scored, finite, score_clips
from mavil.evaluation.decisions import hits_at
from mavil.evaluation.label_subsets import SUBSETS, MarkedLabels, modality_confusion, subset_metrics
from mavil.evaluation.modality_gap import BOTH, Gap, modality_gaps
from mavil.evaluation.predictions import Predictions
from mavil.evaluation.resampling import Progress
from mavil.structs import UserError


@dataclass(frozen=True)
class ListResult:
    """The second protocol: what a list of several labels per clip says.

    Attributes:
        name: of the file.
        num_clips: clips that have predictions and are in the list.
        without_prediction, not_in_list: how many clips only the list, only the predictions have.
        metrics: by what was shown, by subset of the labels: number of clips with such a label, and metrics.
        confusion: see :func:`modality_confusion`; empty unless each modality and both were shown.
        own_accuracy: with the data's own single label on the same clips, by what was shown.
    """

    name: str
    num_clips: int
    without_prediction: int
    not_in_list: int
    metrics: dict[str, dict[str, tuple[int, dict[str, Estimate]]]]
    confusion: dict[str, float]
    own_accuracy: dict[str, float]


@dataclass(frozen=True)
class Results:
    """All numbers of one evaluation."""

    predictions: Predictions
    scored: dict[str, Scored]
    gaps: dict[str, list[Gap]] = field(default_factory=dict)
    listed: ListResult | None = None
    resamples: int = 0

    def as_json(self) -> dict[str, Any]:
        """Everything with the facts of the protocol."""
        tree: dict[str, Any] = {
            **self.predictions.facts,
            "num_classes": len(self.predictions.classes),
            "multi_label": self.predictions.multi_label,
            "bootstrap": {"resamples": self.resamples, "over": "clips", "percent": LEVEL, "seed": BOOTSTRAP_SEED},
            "shown": {name: scored.as_json() for name, scored in self.scored.items()},
            "modality_gap": {name: [asdict(gap) for gap in gaps] for name, gaps in self.gaps.items()},
        }
        if self.listed is not None:
            listed = asdict(self.listed)
            listed["metrics"] = {
                shown: {name: {"num_clips": n, **values} for name, (n, values) in subsets.items()}
                for shown, subsets in listed["metrics"].items()
            }
            tree["labels"] = listed
        plain: dict[str, Any] = finite(tree)
        return plain


def judge(
    predictions: Predictions,
    resamples: int = 1000,
    labels: MarkedLabels | None = None,
    list_name: str = "",
    progress_of: Callable[[str], Progress] = lambda name: lambda done, total: None,
) -> Results:
    """All numbers of predictions.

    Args:
        predictions: what to judge. What no clip has is left out.
        resamples: of the clips, for the intervals; 0 for none.
        labels: judged beside the data's own labels; of the file ``list_name``.
        progress_of: called with the name of each thing that takes time, gives what is told how much of it is done.

    Raises:
        UserError: no clip has a label, or the list names none of the clips.
    """
    names = [one for one in predictions.scores if bool(predictions.judged(one).any())]
    scored: dict[str, Scored] = {}
    for one in names:
        rows = predictions.judged(one)
        scored[one] = score_clips(
            predictions.scores[one][rows],
            predictions.targets[rows],
            predictions.classes,
            predictions.multi_label,
            resamples,
            progress_of(one),
        )
    gaps = modality_gaps(predictions, scored, resamples, progress_of("modality gap"))
    listed = None if labels is None else _judge_list(predictions, names, labels, list_name, resamples)
    return Results(predictions, scored, gaps, listed, resamples)


def _judge_list(
    predictions: Predictions, names: Sequence[str], labels: MarkedLabels, name: str, resamples: int
) -> ListResult:
    keys = [key for key in predictions.keys if key in labels.marks]
    if not keys:
        raise UserError(
            f"{name}: names none of the {len(predictions)} evaluated clips (it has e.g. {next(iter(labels.marks))!r}, the data "
            f"{predictions.keys[0]!r}): use the data that the list is of"
        )
    in_list = [key in labels.marks for key in predictions.keys]
    chosen = [row for row, is_in in enumerate(in_list) if is_in]
    subsets = list(SUBSETS) if labels.has_marks else ["all"]
    targets = {subset: labels.targets(keys, predictions.classes, subset) for subset in subsets}
    scores = {one: predictions.scores[one][chosen].double().numpy() for one in names}
    judged = {one: predictions.judged(one)[chosen].numpy() for one in names}
    metrics: dict[str, dict[str, tuple[int, dict[str, Estimate]]]] = {}
    for one in names:
        metrics[one] = {}
        for subset, is_positive in targets.items():
            rows = judged[one] & is_positive.any(axis=1)
            if rows.any():
                found = subset_metrics(scores[one][rows], is_positive[rows], resamples)
                metrics[one][subset] = (int(rows.sum()), found)
    confusion: dict[str, float] = {}
    if BOTH in scores and len({"audio", "video"} & set(scores)) == 2:
        rows = judged["audio"] & judged["video"]
        if rows.any():
            parts = {one: scores[one][rows] for one in ("audio", "video", BOTH)}
            confusion = modality_confusion(parts, targets["all"][rows])
    own = predictions.targets[chosen].numpy() > 0.5
    accuracy = {
        one: float(hits_at(scores[one][judged[one]], own[judged[one]], 1).mean())
        for one in metrics
        if judged[one].any()
    }
    return ListResult(
        name, len(keys), len(labels.marks) - len(keys), len(predictions) - len(keys), metrics, confusion, accuracy
    )
