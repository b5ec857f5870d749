"""Our audio branch in the names of other projects of the MAE family: Audio-MAE, MSM-MAE, M2D, timm."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mavil.models.weights.branches import HEADS, stems_of
from mavil.models.weights.converted import Stems, renamed
from mavil.models.weights.key_bias import with_key_bias, without_key_bias
from mavil.structs import UserError

Parts = Mapping[str, Mapping[str, Tensor]]
_STEMS: Stems = {**stems_of("audio"), **HEADS}


def to_audio_mae_names(parts: Parts) -> dict[str, Tensor]:
    """As Audio-MAE's scripts save it, with a global or windowed decoder, or with a head. Keys without a bias get a zero one.

    Raises:
        UserError: a tensor that Audio-MAE's model has no place for.
    """
    named = with_key_bias(renamed(_without_unused_norm(parts), _STEMS, "Audio-MAE"))
    return {_windowed(name): tensor for name, tensor in named.items()}


def to_timm_names(parts: Parts) -> dict[str, Tensor]:
    """The encoder, with its head if there is one, as timm's VisionTransformer has it; decoders have no place there.

    Raises:
        UserError: a tensor that a plain ViT has no place for.
    """
    without = {part: tensors for part, tensors in parts.items() if not part.endswith("decoder")}
    return with_key_bias(renamed(_without_unused_norm(without), _STEMS, "timm's ViT"))


def to_msm_mae_names(parts: Parts) -> dict[str, Tensor]:
    """As MSM-MAE's script saves it: biases of queries and values alone.

    Raises:
        UserError: a tensor that MSM-MAE's model has no place for, or keys with a bias.
    """
    try:
        return without_key_bias(renamed(_without_unused_norm(parts), _STEMS, "MSM-MAE"))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{error}, and MSM-MAE's keys have none: only a model with key_bias=false in both towers can be named like it; "
            "--to m2d takes this one"
        ) from None


def to_m2d_names(parts: Parts, statistics: tuple[float, float]) -> dict[str, Tensor]:
    """As M2D's ``msm_mae`` has it: ordinary biases, and ``norm_stats``, mean and deviation of the log-mel values.

    Raises:
        UserError: a tensor that its model has no place for.
    """
    named = with_key_bias(renamed(_without_unused_norm(parts), _STEMS, "M2D's MSM-MAE"))
    return named | {"norm_stats": torch.tensor(statistics)}


def _without_unused_norm(parts: Parts) -> dict[str, Mapping[str, Tensor]]:
    """A classifier's last norm stands behind the pooling; the encoder's is not used, and not in public files."""
    if "head" not in parts:
        return dict(parts)
    return {
        part: {n: t for n, t in own.items() if not (part == "audio_encoder" and n.startswith("norm."))}
        for part, own in parts.items()
    }


def _windowed(name: str) -> str:
    name = re.sub(r"^(decoder_blocks\.\d+\.attn)\.temperature$", r"\1.tau", name)
    return re.sub(r"^(decoder_blocks\.\d+\.attn)\.offset_bias\.", r"\1.meta_mlp.", name)
