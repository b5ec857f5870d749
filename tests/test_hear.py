from __future__ import annotations

import sys
import types
import warnings

import pytest
import torch

from mavil import hear
from mavil.features.hear_rules import check_module
from mavil.structs import UserError
from tests.features.conftest import noise


def test_the_attributes_are_those_of_the_embeddings() -> None:
    model = hear.load_model("?audio.patch=[16,16]&sample_rate=44100")
    embeddings, times = hear.get_timestamp_embeddings(noise(2, 44_100), model)
    scenes = hear.get_scene_embeddings(noise(2, 44_100), model)
    assert (model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size) == (44_100, 64, 64)
    assert (embeddings.shape, times.shape, scenes.shape) == ((2, 6, 64), (2, 6), (2, 64))
    assert {embeddings.dtype, times.dtype, scenes.dtype} == {torch.float32}
    torch.testing.assert_close(scenes, embeddings.mean(dim=1))
    assert not scenes.requires_grad


def test_any_rate_gives_nearly_the_same_embeddings() -> None:
    """A chord that all rates hold; the ends differ, where the resampling filter meets nothing."""
    found = []
    for rate in (16_000, 22_050, 48_000):
        seconds = torch.arange(rate, dtype=torch.float64) / rate
        chord = sum(torch.sin(2 * torch.pi * hertz * seconds) for hertz in (220.0, 1900.0, 5000.0))
        model = hear.load_model(f"?sample_rate={rate}")
        found.append(hear.get_timestamp_embeddings(chord[None].float() / 3, model))
    for embeddings, times in found[1:]:
        torch.testing.assert_close(times, found[0][1])
        error = (embeddings - found[0][0])[:, 4:-4].abs().mean()
        assert error < 0.1 * found[0][0].std()


def test_times_are_centred_or_from_zero() -> None:
    audio = noise(1, 16_000)
    _, centred = hear.get_timestamp_embeddings(audio, hear.load_model("?audio.patch=[16,16]"))
    _, from_zero = hear.get_timestamp_embeddings(
        audio, hear.load_model("?audio.patch=[16,16]&chunks=padded&timestamps=from_zero")
    )
    assert centred[0].tolist() == [75.0, 235.0, 395.0, 555.0, 715.0, 875.0]
    # 101 steps of two inputs of 64 lack 27: 1.7 of 8 columns, of which one is cut away.
    torch.testing.assert_close(from_zero[0], torch.arange(7) * 1000 / 7)
    faster = hear.load_model("?audio.patch=[16,16]&chunks=padded&timestamps=from_zero&sample_rate=48000")
    torch.testing.assert_close(hear.get_timestamp_embeddings(noise(1, 48_000), faster)[1], from_zero)


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (noise(1, 16_000) * 30_000, "32768"),
        (noise(1, 16_000)[0], r"\[clips, samples\]"),
        (torch.zeros(1, 16_000, dtype=torch.int16), "int16"),
        (torch.full((1, 16_000), torch.nan), "clip 0 .* NaN"),
        (noise(1, 100), "clip 0 .* 100 samples"),
    ],
)
def test_audio_that_cannot_be_meant_is_refused(audio: torch.Tensor, words: str) -> None:
    with pytest.raises(UserError, match=words):
        hear.get_scene_embeddings(audio, hear.load_model())


def test_a_rate_that_is_told_must_be_the_models() -> None:
    model = hear.load_model("?sample_rate=48000")
    for embed in (hear.get_timestamp_embeddings, hear.get_scene_embeddings):
        embed(noise(1, 4_800), model, sample_rate=48_000)
        with pytest.raises(UserError, match="16000 Hz for a model that takes 48000 Hz"):
            embed(noise(1, 4_800), model, sample_rate=16_000)


@pytest.mark.parametrize(
    "source", ["", "?audio.patch=[16,16]&sample_rate=22050", "?audio.patch=[16,16]&audio.spectrogram=kaldi_povey"]
)
def test_hears_own_validator_and_ours_agree(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports TensorFlow only to ask whether the model is one of TensorFlow's."""
    stand_in = types.ModuleType("tensorflow")
    stand_in.Module = type("Module", (), {})  # type: ignore[attr-defined]
    stand_in.float32 = "float32"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorflow", stand_in)
    validate = pytest.importorskip("hearvalidator.validate")
    ours = check_module(hear, source, "cpu")
    assert not [finding for finding in ours if finding.kind == "error"]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        validate.ValidateModel("mavil.hear", source, device="cpu")()
    theirs = [warning for warning in warned if "IMPORTANT" not in str(warning.message)]
    assert len(theirs) == sum(finding.kind == "warning" for finding in ours)
