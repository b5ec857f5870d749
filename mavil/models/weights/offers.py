"""What a converted checkpoint has for the parts of a model: kernels, position tables and blocks brought into its shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from mavil.models.weights.converted import Converted
from mavil.models.weights.geometry import spectrogram_size
from mavil.models.weights.key_bias import has_partial_bias, with_key_bias, without_key_bias
from mavil.models.weights.layouts import LAYOUTS
from mavil.models.weights.parts import tables_of
from mavil.models.weights.positions import resize_positions
from mavil.structs import Modality, TokenGrid, UserError

MEL_BINS = {"msm_mae": 80, "m2d": 80}
"""Of the spectrograms that a project's models were trained on [source]; 128 where nothing is said."""
PICTURE_SIDE = 224
"""Pixels of the pictures that MAE, MAE-ST, VideoMAE and MAViL were trained on [source]: a table's rows do not tell."""
_MEL_FIRST = {"cav_mae", "msm_mae", "m2d"}
_ORDERED = {"audio_mae", "mae_ast", "mavil"} | _MEL_FIRST


@dataclass(frozen=True)
class Target:
    """The model a start is for.

    Attributes:
        shapes: ``{part: {tensor: shape}}``.
        learned: position tables that are trained, as ``part.name``.
        grids: how each modality is cut.
        tiled: whether the video's table is an image table repeated over time.
    """

    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    grids: Mapping[Modality, TokenGrid]
    learned: frozenset[str] = frozenset()
    tiled: bool = False

    @classmethod
    def of(cls, parts: Mapping[str, nn.Module], grids: Mapping[Modality, TokenGrid], tiled: bool = False) -> Target:
        """Read off a model's parts."""
        shapes = {part: {k: tuple(v.shape) for k, v in module.state_dict().items()} for part, module in parts.items()}
        names = {f"{part}.{name}" for part, module in parts.items() for name, _ in module.named_parameters()}
        return cls(shapes, grids, frozenset(name for name in names if name.endswith("pos_embed")), tiled)


@dataclass
class Offer:
    """What one file has for one part.

    Attributes:
        part: of the model.
        tensors: in the model's names, and in its shapes where rules can bring them there.
        made_of: names in the file, by ours.
        left: what is not offered after all, with the reason.
        absent: the reason why the model's other tensors are not here.
    """

    part: str
    tensors: dict[str, Tensor]
    made_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    absent: str = "not in the file"

    def leave(self, name: str, reason: str) -> None:
        """Take one tensor back."""
        if self.tensors.pop(name, None) is not None:
            self.left[name] = reason

    def leave_all(self, reason: str) -> None:
        """Take everything back."""
        for name in list(self.tensors):
            self.leave(name, reason)


@dataclass(frozen=True)
class Rules:
    """How a branch is started: see the settings of the same names."""

    kernel_inflation: str = "copy"
    decoders: bool = True
    positions: str = "known"
    allow_pickle: bool = False


def offer_for(part: str, converted: Converted, target: Target, rules: Rules, source: str) -> Offer:
    """One part of a converted checkpoint for the same part of the model, or an image MAE's for either branch.

    Raises:
        UserError: its audio tokens are numbered the other way, the input reaches beyond its positions, its LayerNorms stand
            elsewhere, or its keys have a bias that the model's have not.
    """
    held_part = part if part in converted.parts else part.replace("audio_", "video_")
    tensors = dict(converted.parts[held_part])
    offer = Offer(part, tensors, {name: converted.origin[f"{held_part}.{name}"] for name in tensors})
    modality = cast(Modality, part.partition("_")[0])
    if part.endswith("_encoder"):
        _check_order(modality, converted, target, source)
        kernel = offer.tensors.get("patch_embed.proj.weight")
        wanted = target.shapes[part].get("patch_embed.proj.weight")
        if kernel is not None and wanted is not None:
            offer.tensors["patch_embed.proj.weight"] = fitted_kernel(kernel, wanted, rules.kernel_inflation)
        _check_norms(offer, target, source)
    _fit_key_bias(offer, target, source)
    for name, its_modality in tables_of(part).items():
        if rules.positions == "own":
            offer.leave(name, "task.start.positions is own")
        elif name in offer.tensors and name in target.shapes[part]:
            _fit_table(offer, name, its_modality, converted, target, source)
    if part.endswith("decoder"):
        _leave_what_does_not_fit(offer, target, rules)
    return offer


