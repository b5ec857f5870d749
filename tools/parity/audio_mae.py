"""Audio-MAE: pre-training with global or windowed decoder, fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mavil.config.exclusions import DEFAULT_WINDOWS
from mavil.losses.reconstruction import masked_mse, normalise_patches
from mavil.models.classifier import JOINT, Classifier
from mavil.models.masking import random_masking, structured_masking
from mavil.models.tokens import patchify
from mavil.structs import MaskedView, TokenGrid
from tools.parity.building import Weights, bce, build_encoder, stack_of
from tools.parity.checks import FEATURES, LOSS, WINDOWED, Checks
from tools.parity.mae import Autoencoder

WINDOWED_MODE = 1
"""``decoder_mode`` of the decoder with attention in windows."""


def check_pretraining(checks: Checks) -> None:
    """Random and two-dimensional masks: latent, predictions, losses, gradients."""
    config: dict[str, Any] = checks.fixture.get("config")
    grid = _grid(config)
    is_windowed = config["decoder_mode"] == WINDOWED_MODE
    window = DEFAULT_WINDOWS["audio"] if is_windowed else None
    model = Autoencoder.of(checks, "audio", grid, checks.input("inputs", "fbank"), window)
    limit = WINDOWED if is_windowed else FEATURES
    kept = int(grid.num_tokens * (1 - checks.fixture.number("pretrain", "mask_ratio")))
    view = random_masking(checks.fixture.tensor("inputs", "noise"), kept)
    model.check_view(view, "pretrain")
    predictions = model.predict(view)
    with torch.no_grad():
        checks.compare(("pretrain", "latent"), model.latent(view), FEATURES)
    model.check_predictions(predictions, "pretrain", limit)
    loss = model.check_losses(predictions, view, "pretrain")
    model.check_gradients(loss, ("pretrain", "grad_norms"))
    if checks.fixture.has("pretrain_2d"):
        with torch.no_grad():
            _check_structured(checks, model, limit)


def _check_structured(checks: Checks, model: Autoencoder, limit: float) -> None:
    view = _structured_view(checks, "pretrain_2d", model.encoder.grid)
    model.check_view(view, "pretrain_2d")
    latent = model.latent(view)
    checks.exact(("pretrain_2d", "latent_shape"), torch.tensor(latent.shape))
    checks.compare(("pretrain_2d", "latent_mean"), latent.mean(dim=1), FEATURES)
    predictions = model.predict(view)
    model.check_predictions(predictions, "pretrain_2d", limit)
    loss = masked_mse(predictions, normalise_patches(model.patches), view.is_masked)
    checks.compare(("pretrain_2d", "loss_norm_pix"), loss, LOSS)


def check_finetuning(checks: Checks) -> None:
    """Scores of the complete and of the masked spectrogram, loss, gradients."""
    config: dict[str, Any] = checks.fixture.get("config")
    grid = _grid(config)
    encoder = build_encoder(grid, stack_of(config, "depth"))
    model = Classifier({"audio": encoder}, None, int(config["num_classes"]))
    weights = Weights(checks)
    weights.fill(model.parts())
    patches = patchify(checks.input("inputs", "fbank"), grid)
    scores: Tensor = model({"audio": patches})[JOINT]
    checks.compare(("logits",), scores, FEATURES)
    loss = bce(scores, checks.input("inputs", "targets"))
    checks.compare(("bce",), loss, LOSS)
    weights.forget_gradients()
    loss.backward()
    checks.gradients(("grad_norms",), weights.gradient_norms())
    if checks.fixture.has("masked"):
        view = _structured_view(checks, "masked", grid)
        with torch.no_grad():
            masked = model({"audio": patches}, visible_ids={"audio": view.visible_ids})[JOINT]
        checks.compare(("masked", "logits"), masked, FEATURES)


def _grid(config: dict[str, Any]) -> TokenGrid:
    return TokenGrid.of(tuple(config["input"]), tuple(config["patch"]), 1)


def _structured_view(checks: Checks, key: str, grid: TokenGrid) -> MaskedView:
    """Time and frequency masks from the stored noise."""
    noise = [checks.fixture.tensor("inputs", f"noise_{which}") for which in ("t", "f")]
    shares = [1 - checks.fixture.number(key, f"mask_{which}_prob") for which in ("t", "f")]
    return structured_masking(noise, [int(count * share) for count, share in zip(grid.cells, shares, strict=True)])
