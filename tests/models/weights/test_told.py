from __future__ import annotations

import pytest

from mavil.models.weights import Told, told_by
from mavil.structs import UserError
from tests.support import foreign_weights


def test_settings_of_mae_ast() -> None:
    expected = Told(
        patch=(2, 128), size=(0, 128), num_heads=4, mask_ratio=0.6, mask_type="chunk_mask", dropout=0.1, layer_drop=0.05
    )
    settings = foreign_weights.mae_ast_settings((2, 128))
    assert told_by({"cfg": settings}, "file.pt") == expected
    assert told_by({"args": {**settings["model"], **settings["task"]}}, "file.pt") == expected


@pytest.mark.parametrize("name", ["layer_norm_first", "enc_conv_pos", "ast_kernel_stride_time"])
def test_models_of_mae_ast_that_nothing_here_computes(name: str) -> None:
    settings = foreign_weights.mae_ast_settings()
    settings["model"][name] = 8 if "stride" in name else True
    with pytest.raises(UserError, match=r"file\.pt: MAE-AST with .* cannot be read"):
        told_by({"cfg": settings}, "file.pt")


@pytest.mark.parametrize(
    ("path", "size", "patch"),
    [
        ("runs/80x512p16x8_paper/checkpoint-100.pth", (512, 80), (8, 16)),
        ("msm_mae_vit_base-80x608p16x16-220924-mr75/weights.pth", (608, 80), (16, 16)),
        ("weights/msm_80x96p80x4.pth", (96, 80), (4, 80)),
        ("weights/1080x512p.pth", None, None),
    ],
)
def test_names_of_folders(path: str, size: tuple[int, int] | None, patch: tuple[int, int] | None) -> None:
    found = told_by({}, path)
    assert (found.size, found.patch) == (size, patch)


def test_arguments_of_the_mae_family() -> None:
    args = {
        **{"input_size": [80, 200], "patch_size": [16, 4], "norm_pix_loss": True, "mask_ratio": 0.7},
        **{"dataset": "esc50", "norm_stats": [-5.5, 5.0]},
    }
    found = told_by({"args": args}, "80x512p16x16_x/file.pth")
    expected = Told((4, 16), (200, 80), None, 0.7, True, dataset="esc50", statistics=(-5.5, 5.0))
    assert found == expected
    assert told_by({"args": {"input_size": 224, "mask_ratio": "?", "norm_stats": "None"}}, "file.pth") == Told()
