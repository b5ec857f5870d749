"""Files of CAV-MAE in the documented format: pre-training with three unified blocks, and fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity import plain
from tests.parity.fixtures import Content, assemble, embed, gradients, pixels, random_inputs

WIDTH, HEADS, EPS, INNER = 16, 2, 1e-5, 24
BANDS, STEPS, SIDE = 2, 6, 3
"""Cells: 32 mel bins and 96 steps in patches of 16, pictures of 48 pixels."""
NORMS = tuple(f"norm{i}{suffix}" for i in (1, 2) for suffix in ("", "_a", "_v"))
COUNTS = {"a": BANDS * STEPS, "v": SIDE * SIDE}
CONFIG: Content = {
    "embed_dim": WIDTH,
    "num_heads": HEADS,
    "audio_blocks": 1,
    "video_blocks": 2,
    "unified_blocks": 3,
    "mlp_ratio": 2.0,
    "patch_size": 16,
    "audio_length": 16 * STEPS,
    "mel_bins": 16 * BANDS,
    "img_size": 16 * SIDE,
    "in_chans": 3,
    "layer_norm_eps": EPS,
}


def encoder_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for letter, channels in (("a", 1), ("v", 3)):
        shapes |= {
            f"modality_{letter}": (1, 1, WIDTH),
            f"pos_embed_{letter}": (1, COUNTS[letter], WIDTH),
            f"patch_embed_{letter}.proj.weight": (WIDTH, channels, 16, 16),
            f"patch_embed_{letter}.proj.bias": (WIDTH,),
            **plain.norm_shapes(f"norm_{letter}", WIDTH),
        }
    depths = {"blocks_a": 1, "blocks_v": 2, "blocks_u": 3}
    for prefix, depth in depths.items():
        shapes |= plain.block_shapes(prefix, depth, WIDTH, 2 * WIDTH, NORMS)
    return shapes | plain.norm_shapes("norm", WIDTH)


def tokens_of(w: plain.State, v: Mapping[str, Tensor], letter: str) -> Tensor:
    """What enters block 0. Sound is transposed: its mel bins are the rows of the picture."""
    x = v["audio"].transpose(1, 2).unsqueeze(1) if letter == "a" else v["video"]
    return embed(x, w, f"_{letter}") + w[f"pos_embed_{letter}"] + w[f"modality_{letter}"]


def encode(w: plain.State, x: Tensor, letter: str, taps: Content) -> Tensor:
    for i in range(CONFIG["audio_blocks" if letter == "a" else "video_blocks"]):
        x = plain.block(x, w, f"blocks_{letter}.{i}", HEADS, EPS)
        taps[f"blocks_{letter}.{i}"] = x.mean(1)
    return x


def unified(w: plain.State, x: Tensor, suffix: str, taps: Content, blocks: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """The unified blocks one after the other, and the norm behind them."""
    for i in blocks:
        x = plain.block(x, w, f"blocks_u.{i}", HEADS, EPS, suffix)
        taps[f"blocks_u.{i}{suffix.replace('_', '.') or '.joint'}"] = x.mean(1)
    return plain.norm(x, w, f"norm{suffix}", EPS)


def contrast(audio: Tensor, video: Tensor) -> tuple[Tensor, float]:
    """For each video the right sound, and how often it ranks first."""
    similarity = F.normalize(audio, dim=1) @ F.normalize(video, dim=1).T / 0.05
    loss = -similarity.log_softmax(0).diagonal().mean()
    return loss, (similarity.argmax(0) == torch.arange(len(audio))).float().mean().item()


def retrieval(w: plain.State, v: Mapping[str, Tensor], taps: Content) -> Content:
    """Complete inputs, each modality through the unified blocks alone."""
    features: Content = {}
    index = {"a": torch.tensor([0, 7, 11]), "v": torch.tensor([2, 8])}
    for letter in ("a", "v"):
        x = tokens_of(w, v, letter)
        out = unified(w, encode(w, x, letter, taps), f"_{letter}", taps)
        features |= {
            f"embed_{letter}_token_index": index[letter],
            f"embed_{letter}": x[:, index[letter]],
            f"{letter}_token_index": index[letter],
            letter: out[:, index[letter]],
            f"{letter}_mean": out.mean(1),
        }
    audio, video = (F.normalize(features[f"{letter}_mean"], dim=1) for letter in ("a", "v"))
    return {**features, "similarity": audio @ video.T}


def finetuning() -> Content:
    """6 classes; every mode of the original."""
    inputs = random_inputs({"audio": (2, 16 * STEPS, 16 * BANDS), "video": (2, 3, 48, 48), "targets": (2, 6)})

    def compute(w: plain.State, v: Mapping[str, Tensor]) -> Content:
        taps: dict[str, Content] = {name: {} for name in ("multimodal", "audioonly", "videoonly", "forward_feat")}

        def scores(pooled: Tensor) -> Tensor:
            return plain.linear(plain.norm(pooled, w, "mlp_head.0", EPS), w, "mlp_head.1")

        both = taps["multimodal"]
        joint = torch.cat([encode(w, tokens_of(w, v, letter), letter, both) for letter in ("a", "v")], 1)
        logits = {"multimodal": scores(unified(w, joint, "", both).mean(1))}
        for name, letter in (("audioonly", "a"), ("videoonly", "v")):
            x = encode(w, tokens_of(w, v, letter), letter, taps[name])
            own = unified(w, x, f"_{letter}", taps[name]).mean(1)
            logits |= {name: scores(own), f"missing{name}": scores((own + unified(w, x, "", {}).mean(1)) / 2)}
        loss = plain.bce(logits["multimodal"], v["targets"])
        found = gradients(loss, w, "grad_norms_multimodal")
        features = retrieval(w, v, taps["forward_feat"])
        return {"logits": logits, "bce_multimodal": loss, **found, "taps": taps, "retrieval": features}

    shapes = encoder_shapes() | plain.norm_shapes("mlp_head.0", WIDTH) | plain.linear_shapes("mlp_head.1", WIDTH, 6)
    content = assemble({**CONFIG, "num_classes": 6}, shapes, inputs, compute)
    doubles = content.pop("in_float64")
    means = {name: doubles["retrieval"][name] for name in ("a_mean", "v_mean")}
    state = content["state_dict"]
    content["params_without_grad_multimodal"] = sorted(state.keys() - content["grad_norms_multimodal"].keys())
    content["audio_only_class_keys"] = [name for name in state if "_v." not in name and not name.endswith("_v")]
    content["state_dict_dataparallel"] = {f"module.{name}": value for name, value in state.items()}
    return {**content, "f64": {"logits": doubles["logits"], **means}}


def pretraining() -> Content:
    """Ratios 0.5 and 0.6."""
    audio_shape = (3, 16 * STEPS, 16 * BANDS)
    inputs = random_inputs(
        {"audio": audio_shape, "video": (3, 3, 48, 48), "noise_a": (3, COUNTS["a"]), "noise_v": (3, 9)}
    )

    def compute(w: plain.State, v: Mapping[str, Tensor]) -> Content:
        taps: Content = {}
        first = _step(w, v, {"a": 0.5, "v": 0.6}, (1.0, 0.02), taps)
        other = _step(w, v, {"a": 0.25, "v": 0.3}, (0.5, 0.1), {})
        names = ("loss", "loss_mae", "loss_mae_a", "loss_mae_v", "loss_c", "c_acc")
        kept = {name: other[name] for name in (*names, "mask_ratio_a", "mask_ratio_v")}
        weights = {name: other[name] for name in ("mae_loss_weight", "contrast_loss_weight")}
        return {
            "pretrain": {**first, "taps": taps, **gradients(first["loss"], w)},
            "pretrain_other_ratios": {**kept, **weights, "visible_a": int(12 * 0.75), "visible_v": int(9 * 0.7)},
            "contrast_chained": _chained(w, v),
            "features": retrieval(w, v, {}),
        }

    config = {
        **CONFIG,
        "decoder_embed_dim": INNER,
        "decoder_depth": 2,
        "decoder_num_heads": 3,
        "norm_pix_loss": True,
        "temperature": 0.05,
    }
    tables = tuple(f"{prefix}pos_embed_{m}" for prefix in ("", "decoder_") for m in ("a", "v"))
    content = assemble(config, _pretraining_shapes(), inputs, compute, frozen=tables)
    doubles = content.pop("in_float64")
    content["pretrain"]["params_without_grad"] = [
        name for name in content["state_dict"] if name not in {*content["pretrain"]["grad_norms"], *tables}
    ]
    f64 = {"pretrain": {name: doubles["pretrain"][name] for name in ("loss", "loss_mae", "loss_c", "c_acc")}}
    return {**content, "f64": {**f64, "a_mean": doubles["features"]["a_mean"]}}


def _pretraining_shapes() -> dict[str, tuple[int, ...]]:
    shapes = encoder_shapes() | {"mask_token": (1, 1, INNER)}
    for letter, values in (("a", 256), ("v", 768)):
        shapes[f"decoder_modality_{letter}"] = (1, 1, INNER)
        shapes[f"decoder_pos_embed_{letter}"] = (1, COUNTS[letter], INNER)
        shapes |= plain.linear_shapes(f"decoder_pred_{letter}", INNER, values)
    shapes |= plain.block_shapes("decoder_blocks", 2, INNER, 2 * INNER, NORMS)
    return shapes | plain.linear_shapes("decoder_embed", WIDTH, INNER) | plain.norm_shapes("decoder_norm", INNER)


def _visible(w: plain.State, v: Mapping[str, Tensor], ratio: float, letter: str) -> tuple[Tensor, Tensor, Tensor]:
    """Visible tokens, mask, restoring ids."""
    count = COUNTS[letter]
    ids, mask, restore = plain.keep_smallest(v[f"noise_{letter}"], int(count * (1 - ratio)))
    return plain.pick(tokens_of(w, v, letter), ids), mask, restore


def _step(
    w: plain.State, v: Mapping[str, Tensor], ratios: Mapping[str, float], weights: tuple[float, float], taps: Content
) -> Content:
    seen = {letter: _visible(w, v, ratios[letter], letter) for letter in ("a", "v")}
    encoded = {letter: encode(w, seen[letter][0], letter, taps) for letter in ("a", "v")}
    latent = unified(w, torch.cat([encoded["a"], encoded["v"]], 1), "", taps)
    predictions = _decode(w, latent, seen, taps)
    targets = {"a": pixels(v["audio"].transpose(1, 2).unsqueeze(1), (16, 16)), "v": pixels(v["video"], (16, 16))}
    errors = {m: plain.squared_error(predictions[m], targets[m], seen[m][1], True) for m in ("a", "v")}
    # As upstream: each unified block starts from the encoders' output, only the last one is used.
    pooled = {m: [unified(w, encoded[m], f"_{m}", taps, (i,)) for i in range(3)][-1].mean(1) for m in ("a", "v")}
    nce, accuracy = contrast(pooled["a"], pooled["v"])
    mae, nce = weights[0] * (errors["a"] + errors["v"]), weights[1] * nce
    index = {"a": torch.tensor([1, 10]), "v": torch.tensor([0, 4])}
    numbers: Content = {
        "mae_loss_weight": weights[0],
        "contrast_loss_weight": weights[1],
        "loss": mae + nce,
        "loss_mae": mae,
        "loss_c": nce,
        "c_acc": accuracy,
        "latent_token_index": torch.tensor([0, 5, 8]),
        "latent": latent[:, [0, 5, 8]],
        "latent_mean": latent.mean(1),
    }
    for m in ("a", "v"):
        numbers |= {
            f"mask_ratio_{m}": ratios[m],
            f"loss_mae_{m}": errors[m],
            f"mask_{m}": seen[m][1],
            f"ids_restore_{m}": seen[m][2],
            f"contrast_{m}": pooled[m],
            f"pred_{m}_token_index": index[m],
            f"pred_{m}": predictions[m][:, index[m]],
            f"pred_{m}_mean": predictions[m].mean((1, 2)),
            f"target_{m}_raw_token_index": index[m],
            f"target_{m}_raw": targets[m][:, index[m]],
        }
    image = predictions["v"].view(-1, SIDE, SIDE, 16, 16, 3).permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, 48, 48)
    return {**numbers, "pred_v_as_image_corner": image[:, :, :18, :17]}


def _decode(
    w: plain.State, latent: Tensor, seen: Mapping[str, tuple[Tensor, Tensor, Tensor]], taps: Content
) -> dict[str, Tensor]:
    x = plain.linear(latent, w, "decoder_embed")
    parts = x.split([seen[m][0].shape[1] for m in ("a", "v")], 1)
    filled = [
        plain.fill(part, w["mask_token"], seen[m][2]) + w[f"decoder_pos_embed_{m}"] + w[f"decoder_modality_{m}"]
        for m, part in zip(("a", "v"), parts, strict=True)
    ]
    x = torch.cat(filled, 1)
    for i in range(2):
        x = plain.block(x, w, f"decoder_blocks.{i}", 3, EPS)
        taps[f"decoder_blocks.{i}"] = x.mean(1)
    x = plain.norm(x, w, "decoder_norm", EPS)
    audio, video = x.split([COUNTS["a"], COUNTS["v"]], 1)
    return {"a": plain.linear(audio, w, "decoder_pred_a"), "v": plain.linear(video, w, "decoder_pred_v")}


def _chained(w: plain.State, v: Mapping[str, Tensor]) -> Content:
    """What the contrast would be if every block followed the one before."""
    pooled: dict[str, Tensor] = {}
    for m, ratio in (("a", 0.5), ("v", 0.6)):
        pooled[m] = unified(w, encode(w, _visible(w, v, ratio, m)[0], m, {}), f"_{m}", {}).mean(1)
    nce, accuracy = contrast(pooled["a"], pooled["v"])
    return {"contrast_a": pooled["a"], "contrast_v": pooled["v"], "loss_c": 0.02 * nce, "c_acc": accuracy}
