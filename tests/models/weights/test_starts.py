from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mavil.config import Recipe
from mavil.models.build import build_masked
from mavil.models.weights import StartReport, Target, convert, load_start, start_parts
from mavil.structs import MODALITIES, UserError
from tests.support import foreign_weights
from tests.support.foreign_weights import State
from tests.support.recipes import tiny_recipe

Parts = dict[str, dict[str, torch.Tensor]]


def saved(folder: Path, state: State, name: str = "file.pth") -> str:
    torch.save({"model": state}, folder / name)
    return str(folder / name)


def recipe_with(audio: dict[str, Any] | None = None, video: dict[str, Any] | None = None, **parts: Any) -> Recipe:
    """The tiny recipe with other settings of its branches."""
    base = tiny_recipe().model_dump()
    branches = {
        m: {**base[m], "mask_ratio": 0.5, **(change or {})} for m, change in (("audio", audio), ("video", video))
    }
    return tiny_recipe(**branches, **parts)


def start(recipe: Recipe, **choices: Any) -> tuple[Parts, StartReport, dict[str, nn.Module]]:
    model = build_masked(recipe).parts()
    tiled = recipe.video is not None and recipe.video.positions == "tiled_2d"
    grids = {m: branch.grid() for m in MODALITIES if (branch := recipe.branch(m)) is not None}
    tensors, report = start_parts(Target.of(model, grids, tiled), **choices)
    return tensors, report, model


def assert_accounted_for(state: State, path: str, parts: Parts, report: StartReport) -> None:
    """Each tensor of the file was used or is named in the report; each of the model was filled or is named."""
    origin = convert(state).origin
    named = {name for part in report.parts.values() for name in part.extra} | set(report.unused[path])
    loaded = {
        source
        for part in parts
        for name in report.parts[part].loaded
        for source in origin.get(f"{part}.{name}", origin.get(f"{part}.{name}".replace("audio_", "video_"), ()))
    }
    assert named | loaded >= set(state)
    assert named <= set(state)
    for part, part_report in report.parts.items():
        assert set(part_report.loaded) == set(parts.get(part, {}))


def test_image_mae_to_video(tmp_path: Path) -> None:
    state = foreign_weights.image_mae(side=2)
    path = saved(tmp_path, state)
    parts, report, model = start(tiny_recipe(), video=path)
    kernel = parts["video_encoder"]["patch_embed.proj.weight"]
    assert torch.equal(kernel[:, :, 0], state["patch_embed.proj.weight"])
    assert torch.equal(kernel[:, :, 1], state["patch_embed.proj.weight"])
    # The model's own table knows the time, a picture's does not.
    assert "pos_embed" not in parts["video_encoder"]
    assert "computed" in report.parts["video_encoder"].missing["pos_embed"]
    assert report.parts["video_decoder"].missing["pred.weight"] == "predicts 768 values per token, the model 1536"
    assert set(report.parts["video_decoder"].missing) == {"pred.weight", "pred.bias", "pos_embed"}
    assert set(report.untouched) == {"audio_encoder", "audio_decoder"}
    assert_accounted_for(state, path, parts, report)
    own = model["video_encoder"].state_dict()["pos_embed"].clone()
    load_start(model, parts)
    loaded = model["video_encoder"].state_dict()
    assert torch.equal(loaded["pos_embed"], own)
    assert torch.equal(loaded["blocks.1.mlp.fc2.weight"], state["blocks.1.mlp.fc2.weight"])
    assert torch.equal(loaded["norm.bias"], state["norm.bias"])


def test_halved_kernels_give_a_still_clip_the_embedding_of_its_picture(tmp_path: Path) -> None:
    state = foreign_weights.image_mae(side=2)
    parts, _, _ = start(tiny_recipe(), video=saved(tmp_path, state), kernel_inflation="halve")
    kernel = parts["video_encoder"]["patch_embed.proj.weight"]
    torch.testing.assert_close(kernel.sum(dim=2), state["patch_embed.proj.weight"])


