"""A teacher that was trained on other inputs, or has fewer layers than are asked for, is refused with both values."""

from __future__ import annotations

from typing import Any

import pytest

from mavil.commands.teachers import SAME_INPUTS, refuse_other_inputs
from mavil.config import Recipe
from mavil.recipe import change_recipe
from mavil.structs import MODALITIES, UserError
from tests.support.recipes import tiny_recipe

TEACHER = tiny_recipe(name="stage1", data={"missing_modality": "skip"})
STATISTICS = ["audio.mean=-4.25", "audio.std=4.5"]


def student_of(*changes: str, **settings: Any) -> Recipe:
    task = {"kind": "pretrain", "teacher": {"run": "runs/stage1", **settings}}
    return change_recipe(tiny_recipe(name="stage2", task=task), *changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["audio.seconds=0.7"], ["audio.seconds was 0.66, is 0.7", "set audio.seconds=0.66"]),
        (["audio.num_steps=128"], ["audio.num_steps was 64, is 128", "set audio.num_steps=64"]),
        (["audio.num_mel_bins=64"], ["audio.num_mel_bins was 32, is 64"]),
        (["audio.mean=-5.0", "audio.std=4.5"], ["audio.mean was -4.25, is -5.0", "set audio.mean=-4.25,"]),
        (["audio.mean=-4.25", "audio.std=4.0"], ["audio.std was 4.5, is 4.0", "set audio.std=4.5,"]),
        ([*STATISTICS, "audio.patch=[8,16]"], ["audio.patch was [16, 16], is [8, 16]", "set audio.patch=[16,16]"]),
        ([*STATISTICS, "audio.stride=[8,8]"], ["audio.stride was null, is [8, 8]", "set audio.stride=null,"]),
        ([*STATISTICS, "audio.spectrogram=slaney"], ["audio.spectrogram was kaldi_hann, is slaney"]),
        ([*STATISTICS, "audio.std_factor=1"], ["audio.std_factor was 2.0, is 1.0", "set audio.std_factor=2.0,"]),
        (
            [*STATISTICS, "audio.batch_statistics=training"],
            ["audio.batch_statistics was never, is training", "set audio.batch_statistics=never,"],
        ),
        ([*STATISTICS, "audio.token_order=mel_first"], ["audio.token_order was time_first, is mel_first"]),
        ([*STATISTICS, "video.num_frames=6"], ["video.num_frames was 4, is 6"]),
        ([*STATISTICS, "video.frames_per_second=8"], ["video.frames_per_second was 4.0, is 8.0"]),
        ([*STATISTICS, "video.size=48"], ["video.size was 32, is 48"]),
        ([*STATISTICS, "video.mean=[0,0,0]"], ["video.mean was [0.485, 0.456, 0.406], is [0.0, 0.0, 0.0]"]),
        ([*STATISTICS, "video.std=[1,1,1]"], ["video.std was [0.229, 0.224, 0.225], is [1.0, 1.0, 1.0]"]),
        ([*STATISTICS, "video.patch=[1,16,16]"], ["video.patch was [2, 16, 16], is [1, 16, 16]"]),
        (
            [*STATISTICS, "video=null", "fusion=null", "task.contrast=null"],
            ["stage2 has no video", "give both recipes the same modalities"],
        ),
        (
            [*STATISTICS, "video.size=48", "audio.num_steps=128"],
            ["audio.num_steps was 64, is 128; video.size was 32, is 48", "set audio.num_steps=64 video.size=32"],
        ),
    ],
    ids=lambda value: value[-1] if "=" in value[-1] else None,
)
def test_other_inputs_are_told_with_what_to_set(changes: list[str], words: list[str]) -> None:
    teacher = change_recipe(TEACHER, *STATISTICS)
    with pytest.raises(UserError) as caught:
        refuse_other_inputs(student_of(*changes), teacher, "runs/stage1")
    message = str(caught.value)
    assert "\n" not in message
    for word in ["task.teacher.run: the teacher runs/stage1", *words]:
        assert word in message


def test_what_is_advised_is_accepted() -> None:
    teacher = change_recipe(TEACHER, *STATISTICS)
    student = student_of("video.size=48", "audio.patch=[8,16]", "audio.mean=1.0", "audio.std=2.0")
    with pytest.raises(UserError) as caught:
        refuse_other_inputs(student, teacher, "runs/stage1")
    changes = str(caught.value).partition("): set ")[2].partition(", or train")[0].split()
    refuse_other_inputs(change_recipe(student, *changes), teacher, "runs/stage1")


def test_every_setting_compared_exists_and_the_same_recipe_passes() -> None:
    for modality in MODALITIES:
        branch = TEACHER.branch(modality)
        assert branch is not None
        assert set(SAME_INPUTS[modality]) <= set(type(branch).model_fields)
    refuse_other_inputs(student_of(*STATISTICS), change_recipe(TEACHER, *STATISTICS), "runs/stage1")


@pytest.mark.parametrize(
    "changes",
    [
        [],  # statistics are not known yet
        ["audio.mean=-4.2500000001", "audio.std=4.5"],  # a digit lost on its way
        [*STATISTICS, "audio.stride=[16,16]"],  # the patch, which it is anyway
        [
            *STATISTICS,
            "audio.mask_ratio=0.5",
            "video.augment.flip=0",
            "audio.encoder={width: 64, depth: 1, num_heads: 2}",
            "fusion=null",
            "task.teacher.context=separate",
            "audio.cls_token=false",
        ],
    ],
    ids=["unknown", "rounded", "stride of the patch", "another model"],
)
def test_what_does_not_change_the_inputs_may_differ(changes: list[str]) -> None:
    refuse_other_inputs(student_of(*changes), change_recipe(TEACHER, *STATISTICS), "runs/stage1")


@pytest.mark.parametrize(
    ("teacher", "settings", "words"),
    [
        ([], {"last_layers": 3}, "last_layers=3 is more than the teacher runs/stage1 has: its fusion.depth is 2"),
        (
            ["audio.encoder={width: 32, depth: 1, num_heads: 2}"],
            {"last_layers": 2, "context": "separate"},
            "its audio.encoder.depth is 1; set task.teacher.last_layers=1 or lower",
        ),
        (["fusion=null"], {}, "context=joint asks for fused tokens, but the teacher runs/stage1 has fusion null"),
        (["fusion.depth=3"], {"last_layers": 3}, None),
        ([], {"last_layers": 2, "context": "separate"}, None),
        (["fusion=null"], {"context": "separate"}, None),
    ],
)
def test_layers_that_the_teacher_does_not_have(teacher: list[str], settings: dict[str, Any], words: str | None) -> None:
    before = change_recipe(TEACHER, *teacher)
    if words is None:
        refuse_other_inputs(student_of(**settings), before, "runs/stage1")
        return
    with pytest.raises(UserError) as caught:
        refuse_other_inputs(student_of(**settings), before, "runs/stage1")
    assert words in str(caught.value)


def test_one_modality_without_fusion_has_the_layers_of_its_encoder() -> None:
    alone = ["video=null", "fusion=null", "task.contrast=null"]
    student = student_of(*alone, last_layers=2)
    refuse_other_inputs(student, change_recipe(TEACHER, *alone), "runs/stage1")
    with pytest.raises(UserError, match=r"its audio\.encoder\.depth is 2"):
        refuse_other_inputs(student_of(*alone, last_layers=3), change_recipe(TEACHER, *alone), "runs/stage1")
