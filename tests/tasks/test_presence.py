from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mavil.structs import MODALITIES, Inputs
from mavil.tasks.presence import dropped_presence
from tests.support.recipes import random_inputs, slice_inputs


def many_clips(audio_present: Tensor | None = None, video_present: Tensor | None = None) -> Inputs:
    values = torch.zeros(2000, 1)
    return Inputs(
        keys=[f"clip{i}" for i in range(2000)],
        seeds=torch.arange(2000),
        audio=values,
        video=values,
        audio_present=audio_present,
        video_present=video_present,
    )


def test_a_share_of_the_clips_loses_one_modality_and_none_loses_both() -> None:
    present = dropped_presence(many_clips(), MODALITIES, 0.4)
    audio, video = present["audio"], present["video"]
    assert audio is not None
    assert video is not None
    assert (audio | video).all()
    for flag in (audio, video):  # 400 of 2000 expected, with a deviation of 18
        assert abs(2000 - int(flag.sum()) - 400) < 60
    everybody = dropped_presence(many_clips(), MODALITIES, 1.0)
    assert everybody["audio"] is not None
    assert everybody["video"] is not None
    assert torch.equal(everybody["audio"], ~everybody["video"])


def test_clips_that_lack_one_already_keep_the_other() -> None:
    has_audio, has_video = torch.arange(2000) % 3 != 0, torch.arange(2000) % 3 != 1
    present = dropped_presence(many_clips(has_audio, has_video), MODALITIES, 1.0)
    audio, video = present["audio"], present["video"]
    assert audio is not None
    assert video is not None
    incomplete = ~(has_audio & has_video)
    assert torch.equal(audio[incomplete], has_audio[incomplete])
    assert torch.equal(video[incomplete], has_video[incomplete])
    assert torch.equal(audio[~incomplete], ~video[~incomplete])


def test_it_depends_on_the_clip_alone() -> None:
    inputs = random_inputs(8)
    together = dropped_presence(inputs, MODALITIES, 0.5)
    pieces = [dropped_presence(slice_inputs(inputs, start, start + 2), MODALITIES, 0.5) for start in range(0, 8, 2)]
    for modality, flag in together.items():
        assert flag is not None
        assert not flag.all()
        assert torch.equal(flag, torch.cat([part for piece in pieces if (part := piece[modality]) is not None]))


def test_nothing_is_taken_away_without_a_probability_or_a_second_modality() -> None:
    flag = torch.tensor([True, False, True])
    inputs = dataclasses.replace(random_inputs(3), video_present=flag)
    assert dropped_presence(inputs, MODALITIES, 0.0) == {"audio": None, "video": flag}
    assert dropped_presence(inputs, ("audio",), 1.0) == {"audio": None}
