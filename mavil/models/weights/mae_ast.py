"""MAE-AST's checkpoints, in the names of fairseq: to ours and back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mavil.models.weights.branches import join_attention, settle
from mavil.models.weights.converted import Converted, Source, Stems, renamed
from mavil.structs import UserError

TABLE_ROWS = 48_000
"""Of its position tables, whatever the input [source MAE-AST: max_token_length]."""
BATCH_NORM_EPS = 1e-5
"""What its BatchNorm adds to the variance [torch]."""
_HERE = [
    (r"^((?:en|de)coder)\.layers\.", r"\1.blocks."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.fc([12])\.", r".mlp.fc\1."),
    (r"^((?:en|de)coder)\.layer_norm\.", r"\1.input_norm."),
]
_THERE = [
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"\.norm2\.", ".final_layer_norm."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.fc", ".fc"),
    (r"^((?:en|de)coder)\.blocks\.", r"\1.layers."),
    (r"^((?:en|de)coder)\.input_norm\.", r"\1.layer_norm."),
]
_STEMS: Stems = {
    "post_extract_proj": ("audio_encoder", "patch_embed.proj"),
    "encoder.blocks": ("audio_encoder", "blocks"),
    "encoder.input_norm": ("audio_encoder", "input_norm"),
    "post_enc_proj": ("audio_decoder", "embed"),
    "decoder_mask_emb": ("audio_decoder", "mask_token"),
    "decoder.blocks": ("audio_decoder", "blocks"),
    "decoder.input_norm": ("audio_decoder", "input_norm"),
    "final_proj_reconstruction": ("audio_decoder", "pred"),
    "final_proj_classification": ("audio_decoder", "discriminate"),
}
"""Its names, blocks' own apart, to part and name here [source MAE-AST]."""
_DEAD = {
    "encoder_mask_emb": "dead: it fills tokens that are then left out, so it has no gradient",
    "layer_norm": "dead: no forward pass uses it",
    "enc_sine_pos_embed": "computed here",
    "dec_sine_pos_embed": "computed here",
    "batch_norm.num_batches_tracked": "counts training steps",
    "batch_norm.running_mean": "read as audio.mean",
    "batch_norm.running_var": "read as audio.std, its root",
}


def convert_mae_ast(state: dict[str, Tensor], source: str, patch: tuple[int, int] | None) -> Converted:
    """Its encoder, decoder and heads; ``patch`` is steps and mel bins, without it the patch kernel stays ``[D, P]``.

    Raises:
        UserError: its positions are convolutional, or the patch has another number of values than the kernel.
    """
    if any(name.startswith(("enc_conv_pos", "dec_conv_pos")) for name in state):
        raise UserError(
            f"{source}: MAE-AST with convolutional positions (enc_conv_pos) cannot be read: no public file has them"
        )
    found = Source.of(state)
    found.rename({name: _replaced(name, _HERE) for name in found.tensors})
    join_attention(found)
    converted = settle(found, "mae_ast", _STEMS, _DEAD)
    encoder, decoder = converted.parts["audio_encoder"], converted.parts.get("audio_decoder", {})
    kernel = encoder["patch_embed.proj.weight"]
    if patch is not None:
        if math.prod(patch) != kernel.shape[1]:
            raise UserError(f"{source}: a patch has {kernel.shape[1]} values there, but audio.patch is {list(patch)}")
        encoder["patch_embed.proj.weight"] = kernel.reshape(-1, 1, *patch)
    if "mask_token" in decoder:
        decoder["mask_token"] = decoder["mask_token"].reshape(1, 1, -1)
    mean, variance = (state.get(f"batch_norm.running_{which}") for which in ("mean", "var"))
    if mean is not None and variance is not None:
        converted.statistics = (float(mean.double()), math.sqrt(float(variance.double()) + BATCH_NORM_EPS))
    return converted


def to_mae_ast_names(
    parts: Mapping[str, Mapping[str, Tensor]],
    statistics: tuple[float, float],
    num_mel_bins: int = 128,
    table_rows: int = TABLE_ROWS,
) -> dict[str, Tensor]:
    """Our parts as one state dict in MAE-AST's names, which its own code loads strictly.

    Tensors that no forward pass uses get the values they begin with, except that ``encoder_mask_emb`` is zero; position
    tables are computed as there, ``[1, table_rows, D]``. ``statistics`` are mean and deviation of the log-mel values.

    Raises:
        UserError: a tensor that MAE-AST's model has no place for.
    """
    without = {part: {n: t for n, t in own.items() if n != "pos_embed"} for part, own in parts.items()}
    named: dict[str, Tensor] = {}
    for name, tensor in renamed(without, _STEMS, "MAE-AST").items():
        there = _replaced(name, _THERE)
        if ".attn.qkv." not in there:
            named[there] = tensor
            continue
        for which, share in zip("qkv", tensor.chunk(3), strict=True):
            named[there.replace(".attn.qkv.", f".self_attn.{which}_proj.")] = share.clone()
    width = named["post_extract_proj.weight"].shape[0]
    named["post_extract_proj.weight"] = named["post_extract_proj.weight"].reshape(width, -1)
    if "decoder_mask_emb" in named:
        named["decoder_mask_emb"] = named["decoder_mask_emb"].flatten()
    mean, std = statistics
    table = _sine_table(table_rows, width)
    return named | {
        "encoder_mask_emb": torch.zeros(width),
        "layer_norm.weight": torch.ones(num_mel_bins),
        "layer_norm.bias": torch.zeros(num_mel_bins),
        "batch_norm.running_mean": torch.tensor([mean], dtype=torch.float64).float(),
        "batch_norm.running_var": torch.tensor([std**2 - BATCH_NORM_EPS], dtype=torch.float64).float(),
        "batch_norm.num_batches_tracked": torch.tensor(0),
        "enc_sine_pos_embed.pe": table,
        "dec_sine_pos_embed.pe": table.clone(),
    }


def _replaced(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _sine_table(rows: int, width: int) -> Tensor:
    """Sine and cosine in turn over token numbers, in float32 as MAE-AST computes it: ``[1, rows, width]``."""
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(rows)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[None]
