"""The part of a model that embeds clips: encoders, fusion and projections, without decoders and heads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mavil.config import AudioBranch, ClassifyTask, Recipe, VideoBranch
from mavil.export.network import FineTunedEncoders, unloaded_network
from mavil.models.masked import MaskedLearner, Projection
from mavil.models.weights import load_parts
from mavil.models.weights.parts import Grids
from mavil.structs import MODALITIES, Modality

_NOT_SEEN = ("decoder", "mask_ratio", "masking", "augment")
"""Settings of a branch that an embedding does not depend on."""


def build_network(
    recipe: Recipe, parts: Mapping[str, Mapping[str, Tensor]], source: str, grids: Grids | None = None
) -> MaskedLearner:
    """The network that embeds, on the CPU, in evaluation mode: a :class:`MaskedLearner` without decoders.

    Args:
        recipe: of the model.
        parts: tensors by part and name; those of other parts are not looked at.
        source: what to call them in messages.
        grids: how the weights' input is cut and how the recipe's, where they may differ.

    Raises:
        UserError: a part is missing or does not fit.
    """
    model = unloaded_network(recipe)
    load_parts(model.parts(), parts, source, grids)
    return model.eval().requires_grad_(False)


def pooled_jointly(model: MaskedLearner, tokens: Mapping[Modality, Tensor]) -> dict[Modality, Tensor]:
    """Mean patch token ``[B, D]`` of each modality behind the fusion, or behind its encoder where there is none.

    Through the norm that stands there; of a classifier as its blocks give them, unless its head looks at normalised ones
    (:class:`~mavil.export.network.FineTunedEncoders`). A modality without the other passes the fusion alone: nothing stands in
    the other's place.

    Args:
        model: from :func:`build_network`.
        tokens: raw encoder outputs ``[B, c + N, D]`` of what all these clips have.
    """
    found: dict[Modality, Tensor] = {}
    for modality, (values, norm) in fused(model, tokens).items():
        patches = values[-1][:, model.encoder(modality).num_prefix :]
        found[modality] = norm(patches).mean(dim=1)
    return found


def fused(model: MaskedLearner, tokens: Mapping[Modality, Tensor]) -> dict[Modality, tuple[list[Tensor], nn.Module]]:
    """What leaves each fusion block, ``[B, c + N, D]``, and the norm behind the last; without a fusion the encoder's own output.

    Arguments as in :func:`pooled_jointly`.
    """
    is_raw = isinstance(model, FineTunedEncoders)
    fusion = model.fusion
    if fusion is None:
        return {m: ([values], nn.Identity() if is_raw else model.encoder(m).norm) for m, values in tokens.items()}
    is_alone = len(tokens) == 1
    if is_alone and fusion.norms_alone() and model.pooled_from == "encoder" and not is_raw:
        # Pre-training never passed one modality alone, so the norms for that are as they were made: the joint ones stand in.
        layers, is_alone = _beside_nothing(model, tokens), False
    else:
        layers = fusion(tokens).layers
    return {m: (layers[m], nn.Identity() if is_raw else fusion.norm_of(m, is_alone)) for m in tokens}


def _beside_nothing(model: MaskedLearner, tokens: Mapping[Modality, Tensor]) -> dict[Modality, list[Tensor]]:
    """The fusion of one modality and one token of the other that nobody sees."""
    ((modality, values),) = tokens.items()
    other: Modality = "video" if modality == "audio" else "audio"
    encoder = model.encoder(other)
    unseen = values.new_zeros(len(values), encoder.num_prefix + 1, encoder.width)
    nowhere = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    assert model.fusion is not None
    return model.fusion({modality: values, other: unseen}, {modality: None, other: nowhere}).layers


def widths_of(model: MaskedLearner) -> dict[Modality, int]:
    """Values of an embedding by modality: Z of the projection, D of the encoder without one."""
    widths: dict[Modality, int] = {}
    for modality in (m for m in MODALITIES if m in model.encoders):
        projection = dict(model.projections.items()).get(modality)
        widths[modality] = (
            projection.fc2.out_features if isinstance(projection, Projection) else model.encoder(modality).width
        )
    return widths


def digest_of(model: MaskedLearner, recipe: Recipe) -> str:
    """SHA-256, 64 hexadecimal digits, of all tensors' names and values and of the settings that an embedding depends on."""
    digest = hashlib.sha256(json.dumps(_settings_of(model, recipe), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _settings_of(model: MaskedLearner, recipe: Recipe) -> dict[str, Any]:
    branches: dict[str, AudioBranch | VideoBranch | None] = {m: recipe.branch(m) for m in recipe.modalities}
    held = {m: branch.model_dump(mode="json") for m, branch in branches.items() if branch is not None}
    fusion = recipe.fusion.model_dump(mode="json") if recipe.fusion is not None and model.fusion is not None else None
    return {
        "branches": {m: {n: v for n, v in tree.items() if n not in _NOT_SEEN} for m, tree in held.items()},
        "fusion": fusion,
        "pooled_from": model.pooled_from,
        "pooling": model.pooling,
        "is_classifier": isinstance(recipe.task, ClassifyTask),
    }
