"""Audio-MAE: pre-training with global or windowed decoder, fine-tuning."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mavil.config.exclusions import DEFAULT_WINDOWS
from mavil.losses.reconstruction import masked_mse, normalise_patches
from mavil.models.classifier import JOINT, Classifier
from mavil.models.decoder import Decoder
from mavil.models.encoder import Encoder
from mavil.models.masking import random_masking, structured_masking
from mavil.models.tokens import patchify
from mavil.structs import MaskedView, TokenGrid
from mavil.tasks.classify import Classification
from tools.parity.building import Weights, bce, compare_table, stack_of
from tools.parity.checks import FEATURES, LOSS, WINDOWED, Checks
from tools.parity.mae import Autoencoder

WINDOWED_MODE = 1
"""``decoder_mode`` of the decoder with attention in windows."""
POSITIONS = "transposed_2d"
"""Its tables are those of the grid with exchanged axes."""
LAYER_DECAY = ("learning_rate", "weight_decay")
"""What ``lr_scale`` says of each parameter."""


def check_pretraining(checks: Checks) -> None:
    """Random and two-dimensional masks: latent, predictions, losses, gradients."""
    config: dict[str, Any] = checks.fixture.get("config")
    grid = _grid(config)
    is_windowed = config["decoder_mode"] == WINDOWED_MODE
    model = _model(checks, config, grid, DEFAULT_WINDOWS["audio"] if is_windowed else None)
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


def _model(checks: Checks, config: dict[str, Any], grid: TokenGrid, window: tuple[int, ...] | None) -> Autoencoder:
    """With ``positions: transposed_2d`` and, in windows, ``shift: time``; tables are compared, then the file's are used."""
    encoder = Encoder(grid, stack_of(config, "depth"), POSITIONS)
    stack = stack_of(config, "decoder_depth", "decoder_")
    decoder = Decoder(grid, encoder.width, stack, POSITIONS, grid.patch_values, window=window, shift="time")
    for name in ("pos_embed", "decoder_pos_embed"):
        compare_table(checks, name, checks.fixture.tensor("state_dict", name), grid, POSITIONS, num_prefix=1)
    return Autoencoder.of(checks, "audio", encoder, decoder, checks.input("inputs", "fbank"))


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
    encoder = Encoder(grid, stack_of(config, "depth"), POSITIONS)
    compare_table(checks, "pos_embed", checks.fixture.tensor("state_dict", "pos_embed"), grid, POSITIONS, num_prefix=1)
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
    if checks.fixture.has("lr_scale"):
        _check_layer_decay(checks, model, weights)
    if checks.fixture.has("masked"):
        view = _structured_view(checks, "masked", grid)
        with torch.no_grad():
            masked = model({"audio": patches}, visible_ids={"audio": view.visible_ids})[JOINT]
        checks.compare(("masked", "logits"), masked, FEATURES)


def _check_layer_decay(checks: Checks, model: Classifier, weights: Weights) -> None:
    """Learning-rate factor and weight decay of every parameter, as fine-tuning groups them."""
    settings: dict[str, float] = checks.fixture.get("lr_scale_settings")
    stored: dict[str, list[float]] = checks.fixture.get("lr_scale")
    if checks.is_float64:
        return
    groups = Classification(model, multi_label=True).parameter_groups(settings["weight_decay"], settings["layer_decay"])
    sources = weights.sources_of(model)
    ours = {
        sources[name]: (group.lr_scale, group.weight_decay)
        for group in groups
        for name in group.names
        if name in sources
    }
    checks.condition("lr_scale: parameters", ours.keys() == stored.keys(), str(len(stored)))
    common = sorted(ours.keys() & stored.keys())
    for i, what in enumerate(LAYER_DECAY):
        off = [name for name in common if not math.isclose(ours[name][i], stored[name][i])]
        remark = f"e.g. {off[0]}: ours {ours[off[0]][i]:g}, theirs {stored[off[0]][i]:g}" if off else ""
        checks.condition(f"lr_scale: {what}", not off, remark)


def _grid(config: dict[str, Any]) -> TokenGrid:
    return TokenGrid.of(tuple(config["input"]), tuple(config["patch"]), 1)


def _structured_view(checks: Checks, key: str, grid: TokenGrid) -> MaskedView:
    """Time and frequency masks from the stored noise."""
    noise = [checks.fixture.tensor("inputs", f"noise_{which}") for which in ("t", "f")]
    shares = [1 - checks.fixture.number(key, f"mask_{which}_prob") for which in ("t", "f")]
    return structured_masking(noise, [int(count * share) for count, share in zip(grid.cells, shares, strict=True)])
