"""Sound events and frames: which frames an event covers, and which events frame-wise probabilities mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter

from mavil.evaluation.hear.grid import Postprocessing

THRESHOLD = 0.5
"""Probabilities above it are active frames [source heareval]."""
_END_INCLUDED_MS = 1e-4
"""A frame exactly at the end of an event still belongs to it [source heareval]."""


@dataclass(frozen=True)
class Event:
    """Something that sounds from ``start_ms`` to ``end_ms``."""

    label: str
    start_ms: float
    end_ms: float


def frame_targets(events: Sequence[Event], timestamps_ms: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """``[t, classes]`` float32, 1 where an event of that class covers the timestamp, its end included.

    ``timestamps_ms`` is ``[t]``, ``labels`` the classes in order.
    """
    index = {label: i for i, label in enumerate(labels)}
    targets = np.zeros((len(timestamps_ms), len(labels)), dtype=np.float32)
    for event in events:
        inside = (timestamps_ms >= event.start_ms) & (timestamps_ms < event.end_ms + _END_INCLUDED_MS)
        targets[inside, index[event.label]] = 1.0
    return targets


def events_of(
    probabilities: np.ndarray, timestamps_ms: np.ndarray, labels: Sequence[str], how: Postprocessing
) -> list[Event]:
    """Runs of frames above ``THRESHOLD`` after a median filter over time, without those that are too short.

    An event lasts from the timestamp of its first frame to that of its last one, so a single frame lasts 0 ms [source
    heareval].

    Args:
        probabilities: ``[t, classes]`` of one file.
        timestamps_ms: ``[t]``, ascending.
        labels: the classes in order.
        how: width of the filter and shortest event.
    """
    if len(timestamps_ms) > 1:
        width = round(how.median_filter_ms / float(np.mean(np.diff(timestamps_ms))))
        if width:
            probabilities = median_filter(probabilities, size=(width, 1))
    is_active = np.zeros((len(timestamps_ms) + 2, len(labels)), dtype=np.int8)
    is_active[1:-1] = probabilities > THRESHOLD
    changes = np.diff(is_active, axis=0)
    events = []
    for column, label in enumerate(labels):
        first = np.flatnonzero(changes[:, column] == 1)
        last = np.flatnonzero(changes[:, column] == -1) - 1
        for start, end in zip(timestamps_ms[first].tolist(), timestamps_ms[last].tolist(), strict=True):
            if end - start >= how.min_duration_ms:
                events.append(Event(label, start, end))
    return events
