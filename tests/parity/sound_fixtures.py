"""Files of MSM-MAE and MAE-AST in the documented format, in other sizes, with numbers from the plain transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
import torchaudio.compliance.kaldi as kaldi
from torch import Tensor

from tests.parity import plain
from tests.parity.fixtures import Content, autoencoder_shapes, detached, embed, encode, pixels, random_inputs, with_cls

Numbers = Callable[[plain.State, Callable[[Tensor], Tensor]], Content]


def numbers_of(shapes: Mapping[str, tuple[int, ...]], fixed: Mapping[str, Tensor], compute: Numbers) -> Content:
    """State dict, what ``compute`` gives in float32 with gradients of its ``loss``, and all of it in float64 under ``f64``.

    ``compute(w, cast)`` takes the weights and what brings inputs to their type.
    """
    state = {**plain.random_state(shapes, seed=2), **fixed}
    leaves = {n: v.clone().requires_grad_(n not in fixed and v.is_floating_point()) for n, v in state.items()}
    found = compute(leaves, lambda x: x)
    names = [n for n, v in leaves.items() if v.requires_grad]
    slopes = torch.autograd.grad(found["loss"], [leaves[n] for n in names], allow_unused=True)
    grads = {n: g for n, g in zip(names, slopes, strict=True) if g is not None}
    with torch.no_grad():
        doubles = compute({n: v.double() for n, v in state.items()}, lambda x: x.double())
    return {"state_dict": state, **tensors(found), "grads": grads, "f64": tensors(doubles)}


def tensors(found: Content) -> Content:
    """Without a history; the loss stays a tensor, as in the originals' files."""
    return {**detached(found), "loss": found["loss"].detach()}


