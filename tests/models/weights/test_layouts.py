from __future__ import annotations

import pytest
import torch

from mavil.models.weights import convert
from mavil.models.weights.layouts import LAYOUTS, recognise
from mavil.structs import UserError
from tests.support import foreign_weights


def test_each_layout_is_told_from_the_others() -> None:
    states = {
        "image_mae": foreign_weights.image_mae(),
        "audio_mae": foreign_weights.audio_mae(),
        "msm_mae": foreign_weights.msm_mae(),
        "m2d": foreign_weights.m2d(),
        "mae_ast": foreign_weights.mae_ast(),
        "mae_st": foreign_weights.mae_st(),
        "video_mae": foreign_weights.video_mae(),
        "mavil": foreign_weights.mavil(0),
        "cav_mae": foreign_weights.cav_mae(),
    }
    assert {layout: recognise(state) for layout, state in states.items()} == {name: name for name in LAYOUTS}


def test_mae_st_without_biases_and_with_a_whole_table_is_not_video_mae() -> None:
    state = {n: t for n, t in foreign_weights.mae_st().items() if "pos_embed_" not in n and ".attn." not in n}
    assert recognise(state | {"pos_embed": torch.ones(1, 9, 32)}) == "mae_st"


@pytest.mark.parametrize("name", ["layers.0.blocks.0.norm1.weight", "encoder_mask_emb", "conv1.weight"])
def test_an_unknown_layout_names_what_was_found_and_what_is_known(name: str) -> None:
    with pytest.raises(UserError, match=r"file\.pth: .*no layout known here") as caught:
        convert({name: torch.ones(2)}, "file.pth")
    message = str(caught.value)
    assert name in message
    assert all(known in message for known in ("Audio-MAE", "MAE-ST", "VideoMAE", "MAViL", "CAV-MAE", "image MAE"))


def test_other_models_of_fairseq_are_not_mae_ast() -> None:
    state = {name: t for name, t in foreign_weights.mae_ast().items() if not name.startswith("batch_norm")}
    assert recognise(state) is None
