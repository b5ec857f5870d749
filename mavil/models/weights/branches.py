"""Checkpoints with one branch in names of the MAE family: image MAE, Audio-MAE, MSM-MAE, MAE-ST, VideoMAE, plain ViTs."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from mavil.models.weights.converted import Converted, Source, Stems, fits_a_block, place

_TRANSFORMERS = [
    (r"^(?:vit|videomae)\.", ""),
    (r"^embeddings\.(?:patch_embeddings\.projection)\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^encoder\.layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"^decoder\.decoder_layers\.", "decoder_blocks."),
    (r"^decoder\.(decoder_\w+|mask_token)", r"\1"),
    (r"\.attention\.attention\.query\.", ".attn.q."),
    (r"\.attention\.attention\.key\.", ".attn.k."),
    (r"\.attention\.attention\.value\.", ".attn.v."),
    (r"\.attention\.attention\.([qv]_bias)$", r".attn.\1"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
]
"""Names in the transformers library (ViTMAE, VideoMAE) to Meta's [source transformers' conversion scripts]."""
_VIDEO_MAE = [
    (r"^encoder_to_decoder\.", "decoder_embed."),
    (r"^encoder\.", ""),
    (r"^decoder\.blocks\.", "decoder_blocks."),
    (r"^decoder\.norm\.", "decoder_norm."),
    (r"^decoder\.head\.", "decoder_pred."),
]
"""VideoMAE's names to Meta's [source VideoMAE]."""
_WINDOWED = [
    (r"(decoder_blocks\.\d+)\.attn\.tau$", r"\1.attn.temperature"),
    (r"(decoder_blocks\.\d+)\.attn\.meta_mlp\.", r"\1.attn.offset_bias."),
]
"""Audio-MAE's windowed decoder blocks to ours [source Audio-MAE]."""
SOUND = ("audio_mae", "msm_mae", "m2d")
"""Layouts of models of sound."""
HEADS: Stems = {"fc_norm": ("fc_norm", ""), "head": ("head", "")}
"""Meta's names of a classifier's last parts."""
_DEAD = {
    "decoder_cls_token": "our decoders take the encoder's CLS token",
    "norm_stats": "read as audio.mean and audio.std",
}
_CLASSIFIER = ("head", "fc_norm", "fc", "classifier", "head_dist", "dist_token", "pre_logits", "encoder.head")
"""Beginnings of names of heads: labels of another data set."""


def stems_of(modality: str) -> Stems:
    """Meta's names of a model with one branch."""
    encoder, decoder = f"{modality}_encoder", f"{modality}_decoder"
    names = ("patch_embed", "cls_token", "pos_embed", "blocks", "norm")
    ours = {"mask_token": "mask_token", **{f"decoder_{n}": n for n in ("pos_embed", "embed", "blocks", "norm", "pred")}}
    return {**{name: (encoder, name) for name in names}, **{name: (decoder, to) for name, to in ours.items()}}


def convert_branch(state: dict[str, Tensor], layout: str) -> Converted:
    """One branch in our terms; an image is a clip of one frame, so its kernel becomes ``[D, C, 1, rows, columns]``."""
    source = plain_names(state)
    modality = "audio" if layout in SOUND else "video"
    if layout != "msm_mae":  # which has a setting here: key_bias
        join_attention(source)
    _join_tables(source)
    _substitute(source, _WINDOWED)
    if layout == "image_mae":
        kernel = source.tensors["patch_embed.proj.weight"]
        source.tensors["patch_embed.proj.weight"] = kernel.unsqueeze(2)
    if layout == "video_mae" and "decoder_embed.weight" in source.tensors:
        # Theirs has no bias [source VideoMAE]; ours with a bias of zero is the same.
        weight = source.tensors["decoder_embed.weight"]
        source.tensors["decoder_embed.bias"] = weight.new_zeros(len(weight))
        source.made_of["decoder_embed.bias"] = ()
    stems = dict(stems_of(modality))
    if layout in SOUND:
        stems |= HEADS
    converted = settle(source, layout, stems, _DEAD)
    if layout == "m2d":
        mean, std = source.tensors["norm_stats"].double().flatten().tolist()
        converted.statistics = (mean, std)
    return converted


def plain_names(state: dict[str, Tensor]) -> Source:
    """A state dict with the names of the transformers library and of VideoMAE replaced by Meta's."""
    source = Source.of(state)
    if any(".attention.attention." in name for name in state):
        _substitute(source, _TRANSFORMERS)
    _substitute(source, _VIDEO_MAE)
    return source


def settle(source: Source, layout: str, stems: Stems, dead: dict[str, str]) -> Converted:
    """Every tensor to its place, or to those without one; ``dead`` gives the reason by the beginning of a name."""
    converted = Converted(layout)
    for name, tensor in source.tensors.items():
        found = place(name, stems)
        if found is not None and fits_a_block(found[1]):
            converted.put(*found, tensor, *source.made_of[name])
            continue
        for original_name in source.made_of[name]:
            converted.unused[original_name] = _reason(name, dead)
    return converted


def _reason(name: str, dead: dict[str, str]) -> str:
    for stem, reason in dead.items():
        if name == stem or name.startswith(f"{stem}."):
            return reason
    if any(name == stem or name.startswith(f"{stem}.") for stem in _CLASSIFIER):
        return "head for the labels of another data set"
    return "nothing like it here"


def _substitute(source: Source, rules: list[tuple[str, str]]) -> None:
    renamed = {}
    for name in source.tensors:
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        renamed[name] = new
    source.rename(renamed)


def join_attention(source: Source) -> None:
    """Separate query, key and value layers, or separate biases of query and value, to one ``qkv`` layer.

    A key bias that is missing is zero: that is how VideoMAE and MSM-MAE compute without one [source].
    """
    prefixes = {match[1] for name in source.tensors if (match := re.match(r"(.+\.attn\.)(?:q\.weight|q_bias)$", name))}
    for prefix in sorted(prefixes):
        weights = [f"{prefix}{which}.weight" for which in "qkv"]
        if weights[0] in source.tensors:
            source.join(f"{prefix}qkv.weight", torch.cat([source.tensors[name] for name in weights]), weights)
        for pattern in (f"{prefix}{{}}.bias", f"{prefix}{{}}_bias"):
            biases = [pattern.format(which) for which in "qkv" if pattern.format(which) in source.tensors]
            if biases:
                values = {name: source.tensors[name] for name in biases}
                zeros = torch.zeros_like(values[biases[0]])
                joined = torch.cat([values.get(pattern.format(which), zeros) for which in "qkv"])
                source.join(f"{prefix}qkv.bias", joined, biases)


def _join_tables(source: Source) -> None:
    """MAE-ST's separate tables of place and time to their sum, CLS row first [source MAE-ST]."""
    for prefix in ("", "decoder_"):
        names = [f"{prefix}pos_embed_{which}" for which in ("spatial", "temporal", "class")]
        spatial, temporal, cls_row = (source.tensors.get(name) for name in names)
        if spatial is None or temporal is None:
            continue
        table = spatial.repeat(1, temporal.shape[1], 1) + temporal.repeat_interleave(spatial.shape[1], dim=1)
        table = table if cls_row is None else torch.cat([cls_row, table], dim=1)
        source.join(f"{prefix}pos_embed", table, [name for name in names if name in source.tensors])