def msm_mae(cls_token: bool = True, decoder_positions: str = "1d", norm_pix_loss: bool = False) -> Content:
    """24 mel bins x 40 steps in patches of 8 x 4: 3 x 10 tokens."""
    c: Content = {
        **{"embed_dim": 24, "num_heads": 2, "depth": 2, "mlp_ratio": 3, "layer_norm_eps": 1e-6, "mask_ratio": 0.6},
        **{"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 4, "input": [24, 40], "patch": [8, 4]},
        **{"cls_token": cls_token, "decoder_positions": decoder_positions, "norm_pix_loss": norm_pix_loss},
    }
    inputs = random_inputs({"x": (2, 1, 24, 40), "noise": (2, 30)})
    ids, mask, restore = plain.keep_smallest(inputs["noise"], 12)
    shapes = autoencoder_shapes(c, (1, 8, 4), 30, 32)
    for name in [name for name in shapes if name.endswith("qkv.bias")]:
        width = shapes.pop(name)[0] // 3
        shapes |= {name.replace("qkv.bias", f"{which}_bias"): (width,) for which in "qv"}
    if not cls_token:
        del shapes["cls_token"]
    first = 0 if cls_token else 1
    inner = (
        plain.table_2d(3, 10, 16) if decoder_positions == "2d" else F.pad(plain.interleaved(30, 16)[0], (0, 0, 1, 0))
    )
    fixed = {"pos_embed": plain.table_2d(3, 10, 24)[None, first:], "decoder_pos_embed": inner[None, first:]}

    def compute(w: plain.State, cast: Callable[[Tensor], Tensor]) -> Content:
        x = cast(inputs["x"])
        tokens = embed(x, w) + w["pos_embed"][:, 1 - first :]
        front = with_cls if cls_token else (lambda x, _: x)
        latent = encode(front(plain.pick(tokens, ids), w), w, c)
        layers, full = [], front(tokens, w)
        for i in range(c["depth"]):
            full = plain.block(full, w, f"blocks.{i}", 2, 1e-6)
            layers.append(full)
        layers[-1] = plain.norm(full, w, "norm", 1e-6)
        pred, target = _msm_decode(latent, restore, w, c), pixels(x, (8, 4))
        loss = plain.squared_error(pred, target, mask, norm_pix_loss)
        found = {"loss": loss, "pred": pred, "latent": latent, "full": layers[-1], "layers": torch.stack(layers)}
        return {**found, "patches": target}

    content = {"config": c, "x": inputs["x"], "mask": mask, "ids_restore": restore}
    content |= numbers_of(shapes, fixed, compute)
    return {**content, "viz": _msm_pictures(content) if cls_token else None}


def _msm_decode(latent: Tensor, restore: Tensor, w: plain.State, c: Content) -> Tensor:
    """Without CLS the first visible token is taken for one, and a mask token makes up for it: the original's defect."""
    x = plain.linear(latent, w, "decoder_embed")
    patches = plain.fill(x[:, 1:], w["mask_token"], restore)
    x = (torch.cat([x[:, :1], patches], 1) if c["cls_token"] else patches) + w["decoder_pos_embed"]
    x = plain.block(x, w, "decoder_blocks.0", c["decoder_num_heads"], 1e-6)
    return plain.linear(plain.norm(x, w, "decoder_norm", 1e-6), w, "decoder_pred")[:, int(c["cls_token"]) :]


def _msm_pictures(content: Content) -> tuple[Tensor, ...]:
    """Loss, picture with what was visible pasted in, absolute error, mask on its grid."""
    mask, x = content["mask"], content["x"]
    shown = torch.where(mask[..., None] == 1, content["pred"], content["patches"])
    picture = shown.view(2, 3, 10, 8, 4).transpose(2, 3).reshape(2, 1, 24, 40)
    return content["loss"], picture, (picture - x).abs(), mask.view(2, 3, 10)


def mae_ast(kind: str = "patch") -> Content:
    """83 spectrogram steps of 32 mel bins in patches of 8 x 8, the last 3 steps dropped; or in frames of 3."""
    time, bands = (8, 8) if kind == "patch" else (3, 32)
    count = 83 // time * (32 // bands)
    c: Content = {
        **{"kind": kind, "encoder_layers": 2, "decoder_layers": 2, "embed_dim": 16, "ffn_dim": 41, "num_heads": 4},
        **{"token_time": time, "token_freq": bands, "mel_bins": 32, "layer_norm_eps": 1e-5, "post_norm": True},
        **{"mask_prob": 0.75, "reconstruction_weight": 10.0, "classification_weight": 1.0},
    }
    inputs = random_inputs({"wav": (2, 400 + 82 * 160), "noise": (2, count)})
    ids, mask, _ = plain.keep_smallest(inputs["noise"], count // 4)
    retained, masked = ids.sort(1).values, mask.nonzero()[:, 1].view(2, -1)
    fbank = torch.stack([kaldi.fbank(one[None], num_mel_bins=32, use_energy=False) for one in inputs["wav"]])
    is_pad = torch.arange(83) >= torch.tensor([83, 55])[:, None]
    padded = fbank.masked_fill(is_pad[..., None], 0.0)
    emb_padding = torch.arange(count) >= torch.tensor([count, -(-55 // time) * (32 // bands)])[:, None]
    running = (0.19 * fbank.mean().reshape(1), 0.81 + 0.19 * fbank.var().reshape(1))
    after = {"running_mean": running[0], "running_var": running[1], "num_batches_tracked": torch.tensor(2)}
    fixed = {
        **{f"batch_norm.{name}": torch.tensor(start) for name, start in zip(after, ([0.0], [1.0], 0), strict=True)},
        **{f"{which}_sine_pos_embed.pe": plain.interleaved(count + 20, 16) for which in ("enc", "dec")},
    }

    def compute(w: plain.State, cast: Callable[[Tensor], Tensor]) -> Content:
        values = cast(fbank)
        normal = 0.5 * (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()
        patches = pixels(normal[:, None, : 83 // time * time], (time, bands))
        found = _mae_ast_step(patches, retained, masked, w, c)
        statistics = [cast(value) for value in running]
        quiet = 0.5 * (cast(padded) - statistics[0]) / (statistics[1] + 1e-5).sqrt()
        with torch.no_grad():
            states = _mae_ast_states(pixels(quiet[:, None, : 83 // time * time], (time, bands)), emb_padding, w, c)
        return {**found, "emb": states[-1], "hidden_states": states}

    content = {"config": c, **{"wav": inputs["wav"], "fbank": fbank, "fbank_padded": padded}}
    content |= {"retained_idx": retained.tolist(), "masked_idx": masked.tolist(), "pad": is_pad}
    found = numbers_of(_mae_ast_shapes(c), fixed, compute)
    # What overwrites masked features that nobody looks at has a gradient of zero; the 128-wide norm has none.
    found["grads"] = {"encoder_mask_emb": torch.zeros(16), **found["grads"]}
    found["net"]["padding_mask"] = torch.zeros(2, count, dtype=torch.bool)
    bn_after = {f"batch_norm.{name}": value for name, value in after.items()}
    return {**content, **found, "emb_padding": emb_padding, "bn_after": bn_after}


def _mae_ast_shapes(c: Content) -> dict[str, tuple[int, ...]]:
    width, values = c["embed_dim"], c["token_time"] * c["token_freq"]
    shapes: dict[str, tuple[int, ...]] = {
        **{"encoder_mask_emb": (width,), "decoder_mask_emb": (width,)},
        **plain.linear_shapes("post_extract_proj", values, width),
        **plain.norm_shapes("layer_norm", c["mel_bins"]),
    }
    for part in ("encoder", "decoder"):
        shapes |= plain.norm_shapes(f"{part}.layer_norm", width)
        for i in range(c[f"{part}_layers"]):
            name = f"{part}.layers.{i}"
            for which in ("q", "k", "v", "out"):
                shapes |= plain.linear_shapes(f"{name}.self_attn.{which}_proj", width, width)
            shapes |= plain.norm_shapes(f"{name}.self_attn_layer_norm", width) | plain.norm_shapes(
                f"{name}.final_layer_norm", width
            )
            shapes |= plain.linear_shapes(f"{name}.fc1", width, c["ffn_dim"])
            shapes |= plain.linear_shapes(f"{name}.fc2", c["ffn_dim"], width)
    for head in ("reconstruction", "classification"):
        shapes |= plain.linear_shapes(f"final_proj_{head}", width, values)
    return shapes


def _stack(x: Tensor, w: plain.State, part: str, c: Content, hidden: Tensor | None = None) -> list[Tensor]:
    """What leaves each layer."""
    x = plain.norm(x, w, f"{part}.layer_norm", c["layer_norm_eps"])
    states = []
    for i in range(c[f"{part}_layers"]):
        x = plain.fairseq_block(x, w, f"{part}.layers.{i}", c["num_heads"], c["layer_norm_eps"], hidden)
        states.append(x)
    return states


def _mae_ast_states(patches: Tensor, hidden: Tensor, w: plain.State, c: Content) -> list[Tensor]:
    """Of the complete sequence; padding has no position."""
    positions = w["enc_sine_pos_embed.pe"][:, : patches.shape[1]] * ~hidden[..., None]
    return _stack(plain.linear(patches, w, "post_extract_proj") + positions, w, "encoder", c, hidden)


def _mae_ast_step(patches: Tensor, retained: Tensor, masked: Tensor, w: plain.State, c: Content) -> Content:
    """Both heads at masked tokens, targets, loss and its parts."""
    count = patches.shape[1]
    x = plain.linear(patches, w, "post_extract_proj") + w["enc_sine_pos_embed.pe"][:, :count]
    latent = _stack(plain.pick(x, retained), w, "encoder", c)[-1]
    complete = plain.fill(latent, w["decoder_mask_emb"], torch.cat([retained, masked], 1).argsort(1))
    states = _stack(complete + w["dec_sine_pos_embed.pe"][:, :count], w, "decoder", c)
    at_masked, target = plain.pick(states[-1], masked), plain.pick(patches, masked)
    recon, classes = (plain.linear(at_masked, w, f"final_proj_{head}") for head in ("reconstruction", "classification"))
    scores = torch.einsum("bip,bjp->bij", classes, target)
    info_nce = -scores.log_softmax(-1).diagonal(dim1=1, dim2=2).mean()
    error = (recon - target).pow(2).mean()
    loss = c["reconstruction_weight"] * error + c["classification_weight"] * info_nce
    net = {"logit_m_list_recon": recon, "logit_m_list_class": classes, "target_m_list": target}
    return {"loss": loss, "log": {"loss": loss, "loss_recon": error, "loss_info_nce": info_nce}, "net": net}