@pytest.mark.parametrize("change", [{"positions": "tiled_2d"}, {"trained_positions": True}])
def test_an_image_table_is_repeated_over_time_where_the_model_wants_it(tmp_path: Path, change: dict[str, Any]) -> None:
    state = foreign_weights.image_mae(side=2)
    parts, _, _ = start(recipe_with(video=change), video=saved(tmp_path, state))
    table = parts["video_encoder"]["pos_embed"]
    assert torch.equal(table[:, :1], state["pos_embed"][:, :1])
    for time in range(2):
        assert torch.equal(table[:, 1 + 4 * time : 5 + 4 * time], state["pos_embed"][:, 1:])


def test_one_frame_is_a_picture_smaller_ones_are_its_corner(tmp_path: Path) -> None:
    state = foreign_weights.image_mae(side=3)
    one_frame = recipe_with(video={"num_frames": 1, "patch": [1, 16, 16], "cls_token": False})
    parts, report, _ = start(one_frame, video=saved(tmp_path, state))
    corner = state["pos_embed"][:, 1:].reshape(1, 3, 3, 32)[:, :2, :2].flatten(1, 2)
    assert torch.equal(parts["video_encoder"]["pos_embed"], corner)
    assert not {"pred.weight", "pred.bias"} & set(report.parts["video_decoder"].missing)
    assert report.parts["video_encoder"].extra["cls_token"].startswith("the model has none")


def test_image_mae_to_audio(tmp_path: Path) -> None:
    state = foreign_weights.image_mae(side=2)
    path = saved(tmp_path, state)
    parts, report, _ = start(tiny_recipe(), audio=path)
    kernel = parts["audio_encoder"]["patch_embed.proj.weight"]
    assert torch.equal(kernel, state["patch_embed.proj.weight"].sum(dim=1, keepdim=True))
    assert report.parts["audio_encoder"].missing == {"pos_embed": "positions of a picture"}
    assert set(report.parts["audio_decoder"].missing) == {"pos_embed", "pred.weight", "pred.bias"}
    assert_accounted_for(state, path, parts, report)


def test_every_fusion_block_is_the_last_encoder_block(tmp_path: Path) -> None:
    video, audio = foreign_weights.image_mae(side=2), foreign_weights.audio_mae()
    paths = {"video": saved(tmp_path, video), "audio": saved(tmp_path, audio, "audio.pth")}
    both, report, _ = start(tiny_recipe(), **paths)
    from_audio, _, _ = start(tiny_recipe(), audio=paths["audio"])
    for name in ("norm1.weight", "attn.qkv.bias", "mlp.fc2.weight"):
        for block in range(2):
            assert torch.equal(both["fusion"][f"blocks.{block}.{name}"], video[f"blocks.1.{name}"])
            assert torch.equal(from_audio["fusion"][f"blocks.{block}.{name}"], audio[f"blocks.1.{name}"])
    assert set(report.parts["fusion"].missing) == {"norm.weight", "norm.bias"}
    # The last block stays in the encoder too.
    assert torch.equal(both["video_encoder"]["blocks.1.norm1.weight"], video["blocks.1.norm1.weight"])
    left, report, _ = start(tiny_recipe(), fusion="random", **paths)
    assert "fusion" not in left
    assert "fusion" in report.untouched


def test_fusions_of_other_kinds_start_likewise(tmp_path: Path) -> None:
    state = foreign_weights.image_mae(side=2)
    path = saved(tmp_path, state)
    alone, _, _ = start(tiny_recipe(fusion={"kind": "joint", "alone_norms": True}), video=path)
    assert torch.equal(alone["fusion"]["blocks.0.alone_norms.audio.norm2.bias"], state["blocks.1.norm2.bias"])
    bottleneck, report, _ = start(tiny_recipe(fusion={"kind": "bottleneck"}), video=path)
    assert torch.equal(bottleneck["fusion"]["audio_blocks.1.norm1.bias"], state["blocks.1.norm1.bias"])
    assert "bottleneck" in report.parts["fusion"].missing


