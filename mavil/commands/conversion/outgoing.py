"""A run's weights in the names of another project, for its own code; what that project's model cannot be is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mavil.commands.assemble import read_recipe
from mavil.commands.normalisation import audio_statistics
from mavil.config import AudioBranch, ClassifyTask, PretrainTask, Recipe
from mavil.config.exclusions import DEFAULT_WINDOWS
from mavil.engine.checkpoints.reading import load_weights
from mavil.models.weights import (
    to_audio_mae_names,
    to_cav_mae_names,
    to_m2d_names,
    to_mae_ast_names,
    to_mavil_names,
    to_msm_mae_names,
    to_timm_names,
)
from mavil.models.weights.mae_ast import TABLE_ROWS
from mavil.structs import UserError

Parts = Mapping[str, Mapping[str, Tensor]]
_TOWER = {"norm": "pre", "layer_norm_eps": 1e-6}
_SOUND = {
    "video": None,
    "joint_decoder": False,
    "audio.modality_embedding": False,
    **{f"audio.encoder.{name}": value for name, value in _TOWER.items()},
}
_DECODER = {
    **{f"audio.decoder.{name}": value for name, value in _TOWER.items()},
    "audio.decoder.projection": True,
    "audio.decoder.global_blocks": 0,
    "task.patch_discrimination": None,
}
_MEL_FIRST = {**_SOUND, "audio.token_order": "mel_first", "audio.stride": None}
_GLOBAL = {**_DECODER, "audio.decoder.attention": "global"}
_POST_NORM = {"norm": "post", "layer_norm_eps": 1e-5, "key_bias": True}


@dataclass(frozen=True)
class _Project:
    """What a project's model needs the settings to be: always, and of a decoder; and how its state dict is named."""

    needs: Mapping[str, Any]
    needs_of_decoder: Mapping[str, Any]
    names: Callable[[Parts, Recipe], dict[str, Tensor]]


@dataclass(frozen=True)
class Outgoing:
    """A state dict in a project's names.

    Attributes:
        state: the tensors.
        wrapper: the key that the project's files have them under; ``None``: none.
        beside: what else stands in such a file.
        remarks: for people.
    """

    state: dict[str, Tensor]
    wrapper: str | None = "model"
    beside: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        return dict(self.state) if self.wrapper is None else {self.wrapper: self.state, **self.beside}


_PROJECTS = {
    "audio_mae": _Project(
        {**_SOUND, "audio.token_order": "time_first", "audio.cls_token": True},
        {**_DECODER, "audio.decoder.shift": "time"},
        lambda parts, _: to_audio_mae_names(parts),
    ),
    "msm_mae": _Project(_MEL_FIRST, _GLOBAL, lambda parts, _: to_msm_mae_names(parts)),
    "m2d": _Project(
        {**_MEL_FIRST, "audio.cls_token": True},
        _GLOBAL,
        lambda parts, recipe: to_m2d_names(parts, audio_statistics(recipe)),
    ),
    "mae_ast": _Project(
        {
            "video": None,
            "audio.token_order": "time_first",
            "audio.cls_token": False,
            "audio.modality_embedding": False,
            "audio.trained_positions": False,
            "audio.stride": None,
            "audio.positions": "sincos_1d",
            "audio.std_factor": 2.0,
            "task.kind": "pretrain",
            **{f"audio.{tower}.{k}": v for tower in ("encoder", "decoder") for k, v in _POST_NORM.items()},
        },
        {"audio.decoder.attention": "global"},
        lambda parts, recipe: to_mae_ast_names(parts, audio_statistics(recipe), _audio(recipe).num_mel_bins),
    ),
    "timm": _Project(_SOUND, {}, lambda parts, _: to_timm_names(parts)),
    "cav_mae": _Project(
        {f"{branch}.encoder.norm": "pre" for branch in ("audio", "video")}
        | {"audio.token_order": "mel_first", "audio.encoder.layer_norm_eps": 1e-5, "audio.encoder.key_bias": True},
        {},
        lambda parts, _: {f"module.{name}": tensor for name, tensor in to_cav_mae_names(parts).items()},
    ),
    "mavil": _Project(
        {f"{branch}.encoder.norm": "pre" for branch in ("audio", "video")}
        | {"audio.token_order": "time_first", "audio.encoder.layer_norm_eps": 1e-6, "audio.encoder.key_bias": True},
        {},
        lambda parts, _: to_mavil_names(parts),
    ),
}
TARGETS = tuple(_PROJECTS)
"""Projects in whose names a run can be written."""


def outgoing(run: Path, to: str, which: str = "newest") -> Outgoing:
    """The weights of a run's checkpoint (see :func:`mavil.engine.checkpoints.reading.load_weights`) in a project's names.

    Raises:
        UserError: not a run, or a setting of it has a value that the project's model has not.
    """
    recipe, project = read_recipe(run, []), _PROJECTS[to]
    weights = load_weights(run, which)
    needs = dict(project.needs)
    if "audio_decoder" in weights and to != "timm":
        needs |= project.needs_of_decoder
    _check(recipe, needs, run, to)
    if isinstance(recipe.task, PretrainTask) and recipe.task.teacher is not None and to != "timm":
        raise UserError(f"{run}: its decoders predict a teacher's tokens (task.teacher), those of {to} patches")
    if to == "mae_ast":
        _check_twins(recipe, run)
    if to == "audio_mae":
        _check_windows(_audio(recipe), run)
    state = project.names(weights, recipe)
    if to == "mae_ast":
        return Outgoing(state, beside={"args": None, "cfg": _fairseq_settings(recipe)})
    remarks = [] if to == "m2d" else _front_end(recipe)
    if to == "timm":
        remarks += [f"{part}: left out, timm's ViT has none" for part in weights if part.endswith("decoder")]
    return Outgoing(state, None if to in ("timm", "cav_mae") else "model", remarks=remarks)


