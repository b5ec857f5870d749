from __future__ import annotations

import pytest
import torch

from mavil.models.weights import convert, to_mae_ast_names
from mavil.structs import UserError
from tests.support import foreign_weights

DEAD = ("encoder_mask_emb", "layer_norm.", "batch_norm.num_batches_tracked")


def test_there_and_back_but_for_what_no_forward_pass_uses() -> None:
    state = foreign_weights.mae_ast()
    converted = convert(state, patch=(2, 128))
    assert converted.statistics is not None
    back = to_mae_ast_names(converted.parts, converted.statistics, table_rows=40)
    assert back.keys() == state.keys()
    assert {name: t.shape for name, t in back.items()} == {name: t.shape for name, t in state.items()}
    for name, tensor in state.items():
        if not name.startswith(DEAD) and not name.endswith(".pe"):
            assert torch.equal(back[name], tensor), name


def test_every_tensor_has_its_place_or_a_reason() -> None:
    state = foreign_weights.mae_ast()
    converted = convert(state, patch=(16, 16))
    used = [source for sources in converted.origin.values() for source in sources]
    assert sorted([*used, *converted.unused]) == sorted(state)
    left = [
        "encoder_mask_emb",
        "layer_norm.weight",
        "layer_norm.bias",
        "enc_sine_pos_embed.pe",
        "dec_sine_pos_embed.pe",
    ]
    assert set(converted.unused) == {*left, *(name for name in state if name.startswith("batch_norm."))}
    assert converted.statistics == (-4.25, pytest.approx(17.3219**0.5, rel=1e-5))


def test_parts() -> None:
    state = foreign_weights.mae_ast()
    parts = convert(state, patch=(2, 128)).parts
    encoder, decoder = parts["audio_encoder"], parts["audio_decoder"]
    kernel = encoder["patch_embed.proj.weight"]
    assert kernel.shape == (32, 1, 2, 128)
    assert torch.equal(kernel[:, 0, 1, 3], state["post_extract_proj.weight"][:, 128 + 3])
    shares = [state[f"encoder.layers.1.self_attn.{which}_proj.bias"] for which in "qkv"]
    assert torch.equal(encoder["blocks.1.attn.qkv.bias"], torch.cat(shares))
    assert torch.equal(encoder["blocks.0.norm1.weight"], state["encoder.layers.0.self_attn_layer_norm.weight"])
    assert torch.equal(decoder["blocks.0.norm2.bias"], state["decoder.layers.0.final_layer_norm.bias"])
    assert torch.equal(decoder["input_norm.bias"], state["decoder.layer_norm.bias"])
    assert torch.equal(decoder["mask_token"], state["decoder_mask_emb"].reshape(1, 1, 32))
    assert torch.equal(decoder["discriminate.weight"], state["final_proj_classification.weight"])
    assert convert(state).parts["audio_encoder"]["patch_embed.proj.weight"].shape == (32, 256)


def test_tables_are_those_of_wav2vec() -> None:
    converted = convert(foreign_weights.mae_ast(), patch=(16, 16))
    table = to_mae_ast_names(converted.parts, (0.0, 1.0), table_rows=7)["dec_sine_pos_embed.pe"]
    for row in (0, 6):
        for pair in (0, 5):
            angle = row / 10000 ** (2 * pair / 32)
            expected = torch.tensor([angle]).sin().item(), torch.tensor([angle]).cos().item()
            assert table[0, row, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(expected, abs=1e-6)


def test_what_cannot_be_read_is_told() -> None:
    with pytest.raises(UserError, match=r"256 values there, but audio\.patch is \[16, 8\]"):
        convert(foreign_weights.mae_ast(), patch=(16, 8))
    with pytest.raises(UserError, match="convolutional positions"):
        convert(foreign_weights.mae_ast() | {"enc_conv_pos_embed.0.bias": torch.ones(32)})
