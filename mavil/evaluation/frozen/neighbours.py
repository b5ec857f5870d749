"""The nearest-neighbour probe: the training clips that are most alike vote for their classes; nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mavil.evaluation.frozen.fitting import Progress
from mavil.evaluation.frozen.labelled import ROWS_AT_ONCE, Features, Labelled
from mavil.evaluation.frozen.selection import Scorer

NUMBERS = (1, 5, 10, 20, 50)
"""Neighbours among which validation chooses; fewer come first: of equal scores the first counts [our choice]."""
NO_GRID = (20,)
"""[source DINO's best on ImageNet]"""
TEMPERATURE = 0.07
"""Divisor of the cosine: a neighbour's vote is ``exp(cosine / 0.07)`` [source DINO]."""
_QUERIES_AT_ONCE = 1024


@dataclass(frozen=True)
class Neighbours:
    """How many neighbours vote."""

    k: int


class Found(NamedTuple):
    """The nearest training clips of each query, nearest first: ``cosines`` and ``places`` ``[q, k]``."""

    cosines: Tensor
    places: Tensor


@dataclass(frozen=True)
class NearestNeighbours:
    """Votes of the k nearest training clips by cosine, weighted [source DINO].

    With several modalities the cosine is the mean of theirs [our choice: neither outweighs the other by its scale]. With
    several labels per clip a neighbour votes for all of its labels [our choice].
    """

    device: torch.device
    progress: Progress
    numbers: Sequence[int] = NUMBERS
    name: str = "knn"

    def trials(self, train: Labelled, features: Features, seed: int) -> Iterator[tuple[Neighbours, Tensor]]:
        """Every k with its scores ``[n, C]`` of ``features``; the search is done once. ``seed`` is not used."""
        found = nearest(train.features, features, min(max(self.numbers), len(train)), self.device, self.progress)
        for k in dict.fromkeys(min(k, len(train)) for k in self.numbers):
            yield Neighbours(k), votes(found, train.targets, k)

    def fit(self, train: Labelled, point: Neighbours, seed: int) -> Scorer:
        """One k; ``seed`` is not used."""
        k = min(point.k, len(train))
        return lambda features: votes(
            nearest(train.features, features, k, self.device, self.progress), train.targets, k
        )


def nearest(bank: Features, queries: Features, k: int, device: torch.device, progress: Progress) -> Found:
    """The k rows of ``bank`` that are most alike to each row of ``queries``; both are read in pieces, none is kept whole."""
    cosines, places = [], []
    done = 0
    for query in queries.batches(_QUERIES_AT_ONCE, device):
        directions = _directions(query)
        best = Found(torch.empty(len(directions), 0), torch.empty(len(directions), 0, dtype=torch.int64))
        best = Found(*(part.to(device) for part in best))
        first = 0
        for piece in bank.batches(ROWS_AT_ONCE, device):
            others = _directions(piece)
            found = (directions @ others.T).topk(min(k, len(others)), dim=1)
            both = torch.cat([best.cosines, found.values], dim=1)
            their_places = torch.cat([best.places, found.indices + first], dim=1)
            kept = both.topk(min(k, both.shape[1]), dim=1)
            best = Found(kept.values, their_places.gather(1, kept.indices))
            first += len(others)
        cosines.append(best.cosines.cpu())
        places.append(best.places.cpu())
        done += len(directions)
        progress(done, len(queries))
    return Found(torch.cat(cosines), torch.cat(places))


def votes(found: Found, targets: Tensor, k: int) -> Tensor:
    """Shares ``[q, C]`` of the votes of the ``k`` nearest, whose ``targets`` are ``[n, C]`` bool."""
    # The largest is subtracted, so that nothing overflows; shares stay the same.
    weights = torch.softmax(found.cosines[:, :k].double() / TEMPERATURE, dim=1).float()
    scores = torch.zeros(len(weights), targets.shape[1])
    for place in range(weights.shape[1]):
        scores += weights[:, place, None] * targets[found.places[:, place]].float()
    return scores


def _directions(inputs: Sequence[Tensor]) -> Tensor:
    """``[b, D_m]`` of each modality to ``[b, D]`` of length one; products are mean cosines."""
    return torch.cat([functional.normalize(values, dim=1) for values in inputs], dim=1) / len(inputs) ** 0.5
