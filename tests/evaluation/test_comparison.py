from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from mavil.evaluation.comparison import class_differences, differences, pair
from mavil.evaluation.p_values import holm
from mavil.evaluation.predictions import Predictions
from mavil.structs import UserError

CLASSES = ("bell", "dog", "rain")
NUM_CLIPS = 60


def run(skill: float, seed: int, num_clips: int = NUM_CLIPS, shown: tuple[str, ...] = ("audio",)) -> Predictions:
    """Noise plus ``skill`` at the right class; clip i has class i mod 3."""
    targets = torch.eye(3)[torch.arange(num_clips) % 3]
    noise = torch.randn(len(shown), num_clips, 3, generator=torch.Generator().manual_seed(seed))
    scores = {name: skill * targets + noise[i] for i, name in enumerate(shown)}
    return Predictions([f"clip{i:03d}" for i in range(num_clips)], CLASSES, targets, False, scores)


def accuracy(scores: Tensor, targets: Tensor) -> float:
    return (scores.argmax(1) == targets.argmax(1)).double().mean().item()


def test_a_better_run_is_found_better_and_another_draw_of_it_is_not() -> None:
    weak, strong = run(0.5, 0), run(3.0, 1)
    by_metric = {one.metric: one for one in differences(pair({"weak": [weak], "strong": [strong]}), 500)}
    found = by_metric["accuracy"]
    assert found.baseline == pytest.approx(accuracy(weak.scores["audio"], weak.targets))
    assert found.value == pytest.approx(accuracy(strong.scores["audio"], strong.targets))
    assert 0 < found.low < found.difference < found.high
    # No resample is on the other side.
    assert found.p == pytest.approx(1 / 501)
    assert found.p_mcnemar is not None
    assert found.p_mcnemar < 1e-4
    # Of a mean of differences the bootstrap's spread is the standard error.
    right = [(s.scores["audio"].argmax(1) == s.targets.argmax(1)).double() for s in (weak, strong)]
    error = (right[1] - right[0]).std(correction=0).item() / NUM_CLIPS**0.5
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.15)
    assert by_metric["map"].low > 0
    # The other way round it is as much worse, and as surely.
    turned = {one.metric: one for one in differences(pair({"strong": [strong], "weak": [weak]}), 500)}["accuracy"]
    assert (turned.difference, turned.low, turned.high) == (-found.difference, -found.high, -found.low)
    assert turned.p == found.p
    for one in differences(pair({"a": [run(1.0, 2)], "b": [run(1.0, 3)]}), 500):
        assert one.low < 0 < one.high
        assert one.p > 0.05


def test_a_run_against_itself_differs_by_nothing() -> None:
    same = run(1.0, 0)
    for one in differences(pair({"a": [same], "b": [same]}), 200):
        assert (one.difference, one.low, one.high, one.p) == (0, 0, 0, 1)
        assert one.p_mcnemar in (1, None)


def test_clips_are_paired_by_key_and_classes_by_name() -> None:
    first, second = run(1.0, 0), run(3.0, 1)
    expected = differences(pair({"a": [first], "b": [second]}), 100)
    order = [2, 0, 1]
    reordered = Predictions(
        second.keys, tuple(CLASSES[c] for c in order), second.targets[:, order], False,
        {"audio": second.scores["audio"][:, order]},
    )  # fmt: skip
    assert differences(pair({"a": [first], "b": [reordered]}), 100) == expected
    # Other clips on either side change which clips are used and nothing else.
    early = Predictions(first.keys[:-6], CLASSES, first.targets[:-6], False, {"audio": first.scores["audio"][:-6]})
    late = Predictions(second.keys[9:], CLASSES, second.targets[9:], False, {"audio": second.scores["audio"][9:]})
    paired = pair({"a": [early], "b": [late]})
    assert paired.keys == first.keys[9:-6]
    assert paired.left_out == {"a": [9], "b": [6]}
    found = next(one for one in differences(paired, 100) if one.metric == "accuracy")
    assert found.num_clips == NUM_CLIPS - 15
    assert found.baseline == pytest.approx(accuracy(first.scores["audio"][9:-6], first.targets[9:-6]))


