from __future__ import annotations

from mavil.models.weights import PartGeometry, convert, geometry_of
from tests.support import foreign_weights


def test_audio_mae() -> None:
    found = geometry_of(convert(foreign_weights.audio_mae(windowed=True)))
    assert found == {
        "audio_encoder": PartGeometry(32, 2, 4.0, (16, 16), {"audio": 8}, cls_token=True),
        "audio_decoder": PartGeometry(
            16, 1, 4.0, num_tokens={"audio": 8}, cls_token=True, out_values={"audio": 256}, windowed=True
        ),
    }


def test_cav_mae() -> None:
    found = geometry_of(convert(foreign_weights.cav_mae(unified=3)))
    assert found == {
        "audio_encoder": PartGeometry(32, 1, 4.0, (16, 16), {"audio": 8}),
        "video_encoder": PartGeometry(32, 1, 4.0, (1, 16, 16), {"video": 4}),
        "fusion": PartGeometry(32, 3, 4.0),
        "decoder": PartGeometry(
            16, 1, 4.0, num_tokens={"audio": 8, "video": 4}, out_values={"audio": 256, "video": 768}
        ),
    }


def test_heads_and_video() -> None:
    found = geometry_of(convert(foreign_weights.mavil(3, "av")))
    assert found["video_encoder"] == PartGeometry(32, 2, 4.0, (2, 16, 16), {"video": 8}, cls_token=True)
    assert found["fc_norm"] == PartGeometry(64)
    assert found["head"] == PartGeometry(64, classes=5)
    assert found["fusion"].depth == 3
    assert geometry_of(convert(foreign_weights.mavil(0, "a_v")))["audio_head"] == PartGeometry(32, classes=5)


def test_other_mlp_ratios() -> None:
    state = foreign_weights.random_state(
        {name: tuple(96 if size == 128 else size for size in t.shape) for name, t in foreign_weights.mavil().items()}
    )
    assert geometry_of(convert(state))["audio_encoder"].mlp_ratio == 3.0