def fitted_kernel(kernel: Tensor, wanted: tuple[int, ...], inflation: str) -> Tensor:
    """A patch kernel for another input where a rule says how; otherwise as it is.

    A picture's ``[D, 3, 1, h, w]`` becomes that of a spectrogram, ``[D, 1, h, w]``, by a sum over colours [source Audio-MAE's
    flag, CAV-MAE], and that of several frames by repetition [source AV-SUPERB copy], divided by their number with ``halve``. A
    flat one, ``[D, P]``, is cut as the model is.
    """
    if kernel.dim() == 2:
        return kernel.reshape(wanted) if math.prod(wanted) == kernel.numel() else kernel
    if kernel.dim() == 5 and kernel.shape[2] == 1:
        if len(wanted) == 4:
            return kernel.squeeze(2).sum(dim=1, keepdim=True)
        repeated = kernel.repeat(1, 1, wanted[2], 1, 1)
        return repeated / wanted[2] if inflation == "halve" else repeated
    return kernel


def _check_order(modality: str, converted: Converted, target: Target, source: str) -> None:
    if modality != "audio" or converted.layout not in _ORDERED:
        return
    held = "mel_first" if converted.layout in _MEL_FIRST else "time_first"
    wanted = "mel_first" if target.grids["audio"].axes == (1, 0) else "time_first"
    if held != wanted:
        raise UserError(
            f"{source}: {LAYOUTS[converted.layout].partition(' (')[0]} numbers audio tokens {held}, but audio.token_order is "
            f"{wanted}: set audio.token_order={held}"
        )


def _check_norms(offer: Offer, target: Target, source: str) -> None:
    """The same names of blocks hold norms before attention and MLP, or behind them: only the stack's own norm tells."""
    is_post = "input_norm.weight" in offer.tensors
    if is_post != ("input_norm.weight" in target.shapes[offer.part]):
        tower = offer.part.replace("_", ".")
        kind, other = ("post", "pre") if is_post else ("pre", "post")
        raise UserError(f"{source}: its blocks are {kind}-norm, but {tower}.norm is {other}: set {tower}.norm={kind}")


def _fit_key_bias(offer: Offer, target: Target, source: str) -> None:
    """Biases in the form the model has them; an encoder's that cannot be brought there are refused, a decoder's are left."""
    is_partial = has_partial_bias(target.shapes[offer.part])
    if is_partial == has_partial_bias(offer.tensors):
        return
    try:
        fitted = without_key_bias(offer.tensors) if is_partial else with_key_bias(offer.tensors)
    except ValueError as error:
        tower = offer.part.replace("_", ".")
        reason = f"{error}, but {tower}.key_bias is false: set {tower}.key_bias=true"
        if offer.part.endswith("_encoder"):
            raise UserError(f"{source}: {reason}") from error
        return offer.leave_all(reason)
    for name in fitted.keys() - offer.tensors.keys():
        prefix = name.rpartition("attn.")[0]
        sources = [f"{prefix}attn.{which}" for which in ("q_bias", "v_bias", "qkv.bias")]
        offer.made_of[name] = tuple(dict.fromkeys(s for n in sources for s in offer.made_of.get(n, ())))
    offer.tensors = fitted


