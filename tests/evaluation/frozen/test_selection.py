"""Choice by validation clips, and that there is no way for the evaluated ones to take part in it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mavil.evaluation.frozen.labelled import Features, Labelled
from mavil.evaluation.frozen.selection import Known, Scorer, Trial, make_probe
from tests.evaluation.frozen.clusters import blobs


@dataclass(frozen=True)
class Share:
    right: float


@dataclass
class Pretender:
    """Knows the validation clips, and is right about as many of them as its point says."""

    truth: Tensor  # [n, C] float
    shares: tuple[float, ...]
    calls: list[tuple[object, ...]] = field(default_factory=list)
    name: str = "pretender"

    def trials(self, train: Labelled, features: Features, seed: int) -> Iterator[tuple[Share, Tensor]]:
        self.calls.append(("trials", len(train), len(features), seed))
        for share in self.shares:
            number = round(share * len(self.truth))
            yield Share(share), torch.cat([self.truth[:number], -self.truth[number:]])

    def fit(self, train: Labelled, point: Share, seed: int) -> Scorer:
        self.calls.append(("fit", len(train), point, seed))
        return lambda features: torch.zeros(len(features), 3)


def test_the_best_on_validation_is_fitted_again_to_all_known_clips() -> None:
    train, validation = blobs(30), blobs(10, seed=1)
    kind = Pretender(validation.targets.float(), (0.5, 0.9, 0.2, 0.9))
    found = make_probe(kind, Known(train, validation), is_multi_label=False, seed=5)
    assert found.chosen == Trial({"right": 0.9}, 0.9)
    assert [trial.score for trial in found.trials] == [0.5, 0.9, 0.2, 0.9]
    assert kind.calls == [("trials", 30, 10, 5), ("fit", 40, Share(0.9), 5)]


def test_of_equal_scores_the_first_point_counts_and_several_labels_are_judged_by_precision() -> None:
    validation = blobs(9, seed=1)
    kind = Pretender(validation.targets.float(), (1.0, 1.0, 0.0))
    found = make_probe(kind, Known(blobs(30), validation), is_multi_label=True, seed=0)
    assert kind.calls[-1][2] is not None
    assert [trial.score for trial in found.trials][:2] == [1.0, 1.0]
    assert found.trials[2].score < 1.0  # an accuracy would not be there at all
    assert found.chosen is found.trials[0]


def test_nothing_that_chooses_can_be_given_evaluated_clips() -> None:
    """The probe is fixed when its maker returns, and the maker's arguments hold known clips only."""
    assert set(inspect.signature(make_probe).parameters) == {"kind", "known", "is_multi_label", "seed"}
    assert set(Known.__dataclass_fields__) == {"train", "validation"}
    validation = blobs(10, seed=1)
    kind = Pretender(validation.targets.float(), (0.5, 0.9))
    found = make_probe(kind, Known(blobs(30), validation), is_multi_label=False, seed=0)
    calls = list(kind.calls)
    found.scorer(Features([[np.zeros((4, 6), dtype=np.float32)]]))
    assert kind.calls == calls