def test_audio_mae_with_its_own_table_and_decoder(tmp_path: Path) -> None:
    state = foreign_weights.audio_mae()
    path = saved(tmp_path, state)
    parts, report, _ = start(tiny_recipe(), audio=path)
    assert torch.equal(parts["audio_encoder"]["pos_embed"], state["pos_embed"])
    assert torch.equal(parts["audio_decoder"]["pos_embed"], state["decoder_pos_embed"])
    assert torch.equal(parts["audio_decoder"]["pred.weight"], state["decoder_pred.weight"])
    assert not report.parts["audio_encoder"].missing
    assert not report.parts["audio_decoder"].missing
    assert_accounted_for(state, path, parts, report)


def test_audio_mae_of_another_length(tmp_path: Path) -> None:
    state = foreign_weights.audio_mae(num_tokens=64 * 8)
    shorter = recipe_with(audio={"num_steps": 512, "num_mel_bins": 128})
    parts, _, _ = start(shorter, audio=saved(tmp_path, state))
    assert torch.equal(parts["audio_encoder"]["pos_embed"], state["pos_embed"][:, : 1 + 32 * 8])
    longer = recipe_with(audio={"num_steps": 1040, "num_mel_bins": 128})
    with pytest.raises(UserError, match=r"audio_encoder\.pos_embed does not fit: .*1024.*1040.*audio\.num_steps"):
        start(longer, audio=saved(tmp_path, state))


def test_a_windowed_decoder_never_fills_a_global_one(tmp_path: Path) -> None:
    windowed = foreign_weights.audio_mae(windowed=True)
    path = saved(tmp_path, windowed)
    parts, report, _ = start(tiny_recipe(), audio=path)
    assert "audio_decoder" not in parts
    assert all("windowed" in reason for reason in report.parts["audio_decoder"].missing.values())
    assert_accounted_for(windowed, path, parts, report)
    decoder = {"width": 16, "depth": 1, "num_heads": 2, "attention": "windowed", "window": [2, 2]}
    parts, report, model = start(recipe_with(audio={"decoder": decoder}), audio=path)
    assert not report.parts["audio_decoder"].missing
    load_start(model, parts)
    temperature = model["audio_decoder"].state_dict()["blocks.0.attn.temperature"]
    assert torch.equal(temperature, windowed["decoder_blocks.0.attn.tau"])


def test_other_decoders_and_unwanted_ones_are_left(tmp_path: Path) -> None:
    state = foreign_weights.audio_mae()
    path = saved(tmp_path, state)
    deeper = recipe_with(audio={"decoder": {"width": 16, "depth": 2, "num_heads": 2}})
    parts, report, _ = start(deeper, audio=path)
    assert "audio_decoder" not in parts
    assert "another decoder: blocks.1." in report.parts["audio_decoder"].missing["embed.weight"]
    parts, report, _ = start(tiny_recipe(), audio=path, decoders=False)
    assert set(report.parts["audio_decoder"].missing.values()) == {"task.start.decoders is false"}
    assert_accounted_for(state, path, parts, report)


def test_mae_st_and_video_mae_to_video(tmp_path: Path) -> None:
    state = foreign_weights.mae_st(times=2, side=2)
    path = saved(tmp_path, state)
    parts, report, _ = start(tiny_recipe(), video=path)
    assert torch.equal(parts["video_encoder"]["pos_embed"], convert(state).parts["video_encoder"]["pos_embed"])
    assert not report.parts["video_decoder"].missing
    assert_accounted_for(state, path, parts, report)
    state = foreign_weights.video_mae()
    path = saved(tmp_path, state)
    parts, report, _ = start(tiny_recipe(), video=path)
    assert set(report.parts["video_encoder"].missing) == {"cls_token", "pos_embed"}
    assert set(report.parts["video_decoder"].missing) == {"pos_embed"}
    assert_accounted_for(state, path, parts, report)


def test_a_table_without_cls_gets_a_row_of_zeros(tmp_path: Path) -> None:
    state = {n: t for n, t in foreign_weights.mae_st().items() if "cls" not in n and "class" not in n}
    parts, _, _ = start(tiny_recipe(), video=saved(tmp_path, state))
    table = parts["video_encoder"]["pos_embed"]
    assert torch.equal(table[:, 0], torch.zeros(1, 32))
    assert torch.equal(table[:, 1:], convert(state).parts["video_encoder"]["pos_embed"])


