from __future__ import annotations

import pytest
import torch

from mavil.data.spectrogram import num_spectrogram_steps
from mavil.features.timing import Timing
from mavil.structs import TokenGrid
from tests.features.conftest import GRIDS, audio_recipe


def timing_of(grid: str) -> Timing:
    audio = audio_recipe(grid).audio
    assert audio is not None
    return Timing(audio.grid(), audio.spectrogram)


@pytest.mark.parametrize(
    ("size", "patch", "spectrogram", "columns"),
    [
        ((1024, 128), (16, 16), "kaldi_hann", 62),
        ((512, 80), (16, 16), "slaney", 63),
        ((998, 128), (2, 128), "kaldi_povey", 499),
    ],
)
def test_ten_seconds_have_as_many_columns_as_in_public_code(
    size: tuple[int, int], patch: tuple[int, int], spectrogram: str, columns: int
) -> None:
    timing = Timing(TokenGrid.of(size, patch, 1), spectrogram)  # type: ignore[arg-type]
    assert timing.num_columns(torch.tensor([160_000])).tolist() == [columns]


@pytest.mark.parametrize("grid", GRIDS)
def test_the_last_column_is_half_filled_and_in_the_middle_of_sound(grid: str) -> None:
    timing = timing_of(grid)
    lengths = torch.arange(timing.shortest_samples, timing.shortest_samples + 6000, 7)
    columns = timing.num_columns(lengths)
    centres = timing.centres_ms(int(columns.max()) + 1)
    steps = num_spectrogram_steps(lengths, timing.spectrogram)
    for column in (columns - 1, columns):
        is_inside = centres[column] <= lengths / 16
        is_half_filled = steps - column * timing.stride >= timing.patch / 2
        assert (is_inside & is_half_filled == (column < columns)).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_the_shortest_sound_fills_one_patch(grid: str) -> None:
    timing = timing_of(grid)
    lengths = torch.tensor([timing.shortest_samples - 1, timing.shortest_samples])
    assert num_spectrogram_steps(lengths, timing.spectrogram).tolist() == [timing.patch - 1, timing.patch]
    assert timing.num_columns(lengths)[1] == 1


@pytest.mark.parametrize(
    ("grid", "first", "hop"), [("patches", 87.5, 160.0), ("mel_first", 35.0, 80.0), ("frames", 17.5, 20.0)]
)
def test_a_column_is_called_by_the_middle_of_the_samples_it_stands_for(grid: str, first: float, hop: float) -> None:
    """Kaldi's windows of 25 ms begin at their step, centred ones stand on it: 10 ms i + 12.5 ms, or 10 ms i."""
    assert timing_of(grid).centres_ms(3).tolist() == [first, first + hop, first + 2 * hop]


def test_times_of_an_hour_do_not_drift() -> None:
    assert timing_of("frames").centres_ms(180_000)[-1].item() == pytest.approx(17.5 + 20.0 * 179_999, rel=1e-7)


def test_padded_inputs_keep_the_columns_that_public_code_keeps() -> None:
    """A unit of 208 steps: a rest of 169 steps has 39 steps too few, 2.4 of 13 columns, of which 2 are cut away."""
    timing = Timing(TokenGrid.of((208, 80), (16, 16), 1).reordered((1, 0)), "slaney")
    lengths = torch.tensor([160_000, 207 * 160, 10 * 160])  # 1001, 208 and 11 steps
    assert timing.num_columns_padded(lengths).tolist() == [4 * 13 + 13 - 2, 13, 13 - 12]


def test_tokens_of_the_first_columns_by_both_orders() -> None:
    by_time = Timing(TokenGrid.of((64, 32), (16, 16), 1), "kaldi_hann")
    by_mel = Timing(TokenGrid.of((64, 32), (16, 16), 1).reordered((1, 0)), "slaney")
    assert by_time.token_ids(3).tolist() == [0, 1, 2, 3, 4, 5]
    assert by_mel.token_ids(3).tolist() == [0, 1, 2, 4, 5, 6]
    assert by_time.column_of_token(3).tolist() == [0, 0, 1, 1, 2, 2]
    assert by_mel.column_of_token(3).tolist() == [0, 1, 2, 0, 1, 2]
