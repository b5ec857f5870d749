from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mavil.config import Recipe
from mavil.models.build import build_masked
from mavil.models.weights import load_parts
from mavil.models.weights.parts import Grids
from mavil.structs import MODALITIES, UserError
from tests.support.recipes import tiny_recipe

Weights = dict[str, dict[str, torch.Tensor]]


def weights_of_a_run(recipe: Recipe | None = None) -> Weights:
    torch.manual_seed(1)
    return {name: dict(part.state_dict()) for name, part in build_masked(recipe or tiny_recipe()).parts().items()}


def recipe_with(modality: str, **changes: Any) -> Recipe:
    branch = tiny_recipe().branch(modality)  # type: ignore[arg-type]
    assert branch is not None
    return tiny_recipe(fusion=None, **{modality: {**branch.model_dump(), "mask_ratio": 0.5, **changes}})


def grids_of(there: Recipe, here: Recipe) -> Grids:
    return {m: (there.branch(m).grid(), here.branch(m).grid()) for m in MODALITIES}  # type: ignore[union-attr]


def encoders_of(recipe: Recipe) -> dict[str, nn.Module]:
    return {name: part for name, part in build_masked(recipe).parts().items() if name.endswith("_encoder")}


def test_named_parts_are_loaded() -> None:
    weights = weights_of_a_run()
    parts = build_masked(tiny_recipe()).parts()
    del parts["video_decoder"]
    load_parts(parts, weights, "runs/a")
    for name, part in parts.items():
        assert all(torch.equal(value, weights[name][key]) for key, value in part.state_dict().items())


def test_another_width_names_the_tensor_and_both_shapes() -> None:
    recipe = recipe_with("audio", encoder={"width": 64, "depth": 2, "num_heads": 2})
    with pytest.raises(UserError, match=r"audio_encoder\.cls_token is \(1, 1, 32\) there and \(1, 1, 64\) here"):
        load_parts(build_masked(recipe).parts(), weights_of_a_run(), "runs/a")


def test_missing_part_extra_and_missing_tensors() -> None:
    weights = weights_of_a_run()
    parts = build_masked(tiny_recipe()).parts()
    with pytest.raises(UserError, match="holds no fusion"):
        load_parts(parts, {name: part for name, part in weights.items() if name != "fusion"}, "runs/a")
    weights["fusion"]["gate"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"1 tensors this recipe's model does not, e\.g\. gate"):
        load_parts(parts, weights, "runs/a")
    del weights["fusion"]["gate"], weights["fusion"]["norm.weight"]
    with pytest.raises(UserError, match=r"fusion lacks norm\.weight"):
        load_parts(parts, weights, "runs/a")


@pytest.mark.parametrize("num_steps", [32, 128])
def test_a_fixed_table_is_computed_for_the_new_length(num_steps: int) -> None:
    there, here = tiny_recipe(fusion=None), recipe_with("audio", num_steps=num_steps)
    weights = weights_of_a_run(there)
    parts = build_masked(here).parts()
    own = {name: part.state_dict()["pos_embed"].clone() for name, part in parts.items()}
    with pytest.raises(UserError, match=r"audio_\w+\.pos_embed is .* there and .* here"):
        load_parts(parts, weights, "runs/a")
    load_parts(parts, weights, "runs/a", grids_of(there, here))
    for name, part in parts.items():
        loaded = part.state_dict()
        assert torch.equal(loaded["pos_embed"], own[name])
        assert all(torch.equal(loaded[key], weights[name][key]) for key in loaded if key != "pos_embed")


def test_a_learned_table_keeps_the_codes_it_knows() -> None:
    there, here = (
        recipe_with("audio", trained_positions=True),
        recipe_with("audio", trained_positions=True, num_steps=32),
    )
    weights = weights_of_a_run(there)
    weights["audio_encoder"]["pos_embed"] = torch.randn(1, 9, 32)
    parts = encoders_of(here)
    load_parts(parts, weights, "runs/a", grids_of(there, here))
    assert torch.equal(parts["audio_encoder"].state_dict()["pos_embed"], weights["audio_encoder"]["pos_embed"][:, :5])
    longer = recipe_with("audio", trained_positions=True, num_steps=128)
    with pytest.raises(UserError, match=r"runs/a: audio_encoder\.pos_embed does not fit: positions are known for 64"):
        load_parts(encoders_of(longer), weights, "runs/a", grids_of(there, longer))


