"""Starting a model from other projects' weights: which file fills which part, and a report of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from mavil.models.weights.converted import Converted
from mavil.models.weights.layouts import LAYOUTS, convert
from mavil.models.weights.offers import Offer, Rules, Target, offer_for
from mavil.models.weights.reading import read_file
from mavil.models.weights.report import PartReport, StartReport
from mavil.models.weights.spreading import cav_mae_from_image, further_blocks, fusion_from_last_block, told_of_copies
from mavil.models.weights.told import told_by
from mavil.structs import MODALITIES, Modality, UserError

Parts = dict[str, dict[str, Tensor]]


def start_parts(
    target: Target,
    audio: str | Path | None = None,
    video: str | Path | None = None,
    model: str | Path | None = None,
    kernel_inflation: str = "copy",
    decoders: bool = True,
    fusion: str = "last_block",
    positions: str = "known",
    allow_pickle: bool = False,
    new_fusion_blocks: str = "random",
) -> tuple[Parts, StartReport]:
    """Tensors for the parts of a model from other projects' files, and what was taken and what not.

    Args:
        target: the model.
        audio, video: checkpoint files for one branch each; an image MAE fits both.
        model: a file for everything: MAViL, CAV-MAE, or an image MAE by CAV-MAE's rule. Excludes the other two.
        kernel_inflation, decoders, fusion, positions, allow_pickle: as in the settings ``task.start``.
        new_fusion_blocks: what fusion blocks beyond those of ``model`` begin as, as in the setting of that name.

    Returns:
        Tensors by part, each in its tensor's shape; tensors that are not among them stay as they are. See :func:`load_start`.

    Raises:
        UserError: a file cannot be read or is of an unknown layout, has nothing for what it is given for, or a tensor has
            another shape than the model's.
    """
    rules = Rules(kernel_inflation, decoders, positions, allow_pickle)
    parts: Parts = {}
    report = StartReport()
    if model is not None:
        if audio is not None or video is not None:
            raise UserError(
                "task.start.model fills both branches: set it alone, or task.start.audio and task.start.video"
            )
        _start_whole(str(model), target, rules, parts, report, copies=new_fusion_blocks == "copy_last")
    files: dict[Modality, str | Path | None] = {"audio": audio, "video": video}
    for modality in MODALITIES:
        path = files[modality]
        if path is not None:
            _start_branch(modality, str(path), target, rules, parts, report)
    if fusion == "last_block" and "fusion" in target.shapes:
        _start_fusion(files, target, parts, report)
    report.untouched = [part for part in target.shapes if part not in report.parts]
    return parts, report


def load_start(parts: Mapping[str, nn.Module], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Copy what :func:`start_parts` found into a model; what it did not find stays as it is."""
    for name, found in tensors.items():
        parts[name].load_state_dict(dict(found), strict=False)


def _start_branch(
    modality: Modality, path: str, target: Target, rules: Rules, parts: Parts, report: StartReport
) -> None:
    converted = _converted(path, rules)
    encoder = f"{modality}_encoder"
    if encoder not in target.shapes:
        raise UserError(f"task.start.{modality} is {path}, but the model has no {modality} branch: leave it out")
    if encoder not in converted.parts and converted.layout != "image_mae":
        raise UserError(
            f"task.start.{modality}: {path} is {_named(converted)}, which has no {modality} branch: give "
            + (
                "Audio-MAE, MSM-MAE, MAE-AST or an image MAE"
                if modality == "audio"
                else "an image MAE, MAE-ST or VideoMAE"
            )
        )
    offers = []
    left = dict(converted.unused)
    held_modality = modality if encoder in converted.parts else "video"
    for part, tensors in converted.parts.items():
        wanted = part.replace(f"{held_modality}_", f"{modality}_", 1)
        if part in (f"{held_modality}_encoder", f"{held_modality}_decoder") and wanted in target.shapes:
            offers.append(offer_for(wanted, converted, target, rules, path))
        else:
            left |= _all_of(part, tensors, converted, f"task.start.{modality} fills only that branch")
    _settle(path, converted, offers, left, target, parts, report)


def _start_whole(path: str, target: Target, rules: Rules, parts: Parts, report: StartReport, copies: bool) -> None:
    converted = _converted(path, rules)
    if converted.layout == "image_mae":
        converted = cav_mae_from_image(converted, target)
    elif converted.layout not in ("mavil", "cav_mae"):
        raise UserError(
            f"task.start.model: {path} is {_named(converted)}, which has one branch: give it as task.start.audio or "
            "task.start.video"
        )
    offers, left = [], dict(converted.unused)
    for part, tensors in converted.parts.items():
        if part in target.shapes:
            offers.append(offer_for(part, converted, target, rules, path))
            if part == "fusion" and copies:
                _deepen(offers[-1], target, report)
        else:
            left |= _all_of(part, tensors, converted, f"the model has no {part}")
    _settle(path, converted, offers, left, target, parts, report)


