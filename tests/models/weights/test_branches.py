from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from mavil.models.encoder import Encoder
from mavil.models.layers import Stack
from mavil.models.tokens import patchify
from mavil.models.weights import Converted, convert
from mavil.structs import TokenGrid
from tests.support import foreign_weights


def assert_everything_is_accounted_for(converted: Converted, state: foreign_weights.State) -> None:
    used = [source for sources in converted.origin.values() for source in sources]
    assert sorted([*used, *converted.unused]) == sorted(state)


def test_image_mae_is_a_clip_of_one_frame() -> None:
    state = foreign_weights.image_mae()
    converted = convert(state)
    assert_everything_is_accounted_for(converted, state)
    assert converted.layout == "image_mae"
    assert not converted.unused
    encoder, decoder = converted.parts["video_encoder"], converted.parts["video_decoder"]
    assert torch.equal(encoder["patch_embed.proj.weight"][:, :, 0], state["patch_embed.proj.weight"])
    assert torch.equal(encoder["blocks.1.mlp.fc1.weight"], state["blocks.1.mlp.fc1.weight"])
    assert torch.equal(decoder["embed.weight"], state["decoder_embed.weight"])
    assert torch.equal(decoder["blocks.0.attn.qkv.bias"], state["decoder_blocks.0.attn.qkv.bias"])
    assert torch.equal(decoder["pred.bias"], state["decoder_pred.bias"])
    assert torch.equal(decoder["pos_embed"], state["decoder_pos_embed"])


def test_a_vit_of_timm_computes_the_same_here() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(32, 16, num_classes=5, embed_dim=32, depth=2, num_heads=2, class_token=True).eval()
    converted = convert(vit.state_dict())
    assert converted.unused == dict.fromkeys(["head.weight", "head.bias"], "head for the labels of another data set")
    grid = TokenGrid.of((1, 32, 32), (1, 16, 16), channels=3)
    encoder = Encoder(grid, Stack(32, 2, 2, 4.0, 1e-6), "sincos_3d")
    encoder.load_state_dict(converted.parts["video_encoder"])
    picture = torch.randn(2, 3, 32, 32)
    found = encoder.norm(encoder(patchify(picture[:, :, None], grid)))
    torch.testing.assert_close(found, vit.forward_features(picture), rtol=1e-5, atol=1e-5)


