"""State dicts of other projects: their documented names and shapes with random values."""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Values that differ in every tensor and in every element."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def block_shapes(prefix: str, width: int, hidden: int) -> Shapes:
    """One transformer block in MAE's names."""
    return {
        **_norm(f"{prefix}.norm1", width),
        **_linear(f"{prefix}.attn.qkv", 3 * width, width),
        **_linear(f"{prefix}.attn.proj", width, width),
        **_norm(f"{prefix}.norm2", width),
        **_linear(f"{prefix}.mlp.fc1", hidden, width),
        **_linear(f"{prefix}.mlp.fc2", width, hidden),
    }


def mae_shapes(
    kernel: tuple[int, ...],
    num_tokens: int,
    width: int = 32,
    depth: int = 2,
    decoder: int = 16,
    out_values: int = 768,
    suffix: str = "",
    windowed: bool = False,
) -> Shapes:
    """One branch with CLS, decoder and final norm in MAE's names, each first component followed by ``suffix``."""
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + num_tokens, width),
        "patch_embed.proj.weight": (width, *kernel),
        "patch_embed.proj.bias": (width,),
        **_norm("norm", width),
        "mask_token": (1, 1, decoder),
        "decoder_pos_embed": (1, 1 + num_tokens, decoder),
        **_linear("decoder_embed", decoder, width),
        **block_shapes("decoder_blocks.0", decoder, 4 * decoder),
        **_norm("decoder_norm", decoder),
        **_linear("decoder_pred", out_values, decoder),
    }
    for block in range(depth):
        shapes |= block_shapes(f"blocks.{block}", width, 4 * width)
    if windowed:
        attention = "decoder_blocks.0.attn"
        shapes |= {
            f"{attention}.tau": (2,),
            **_linear(f"{attention}.meta_mlp.fc1", 384, 2),
            **_linear(f"{attention}.meta_mlp.fc2", 2, 384),
        }
    return {".".join([f"{name.split('.')[0]}{suffix}", *name.split(".")[1:]]): shape for name, shape in shapes.items()}


def image_mae(side: int = 4, depth: int = 2, width: int = 32) -> State:
    """ImageNet MAE with its decoder; ``side`` patches of 16 x 16 pixels per side."""
    return random_state(mae_shapes((3, 16, 16), side * side, width, depth))


def audio_mae(windowed: bool = False, num_tokens: int = 8) -> State:
    """Audio-MAE's pre-training model with its decoder, global or windowed."""
    return random_state(mae_shapes((1, 16, 16), num_tokens, out_values=256, windowed=windowed), seed=1)


def audio_mae_tuned(num_classes: int = 5) -> State:
    """Audio-MAE, fine-tuned: without final norm and decoder, with norm and head behind the pooling."""
    tuned = {n: t for n, t in audio_mae().items() if not n.startswith(("decoder", "mask", "norm"))}
    return tuned | random_state({**_norm("fc_norm", 32), **_linear("head", num_classes, 32)}, seed=6)


def msm_mae(cls: bool = True, times: int = 3) -> State:
    """MSM-MAE: 80 mel bins x ``16 times`` steps in patches of 16 x 16; keys have no bias."""
    state = random_state(mae_shapes((1, 16, 16), 5 * times, out_values=256), seed=7)
    for name in [name for name in state if name.endswith("qkv.bias")]:
        query, _, value = state.pop(name).chunk(3)
        state |= {name.replace("qkv.bias", which): bias for which, bias in (("q_bias", query), ("v_bias", value))}
    if not cls:
        del state["cls_token"]
        state |= {name: state[name][:, 1:] for name in ("pos_embed", "decoder_pos_embed")}
    return state


def m2d() -> State:
    """MSM-MAE as the M2D repository has it."""
    statistics = {"norm_stats": torch.tensor([-7.1, 4.2])}
    return random_state(mae_shapes((1, 16, 16), 15, out_values=256), seed=8) | statistics


def mae_ast(rows: int = 40) -> State:
    """MAE-AST in fairseq's names; a patch has 256 values, tables have ``rows`` rows."""
    shapes: Shapes = {
        **{f"{which}_mask_emb": (32,) for which in ("encoder", "decoder")},
        **_linear("post_extract_proj", 32, 256),
        **_norm("layer_norm", 128),
        **{f"{which}_sine_pos_embed.pe": (1, rows, 32) for which in ("enc", "dec")},
        **{f"{s}.layer_norm.{kind}": (32,) for s in ("encoder", "decoder") for kind in ("weight", "bias")},
        **{
            k: v
            for which in ("reconstruction", "classification")
            for k, v in _linear(f"final_proj_{which}", 256, 32).items()
        },
    }
    for prefix in ("encoder.layers.0", "encoder.layers.1", "decoder.layers.0"):
        for which in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{prefix}.self_attn.{which}", 32, 32)
        shapes |= {**_norm(f"{prefix}.self_attn_layer_norm", 32), **_norm(f"{prefix}.final_layer_norm", 32)}
        shapes |= {**_linear(f"{prefix}.fc1", 64, 32), **_linear(f"{prefix}.fc2", 32, 64)}
    return random_state(shapes, seed=10) | {
        "batch_norm.running_mean": torch.tensor([-4.25]),
        "batch_norm.running_var": torch.tensor([17.3219]),
        "batch_norm.num_batches_tracked": torch.tensor(1000),
    }


