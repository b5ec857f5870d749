"""Masked autoencoders of one modality: image MAE here, Audio-MAE with the same steps in its own file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mavil.losses.reconstruction import masked_mse, normalise_patches
from mavil.models.decoder import Decoder
from mavil.models.encoder import Encoder
from mavil.models.masked import MaskedLearner
from mavil.models.masking import random_masking
from mavil.models.tokens import patchify, position_table
from mavil.structs import MaskedView, MaskedViews, Modality
from tools.parity.building import Weights, any_table, at, build_encoder, image_grid, stack_of, tapped, visible_only
from tools.parity.checks import FEATURES, LOSS, TABLE, Checks
from tools.parity.fixture import Key


@dataclass
class Autoencoder:
    """Encoder and decoder of one modality with a file's weights, and its inputs as patches ``[B, N, P]``."""

    checks: Checks
    modality: Modality
    learner: MaskedLearner
    weights: Weights
    patches: Tensor

    @classmethod
    def of(cls, checks: Checks, modality: Modality, encoder: Encoder, decoder: Decoder, inputs: Tensor) -> Autoencoder:
        """With the file's weights; ``inputs`` ``[B, C, *size]``."""
        learner = MaskedLearner({modality: encoder}, {modality: decoder}, None)
        weights = Weights(checks)
        weights.fill(learner.parts())
        return cls(checks, modality, learner, weights, patchify(inputs, encoder.grid))

    @property
    def encoder(self) -> Encoder:
        """Its only one."""
        return self.learner.encoder(self.modality)

    def predict(self, view: MaskedView) -> Tensor:
        """``[B, N, P]``."""
        views = {self.modality: MaskedViews([view])}
        return self.learner({self.modality: self.patches}, views).predictions[self.modality][0]

    def latent(self, view: MaskedView) -> Tensor:
        """``[B, 1 + K, D]`` behind the last norm, CLS first."""
        return self.encoder.norm(self.encoder(visible_only(self.patches, view), view.visible_ids))

    def check_view(self, view: MaskedView, key: str) -> None:
        """The mask itself."""
        self.checks.exact((key, "mask"), view.is_masked)
        self.checks.exact((key, "ids_restore"), view.restore_ids)

    def check_predictions(self, predictions: Tensor, key: str, limit: float) -> None:
        """Those stored, and summaries of all."""
        checks = self.checks
        index = checks.fixture.tensor(key, "pred_token_index")
        checks.compare((key, "pred"), at(predictions, index), limit)
        if checks.fixture.has(key, "pred_mean"):
            checks.compare((key, "pred_mean"), predictions.flatten(1).mean(dim=1), limit)
        if checks.fixture.has(key, "pred_token_norm"):
            checks.compare((key, "pred_token_norm"), predictions.norm(dim=-1), 10 * limit)

    def check_losses(self, predictions: Tensor, view: MaskedView, key: str, f64: bool = False) -> Tensor:
        """Against normalised and raw patches; gives the first, and fills gradients with it where norms are stored."""
        checks = self.checks
        loss = masked_mse(predictions, normalise_patches(self.patches), view.is_masked)
        checks.compare((key, "loss_norm_pix"), loss, LOSS, ("f64", "loss_norm_pix") if f64 else None)
        if checks.fixture.has(key, "loss_raw_pixels"):
            raw = masked_mse(predictions, self.patches, view.is_masked)
            checks.compare((key, "loss_raw_pixels"), raw, LOSS, ("f64", "loss_raw_pixels") if f64 else None)
        if checks.fixture.has(key, "target_raw"):
            index = checks.fixture.tensor(key, "target_raw_token_index")
            checks.exact((key, "target_raw"), at(self.patches, index))
        return loss

    def check_gradients(self, loss: Tensor, key: Key) -> None:
        """Norms of the gradients of a loss."""
        self.weights.forget_gradients()
        loss.backward()
        self.checks.gradients(key, self.weights.gradient_norms())


def check_pretraining(checks: Checks) -> None:
    """Image MAE: mask, latent, predictions, losses, gradients, and features of the complete image."""
    config: dict[str, Any] = checks.fixture.get("config")
    grid = image_grid(int(config["img_size"]), int(config["patch_size"]), int(config["in_chans"]))
    encoder = build_encoder(grid, stack_of(config, "depth"))
    stack = stack_of(config, "decoder_depth", "decoder_")
    decoder = Decoder(grid, encoder.width, stack, any_table(grid), grid.patch_values)
    model = Autoencoder.of(checks, "video", encoder, decoder, checks.input("inputs", "image").unsqueeze(2))
    noise = checks.fixture.tensor("inputs", "noise")
    kept = int(grid.num_tokens * (1 - checks.fixture.number("pretrain", "mask_ratio")))
    checks.exact(("pretrain", "visible"), kept)
    view = random_masking(noise, kept)
    model.check_view(view, "pretrain")
    with tapped({"blocks": model.encoder.blocks, "decoder_blocks": decoder.blocks}) as taps:
        predictions = model.predict(view)
    for name in checks.fixture.keys("pretrain", "taps"):
        checks.compare(("pretrain", "taps", name), taps[name], FEATURES)
    with torch.no_grad():
        latent = model.latent(view)
        checks.compare(("pretrain", "latent"), latent, FEATURES)
        if checks.is_float64:
            checks.compare(("f64", "latent_mean"), latent.mean(dim=1), FEATURES, f64=("f64", "latent_mean"))
        _check_features(checks, model)
    model.check_predictions(predictions, "pretrain", FEATURES)
    loss = model.check_losses(predictions, view, "pretrain", f64=True)
    model.check_gradients(loss, ("pretrain", "grad_norms"))
    for name, width in (("pos_embed", "embed_dim"), ("decoder_pos_embed", "decoder_embed_dim")):
        if name in checks.fixture.content.get("frozen", []):
            # Fixed tables in the file are what ours would be.
            stored = checks.fixture.tensor("state_dict", name)
            ours = position_table(grid, int(config[width]), "tiled_2d")
            checks.add(name, ours, stored, TABLE, "absolute")


def _check_features(checks: Checks, model: Autoencoder) -> None:
    tokens = model.encoder(model.patches)
    checks.compare(("features", "norm_then_cls"), model.encoder.norm(tokens)[:, 0], FEATURES)
    pooled = model.encoder.norm(tokens[:, model.encoder.num_prefix :].mean(dim=1))
    checks.compare(("features", "mean_pool_then_norm"), pooled, FEATURES)
