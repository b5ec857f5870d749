from __future__ import annotations

import pytest
import torch

from mavil.models.tokens import position_table
from mavil.models.weights import PartGeometry, convert, geometry_of, spectrogram_size, table_kind
from mavil.structs import TokenGrid
from tests.support import foreign_weights


def test_audio_mae() -> None:
    found = geometry_of(convert(foreign_weights.audio_mae(windowed=True)))
    assert found == {
        "audio_encoder": PartGeometry(32, 2, 4.0, (16, 16), {"audio": 8}, cls_token=True),
        "audio_decoder": PartGeometry(
            16,
            1,
            4.0,
            num_tokens={"audio": 8},
            cls_token=True,
            out_values={"audio": 256},
            windowed=True,
            num_heads=2,
            projects=True,
        ),
    }


def test_cav_mae() -> None:
    found = geometry_of(convert(foreign_weights.cav_mae(unified=3)))
    assert found == {
        "audio_encoder": PartGeometry(32, 1, 4.0, (16, 16), {"audio": 8}),
        "video_encoder": PartGeometry(32, 1, 4.0, (1, 16, 16), {"video": 4}),
        "fusion": PartGeometry(32, 3, 4.0),
        "decoder": PartGeometry(
            16, 1, 4.0, num_tokens={"audio": 8, "video": 4}, out_values={"audio": 256, "video": 768}, projects=True
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


def test_mae_ast_and_msm_mae() -> None:
    flat = geometry_of(convert(foreign_weights.mae_ast()))
    assert flat["audio_encoder"] == PartGeometry(32, 2, 2.0, post_norm=True)
    expected = PartGeometry(32, 1, 2.0, out_values={"audio": 256}, post_norm=True, discriminates=True)
    assert flat["audio_decoder"] == expected
    assert geometry_of(convert(foreign_weights.mae_ast(), patch=(2, 128)))["audio_encoder"].patch == (2, 128)
    assert not geometry_of(convert(foreign_weights.msm_mae()))["audio_decoder"].key_bias
    assert geometry_of(convert(foreign_weights.m2d()))["audio_decoder"].key_bias


def test_a_hybrid_decoder_counts_its_global_blocks() -> None:
    state = foreign_weights.audio_mae(windowed=True)
    state |= {
        name.replace("_blocks.0", "_blocks.1"): t
        for name, t in foreign_weights.audio_mae().items()
        if "_blocks" in name
    }
    found = geometry_of(convert(state))["audio_decoder"]
    assert (found.depth, found.windowed, found.global_blocks) == (2, True, 1)


@pytest.mark.parametrize(
    ("num_tokens", "patch", "num_mel_bins", "expected"),
    [
        (512, (16, 16), 128, (1024, None)),
        (1212, (16, 16), 128, (1024, (10, 10))),  # Audio-MAE's overlapping patches
        (250, (4, 16), 80, (200, None)),
        (52, (4, 80), 80, (208, None)),
        (511, (16, 16), 128, None),
        (7, (2, 60), 80, None),
    ],
)
def test_the_size_of_the_spectrogram(
    num_tokens: int, patch: tuple[int, int], num_mel_bins: int, expected: tuple[int, tuple[int, int] | None] | None
) -> None:
    assert spectrogram_size(num_tokens, patch, num_mel_bins) == expected
    if expected is not None:
        assert TokenGrid.of((expected[0], num_mel_bins), patch, 1, expected[1]).num_tokens == num_tokens


@pytest.mark.parametrize("kind", ["sincos_2d", "transposed_2d", "sincos_1d"])
@pytest.mark.parametrize("num_prefix", [0, 1])
def test_computed_tables_are_recognised(kind: str, num_prefix: int) -> None:
    grid = TokenGrid.of((96, 32), (16, 16), 1)
    table = position_table(grid, 32, kind, num_prefix)
    assert table_kind(table + 1e-4, grid, num_prefix) == kind
    assert table_kind(table + 0.01, grid, num_prefix) is None
    assert table_kind(torch.cat([table, table]), grid, num_prefix) is None