def _converted(path: str, rules: Rules) -> Converted:
    file = read_file(path, rules.allow_pickle)
    return convert(file.tensors, path, told_by(file.settings, path).patch)


def _start_fusion(
    files: Mapping[Modality, str | Path | None], target: Target, parts: Parts, report: StartReport
) -> None:
    """Every fusion block from the last encoder block of the video start, else of the audio start [source AV-SUPERB copy]."""
    for modality in ("video", "audio"):
        if files[modality] is None:
            continue
        offer = fusion_from_last_block(parts.get(f"{modality}_encoder", {}), target.shapes["fusion"])
        source = f"the last block of {modality}_encoder"
        parts["fusion"], report.parts["fusion"] = _taken(offer, target, source)
        return


def _deepen(offer: Offer, target: Target, report: StartReport) -> None:
    """Blocks that the model has and the file has not, as copies of its last one."""
    copies = further_blocks(offer.tensors, target.shapes[offer.part])
    for name, held in copies.items():
        offer.tensors[name] = offer.tensors[held]
        offer.made_of[name] = offer.made_of[held]
    if copies:
        report.remarks.append(f"{offer.part}: {told_of_copies(copies)}")


def _settle(
    path: str,
    converted: Converted,
    offers: list[Offer],
    left: dict[str, str],
    target: Target,
    parts: Parts,
    report: StartReport,
) -> None:
    source = f"{path} ({_named(converted)})"
    for offer in offers:
        tensors, part_report = _taken(offer, target, source)
        report.parts[offer.part] = part_report
        if tensors:
            parts[offer.part] = tensors
    report.unused[path] = report.unused.get(path, {}) | left
    if not any(parts.get(offer.part) for offer in offers):
        raise UserError(
            f"{source}: not one tensor of it fits this model: look at the model's settings, or leave the start out"
        )


def _taken(offer: Offer, target: Target, source: str) -> tuple[dict[str, Tensor], PartReport]:
    """What of an offer the model takes."""
    report = PartReport(source)
    extra = dict(offer.left)
    tensors: dict[str, Tensor] = {}
    wanted = target.shapes[offer.part]
    is_head = offer.part.endswith(("head", "fc_norm"))
    for name, tensor in offer.tensors.items():
        if name not in wanted:
            extra[name] = "the model has none: other settings, or fewer blocks"
        elif tuple(tensor.shape) == wanted[name]:
            tensors[name] = tensor
            report.loaded.append(name)
        elif is_head:
            extra[name] = f"{tuple(tensor.shape)} there and {wanted[name]} here: other classes"
        else:
            raise UserError(
                f"{source}: {offer.part}.{name} is {tuple(tensor.shape)} there and {wanted[name]} here: "
                f"{_advice(offer.part, name, tensor)}"
            )
    for name in wanted:
        if name not in tensors:
            report.missing[name] = extra.get(name, offer.absent)
    report.extra = {source: reason for name, reason in extra.items() for source in offer.made_of[name]}
    return tensors, report


def _advice(part: str, name: str, tensor: Tensor) -> str:
    """Which setting makes the model fit the tensor."""
    branch, _, tower = part.partition("_")
    settings = f"{branch}.{tower}" if tower in ("encoder", "decoder") else "audio.encoder"
    if name == "patch_embed.proj.weight":
        patch = [int(size) for size in tensor.shape[2:]]
        return f"set {settings}.width={tensor.shape[0]} and {branch}.patch={patch}"
    if ".mlp." in name and name.endswith("fc1.weight"):
        return f"set {settings}.width={tensor.shape[1]} and {settings}.mlp_ratio={tensor.shape[0] / tensor.shape[1]:g}"
    if ".mlp.fc1" in name:
        return f"set {settings}.mlp_ratio for {tensor.shape[0]} hidden channels"
    width = tensor.shape[0] // 3 if ".qkv." in name else tensor.shape[0] if tensor.dim() == 1 else tensor.shape[-1]
    return f"set {settings}.width={width}"


def _all_of(part: str, tensors: Mapping[str, Tensor], converted: Converted, reason: str) -> dict[str, str]:
    """Every tensor of a part by its name in the file."""
    return {source: reason for name in tensors for source in converted.origin[f"{part}.{name}"]}


def _named(converted: Converted) -> str:
    return LAYOUTS[converted.layout].partition(" (")[0]
