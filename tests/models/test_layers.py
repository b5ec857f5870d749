"""Blocks against torch's own, and what a stack's settings do to them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mavil.commands.inspect import _KEPT_VALUES
from mavil.engine.blocks import checkpoint_activations
from mavil.models.layers import KeylessBiasAttention, PostNormBlock, PreNormBlock, Stack
from mavil.models.lean import Dropout
from tests.models.kept import kept_bytes, perturbed

STACK = Stack(32, 2, 4, mlp_ratio=2.0, layer_norm_eps=1e-5)


@pytest.mark.parametrize("post_norm", [True, False])
def test_a_block_is_the_one_of_torch(post_norm: bool) -> None:
    (block, _) = perturbed(replace(STACK, post_norm=post_norm).blocks()).eval()
    other = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True, norm_first=not post_norm).eval()
    names = {
        "self_attn.in_proj_weight": "attn.qkv.weight",
        "self_attn.in_proj_bias": "attn.qkv.bias",
        "self_attn.out_proj": "attn.proj",
        "linear1": "mlp.fc1",
        "linear2": "mlp.fc2",
    }
    state = {}
    for name in other.state_dict():
        ours = next((name.replace(a, b) for a, b in names.items() if name.startswith(a)), name)
        state[name] = block.state_dict()[ours]
    other.load_state_dict(state)
    tokens, is_padding = torch.randn(2, 5, 32), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    torch.testing.assert_close(block(tokens), other(tokens), atol=1e-5, rtol=1e-5)
    masked = block(tokens, attn_mask=~is_padding[:, None, None])
    expected = other(tokens, src_key_padding_mask=is_padding)
    torch.testing.assert_close(masked[~is_padding], expected[~is_padding], atol=1e-5, rtol=1e-5)


def test_norms_stand_before_post_norm_blocks_and_behind_pre_norm_ones() -> None:
    post = replace(STACK, post_norm=True)
    assert isinstance(STACK.input_norm(), nn.Identity)
    assert isinstance(post.norm(), nn.Identity)
    for norm in (STACK.norm(), post.input_norm()):
        assert isinstance(norm, nn.LayerNorm)
        assert norm.eps == 1e-5


@pytest.mark.parametrize("post_norm", [True, False])
def test_keys_without_bias_are_a_qkv_bias_whose_middle_is_zero(post_norm: bool) -> None:
    stack = replace(STACK, post_norm=post_norm)
    (plain, _), (keyless, _) = stack.blocks(), replace(stack, key_bias=False).blocks()
    assert isinstance(keyless.attn, KeylessBiasAttention)
    assert "attn.qkv.bias" not in keyless.state_dict()
    perturbed(keyless)
    state = keyless.state_dict()
    queries, values = state.pop("attn.q_bias"), state.pop("attn.v_bias")
    plain.load_state_dict({**state, "attn.qkv.bias": torch.cat([queries, torch.zeros(32), values])})
    tokens = torch.randn(2, 5, 32)
    torch.testing.assert_close(keyless.eval()(tokens), plain.eval()(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [PreNormBlock, PostNormBlock])
def test_a_block_left_out_gives_its_input_and_every_weight_a_zero_gradient(kind: type[nn.Module]) -> None:
    block = perturbed(kind(replace(STACK, layer_drop=0.5)))
    tokens, computed = torch.randn(2, 5, 32), []
    block.mlp.register_forward_hook(lambda *_: computed.append(1))
    outputs: list[Tensor] = [block(tokens) for _ in range(40)]
    left_out = [bool(torch.equal(output, tokens)) for output in outputs]
    assert 8 <= sum(left_out) <= 32
    assert len(computed) == 40 - sum(left_out), "what is left out is computed"
    outputs[left_out.index(True)].sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in block.parameters())
    assert not torch.equal(block.eval()(tokens), tokens)


@pytest.mark.parametrize("post_norm", [True, False])
def test_a_block_keeps_what_the_estimate_of_memory_says(post_norm: bool) -> None:
    (block,) = Stack(64, 1, 4, post_norm=post_norm).blocks()
    tokens = torch.randn(2, 50, 64)
    _, kept = kept_bytes(block, tokens)
    assert kept / tokens.nbytes == pytest.approx(_KEPT_VALUES, abs=0.2)  # and one number per query and head


def test_a_checkpointed_block_keeps_its_input_alone_and_drops_the_same_twice() -> None:
    blocks = nn.ModuleList([perturbed(PreNormBlock(replace(STACK, dropout=0.3)))])
    tokens = torch.randn(2, 5, 32, requires_grad=True)
    torch.manual_seed(1)
    expected = torch.autograd.grad(blocks[0](tokens).square().sum(), [tokens, *blocks.parameters()])
    checkpoint_activations(nn.ModuleDict({"blocks": blocks}), "torch")
    torch.manual_seed(1)
    output, kept = kept_bytes(blocks[0], tokens)
    assert kept <= tokens.nbytes
    found = torch.autograd.grad(output.square().sum(), [tokens, *blocks.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_dropout_reaches_attention_and_mlp_in_training_only() -> None:
    for post_norm in (True, False):
        (block, _) = perturbed(replace(STACK, post_norm=post_norm, dropout=0.3).blocks())
        rates = {name: m.p for name, m in block.named_modules() if isinstance(m, nn.Dropout)}
        inside_mlp = 0.0 if post_norm else 0.3  # fairseq's activation dropout is 0 in MAE-AST
        assert rates == {"attn.attn_drop": 0.3, "attn.proj_drop": 0.3, "mlp.drop1": inside_mlp, "mlp.drop2": 0.3}
        assert isinstance(block.attn.proj_drop, Dropout)  # drawn cheaply
        assert isinstance(block.mlp.drop2, Dropout)
        tokens = torch.randn(2, 5, 32)
        assert not torch.equal(block(tokens), block(tokens))
        assert torch.equal(block.eval()(tokens), block(tokens))


def test_post_norm_weights_begin_like_berts() -> None:
    stack = Stack(256, 1, 4, post_norm=True)
    (block,) = stack.blocks()
    for linear in (block.attn.qkv, block.mlp.fc1):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not linear.bias.any()


def test_norms_for_modalities_alone_need_pre_norm_blocks() -> None:
    with pytest.raises(ValueError, match="post_norm"):
        replace(STACK, post_norm=True).blocks(alone_norms=True)
