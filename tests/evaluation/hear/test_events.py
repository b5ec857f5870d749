"""Frames to events and back, and event metrics, against cases worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mavil.evaluation.hear.event_scores import matched_f_measure, segment_error_rate
from mavil.evaluation.hear.events import Event, events_of, frame_targets
from mavil.evaluation.hear.grid import Postprocessing
from mavil.evaluation.hear.scores import event_metrics

LABELS = ("dog", "cat")
NOTHING = Postprocessing(0.0, 0.0)


def test_a_frame_belongs_to_an_event_from_its_start_to_its_end() -> None:
    times = np.array([0.0, 50.0, 100.0, 150.0, 200.0])
    targets = frame_targets([Event("cat", 50.0, 150.0), Event("dog", 60.0, 90.0)], times, LABELS)
    assert targets.T.tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0]]


def test_events_last_from_their_first_to_their_last_frame() -> None:
    times = np.array([0.0, 50.0, 100.0, 150.0, 200.0, 250.0])
    probabilities = np.array([[0.9, 0.0], [0.8, 0.5], [0.1, 0.6], [0.7, 0.7], [0.2, 0.6], [0.3, 0.9]])
    # 0.5 is not above the threshold; a run that reaches the end is an event; a single frame lasts 0 ms.
    assert events_of(probabilities, times, LABELS, NOTHING) == [
        Event("dog", 0.0, 50.0),
        Event("dog", 150.0, 150.0),
        Event("cat", 100.0, 250.0),
    ]
    assert events_of(probabilities, times, LABELS, Postprocessing(0.0, 50.0)) == [
        Event("dog", 0.0, 50.0),
        Event("cat", 100.0, 250.0),
    ]
    # Three frames wide: the gap and the single frame after it are smoothed away.
    assert [e for e in events_of(probabilities, times, LABELS, Postprocessing(150.0, 0.0)) if e.label == "dog"] == [
        Event("dog", 0.0, 100.0)
    ]
    assert events_of(probabilities[:1], times[:1], LABELS, Postprocessing(250.0, 0.0)) == [Event("dog", 0.0, 0.0)]


def test_as_many_events_as_possible_are_matched() -> None:
    """Taking the nearest first would leave the second true event alone."""
    true = {"a": [Event("dog", 1000, 1500), Event("dog", 1300, 2000), Event("cat", 5000, 5100)]}
    found = {"a": [Event("dog", 1150, 1400), Event("dog", 850, 1000), Event("dog", 5000, 5100)]}
    scores = matched_f_measure(true, found, 0.2)
    assert scores == pytest.approx({"f_measure": 2 / 3, "precision": 2 / 3, "recall": 2 / 3})
    assert matched_f_measure(true, found, 0.1)["f_measure"] == 0.0
    # At the collar is inside, one event matches once, and files do not mix.
    assert matched_f_measure({"a": [Event("dog", 0, 9)]}, {"a": [Event("dog", 200, 9)] * 2}, 0.2)["precision"] == 0.5
    assert matched_f_measure({"a": [Event("dog", 0, 9)]}, {"b": [Event("dog", 0, 9)]}, 0.2)["f_measure"] == 0.0


def test_offsets_may_be_off_by_the_collar_or_a_share_of_the_length() -> None:
    true = {"a": [Event("dog", 0, 1000), Event("dog", 5000, 5100)]}
    found = {"a": [Event("dog", 40, 1190), Event("dog", 5000, 5060)]}
    assert matched_f_measure(true, found, 0.05, 0.2)["f_measure"] == 1.0
    found = {"a": [Event("dog", 40, 1210), Event("dog", 5000, 5160)]}
    assert matched_f_measure(true, found, 0.05, 0.2)["f_measure"] == 0.0
    assert matched_f_measure(true, found, 0.05)["f_measure"] == 1.0


def test_matching_against_every_assignment() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        starts = random.uniform(0, 1000, (2, 4))
        true, found = ([Event("dog", start, start) for start in row] for row in starts)
        best = max(
            sum(abs(a.start_ms - b.start_ms) <= 200 for a, b in zip(true, order, strict=True))
            for order in itertools.permutations(found)
        )
        assert matched_f_measure({"a": true}, {"a": found}, 0.2)["recall"] == best / 4


def test_no_predicted_event_is_no_success_and_not_undefined() -> None:
    scores = matched_f_measure({"a": [Event("dog", 0, 9)]}, {"a": []}, 0.2)
    assert scores["f_measure"] == scores["recall"] == 0.0
    assert math.isnan(scores["precision"])
    assert math.isnan(matched_f_measure({"a": []}, {"a": []}, 0.2)["f_measure"])


def test_segment_error_rate_by_hand() -> None:
    # Segments:  0    1    2    3
    # true       dog  dog  cat  -      3 active
    # found      dog  cat  -    cat    one substitution, one deletion, one insertion
    true = {"a": [Event("dog", 0, 1500), Event("cat", 2000, 2100)]}
    found = {"a": [Event("dog", 100, 1000), Event("cat", 1200, 1300), Event("cat", 3000, 3500)]}
    assert segment_error_rate(true, found, LABELS, 1.0) == 1.0
    assert segment_error_rate(true, true, LABELS, 1.0) == 0.0
    assert segment_error_rate(true, {"a": []}, LABELS, 1.0) == 1.0
    # Both classes in one segment: wrong pairs count once as substitution, what is too much as insertion.
    both = {"a": [Event("dog", 0, 900), Event("cat", 0, 900)]}
    assert segment_error_rate({"a": [Event("dog", 0, 900)]}, both, LABELS, 1.0) == 1.0
    assert segment_error_rate(both, {"a": [Event("dog", 0, 900)]}, LABELS, 1.0) == 0.5
    assert math.isnan(segment_error_rate({"a": []}, found, LABELS, 1.0))


def test_metrics_have_the_benchmarks_names() -> None:
    true = {"a": [Event("dog", 0, 1000)]}
    found = {"a": [Event("dog", 100, 1000)]}
    names = ("event_onset_200ms_fms", "event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms", "segment_1s_er")
    metrics = event_metrics(names, true, found, LABELS)
    assert [metrics[name] for name in names] == [1.0, 0.0, 0.0, 0.0]
    assert metrics["event_onset_200ms_fms_precision"] == 1.0
