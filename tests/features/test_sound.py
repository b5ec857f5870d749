from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from mavil.features import sound
from mavil.features.options import FeatureOptions
from mavil.models.tokens import patchify
from mavil.structs import UserError
from tests.features.conftest import GRIDS, make_features, noise

LENGTHS = torch.tensor([30_000, 11_000, 4_000, 20_640])
"""Several inputs of the encoder (64 steps are 10,480 samples or less), one and a bit, less than one, two exactly."""


def ragged(lengths: Tensor = LENGTHS) -> Tensor:
    longest = int(lengths.max())
    return noise(len(lengths), longest) * (torch.arange(longest) < lengths[:, None])


@pytest.mark.parametrize("grid", [*GRIDS, "convolutional"])
def test_a_clip_in_a_batch_is_as_alone(grid: str) -> None:
    features = make_features("patches", positions="convolutional") if grid == "convolutional" else make_features(grid)
    waveforms = ragged()
    with torch.no_grad():
        together = features(waveforms, LENGTHS)
        for row, length in enumerate(LENGTHS.tolist()):
            alone = features(waveforms[row : row + 1, :length])
            num_columns = int(alone.num_columns[0])
            assert num_columns == together.num_columns[row] == features.timing.num_columns(LENGTHS)[row]
            torch.testing.assert_close(together.values[row, :num_columns], alone.values[0], atol=1e-4, rtol=1e-4)
            assert (together.values[row, num_columns:] == 0).all()


@pytest.mark.parametrize("grid", ["patches", "mel_first", "frames"])
def test_sound_within_one_input_is_encoded_with_the_codes_of_its_own_columns(grid: str) -> None:
    """By hand: patches of the steps that exist, numbered in the whole input, through the encoder's own forward pass."""
    features = make_features(grid)
    timing, encoder = features.timing, features.encoder
    columns = 3
    num_samples = timing.shortest_samples + (columns - 1) * timing.column_samples
    waveforms = noise(2, num_samples)
    steps = features.spectrograms(waveforms, torch.full((2,), num_samples), torch.arange(2), 0, columns * timing.patch)
    values = (steps - -4.0) / (features.normalisation.factor * 4.0)
    whole = torch.zeros(2, 1, 64, 32)
    whole[:, 0, : columns * timing.patch] = values
    bands = encoder.grid.num_tokens // timing.columns
    is_time_first = encoder.grid.time_axis == 0
    ids = [t * bands + m if is_time_first else m * timing.columns + t for t in range(columns) for m in range(bands)]
    patches = patchify(whole, encoder.grid)[:, ids]
    with torch.no_grad():
        tokens = encoder.norm(encoder(patches, torch.tensor(ids).expand(2, -1)))[:, encoder.num_prefix :]
        found = features(waveforms).values
    torch.testing.assert_close(found, tokens.reshape(2, columns, -1), atol=1e-4, rtol=1e-4)


