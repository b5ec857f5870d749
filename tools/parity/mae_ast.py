"""MAE-AST: post-norm blocks, no CLS, no projection in front of the decoder, two heads, statistics of the batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mavil.data.spectrogram import BATCH_VARIANCE_EPS, AudioFrontEnd
from mavil.losses.patch_discrimination import patch_discrimination
from mavil.losses.reconstruction import masked_mse
from mavil.models.decoder import Decoder
from mavil.models.encoder import Encoder
from mavil.models.layers import Stack
from mavil.models.masked import MaskedLearner
from mavil.models.tokens import patchify, select
from mavil.models.weights import convert
from mavil.structs import MaskedView, MaskedViews, TokenGrid
from tools.parity.building import Weights, compare_table
from tools.parity.checks import FEATURES, IN_FLOAT64, Checks
from tools.parity.mae import Autoencoder
from tools.parity.preprocessing import LOG_MEL, NORMALISED

LOSS = 1e-5
"""The limit that the fixtures' authors suggest for this family: its loss is ten times a squared error and more."""
TABLES = {"audio_encoder": "enc_sine_pos_embed", "audio_decoder": "dec_sine_pos_embed"}
SCALE = 0.5
"""What a normalised spectrogram is multiplied with: dividing by twice the deviation."""
MOMENTUM, TRAINING_PASSES = 0.1, 2
"""Of the original's batch normalisation; its statistics are stored after so many passes in training."""


def check(checks: Checks) -> None:
    """Front end; predictions of both heads, loss and gradients in training; hidden states of padded clips in evaluation."""
    config: dict[str, Any] = checks.fixture.get("config")
    _check_front_end(checks, config)
    model = _model(checks, config)
    _check_running_statistics(checks)
    _check_training(checks, config, model)
    with torch.no_grad():
        _check_hidden_states(checks, model)


