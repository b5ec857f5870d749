"""Checkpoints with two branches, MAViL and CAV-MAE: their names to ours and back."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mavil.models.weights.branches import settle, stems_of
from mavil.models.weights.converted import Converted, Source, Stems, renamed
from mavil.structs import MODALITIES, UserError

MAVIL: Stems = {
    **stems_of("audio"),
    **{f"{stem}_v": target for stem, target in stems_of("video").items()},
    "blocks_av": ("fusion", "blocks"),
    "norm_av": ("fusion", "norm"),
    "fc_norm_av": ("fc_norm", ""),
    "head_av": ("head", ""),
    "fc_norm_a": ("audio_fc_norm", ""),
    "head_a": ("audio_head", ""),
    "fc_norm_v": ("video_fc_norm", ""),
    "head_v": ("video_head", ""),
}
"""MAViL's names [source AV-SUPERB copy; norm_av: our name, no public file has a norm behind the fusion]."""

CAV_MAE: Stems = {
    **{
        f"{stem}_{modality[0]}": (f"{modality}_encoder", ours)
        for modality in MODALITIES
        for stem, ours in {
            "patch_embed": "patch_embed",
            "pos_embed": "pos_embed",
            "modality": "modality_embed",
            "blocks": "blocks",
        }.items()
    },
    **{
        f"decoder_{stem}_{modality[0]}": ("decoder", ours.format(modality))
        for modality in MODALITIES
        for stem, ours in {
            "pos_embed": "{}_pos_embed",
            "modality": "{}_modality_embed",
            "pred": "preds.{}",
        }.items()
    },
    "blocks_u": ("fusion", "blocks"),
    "norm": ("fusion", "norm"),
    "norm_a": ("fusion", "alone_norms.audio"),
    "norm_v": ("fusion", "alone_norms.video"),
    "mask_token": ("decoder", "mask_token"),
    "decoder_embed": ("decoder", "embed"),
    "decoder_blocks": ("decoder", "blocks"),
    "decoder_norm": ("decoder", "norm"),
    "mlp_head.0": ("fc_norm", ""),
    "mlp_head.1": ("head", ""),
}
"""CAV-MAE's names [source CAV-MAE]."""
_DEAD_NORM = re.compile(r"(?:blocks_[av]|decoder_blocks)\.\d+\.norm[12]_[av]\.")
_DEAD_CLS = {
    f"cls_token_{which}": "dead: CAV-MAE has no CLS token, its conversion of MAE leaves this copy"
    for which in ("a", "v", "av")
}


def convert_mavil(state: dict[str, Tensor]) -> Converted:
    """MAViL, with or without fusion, decoders and heads."""
    return settle(Source.of(state), "mavil", MAVIL, {})


def convert_cav_mae(state: dict[str, Tensor]) -> Converted:
    """CAV-MAE, pre-trained or fine-tuned, both modalities or audio alone; a picture is a clip of one frame.

    The copies of norms that only unified blocks use are in every block of the file; those of the others are unused.
    """
    source = Source.of({name: tensor for name, tensor in state.items() if not _DEAD_NORM.match(name)})
    source.rename({name: _shared_norm_here(name) for name in source.tensors})
    if "patch_embed_v.proj.weight" in source.tensors:
        source.tensors["patch_embed_v.proj.weight"] = source.tensors["patch_embed_v.proj.weight"].unsqueeze(2)
    converted = settle(source, "cav_mae", CAV_MAE, _DEAD_CLS)
    dead = "dead: only CAV-MAE's unified blocks use their norms per modality"
    converted.unused |= {name: dead for name in state if _DEAD_NORM.match(name)}
    return converted


def to_mavil_names(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Our parts as one state dict in MAViL's names.

    Raises:
        UserError: a tensor that MAViL's model has no place for.
    """
    return renamed(parts, MAVIL, "MAViL")


def to_cav_mae_names(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Our parts as one state dict in CAV-MAE's names, without its dead norms and without our encoders' final ones.

    Raises:
        UserError: another tensor that CAV-MAE's model has no place for.
    """
    without = {
        part: {
            name: tensor
            for name, tensor in tensors.items()
            if not (part.endswith("_encoder") and name.startswith("norm."))
        }
        for part, tensors in parts.items()
    }
    named = {_shared_norm_there(name): tensor for name, tensor in renamed(without, CAV_MAE, "CAV-MAE").items()}
    if "patch_embed_v.proj.weight" in named:
        kernel = named["patch_embed_v.proj.weight"]
        if kernel.shape[2] != 1:
            raise UserError(
                f"CAV-MAE takes one frame, but the video kernel spans {kernel.shape[2]}: only models with video.num_frames=1 "
                "and one frame per patch can be named like it"
            )
        named["patch_embed_v.proj.weight"] = kernel.squeeze(2)
    return named


def _shared_norm_here(name: str) -> str:
    def ours(match: re.Match[str]) -> str:
        modality = "audio" if match[3] == "a" else "video"
        return f"{match[1]}.alone_norms.{modality}.norm{match[2]}."

    return re.sub(r"^(blocks_u\.\d+)\.norm([12])_([av])\.", ours, name)


def _shared_norm_there(name: str) -> str:
    return re.sub(r"^(blocks_u\.\d+)\.alone_norms\.([av])\w+\.norm([12])\.", r"\1.norm\3_\2.", name)
