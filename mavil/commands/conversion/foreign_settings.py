"""Which recipe a public checkpoint of sound is: read off its tensors, its settings and what its project is known for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from torch import Tensor

from mavil.commands.normalisation import AUDIOSET
from mavil.config import ChunkMasking
from mavil.models.weights import Converted, PartGeometry, Told, geometry_of, spectrogram_size, table_kind
from mavil.structs import TokenGrid, UserError

Tree = dict[str, Any]
AUDIOSET_CLASSES = 527
"""A head of so many is AudioSet's: several labels per clip."""
CLIP_STEPS = 998
"""Of 10 s in Kaldi's front end: the input of a model whose positions reach any length."""
_HEAD_WIDTH = 64
"""Channels per attention head [source ViT, in every size; half of it in the decoders of MAE and Audio-MAE]."""
_FAMILIES: dict[str, Tree] = {
    "audio_mae": {
        "spectrogram": "kaldi_hann",
        "num_mel_bins": 128,
        "mask_ratio": 0.8,
        # Its code draws the offset of a roll from an axis of length 1.
        "augment": {"roll": False, "gain": True},
    },
    "msm_mae": {
        "spectrogram": "slaney",
        "num_mel_bins": 80,
        "std_factor": 1.0,
        "mask_ratio": 0.75,
        "token_order": "mel_first",
        "augment": {"roll": False, "gain": False},
    },
    "mae_ast": {
        "spectrogram": "kaldi_povey",
        "num_mel_bins": 128,
        "mask_ratio": 0.75,
        "positions": "sincos_1d",
        "augment": {"roll": False, "gain": False},
    },
}
_FAMILIES["m2d"] = _FAMILIES["msm_mae"]
"""Front end and pre-training of each project [source: sections 1 of their descriptions in docs/audio_family.md]."""
_NORMALISES = {"audio_mae": True}
"""Whether targets are normalised per patch; no where nothing is said [source Audio-MAE; MSM-MAE, MAE-AST]."""
_DATASETS = {
    "audioset": (-4.2677393, 4.5689974),
    "k400": (-4.2677393, 4.5689974),
    "esc50": (-6.6268077, 5.358466),
    "speechcommands": (-6.845978, 5.5654526),
}
"""Mean and deviation by Audio-MAE's names of data sets [source Audio-MAE]."""
_MASKINGS: dict[str, Tree] = {
    "random_mask": {"kind": "random"},
    "random_mask_batched": {"kind": "random", "drawn_per": "batch"},
    "chunk_mask": {"kind": "chunks"},
    "retain_spans": {"kind": "spans"},
}
"""MAE-AST's words, without its defects: squares that wrap, spans that stay visible."""


@dataclass
class Found:
    """A recipe as a tree of settings, and where what the tensors do not tell comes from."""

    tree: Tree
    remarks: list[str] = field(default_factory=list)


def families() -> tuple[str, ...]:
    """The layouts that a recipe is known for."""
    return tuple(_FAMILIES)


def settings_of(converted: Converted, told: Told, changes: Sequence[str], source: str) -> Found:
    """The recipe of a checkpoint, before ``changes`` are applied to it; those that say how its input was cut are heeded here.

    Raises:
        UserError: nothing tells the number of heads, or the patch.
    """
    given = {key: yaml.safe_load(value) for key, _, value in (change.partition("=") for change in changes)}
    parts = geometry_of(converted)
    encoder, decoder = parts["audio_encoder"], parts.get("audio_decoder")
    audio = dict(_FAMILIES[converted.layout])
    found = Found({"name": converted.layout, "audio": audio, "video": None, "fusion": None})
    _cut(audio, encoder, converted, told, given, source, found.remarks)
    audio["cls_token"] = encoder.cls_token
    audio["encoder"] = _tower(encoder, "encoder", converted.layout, told, given, source)
    if converted.layout == "mae_ast":
        audio["encoder"] |= {"dropout": told.dropout or 0.0, "layer_drop": told.layer_drop or 0.0}
        audio["masking"] = _masking(told, audio)
    audio["mask_ratio"] = told.mask_ratio or audio["mask_ratio"]
    if decoder is not None:
        audio["decoder"] = _decoder(decoder, audio, converted.layout, told, given, source)
    _positions(audio, converted, found.remarks)
    _statistics(audio, converted, told, found.remarks)
    found.tree["task"] = _task(parts, converted.layout, told)
    return found


