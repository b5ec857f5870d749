from __future__ import annotations

import pytest
import torch
from torchaudio.functional import resample

from mavil.features import rates
from tests.features.conftest import noise


@pytest.mark.parametrize("rate", [22_050, 32_000, 44_100, 48_000])
def test_pieces_are_resampled_as_the_whole(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waveforms = noise(2, rate + 17)
    monkeypatch.setattr(rates, "SAMPLES_AT_ONCE", rate // 5)
    found = rates.resampled(waveforms, rate)
    assert found.shape == (2, (rate + 17) * 16_000 // rate)
    torch.testing.assert_close(found, resample(waveforms, rate, 16_000)[:, : found.shape[1]], atol=1e-6, rtol=0)


def test_the_projects_own_rate_stays_as_it_is() -> None:
    waveforms = noise(1, 100)
    assert rates.resampled(waveforms, 16_000) is waveforms
