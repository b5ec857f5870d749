"""All numbers together: clips that lack something, the gap between modalities, and a second list of labels."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from mavil.evaluation.classification import score_clips
from mavil.evaluation.label_subsets import MarkedLabels
from mavil.evaluation.predictions import Predictions
from mavil.evaluation.results import judge
from mavil.structs import UserError

CLASSES = ("dog", "rain", "song")
NUM_CLIPS = 24


def predictions(gaps: bool) -> Predictions:
    """Audio is better than video; with ``gaps`` the first four clips have no sound."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.eye(3)[torch.arange(NUM_CLIPS) % 3]
    strength = {"audio": 1.5, "video": 0.5, "audio+video": 2.5}
    scores = {n: torch.randn(NUM_CLIPS, 3, generator=generator) + s * targets for n, s in strength.items()}
    if gaps:
        scores["audio"][:4] = torch.nan
    return Predictions([f"clip{i:02d}" for i in range(NUM_CLIPS)], CLASSES, targets, False, scores, {"data": "here"})


@pytest.mark.parametrize("gaps", [False, True])
def test_the_gap_is_of_the_clips_that_have_both(gaps: bool) -> None:
    given = predictions(gaps)
    results = judge(given, resamples=50)
    assert {name: scored.num_clips for name, scored in results.scored.items()} == {
        "audio": 20 if gaps else 24,
        "video": 24,
        "audio+video": 24,
    }
    (found,) = [gap for gap in results.gaps["audio+video"] if gap.metric == "accuracy"]
    rows = slice(4, None) if gaps else slice(None)
    own = {
        name: score_clips(given.scores[name][rows], given.targets[rows], CLASSES, False, 50)
        for name in ("audio", "audio+video")
    }
    samples = own["audio+video"].resampled["accuracy"] - own["audio"].resampled["accuracy"]
    assert (found.best_single, found.num_clips) == ("audio", 20 if gaps else 24)
    assert found.estimate.value == pytest.approx(samples[0])
    assert found.estimate.low == pytest.approx(float(torch.tensor(samples[1:]).quantile(0.025)))
    json.dumps(results.as_json(), allow_nan=False)
    assert results.as_json()["data"] == "here"


def test_without_both_there_is_no_gap_and_what_nobody_has_is_left_out() -> None:
    given = predictions(True)
    scores = {"audio": given.scores["audio"], "video": torch.full((NUM_CLIPS, 3), torch.nan)}
    results = judge(dataclasses.replace(given, scores=scores), resamples=0)
    assert set(results.scored) == {"audio"}
    assert results.gaps == {}
    assert results.scored["audio"].metrics["accuracy"].low != results.scored["audio"].metrics["accuracy"].low  # NaN


def test_a_list_of_labels_is_judged_beside_the_data_and_clips_are_counted_both_ways() -> None:
    given = predictions(True)
    marks = {key: {CLASSES[i % 3]: "AV", "song": "V"} for i, key in enumerate(given.keys) if i % 2 == 0}
    labels = MarkedLabels({**marks, "elsewhere": {"dog": "A"}})
    results = judge(given, 20, labels, "list.csv")
    listed = results.listed
    assert listed is not None
    assert (listed.num_clips, listed.without_prediction, listed.not_in_list) == (12, 1, 12)
    assert listed.metrics["audio"]["all"][0] == 10  # two of the twelve have no sound
    assert listed.metrics["video"]["all"][0] == 12
    assert listed.metrics["video"]["visible"][0] == 12
    # "song" is only visible for the clips whose own label it is.
    assert listed.metrics["video"]["audible"][0] == 8
    assert "audible only" not in listed.metrics["video"]
    rows = torch.arange(0, NUM_CLIPS, 2)
    own = score_clips(given.scores["video"][rows], given.targets[rows], CLASSES, False, 0)
    assert listed.own_accuracy["video"] == pytest.approx(own.metrics["accuracy"].value)
    assert set(listed.confusion) == {"audio", "video", "both", "either"}
    tree = results.as_json()["labels"]
    assert tree["metrics"]["video"]["all"]["num_clips"] == 12
    assert tree["metrics"]["video"]["all"]["hit_at_1"]["value"] == listed.metrics["video"]["all"][1]["hit_at_1"].value
    with pytest.raises(
        UserError, match=r"list\.csv: names none of the 24 evaluated clips \(it has e\.g\. 'x', the data 'clip00'"
    ):
        judge(given, 0, MarkedLabels({"x": {"dog": ""}}), "list.csv")
