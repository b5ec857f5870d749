"""The audio encoder as timm's VisionTransformer, in a folder that ``timm.create_model("local-dir:FOLDER")`` reads.

The model takes normalised log-mel spectrograms ``[B, 1, S, M]``, time first, and gives the pooled tokens ``[B, D]``: what
``embed_audio`` compares, before projection and normalisation, where the embedding is pooled from the encoder. timm has no ViT
over films; the video encoder stays out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mavil.config import AudioBranch, ClassifyTask, Contrast, PretrainTask, Recipe
from mavil.export.parts import Exported
from mavil.export.subfolders import new_folder
from mavil.models.weights.key_bias import with_key_bias
from mavil.structs import UserError

ARCHITECTURES = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}
"""timm's entry points by the epsilon of their LayerNorms, which is the one thing that ``model_args`` cannot say; the size of
the model and of its input are said there."""
OUTSIDE = ("audio_projection", "fusion", "video_encoder", "video_projection")
"""Parts that have no place in a ViT."""


def check_recipe(recipe: Recipe) -> AudioBranch:
    """The audio branch of a recipe whose encoder timm can be.

    Raises:
        UserError: what timm's ViT does not have.
    """
    audio = recipe.audio
    if audio is None or "audio" not in recipe.modalities:
        raise UserError(f"{recipe.name} has no audio encoder, and timm has no ViT over films: leave --timm out")
    tower = audio.encoder
    problem = None
    if tower.norm == "post":
        problem = "its blocks are post-norm ones"
    elif audio.positions == "convolutional":
        problem = "its positions are a convolution"
    elif audio.grid().stride is not None:
        problem = f"its patches overlap (audio.stride={list(audio.stride or ())})"
    elif tower.layer_norm_eps not in ARCHITECTURES:
        problem = f"its LayerNorms have epsilon {tower.layer_norm_eps:g}, timm's 1e-06 or 1e-05"
    elif audio.batch_statistics == "evaluation":
        problem = "its input is normalised by its own statistics (audio.batch_statistics=evaluation)"
    if problem:
        raise UserError(f"timm's ViT cannot be the audio encoder of {recipe.name}: {problem}; leave --timm out")
    return audio


def to_timm(exported: Exported) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` as a tree, and the tensors in timm's names.

    Raises:
        UserError: as :func:`check_recipe`.
    """
    recipe, audio = exported.recipe, check_recipe(exported.recipe)
    tower, contrast = audio.encoder, _contrast(recipe)
    pooling = "token" if contrast is not None and contrast.pooling == "cls" else "avg"
    size = [audio.num_steps, audio.num_mel_bins]
    config = {
        "architecture": ARCHITECTURES[tower.layer_norm_eps],
        "num_classes": 0,
        "num_features": tower.width,
        "global_pool": pooling,
        "model_args": {
            "img_size": size,
            "patch_size": list(audio.patch),
            "in_chans": 1,
            "embed_dim": tower.width,
            "depth": tower.depth,
            "num_heads": tower.num_heads,
            "mlp_ratio": tower.mlp_ratio,
            "class_token": audio.cls_token,
            "global_pool": pooling,
            "pre_norm": False,  # one of the entry points has it
            # A token passes the norm before they are pooled; a classifier's have none behind the last block.
            "fc_norm": False,
            "final_norm": not isinstance(recipe.task, ClassifyTask),
        },
        "pretrained_cfg": {
            "tag": "mavil",
            "custom_load": False,
            "input_size": [1, *size],
            "fixed_input_size": True,
            "mean": [audio.mean],
            "std": [audio.std_factor * (audio.std or 1.0)],
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "spectrogram": {"kind": audio.spectrogram, "mel_bins": audio.num_mel_bins, "step_seconds": 0.01},
    }
    return config, timm_tensors(exported.parts["audio_encoder"], audio, isinstance(recipe.task, ClassifyTask))


def timm_tensors(encoder: Mapping[str, Tensor], audio: AudioBranch, is_classifier: bool) -> dict[str, Tensor]:
    """Our encoder's tensors under timm's names, for an input with time as its first axis."""
    tensors = with_key_bias(dict(encoder))
    grid, kernel = audio.grid(), tensors["patch_embed.proj.weight"]
    table = tensors["pos_embed"]
    prefix, patches = table[:, : int(audio.cls_token)], table[:, int(audio.cls_token) :]
    if grid.axes is not None:  # bands first; attention and pooling do not mind the order of tokens
        kernel = kernel.transpose(2, 3)
        patches = patches.unflatten(1, grid.cells).transpose(1, 2).flatten(1, 2)
    if "modality_embed" in tensors:
        patches = patches + tensors.pop("modality_embed")
    tensors |= {"patch_embed.proj.weight": kernel, "pos_embed": torch.cat([prefix, patches], dim=1)}
    if is_classifier:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("norm.")}
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def write_timm(target: Path, exported: Exported) -> list[str]:
    """Write the folder and return lines about it, also of what stays out.

    Raises:
        UserError: as :func:`check_recipe`, the folder is there already, or it cannot be written.
    """
    config, tensors = to_timm(exported)
    with new_folder(target) as folder:
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    size = config["model_args"]["img_size"]
    lines = [
        f"{target}: timm, audio encoder, [batch, 1, {size[0]}, {size[1]}] -> pooled [batch, {config['num_features']}]"
    ]
    if left_out := [part for part in OUTSIDE if part in exported.parts]:
        lines.append(f"{target}: without {', '.join(left_out)}, which a ViT has no place for")
    contrast = _contrast(exported.recipe)
    if contrast is not None and contrast.pooled_from != "encoder":
        lines.append(
            f"{target}: the run compared tokens of the fusion (task.contrast.pooled_from={contrast.pooled_from}); these are the "
            "encoder's own, behind a norm that was not trained"
        )
    return lines


def _contrast(recipe: Recipe) -> Contrast | None:
    return recipe.task.contrast if isinstance(recipe.task, PretrainTask) else None
