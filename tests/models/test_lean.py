"""Parts that keep little for the backward pass, against torch's own."""

import pytest
import torch
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from mavil.models.layers import KeylessBiasAttention
from mavil.models.lean import Dropout, LeanMlp, SelfAttention, draw_dropped
from tests.models.kept import kept_bytes, perturbed


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_lean_mlp_is_timms_to_the_bit_and_keeps_one_hidden_activation_less(dtype: torch.dtype | None) -> None:
    lean, plain = perturbed(LeanMlp(32, 64)), Mlp(32, 64)
    plain.load_state_dict(lean.state_dict())
    tokens = torch.randn(2, 5, 32, requires_grad=True)
    found = {}
    for name, module in (("lean", lean), ("plain", plain)):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            output, kept = kept_bytes(module, tokens)
        gradients = torch.autograd.grad(output.float().square().sum(), [tokens, *module.parameters()])
        found[name] = (output, gradients, kept)
    assert torch.equal(found["lean"][0], found["plain"][0])
    assert all(torch.equal(a, b) for a, b in zip(found["lean"][1], found["plain"][1], strict=True))
    if dtype is None:  # in bf16 the copies of weights are counted too
        assert found["plain"][2] - found["lean"][2] == 2 * 5 * 64 * 4


def test_the_lean_mlp_leaves_frozen_weights_alone() -> None:
    mlp = perturbed(LeanMlp(32, 64))
    mlp.fc2.requires_grad_(False)
    mlp(torch.randn(2, 5, 32)).sum().backward()
    assert mlp.fc2.weight.grad is None
    assert mlp.fc2.bias.grad is None
    assert mlp.fc1.weight.grad is not None
    assert mlp.fc1.weight.grad.any()


def test_what_is_dropped_has_its_rate_and_no_pattern() -> None:
    torch.manual_seed(0)
    dropped, growth = draw_dropped(torch.Size([1000, 1003]), 0.1)
    assert dropped.dtype == torch.bool
    assert dropped.shape == (1000, 1003)
    for share in (dropped, *(dropped.flatten()[i::4] for i in range(4))):  # four decisions come of one number
        assert share.float().mean().item() == pytest.approx(0.1, abs=0.003)
    both = (dropped[:, 1:] & dropped[:, :-1]).float().mean().item()
    assert both == pytest.approx(0.01, abs=0.001)
    assert growth == pytest.approx(1 / 0.9, rel=1e-4)
    again, _ = draw_dropped(torch.Size([1000, 1003]), 0.1)
    assert not torch.equal(dropped, again)
    torch.manual_seed(0)
    assert torch.equal(dropped, draw_dropped(torch.Size([1000, 1003]), 0.1)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_one_byte_per_value(dtype: torch.dtype) -> None:
    layer = Dropout(0.25)
    values = torch.full((64, 999), 2.0, dtype=dtype, requires_grad=True)
    output, kept = kept_bytes(layer, values)
    assert output.dtype == dtype
    assert kept == values.numel()
    assert output.float().mean().item() == pytest.approx(2.0, abs=0.03)
    output.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, output.detach() / 2)
    assert set(values.grad.unique().tolist()) == {0.0, torch.tensor(4 / 3, dtype=dtype).item()}
    assert torch.equal(layer.eval()(values), values)


def test_dropout_of_everything_and_of_nothing_is_torchs() -> None:
    assert not Dropout(1.0)(torch.ones(100)).any()
    assert Dropout(0.0)(torch.ones(100)).all()


def slow_attention(
    layer: Attention, tokens: Tensor, attn_mask: Tensor | None, dropped: Tensor, growth: float
) -> Tensor:
    qkv = layer.qkv(tokens)
    if isinstance(layer, KeylessBiasAttention):
        qkv = qkv + torch.cat([layer.q_bias, torch.zeros_like(layer.q_bias), layer.v_bias])
    queries, keys, values = qkv.unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    logits = queries @ keys.mT / 8**0.5
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -torch.inf)
    weights = logits.softmax(dim=-1).nan_to_num(0.0)
    kept = (weights * growth).masked_fill(dropped.reshape(weights.shape), 0.0)
    return layer.proj((kept @ values).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", [SelfAttention, KeylessBiasAttention])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_drops_weights_as_written_out(kind: type[Attention], masked: bool) -> None:
    layer = perturbed(kind(32, 4, qkv_bias=kind is SelfAttention, attn_drop=0.3, proj_drop=0.0))
    tokens = torch.randn(3, 5, 32, requires_grad=True)
    # The last clip may look at nothing.
    attn_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0] * 5]).bool()[:, None, None] if masked else None
    torch.manual_seed(1)
    found = layer(tokens, attn_mask=attn_mask)
    torch.manual_seed(1)
    dropped, growth = draw_dropped(torch.Size([12, 5, 5]), 0.3)
    assert 0 < dropped.sum() < dropped.numel()
    real = tokens if not masked else tokens[:2]
    dropped, expected_mask = dropped[: 4 * len(real)], None if attn_mask is None else attn_mask[:2]
    expected = slow_attention(layer, real, expected_mask, dropped, growth)
    torch.testing.assert_close(found[: len(real)], expected, atol=1e-6, rtol=1e-5)
    if masked:
        torch.testing.assert_close(found[2], layer.proj.bias.expand(5, -1))
    weights = torch.randn_like(expected)
    inputs = [tokens, *layer.parameters()]
    gradients = torch.autograd.grad((found[: len(real)] * weights).sum(), inputs)
    for ours, plain in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_attention_that_drops_keeps_five_bytes_per_pair() -> None:
    layers: list[nn.Module] = [kind(8, 4, attn_drop=0.1) for kind in (SelfAttention, Attention)]
    tokens = torch.randn(1, 300, 8)
    ours, torchs = (kept_bytes(layer, tokens)[1] / (4 * 300**2) for layer in layers)
    assert ours == pytest.approx(5, abs=0.5)
    assert torchs > 11


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_without_dropout_attention_is_timms_to_the_bit(dtype: torch.dtype | None) -> None:
    ours, timms = (
        perturbed(SelfAttention(32, 4, qkv_bias=True, attn_drop=0.3, proj_drop=0.3)),
        Attention(32, 4, qkv_bias=True),
    )
    timms.load_state_dict(ours.state_dict())
    tokens = torch.randn(2, 5, 32)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        assert torch.equal(ours.eval()(tokens), timms(tokens))
        ours.train()
        assert not torch.equal(ours(tokens), ours(tokens))


def test_attention_in_three_steps_is_the_fused_one() -> None:
    layer = perturbed(KeylessBiasAttention(32, 4, qkv_bias=False, attn_drop=0.0, proj_drop=0.0))
    tokens, attn_mask = torch.randn(2, 5, 32), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()[:, None, None]
    added = torch.zeros(2, 1, 1, 5).masked_fill(~attn_mask, -torch.inf)
    fused = layer(tokens, attn_mask=attn_mask)
    layer.fused_attn = False
    for mask in (attn_mask, added):
        torch.testing.assert_close(layer(tokens, attn_mask=mask), fused, atol=1e-6, rtol=1e-5)