def test_clips_without_scores_are_left_out_of_what_was_shown() -> None:
    first, second = run(1.0, 0, shown=("audio", "video")), run(2.0, 1, shown=("audio", "video", "audio+video"))
    second.scores["video"][:10] = torch.nan
    paired = pair({"a": [first], "b": [second]})
    assert paired.dropped == ["audio+video"]
    found = {(one.shown, one.metric): one for one in differences(paired, 100)}
    assert found["audio", "accuracy"].num_clips == NUM_CLIPS
    assert found["video", "accuracy"].num_clips == NUM_CLIPS - 10
    assert found["video", "accuracy"].baseline == pytest.approx(
        accuracy(first.scores["video"][10:], first.targets[10:])
    )


def test_seeds_are_averaged() -> None:
    seeds = [run(1.0, seed) for seed in (0, 1, 2)]
    found = next(iter(differences(pair({"a": seeds, "b": [run(2.0, 3)]}), 300)))
    values = [accuracy(one.scores["audio"], one.targets) for one in seeds]
    assert found.baseline_by_run == pytest.approx(values)
    assert found.baseline == pytest.approx(np.mean(values))
    assert found.p_mcnemar is None
    single = next(iter(differences(pair({"a": seeds[:1], "b": [run(2.0, 3)]}), 300)))
    # The mean of three has less noise of its own.
    assert found.high - found.low < single.high - single.low


def test_progress_is_told_of_every_run_and_thing_shown_to_its_end() -> None:
    shown = ("audio", "video")
    sides = {"a": [run(1.0, 2, shown=shown)], "b": [run(1.0, 3, shown=shown), run(1.0, 4, shown=shown)]}
    told: dict[str, list[tuple[int, int]]] = {}
    differences(pair(sides), 100, lambda name: lambda done, total: told.setdefault(name, []).append((done, total)))
    names = ("a", "b, run 1", "b, run 2")
    assert list(told) == [f"{name}, {one}" for one in shown for name in names]
    assert all(steps == [(1, 3), (2, 3), (3, 3)] for steps in told.values())


def test_what_cannot_be_compared_is_refused() -> None:
    first = run(1.0, 0)
    other = replace(first, classes=("bell", "dog", "snow"))
    with pytest.raises(UserError, match=r"2 are not in both, e\.g\. 'rain': only runs with the same classes"):
        pair({"a": [first], "b": [other]})
    with pytest.raises(UserError, match="no clip is in all of them"):
        pair({"a": [first], "b": [replace(first, keys=[f"other{key}" for key in first.keys])]})
    changed = first.targets.clone()
    changed[7] = changed[7].roll(1)
    with pytest.raises(UserError, match="other labels for 1 of 60 clips, first 'clip007'"):
        pair({"a": [first], "b": [replace(first, targets=changed)]})
    with pytest.raises(UserError, match="one label per clip and b with several"):
        pair({"a": [first], "b": [replace(first, multi_label=True)]})
    with pytest.raises(UserError, match="no modality was shown to all"):
        pair({"a": [first], "b": [run(1.0, 0, shown=("video",))]})


def test_classes_are_told_by_the_size_of_their_difference() -> None:
    first, second = run(1.0, 0), run(1.0, 0)
    labels = first.targets[:, 0] > 0
    second.scores["audio"][:, 0] += 5 * first.targets[:, 0]  # bell is now perfect
    second.scores["audio"][:, 2] *= -1
    found = class_differences(pair({"a": [first], "b": [second]}))
    assert [(one.name, one.difference > 0) for one in found] == [("bell", True), ("rain", False)]
    assert found[0].value == 1
    assert found[0].num_positive == int(labels.sum())
    assert found[0].baseline == pytest.approx(average_precision_score(labels, first.scores["audio"][:, 0]))


def test_several_runs_are_corrected_for_their_number() -> None:
    sides = {"base": [run(1.0, 0)], "same": [run(1.0, 1)], "better": [run(1.8, 2)]}
    found = [one for one in differences(pair(sides), 300) if one.metric == "accuracy"]
    assert [one.side for one in found] == ["same", "better"]
    assert [one.p_holm for one in found] == pytest.approx(holm([one.p for one in found]))
    assert found[1].p_holm > found[1].p or found[1].p_holm == 1
