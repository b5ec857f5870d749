import pytest
import torch

from mavil.models.build import build_classifier
from mavil.models.classifier import Classifier
from mavil.models.tokens import patchify
from tests.support.recipes import random_inputs, tiny_recipe


def make_classifier(*modalities: str, frozen: bool = False, drop_path: float = 0.1) -> Classifier:
    task = {"kind": "classify", "modalities": list(modalities), "frozen": frozen, "drop_path": drop_path}
    torch.manual_seed(0)
    return build_classifier(tiny_recipe(task=task), num_classes=5)


@pytest.mark.parametrize("modalities", [("audio",), ("video",), ("video", "audio")])
def test_scores_for_every_choice_of_modalities(modalities: tuple[str, ...]) -> None:
    model = make_classifier(*modalities)
    inputs = random_inputs(3)
    patches = {m: patchify(inputs.of(m), grid) for m, grid in model.grids().items()}
    assert model(patches).shape == (3, 5)
    assert (model.fusion is not None) == (len(modalities) == 2)


def test_layers_are_ranked_from_the_embedding_to_the_top() -> None:
    model = make_classifier("audio", "video")
    ranks = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert ranks["encoders.audio.cls_token"] == (0, 3)
    assert ranks["encoders.video.patch_embed.proj.weight"] == (0, 3)
    assert ranks["encoders.audio.blocks.0.attn.qkv.weight"] == (1, 3)
    assert ranks["encoders.video.blocks.1.mlp.fc1.bias"] == (2, 3)
    assert ranks["fusion.blocks.0.attn.qkv.weight"] == (3, 3)
    assert ranks["head.weight"] == (3, 3)


def test_frozen_trains_only_norm_and_head_on_evaluation_features() -> None:
    model = make_classifier("audio", "video", frozen=True, drop_path=0.9).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    inputs = random_inputs(4)
    patches = {m: patchify(inputs.of(m), grid) for m, grid in model.grids().items()}
    assert torch.equal(model(patches), model(patches))  # drop-path is off although the model trains


def test_every_trained_parameter_gets_a_gradient() -> None:
    model = make_classifier("audio", "video", drop_path=0.0)
    torch.nn.init.normal_(model.head.weight)
    inputs = random_inputs(4)
    model({m: patchify(inputs.of(m), grid) for m, grid in model.grids().items()}).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())] == []
