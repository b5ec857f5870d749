"""Files in the documented format, of small models in other sizes, with numbers from the plain transformers beside this file.

A writer gives the content of one file; all numbers are detached. ``w`` in it is the state dict, ``c`` the config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity import plain

Content = dict[str, Any]
Compute = Callable[[plain.State, Mapping[str, Tensor]], Content]


def random_inputs(shapes: Mapping[str, tuple[int, ...]], seed: int = 5) -> dict[str, Tensor]:
    """Normal values; noise uniform; targets 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    draws = {}
    for name, shape in shapes.items():
        values = torch.rand(shape, generator=generator)
        draws[name] = values if name.startswith("noise") else torch.erfinv(1.9 * values - 0.95)
        if name == "targets":
            draws[name] = (values > 0.6).float()
    return draws


def assemble(
    config: Content,
    shapes: Mapping[str, tuple[int, ...]],
    inputs: dict[str, Tensor],
    compute: Compute,
    frozen: tuple[str, ...] = (),
    seed: int = 0,
    fixed: Mapping[str, Tensor] | None = None,
) -> Content:
    """Weights (random, or ``fixed``), inputs, float32 numbers with gradients, and the same from float64 under ``in_float64``."""
    state = plain.random_state(shapes, seed) | dict(fixed or {})
    leaves = {name: value.clone().requires_grad_(name not in frozen) for name, value in state.items()}
    with torch.no_grad():
        doubles = compute({n: v.double() for n, v in state.items()}, {n: v.double() for n, v in inputs.items()})
    return {
        "config": config,
        "state_dict": state,
        "inputs": inputs,
        **detached(compute(leaves, inputs)),
        "in_float64": detached(doubles),
    }