def test_names_of_the_transformers_library() -> None:
    state = foreign_weights.image_mae()
    theirs = {}
    for name, tensor in state.items():
        new = re.sub(r"^blocks\.", "vit.encoder.layer.", name)
        new = re.sub(r"^decoder_blocks\.", "decoder.decoder_layers.", new)
        new = re.sub(r"^(decoder_(?:embed|norm|pred|pos_embed)|mask_token)", r"decoder.\1", new)
        new = re.sub(r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection", new)
        new = re.sub(r"^cls_token", "vit.embeddings.cls_token", new)
        new = re.sub(r"^pos_embed", "vit.embeddings.position_embeddings", new)
        new = re.sub(r"^norm\.", "vit.layernorm.", new)
        new = new.replace("attn.proj", "attention.output.dense").replace("mlp.fc1", "intermediate.dense")
        new = new.replace("mlp.fc2", "output.dense").replace("norm1", "layernorm_before")
        new = new.replace("norm2", "layernorm_after")
        if "attn.qkv" not in new:
            theirs[new] = tensor
            continue
        for which, share in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            theirs[new.replace("attn.qkv", f"attention.attention.{which}")] = share
    converted = convert(theirs)
    assert converted.layout == "image_mae"
    assert_everything_is_accounted_for(converted, theirs)
    expected = convert(state).parts
    assert converted.parts.keys() == expected.keys()
    for part, tensors in expected.items():
        assert converted.parts[part].keys() == tensors.keys()
        assert all(torch.equal(converted.parts[part][name], tensor) for name, tensor in tensors.items())


def test_audio_mae_global_windowed_and_fine_tuned() -> None:
    for windowed in (False, True):
        state = foreign_weights.audio_mae(windowed)
        converted = convert(state)
        assert converted.layout == "audio_mae"
        assert set(converted.parts) == {"audio_encoder", "audio_decoder"}
        assert not converted.unused
        assert_everything_is_accounted_for(converted, state)
    decoder = converted.parts["audio_decoder"]
    assert torch.equal(decoder["blocks.0.attn.temperature"], state["decoder_blocks.0.attn.tau"])
    offsets = state["decoder_blocks.0.attn.meta_mlp.fc2.weight"]
    assert torch.equal(decoder["blocks.0.attn.offset_bias.fc2.weight"], offsets)
    tuned = {k: v for k, v in state.items() if not k.startswith(("decoder", "mask", "norm"))}
    tuned |= {"fc_norm.weight": torch.ones(32), "head.weight": torch.ones(5, 32)}
    converted = convert(tuned)
    assert set(converted.parts) == {"audio_encoder", "fc_norm", "head"}
    assert not converted.unused


def test_mae_st_joins_attention_and_tables() -> None:
    state = foreign_weights.mae_st(times=2, side=2)
    converted = convert(state)
    assert converted.layout == "mae_st"
    assert_everything_is_accounted_for(converted, state)
    assert set(converted.unused) == {"decoder_cls_token"}
    encoder = converted.parts["video_encoder"]
    for rows, which in zip(encoder["blocks.1.attn.qkv.weight"].chunk(3), "qkv", strict=True):
        assert torch.equal(rows, state[f"blocks.1.attn.{which}.weight"])
    table = encoder["pos_embed"]
    assert torch.equal(table[:, 0], state["pos_embed_class"][:, 0])
    for time in range(2):
        for place in range(4):
            expected = state["pos_embed_spatial"][0, place] + state["pos_embed_temporal"][0, time]
            assert torch.equal(table[0, 1 + 4 * time + place], expected)
    whole = {k: v for k, v in state.items() if "pos_embed_" not in k} | {"pos_embed": torch.ones(1, 9, 32)}
    assert torch.equal(convert(whole).parts["video_encoder"]["pos_embed"], torch.ones(1, 9, 32))


def test_video_mae_keys_have_no_bias() -> None:
    state = foreign_weights.video_mae()
    converted = convert(state)
    assert converted.layout == "video_mae"
    assert not converted.unused
    assert_everything_is_accounted_for(converted, state)
    encoder, decoder = converted.parts["video_encoder"], converted.parts["video_decoder"]
    query, key, value = encoder["blocks.0.attn.qkv.bias"].chunk(3)
    assert torch.equal(query, state["encoder.blocks.0.attn.q_bias"])
    assert torch.equal(key, torch.zeros(32))
    assert torch.equal(value, state["encoder.blocks.0.attn.v_bias"])
    tokens = torch.randn(3, 32)
    theirs = F.linear(tokens, state["encoder_to_decoder.weight"])
    assert torch.equal(F.linear(tokens, decoder["embed.weight"], decoder["embed.bias"]), theirs)
    assert torch.equal(decoder["pred.weight"], state["decoder.head.weight"])
    assert not converted.has_cls("video")


def test_video_mae_fine_tuned_has_no_prefix() -> None:
    state = {
        name.removeprefix("encoder."): tensor
        for name, tensor in foreign_weights.video_mae().items()
        if name.startswith("encoder.") and not name.startswith("encoder.norm")
    }
    state |= {"fc_norm.weight": torch.ones(32), "head.weight": torch.ones(400, 32)}
    converted = convert(state)
    assert converted.layout == "video_mae"
    assert set(converted.unused) == {"fc_norm.weight", "head.weight"}


def test_what_blocks_here_lack_is_unused() -> None:
    state = foreign_weights.image_mae() | {"blocks.0.ls1.gamma": torch.ones(32), "reg_token": torch.ones(1, 4, 32)}
    converted = convert(state)
    assert converted.unused == dict.fromkeys(["blocks.0.ls1.gamma", "reg_token"], "nothing like it here")