def _grid(checks: Checks, config: dict[str, Any]) -> TokenGrid:
    """Whole patches; what is left of the spectrogram behind them is dropped."""
    time, bins = int(config["token_time"]), int(config["token_freq"])
    steps, mel_bins = checks.fixture.tensor("fbank").shape[1:]
    return TokenGrid.of((steps // time * time, mel_bins // bins * bins), (time, bins), 1)


def _model(checks: Checks, config: dict[str, Any]) -> Autoencoder:
    """What MAE-AST's recipe builds, in the file's size; the tables are compared, then the file's are used."""
    grid = _grid(checks, config)
    encoder = Encoder(grid, _stack(config, "encoder_layers"), "sincos_1d", cls_token=False)
    stack = _stack(config, "decoder_layers")
    decoder = Decoder(
        *(grid, encoder.width, stack, "sincos_1d", grid.patch_values),
        has_cls=False,
        projects=False,
        discriminates=True,
    )
    tables = {}
    for part, name in TABLES.items():
        table = checks.fixture.tensor("state_dict", f"{name}.pe")
        # The original computes the angles in float32: at position n they are off by up to n times half an epsilon.
        limit = table.shape[1] * torch.finfo(torch.float32).eps
        every_row = TokenGrid((table.shape[1], 1), (1, 1), 1)
        compare_table(checks, name, table, every_row, "sincos_1d", num_prefix=0, limit=limit)
        tables[part] = table[:, : grid.num_tokens]
    weights = Weights(checks, grid.patch)
    learner = MaskedLearner({"audio": encoder}, {"audio": decoder}, None)
    weights.fill(learner.parts(), tables)
    log_mels = checks.input("fbank")
    patches = _patches(_normalised(log_mels, log_mels.mean(), log_mels.var(correction=0)), grid)
    return Autoencoder(checks, "audio", learner, weights, patches)


def _stack(config: dict[str, Any], depth: str) -> Stack:
    return Stack(
        width=int(config["embed_dim"]),
        depth=int(config[depth]),
        num_heads=int(config["num_heads"]),
        # The half keeps a product with the width, which is cut to an integer, from ending just below it.
        mlp_ratio=(config["ffn_dim"] + 0.5) / config["embed_dim"],
        layer_norm_eps=float(config["layer_norm_eps"]),
        post_norm=bool(config["post_norm"]),
    )


def _patches(values: Tensor, grid: TokenGrid) -> Tensor:
    """``[B, S, M]`` to the patches of the part that the grid cuts."""
    return patchify(values[:, None, : grid.size[0], : grid.size[1]], grid)


def _normalised(log_mels: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return SCALE * (log_mels - mean) / (variance + BATCH_VARIANCE_EPS).sqrt()


def _check_front_end(checks: Checks, config: dict[str, Any]) -> None:
    """Log-mel by the front end of ``spectrogram: kaldi_povey``, and the targets it gives with ``batch_statistics: training``."""
    if checks.is_float64:
        return
    fixture = checks.fixture
    waves, (num_steps, num_mel_bins) = fixture.tensor("wav"), fixture.tensor("fbank").shape[1:]
    lengths, seeds = torch.full((len(waves),), waves.shape[1]), torch.zeros(len(waves), dtype=torch.int64)

    def spectrograms(**settings: Any) -> Tensor:
        front_end = AudioFrontEnd(
            num_steps, num_mel_bins, 0.0, 1.0, roll=False, gain=False, spectrogram="kaldi_povey", **settings
        )
        return front_end.train()(waves, lengths, seeds)[:, 0]

    checks.compare(("fbank",), spectrograms(std_factor=1.0), LOG_MEL, rule="absolute")
    patches = _patches(spectrograms(batch_statistics="training"), _grid(checks, config))
    targets = select(patches, torch.tensor(fixture.get("masked_idx")))
    checks.add("net.target_m_list from wav", targets, fixture.tensor("net", "target_m_list"), NORMALISED, "absolute")


def _check_running_statistics(checks: Checks) -> None:
    """What evaluation normalises with: a moving average of mean and unbiased variance of the batches."""
    if checks.is_float64:
        return
    fixture = checks.fixture
    log_mels = fixture.tensor("fbank")
    for name, of_batch in (("running_mean", log_mels.mean()), ("running_var", log_mels.var())):
        value = fixture.tensor("state_dict", f"batch_norm.{name}")
        for _ in range(TRAINING_PASSES):
            value = value + MOMENTUM * (of_batch - value)
        checks.compare(("bn_after", f"batch_norm.{name}"), value, FEATURES)
    passes = fixture.tensor("state_dict", "batch_norm.num_batches_tracked") + TRAINING_PASSES
    checks.exact(("bn_after", "batch_norm.num_batches_tracked"), passes)


def _check_training(checks: Checks, config: dict[str, Any], model: Autoencoder) -> None:
    retained, masked = (torch.tensor(checks.fixture.get(f"{which}_idx")) for which in ("retained", "masked"))
    view = MaskedView(retained, masked, torch.cat([retained, masked], dim=1).argsort(dim=1))
    output = model.learner({"audio": model.patches}, {"audio": MaskedViews([view])})
    predictions, discriminations = output.predictions["audio"][0], output.discriminations["audio"][0]
    for name, values in (
        ("target_m_list", model.patches),
        ("logit_m_list_recon", predictions),
        ("logit_m_list_class", discriminations),
    ):
        checks.compare(("net", name), select(values, masked), FEATURES, ("f64", "net", name))
    checks.exact(("net", "padding_mask"), torch.zeros(len(retained), model.encoder.grid.num_tokens))
    error = masked_mse(predictions, model.patches, view.is_masked)
    info_nce = patch_discrimination(discriminations[None], model.patches, masked[None]).loss
    loss = config["reconstruction_weight"] * error + config["classification_weight"] * info_nce
    checks.compare(("loss",), loss, LOSS, ("f64", "loss"))
    for name, value in (("loss", loss), ("loss_recon", error), ("loss_info_nce", info_nce)):
        checks.compare(("log", name), value, LOSS, ("f64", "log", name))
    for name, count in (("ntokens", masked.shape[1]), ("nsentences", len(masked)), ("sample_size", 1)):
        if checks.fixture.has("log", name):
            checks.exact(("log", name), count)
    model.weights.forget_gradients()
    loss.backward()
    checks.full_gradients(("grads",), model.weights.gradients())


def _check_hidden_states(checks: Checks, model: Autoencoder) -> None:
    """What leaves each layer where the end of a clip is padding; padded tokens mean nothing and are left out."""
    fixture, encoder = checks.fixture, model.encoder
    is_padding = _token_padding(fixture.tensor("pad"), encoder.grid)
    checks.exact(("emb_padding",), is_padding)
    cut = fixture.tensor("fbank").masked_fill(fixture.tensor("pad")[..., None], 0.0)
    checks.exact(("fbank_padded",), cut, "the log-mel with zeros behind the end of a clip")
    # What conversion makes of the running statistics is audio.mean and audio.std.
    after_training = fixture.get("state_dict") | fixture.get("bn_after")
    mean, std = convert(after_training, str(fixture.path)).statistics or (math.nan, math.nan)
    patches = _patches(SCALE * (checks.input("fbank_padded") - mean) / std, encoder.grid)
    states = torch.stack(list(encoder.layers(patches, is_padding))[1:])[:, ~is_padding]
    limit = IN_FLOAT64 if checks.is_float64 else FEATURES
    for name, ours in (("hidden_states", states), ("emb", states[-1])):
        key = ("f64", name) if checks.is_float64 else (name,)
        if fixture.has(*key):
            stored = fixture.get(*key)
            values = stored if isinstance(stored, Tensor) else torch.stack(stored)
            checks.add(".".join(key), ours, values[..., ~is_padding, :], limit, "relative", "without padded tokens")


def _token_padding(is_padding: Tensor, grid: TokenGrid) -> Tensor:
    """``[B, S]`` steps to ``[B, N]`` tokens: padding is a token without any step of the clip."""
    steps, bands = grid.cells
    whole = is_padding[:, : grid.size[0]].unflatten(1, (steps, grid.patch[0])).all(dim=2)
    return whole.repeat_interleave(bands, dim=1)
