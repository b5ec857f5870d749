"""How well predicted events agree with the true ones: F-measure of matched events, error rate of one-second segments.

Definitions of Mesaros et al., "Metrics for polyphonic sound event detection" (2016), as sed_eval computes them with its
defaults: the matching is the largest possible one ("optimal"), and everything is summed over all files and classes
before ratios are taken [source sed_eval].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from mavil.evaluation.hear.events import Event

Events = Mapping[str, Sequence[Event]]
"""The events of each file."""
_MS_PER_SECOND = 1000.0


def matched_f_measure(
    reference: Events, estimated: Events, collar_seconds: float, offset_ratio: float | None = None
) -> dict[str, float]:
    """F-measure, precision and recall of events that were found.

    A predicted event may match a true one of its class in its file if their onsets differ by at most the collar and, with
    ``offset_ratio``, their offsets by at most the larger of the collar and that share of the true event's length. Each event
    matches once; of all assignments the one with most matches counts.

    Args:
        reference: true events of each file.
        estimated: predicted events; the files of ``reference`` that it lacks are not looked at.
        collar_seconds: how far onsets may be apart.
        offset_ratio: also look at offsets; ``None`` does not.

    Returns:
        ``f_measure``, ``precision``, ``recall`` in [0, 1]. Without any predicted event the F-measure is 0 and the precision
        not a number [our choice: sed_eval's F-measure is then not a number either, which ends heareval's training].
    """
    matched = num_reference = num_estimated = 0
    for name, found in estimated.items():
        true = reference.get(name, ())
        matched += _num_matches(true, found, collar_seconds, offset_ratio)
        num_reference += len(true)
        num_estimated += len(found)
    total = num_reference + num_estimated
    return {
        "f_measure": 2 * matched / total if total else math.nan,
        "precision": matched / num_estimated if num_estimated else math.nan,
        "recall": matched / num_reference if num_reference else math.nan,
    }


def segment_error_rate(reference: Events, estimated: Events, labels: Sequence[str], segment_seconds: float) -> float:
    """Substitutions, deletions and insertions over all segments, as a share of the classes that are truly active.

    A class is active in each segment that one of its events touches. 0 is perfect, 1 is what predicting nothing gets; it can
    be larger. Not a number without any true event.
    """
    index = {label: i for i, label in enumerate(labels)}
    errors = active = 0
    for name, found in estimated.items():
        true = reference.get(name, ())
        end = max((event.end_ms for event in (*true, *found)), default=0.0) / _MS_PER_SECOND
        size = (math.ceil(end / segment_seconds), len(labels))
        wanted, given = _roll(true, index, size, segment_seconds), _roll(found, index, size, segment_seconds)
        correct, num_wanted, num_given = (wanted & given).sum(1), wanted.sum(1), given.sum(1)
        # Substitutions are the smaller, deletions or insertions the rest of what is wrong: together the larger count.
        errors += int((np.maximum(num_wanted, num_given) - correct).sum())
        active += int(num_wanted.sum())
    return errors / active if active else math.nan


def _num_matches(
    true: Sequence[Event], found: Sequence[Event], collar_seconds: float, offset_ratio: float | None
) -> int:
    """Of one file, both in any order. Classes do not mix, so each is matched by itself."""
    matches = 0
    for label in {event.label for event in true} & {event.label for event in found}:
        wanted, given = _times([e for e in true if e.label == label]), _times([e for e in found if e.label == label])
        fits = np.abs(wanted[:, None, 0] - given[None, :, 0]) <= collar_seconds
        if offset_ratio is not None:
            allowed = np.maximum(collar_seconds, offset_ratio * (wanted[:, 1] - wanted[:, 0]))
            fits &= np.abs(wanted[:, None, 1] - given[None, :, 1]) <= allowed[:, None]
        matches += int((maximum_bipartite_matching(csr_matrix(fits)) >= 0).sum())
    return matches


def _times(events: Sequence[Event]) -> np.ndarray:
    """``[n, 2]`` onsets and offsets in seconds: compared in seconds, as sed_eval does, ties at the collar are the same."""
    return np.array([(event.start_ms, event.end_ms) for event in events]) / _MS_PER_SECOND


def _roll(events: Sequence[Event], index: Mapping[str, int], size: tuple[int, int], seconds: float) -> np.ndarray:
    """``[segments, classes]`` bool."""
    roll = np.zeros(size, dtype=bool)
    for event in events:
        first = math.floor(event.start_ms / _MS_PER_SECOND / seconds)
        roll[first : math.ceil(event.end_ms / _MS_PER_SECOND / seconds), index[event.label]] = True
    return roll