def test_fewer_and_more_blocks_are_listed(tmp_path: Path) -> None:
    state = foreign_weights.image_mae(side=2, depth=3)
    path = saved(tmp_path, state)
    parts, report, _ = start(tiny_recipe(), video=path)
    assert len([name for name in report.parts["video_encoder"].extra if name.startswith("blocks.2.")]) == 12
    # What the fusion repeats is the last block of the model's encoder.
    assert torch.equal(parts["fusion"]["blocks.0.norm1.weight"], state["blocks.1.norm1.weight"])
    assert_accounted_for(state, path, parts, report)
    _, report, _ = start(tiny_recipe(), video=saved(tmp_path, foreign_weights.image_mae(side=2, depth=1)))
    assert len([name for name in report.parts["video_encoder"].missing if name.startswith("blocks.1.")]) == 12


def test_mavil_and_cav_mae_as_whole_models(tmp_path: Path) -> None:
    state = foreign_weights.mavil()
    path = saved(tmp_path, state)
    parts, report, model = start(tiny_recipe(), model=path)
    assert torch.equal(parts["fusion"]["blocks.1.norm1.weight"], state["blocks_av.1.norm1.weight"])
    assert torch.equal(parts["video_encoder"]["pos_embed"], state["pos_embed_v"])
    assert set(report.parts["audio_encoder"].missing) == {"norm.weight", "norm.bias"}
    assert_accounted_for(state, path, parts, report)
    load_start(model, parts)
    state = foreign_weights.cav_mae()
    path = saved(tmp_path, state)
    parts, report, model = start(cav_mae_recipe(), model=path)
    assert set(report.parts["audio_encoder"].missing) == {"norm.weight", "norm.bias"}
    assert not report.parts["fusion"].missing
    assert not report.parts["decoder"].missing
    assert_accounted_for(state, path, parts, report)
    load_start(model, parts)
    assert torch.equal(model["decoder"].state_dict()["preds.audio.bias"], state["decoder_pred_a.bias"])


def cav_mae_recipe(fusion_depth: int = 2, **audio: Any) -> Recipe:
    branch = {"cls_token": False, "modality_embedding": True, "encoder": {"width": 32, "depth": 1, "num_heads": 2}}
    return recipe_with(
        {**branch, "token_order": "mel_first", **audio},
        {**branch, "num_frames": 1, "patch": [1, 16, 16]},
        fusion={"kind": "joint", "depth": fusion_depth, "alone_norms": True},
        joint_decoder=True,
    )


def test_one_image_mae_for_a_whole_cav_mae(tmp_path: Path) -> None:
    state = foreign_weights.image_mae(side=2, depth=3)
    parts, report, _ = start(cav_mae_recipe(), model=saved(tmp_path, state))
    for modality in MODALITIES:
        assert torch.equal(parts[f"{modality}_encoder"]["blocks.0.norm1.bias"], state["blocks.0.norm1.bias"])
        alone = parts["fusion"][f"blocks.1.alone_norms.{modality}.norm1.bias"]
        assert torch.equal(alone, state["blocks.2.norm1.bias"])
        assert torch.equal(parts["fusion"][f"alone_norms.{modality}.bias"], state["norm.bias"])
    assert torch.equal(parts["fusion"]["blocks.0.attn.qkv.bias"], state["blocks.1.attn.qkv.bias"])
    assert torch.equal(parts["decoder"]["preds.audio.weight"], state["decoder_pred.weight"][:256])
    assert torch.equal(parts["decoder"]["preds.video.weight"], state["decoder_pred.weight"])
    assert torch.equal(parts["decoder"]["video_pos_embed"], state["decoder_pos_embed"][:, 1:])
    assert set(report.parts["decoder"].missing) == {"audio_pos_embed", "audio_modality_embed", "video_modality_embed"}
    with pytest.raises(UserError, match=r"3 blocks becomes a whole model only if .* 1, 1 and 1: set"):
        start(cav_mae_recipe(fusion_depth=1), model=saved(tmp_path, state))