def _front_end(recipe: Recipe) -> list[str]:
    audio = recipe.audio
    if audio is None:
        return []
    mean, std = audio_statistics(recipe)
    return [
        f"the file does not say how its input is made: {audio.spectrogram}, {audio.num_steps} x {audio.num_mel_bins}, log-mel "
        f"values minus {mean:.6g}, divided by {audio.std_factor * std:.6g}"
    ]


def _check(recipe: Recipe, needs: Mapping[str, Any], run: Path, to: str) -> None:
    for path, wanted in needs.items():
        value: Any = recipe
        for name in path.split("."):
            value = getattr(value, name, None)
        if path == "audio.decoder.shift" and _audio(recipe).decoder.attention == "global":
            continue
        if value != wanted:
            shown = value.kind if hasattr(value, "kind") else "set" if hasattr(value, "model_fields") else value
            raise UserError(
                f"{run}: {path} is {shown}, but a model of {to} needs {'null' if wanted is None else wanted}"
            )


def _check_windows(audio: AudioBranch, run: Path) -> None:
    """Of Audio-MAE's windowed decoder the size of windows is fixed [source Audio-MAE]."""
    wanted = (6, 6) if audio.stride is not None else (4, 4)
    window = audio.decoder.window or DEFAULT_WINDOWS["audio"]
    if audio.decoder.attention == "windowed" and window != wanted:
        raise UserError(f"{run}: audio.decoder.window is {list(window)}, but a model of audio_mae needs {list(wanted)}")


def _check_twins(recipe: Recipe, run: Path) -> None:
    """MAE-AST's encoder and decoder share everything but their depth, and both of its heads are there."""
    audio = _audio(recipe)
    for name in ("width", "num_heads", "mlp_ratio"):
        own, other = getattr(audio.encoder, name), getattr(audio.decoder, name)
        if own != other:
            raise UserError(f"{run}: audio.decoder.{name} is {other}, but a model of mae_ast needs the encoder's {own}")
    if audio.decoder.positions not in (None, "sincos_1d"):
        raise UserError(
            f"{run}: audio.decoder.positions is {audio.decoder.positions}, but a model of mae_ast needs sincos_1d"
        )
    if isinstance(recipe.task, ClassifyTask) or recipe.task.patch_discrimination is None:
        raise UserError(f"{run}: task.patch_discrimination is null, but a model of mae_ast has its head")


def _fairseq_settings(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What MAE-AST's loader reads of ``cfg`` [source MAE-AST]; masking is named with what it is here."""
    audio = _audio(recipe)
    steps, bins = audio.patch
    encoder, decoder = audio.encoder, audio.decoder
    masks = {"random": "random_mask", "chunks": "chunk_mask", "spans": "retain_spans"}
    return {
        "model": {
            **{f"ast_kernel_{what}_time": steps for what in ("size", "stride")},
            **{f"ast_kernel_{what}_chan": bins for what in ("size", "stride")},
            "encoder_layers": encoder.depth,
            "encoder_embed_dim": encoder.width,
            "encoder_ffn_embed_dim": int(encoder.width * encoder.mlp_ratio),
            "encoder_attention_heads": encoder.num_heads,
            "encoder_layerdrop": encoder.layer_drop,
            "decoder_layers": decoder.depth,
            "decoder_embed_dim": decoder.width,
            "decoder_layerdrop": decoder.layer_drop,
            "activation_fn": "gelu",
            "layer_norm_first": False,
            **dict.fromkeys(("dropout", "attention_dropout", "dropout_input"), encoder.dropout),
            "activation_dropout": 0.0,
            "feature_grad_mult": 0.1,
            "use_post_enc_proj": decoder.projection,
            "checkpoint_activations": False,
            "max_token_length": TABLE_ROWS,
            "random_mask_prob": audio.mask_ratio,
            **{"mask_length": 10, "mask_selection": "static", "mask_other": 0, "mask_min_space": 0},
            "no_mask_overlap": False,
            **{"enc_sine_pos": True, "dec_sine_pos": True, "enc_conv_pos": False, "dec_conv_pos": False},
            **{"conv_pos": 128, "conv_pos_groups": 16},
        },
        "task": {
            **{"feature_type": "fbank", "feature_dim": audio.num_mel_bins, "feature_rate": 100, "sample_rate": 16000},
            **{"deltas": False, "normalize": False, "mask_type": masks.get(audio.masking.kind, "random_mask")},
        },
    }


def _audio(recipe: Recipe) -> AudioBranch:
    if recipe.audio is None:
        raise UserError(f"{recipe.name}: audio is null, but this project's model is one of sound")
    return recipe.audio
