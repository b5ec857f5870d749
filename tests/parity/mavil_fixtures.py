"""Files of MAViL in the documented format: two branches, fusion, joint or separate heads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.parity import plain
from tests.parity.fixtures import Content, assemble, embed, gradients, random_inputs, with_cls

WIDTH, HEADS, EPS = 24, 3, 1e-6
CELLS, TUBELETS = (5, 2), 2 * 2 * 3
DEPTHS = {"": 2, "_v": 1}
KERNELS: dict[str, tuple[int, ...]] = {"": (1, 16, 16), "_v": (3, 2, 8, 8)}


def mavil(head: str) -> Content:
    """80 x 32 spectrograms, 4 frames of 16 x 24; ``head``: pretrained, av (3 fusion blocks), a_v (none)."""
    fusion = {"pretrained": 2, "av": 3, "a_v": 0}[head]
    c: Content = {
        "embed_dim": WIDTH,
        "num_heads": HEADS,
        "audio_blocks": 2,
        "video_blocks": 1,
        "fusion_blocks": fusion,
        "mlp_ratio": 2,
        "audio_size": [80, 32],
        "audio_patch": [16, 16],
        "video_frames": 4,
        "video_size": [16, 24],
        "video_tubelet": [2, 8, 8],
        "in_chans": 3,
        "layer_norm_eps": EPS,
        "num_classes": 0 if head == "pretrained" else 5,
        "head": head,
    }
    # Two frames more than the model takes.
    inputs = random_inputs({"audio": (2, 1, 80, 32), "video": (2, 3, 6, 16, 24), "targets": (2, 5)})
    noise = random_inputs({"noise_t": (2, 5), "noise_f": (2, 2), "noise_v": (2, TUBELETS)}, seed=9)

    def compute(w: plain.State, v: Mapping[str, Tensor]) -> Content:
        return _numbers(w, v, noise, fusion, head)

    content = assemble(c, _shapes(fusion, head), inputs, compute, frozen=("pos_embed", "pos_embed_v"))
    doubles = content.pop("in_float64")
    f64 = {name: doubles["features"][name] for name in ("audio", "video", "fusion") if name in doubles["features"]}
    for name, value in doubles.get("logits", {}).items():
        f64 |= {name: value, f"masked_{name}": doubles["masked"][name]}
    if head == "pretrained":
        del inputs["targets"]
    else:
        content["params_without_grad"] = ["pos_embed", "pos_embed_v"]
    return {**content, "f64": f64}


def _shapes(fusion: int, head: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for suffix, tokens in (("", CELLS[0] * CELLS[1]), ("_v", TUBELETS)):
        shapes |= {
            f"cls_token{suffix}": (1, 1, WIDTH),
            f"pos_embed{suffix}": (1, tokens + 1, WIDTH),
            f"patch_embed{suffix}.proj.weight": (WIDTH, *KERNELS[suffix]),
            f"patch_embed{suffix}.proj.bias": (WIDTH,),
            **plain.block_shapes(f"blocks{suffix}", DEPTHS[suffix], WIDTH, 2 * WIDTH),
        }
    shapes |= plain.block_shapes("blocks_av", fusion, WIDTH, 2 * WIDTH)
    for letter in {"av": ["av"], "a_v": ["a", "v"]}.get(head, []):
        width = 2 * WIDTH if letter == "av" else WIDTH
        shapes |= plain.norm_shapes(f"fc_norm_{letter}", width) | plain.linear_shapes(f"head_{letter}", width, 5)
    return shapes


def _layers(w: plain.State, x: Tensor, suffix: str, ids: Tensor | None) -> list[Tensor]:
    """The input of block 0, then the output of every block."""
    tokens = embed(x, w, suffix) + w[f"pos_embed{suffix}"][:, 1:]
    layers = [with_cls(tokens if ids is None else plain.pick(tokens, ids), w, suffix)]
    for i in range(DEPTHS[suffix]):
        layers.append(plain.block(layers[-1], w, f"blocks{suffix}.{i}", HEADS, EPS))
    return layers


def _fused(w: plain.State, audio: Tensor, video: Tensor, fusion: int) -> list[Tensor]:
    joint = [torch.cat([audio, video], 1)]
    for i in range(fusion):
        joint.append(plain.block(joint[-1], w, f"blocks_av.{i}", HEADS, EPS))
    return joint


def _means(joint: Tensor, num_audio: int) -> tuple[Tensor, Tensor]:
    """Without CLS, which stands first in both parts."""
    return joint[:, 1:num_audio].mean(1), joint[:, num_audio + 1 :].mean(1)


def _scores(w: plain.State, audio: Tensor, video: Tensor, fusion: int, head: str) -> tuple[Content, Content]:
    """Logits and what is behind the head's norm, from the encoders' outputs."""
    means = _means(_fused(w, audio, video, fusion)[-1], audio.shape[1])
    pooled = {"av": torch.cat(means, 1)} if head == "av" else dict(zip("av", means, strict=True))
    pooled = {letter: plain.norm(values, w, f"fc_norm_{letter}", EPS) for letter, values in pooled.items()}
    logits = {f"logits_{letter}": plain.linear(values, w, f"head_{letter}") for letter, values in pooled.items()}
    return logits, {f"pooled_{letter}": values for letter, values in pooled.items()}


def _numbers(w: plain.State, v: Mapping[str, Tensor], noise: Mapping[str, Tensor], fusion: int, head: str) -> Content:
    inputs = {"": v["audio"], "_v": v["video"][:, :, :4]}
    audio, video = (_layers(w, inputs[suffix], suffix, None) for suffix in ("", "_v"))
    index = {"audio": torch.tensor([0, 3, 9]), "video": torch.tensor([1, 11])}
    features: Content = {}
    for name, layers in (("audio", audio), ("video", video)):
        tokens = torch.stack(layers)[:, :, 1:]
        features |= {
            name: tokens.mean(2),
            f"{name}_token_index": index[name],
            f"{name}_tokens": tokens[:, :, index[name]],
        }
    if fusion:
        joint = _fused(w, audio[-1], video[-1], fusion)
        means = [torch.cat(_means(tokens, audio[-1].shape[1]), 1) for tokens in joint]
        if head == "av":
            means[-1] = plain.norm(means[-1], w, "fc_norm_av", EPS)
        chosen = torch.tensor([0, 1, 10, 11, 12, 22])
        tokens = torch.stack(joint)[:, :, chosen]
        features |= {"fusion": torch.stack(means), "fusion_token_index": chosen, "fusion_tokens": tokens}
    if head == "pretrained":
        return {"features": features}
    logits, pooled = _scores(w, audio[-1], video[-1], fusion, head)
    loss = torch.stack([plain.bce(values, v["targets"]) for values in logits.values()]).sum()
    if head == "a_v":
        pooled["audio_only_pooled"] = pooled["pooled_a"]
    kept = [int(5 * 0.7), int(2 * 0.5), int(TUBELETS * 0.4)]
    ids = {
        "": plain.keep_rows([noise["noise_t"], noise["noise_f"]], kept[:2])[0],
        "_v": plain.keep_smallest(noise["noise_v"], kept[2])[0],
    }
    seen = [_layers(w, inputs[suffix], suffix, ids[suffix])[-1] for suffix in ("", "_v")]
    masked = {
        **noise,
        **{f"mask_{which}_prob": ratio for which, ratio in (("t", 0.3), ("f", 0.5), ("v", 0.6))},
        **{f"visible_{which}": count for which, count in zip("tfv", kept, strict=True)},
        **_scores(w, *seen, fusion, head)[0],
    }
    return {"features": features, "logits": logits, **pooled, "bce": loss, **gradients(loss, w), "masked": masked}
