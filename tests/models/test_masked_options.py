"""What the paper leaves open in the pre-training network: where is pooled, how many views, who may be missing, who decodes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mavil.models.fusion import BottleneckFusion, JointFusion
from mavil.models.layers import SharedBlock
from mavil.models.masked import MaskedLearner
from mavil.models.masking import random_masking
from mavil.structs import MODALITIES, MaskedViews, Modality
from tests.models.test_masked import FUSIONS, make_inputs, make_model
from tests.support.recipes import tiny_recipe

TREE = tiny_recipe().model_dump(mode="json")
BARE = {m: TREE[m] | {"cls_token": False, "modality_embedding": True} for m in MODALITIES}
ALONE = {"kind": "joint", "depth": 2, "alone_norms": True}


def pretrain(**contrast: Any) -> dict[str, Any]:
    return {"kind": "pretrain", "contrast": contrast}


def views_like(model: MaskedLearner, num_visible: int, seed: int) -> dict[Modality, MaskedViews]:
    torch.manual_seed(seed)
    return {m: MaskedViews([random_masking(torch.rand(3, model.grid(m).num_tokens), num_visible)]) for m in MODALITIES}


@pytest.mark.parametrize("fusion", [*FUSIONS, None])
def test_several_predicted_views_are_each_what_they_are_alone(fusion: dict[str, object] | None) -> None:
    model = make_model(fusion=fusion).eval()
    patches, _ = make_inputs(model)
    single = [views_like(model, 3, seed) for seed in range(3)]
    together = {m: MaskedViews([one[m].predicted[0] for one in single]) for m in MODALITIES}
    output = model(patches, together)
    for number, views in enumerate(single):
        alone = model(patches, views)
        for m in MODALITIES:
            torch.testing.assert_close(output.predictions[m][number], alone.predictions[m][0], atol=1e-5, rtol=1e-5)


def test_views_of_another_length_are_compared_and_change_no_prediction() -> None:
    model = make_model().eval()
    patches, views = make_inputs(model)
    longer = views_like(model, 5, seed=1)
    output = model(patches, {m: MaskedViews(views[m].predicted, longer[m].predicted) for m in MODALITIES})
    for m in MODALITIES:
        expected = model.pool(m, model.encoder(m)(patches[m].gather(1, index(longer[m], patches[m])), ids(longer[m])))
        torch.testing.assert_close(output.pooled[m][0], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(output.predictions[m], model(patches, views).predictions[m])


def ids(views: MaskedViews) -> Tensor:
    return views.predicted[0].visible_ids


def index(views: MaskedViews, patches: Tensor) -> Tensor:
    return ids(views)[..., None].expand(-1, -1, patches.shape[-1])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_pooling_the_fusion_sees_the_other_modality_and_pooling_it_alone_does_not(fusion: dict[str, object]) -> None:
    for pooled_from, sees_other in (("fusion", True), ("fusion_alone", False), ("encoder", False)):
        model = make_model(fusion=fusion, task=pretrain(pooled_from=pooled_from)).eval()
        patches, views = make_inputs(model, num_views=2)
        before = model(patches, views).pooled["video"]
        patches["audio"] = patches["audio"] + 1
        after = model(patches, views).pooled["video"]
        assert torch.allclose(before, after, atol=1e-6) is not sees_other, pooled_from


@pytest.mark.parametrize("pooled_from", ["encoder", "fusion_alone"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_what_is_compared_in_training_is_what_retrieval_compares(pooled_from: str, pooling: str) -> None:
    model = make_model(
        task=pretrain(pooled_from=pooled_from, pooling=pooling, projection={"hidden_width": 8, "width": 6})
    )
    model.eval()
    patches, _ = make_inputs(model)
    everything = {}
    for m, values in patches.items():
        order = torch.arange(values.shape[1]).expand(3, -1)
        everything[m] = MaskedViews([], [random_masking(order.float(), values.shape[1])])
    pooled = model(patches, everything).pooled
    for m in MODALITIES:
        assert pooled[m].shape == (1, 3, 6)
        torch.testing.assert_close(pooled[m][0], model.embed(m, patches[m]), atol=1e-5, rtol=1e-5)


def test_cls_pooling_takes_the_normalised_cls_token() -> None:
    model = make_model(task=pretrain(pooling="cls")).eval()
    patches, _ = make_inputs(model)
    encoder = model.encoder("audio")
    torch.testing.assert_close(model.embed("audio", patches["audio"]), encoder.norm(encoder(patches["audio"]))[:, 0])


@pytest.mark.parametrize("parts", [{"fusion": f} for f in FUSIONS] + [{"joint_decoder": True}], ids=str)
def test_nobody_looks_at_an_absent_modality(parts: dict[str, Any]) -> None:
    model = make_model(**parts).eval()
    patches, views = make_inputs(model)
    has_audio = torch.tensor([True, False, True])
    before = model(patches, views, {"audio": has_audio, "video": None})
    whole = model(patches, views)
    patches["audio"] = torch.where(has_audio[:, None, None], patches["audio"], patches["audio"] * -7 + 1)
    after = model(patches, views, {"audio": has_audio, "video": None})
    torch.testing.assert_close(before.predictions["video"], after.predictions["video"], atol=1e-6, rtol=1e-6)
    # The clips that have both are what they were without any flags, the other one is not.
    change = (before.predictions["video"] - whole.predictions["video"])[0].abs().amax(dim=(1, 2))
    assert change[0] < 1e-5 < 1e-4 < change[1]
    assert change[2] < 1e-5


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_clip_without_sound_passes_the_fusion_as_its_video_does_alone(fusion: dict[str, object]) -> None:
    model = make_model(fusion=fusion).eval()
    assert isinstance(model.fusion, (JointFusion, BottleneckFusion))
    patches, _ = make_inputs(model)
    audio, video = (model.encoder(m)(patches[m]) for m in MODALITIES)
    nobody = torch.zeros(3, dtype=torch.bool)
    masked = model.fusion({"audio": audio, "video": video}, {"audio": nobody, "video": None})
    alone = model.fusion({"video": video})
    assert set(alone.layers) == {"video"}
    torch.testing.assert_close(masked.output("video"), alone.output("video"), atol=1e-5, rtol=1e-5)


def test_a_modality_alone_uses_its_own_norms_and_shares_the_rest() -> None:
    model = make_model(fusion=ALONE).eval()
    assert isinstance(model.fusion, JointFusion)
    tokens = {m: model.encoder(m)(values) for m, values in make_inputs(model)[0].items()}
    together, alone = model.fusion(tokens).output("audio"), model.fusion({"audio": tokens["audio"]}).output("audio")
    for block in model.fusion.blocks:
        assert isinstance(block, SharedBlock)
        block.alone_norms["audio"]["norm1"].weight.data.zero_()  # type: ignore[index, union-attr, operator]
    assert torch.equal(model.fusion(tokens).output("audio"), together)
    assert not torch.allclose(model.fusion({"audio": tokens["audio"]}).output("audio"), alone)
    model.fusion.blocks[0].attn.qkv.weight.data.zero_()  # type: ignore[union-attr, operator]
    assert not torch.allclose(model.fusion(tokens).output("audio"), together)
    assert model.fusion.norm_of("audio", alone=True) is not model.fusion.norm_of("audio", alone=False)


def test_a_norm_before_the_fusion_makes_it_blind_to_scale() -> None:
    model = make_model(fusion={"kind": "joint", "depth": 1, "input_norm": True}).eval()
    assert model.fusion is not None
    tokens = {m: model.encoder(m)(values) for m, values in make_inputs(model)[0].items()}
    scaled: dict[Modality, Tensor] = {"audio": tokens["audio"] * 3, "video": tokens["video"]}
    before, after = model.fusion(tokens).output("video"), model.fusion(scaled).output("video")
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_the_joint_decoder_lets_video_see_audio_without_any_fusion() -> None:
    for joint, sees in ((True, True), (False, False)):
        model = make_model(fusion=None, joint_decoder=joint).eval()
        patches, views = make_inputs(model)
        before = model(patches, views).predictions["video"]
        patches["audio"] = patches["audio"] + 1
        assert torch.allclose(model(patches, views).predictions["video"], before, atol=1e-6) is not sees


@pytest.mark.parametrize(
    "parts",
    [
        BARE | {"joint_decoder": True, "fusion": ALONE, "task": pretrain(pooled_from="fusion_alone")},
        {"task": pretrain(pooled_from="fusion", pooling="cls", projection={"hidden_width": 8, "width": 6})},
        {"fusion": {"kind": "bottleneck", "input_norm": True}, "task": pretrain(pooled_from="fusion_alone")},
    ],
)
def test_gradient_reaches_every_parameter_that_is_not_declared_unused(parts: dict[str, Any]) -> None:
    model = make_model(**parts)
    for module in model.unused_in_training(compares=True):
        module.requires_grad_(False)
    patches, views = make_inputs(model, num_views=2)
    output = model(patches, views)
    sum(
        (p.square().mean() for p in (*output.predictions.values(), *output.pooled.values())), torch.zeros(())
    ).backward()  # type: ignore[no-untyped-call]
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    declared = {id(p) for module in model.unused_in_training(compares=True) for p in module.parameters()}
    assert all(p.grad is None for p in model.parameters() if id(p) in declared)


def test_without_a_cls_token_nothing_stands_in_front() -> None:
    model = make_model(**BARE)
    patches, _ = make_inputs(model)
    encoder = model.encoder("audio")
    assert encoder(patches["audio"]).shape == (3, 8, 32)
    assert encoder.pos_embed.shape == (1, 8, 32)
    assert not any("cls_token" in name for name in model.state_dict())


def test_the_modality_vector_is_added_to_every_patch_token_and_not_to_cls() -> None:
    model = make_model(audio=TREE["audio"] | {"modality_embedding": True})
    patches, _ = make_inputs(model)
    encoder = model.encoder("audio")
    before = encoder.embed(patches["audio"])
    assert encoder.modality_embed is not None
    encoder.modality_embed.data += 1
    after = encoder.embed(patches["audio"])
    torch.testing.assert_close(after[:, 1:], before[:, 1:] + 1)
    assert torch.equal(after[:, 0], before[:, 0])


def test_trained_positions_are_parameters_that_begin_at_the_fixed_table() -> None:
    fixed = make_model().encoder("audio")
    torch.manual_seed(0)
    trained = make_model(audio=TREE["audio"] | {"trained_positions": True}).encoder("audio")
    assert "pos_embed" in dict(trained.named_parameters())
    assert "pos_embed" not in dict(fixed.named_parameters())
    assert trained.pos_embed.shape == fixed.pos_embed.shape


def test_a_teacher_can_be_asked_for_each_encoder_by_itself() -> None:
    model = make_model().eval()
    patches, _ = make_inputs(model)
    apart = model.contextualise(patches, last_layers=2, normalise=False, context="separate")
    encoder = model.encoder("audio")
    layers = list(encoder.layers(patches["audio"]))
    torch.testing.assert_close(apart["audio"], ((layers[-1] + layers[-2]) / 2)[:, 1:])
    torch.testing.assert_close(layers[-1], encoder(patches["audio"]))
    patches["video"] = patches["video"] + 1
    again = model.contextualise(patches, last_layers=2, normalise=False, context="separate")
    assert torch.equal(again["audio"], apart["audio"])
    with pytest.raises(ValueError, match="last_layers is 3"):
        model.contextualise(patches, last_layers=3, context="separate")


def test_probes_can_look_at_what_stands_before_the_projection() -> None:
    model = make_model(task=pretrain(projection={"hidden_width": 8, "width": 6})).eval()
    patches, _ = make_inputs(model)
    before = model.embed("video", patches["video"], projects=False)
    assert before.shape == (3, 32)
    torch.testing.assert_close(model.projections["video"](before), model.embed("video", patches["video"]))
