"""The audio encoder in timm: the same pooled tokens, of every encoder that timm's ViT can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from mavil.embedder.network import build_network
from mavil.export.timm_weights import write_timm
from mavil.models.tokens import patchify
from mavil.structs import UserError
from tests.support.exports import random_export

CAV_MAE = [
    "audio.token_order=mel_first",
    "audio.cls_token=false",
    "audio.modality_embedding=true",
    "audio.patch=[8, 16]",
    "audio.encoder.layer_norm_eps=1e-5",
    "video.encoder.layer_norm_eps=1e-5",
]
CLASSIFIER = {"task": {"kind": "classify", "modalities": ["audio"]}}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ([], {}),
        (CAV_MAE, {}),
        (["audio.encoder.key_bias=false", "audio.encoder.mlp_ratio=2"], {}),
        (["task.contrast.pooling=cls"], {}),
        ([], CLASSIFIER),
    ],
    ids=["mavil", "cav_mae", "no key bias", "cls", "classifier"],
)
def test_pooled_tokens_are_ours(tmp_path: Path, changes: list[str], parts: dict[str, Any]) -> None:
    exported = random_export(*changes, **parts)
    write_timm(tmp_path / "timm", exported)
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert exported.recipe.audio is not None
    assert model.blocks[1].norm2.eps == exported.recipe.audio.encoder.layer_norm_eps
    spectrograms = torch.randn(3, 1, 64, 32)
    network = build_network(exported.recipe, exported.parts, "it")
    with torch.no_grad():
        expected = network.embed("audio", patchify(spectrograms, network.grid("audio")), projects=False)
        torch.testing.assert_close(model(spectrograms), expected, atol=1e-5, rtol=1e-5)
        tokens = model.forward_features(spectrograms)
    assert tokens.shape == (3, network.grid("audio").num_tokens + network.encoder("audio").num_prefix, 32)


def test_the_config_says_how_the_input_is_made(tmp_path: Path) -> None:
    write_timm(tmp_path / "timm", random_export("audio.std_factor=3"))
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path / 'timm'}"))
    assert (config["input_size"], config["mean"], config["std"]) == ((1, 64, 32), [-4.0], [13.5])
    assert json.loads((tmp_path / "timm/config.json").read_text())["spectrogram"]["kind"] == "kaldi_hann"


def test_what_stays_out_is_said(tmp_path: Path) -> None:
    exported = random_export("task.contrast.pooled_from=fusion_alone", "task.contrast.projection={width: 16}")
    lines = write_timm(tmp_path / "timm", exported)
    assert "without audio_projection, fusion, video_encoder, video_projection" in lines[1]
    assert "not trained" in lines[2]
    assert len(write_timm(tmp_path / "sound", random_export(**CLASSIFIER))) == 1


@pytest.mark.parametrize(
    ("changes", "parts", "told"),
    [
        (
            ["audio.encoder.norm=post"],
            {"video": None, "fusion": None, "task": {"kind": "pretrain", "contrast": None}},
            "post-norm",
        ),
        (["audio.positions=convolutional"], {}, "convolution"),
        (["audio.stride=[8, 8]"], {}, "overlap"),
        (["audio.batch_statistics=evaluation"], {}, "statistics"),
        (["audio.encoder.layer_norm_eps=1e-4"], {}, "epsilon 0.0001"),
        ([], {"task": {"kind": "classify", "modalities": ["video"]}}, "no audio encoder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_timm_cannot_be_is_refused(tmp_path: Path, changes: list[str], parts: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        write_timm(tmp_path / "timm", random_export(*changes, **parts))
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="there already"):
        write_timm(tmp_path / "timm", random_export())
    assert [path.name for path in tmp_path.rglob("*.txt")] == ["mine.txt"]
