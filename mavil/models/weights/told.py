"""What a checkpoint's settings and its name say about the model, where the tensors do not: numbers of heads, patches, masks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mavil.structs import UserError

_NAMED_SIZE = re.compile(r"(?:^|[-_])(\d+)x(\d+)p(\d+)x(\d+)(?:[-_.]|$)")
"""Mel bins, steps, then those of a patch, in the name of a run's folder [source MSM-MAE, M2D]."""


@dataclass(frozen=True)
class Told:
    """``None`` where nothing is said.

    Attributes:
        patch: steps, mel bins.
        size: of the input: steps, mel bins.
        num_heads: of the encoder [and of MAE-AST's decoder].
        mask_ratio: share of tokens hidden in pre-training.
        normalise_patches: whether targets are normalised per patch.
        mask_type: MAE-AST's word for its masking.
        dropout, layer_drop: of MAE-AST's encoder.
        dataset: Audio-MAE's name of the data set it was trained on.
        statistics: mean and deviation of the log-mel values.
    """

    patch: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    num_heads: int | None = None
    mask_ratio: float | None = None
    normalise_patches: bool | None = None
    mask_type: str | None = None
    dropout: float | None = None
    layer_drop: float | None = None
    dataset: str | None = None
    statistics: tuple[float, float] | None = None


def told_by(settings: Mapping[str, Any], path: str | Path) -> Told:
    """What the settings in a file (:class:`mavil.models.weights.reading.CheckpointFile`) and its path say.

    Raises:
        UserError: they describe a model that nothing here computes.
    """
    cfg = settings.get("cfg") or {}
    if isinstance(cfg.get("model"), Mapping) and "ast_kernel_size_time" in cfg["model"]:
        task = cfg.get("task")
        return _by_fairseq(cfg["model"], task if isinstance(task, Mapping) else {}, path)
    args = settings.get("args") or {}
    if "ast_kernel_size_time" in args:  # fairseq before cfg
        return _by_fairseq(args, args, path)
    return _by_arguments(args, path)


def _by_fairseq(model: Mapping[str, Any], task: Mapping[str, Any], path: str | Path) -> Told:
    """MAE-AST's ``cfg`` [source MAE-AST]."""
    for name in ("layer_norm_first", "enc_conv_pos", "dec_conv_pos"):
        if model.get(name):
            raise UserError(f"{path}: MAE-AST with {name} cannot be read: no public file has it")
    sizes, strides = (
        [_number(model.get(f"ast_kernel_{what}_{axis}")) for axis in ("time", "chan")] for what in ("size", "stride")
    )
    if None not in strides and strides != sizes:
        raise UserError(
            f"{path}: MAE-AST with patches of {sizes} every {strides} cannot be read: no public file has it"
        )
    mel_bins = _number(task.get("feature_dim"))
    ratio = model.get("random_mask_prob")
    return Told(
        patch=_pair(sizes),
        size=None if mel_bins is None else (0, mel_bins),
        num_heads=_number(model.get("encoder_attention_heads")),
        # For spans this number counts something else.
        mask_ratio=float(ratio) if isinstance(ratio, (int, float)) and 0 < ratio < 1 else None,
        mask_type=task.get("mask_type") if isinstance(task.get("mask_type"), str) else None,
        dropout=_share(model.get("dropout")),
        layer_drop=_share(model.get("encoder_layerdrop")),
    )


def _by_arguments(args: Mapping[str, Any], path: str | Path) -> Told:
    """The ``args`` of the MAE family's scripts, and a folder's name such as ``80x512p16x16_paper``."""
    size, patch = _pair(args.get("input_size")), _pair(args.get("patch_size"))
    for name in (Path(path).name, Path(path).absolute().parent.name):
        if size is None and (match := _NAMED_SIZE.search(name)) is not None:
            mel_bins, steps, patch_bins, patch_steps = (int(number) for number in match.groups())
            size, patch = (mel_bins, steps), (patch_bins, patch_steps)
    norm_pix, dataset = args.get("norm_pix_loss"), args.get("dataset")
    statistics = args.get("norm_stats")
    is_pair = isinstance(statistics, list) and len(statistics) == 2 and all(isinstance(x, float) for x in statistics)
    return Told(
        patch=None if patch is None else (patch[1], patch[0]),
        size=None if size is None else (size[1], size[0]),
        mask_ratio=_share(args.get("mask_ratio")) or None,
        normalise_patches=norm_pix if isinstance(norm_pix, bool) else None,
        dataset=dataset if isinstance(dataset, str) else None,
        statistics=(statistics[0], statistics[1]) if is_pair and statistics is not None else None,
    )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _share(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1 else None


def _pair(values: object) -> tuple[int, int] | None:
    if not isinstance(values, list) or len(values) != 2:
        return None
    first, second = (_number(value) for value in values)
    return None if first is None or second is None else (first, second)
