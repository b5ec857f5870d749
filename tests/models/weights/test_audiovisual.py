from __future__ import annotations

import pytest
import torch

from mavil.models.weights import convert, to_cav_mae_names, to_mavil_names
from mavil.structs import UserError
from tests.support import foreign_weights
from tests.support.foreign_weights import State, mae_shapes, random_state


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def complete_mavil() -> State:
    shapes = {**mae_shapes((1, 16, 16), 8, out_values=256), **mae_shapes((3, 2, 16, 16), 8, suffix="_v")}
    return foreign_weights.mavil() | random_state(shapes, seed=9)


@pytest.mark.parametrize(
    "state",
    [
        foreign_weights.mavil(),
        foreign_weights.mavil(3, "av"),
        foreign_weights.mavil(0, "a_v"),
        complete_mavil(),
    ],
    ids=["pre-trained", "joint head", "two heads", "with decoders"],
)
def test_mavil_there_and_back(state: State) -> None:
    converted = convert(state)
    assert converted.layout == "mavil"
    assert not converted.unused
    assert_same(to_mavil_names(converted.parts), state)


def test_mavil_parts() -> None:
    state = foreign_weights.mavil(3, "av")
    parts = convert(state).parts
    assert set(parts) == {"audio_encoder", "video_encoder", "fusion", "fc_norm", "head"}
    assert torch.equal(parts["audio_encoder"]["blocks.0.norm1.weight"], state["blocks.0.norm1.weight"])
    assert torch.equal(parts["video_encoder"]["blocks.0.norm1.weight"], state["blocks_v.0.norm1.weight"])
    assert torch.equal(parts["video_encoder"]["cls_token"], state["cls_token_v"])
    assert torch.equal(parts["fusion"]["blocks.2.attn.qkv.bias"], state["blocks_av.2.attn.qkv.bias"])
    assert torch.equal(parts["head"]["weight"], state["head_av.weight"])
    separate = convert(foreign_weights.mavil(0, "a_v")).parts
    assert {"audio_fc_norm", "audio_head", "video_fc_norm", "video_head"} < set(separate)
    with_decoders = convert(complete_mavil()).parts
    assert torch.equal(with_decoders["video_decoder"]["mask_token"], complete_mavil()["mask_token_v"])


def test_cav_mae_there_and_back_but_for_the_dead_norms() -> None:
    for is_classifier in (False, True):
        state = foreign_weights.cav_mae(is_classifier)
        converted = convert(state)
        assert converted.layout == "cav_mae"
        copies = [f".norm{i}_{modality}." for i in "12" for modality in "av"]
        dead = {n for n in state if not n.startswith("blocks_u.") and any(copy in n for copy in copies)}
        assert set(converted.unused) == dead
        assert all(reason.startswith("dead") for reason in converted.unused.values())
        alive = {name: tensor for name, tensor in state.items() if name not in dead}
        assert_same(to_cav_mae_names(converted.parts), alive)


def test_cav_mae_parts() -> None:
    state = foreign_weights.cav_mae()
    parts = convert(state).parts
    fusion, decoder = parts["fusion"], parts["decoder"]
    assert torch.equal(fusion["blocks.1.alone_norms.video.norm2.bias"], state["blocks_u.1.norm2_v.bias"])
    assert torch.equal(fusion["blocks.1.norm2.bias"], state["blocks_u.1.norm2.bias"])
    assert torch.equal(fusion["alone_norms.audio.weight"], state["norm_a.weight"])
    assert torch.equal(fusion["norm.weight"], state["norm.weight"])
    assert torch.equal(decoder["preds.audio.weight"], state["decoder_pred_a.weight"])
    assert torch.equal(decoder["video_modality_embed"], state["decoder_modality_v"])
    assert torch.equal(decoder["audio_pos_embed"], state["decoder_pos_embed_a"])
    assert torch.equal(parts["audio_encoder"]["modality_embed"], state["modality_a"])
    assert torch.equal(parts["video_encoder"]["patch_embed.proj.weight"][:, :, 0], state["patch_embed_v.proj.weight"])


def test_cav_mae_of_audio_alone_and_copies_of_a_cls_token() -> None:
    state = {name: tensor for name, tensor in foreign_weights.cav_mae(True).items() if "_v" not in name}
    state["cls_token_av"] = torch.ones(1, 1, 32)
    converted = convert(state)
    assert set(converted.parts) == {"audio_encoder", "fusion", "fc_norm", "head"}
    assert converted.unused["cls_token_av"].startswith("dead")


def test_norms_of_encoders_have_no_name_in_cav_mae_and_are_left_out() -> None:
    parts = convert(foreign_weights.cav_mae()).parts
    parts["audio_encoder"]["norm.weight"] = torch.ones(32)
    assert_same(to_cav_mae_names(parts), to_cav_mae_names(convert(foreign_weights.cav_mae()).parts))


def test_a_tensor_without_a_name_there() -> None:
    with pytest.raises(UserError, match=r"audio_projection\.fc1\.weight has no name in MAViL's model"):
        to_mavil_names({"audio_projection": {"fc1.weight": torch.ones(1)}})
    with pytest.raises(UserError, match="the video kernel spans 2"):
        to_cav_mae_names({"video_encoder": {"patch_embed.proj.weight": torch.ones(4, 3, 2, 16, 16)}})
