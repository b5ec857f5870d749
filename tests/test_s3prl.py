from __future__ import annotations

import sys
import types

import pytest
import torch

from mavil.s3prl import UpstreamExpert, register
from mavil.structs import UserError
from tests.features.conftest import noise

LENGTHS = [24_000, 12_345, 16_000, 700]


@pytest.mark.parametrize("source", ["", "?audio.patch=[16,16]", "?audio.patch=[16,16]&audio.spectrogram=kaldi_hann"])
def test_every_layer_has_the_frames_that_s3prl_counts(source: str) -> None:
    """Its featurizer wants ``ceil(length / rate)`` frames, and for each clip as if it were alone; 700 samples are 0.044 s."""
    upstream = UpstreamExpert(source).eval()
    rate = upstream.get_downsample_rates("hidden_states")
    assert rate == (320 if source == "" else 2560)
    wavs = [noise(1, length, seed=length)[0] for length in LENGTHS]
    with torch.no_grad():
        found = upstream(wavs)
        hidden_states = found["hidden_states"]
        assert len(hidden_states) == 3
        assert found["last_hidden_state"] is hidden_states[-1]
        for layer in hidden_states:
            assert layer.shape == (4, len(range(0, 24_000, rate)), upstream.features.width)
        for row, wav in enumerate(wavs):
            frames = len(range(0, len(wav), rate))
            for alone, together in zip(upstream([wav])["hidden_states"], hidden_states, strict=True):
                assert alone.shape[1] == frames
                torch.testing.assert_close(alone[0], together[row, :frames], atol=1e-4, rtol=1e-4)
                assert (together[row, frames:] == 0).all()
                assert (together[row, :frames].abs().sum(dim=1) > 0).all()


def test_a_frame_too_few_repeats_the_last() -> None:
    """24,000 samples are 9.4 columns of 2,560, of which nine stand for sound: the tenth frame is the ninth."""
    upstream = UpstreamExpert("?audio.patch=[16,16]&audio.spectrogram=kaldi_hann").eval()
    with torch.no_grad():
        layer = upstream([noise(1, 24_000)[0]])["last_hidden_state"]
    torch.testing.assert_close(layer[0, 9], layer[0, 8])
    assert not torch.allclose(layer[0, 8], layer[0, 7])


def test_what_s3prl_decides_itself_is_refused() -> None:
    for source in ("?layers=mean2", "?sample_rate=48000"):
        with pytest.raises(UserError, match="s3prl takes all layers"):
            UpstreamExpert(source)
    with pytest.raises(UserError, match="model_config"):
        UpstreamExpert("", model_config="mine.yaml")
    with pytest.raises(UserError, match="empty batch"):
        UpstreamExpert("")([])


def test_registering_sets_a_name_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    package, hub = types.ModuleType("s3prl"), types.ModuleType("s3prl.hub")
    package.hub = hub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "s3prl", package)
    monkeypatch.setitem(sys.modules, "s3prl.hub", hub)
    register("ours")
    # As S3PRLUpstream calls it.
    assert isinstance(getattr(hub, "ours")(refresh=False, ckpt=""), UpstreamExpert)  # noqa: B009
    monkeypatch.setitem(sys.modules, "s3prl", None)
    with pytest.raises(UserError, match="cannot be imported"):
        register()
