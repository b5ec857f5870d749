"""The network of an export: every tensor of it has a place, and it embeds as the model that was trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mavil.export.network import unloaded_network
from mavil.export.parts import encoders_of
from mavil.models.build import build_classifier, build_masked
from mavil.models.weights import load_parts
from mavil.recipe import change_recipe
from mavil.structs import Modality
from tests.support.exports import STATISTICS
from tests.support.recipes import tiny_recipe


def shaken(model: nn.Module) -> nn.Module:
    """In evaluation mode, with noise in norms, biases and tables too."""
    for tensor in model.state_dict().values():
        tensor += 0.1 * torch.randn(tensor.shape)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["task.contrast.projection={width: 16}", "task.contrast.pooled_from=fusion_alone", "fusion.alone_norms=true"],
        ["task.contrast.pooled_from=fusion", "task.contrast.pooling=cls", "fusion={kind: bottleneck}"],
        ["task.contrast=null"],
    ],
    ids=["encoder", "projection", "cls", "no contrast"],
)
def test_it_embeds_as_in_pre_training(changes: list[str]) -> None:
    recipe = change_recipe(tiny_recipe(), *STATISTICS, *changes)
    trained = shaken(build_masked(recipe))
    network = unloaded_network(recipe)
    weights = {name: dict(part.state_dict()) for name, part in trained.parts().items()}  # type: ignore[operator]
    held = encoders_of(recipe, weights, "it")
    assert set(network.parts()) == set(held)
    load_parts(network.parts(), held, "it")
    sizes: dict[Modality, tuple[int, ...]] = {"audio": (2, 8, 256), "video": (2, 8, 1536)}
    for modality, size in sizes.items():
        patches = torch.randn(size)
        assert torch.equal(network.eval().embed(modality, patches), trained.embed(modality, patches))  # type: ignore[operator]


@pytest.mark.parametrize("pooling", ["concatenate", "mean"])
@pytest.mark.parametrize("modality", ["audio", "video"])
def test_it_pools_as_a_classifier(pooling: str, modality: Modality) -> None:
    task: dict[str, Any] = {"kind": "classify", "modalities": [modality], "pooling": pooling}
    recipe = change_recipe(tiny_recipe(task=task, fusion={"kind": "joint", "alone_norms": True}), *STATISTICS)
    trained = shaken(build_classifier(recipe, 3))
    weights = {name: dict(part.state_dict()) for name, part in trained.parts().items()}  # type: ignore[operator]
    network = unloaded_network(recipe)
    load_parts(network.parts(), encoders_of(recipe, weights, "it"), "it")
    patches = torch.randn({"audio": (2, 8, 256), "video": (2, 8, 1536)}[modality])
    expected = trained.features({modality: patches})["joint"]  # type: ignore[operator]
    torch.testing.assert_close(network.eval().embed(modality, patches), expected, atol=1e-6, rtol=1e-6)
