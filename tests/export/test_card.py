"""The card says what is known and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from mavil.export.card import card_of
from mavil.export.origins import Licence, licence_of
from mavil.export.parts import Exported
from mavil.recipe import change_recipe
from tests.support.recipes import tiny_recipe

PARTS = {"audio_encoder": {"norm.weight": torch.ones(32)}}


def card(task: dict[str, Any] | None = None, **about: Any) -> str:
    recipe = change_recipe(tiny_recipe(**({"task": task} if task else {})), "audio.mean=-4.0", "audio.std=4.5")
    return card_of(Exported(recipe, PARTS, about), "owner/name")


def front_matter(text: str) -> dict[str, Any]:
    start, block, _ = text.split("---\n", 2)
    assert start == ""
    tree = yaml.safe_load(block)
    assert isinstance(tree, dict)
    return tree


def file(layout: str | None) -> dict[str, Any]:
    return {"kind": "file", "name": "first.pth", "role": "audio", "layout": layout}


def run(found: bool = True) -> dict[str, Any]:
    return {
        "kind": "run",
        "name": "stage1",
        "role": "weights",
        "found": found,
        "data": {"name": "shards/a", "clips": 1234},
    }


@pytest.mark.parametrize(
    ("starts", "own", "expected"),
    [
        ([], None, None),
        ([run()], None, None),
        ([], "apache-2.0", "apache-2.0"),
        (None, None, "unknown"),
        ([run(found=False)], None, "unknown"),
        ([file("audio_mae")], None, "cc-by-nc-4.0"),
        ([file("image_mae")], None, "cc-by-nc-4.0"),
        ([file("video_mae")], None, "cc-by-nc-4.0"),
        ([file("cav_mae")], None, "bsd-2-clause"),
        ([file("m2d")], None, "other"),
        ([file(None)], None, "unknown"),
        ([file("mae_ast")], None, "unknown"),
        ([file("cav_mae"), file(None)], None, "unknown"),
        ([file("cav_mae"), file("m2d"), run(found=False)], None, "other"),
        ([file("m2d"), run(), file("mae_st")], None, "cc-by-nc-4.0"),
        ([file("audio_mae")], "mit", "mit"),
    ],
)
def test_the_strictest_start_decides(
    starts: list[dict[str, Any]] | None, own: str | None, expected: str | None
) -> None:
    found = licence_of(starts, own)
    assert found.name == expected
    assert found.reasons  # also where the owner decides: what it began with stays to be read
    tree = front_matter(card(starts=starts, licence=own))
    assert tree.get("license") == expected
    assert ("license_name" in tree) == (expected == "other")


def test_an_owners_choice_does_not_hide_the_start() -> None:
    assert licence_of([file("audio_mae")], "mit") == Licence("mit", licence_of([file("audio_mae")], None).reasons)
    assert "CC-BY-NC 4.0 by Audio-MAE's LICENSE file" in card(starts=[file("audio_mae")], licence="mit")


def test_what_is_not_known_is_said() -> None:
    text = card()
    assert text.count("not measured") == 2
    assert "- trained on: not known" in text
    assert "step not known" in text
    assert "Licence of these weights: **unknown**" in text


def test_results_have_their_number_of_clips_chance_and_interval() -> None:
    rows = [
        {"shown": "audio", "metric": "map", "value": 0.46314, "low": 0.409, "high": 0.563},
        {"shown": "audio", "metric": "chance_map", "value": 0.1456, "low": None, "high": None},
        {"shown": "audio", "metric": "ece", "value": 0.2, "low": None, "high": None},
        {"shown": "audio", "metric": "num_clips", "value": 79.0, "low": None, "high": None},
        {"shown": "audio", "metric": "auc", "value": None, "low": None, "high": None},
    ]
    numbers = {"recall_at_1_percent": 12.5, "recall_at_1_percent_low": 7.5, "recall_at_1_percent_high": 17.5}
    ways = {"audio_to_video": {**numbers, "chance_at_1_percent": 3.125, "gallery_size": 32.0}}
    overlap = {"num_evaluation": 1079, "num_same_key": 5, "num_same_recording": 2, "num_same_content": None}
    text = card(
        evaluation={"data": "shards/test", "num_clips": 1079, "step": 60, "rows": rows, "overlap": overlap},
        retrieval={
            "data": "shards/test",
            "checkpoint": "best",
            "protocol": "per_class:5",
            "galleries": {"whole gallery": ways},
        },
        data={"train": {"name": "shards/train", "clips": 2048}, "evaluation": None},
        starts=[run()],
        averaged=True,
        step=60,
    )
    assert "| audio | map | 0.4631 | 0.409 to 0.563 | 0.1456 |" in text
    assert "| audio | ece | 0.2 |  |  |" in text
    assert "auc" not in text
    assert "N = 1,079 clips, checkpoint of step 60" in text
    assert "| whole gallery | 32 | audio to video | 12.5 (7.5 to 17.5) |  |  | 3.125 |  |  |" in text
    assert "protocol per_class:5, checkpoint best, percent" in text
    assert "Of these 1079 clips 5 are in its training set by key; 2 further ones" in text
    assert "Whether the model was trained on these clips: not compared" in text
    assert "- trained on: shards/train, 2,048 clips" in text
    assert "- stage1 (it began with its weights) was trained on: shards/a, 1,234 clips" in text
    assert "averaged weights" in text


def test_names_of_others_cannot_break_out_of_their_line() -> None:
    text = card(data={"train": {"name": "a\n# Heading |`<script>", "clips": None}})
    assert "- trained on: a # Heading /'&lt;script>, number of clips not known" in text


def test_the_lines_to_load_it_name_its_place_and_a_modality_it_has() -> None:
    assert 'm = mavil.load("owner/name")\nm.embed_audio("sound.wav")' in card()
    assert 'm.embed_video("clip.mp4")' in card(task={"kind": "classify", "modalities": ["video"]})
