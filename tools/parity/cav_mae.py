"""CAV-MAE: what its pre-training and its fine-tuning files have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mavil.models.encoder import Encoder
from mavil.models.fusion import JointFusion
from mavil.models.tokens import patchify
from mavil.structs import MODALITIES, Modality, TokenGrid
from tools.parity.building import at, build_encoder, image_grid, stack_of
from tools.parity.checks import FEATURES, Checks

Tokens = dict[Modality, Tensor]


def grids_of(config: Mapping[str, Any]) -> dict[Modality, TokenGrid]:
    """Sound mel band by mel band, a picture as a clip of one frame."""
    patch = int(config["patch_size"])
    audio = TokenGrid.of((int(config["audio_length"]), int(config["mel_bins"])), (patch, patch), 1).reordered((1, 0))
    return {"audio": audio, "video": image_grid(int(config["img_size"]), patch, int(config["in_chans"]))}


def patches_of(checks: Checks, grids: Mapping[Modality, TokenGrid]) -> Tokens:
    """The file's inputs, cut."""
    audio, video = checks.input("inputs", "audio").unsqueeze(1), checks.input("inputs", "video").unsqueeze(2)
    return {"audio": patchify(audio, grids["audio"]), "video": patchify(video, grids["video"])}


def encoders_of(config: Mapping[str, Any], trained_positions: bool) -> dict[Modality, Encoder]:
    """Without CLS, with a vector per modality."""
    return {
        m: build_encoder(
            grid,
            stack_of(config, f"{m}_blocks"),
            cls_token=False,
            modality_embedding=True,
            trained_positions=trained_positions,
        )
        for m, grid in grids_of(config).items()
    }


def check_retrieval_features(
    checks: Checks, encoders: Mapping[Modality, Encoder], fusion: JointFusion, patches: Tokens, key: str
) -> None:
    """Complete inputs, each modality through the fusion alone."""
    embeddings: Tokens = {}
    for m in MODALITIES:
        encoder, letter = encoders[m], m[0]
        index = checks.fixture.tensor(key, f"embed_{letter}_token_index")
        checks.compare((key, f"embed_{letter}"), at(encoder.embed(patches[m]), index), FEATURES)
        tokens = fusion.norm_of(m, alone=True)(fusion({m: encoder(patches[m])}).output(m))
        checks.compare((key, letter), at(tokens, checks.fixture.tensor(key, f"{letter}_token_index")), FEATURES)
        embeddings[m] = tokens.mean(dim=1)
        checks.compare((key, f"{letter}_mean"), embeddings[m], FEATURES, f64=("f64", f"{letter}_mean"))
    normed = {m: torch.nn.functional.normalize(values, dim=1) for m, values in embeddings.items()}
    checks.compare((key, "similarity"), normed["audio"] @ normed["video"].T, FEATURES)
