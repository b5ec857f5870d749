"""Settings of a probe, chosen on validation clips.

What is done here is done without the clips that are evaluated: no function takes them or their labels, and the probe that
comes out is fixed before anybody shows it their features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

from mavil.evaluation.frozen.labelled import Features, Labelled
from mavil.evaluation.metrics import classification_metrics

Scorer = Callable[[Features], Tensor]
"""From features of clips to scores ``[n, C]``."""


class Kind(Protocol):
    """A kind of probe; its points are dataclasses of numbers."""

    @property
    def name(self) -> str:
        """What people call it."""

    def trials(self, train: Labelled, features: Features, seed: int) -> Iterator[tuple[Any, Tensor]]:
        """Every point of its grid with its scores ``[n, C]`` of ``features`` after learning from ``train``."""

    def fit(self, train: Labelled, point: Any, seed: int) -> Scorer:
        """One point, after learning from ``train``."""


@dataclass(frozen=True)
class Known:
    """All that a probe may learn from and be chosen on."""

    train: Labelled
    validation: Labelled


@dataclass(frozen=True)
class Trial:
    """A point of the grid and its score on the validation clips, in [0, 1]."""

    point: dict[str, float]
    score: float


@dataclass(frozen=True)
class Probe:
    """A probe whose settings are chosen: the best of ``trials``, fitted again to training and validation clips together."""

    scorer: Scorer
    chosen: Trial
    trials: list[Trial]


def headline(is_multi_label: bool) -> str:
    """The metric that decides: mean average precision where clips have several labels, else top-1 accuracy."""
    return "map" if is_multi_label else "accuracy"


def make_probe(kind: Kind, known: Known, is_multi_label: bool, seed: int) -> Probe:
    """Try the grid, choose by the validation clips (of equal scores the first), fit to all known clips.

    Args:
        kind: what is fitted.
        known: training and validation clips.
        is_multi_label: whether the known clips have several labels.
        seed: of weights and orders.
    """
    metric = headline(is_multi_label)
    trials, best = [], None
    for point, scores in kind.trials(known.train, known.validation.features, seed):
        found = classification_metrics(scores, known.validation.targets, is_multi_label)
        trial = Trial(asdict(point), found[metric])
        trials.append(trial)
        if best is None or trial.score > best[1].score:
            best = (point, trial)
    assert best is not None  # no grid is empty
    scorer = kind.fit(known.train.joined(known.validation), best[0], seed)
    return Probe(scorer, best[1], trials)