def _fit_table(offer: Offer, name: str, modality: Modality, converted: Converted, target: Target, source: str) -> None:
    """A position table of the file for the model's grid, or the reason why the model's own is kept."""
    grid, part = target.grids[modality], offer.part
    table = offer.tensors[name]
    has_cls = converted.has_cls("video" if converted.layout == "image_mae" else modality)
    num_prefix = target.shapes[part][name][1] - grid.num_tokens
    codes = table[:, int(has_cls) :]
    if converted.layout == "image_mae":
        if modality == "audio":
            return offer.leave(name, "positions of a picture")
        if grid.cells[0] > 1 and not (target.tiled or f"{part}.{name}" in target.learned):
            return offer.leave(name, "positions of one picture; the model's own are computed with the time (sincos_3d)")
    held = _held_grid(converted, modality, codes.shape[1], grid)
    if held is None:
        return offer.leave(name, f"its {codes.shape[1]} positions fit no grid known here")
    if converted.layout == "image_mae":
        codes, held = codes.repeat(1, grid.cells[0], 1), replace(held, cells=(grid.cells[0], *held.cells[1:]))
    try:
        codes = resize_positions(codes, held, grid)
    except ValueError as error:
        raise UserError(f"{source}: {part}.{name} does not fit: {error} ({_size_settings(modality)})") from error
    # A table without a row for CLS gets a zero one, as fixed tables have [source MAE].
    prefix = table[:, : int(has_cls)] if has_cls else torch.zeros_like(table[:, :1])
    offer.tensors[name] = torch.cat([prefix[:, :num_prefix], codes], dim=1)
    return None


def _held_grid(converted: Converted, modality: Modality, num_tokens: int, grid: TokenGrid) -> TokenGrid | None:
    """The grid of a file's table: what its project is known to use, else what the model's grid makes of it."""
    if num_tokens == grid.num_tokens and (modality == "audio" or converted.layout not in ("image_mae", "cav_mae")):
        return grid
    if modality == "audio":
        mel_bins = MEL_BINS.get(converted.layout, 128)
        is_mel_first = grid.axes == (1, 0)
        steps, bins = grid.patch[::-1] if is_mel_first else grid.patch
        size = spectrogram_size(num_tokens, (steps, bins), mel_bins)
        if size is None:
            return None
        held = TokenGrid.of((size[0], mel_bins), (steps, bins), grid.channels, size[1])
        return held.reordered((1, 0)) if is_mel_first else held
    if converted.layout in ("image_mae", "cav_mae"):
        side = math.isqrt(num_tokens)
        return replace(grid, cells=(1, side, side)) if side * side == num_tokens else None
    sides: list[tuple[int, int]] = [
        (PICTURE_SIDE // grid.patch[1], PICTURE_SIDE // grid.patch[2]),
        (grid.cells[1], grid.cells[2]),
    ]
    fitting = ((num_tokens // (h * w), h, w) for h, w in sides if h * w and num_tokens % (h * w) == 0)
    cells = next(fitting, None)
    return None if cells is None else replace(grid, cells=cells)


def _size_settings(modality: Modality) -> str:
    return "audio.num_steps, audio.num_mel_bins" if modality == "audio" else "video.num_frames, video.size"


def _leave_what_does_not_fit(offer: Offer, target: Target, rules: Rules) -> None:
    """A decoder is taken whole or not at all, but for what it predicts and for its positions."""
    if not rules.decoders:
        return offer.leave_all("task.start.decoders is false")
    wanted = target.shapes[offer.part]
    if ("blocks.0.attn.temperature" in offer.tensors) != ("blocks.0.attn.temperature" in wanted):
        kinds = {True: "windowed", False: "global"}
        held = kinds["blocks.0.attn.temperature" in offer.tensors]
        return offer.leave_all(f"its attention is {held}, the model's is not: set attention={held} to take it")
    core = {n: tuple(t.shape) for n, t in offer.tensors.items() if not _is_free(n)}
    wanted_core = {n: shape for n, shape in wanted.items() if not _is_free(n)}
    if core != wanted_core:
        return offer.leave_all(_difference(core, wanted_core))
    for name in [n for n in offer.tensors if n.startswith(("pred.", "preds.", "discriminate."))]:
        if name in wanted and tuple(offer.tensors[name].shape) != wanted[name]:
            held_rows, rows = len(offer.tensors[name]), wanted[name][0]
            offer.leave(name, f"predicts {held_rows} values per token, the model {rows}")
    return None


def _is_free(name: str) -> bool:
    """What a decoder may lack or have otherwise: predictions, positions, modality vectors."""
    return name.startswith(("pred.", "preds.", "discriminate.")) or name.endswith(("pos_embed", "modality_embed"))


def _difference(held: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    name = next((n for n in [*held, *wanted] if held.get(n) != wanted.get(n)), "")
    return f"another decoder: {name} is {held.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
