from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mavil.models.weights import convert, to_audio_mae_names, to_m2d_names, to_msm_mae_names, to_timm_names
from mavil.structs import UserError
from tests.support import foreign_weights
from tests.support.foreign_weights import State

Parts = dict[str, dict[str, Tensor]]


def to_m2d(parts: Parts) -> State:
    return to_m2d_names(parts, (-7.1, 4.2))


@pytest.mark.parametrize(
    ("state", "back"),
    [
        (foreign_weights.audio_mae(), to_audio_mae_names),
        (foreign_weights.audio_mae(windowed=True), to_audio_mae_names),
        (foreign_weights.audio_mae_tuned(), to_audio_mae_names),
        (foreign_weights.audio_mae_tuned(), to_timm_names),
        (foreign_weights.msm_mae(), to_msm_mae_names),
        (foreign_weights.msm_mae(cls=False), to_msm_mae_names),
        (foreign_weights.m2d(), to_m2d),
    ],
    ids=["global", "windowed", "fine-tuned", "timm", "MSM-MAE", "MSM-MAE without CLS", "M2D"],
)
def test_there_and_back(state: State, back: Callable[[Parts], State]) -> None:
    found = back(convert(state).parts)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_the_norm_that_a_classifier_does_not_use_stays_here() -> None:
    parts = convert(foreign_weights.audio_mae_tuned()).parts
    parts["audio_encoder"] |= {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    assert to_audio_mae_names(parts).keys() == foreign_weights.audio_mae_tuned().keys()


def test_timm_loads_an_encoder_strictly() -> None:
    vit = VisionTransformer((32, 64), 16, in_chans=1, num_classes=0, embed_dim=32, depth=2, num_heads=2)
    vit.load_state_dict(to_timm_names(convert(foreign_weights.audio_mae()).parts))
    # 80 x 48 in patches: 15 tokens, keys without a bias get one of zeros.
    vit = VisionTransformer((80, 48), 16, in_chans=1, num_classes=0, embed_dim=32, depth=2, num_heads=2)
    vit.load_state_dict(to_timm_names(convert(foreign_weights.msm_mae()).parts))
    assert not vit.get_parameter("blocks.1.attn.qkv.bias")[32:64].any()


def test_biases_of_keys_have_no_place_in_msm_mae() -> None:
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv\.bias has a bias of keys.*key_bias=false.*--to m2d"):
        to_msm_mae_names(convert(foreign_weights.m2d()).parts)
    silent = foreign_weights.m2d()
    for name in [name for name in silent if name.endswith("qkv.bias")]:
        third = len(silent[name]) // 3
        silent[name][third : 2 * third] = 0
    found = to_msm_mae_names(convert(silent).parts)
    assert torch.equal(found["decoder_blocks.0.attn.v_bias"], silent["decoder_blocks.0.attn.qkv.bias"][32:])