def mae_ast_settings(patch: tuple[int, int] = (16, 16)) -> dict[str, dict[str, object]]:
    """Of MAE-AST's ``cfg`` what concerns the model; ``patch`` is steps, mel bins."""
    sizes = {
        f"ast_kernel_{what}_{a}": n for what in ("size", "stride") for a, n in zip(("time", "chan"), patch, strict=True)
    }
    model: dict[str, object] = {
        **sizes,
        "encoder_attention_heads": 4,
        "dropout": 0.1,
        "encoder_layerdrop": 0.05,
        "random_mask_prob": 0.6,
    }
    return {"model": model, "task": {"feature_dim": 128, "mask_type": "chunk_mask"}}


def mae_st(times: int = 2, side: int = 2) -> State:
    """MAE-ST: separate query, key and value, separate tables of place and time, a CLS token of the decoder's own."""
    shapes = mae_shapes((3, 2, 16, 16), times * side * side, out_values=1536)
    del shapes["pos_embed"], shapes["decoder_pos_embed"]
    for prefix, width in (("", 32), ("decoder_", 16)):
        shapes[f"{prefix}pos_embed_spatial"] = (1, side * side, width)
        shapes[f"{prefix}pos_embed_temporal"] = (1, times, width)
        shapes[f"{prefix}pos_embed_class"] = (1, 1, width)
    shapes["decoder_cls_token"] = (1, 1, 16)
    for name in [name for name in shapes if ".qkv." in name]:
        rows, *rest = shapes.pop(name)
        shapes |= {name.replace("qkv", which): (rows // 3, *rest) for which in "qkv"}
    return random_state(shapes, seed=2)


def video_mae() -> State:
    """VideoMAE's pre-training model: no CLS, no tables, biases of query and value alone, no bias into the decoder."""
    shapes: Shapes = {
        "encoder.patch_embed.proj.weight": (32, 3, 2, 16, 16),
        "encoder.patch_embed.proj.bias": (32,),
        **_norm("encoder.norm", 32),
        "encoder_to_decoder.weight": (16, 32),
        "mask_token": (1, 1, 16),
        **_norm("decoder.norm", 16),
        **_linear("decoder.head", 1536, 16),
    }
    for prefix, width in (("encoder.blocks.0", 32), ("encoder.blocks.1", 32), ("decoder.blocks.0", 16)):
        shapes |= block_shapes(prefix, width, 4 * width)
        del shapes[f"{prefix}.attn.qkv.bias"]
        shapes |= {f"{prefix}.attn.q_bias": (width,), f"{prefix}.attn.v_bias": (width,)}
    return random_state(shapes, seed=3)


def mavil(fusion_depth: int = 2, heads: str | None = None) -> State:
    """MAViL: as published without decoders and final norms; ``heads`` ``av`` or ``a_v``, 5 classes."""
    shapes: Shapes = {}
    for suffix, kernel, num_tokens in (("", (1, 16, 16), 8), ("_v", (3, 2, 16, 16), 8)):
        branch = mae_shapes(kernel, num_tokens, suffix=suffix)
        shapes |= {name: shape for name, shape in branch.items() if not name.startswith(("decoder", "mask", "norm"))}
    for block in range(fusion_depth):
        shapes |= block_shapes(f"blocks_av.{block}", 32, 128)
    for head in {"av": ["av"], "a_v": ["a", "v"]}.get(heads or "", []):
        width = 64 if head == "av" else 32
        shapes |= {**_norm(f"fc_norm_{head}", width), **_linear(f"head_{head}", 5, width)}
    return random_state(shapes, seed=4)


def cav_mae(is_classifier: bool = False, unified: int = 2) -> State:
    """CAV-MAE, pre-trained or fine-tuned (5 classes); every block has copies of its norms for each modality."""
    shapes: Shapes = {
        "patch_embed_a.proj.weight": (32, 1, 16, 16),
        "patch_embed_v.proj.weight": (32, 3, 16, 16),
        **{f"patch_embed_{m}.proj.bias": (32,) for m in "av"},
        **{f"modality_{m}": (1, 1, 32) for m in "av"},
        **{f"pos_embed_{m}": (1, tokens, 32) for m, tokens in (("a", 8), ("v", 4))},
        **{name: shape for norm in ("norm", "norm_a", "norm_v") for name, shape in _norm(norm, 32).items()},
    }
    prefixes = [("blocks_a.0", 32), ("blocks_v.0", 32), *((f"blocks_u.{i}", 32) for i in range(unified))]
    if is_classifier:
        shapes |= {**_norm("mlp_head.0", 32), **_linear("mlp_head.1", 5, 32)}
    else:
        prefixes.append(("decoder_blocks.0", 16))
        shapes |= {
            "mask_token": (1, 1, 16),
            **{f"decoder_modality_{m}": (1, 1, 16) for m in "av"},
            **{f"decoder_pos_embed_{m}": (1, tokens, 16) for m, tokens in (("a", 8), ("v", 4))},
            **_linear("decoder_embed", 16, 32),
            **_norm("decoder_norm", 16),
            **_linear("decoder_pred_a", 256, 16),
            **_linear("decoder_pred_v", 768, 16),
        }
    for prefix, width in prefixes:
        shapes |= block_shapes(prefix, width, 4 * width)
        for norm in ("norm1_a", "norm1_v", "norm2_a", "norm2_v"):
            shapes |= _norm(f"{prefix}.{norm}", width)
    return random_state(shapes, seed=5)


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
