from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mavil.config import Recipe
from mavil.features import load_features
from mavil.structs import UserError
from tests.features.conftest import audio_recipe, noise
from tests.support import foreign_weights
from tests.support.recipes import tiny_recipe

CLASSIFY = {"kind": "classify", "modalities": ["audio"]}


def test_a_run_gives_its_own_encoder(make_run: Callable[[Recipe], Path]) -> None:
    run = make_run(audio_recipe("frames"))
    features = load_features(run)
    held = torch.load(next((run / "checkpoints").glob("step_*")) / "model.pt", weights_only=True)
    for name, tensor in features.encoder.state_dict().items():
        torch.testing.assert_close(tensor, held[f"encoders.audio.{name}"])
    assert not features.training
    assert all(block.layer_drop == 0 for block in features.encoder.blocks)  # type: ignore[union-attr]


def test_a_classifier_gives_what_its_head_pools(make_run: Callable[[Recipe], Path]) -> None:
    run = make_run(audio_recipe(task=CLASSIFY))
    with torch.no_grad():
        raw, last = (load_features(f"{run}?layers={layers}")(noise(1, 9_000)).values for layers in ("2", "last"))
    torch.testing.assert_close(raw, last)


def test_a_shorter_input_keeps_the_codes(make_run: Callable[[Recipe], Path]) -> None:
    """32 steps of a model for 64: the rest of the sound is another input, and the first is as with all codes."""
    run = make_run(audio_recipe())
    waveforms = noise(1, 31 * 160 + 400)
    with torch.no_grad():
        torch.testing.assert_close(
            load_features(f"{run}?audio.num_steps=32&audio.mask_ratio=0.5")(waveforms).values,
            load_features(run)(waveforms).values,
        )


def test_a_public_file_is_taken_as_it_is(tmp_path: Path) -> None:
    """An MSM-MAE of 80 mel bins: five tokens of 32 values side by side, from the file's own kernel."""
    state = foreign_weights.msm_mae()
    torch.save({"model": state}, tmp_path / "80x48p16x16.pth")
    features = load_features(f"{tmp_path / '80x48p16x16.pth'}?audio.encoder.num_heads=2&audio.decoder.num_heads=2")
    with torch.no_grad():
        assert features(noise(1, 16_000)).values.shape == (1, 6, 160)
    kernel = features.encoder.patch_embed.proj.weight
    torch.testing.assert_close(kernel.data.flatten(), state["patch_embed.proj.weight"].flatten())


def test_no_checkpoint_is_the_same_tiny_model_each_time() -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        first = load_features()(noise(1, 4_000)).values
        torch.manual_seed(2)
        torch.testing.assert_close(first, load_features("")(noise(1, 4_000)).values)


def test_what_is_no_model_of_sound_is_refused(make_run: Callable[[Recipe], Path], tmp_path: Path) -> None:
    silent = make_run(tiny_recipe(audio=None, fusion=None, task={"kind": "pretrain", "contrast": None}))
    with pytest.raises(UserError, match="no audio branch"):
        load_features(silent)
    with pytest.raises(UserError, match=r"no config\.yaml"):
        load_features(tmp_path)
    with pytest.raises(UserError, match="no such checkpoint file"):
        load_features(tmp_path / "nothing.pt")
    with pytest.raises(UserError, match="belongs to a run folder"):
        load_features(f"{tmp_path / 'nothing.pt'}?checkpoint=best")
