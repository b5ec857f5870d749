"""Whose checkpoint is this? The layout is recognised by names and shapes of the tensors."""

from __future__ import annotations

from torch import Tensor

from mavil.models.weights.audiovisual import convert_cav_mae, convert_mavil
from mavil.models.weights.branches import convert_branch, plain_names
from mavil.models.weights.converted import Converted
from mavil.models.weights.mae_ast import convert_mae_ast
from mavil.structs import UserError

LAYOUTS = {
    "image_mae": "image MAE or a plain ViT (3-channel 2-D patch kernel)",
    "audio_mae": "Audio-MAE (1-channel 2-D patch kernel)",
    "msm_mae": "MSM-MAE (1-channel 2-D patch kernel, biases of query and value alone)",
    "m2d": "M2D's MSM-MAE (1-channel 2-D patch kernel, norm_stats)",
    "mae_ast": "MAE-AST (fairseq's names, post_extract_proj, batch_norm)",
    "mae_st": "MAE-ST (3-D patch kernel)",
    "video_mae": "VideoMAE (3-D patch kernel, biases of query and value alone)",
    "mavil": "MAViL (names ending in _v, blocks_av)",
    "cav_mae": "CAV-MAE (blocks_a, blocks_v, blocks_u)",
}
"""Layouts that are known, and by what."""


def convert(
    state: dict[str, Tensor], source: str = "the checkpoint", patch: tuple[int, int] | None = None
) -> Converted:
    """A foreign state dict in our parts and names.

    Args:
        state: tensors by the names of their project.
        source: names the file in messages.
        patch: steps and mel bins of a patch, which MAE-AST's tensors do not tell; without it the patch kernel stays flat,
            ``[D, P]``, until a model says how it is cut (:func:`mavil.models.weights.offers.fitted_kernel`).

    Raises:
        UserError: its layout is not known, or it holds a part that nothing here computes.
    """
    layout = recognise(state)
    if layout is None:
        known = "; ".join(LAYOUTS.values())
        shown = ", ".join(list(state)[:4])
        raise UserError(f"{source}: names of tensors such as {shown} are of no layout known here: {known}")
    if layout == "mavil":
        return convert_mavil(state)
    if layout == "cav_mae":
        return convert_cav_mae(state)
    if layout == "mae_ast":
        return convert_mae_ast(state, source, patch)
    return convert_branch(state, layout)


def recognise(state: dict[str, Tensor]) -> str | None:
    """The layout of a state dict, one of :data:`LAYOUTS`, or ``None``."""
    stems = {name.partition(".")[0] for name in state}
    if "blocks_u" in stems or "patch_embed_a" in stems:
        return "cav_mae"
    if "blocks_av" in stems or "patch_embed_v" in stems:
        return "mavil"
    # Other models of fairseq have a post_extract_proj too; none a normalised spectrogram.
    if {"post_extract_proj", "batch_norm"} <= stems and "encoder.layers.0.self_attn.q_proj.weight" in state:
        return "mae_ast"
    tensors = plain_names(state).tensors
    kernel = tensors.get("patch_embed.proj.weight")
    if kernel is None or "blocks.0.norm1.weight" not in tensors:
        return None
    has_partial_bias = "blocks.0.attn.q_bias" in tensors
    if kernel.dim() == 5:
        return "video_mae" if has_partial_bias or any(name.startswith("encoder.") for name in state) else "mae_st"
    if kernel.dim() != 4:
        return None
    if kernel.shape[1] == 1:
        return "msm_mae" if has_partial_bias else "m2d" if "norm_stats" in tensors else "audio_mae"
    return "image_mae" if kernel.shape[1] == 3 and not has_partial_bias else None