def test_inputs_follow_each_other_without_a_gap() -> None:
    """The second input of a long clip is what comes out for the sound from there on, and the last is as short as it is."""
    features = make_features("patches")
    waveforms = noise(1, 30_000)
    with torch.no_grad():
        whole = features(waveforms).values
        later = features(waveforms[:, 64 * 160 :]).values
    assert whole.shape[1] == 12
    torch.testing.assert_close(whole[:, 4:], later, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(whole[:, :4], later[:, :4], atol=0.1)


@pytest.mark.parametrize("num_steps", [80, 64])
def test_padded_inputs_are_filled_with_zeros_after_normalising(num_steps: int) -> None:
    features = make_features("mel_first", FeatureOptions(chunks="padded"))
    waveforms = noise(1, (num_steps - 1) * 160)
    values = torch.zeros(1, 128, 32)
    steps = features.spectrograms(waveforms, torch.tensor([waveforms.shape[1]]), torch.arange(1), 0, num_steps)
    values[:, :num_steps] = (steps + 4.0) / 4.0
    encoded = []
    with torch.no_grad():
        for half in values.split(64, dim=1):
            tokens = features.encoder.norm(features.encoder(patchify(half[:, None], features.encoder.grid)))[:, 1:]
            encoded.append(tokens.unflatten(1, (2, 8)).transpose(1, 2).flatten(2))
        found = features(waveforms)
    # 80 steps lack 48 of 128, 6 of the 16 columns; 64 lack a whole input.
    expected = torch.cat(encoded, dim=1)[:, : 16 - (6 if num_steps == 80 else 8)]
    assert found.num_columns.tolist() == [expected.shape[1]]
    torch.testing.assert_close(found.values, expected, atol=1e-4, rtol=1e-4)


def test_layers_and_their_mean() -> None:
    waveforms = noise(1, 15_000)
    with torch.no_grad():
        first, second = (
            make_features(options=FeatureOptions(layers=f"{i}", bands="joined"))(waveforms)[0] for i in (1, 2)
        )
        features = make_features(options=FeatureOptions(layers="mean2"))
        norm = features.encoder.norm
        normed = [norm(layer.unflatten(-1, (2, 32))).flatten(-2) for layer in (first, second)]
        layers, _ = features.layers(waveforms)
        last = make_features()(waveforms).values
        torch.testing.assert_close(features(waveforms).values, (normed[0] + normed[1]) / 2)
    torch.testing.assert_close(last, normed[1])
    assert len(layers) == 3
    torch.testing.assert_close(layers[1], first)
    torch.testing.assert_close(layers[2], last)


def test_bands_side_by_side_or_their_mean() -> None:
    waveforms = noise(1, 15_000)
    with torch.no_grad():
        for grid in ("patches", "mel_first"):
            joined, mean = make_features(grid), make_features(grid, FeatureOptions(bands="mean"))
            assert (joined.width, mean.width) == (64, 32)
            torch.testing.assert_close(joined(waveforms).values.unflatten(-1, (2, 32)).mean(2), mean(waveforms).values)


def test_no_batch_mate_matters_unless_the_batch_has_the_statistics() -> None:
    waveforms = noise(2, 8_000)
    louder = waveforms * torch.tensor([[1.0], [0.05]])
    with torch.no_grad():
        fixed, of_batch = make_features(), make_features(batch_statistics="evaluation")
        torch.testing.assert_close(fixed(waveforms).values[0], fixed(louder).values[0])
        assert not torch.allclose(of_batch(waveforms).values[0], of_batch(louder).values[0], atol=0.1)


def test_long_sound_and_many_clips_pass_in_small_pieces() -> None:
    features = make_features("frames")
    seen: list[tuple[int, int]] = []
    features.encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[:2])))
    steps: list[int] = []
    features.spectrograms.register_forward_pre_hook(
        lambda _, inputs: steps.append(len(inputs[2]) * (inputs[4] - inputs[3]))
    )
    with torch.no_grad():
        found = features(noise(1, 40 * 16_000))
        features(noise(20, 25_000))  # three inputs each
    assert found.values.shape == (1, 1999, 32)
    assert max(clips for clips, _ in seen) == sound.INPUTS_AT_ONCE
    assert max(steps) <= sound.INPUTS_AT_ONCE * 64


def test_silence_has_features() -> None:
    with torch.no_grad():
        for grid in GRIDS:
            for statistics in ("never", "evaluation"):
                features = make_features(grid, batch_statistics=statistics)
                assert features(torch.zeros(1, 9_000)).values.isfinite().all()


@pytest.mark.parametrize(
    ("waveforms", "words"),
    [
        (noise(2, 2_799), ["clip 0", "2799 samples", "takes 2800", "0.175 s"]),
        (noise(2, 8_000).index_put((torch.tensor(1), torch.tensor(7)), torch.tensor(torch.nan)), ["clip 1", "NaN"]),
        (
            noise(2, 8_000).index_put((torch.tensor(0), torch.tensor(7)), torch.tensor(torch.inf)),
            ["clip 0", "infinite"],
        ),
        (torch.ones(2, 8_000, dtype=torch.int16), ["int16", "floating-point"]),
        (noise(2, 8_000)[0], ["[8000]", "[clips, samples]"]),
    ],
)
def test_what_has_no_features_is_refused(waveforms: Tensor, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        make_features()(waveforms)
    assert all(word in str(refused.value) for word in words)


def test_layers_beyond_the_last_are_refused() -> None:
    for layers in ("3", "mean3"):
        with pytest.raises(UserError, match=f"layers={layers}: the encoder has 2 blocks"):
            make_features(options=FeatureOptions(layers=layers))


def test_fine_tuning_reaches_the_encoder_and_hears_the_sound_as_it_is() -> None:
    features = make_features().train()
    assert features.spectrograms.front_end.roll
    with patch.object(sound, "INPUTS_AT_ONCE", 1):
        values = features(noise(1, 11_000)).values
    values.square().sum().backward()
    assert features.encoder.patch_embed.proj.weight.grad.abs().sum() > 0
    torch.testing.assert_close(values, features.eval()(noise(1, 11_000)).values)
