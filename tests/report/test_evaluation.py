"""The evaluation's part of a page: every number that must be there, and names that are text and not HTML."""

from __future__ import annotations

import re

import pytest
import torch

from mavil.evaluation.label_subsets import MarkedLabels
from mavil.evaluation.predictions import Predictions
from mavil.evaluation.results import Results, judge
from mavil.report.evaluation import MOST_CLASSES, evaluation_sections


def results(num_classes: int, multi_label: bool) -> Results:
    """Of 140 clips; nobody has the last class."""
    generator = torch.Generator().manual_seed(0)
    classes = tuple(f"<class {i}>" for i in range(num_classes))
    targets = torch.eye(num_classes)[torch.arange(140) % (num_classes - 1)]
    if multi_label:
        targets[:, 0] = (torch.rand(140, generator=generator) < 0.3).float()
    names = ("audio", "video", "audio+video")
    scores = {name: torch.randn(140, num_classes, generator=generator) + targets for name in names}
    keys = [f"{i:03d}" for i in range(140)]
    labels = MarkedLabels({key: {classes[i % 3]: "AV"} for i, key in enumerate(keys)})
    return judge(Predictions(keys, classes, targets, multi_label, scores), 5, labels, "list.csv")


def text_of(found: Results) -> str:
    return "".join(block.html() for section in evaluation_sections(found) for block in section.blocks)


@pytest.mark.parametrize("multi_label", [False, True])
def test_everything_is_on_the_page(multi_label: bool) -> None:
    found = results(5, multi_label)
    html = text_of(found)
    assert [section.title for section in evaluation_sections(found)] == [
        *("Metrics", "Labels of a list", "Calibration", "Classes", "Pairs of classes")
    ]
    for scored in found.scored.values():
        for estimate in scored.metrics.values():
            assert f"{estimate.value:.3f} ({estimate.low:.3f} – {estimate.high:.3f})" in html
        assert f"{scored.calibration.ece:.4f}" in html
        pair = scored.pairs[0]
        assert f"{pair.wrong:g} of {pair.clips}" in html
    (gap, _) = found.gaps["audio+video"]
    assert f"{gap.estimate.value:+.3f}" in html
    assert ("B above A" in html) == multi_label
    assert html.count("<polyline") == 6
    assert "<class" not in html
    assert "&lt;class 4&gt;" in html  # without a clip, and told all the same
    assert re.search(r"&lt;class 4&gt;</th><td>0</td><td>–</td>", html)


def test_many_classes_are_cut_to_the_best_and_the_worst() -> None:
    found = results(MOST_CLASSES + 12, False)
    tables = next(section for section in evaluation_sections(found) if section.title == "Classes").blocks
    html = tables[0].html()
    assert html.count("<tr>") - 1 == MOST_CLASSES
    kept = sorted(
        (row for row in found.scored["audio"].classes if row.positives), key=lambda row: row.average_precision
    )
    assert f"{kept[0].average_precision:.3f}" in html
    assert f"{kept[-1].average_precision:.3f}" in html