def test_a_learned_table_that_was_never_trained_is_not_replaced_by_a_computed_one() -> None:
    there, here = (
        recipe_with("audio", trained_positions=True),
        recipe_with("audio", trained_positions=True, num_steps=128),
    )
    with pytest.raises(UserError, match="does not fit"):
        load_parts(encoders_of(here), weights_of_a_run(there), "runs/a", grids_of(there, here))


def test_a_table_taken_from_another_project_is_cut_not_recomputed() -> None:
    there, here = tiny_recipe(fusion=None), recipe_with("audio", num_steps=32)
    weights = weights_of_a_run(there)
    foreign = weights["audio_encoder"]["pos_embed"].flip(1)
    weights["audio_encoder"]["pos_embed"] = foreign
    parts = encoders_of(here)
    load_parts(parts, weights, "runs/a", grids_of(there, here))
    assert torch.equal(parts["audio_encoder"].state_dict()["pos_embed"], foreign[:, :5])


def test_audio_maes_scrambled_table_is_cut_or_scrambled_anew() -> None:
    there, here = (recipe_with("audio", positions="transposed_2d", num_steps=steps) for steps in (64, 32))
    weights, kept, own = weights_of_a_run(there), encoders_of(here), encoders_of(here)
    table = weights["audio_encoder"]["pos_embed"]
    load_parts(kept, weights, "runs/a", grids_of(there, here))
    assert torch.equal(kept["audio_encoder"].state_dict()["pos_embed"], table[:, :5])
    load_parts(own, weights, "runs/a", grids_of(there, here), own_positions=True)
    # Rows of its table are bands, columns are steps: of 2 x 4 the first two columns stay.
    columns = table[:, 1:].reshape(1, 2, 4, 32)[:, :, :2].flatten(1, 2)
    torch.testing.assert_close(own["audio_encoder"].state_dict()["pos_embed"][:, 1:], columns, rtol=0, atol=1e-6)
    # Nothing to compute anew: what the weights were trained with counts.
    weights["audio_encoder"]["pos_embed"] = table + 1e-6
    load_parts(parts := encoders_of(there), weights, "runs/a", grids_of(there, there), own_positions=True)
    assert torch.equal(parts["audio_encoder"].state_dict()["pos_embed"], table + 1e-6)


def test_the_same_grid_takes_the_table_as_it_is() -> None:
    recipe = tiny_recipe(fusion=None)
    weights = weights_of_a_run(recipe)
    # As another machine's sines may differ: what the weights were trained with is what counts.
    weights["video_encoder"]["pos_embed"] = weights["video_encoder"]["pos_embed"] + 1e-6
    parts = encoders_of(recipe)
    load_parts(parts, weights, "runs/a", grids_of(recipe, recipe))
    assert torch.equal(parts["video_encoder"].state_dict()["pos_embed"], weights["video_encoder"]["pos_embed"])


def test_more_frames_with_a_joint_decoder() -> None:
    decoder = {"width": 16, "depth": 1, "num_heads": 2}
    base = {**tiny_recipe().video.model_dump(), "decoder": decoder}  # type: ignore[union-attr]
    there, here = (tiny_recipe(joint_decoder=True, video={**base, "num_frames": frames}) for frames in (4, 8))
    weights = weights_of_a_run(there)
    parts = build_masked(here).parts()
    own = parts["decoder"].state_dict()["video_pos_embed"].clone()
    load_parts(parts, weights, "runs/a", grids_of(there, here))
    assert torch.equal(parts["decoder"].state_dict()["video_pos_embed"], own)
    assert torch.equal(parts["decoder"].state_dict()["audio_pos_embed"], weights["decoder"]["audio_pos_embed"])
