"""From a decoder's predictions back to spectrograms and frames, and to the pictures and sounds that show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mavil.models.tokens import in_order_of_input, patchify, unpatchify
from mavil.report.examples import Media, Panel, ReconstructionExample
from mavil.report.pictures import colour_range, frames_png, spectrogram_png
from mavil.report.sound import num_samples_of, num_steps_of, spectrogram_to_sound, wav_bytes
from mavil.structs import SAMPLE_RATE, TokenGrid

_TITLES = ("original", "what the model saw", "reconstruction")
_COLUMNS = 4
"""Frames in a row."""


@dataclass(frozen=True)
class Reconstruction:
    """One modality of one clip in natural units, with what the model made of it.

    Audio: ``original`` and ``completed`` ``[S, M]`` log-mel power, ``is_masked`` ``[S, M]`` bool. Video: ``[T, 3, H, Wd]``
    uint8 and ``[T, H, Wd]`` bool. ``completed`` is the prediction where masked, the original elsewhere.
    """

    original: Tensor
    completed: Tensor
    is_masked: Tensor


def reconstruct_audio(
    audio: Tensor,
    predictions: Tensor,
    is_masked: Tensor,
    grid: TokenGrid,
    normalised: bool,
    mean: float,
    std: float,
    std_factor: float = 2.0,
) -> Reconstruction:
    """The spectrogram ``[1, S, M]`` a model was given, and its predictions ``[N, P]`` in the same units.

    ``is_masked`` ``[N]``; ``normalised``: targets were normalised per patch; ``mean``, ``std`` and ``std_factor`` of the
    recipe's audio branch.
    """
    completed = _completed(audio, predictions, is_masked, grid, normalised)[0]
    return Reconstruction(
        original=denormalise_spectrogram(audio[0].float().cpu(), mean, std, std_factor),
        completed=denormalise_spectrogram(completed, mean, std, std_factor),
        is_masked=mask_pixels(is_masked.cpu(), grid),
    )


def reconstruct_video(
    video: Tensor,
    predictions: Tensor,
    is_masked: Tensor,
    grid: TokenGrid,
    normalised: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> Reconstruction:
    """The frames ``[3, T, H, Wd]`` a model was given, and its predictions ``[N, P]``; as :func:`reconstruct_audio`."""
    completed = _completed(video, predictions, is_masked, grid, normalised)
    return Reconstruction(
        original=denormalise_frames(video, mean, std),
        completed=denormalise_frames(completed, mean, std),
        is_masked=mask_pixels(is_masked.cpu(), grid),
    )


def reconstruction_example(
    title: str,
    audio: Reconstruction | None,
    video: Reconstruction | None,
    num_samples: int,
    waveform: Tensor | None = None,
) -> ReconstructionExample:
    """Original, what the model saw, and reconstruction side by side, ready for the page.

    ``num_samples`` is the clip's true length at 16 kHz: spectrogram and sound end there, or where the spectrogram does if
    the model saw only the beginning of the clip. ``waveform`` ``[L]`` adds the recording itself; the other two sounds are
    both made from spectrograms, so that they can be compared.
    """
    if audio:
        num_samples = min(num_samples, num_samples_of(len(audio.original)))
    heard = _heard(title, audio, num_samples) if audio else [{}, {}, {}]
    if waveform is not None:
        heard[0]["the recording"] = Media(wav_bytes(waveform[:num_samples]), f"{title}: the recording")
    seen = _spectrograms(title, audio, num_samples) if audio else [None, None, None]
    watched = _frames(title, video) if video else [None, None, None]
    panels = [Panel(*parts) for parts in zip(_TITLES, seen, watched, heard, strict=True)]
    return ReconstructionExample(title, panels, num_samples / SAMPLE_RATE)


def denormalise_patches(predictions: Tensor, raw_patches: Tensor) -> Tensor:
    """Undo the per-patch normalisation of the targets: ``[..., N, P]`` and ``[..., N, P]`` to ``[..., N, P]``.

    The model predicts ``(x - mean) / sqrt(var + 1e-6)`` of each patch (unbiased variance) and knows neither mean nor
    variance of a patch it never saw: both are taken from the *original* ``raw_patches``. What is shown is therefore the
    predicted structure at the original's brightness and contrast, as in MAE's figures [source MAE], and the page says so.
    """
    mean = raw_patches.mean(dim=-1, keepdim=True)
    variance = raw_patches.var(dim=-1, keepdim=True)
    return predictions * (variance + 1e-6).sqrt() + mean


def mask_pixels(is_masked: Tensor, grid: TokenGrid) -> Tensor:
    """Spread token flags ``[N]`` bool (True = masked) over the values they stand for: ``[S, M]`` or ``[T, H, Wd]`` bool.

    Where patches overlap, a value is masked if the model saw it in none of them; one that belongs to no patch is not masked,
    for nothing is predicted there.
    """
    if grid.stride is not None:
        flags = torch.stack([torch.ones_like(is_masked), ~is_masked]).float()[..., None]
        in_any, in_visible = unpatchify(flags.expand(-1, -1, grid.patch_values).contiguous(), grid)[:, 0] > 0
        return in_any & ~in_visible
    pixels = is_masked.reshape(grid.cells)
    for axis, length in enumerate(grid.patch):
        pixels = pixels.repeat_interleave(length, dim=axis)
    return in_order_of_input(pixels, grid)


def paste(prediction: Tensor, original: Tensor, is_masked: Tensor) -> Tensor:
    """The prediction where the model saw nothing, the original where it did.

    ``prediction`` and ``original`` ``[S, M]`` or ``[C, T, H, Wd]``; ``is_masked`` is :func:`mask_pixels` and is repeated
    over the channels.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if prediction.shape != original.shape or original.shape[-is_masked.ndim :] != is_masked.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)}, original {tuple(original.shape)} and mask {tuple(is_masked.shape)} "
            "must agree in all axes but the channel"
        )
    return torch.where(is_masked, prediction, original)