def _cut(
    audio: Tree,
    encoder: PartGeometry,
    converted: Converted,
    told: Told,
    given: Mapping[str, Any],
    source: str,
    remarks: list[str],
) -> None:
    """Size of the input, patches and stride."""
    is_mel_first = audio.get("token_order") == "mel_first"
    kernel = encoder.patch
    if kernel is None:
        if "audio.patch" not in given:
            raise UserError(
                f"{source}: neither its tensors nor its settings tell a patch's size: add audio.patch=[16,16] for a model of "
                "patches, audio.patch=[2,128] for one of frames"
            )
        patch: tuple[int, ...] = tuple(given["audio.patch"])
    else:
        patch = kernel[::-1] if is_mel_first else kernel
    steps, bins = patch
    mel_bins = given.get("audio.num_mel_bins") or (told.size[1] if told.size else audio["num_mel_bins"])
    audio |= {"patch": [steps, bins], "num_mel_bins": mel_bins}
    num_tokens = (encoder.num_tokens or {}).get("audio")
    if num_tokens is None:
        audio |= {"num_steps": CLIP_STEPS // steps * steps, "seconds": 10.0}
        remarks.append(f"audio.num_steps={audio['num_steps']}, 10 s: its positions reach any length")
        return
    size = spectrogram_size(num_tokens, (steps, bins), mel_bins)
    if size is None:  # then the changes must tell, which is checked when they are applied
        audio["num_steps"] = 64 * steps
        return
    audio["num_steps"], stride = size
    if stride is not None:
        audio["stride"] = list(stride)
    exact = audio["num_steps"] / 100
    # Windows of Kaldi's front end: 10 s are 998 steps, padded to 1024. Centred ones: as many as there are hops.
    is_padded = audio["spectrogram"] != "slaney" and exact >= 1
    audio["seconds"] = float(int(exact)) if is_padded else exact


def _masking(told: Told, audio: Tree) -> Tree:
    masking = _MASKINGS.get(told.mask_type or "", {"kind": "random"})
    # Squares of its code wrap around where tokens are a single row of frames: what is hidden there are runs of tokens.
    is_flat = audio["num_mel_bins"] // audio["patch"][1] < max(ChunkMasking().sides)
    return {"kind": "spans"} if masking["kind"] == "chunks" and is_flat else masking


def _tower(part: PartGeometry, name: str, layout: str, told: Told, given: Mapping[str, Any], source: str) -> Tree:
    per_head = _HEAD_WIDTH // 2 if name == "decoder" and layout == "audio_mae" else _HEAD_WIDTH
    num_heads = part.num_heads or told.num_heads
    if num_heads is None and part.width % per_head == 0:
        num_heads = part.width // per_head
    key = f"audio.{name}.num_heads"
    if num_heads is None and key not in given:
        raise UserError(
            f"{source}: nothing tells the number of heads of its {name}, and its width {part.width} is no multiple of "
            f"{per_head}: add {key}=NUMBER"
        )
    return {
        "width": part.width,
        "depth": part.depth,
        "num_heads": num_heads or given[key],
        "mlp_ratio": part.mlp_ratio,
        "layer_norm_eps": 1e-5 if layout == "mae_ast" else 1e-6,
        "norm": "post" if part.post_norm else "pre",
        "key_bias": part.key_bias,
    }


def _decoder(part: PartGeometry, audio: Tree, layout: str, told: Told, given: Mapping[str, Any], source: str) -> Tree:
    tower = _tower(part, "decoder", layout, told, given, source) | {"projection": part.projects}
    if layout == "mae_ast":
        tower["dropout"] = told.dropout or 0.0
    if part.windowed:
        # Overlapping patches have 102 x 12 tokens there, the last row padded [source Audio-MAE].
        window = [6, 6] if "stride" in audio else [4, 4]
        tower |= {"attention": "windowed", "window": window, "shift": "time", "global_blocks": part.global_blocks}
    return tower


def _positions(audio: Tree, converted: Converted, remarks: list[str]) -> None:
    """Kinds of both tables; one that is no computed table was trained, and goes on being so."""
    tables = {
        part: table
        for part in ("audio_encoder", "audio_decoder")
        if (table := converted.parts.get(part, {}).get("pos_embed")) is not None
    }
    kinds = {part: _kind(table, audio) for part, table in tables.items()}
    if "audio_encoder" in kinds:
        if kinds["audio_encoder"] is None:
            audio["trained_positions"] = True
            remarks.append("the encoder's positions are no computed table: trained_positions=true")
        else:
            audio["positions"] = kinds["audio_encoder"]
    if "audio_decoder" in kinds:
        if kinds["audio_decoder"] is None:
            remarks.append("the decoder's positions are no computed table: they are kept as they are")
        elif kinds["audio_decoder"] != audio.get("positions"):
            audio["decoder"]["positions"] = kinds["audio_decoder"]


def _kind(table: Tensor, audio: Tree) -> str | None:
    try:
        stride = audio.get("stride")
        size, patch = (audio["num_steps"], audio["num_mel_bins"]), tuple(audio["patch"])
        grid = TokenGrid.of(size, patch, 1, None if stride is None else tuple(stride))
    except ValueError:
        return None
    grid = grid.reordered((1, 0)) if audio.get("token_order") == "mel_first" else grid
    return table_kind(table, grid, table.shape[1] - grid.num_tokens) if table.shape[1] >= grid.num_tokens else None


def _statistics(audio: Tree, converted: Converted, told: Told, remarks: list[str]) -> None:
    if converted.statistics is not None:
        (mean, std), origin = converted.statistics, "in the file"
    elif told.statistics is not None:
        (mean, std), origin = told.statistics, "in its settings"
    elif told.dataset in _DATASETS and converted.layout == "audio_mae":
        (mean, std), origin = _DATASETS[told.dataset], f"Audio-MAE's of {told.dataset}, named in its settings"
    else:
        mean, std, _ = AUDIOSET[audio["spectrogram"]]
        origin = "AudioSet's, for the file has none: set audio.mean and audio.std if it was trained on other sound"
    audio |= {"mean": mean, "std": std}
    remarks.append(f"log-mel mean {mean:.6g}, deviation {std:.6g}: {origin}")


def _task(parts: Mapping[str, PartGeometry], layout: str, told: Told) -> Tree:
    head = parts.get("head")
    if head is not None:
        loss = "binary_cross_entropy" if head.classes == AUDIOSET_CLASSES else "cross_entropy"
        return {"kind": "classify", "modalities": ["audio"], "loss": loss}
    normalises = told.normalise_patches
    reconstruction: Tree = {"normalise_patches": _NORMALISES.get(layout, False) if normalises is None else normalises}
    task: Tree = {"kind": "pretrain", "contrast": None, "reconstruction": reconstruction}
    if "audio_decoder" in parts and parts["audio_decoder"].discriminates:
        reconstruction["audio_weight"] = 10.0
        task["patch_discrimination"] = {"weight": 1.0, "softmax_over": "targets"}
    return task