def detached(value: Any) -> Any:
    """Tensors without a history, scalars as numbers."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.ndim else value.item()
    return {name: detached(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def gradients(loss: Tensor, w: plain.State, name: str = "grad_norms") -> Content:
    """Norms, where the numbers are differentiated."""
    return {name: plain.gradient_norms(loss, w)} if loss.requires_grad else {}


def autoencoder_shapes(c: Content, kernel: tuple[int, ...], tokens: int, values: int) -> dict[str, tuple[int, ...]]:
    """Of MAE and of Audio-MAE with its global decoder."""
    width, inner = c["embed_dim"], c["decoder_embed_dim"]
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens + 1, width),
        "mask_token": (1, 1, inner),
        "decoder_pos_embed": (1, tokens + 1, inner),
        "patch_embed.proj.weight": (width, *kernel),
        "patch_embed.proj.bias": (width,),
        **plain.block_shapes("blocks", c["depth"], width, int(width * c["mlp_ratio"])),
        **plain.norm_shapes("norm", width),
        **plain.linear_shapes("decoder_embed", width, inner),
        **plain.block_shapes("decoder_blocks", c["decoder_depth"], inner, int(inner * c["mlp_ratio"])),
        **plain.norm_shapes("decoder_norm", inner),
        **plain.linear_shapes("decoder_pred", inner, values),
    }


def embed(x: Tensor, w: plain.State, suffix: str = "") -> Tensor:
    """Patches as a convolution sees them, in its own order of tokens: ``[B, N, D]``."""
    kernel = w[f"patch_embed{suffix}.proj.weight"]
    convolve = F.conv2d if kernel.ndim == 4 else F.conv3d
    stride = tuple(kernel.shape[2:])
    return convolve(x, kernel, w[f"patch_embed{suffix}.proj.bias"], stride=stride).flatten(2).transpose(1, 2)  # type: ignore[operator]


def with_cls(x: Tensor, w: plain.State, suffix: str = "") -> Tensor:
    """CLS with row 0 of the table in front."""
    first = w[f"cls_token{suffix}"] + w[f"pos_embed{suffix}"][:, :1]
    return torch.cat([first.expand(len(x), -1, -1), x], 1)


def encode(x: Tensor, w: plain.State, c: Content) -> Tensor:
    """Blocks and last norm of a masked autoencoder."""
    for i in range(c["depth"]):
        x = plain.block(x, w, f"blocks.{i}", c["num_heads"], c["layer_norm_eps"])
    return plain.norm(x, w, "norm", c["layer_norm_eps"])


def decode(latent: Tensor, restore: Tensor, w: plain.State, c: Content, cells: tuple[int, int]) -> Tensor:
    """The prediction of every token."""
    x = plain.linear(latent, w, "decoder_embed")
    x = torch.cat([x[:, :1], plain.fill(x[:, 1:], w["mask_token"], restore)], 1) + w["decoder_pos_embed"]
    heads, eps = c["decoder_num_heads"], c["layer_norm_eps"]
    if c.get("decoder_mode") == 1:
        x = x[:, 1:]
        for i in range(c["decoder_depth"]):
            x = plain.windowed_block(x, w, f"decoder_blocks.{i}", heads, eps, cells, 4, 2 * (i % 2))
        return plain.linear(plain.norm(x, w, "decoder_norm", eps), w, "decoder_pred")
    for i in range(c["decoder_depth"]):
        x = plain.block(x, w, f"decoder_blocks.{i}", heads, eps)
    return plain.linear(plain.norm(x, w, "decoder_norm", eps), w, "decoder_pred")[:, 1:]


def pixels(x: Tensor, patch: tuple[int, int]) -> Tensor:
    """``[B, C, H, W]`` to patches ``[B, N, rows x columns x C]``."""
    batch, channels, height, width = x.shape
    rows, columns = height // patch[0], width // patch[1]
    split = x.view(batch, channels, rows, patch[0], columns, patch[1])
    return split.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def autoencoder_step(
    x: Tensor,
    view: tuple[Tensor, Tensor, Tensor],
    w: plain.State,
    c: Content,
    patch: tuple[int, int],
    cells: tuple[int, int],
) -> Content:
    """What every masked step of one modality stores."""
    ids, mask, restore = view
    latent = encode(with_cls(plain.pick(embed(x, w) + w["pos_embed"][:, 1:], ids), w), w, c)
    pred, target = decode(latent, restore, w, c, cells), pixels(x, patch)
    index = torch.tensor([0, 3, 5])
    loss = plain.squared_error(pred, target, mask, True)
    return {
        "loss_norm_pix": loss,
        "loss_raw_pixels": plain.squared_error(pred, target, mask, False),
        "mask": mask,
        "ids_restore": restore,
        "latent": latent,
        "latent_mean": latent.mean(1),
        "latent_shape": list(latent.shape),
        "pred_token_index": index,
        "pred": pred[:, index],
        "pred_mean": pred.mean((1, 2)),
        "pred_token_norm": pred.norm(dim=-1),
        "target_raw_token_index": index,
        "target_raw": target[:, index],
        **gradients(loss, w),
    }


def image_mae() -> Content:
    """48-pixel images of 12-pixel patches."""
    c: Content = {
        "embed_dim": 24,
        "num_heads": 2,
        "depth": 2,
        "mlp_ratio": 3,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 4,
        "patch_size": 12,
        "img_size": 48,
        "in_chans": 3,
        "layer_norm_eps": 1e-6,
    }
    inputs = random_inputs({"image": (2, 3, 48, 48), "noise": (2, 16)})
    patch = (12, 12)

    def compute(w: plain.State, values: Mapping[str, Tensor]) -> Content:
        step = autoencoder_step(
            values["image"], plain.keep_smallest(values["noise"], int(16 * 0.4)), w, c, patch, (4, 4)
        )
        del step["latent_shape"], step["latent_mean"], step["pred_token_norm"]
        x = with_cls(embed(values["image"], w) + w["pos_embed"][:, 1:], w)
        for i in range(c["depth"]):
            x = plain.block(x, w, f"blocks.{i}", 2, 1e-6)
        pooled = plain.norm(x[:, 1:].mean(1), w, "norm", 1e-6)
        features = {"norm_then_cls": plain.norm(x, w, "norm", 1e-6)[:, 0], "mean_pool_then_norm": pooled}
        return {"pretrain": {"mask_ratio": 0.6, "visible": 6, **step}, "features": features}

    shapes = autoencoder_shapes(c, (3, 12, 12), 16, 432)
    content = assemble(c, shapes, inputs, compute, frozen=("pos_embed", "decoder_pos_embed"))
    step = content.pop("in_float64")["pretrain"]
    names = ("loss_norm_pix", "loss_raw_pixels")
    return {**content, "f64": {n: step[n] for n in names} | {"latent_mean": step["latent"].mean(1)}}


def audio_mae_pretraining(mode: int) -> Content:
    """96 x 64 spectrograms in 12 x 8 cells: the windows of the decoder of ``mode`` 1 are several along both axes."""
    c: Content = {
        "embed_dim": 16,
        "num_heads": 4,
        "depth": 1,
        "mlp_ratio": 2,
        "decoder_embed_dim": 24,
        "decoder_depth": 2,
        "decoder_num_heads": 3,
        "decoder_mode": mode,
        "input": [96, 64],
        "patch": [8, 8],
        "layer_norm_eps": 1e-6,
    }
    inputs = random_inputs({"fbank": (2, 1, 96, 64), "noise": (2, 96), "noise_t": (2, 12), "noise_f": (2, 8)})

    def compute(w: plain.State, v: Mapping[str, Tensor]) -> Content:
        def step(view: tuple[Tensor, Tensor, Tensor]) -> Content:
            return autoencoder_step(v["fbank"], view, w, c, (8, 8), (12, 8))

        first = step(plain.keep_smallest(v["noise"], int(96 * 0.3)))
        second = step(plain.keep_rows([v["noise_t"], v["noise_f"]], [int(12 * 0.4), int(8 * 0.8)]))
        apart = {"latent", "grad_norms", "loss_raw_pixels", "target_raw", "target_raw_token_index"}
        kept = {name: second[name] for name in second if name not in apart}
        del first["latent_mean"], first["latent_shape"]
        return {
            "pretrain": {"mask_ratio": 0.7, **first},
            "pretrain_2d": {"mask_t_prob": 0.6, "mask_f_prob": 0.2, **kept},
        }

    shapes = autoencoder_shapes(c, (1, 8, 8), 96, 64)
    if mode == 1:
        for i in range(2):
            shapes[f"decoder_blocks.{i}.attn.tau"] = (3,)
            shapes |= plain.linear_shapes(f"decoder_blocks.{i}.attn.meta_mlp.fc1", 2, 384)
            shapes |= plain.linear_shapes(f"decoder_blocks.{i}.attn.meta_mlp.fc2", 384, 3)
    # Of the grid with exchanged axes: 8 x 12 instead of 12 x 8.
    tables = {"pos_embed": plain.table_2d(8, 12, 16)[None], "decoder_pos_embed": plain.table_2d(8, 12, 24)[None]}
    return assemble(c, shapes, inputs, compute, frozen=("pos_embed", "decoder_pos_embed"), fixed=tables)


def audio_mae_finetuning() -> Content:
    """96 x 32 spectrograms, 6 x 2 tokens, 7 classes."""
    c: Content = {
        "embed_dim": 16,
        "num_heads": 2,
        "depth": 2,
        "mlp_ratio": 4,
        "input": [96, 32],
        "patch": [16, 16],
        "num_classes": 7,
        "layer_norm_eps": 1e-6,
    }
    inputs = random_inputs({"fbank": (2, 1, 96, 32), "targets": (2, 7), "noise_t": (2, 6), "noise_f": (2, 2)})

    def compute(w: plain.State, v: Mapping[str, Tensor]) -> Content:
        def scores(ids: Tensor | None) -> Tensor:
            x = embed(v["fbank"], w) + w["pos_embed"][:, 1:]
            x = with_cls(x if ids is None else plain.pick(x, ids), w)
            for i in range(2):
                x = plain.block(x, w, f"blocks.{i}", 2, 1e-6)
            return plain.linear(plain.norm(x[:, 1:].mean(1), w, "fc_norm", 1e-6), w, "head")

        logits = scores(None)
        loss = plain.bce(logits, v["targets"])
        ids = plain.keep_rows([v["noise_t"], v["noise_f"]], [int(6 * 0.7), int(2 * 0.5)])[0]
        masked = {"mask_t_prob": 0.3, "mask_f_prob": 0.5, "logits": scores(ids)}
        return {"logits": logits, "bce": loss, **gradients(loss, w), "masked": masked}

    shapes = {
        "cls_token": (1, 1, 16),
        "pos_embed": (1, 13, 16),
        "patch_embed.proj.weight": (16, 1, 16, 16),
        "patch_embed.proj.bias": (16,),
        **plain.block_shapes("blocks", 2, 16, 64),
        **plain.norm_shapes("fc_norm", 16),
        **plain.linear_shapes("head", 16, 7),
    }
    content = assemble(c, shapes, inputs, compute, frozen=("pos_embed",))
    # The two blocks are ids 1 and 2, what stands before them 0, what comes after them 3. CLS and vectors are not decayed.
    ids = {"cls_token": 0, "patch_embed": 0, "blocks.0": 1, "blocks.1": 2, "fc_norm": 3, "head": 3}
    scales = {
        name: [0.8 ** (3 - i), 0.05 if len(shape) > 1 and name != "cls_token" else 0.0]
        for name, shape in shapes.items()
        for start, i in ids.items()
        if name.startswith(start)
    }
    return {**content, "lr_scale": scales, "lr_scale_settings": {"layer_decay": 0.8, "weight_decay": 0.05}}