def denormalise_spectrogram(audio: Tensor, mean: float, std: float, std_factor: float = 2.0) -> Tensor:
    """A model's input ``(x - mean) / (std_factor std)`` back to the log-mel power ``x``; any shape."""
    return audio * (std_factor * std) + mean


def denormalise_frames(video: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A model's input ``[C, T, H, Wd]``, normalised per channel, back to pictures ``[T, C, H, Wd]`` uint8."""
    scale, offset = torch.tensor(std), torch.tensor(mean)
    colours = video.float().cpu().movedim(0, 1) * scale[:, None, None] + offset[:, None, None]
    return (colours * 255).round().clamp(0, 255).to(torch.uint8)


def _completed(values: Tensor, predictions: Tensor, is_masked: Tensor, grid: TokenGrid, normalised: bool) -> Tensor:
    """``[C, *size]`` and predictions ``[N, P]`` to ``[C, *size]``, on the CPU."""
    values, predictions = values.float().cpu(), predictions.float().cpu()
    if normalised:
        predictions = denormalise_patches(predictions, patchify(values[None], grid)[0])
    return paste(unpatchify(predictions[None], grid)[0], values, mask_pixels(is_masked.cpu(), grid))


def _spectrograms(title: str, audio: Reconstruction, num_samples: int) -> list[Media | None]:
    end = num_steps_of(num_samples)
    original, completed, is_masked = audio.original[:end], audio.completed[:end], audio.is_masked[:end]
    shared = colour_range(original)
    pictures = [
        spectrogram_png(original, shared),
        spectrogram_png(original, shared, is_masked),
        spectrogram_png(completed, shared),
    ]
    return [Media(picture, f"{title}: spectrogram, {name}") for name, picture in zip(_TITLES, pictures, strict=True)]


def _frames(title: str, video: Reconstruction) -> list[Media | None]:
    pictures = [
        frames_png(video.original, _COLUMNS),
        frames_png(video.original, _COLUMNS, video.is_masked),
        frames_png(video.completed, _COLUMNS),
    ]
    return [Media(picture, f"{title}: frames, {name}") for name, picture in zip(_TITLES, pictures, strict=True)]


def _heard(title: str, audio: Reconstruction, num_samples: int) -> list[dict[str, Media]]:
    sounds = [wav_bytes(spectrogram_to_sound(values, num_samples)) for values in (audio.original, audio.completed)]
    label = "sound made from the spectrogram"
    return [
        {label: Media(sounds[0], f"{title}: {label}, original")},
        {},
        {label: Media(sounds[1], f"{title}: {label}, reconstruction")},
    ]
