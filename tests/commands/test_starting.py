"""Fine-tuning with more fusion blocks than its start: what the further ones begin with, and what is said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mavil.commands import starting
from mavil.config import Recipe
from mavil.models.build import build_classifier, build_masked
from mavil.recipe import change_recipe
from mavil.structs import UserError
from tests.support import foreign_weights
from tests.support.recipes import tiny_recipe

Weights = dict[str, dict[str, Tensor]]


def tuning(*changes: str) -> Recipe:
    return change_recipe(tiny_recipe(task={"kind": "classify"}), *changes)


def model_of(recipe: Recipe) -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return build_classifier(recipe, num_classes=4).parts()


def states(parts: dict[str, nn.Module]) -> Weights:
    return {name: {key: value.clone() for key, value in part.state_dict().items()} for name, part in parts.items()}


def started(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, held: Weights) -> tuple[Weights, Weights, list[str]]:
    """The weights before and after, and what was said, of a start from a run that holds ``held``."""
    parts = model_of(recipe)
    before = states(parts)
    monkeypatch.setattr(starting, "load_weights", lambda run: {name: dict(part) for name, part in held.items()})
    lines = starting.fill(recipe, parts, tiny_recipe())
    return before, states(parts), lines


@pytest.fixture
def pretrained() -> dict[str, Any]:
    torch.manual_seed(1)
    kinds = {"joint": tiny_recipe(), "bottleneck": tiny_recipe(fusion={"kind": "bottleneck"})}
    return {kind: states(build_masked(recipe).parts()) for kind, recipe in kinds.items()}


@pytest.mark.parametrize(("kind", "stacks"), [("joint", ["blocks"]), ("bottleneck", ["audio_blocks", "video_blocks"])])
@pytest.mark.parametrize("choice", ["copy_last", "random"])
def test_the_first_blocks_are_the_runs_and_further_ones_copies_of_its_last_or_random(
    kind: str, stacks: list[str], choice: str, monkeypatch: pytest.MonkeyPatch, pretrained: dict[str, Weights]
) -> None:
    recipe = tuning("task.weights=run", f"fusion={{kind: {kind}, depth: 4}}", f"task.new_fusion_blocks={choice}")
    before, after, lines = started(recipe, monkeypatch, pretrained[kind])
    held = pretrained[kind]["fusion"]
    for name, value in after["fusion"].items():
        stack, _, rest = name.partition(".")
        if stack in stacks and int(rest[0]) >= 2:
            last = f"{stack}.1{rest[1:]}"
            assert torch.equal(value, held[last] if choice == "copy_last" else before["fusion"][name]), name
        else:
            assert torch.equal(value, held[name]), name
    assert torch.equal(after["audio_encoder"]["cls_token"], pretrained[kind]["audio_encoder"]["cls_token"])
    said = {
        "copy_last": "fusion: block 2, 3 begins as a copy of block 1 (the first is 0)",
        "random": "fusion: the blocks that are not there begin at random",
    }
    assert said[choice] in lines


def test_a_fusion_of_the_same_depth_is_as_before_and_a_smaller_or_missing_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, pretrained: dict[str, Weights]
) -> None:
    _, after, lines = started(tuning("task.weights=run"), monkeypatch, pretrained["joint"])
    assert all(torch.equal(value, pretrained["joint"]["fusion"][name]) for name, value in after["fusion"].items())
    assert len(lines) == 1
    with pytest.raises(UserError, match="fusion has 12 tensors this recipe's model does not"):
        started(tuning("task.weights=run", "fusion.depth=1"), monkeypatch, pretrained["joint"])
    alone = {name: part for name, part in pretrained["joint"].items() if name != "fusion"}
    with pytest.raises(UserError, match="holds no fusion"):
        started(tuning("task.weights=run", "fusion.depth=3"), monkeypatch, alone)
    with pytest.raises(UserError, match=r"task\.frozen would never train the further blocks"):
        started(tuning("task.weights=run", "fusion.depth=3", "task.frozen=true"), monkeypatch, pretrained["joint"])


@pytest.mark.parametrize("choice", ["copy_last", "random"])
def test_the_blocks_of_a_file_come_first_too(tmp_path: Path, choice: str) -> None:
    state = foreign_weights.mavil()
    torch.save({"model": state}, tmp_path / "mavil.pth")
    start = f"task.start.model={tmp_path / 'mavil.pth'}"
    recipe = tuning(start, "fusion.depth=3", f"task.new_fusion_blocks={choice}")
    parts = model_of(recipe)
    before = states(parts)["fusion"]
    lines = starting.fill(recipe, parts, None)
    fusion = states(parts)["fusion"]
    for name in ("attn.qkv.weight", "norm2.bias"):
        assert torch.equal(fusion[f"blocks.0.{name}"], state[f"blocks_av.0.{name}"])
        assert torch.equal(fusion[f"blocks.1.{name}"], state[f"blocks_av.1.{name}"])
        is_copied = choice == "copy_last"
        assert torch.equal(
            fusion[f"blocks.2.{name}"], state[f"blocks_av.1.{name}"] if is_copied else before[f"blocks.2.{name}"]
        )
    told = "fusion: block 2 begins as a copy of block 1 (the first is 0)"
    assert (told in lines) == is_copied
