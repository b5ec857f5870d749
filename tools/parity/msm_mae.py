"""MSM-MAE: a masked autoencoder without a bias of keys, over patches that are numbered mel band by mel band."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mavil.losses.reconstruction import masked_mse, normalise_patches
from mavil.models.decoder import Decoder
from mavil.models.encoder import Encoder
from mavil.models.tokens import unpatchify
from mavil.structs import MaskedView, TokenGrid
from tools.parity.building import compare_table, stack_of
from tools.parity.checks import FEATURES, LOSS, Checks
from tools.parity.mae import Autoencoder

DECODER_POSITIONS = {"1d": "sincos_1d", "2d": "sincos_2d"}
DEFECT = "the original's defect, repeated here: its decoder drops the first visible token"
"""Of files without CLS. Ours does not have it; the view of :func:`_without_first` makes our decoder do the same."""


def check(checks: Checks) -> None:
    """Mask, latent, every layer of the complete spectrogram, predictions, loss, gradients, pictures."""
    config: dict[str, Any] = checks.fixture.get("config")
    model = _model(checks, config)
    view = _view(checks.fixture.tensor("ids_restore"), checks.fixture.tensor("mask"))
    checks.exact(("mask",), view.is_masked)
    checks.exact(("ids_restore",), view.restore_ids)
    checks.compare(("patches",), model.patches, 0.0, ("f64", "patches"), "exact")
    with torch.no_grad():
        _check_complete(checks, model)
    latent = model.latent(view)
    checks.compare(("latent",), latent, FEATURES, ("f64", "latent"))
    decoder, has_cls = model.learner.decoders["audio"], bool(config["cls_token"])
    remark = "" if has_cls else DEFECT
    predictions = decoder(latent, view) if has_cls else decoder(latent[:, 1:], _without_first(view))
    checks.compare(("pred",), predictions, FEATURES, ("f64", "pred"), remark=remark)
    targets = normalise_patches(model.patches) if config["norm_pix_loss"] else model.patches
    loss = masked_mse(predictions, targets, view.is_masked)
    checks.compare(("loss",), loss, LOSS, ("f64", "loss"), remark=remark)
    model.weights.forget_gradients()
    loss.backward()
    checks.full_gradients(("grads",), model.weights.gradients(), remark)
    if not has_cls:
        with torch.no_grad():
            own = masked_mse(decoder(latent, view), targets, view.is_masked)
        checks.notes.append(f"our decoder takes every visible token: its loss here is {float(own):.4f}")
    _check_pictures(checks, model, view, predictions.detach(), loss.detach())


def _model(checks: Checks, config: dict[str, Any]) -> Autoencoder:
    """What MSM-MAE's recipe builds, in the file's size."""
    (bins, steps), (bin_patch, step_patch) = config["input"], config["patch"]
    grid = TokenGrid.of((steps, bins), (step_patch, bin_patch), 1).reordered((1, 0))
    has_cls = bool(config["cls_token"])
    positions = DECODER_POSITIONS[config["decoder_positions"]]
    encoder = Encoder(grid, stack_of(config, "depth", key_bias=False), "sincos_2d", cls_token=has_cls)
    stack = stack_of(config, "decoder_depth", "decoder_", key_bias=False)
    decoder = Decoder(grid, encoder.width, stack, positions, grid.patch_values, has_cls=has_cls)
    for name, kind in (("pos_embed", "sincos_2d"), ("decoder_pos_embed", positions)):
        compare_table(checks, name, checks.fixture.tensor("state_dict", name), grid, kind, encoder.num_prefix)
    # The file's spectrograms have the mel bins first, ours the time.
    return Autoencoder.of(checks, "audio", encoder, decoder, checks.input("x").transpose(2, 3))


def _view(restore_ids: Tensor, is_masked: Tensor) -> MaskedView:
    """The visible tokens in the order of the file, which an unstable sort of the mask has left."""
    order, visible = restore_ids.argsort(dim=1), int((is_masked[0] == 0).sum())
    return MaskedView(order[:, :visible], order[:, visible:], restore_ids)


def _without_first(view: MaskedView) -> MaskedView:
    """What the original's decoder sees without CLS, given all visible tokens but the first.

    It takes the first token for CLS and drops it; the others move up by one place, and a mask token fills the last.
    """
    visible, masked = view.visible_ids, view.masked_ids
    return MaskedView(visible[:, :-1], torch.cat([visible[:, -1:], masked], dim=1), view.restore_ids)


def _check_complete(checks: Checks, model: Autoencoder) -> None:
    """The complete spectrogram: what leaves each block, the last one behind the norm."""
    layers = list(model.encoder.layers(model.patches))[1:]
    full = model.encoder.norm(layers[-1])
    checks.compare(("full",), full, FEATURES, ("f64", "full"))
    checks.compare(("layers",), torch.stack([*layers[:-1], full]), FEATURES, ("f64", "layers"))


def _check_pictures(checks: Checks, model: Autoencoder, view: MaskedView, predictions: Tensor, loss: Tensor) -> None:
    """Loss; the picture with the visible patches pasted in; its absolute error; the mask on the grid, mel bands first."""
    stored = checks.fixture.get("viz") if checks.fixture.has("viz") else None
    if stored is None or checks.is_float64:
        return
    grid = model.encoder.grid
    pasted = torch.where(view.is_masked[..., None], predictions, model.patches)
    picture = unpatchify(pasted, grid)
    error = (picture - unpatchify(model.patches, grid)).abs()
    checks.add("viz.loss", loss, stored[0], LOSS, "relative")
    checks.add("viz.picture", picture.transpose(2, 3), stored[1], FEATURES, "relative")
    checks.add("viz.error", error.transpose(2, 3), stored[2], FEATURES, "relative")
    checks.add("viz.mask", view.is_masked.unflatten(1, grid.cells), stored[3], 0.0, "exact")