def test_tokens_numbered_the_other_way_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CAV-MAE numbers audio tokens mel_first.*set audio\.token_order=mel_first"):
        start(cav_mae_recipe(token_order="time_first"), model=saved(tmp_path, foreign_weights.cav_mae()))
    with pytest.raises(UserError, match=r"Audio-MAE numbers audio tokens time_first"):
        start(recipe_with(audio={"token_order": "mel_first"}), audio=saved(tmp_path, foreign_weights.audio_mae()))


def test_clashing_shapes_name_both_and_the_setting(tmp_path: Path) -> None:
    path = saved(tmp_path, foreign_weights.image_mae(side=2, width=48))
    with pytest.raises(UserError, match=r"\(1, 1, 48\) there and \(1, 1, 32\) here: set video\.encoder\.width=48"):
        start(tiny_recipe(), video=path)
    path = saved(tmp_path, foreign_weights.image_mae(side=2))
    with pytest.raises(UserError, match=r"set video\.encoder\.width=32 and video\.patch=\[2, 16, 16\]"):
        start(recipe_with(video={"patch": [2, 8, 8]}), video=path)
    thinner = recipe_with(video={"encoder": {"width": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}})
    with pytest.raises(UserError, match=r"video\.encoder\.mlp_ratio=4"):
        start(thinner, video=path)


def test_a_file_for_the_wrong_place(tmp_path: Path) -> None:
    audio, video = saved(tmp_path, foreign_weights.audio_mae(), "a"), saved(tmp_path, foreign_weights.mae_st(), "v")
    with pytest.raises(UserError, match=r"task\.start\.video: .* is Audio-MAE, which has no video branch"):
        start(tiny_recipe(), video=audio)
    with pytest.raises(UserError, match=r"task\.start\.audio: .* is MAE-ST, which has no audio branch"):
        start(tiny_recipe(), audio=video)
    with pytest.raises(UserError, match=r"task\.start\.model: .* is Audio-MAE, which has one branch"):
        start(tiny_recipe(), model=audio)
    with pytest.raises(UserError, match="set it alone"):
        start(tiny_recipe(), model=audio, audio=audio)
    with pytest.raises(UserError, match="the model has no video branch"):
        start(tiny_recipe(video=None, fusion=None, task={"kind": "pretrain", "contrast": None}), video=video)


def test_parts_that_the_model_lacks_are_listed(tmp_path: Path) -> None:
    state = foreign_weights.mavil()
    path = saved(tmp_path, state)
    parts, report, _ = start(tiny_recipe(fusion=None), model=path)
    unused = {name: "the model has no fusion" for name in state if name.startswith("blocks_av")}
    assert report.unused[path] == unused
    assert_accounted_for(state, path, parts, report)


@pytest.mark.parametrize("num_classes", [5, 7])
def test_a_head_is_taken_only_with_as_many_classes(tmp_path: Path, num_classes: int) -> None:
    path = saved(tmp_path, foreign_weights.mavil(3, "av"))
    norm: dict[str, tuple[int, ...]] = {"weight": (64,), "bias": (64,)}
    target = Target({"fc_norm": norm, "head": {"weight": (num_classes, 64), "bias": (num_classes,)}}, {})
    parts, report = start_parts(target, model=path)
    assert set(report.parts["fc_norm"].loaded) == {"weight", "bias"}
    assert ("head" in parts) == (num_classes == 5)
    if num_classes != 5:
        reason = "(5, 64) there and (7, 64) here: other classes"
        assert report.parts["head"].extra["head_av.weight"] == reason
        assert report.parts["head"].missing["weight"] == reason


def test_a_file_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"blocks_av.0.extra": torch.ones(1), "fc_norm_v.weight": torch.ones(3)})
    with pytest.raises(UserError, match="not one tensor of it fits"):
        start(tiny_recipe(), model=path)
