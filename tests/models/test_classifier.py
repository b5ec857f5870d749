from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from mavil.models.build import build_classifier
from mavil.models.classifier import Classifier
from mavil.models.encoder import Encoder
from mavil.models.fusion import JointFusion
from mavil.models.tokens import patchify, select
from mavil.structs import Inputs, Modality
from tests.support.recipes import random_inputs, tiny_recipe

JOINT_NORMS = {"kind": "joint", "alone_norms": True}
DROPS = {"modality_dropout": 0.5}
SEPARATE: dict[str, Any] = {"heads": "separate", "fusion": None}
SYSTEMS: dict[str, dict[str, Any]] = {
    "both": {},
    "both, norms before the fusion": {"fusion": {"kind": "joint", "input_norm": True}},
    "both, alone norms trained": {"fusion": JOINT_NORMS, **DROPS},
    "both, alone norms trained on gaps": {"fusion": JOINT_NORMS, "data": {"missing_modality": "keep"}},
    "both, alone norms kept": {"fusion": JOINT_NORMS},
    "mean": {"pooling": "mean"},
    "mean, alone norms trained": {"pooling": "mean", "fusion": JOINT_NORMS, **DROPS},
    "mean, alone norms kept": {"pooling": "mean", "fusion": JOINT_NORMS},
    "mean, bottleneck": {"pooling": "mean", "fusion": {"kind": "bottleneck", "input_norm": True}},
    "no fusion": {"fusion": None},
    "separate": SEPARATE,
    "video": {"modalities": ["video"]},
    "video, mean": {"modalities": ["video"], "pooling": "mean", "fusion": {"kind": "joint", "input_norm": True}},
    "video, mean, alone norms": {"modalities": ["video"], "pooling": "mean", "fusion": JOINT_NORMS},
    "audio, mean, bottleneck": {"modalities": ["audio"], "pooling": "mean", "fusion": {"kind": "bottleneck"}},
}
OF_BOTH = [name for name, system in SYSTEMS.items() if "modalities" not in system]


