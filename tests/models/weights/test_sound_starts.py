"""Starts from MSM-MAE and MAE-AST: biases of keys, places of norms, flat kernels, tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mavil.config import Recipe
from mavil.models.build import build_masked
from mavil.models.weights import StartReport, Target, start_parts
from mavil.structs import UserError
from tests.support import foreign_weights
from tests.support.foreign_weights import State
from tests.support.recipes import tiny_recipe

Parts = dict[str, dict[str, torch.Tensor]]
POST = {"width": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "norm": "post"}
MAE_AST = {
    **{"num_steps": 32, "num_mel_bins": 128, "cls_token": False, "positions": "sincos_1d", "encoder": POST},
    "decoder": {**POST, "depth": 1, "projection": False},
}
MSM_MAE = {
    **{"num_steps": 48, "num_mel_bins": 80, "token_order": "mel_first"},
    "encoder": {"width": 32, "depth": 2, "num_heads": 2, "key_bias": False},
    "decoder": {"width": 16, "depth": 1, "num_heads": 2, "key_bias": False},
}


def recipe_of(audio: dict[str, Any], **changes: Any) -> Recipe:
    discriminates: dict[str, Any] = {"patch_discrimination": {}} if audio is MAE_AST else {}
    task = {"kind": "pretrain", "contrast": None, **discriminates}
    return tiny_recipe(audio={**audio, **changes}, video=None, fusion=None, task=task)


def start(
    folder: Path, state: State, recipe: Recipe, beside: dict[str, Any] | None = None, **choices: Any
) -> tuple[Parts, StartReport]:
    torch.save({"model": state, **(beside or {})}, folder / "file.pt")
    assert recipe.audio is not None
    target = Target.of(build_masked(recipe).parts(), {"audio": recipe.audio.grid()})
    return start_parts(target, audio=folder / "file.pt", **choices)


def test_msm_mae_fits_its_own_kind_of_model_in_every_tensor(tmp_path: Path) -> None:
    state = foreign_weights.msm_mae()
    parts, report = start(tmp_path, state, recipe_of(MSM_MAE))
    assert not any(part.missing or part.extra for part in report.parts.values())
    assert torch.equal(parts["audio_decoder"]["blocks.0.attn.v_bias"], state["decoder_blocks.0.attn.v_bias"])
    assert torch.equal(parts["audio_encoder"]["pos_embed"], state["pos_embed"])


def test_keys_without_a_bias_get_one_of_zeros(tmp_path: Path) -> None:
    with_bias = {tower: {**MSM_MAE[tower], "key_bias": True} for tower in ("encoder", "decoder")}  # type: ignore[dict-item]
    state = foreign_weights.msm_mae()
    parts, report = start(tmp_path, state, recipe_of(MSM_MAE, **with_bias))
    assert not any(part.missing or part.extra for part in report.parts.values())
    query, key, value = parts["audio_encoder"]["blocks.1.attn.qkv.bias"].chunk(3)
    assert torch.equal(query, state["blocks.1.attn.q_bias"])
    assert not key.any()
    assert torch.equal(value, state["blocks.1.attn.v_bias"])


def test_keys_with_a_bias_need_the_setting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set audio\.encoder\.key_bias=true"):
        start(tmp_path, foreign_weights.m2d(), recipe_of(MSM_MAE))
    encoder = {**MSM_MAE["encoder"], "key_bias": True}  # type: ignore[dict-item]
    parts, report = start(tmp_path, foreign_weights.m2d(), recipe_of(MSM_MAE, encoder=encoder))
    assert "audio_decoder" not in parts
    assert "set audio.decoder.key_bias=true" in report.parts["audio_decoder"].missing["pred.weight"]


def test_another_order_of_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"M2D's MSM-MAE numbers audio tokens mel_first, .* set audio\.token_order=mel_first"
    ):
        start(tmp_path, foreign_weights.m2d(), recipe_of(MSM_MAE, token_order="time_first"))
    with pytest.raises(UserError, match="MAE-AST numbers audio tokens time_first"):
        start(tmp_path, foreign_weights.mae_ast(), recipe_of(MAE_AST, token_order="mel_first"))


def test_shorter_msm_mae_keeps_its_codes_band_by_band(tmp_path: Path) -> None:
    state = foreign_weights.msm_mae(times=5)
    parts, _ = start(tmp_path, state, recipe_of(MSM_MAE))
    codes = state["pos_embed"][:, 1:].reshape(1, 5, 5, 32)[:, :, :3].flatten(1, 2)
    assert torch.equal(parts["audio_encoder"]["pos_embed"][:, 1:], codes)


def test_tables_may_be_the_models_own(tmp_path: Path) -> None:
    parts, report = start(tmp_path, foreign_weights.msm_mae(times=5), recipe_of(MSM_MAE), positions="own")
    assert "pos_embed" not in parts["audio_encoder"]
    assert report.parts["audio_decoder"].missing["pos_embed"] == "task.start.positions is own"


def test_mae_ast_fills_everything_but_its_computed_tables(tmp_path: Path) -> None:
    state = foreign_weights.mae_ast()
    parts, report = start(tmp_path, state, recipe_of(MAE_AST))
    assert {name for part in report.parts.values() for name in part.missing} == {"pos_embed"}
    kernel = state["post_extract_proj.weight"].reshape(32, 1, 16, 16)
    assert torch.equal(parts["audio_encoder"]["patch_embed.proj.weight"], kernel)


def test_a_flat_kernel_is_cut_as_the_model_unless_the_file_tells(tmp_path: Path) -> None:
    state, frames = foreign_weights.mae_ast(), recipe_of(MAE_AST, patch=[2, 128])
    parts, _ = start(tmp_path, state, frames)
    assert parts["audio_encoder"]["patch_embed.proj.weight"].shape == (32, 1, 2, 128)
    beside = {"cfg": foreign_weights.mae_ast_settings((16, 16))}
    with pytest.raises(UserError, match=r"audio\.patch=\[16, 16\]"):
        start(tmp_path, state, frames, beside)


@pytest.mark.parametrize("is_post", [True, False])
def test_the_place_of_norms_needs_the_setting(tmp_path: Path, is_post: bool) -> None:
    state = foreign_weights.mae_ast() if is_post else foreign_weights.audio_mae()
    wanted, found = ("pre", "post") if is_post else ("post", "pre")
    encoder = {**POST, "norm": wanted}
    with pytest.raises(UserError, match=rf"its blocks are {found}-norm, .*: set audio\.encoder\.norm={found}"):
        start(
            tmp_path,
            state,
            recipe_of(MAE_AST, encoder=encoder, decoder={**POST, "norm": wanted}, cls_token=not is_post),
        )
