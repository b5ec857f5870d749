import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mavil.models.build import build_masked
from mavil.models.layers import Stack
from mavil.models.masked import MaskedLearner
from mavil.models.masking import random_masking
from mavil.models.tokens import patchify
from mavil.structs import MaskedView, MaskedViews, Modality
from tests.support.recipes import random_inputs, tiny_recipe

FUSIONS = [{"kind": "joint", "depth": 2}, {"kind": "bottleneck", "depth": 2, "num_tokens": 2}]


def make_model(**parts: object) -> MaskedLearner:
    torch.manual_seed(0)
    model = build_masked(tiny_recipe(**parts))
    # Away from the initial zeros, so that a forgotten bias or norm shows.
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def make_inputs(model: MaskedLearner, num_views: int = 1) -> tuple[dict[Modality, Tensor], dict[Modality, MaskedViews]]:
    inputs = random_inputs(3)
    modalities = [m for m in ("audio", "video") if m in model.encoders]
    patches = {m: patchify(inputs.of(m), model.grid(m)) for m in modalities}
    views = {
        m: [random_masking(torch.rand(p.shape[:2]), p.shape[1] // 4) for _ in range(num_views)]
        for m, p in patches.items()
    }
    return patches, {m: MaskedViews(own[:1], own) for m, own in views.items()}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_shapes(fusion: dict[str, object]) -> None:
    model = make_model(fusion=fusion)
    patches, views = make_inputs(model, num_views=2)
    output = model(patches, views)
    for modality in ("audio", "video"):
        assert output.predictions[modality].shape == (1, *patches[modality].shape)
        assert output.pooled[modality].shape == (2, 3, 32)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_masked_pixels_cannot_change_any_output(fusion: dict[str, object]) -> None:
    model = make_model(fusion=fusion).eval()
    patches, views = make_inputs(model)
    before = model(patches, views)
    for modality, values in patches.items():
        hidden = views[modality].predicted[0].is_masked[..., None]
        patches[modality] = torch.where(hidden, torch.randn_like(values) * 100, values)
    after = model(patches, views)
    for modality in patches:
        assert torch.equal(before.pooled[modality], after.pooled[modality])
        assert torch.equal(before.predictions[modality], after.predictions[modality])


def test_visible_pixels_do_change_the_outputs() -> None:
    model = make_model().eval()
    patches, views = make_inputs(model)
    before = model(patches, views)
    patches["audio"] = torch.where(
        views["audio"].predicted[0].is_masked[..., None], patches["audio"], patches["audio"] + 1
    )
    after = model(patches, views)
    assert not torch.allclose(before.pooled["audio"], after.pooled["audio"])
    assert torch.equal(before.pooled["video"], after.pooled["video"])  # encoders are separate ...
    assert not torch.allclose(before.predictions["video"], after.predictions["video"])  # ... and meet in fusion


def test_two_views_in_one_call_equal_two_calls() -> None:
    model = make_model().eval()
    patches, views = make_inputs(model, num_views=2)
    together = model(patches, views)
    for view in range(2):
        alone = model(patches, {m: MaskedViews([], [v.compared[view]]) for m, v in views.items()})
        for modality in patches:
            torch.testing.assert_close(together.pooled[modality][view], alone.pooled[modality][0], atol=1e-5, rtol=1e-5)
    first = model(patches, {m: MaskedViews(v.predicted) for m, v in views.items()})
    torch.testing.assert_close(together.predictions["video"], first.predictions["video"], atol=1e-5, rtol=1e-5)


def test_order_of_visible_tokens_does_not_matter() -> None:
    model = make_model().eval()
    patches, views = make_inputs(model)
    before = model(patches, views).predictions["audio"]
    view = views["audio"].predicted[0]
    order = torch.cat([view.visible_ids.flip(1), view.masked_ids], dim=1)
    views["audio"] = MaskedViews([MaskedView(view.visible_ids.flip(1), view.masked_ids, order.argsort(1))])
    views["video"] = MaskedViews(views["video"].predicted)
    torch.testing.assert_close(model(patches, views).predictions["audio"], before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradient_reaches_every_parameter(fusion: dict[str, object]) -> None:
    model = make_model(fusion=fusion)
    patches, views = make_inputs(model, num_views=2)
    output = model(patches, views)
    total = sum(p.square().mean() for p in (*output.predictions.values(), *output.pooled.values()))
    assert isinstance(total, Tensor)
    total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_order_of_blocks_matters() -> None:
    model = make_model().eval()
    patches, views = make_inputs(model)
    before = model(patches, views).predictions["audio"]
    for stack in (model.encoders["audio"].blocks, model.fusion.blocks):  # type: ignore[union-attr]
        first, second = stack[0], stack[1]  # type: ignore[index]
        stack[0], stack[1] = second, first  # type: ignore[index]
        assert not torch.allclose(model(patches, views).predictions["audio"], before, atol=1e-4)
        stack[0], stack[1] = first, second  # type: ignore[index]


def test_bottleneck_is_the_only_way_between_modalities() -> None:
    model = make_model(fusion={"kind": "bottleneck", "depth": 1, "num_tokens": 2}).eval()
    patches, views = make_inputs(model)
    before = model(patches, views).predictions["video"]
    patches["audio"] = patches["audio"] + 1
    # One layer deep, the audio has only reached the bottleneck, not yet the video tokens.
    torch.testing.assert_close(model(patches, views).predictions["video"], before)


def test_one_modality_is_a_plain_mae() -> None:
    model = make_model(video=None, fusion=None, task={"kind": "pretrain", "contrast": None})
    patches, views = make_inputs(model)
    assert set(model(patches, views).predictions) == {"audio"}
    assert set(model.parts()) == {"audio_encoder", "audio_decoder"}


def test_block_equals_torch_reference() -> None:
    (block,) = Stack(32, 1, 4).blocks()
    assert isinstance(block, Block)
    for parameter in block.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    reference = nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    names = {
        "self_attn.in_proj_weight": "attn.qkv.weight",
        "self_attn.in_proj_bias": "attn.qkv.bias",
        "self_attn.out_proj.weight": "attn.proj.weight",
        "self_attn.out_proj.bias": "attn.proj.bias",
        "linear1.weight": "mlp.fc1.weight",
        "linear1.bias": "mlp.fc1.bias",
        "linear2.weight": "mlp.fc2.weight",
        "linear2.bias": "mlp.fc2.bias",
    }
    state = block.state_dict()
    reference.load_state_dict({key: state[names.get(key, key)] for key in reference.state_dict()})
    tokens = torch.randn(2, 7, 32)
    torch.testing.assert_close(block(tokens), reference(tokens), atol=2e-5, rtol=1e-5)


def test_teacher_targets_are_normalised_and_cover_all_tokens() -> None:
    model = make_model().eval()
    patches, _ = make_inputs(model)
    targets = model.contextualise(patches)
    assert targets["audio"].shape == (3, 8, 32)
    torch.testing.assert_close(targets["audio"].mean(-1), torch.zeros(3, 8), atol=1e-5, rtol=0)
    raw = model.contextualise(patches, normalise=False)
    both = model.contextualise(patches, last_layers=2, normalise=False)
    assert not torch.allclose(raw["video"], both["video"])
    with pytest.raises(ValueError, match="last_layers is 3"):
        model.contextualise(patches, last_layers=3)


def test_embedding_is_the_mean_of_normalised_tokens_without_cls() -> None:
    model = make_model().eval()
    patches, _ = make_inputs(model)
    encoder = model.encoders["audio"]
    expected = encoder.norm(encoder(patches["audio"]))[:, 1:].mean(1)  # type: ignore[operator]
    torch.testing.assert_close(model.embed("audio", patches["audio"]), expected)


def test_audio_reaches_video_through_the_bottleneck() -> None:
    model = make_model(fusion={"kind": "bottleneck", "depth": 2, "num_tokens": 2}).eval()
    patches, views = make_inputs(model)
    before = model(patches, views).predictions["video"]
    patches["audio"] = patches["audio"] + 1
    assert not torch.allclose(model(patches, views).predictions["video"], before, atol=1e-4)


def test_decoder_puts_visible_tokens_back_in_their_places() -> None:
    decoder = make_model().decoders["audio"]
    decoder.blocks = nn.ModuleList()  # without attention every output depends on its own place only
    view = random_masking(torch.rand(2, 8), 3)
    tokens = torch.randn(2, 4, 32)
    predictions = decoder(tokens, view)
    embedded = decoder.embed(tokens)  # type: ignore[operator]
    for clip in range(2):
        for place in range(8):
            shown = (view.visible_ids[clip] == place).nonzero()
            own = embedded[clip, 1 + shown.item()] if len(shown) else decoder.mask_token[0, 0]  # type: ignore[index]
            expected = decoder.pred(decoder.norm(own + decoder.pos_embed[0, 1 + place]))  # type: ignore[operator, index]
            torch.testing.assert_close(predictions[clip, place], expected)
