import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mavil.losses.reconstruction import normalise_patches
from mavil.models.tokens import patchify
from mavil.report.pictures import colour_range, frames_png, spectrogram_png
from mavil.report.reconstruct import (
    Reconstruction,
    denormalise_frames,
    denormalise_patches,
    mask_pixels,
    paste,
    reconstruct_audio,
    reconstruct_video,
    reconstruction_example,
)
from mavil.structs import TokenGrid


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_denormalising_inverts_the_normalisation_of_the_targets() -> None:
    raw = 3 * torch.randn(2, 5, 48) + 7
    assert torch.allclose(denormalise_patches(normalise_patches(raw), raw), raw, atol=1e-5)


@pytest.mark.parametrize("cells", [(3, 2), (2, 2, 3)])
def test_masked_tokens_are_masked_pixels_in_the_order_of_patchify(cells: tuple[int, ...]) -> None:
    patch = (2, 4, 4)[-len(cells) :]
    grid = TokenGrid(cells, patch, 1)
    is_masked = torch.rand(grid.num_tokens) < 0.5
    cut = patchify(mask_pixels(is_masked, grid)[None, None].float(), grid)[0]
    assert torch.equal(cut, is_masked[:, None].float().expand(-1, grid.patch_values))


def test_where_patches_overlap_only_what_none_of_them_showed_is_masked() -> None:
    grid = TokenGrid.of((9, 4), (4, 4), 1, stride=(2, 4))  # steps 0-3, 2-5, 4-7; step 8 is in none
    is_masked = mask_pixels(torch.tensor([False, True, True]), grid)
    assert is_masked[:, 0].tolist() == [False] * 4 + [True] * 4 + [False]
    assert torch.equal(mask_pixels(torch.tensor([False, True, True]), grid.reordered((1, 0))), is_masked)


def test_paste_takes_only_masked_places_from_the_prediction() -> None:
    original, prediction = torch.zeros(3, 2, 4, 4), torch.ones(3, 2, 4, 4)
    is_masked = torch.rand(2, 4, 4) < 0.5
    assert torch.equal(paste(prediction, original, is_masked), is_masked.float().expand(3, 2, 4, 4))
    with pytest.raises(ValueError, match="must agree"):
        paste(prediction, original, is_masked[:, :2])


@pytest.mark.parametrize(("normalised", "std_factor"), [(True, 2.0), (False, 2.0), (True, 1.0)])
def test_perfect_predictions_reconstruct_the_original(normalised: bool, std_factor: float) -> None:
    grid = TokenGrid.of((32, 16), (4, 4), 1)
    log_mel, is_masked = 4 * torch.randn(1, 32, 16) - 5, torch.rand(grid.num_tokens) < 0.8
    audio = (log_mel + 4.2) / (std_factor * 4.5)
    raw = patchify(audio[None], grid)[0]
    target = normalise_patches(raw) if normalised else raw
    units = {"mean": -4.2, "std": 4.5, "std_factor": std_factor}
    perfect = reconstruct_audio(audio, target, is_masked, grid, normalised, **units)
    assert torch.allclose(perfect.original, log_mel[0], atol=1e-4)
    assert torch.allclose(perfect.completed, perfect.original, atol=1e-3)
    zero = reconstruct_audio(audio, target * 0, is_masked, grid, normalised, **units)
    changed = (zero.completed - zero.original).abs() > 1e-4
    assert not changed[~zero.is_masked].any()
    assert changed[zero.is_masked].float().mean() > 0.9


def test_frames_return_to_their_colours() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    frames = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    video = ((frames / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]).movedim(1, 0)
    assert torch.equal(denormalise_frames(video, mean, std), frames)
    grid = TokenGrid.of((4, 8, 8), (2, 4, 4), 3)
    is_masked = torch.rand(grid.num_tokens) < 0.5
    shown = reconstruct_video(video, patchify(video[None], grid)[0], is_masked, grid, False, mean, std)
    assert torch.equal(shown.completed, frames)
    assert shown.is_masked.shape == (4, 8, 8)


def test_spectrogram_picture_has_time_to_the_right_and_low_frequencies_at_the_bottom() -> None:
    log_mel = torch.full((20, 10), -10.0)
    log_mel[18, 1] = 0.0
    is_masked = torch.zeros(20, 10, dtype=torch.bool)
    is_masked[0, 9] = True
    picture = pixels(spectrogram_png(log_mel, (-10.0, 0.0), is_masked))
    assert picture.shape == (10, 20, 3)
    assert np.unravel_index(picture.sum(2).argmax(), (10, 20)) == (8, 18)
    assert (picture[0, 0] == picture[0, 0, 0]).all()
    assert picture[0, 0, 0] > picture[0, 1].max()


def test_equal_levels_have_equal_colours_in_original_and_reconstruction() -> None:
    original, reconstruction = torch.rand(10, 10), torch.rand(10, 10) * 0.1 + 0.4
    reconstruction[3, 3] = original[3, 3]
    shared = colour_range(original)
    one, other = pixels(spectrogram_png(original, shared)), pixels(spectrogram_png(reconstruction, shared))
    assert (one[6, 3] == other[6, 3]).all()


def test_frames_are_laid_out_in_reading_order() -> None:
    frames = torch.stack([torch.full((3, 4, 5), 40 * i, dtype=torch.uint8) for i in range(1, 6)])
    sheet = pixels(frames_png(frames, columns=3))
    assert sheet.shape == (4 * 2 + 3, 5 * 3 + 3 * 2, 4)
    corners = [sheet[y, x].tolist() for y, x in [(0, 0), (0, 8), (0, 16), (7, 0), (7, 8)]]
    assert corners == [[40 * i] * 3 + [255] for i in range(1, 6)]
    assert sheet[7, 16, 3] == 0


def one_clip(num_steps: int) -> Reconstruction:
    log_mel = torch.randn(num_steps, 128)
    return Reconstruction(log_mel, log_mel, torch.rand(num_steps, 128) < 0.5)


@pytest.mark.parametrize(("num_samples", "seconds"), [(8_000, 0.5), (16_000, 9_840 / 16_000)])
def test_example_ends_where_clip_or_spectrogram_ends(num_samples: int, seconds: float) -> None:
    frames = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    video = Reconstruction(frames, frames, torch.ones(4, 8, 8, dtype=torch.bool))
    example = reconstruction_example("clip", one_clip(60), video, num_samples, waveform=torch.zeros(16_000))
    assert example.seconds == pytest.approx(seconds)
    original, seen, completed = example.panels
    assert len(original.sounds) == 2
    assert not seen.sounds
    assert len(completed.sounds) == 1
    assert original.spectrogram is not None
    assert pixels(original.spectrogram.data).shape[1] == 1 + (round(seconds * 16_000) - 400) // 160
    assert seen.frames is not None
    assert len(np.unique(pixels(seen.frames.data)[:4, :4, :3])) == 1


def test_example_of_one_modality() -> None:
    frames: Tensor = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    video = Reconstruction(frames, frames, torch.ones(4, 8, 8, dtype=torch.bool))
    assert all(panel.spectrogram is None for panel in reconstruction_example("clip", None, video, 8_000).panels)
    assert all(panel.frames is None for panel in reconstruction_example("clip", one_clip(60), None, 8_000).panels)
