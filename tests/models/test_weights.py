import pytest
import torch

from mavil.models.build import build_masked
from mavil.models.weights import load_parts
from mavil.structs import UserError
from tests.support.recipes import tiny_recipe


def weights_of_a_run() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return {name: dict(part.state_dict()) for name, part in build_masked(tiny_recipe()).parts().items()}


def test_named_parts_are_loaded() -> None:
    weights = weights_of_a_run()
    parts = build_masked(tiny_recipe()).parts()
    del parts["video_decoder"]
    load_parts(parts, weights, "runs/a")
    for name, part in parts.items():
        assert all(torch.equal(value, weights[name][key]) for key, value in part.state_dict().items())


def test_another_width_names_the_tensor_and_both_shapes() -> None:
    wider = {"width": 64, "depth": 2, "num_heads": 2}
    recipe = tiny_recipe(fusion=None, audio={**tiny_recipe().audio.model_dump(), "encoder": wider})  # type: ignore[union-attr]
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