def make_classifier(
    fusion: Any = "default", branch: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **task: Any
) -> Classifier:
    """A tiny one whose every trained value has left its initial one, so that nothing is hidden by a zero."""
    parts = {"task": {"kind": "classify", "drop_path": 0.0, **task}, "data": data or {}}
    if fusion != "default":
        parts["fusion"] = fusion
    recipe = tiny_recipe(**parts)
    if branch:
        sides = {m: recipe.branch(m).model_dump() | branch for m in ("audio", "video")}  # type: ignore[union-attr]
        recipe = tiny_recipe(**parts, **sides)
    torch.manual_seed(0)
    model = build_classifier(recipe, num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def patches_of(model: Classifier, inputs: Inputs) -> dict[Modality, Tensor]:
    return {m: patchify(inputs.of(m), grid) for m, grid in model.grids().items()}


def one_of_each(model: Classifier) -> dict[Modality, Tensor | None]:
    """Of three clips the first has both, the second audio, the third video."""
    flags: dict[Modality, Tensor | None] = {
        "audio": torch.tensor([True, True, False]),
        "video": torch.tensor([True, False, True]),
    }
    return {m: flags[m] for m in model.grids()}


@pytest.mark.parametrize("modalities", [("audio",), ("video",), ("video", "audio")])
def test_scores_for_every_choice_of_modalities(modalities: tuple[str, ...]) -> None:
    model = make_classifier(modalities=list(modalities))
    scores = model(patches_of(model, random_inputs(3)))
    assert {output: values.shape for output, values in scores.items()} == {"joint": (3, 5)}
    assert (model.fusion is not None) == (len(modalities) == 2)
    assert {"fc_norm", "head"} == set(model.parts()) - set(model.body())


def test_separate_heads_judge_each_modality_by_itself() -> None:
    model = make_classifier(**SEPARATE)
    assert set(model.parts()) == {
        *("audio_encoder", "audio_fc_norm", "audio_head", "video_encoder", "video_fc_norm", "video_head")
    }
    patches = patches_of(model, random_inputs(3))
    scores = model(patches)
    assert list(scores) == ["audio", "video"]
    other = model(patches | {"video": patches["video"] + 1})
    assert torch.equal(other["audio"], scores["audio"])
    assert not torch.allclose(other["video"], scores["video"])
    assert list(model({"audio": patches["audio"]})) == ["audio"]


@pytest.mark.parametrize("side", [{}, {"cls_token": False, "modality_embedding": True, "trained_positions": True}])
def test_layers_are_ranked_from_the_embedding_to_the_top(side: dict[str, Any]) -> None:
    model = make_classifier(branch=side, fusion={"kind": "joint", "input_norm": True})
    ranks = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    for name in ("cls_token",) if not side else ("modality_embed", "pos_embed"):
        assert ranks.pop(f"encoders.audio.{name}") == (0, 3)
    assert ranks["encoders.video.patch_embed.proj.weight"] == (0, 3)
    assert ranks["encoders.audio.blocks.0.attn.qkv.weight"] == (1, 3)
    assert ranks["encoders.video.blocks.1.mlp.fc1.bias"] == (2, 3)
    for name in ("fusion.blocks.0.attn.qkv.weight", "fusion.input_norms.audio.weight", "fc_norm.weight", "head.weight"):
        assert ranks[name] == (3, 3)
    separate = make_classifier(**SEPARATE)
    assert separate.layer_of("video_head.weight") == separate.layer_of("video_fc_norm.bias") == (3, 3)


@pytest.mark.parametrize("system", ["both", "mean, alone norms trained", "separate"])
def test_frozen_trains_only_norms_and_heads_on_evaluation_features(system: str) -> None:
    model = make_classifier(**{**SYSTEMS[system], "frozen": True, "drop_path": 0.9}).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    heads = ("audio_", "video_") if system == "separate" else ("",)
    assert trained == {
        f"{head}{part}.{kind}" for head in heads for part in ("fc_norm", "head") for kind in ("weight", "bias")
    }
    patches = patches_of(model, random_inputs(4))
    first, second = model(patches), model(patches)
    for output, scores in first.items():
        assert torch.equal(scores, second[output])  # drop-path is off although the model trains
        assert scores.requires_grad


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_trained_parameter_gets_a_gradient_whatever_clips_lack(system: str) -> None:
    model = make_classifier(**SYSTEMS[system]).train()
    inputs = random_inputs(3)
    cases: list[dict[Modality, Tensor | None]] = [one_of_each(model), {}]
    if len(model.grids()) == 2:
        cases += [{"audio": torch.ones(3).bool(), "video": torch.zeros(3).bool()}, {"audio": torch.zeros(3).bool()}]
    for number, present in enumerate(cases):
        model.zero_grad(set_to_none=True)
        scores = model(patches_of(model, inputs), present)
        torch.stack([values.square().sum() for values in scores.values()]).sum().backward()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert [n for n, p in trained.items() if p.grad is None] == []
        if number == 0:  # here everything has something to learn from
            assert [n for n, p in trained.items() if p.grad is not None and not p.grad.any()] == []
        assert [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None] == []


@pytest.mark.parametrize("system", [name for name in SYSTEMS if not name.endswith("kept")])
def test_nothing_that_could_learn_is_left_out(system: str) -> None:
    model = make_classifier(**SYSTEMS[system]).train()
    left_out = [p for p in model.parameters() if not p.requires_grad]
    for parameter in left_out:
        parameter.requires_grad_(True)
    scores = model(patches_of(model, random_inputs(3)), one_of_each(model))
    torch.stack([values.square().sum() for values in scores.values()]).sum().backward()
    assert [p for p in left_out if p.grad is not None and p.grad.any()] == []


@pytest.mark.parametrize("system", OF_BOTH)
def test_what_a_clip_lacks_changes_nothing(system: str) -> None:
    model = make_classifier(**SYSTEMS[system]).eval()
    patches = patches_of(model, random_inputs(3))
    present = one_of_each(model)
    judged = {output: flag for output, flag in present.items() if output in model.outputs}
    scores = model(patches, present)
    other = {m: values.clone() for m, values in patches.items()}
    other["video"][1] = 7.0
    other["audio"][2] = -7.0
    for output, values in model(other, present).items():
        rows = judged.get(cast(Modality, output))
        assert (
            torch.equal(values[rows], scores[output][rows]) if rows is not None else torch.equal(values, scores[output])
        )
    # The second clip by itself, without any video to hide; the first as if nobody lacked anything.
    alone = model({"audio": patches["audio"][1:2]})
    complete = model({m: values[:1] for m, values in patches.items()})
    for output in alone:
        torch.testing.assert_close(alone[output], scores[output][1:2], rtol=1e-5, atol=1e-6)
    for output in complete:
        torch.testing.assert_close(complete[output], scores[output][:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_with_gaps_to_come_every_rank_passes_the_same_blocks(frozen: bool) -> None:
    """Weights may be cut over ranks: a rank whose clips lack nothing must gather blocks as often as the others."""
    model = make_classifier(**{**SYSTEMS["mean, alone norms trained"], "frozen": frozen}).train()
    patches = patches_of(model, random_inputs(3))
    calls: list[int] = []
    assert model.fusion is not None
    model.fusion.register_forward_hook(lambda *_: calls.append(1))
    for present in ({}, one_of_each(model)):
        calls.clear()
        model(patches, present)
        assert len(calls) == 3
    model.eval()(patches)
    assert len(calls) == 4


def test_side_by_side_a_modality_that_lacks_is_zeros() -> None:
    model = make_classifier()
    patches = patches_of(model, random_inputs(3))
    features = model.features(patches, one_of_each(model))["joint"]
    assert features.shape == (3, 64)
    assert features.any(dim=1).all()
    assert features[:, :32].any(dim=1).tolist() == [True, True, False]
    assert features[:, 32:].any(dim=1).tolist() == [True, False, True]


def slow_block(block: nn.Module, norms: Any, tokens: Tensor) -> Tensor:
    tokens = tokens + block.attn(norms["norm1"](tokens))  # type: ignore[operator]
    return tokens + block.mlp(norms["norm2"](tokens))  # type: ignore[operator]


def slow_pool(model: Classifier, tokens: Tensor, alone: str | None) -> Tensor:
    """CAV-MAE's unified blocks with the joint norms or a modality's own, and the mean after the last norm."""
    fusion = cast(JointFusion, model.fusion)
    for block in fusion.blocks:
        joint = {"norm1": block.norm1, "norm2": block.norm2}
        tokens = slow_block(block, joint if alone is None else block.alone_norms[alone], tokens)  # type: ignore[index]
    norm = fusion.norm if alone is None else fusion.alone_norms[alone]  # type: ignore[index]
    return norm(tokens).mean(dim=1)


def test_mean_pooling_gives_all_five_directions_of_cav_mae() -> None:
    side = {"cls_token": False, "modality_embedding": True}
    model = make_classifier(branch=side, fusion=JOINT_NORMS, pooling="mean").double().eval()
    inputs = random_inputs(3)
    patches = {m: values.double() for m, values in patches_of(model, inputs).items()}
    tokens = {m: cast(Encoder, model.encoders[m])(values) for m, values in patches.items()}

    def scores(pooled: Tensor) -> Tensor:
        return model.head(model.fc_norm(pooled))  # type: ignore[operator]

    both = slow_pool(model, torch.cat([tokens["audio"], tokens["video"]], dim=1), None)
    torch.testing.assert_close(model(patches)["joint"], scores(both), rtol=1e-10, atol=1e-12)
    modalities: tuple[Modality, ...] = ("audio", "video")
    for m, alone in itertools.product(modalities, ("own", "average")):
        own = slow_pool(model, tokens[m], m)
        expected = own if alone == "own" else (own + slow_pool(model, tokens[m], None)) / 2
        found = model({m: patches[m]}, alone=alone)["joint"]
        torch.testing.assert_close(found, scores(expected), rtol=1e-10, atol=1e-12)
        assert not torch.allclose(found, scores(both), atol=1e-3)


def test_the_mean_weighs_every_token_alike_and_leaves_cls_out() -> None:
    model = make_classifier(pooling="mean").eval()
    patches = patches_of(model, random_inputs(2))
    assert model.fusion is not None
    ids = torch.tensor([[0, 2, 5], [1, 2, 3]])  # three tokens of sound, eight of video
    sound = cast(Encoder, model.encoders["audio"])(select(patches["audio"], ids), ids)
    fused = model.fusion({"audio": sound, "video": cast(Encoder, model.encoders["video"])(patches["video"])})
    joint = torch.cat([fused.output("audio")[:, 1:], fused.output("video")[:, 1:]], dim=1)
    expected = model.fusion.norm(joint).mean(dim=1)
    torch.testing.assert_close(
        model.features(patches, visible_ids={"audio": ids})["joint"], expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("system", ["both", "mean", "separate"])
def test_masked_classification_looks_at_visible_tokens_only(system: str) -> None:
    model = make_classifier(**SYSTEMS[system]).eval()
    patches = patches_of(model, random_inputs(2))
    orders = {m: torch.stack([torch.randperm(v.shape[1]) for _ in range(2)]) for m, v in patches.items()}
    complete = model(patches)
    for output, scores in model(patches, visible_ids=orders).items():  # all of them, in another order
        torch.testing.assert_close(scores, complete[output], rtol=1e-4, atol=1e-5)
    visible = {"audio": orders["audio"][:, :5]}
    masked = model(patches, visible_ids=visible)
    hidden = patches["audio"].scatter(1, orders["audio"][:, 5:, None].expand(-1, -1, patches["audio"].shape[2]), 9.0)
    for output, scores in model(patches | {"audio": hidden}, visible_ids=visible).items():
        assert torch.equal(scores, masked[output])
        assert torch.allclose(scores, complete[output]) == (output == "video")


def test_norms_before_the_heads_have_the_encoders_epsilon() -> None:
    tower = {"width": 32, "depth": 1, "num_heads": 2, "layer_norm_eps": 1e-5}
    for system, names in (("no fusion", ["fc_norm"]), ("separate", ["audio_fc_norm", "video_fc_norm"])):
        model = make_classifier(branch={"encoder": tower}, **SYSTEMS[system])
        assert [cast(nn.LayerNorm, model.get_submodule(name)).eps for name in names] == [1e-5] * len(names)


def test_what_cannot_be_computed_is_refused() -> None:
    model = make_classifier(modalities=["audio"])
    patches = patches_of(make_classifier(), random_inputs(1))
    with pytest.raises(ValueError, match="give the patches of audio"):
        model({"video": patches["video"]})
    for fusion in ("default", None):
        with pytest.raises(ValueError, match="norms of their own"):
            make_classifier(fusion=fusion)(patches, alone="average")
    encoders = cast(dict[Modality, Encoder], dict(make_classifier().encoders.items()))
    with pytest.raises(ValueError, match="do not go together"):
        Classifier(encoders, None, 5, pooling="mean")
