"""Values that exclude each other: each pair is one line with both values and what to do, and what fits is let through."""

from __future__ import annotations

import pytest

from mavil.recipe import change_recipe
from mavil.structs import UserError
from tests.support.recipes import tiny_recipe

SOUND_ALONE = ["fusion=null", "video=null", "task.contrast.inter_weight=0"]
CLASSIFY = ["task={kind: classify}"]
WINDOWS = "audio.decoder={width: 16, depth: 1, num_heads: 2, attention: windowed%s}"
# The tiny recipe has 4 x 2 audio tokens and 2 x 2 x 2 video tokens.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["audio.mask_ratio=0.9"], ["audio.mask_ratio: ", "0.9 of 8 tokens leaves no token visible"]),
        (["video.mask_ratio=0.9"], ["video.mask_ratio: ", "0.9 of 8 tokens leaves no token visible"]),
        (
            ["task.contrast.audio_mask_ratio=0.9", "task.contrast.video_mask_ratio=0.5"],
            ["task.contrast.audio_mask_ratio: ", "0.9 of 8 tokens leaves no token visible"],
        ),
        (
            ["task.contrast.audio_mask_ratio=0.5"],
            ["audio_mask_ratio is 0.5", "video_mask_ratio is not set", "both or none"],
        ),
        (["task.contrast.video_mask_ratio=0.5"], ["video_mask_ratio is 0.5", "audio_mask_ratio is not set"]),
        (["task.contrast.pooling=cls", "video.cls_token=false"], ["pooling=cls", "video.cls_token is false"]),
        (["task.contrast.pooled_from=fusion", "fusion=null"], ["pooled_from=fusion ", "fusion is null"]),
        (["task.contrast.pooled_from=fusion_alone", "fusion=null"], ["pooled_from=fusion_alone", "fusion is null"]),
        (
            ["joint_decoder=true", "video.decoder={width: 16, depth: 2, num_heads: 2}"],
            ["audio.decoder.depth is 1", "video.decoder.depth is 2"],
        ),
        (["joint_decoder=true", *SOUND_ALONE], ["joint_decoder needs both", "only audio"]),
        (
            ["joint_decoder=true", WINDOWS % "", WINDOWS.replace("audio", "video") % ""],
            ["joint_decoder", "audio.decoder.attention is windowed"],
        ),
        (
            ["joint_decoder=true", "fusion=null", "video.encoder={width: 64, depth: 1, num_heads: 2}"],
            ["audio has 32 and video 64"],
        ),
        ([WINDOWS % ""], ["audio.decoder.window=[4, 4] (the default)", "[4, 2] cells"]),
        ([WINDOWS % ", window: [5, 2]"], ["audio.decoder.window=[5, 2] does not fit", "[4, 2] cells"]),
        ([WINDOWS % ", window: [4]"], ["audio.decoder.window=[4] does not fit"]),
        ([WINDOWS % ", window: [4, 2]", "audio.token_order=mel_first"], ["[2, 4] cells"]),
        ([WINDOWS % ", window: [2, 2], key_bias: false"], ["audio.decoder.key_bias=false", "attention=windowed"]),
        ([WINDOWS % ", window: [2, 2], norm: post"], ["audio.decoder.norm=post", "attention=windowed"]),
        (["audio.decoder.shift=time"], ["audio.decoder.shift=time", "audio.decoder.attention is global"]),
        (["audio.decoder.positions=sincos_3d"], ["audio.decoder.positions=sincos_3d", "transposed_2d, sincos_1d"]),
        (["video.decoder.positions=sincos_2d"], ["video.decoder.positions=sincos_2d", "sincos_3d, tiled_2d"]),
        (["audio.decoder.projection=false"], ["audio.encoder.width is 32", "audio.decoder.width is 16"]),
        (
            ["audio.positions=convolutional", "audio.trained_positions=true"],
            ["audio.trained_positions=true", "audio.positions is convolutional"],
        ),
        (
            ["joint_decoder=true", "audio.decoder.norm=post", "video.decoder.norm=post"],
            ["joint_decoder has no norm=post", "norm=pre"],
        ),
        (
            ["joint_decoder=true", "audio.positions=convolutional"],
            ["joint_decoder has position tables", "audio.positions is convolutional"],
        ),
        (
            ["joint_decoder=true", "task.patch_discrimination={weight: 2}"],
            ["task.patch_discrimination (weight 2.0)", "joint_decoder is true"],
        ),
        (
            ["task.teacher={run: runs/x}", "task.patch_discrimination={}"],
            ["task.patch_discrimination (weight 1.0)", "task.teacher.run=runs/x"],
        ),
        (
            ["audio.encoder.norm=post", "fusion.alone_norms=true"],
            ["fusion.alone_norms=true", "audio.encoder.norm is post"],
        ),
        (["audio.encoder.norm=post", "fusion.input_norm=true"], ["fusion.input_norm=true", "norm is post"]),
        (
            ["audio.masking={kind: structured, time_ratio: 0.8}"],
            ["audio.masking.time_ratio=0.8 of 4 time steps", "leaves none", "at most 0.75"],
        ),
        (
            ["audio.masking={kind: structured, mel_ratio: 0.6}", "audio.token_order=mel_first"],
            ["audio.masking.mel_ratio=0.6 of 2 mel bands", "at most 0.5"],
        ),
        (
            ["audio.masking={kind: structured, time_ratio: 0, mel_ratio: 0}"],
            ["time_ratio=0.0 and mel_ratio=0.0", "none of 8 tokens"],
        ),
        (
            [
                "audio.masking={kind: structured, time_ratio: 0.5}",
                "task.contrast.audio_mask_ratio=0.5",
                "task.contrast.video_mask_ratio=0.5",
            ],
            ["task.contrast.audio_mask_ratio is 0.5", "audio.masking.kind is structured", "time_ratio 0.5"],
        ),
        (["audio.masking={kind: chunks, sides: [2, 3]}"], ["sides=[2, 3]", "[4, 2] cells", "at most 2"]),
        (["audio.masking={kind: chunks, sides: [5], wraps: true}"], ["sides=[5]", "[4, 2] cells", "at most 4"]),
        (["audio.masking={kind: spans, length: 9}"], ["audio.masking.length=9", "8 tokens"]),
        (
            [*CLASSIFY, "task.masking.video_ratio=0.5", "task.modalities=[audio]"],
            ["task.masking.video_ratio=0.5", "task.modalities is audio alone"],
        ),
        (
            [*CLASSIFY, "task.masking.time_ratio=0.8"],
            ["task.masking: time_ratio=0.8 of 4 time steps", "leaves none", "at most 0.75"],
        ),
        ([*CLASSIFY, "task.masking.video_ratio=0.9"], ["task.masking: ", "0.9 of 8 tokens leaves no token visible"]),
        (
            [*CLASSIFY, "audio.positions=convolutional", "audio.trained_positions=true"],
            ["audio.trained_positions=true", "audio.positions is convolutional"],
        ),
        (
            [*CLASSIFY, "task.mixup.probability=0.5", "trainer.device_batch=1"],
            ["task.mixup.probability=0.5", "trainer.device_batch is 1"],
        ),
        (["task.modality_dropout=0.5", *SOUND_ALONE], ["task.modality_dropout=0.5", "only audio"]),
        (["task.weights=runs/x", "task.start.audio=mae.pth"], ["task.start.audio=mae.pth", "task.weights=runs/x"]),
        (["task.weights=runs/x", "task.start.model=m.pth"], ["task.start.model=m.pth", "task.weights=runs/x"]),
        (
            ["task.start={model: m.pth, video: v.pth}"],
            ["task.start.model=m.pth", "task.start.video=v.pth", "video branch"],
        ),
        (["task.start.video=v.pth", *SOUND_ALONE], ["task.start.video=v.pth", "video is not used"]),
        (["trainer.term_gradients_every=1 epoch", "trainer.compile=true"], ["=1 epochs", "trainer.compile=true"]),
        (
            ["trainer.term_gradients_every=5 steps", "trainer.activation_checkpointing=fairscale"],
            ["term_gradients_every=5 steps", "activation_checkpointing=fairscale"],
        ),
        (
            ["trainer.term_gradients_every=5 steps", "trainer.accumulation=2", "trainer.accumulation_negatives=cached"],
            ["term_gradients_every=5 steps", "accumulation_negatives=cached"],
        ),
        ([*CLASSIFY, "task.heads=separate"], ["task.heads=separate", "fusion is joint"]),
        (
            [*CLASSIFY, "task.heads=separate", "task.modalities=[audio]", "fusion=null"],
            ["task.heads=separate", "task.modalities is audio alone"],
        ),
        ([*CLASSIFY, "task.pooling=mean", "fusion=null"], ["task.pooling=mean", "fusion is null"]),
        ([*CLASSIFY, "task.alone=average"], ["task.alone=average", "fusion.alone_norms is false"]),
        (
            [*CLASSIFY, "task.alone=average", "fusion.alone_norms=true", "task.modalities=[video]"],
            ["task.alone=average", "task.modalities is video alone"],
        ),
        (
            [*CLASSIFY, "task.modality_dropout=0.5", "task.modalities=[video]"],
            ["task.modality_dropout=0.5", "only video"],
        ),
        (
            [*CLASSIFY, "task.weights=runs/x", "task.start.video=v.pth"],
            ["task.start.video=v.pth", "task.weights=runs/x"],
        ),
        ([*CLASSIFY, "task.modalities=[audio]", "task.start.video=v.pth"], ["video is not used"]),
        (
            [*CLASSIFY, "task.cutmix.probability=0.5", "trainer.device_batch=1"],
            ["task.cutmix.probability=0.5", "trainer.device_batch is 1"],
        ),
        (
            [*CLASSIFY, "task.cutmix.probability=0.6", "task.mixup.probability=0.5"],
            ["task.mixup.probability=0.5", "task.cutmix.probability=0.6", "at most 1 together"],
        ),
        (
            [*CLASSIFY, "task.label_smoothing=0.1", "task.loss=binary_cross_entropy"],
            ["task.label_smoothing=0.1", "binary_cross_entropy", "task.label_smoothing=0"],
        ),
        (["optimizer.lr_factors.head=2"], ["optimizer.lr_factors.head=2.0", "pre-training"]),
        (["optimizer.fusion_rank=first_blocks"], ["optimizer.fusion_rank=first_blocks", "pre-training"]),
        (["optimizer.layer_decay=0.75"], ["optimizer.layer_decay=0.75", "pre-training"]),
        (
            [*CLASSIFY, "optimizer.lr_factors.video_encoder=0.5", "task.modalities=[audio]"],
            ["optimizer.lr_factors.video_encoder=0.5", "task.modalities is audio alone"],
        ),
        (
            [*CLASSIFY, "optimizer.lr_factors.fusion=0.5", "task.modalities=[audio]"],
            ["optimizer.lr_factors.fusion=0.5", "task.modalities is audio alone"],
        ),
        (
            [*CLASSIFY, "optimizer.fusion_rank=first_blocks", "fusion=null"],
            ["fusion_rank=first_blocks", "fusion is null"],
        ),
        ([*CLASSIFY, "optimizer.lr_factors.audio_encoder=2", "task.frozen=true"], ["audio_encoder=2.0", "task.frozen"]),
        ([*CLASSIFY, "task.new_fusion_blocks=random", "fusion=null"], ["new_fusion_blocks=random", "fusion is null"]),
        (
            ["trainer.mean_of_last=3 epochs", "trainer.ema_decay=0.99"],
            ["trainer.mean_of_last=3 epochs", "trainer.ema_decay=0.99", "leave one out"],
        ),
        (["trainer.mean_of_last=1 epoch"], ["trainer.mean_of_last=1 epochs", "trainer.mean_every=1 epochs", "one set"]),
        (["trainer.mean_of_last=9 steps", "trainer.mean_every=0 steps"], ["trainer.mean_every is 0"]),
    ],
    ids=lambda value: value[0].partition(":")[0] if len(value) == 1 else None,
)
def test_values_that_exclude_each_other_are_one_line_with_both(changes: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        change_recipe(tiny_recipe(), *changes)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "changes",
    [
        ["audio.mask_ratio=0.87", "video.mask_ratio=0.13"],
        ["task.contrast.audio_mask_ratio=0.5", "task.contrast.video_mask_ratio=0.5"],
        ["task.contrast.audio_mask_ratio=0.5", *SOUND_ALONE],
        ["task.contrast.pooling=cls"],
        ["task.contrast.pooled_from=fusion_alone"],
        ["joint_decoder=true"],
        [WINDOWS % ", window: [2, 2]"],
        [WINDOWS % ", window: [3, 2], shift: time"],  # padded where windows do not divide the grid
        ["audio.decoder={width: 32, depth: 1, num_heads: 2, projection: false, norm: post, positions: sincos_1d}"],
        ["joint_decoder=true", "audio.decoder.positions=sincos_1d", "video.decoder.positions=sincos_1d"],
        ["audio.encoder.norm=post"],
        ["task.patch_discrimination={}"],
        ["audio.masking={kind: structured, time_ratio: 0.75}", "audio.mask_ratio=0.9"],
        ["audio.masking={kind: chunks, sides: [1, 4], wraps: true}"],
        ["audio.masking={kind: spans, length: 8}"],
        [*CLASSIFY, "task.masking={time_ratio: 0.75, mel_ratio: 0.5, video_ratio: 0.8}"],
        [*CLASSIFY, "task.mixup.probability=0.5", "trainer.device_batch=1", "trainer.global_batch=8"],
        [WINDOWS % ", window: [1, 4]", "audio.token_order=mel_first"],
        ["task.modality_dropout=0.5"],
        ["task.start={audio: a.pth, video: v.pth}"],
        ["task.start.model=m.pth"],
        ["task.weights=runs/x", "task.start.fusion=random"],
        ["task.teacher={run: runs/x, context: separate}", "fusion=null"],
        ["trainer.term_gradients_every=5 steps", "trainer.activation_checkpointing=torch"],
        ["trainer.term_gradients_every=5 steps", "trainer.accumulation=2", "trainer.accumulation_negatives=fewer"],
        [
            "trainer.term_gradients_every=5 steps",
            "trainer.accumulation=2",
            "trainer.accumulation_negatives=cached",
            "task.contrast=null",
        ],
        [*CLASSIFY, "task.heads=separate", "fusion=null"],
        [*CLASSIFY, "task.pooling=mean"],
        [*CLASSIFY, "task.cutmix.probability=0.5", "task.mixup.probability=0.5"],
        [*CLASSIFY, "task.label_smoothing=0.1"],
        [
            *CLASSIFY,
            "optimizer.lr_factors={audio_encoder: 0.1, video_encoder: 0.1}",
            "optimizer.fusion_rank=first_blocks",
        ],
        [*CLASSIFY, "optimizer.lr_factors.head=10", "task.frozen=true"],
        [*CLASSIFY, "optimizer.lr_factors.fusion=2", "task.modalities=[audio]", "task.pooling=mean"],
        ["trainer.mean_of_last=5 epochs"],
        ["trainer.mean_of_last=1 epoch", "trainer.mean_every=20 steps"],
        # What only pre-training looks at does not matter to a classifier that inherits it.
        ["audio.mask_ratio=0.9", *CLASSIFY],
    ],
    ids=str,
)
def test_what_fits_is_let_through(changes: list[str]) -> None:
    recipe = tiny_recipe()
    tree_changes = sorted(changes, key=lambda change: not change.startswith("task={"))
    change_recipe(recipe, *tree_changes)
