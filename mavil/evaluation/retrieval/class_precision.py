"""How well clips of the same class are found: average precision of every query, with any shared label as relevance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mavil.evaluation.nearest import blocks_of
from mavil.evaluation.retrieval.standings import SAME, Sides

LARGEST = 50_000
"""Clips: every query needs the order of the whole gallery, which takes hours for more [our choice]."""
_QUERIES_AT_ONCE = 256


def shared_labels(labels: Sequence[Sequence[str]]) -> Tensor:
    """``[n, classes]`` float32: 1 where a clip has a class, classes in the order in which they come."""
    numbers: dict[str, int] = {}
    for names in labels:
        for name in names:
            numbers.setdefault(name, len(numbers))
    marks = torch.zeros(len(labels), len(numbers))
    for row, names in enumerate(labels):
        marks[row, [numbers[name] for name in names]] = 1
    return marks


def class_precisions(
    queries: Tensor, gallery: Tensor, labels: Sequence[Sequence[str]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Average precision ``[n]`` float64 in [0, 1] of each query, and what a random order gives on average ``[n]``.

    Relevant are the gallery items that share a label with the query, its own answer among them. Of equal similarities every
    order is equally likely, and the mean over these orders is the value [source McSherry and Najork, 2008, for average
    precision], so that a constant embedding gives exactly the second number.

    Args:
        queries: ``[n, Z]`` or ``[n, W, Z]``, see :class:`mavil.evaluation.retrieval.standings.Sides`.
        gallery: of the same shape.
        labels: of each clip. One without any has NaN.
        device: where it is computed.

    Raises:
        UserError: an embedding is not finite.
        ValueError: shapes or lengths differ.
    """
    place = torch.device(device)
    sides, marks = Sides.of(queries, gallery, place), shared_labels(labels).to(place)
    if len(marks) != sides.num_clips:
        raise ValueError(f"{len(marks)} lists of labels for {sides.num_clips} queries: give one per clip")
    found, chance = [], []
    whole = slice(0, sides.num_clips)
    for some in blocks_of(sides.num_clips, max(1, _QUERIES_AT_ONCE // sides.windows)):
        relevant = (marks[some] @ marks.T) > 0
        similarity, order = sides.exact(some, whole).sort(dim=1, descending=True)
        found.append(_expected_precision(similarity, relevant.gather(1, order)).cpu())
        chance.append(_expected_precision(torch.zeros_like(similarity), relevant).cpu())
    return torch.cat(found), torch.cat(chance)


def _expected_precision(similarity: Tensor, relevant: Tensor) -> Tensor:
    """``[b]`` of rows in falling order of ``similarity`` ``[b, n]``, ``relevant`` ``[b, n]`` bool in the same order.

    In a group of t equals with r relevant ones, behind R relevant ones, every place holds a relevant item with probability
    r / t, and one at the i-th place of the group (from 0) then has R + 1 + i (r - 1) / (t - 1) relevant ones up to itself.
    """
    number = similarity.shape[1]
    place = torch.arange(number, device=similarity.device).expand_as(relevant)
    begins = torch.ones_like(relevant)
    begins[:, 1:] = similarity[:, :-1] - similarity[:, 1:] > SAME
    start = torch.where(begins, place, 0).cummax(dim=1).values
    ends = torch.ones_like(relevant)
    ends[:, :-1] = begins[:, 1:]
    # The next end from every place on: running minima from behind.
    end = torch.where(ends, place, number).flip(1).cummin(dim=1).values.flip(1)
    upto = torch.nn.functional.pad(relevant.double().cumsum(dim=1), (1, 0))
    before, within = upto.gather(1, start), upto.gather(1, end + 1) - upto.gather(1, start)
    size = (end - start + 1).double()
    above = before + 1 + (place - start) * (within - 1) / (size - 1).clamp(min=1)
    precision = within / size * above / (place + 1)
    total = upto[:, -1]
    return torch.where(total > 0, precision.sum(dim=1) / total, torch.nan)
