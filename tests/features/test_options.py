from __future__ import annotations

import pytest

from mavil.features.options import FeatureOptions, split_source
from mavil.structs import UserError


def test_options_and_settings_behind_the_question_mark() -> None:
    path, options, changes = split_source(
        "runs/mine?layers=mean3&sample_rate=48000&audio.num_steps=512&trainer.device=cpu"
    )
    assert path == "runs/mine"
    assert options == FeatureOptions(layers="mean3", sample_rate=48_000)
    assert changes == ["audio.num_steps=512", "trainer.device=cpu"]
    assert split_source("runs/mine") == ("runs/mine", FeatureOptions(), [])


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("layer=3", "layers"),
        ("layers", "NAME=VALUE"),
        ("layers=mean0", "mean3"),
        ("layers=first", "mean3"),
        ("sample_rate=8000", "48000"),
        ("sample_rate=fast", "48000"),
        ("bands=all", "joined or mean"),
        ("chunks=short", "exact or padded"),
        ("timestamps=late", "centred or from_zero"),
    ],
)
def test_a_wrong_option_is_told_with_the_right_ones(query: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        split_source(f"runs/mine?{query}")
