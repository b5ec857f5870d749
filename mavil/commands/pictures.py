"""``mavil pictures RUN SHARDS --out DIR``: what a pre-trained model fills in, how far it is off, and where it looks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from mavil.commands.assemble import CONFIG_FILE, load_masked
from mavil.commands.inputs import loader_for, prepare_for
from mavil.commands.normalisation import audio_statistics
from mavil.commands.picture_page import Shown, write_pictures
from mavil.commands.predicting import ViewOf, audio_filled, predict
from mavil.commands.starting import grids_of
from mavil.config import PretrainTask, Recipe
from mavil.data.spectrogram import num_spectrogram_steps
from mavil.engine.process.runtime import choose_device
from mavil.models.masked import MaskedLearner
from mavil.models.tokens import patchify
from mavil.recipe import change_recipe
from mavil.report.attention import last_attention, maps_of
from mavil.report.figures import STEP_SECONDS, places_of
from mavil.report.reconstruct import Reconstruction, denormalise_spectrogram
from mavil.structs import Inputs, MaskedView, TokenGrid, UserError


def view_of(is_masked: Tensor) -> ViewOf:
    """The same tokens hidden in every clip, ``[N]`` bool; visible ones stay in order."""
    order = is_masked.byte().argsort(stable=True)
    num_visible = int((~is_masked).sum())

    def view(num_clips: int) -> MaskedView:
        ids = order.expand(num_clips, -1)
        return MaskedView(ids[:, :num_visible], ids[:, num_visible:], ids.argsort(dim=1))

    return view


def read_mask(path: Path, grid: TokenGrid) -> Tensor:
    """``[N]`` bool, in the grid's order, from a NumPy file: time steps x mel bands of the token grid, 1 where hidden.

    Raises:
        UserError: no such file, another shape, other values than 0 and 1, or nothing hidden or visible.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--mask {path}: cannot be read ({error}); give a .npy file of an array of 0 and 1") from None
    expected = grid.cells if grid.time_axis == 0 else grid.cells[::-1]
    if not isinstance(values, np.ndarray) or values.shape != expected:
        found = list(getattr(values, "shape", "?"))
        raise UserError(
            f"--mask {path}: its shape is {found}, but this model's token grid has {expected[0]} time steps and "
            f"{expected[1]} mel bands: make it {list(expected)}"
        )
    if not np.isin(values, (0, 1)).all() or values.all() or not values.any():
        raise UserError(f"--mask {path}: it must hold 0 (visible) and 1 (hidden), and at least one of each")
    flags = torch.from_numpy(values.astype(bool))
    return (flags if grid.time_axis == 0 else flags.T).reshape(-1)


def shown_clips(
    model: MaskedLearner,
    recipe: Recipe,
    num_clips: int,
    places: Sequence[tuple[float, int]],
    audio_view: ViewOf | None,
) -> list[Shown]:
    """The first clips with sound of ``data.evaluation``, by a model that is on its device and in evaluation mode.

    ``places`` (s, mel bin) are what the attention is asked of; none: the patch of each clip that stands out most from its band.
    """
    assert isinstance(recipe.task, PretrainTask)
    shown: list[Shown] = []
    for inputs, lengths in _batches(recipe, next(model.parameters()).device):
        has_patches = recipe.task.teacher is None and recipe.task.reconstruction is not None
        predicted = predict(model, recipe, inputs, audio_view) if has_patches else None
        for row, key in enumerate(inputs.keys):
            if lengths[row] == 0:
                continue
            filled = audio_filled(model, recipe, inputs, predicted, row) if predicted else None
            shown.append(_shown(model, recipe, key, inputs.of("audio")[row : row + 1], lengths[row], filled, places))
            if len(shown) == num_clips:
                return shown
    return shown


def _batches(recipe: Recipe, device: torch.device) -> Iterator[tuple[Inputs, list[int]]]:
    """Inputs, and how many steps of each clip are not padding; 0 without sound."""
    assert recipe.audio is not None
    prepare = prepare_for(recipe, device, training=False)
    loader = loader_for(recipe, "evaluation", None, training=False)
    try:
        for batch in loader:
            assert batch.waveform_lengths is not None
            steps = num_spectrogram_steps(batch.waveform_lengths, recipe.audio.spectrogram)
            steps = steps.clamp(max=recipe.audio.num_steps)
            present = batch.audio_present
            yield prepare(batch), (steps if present is None else steps * present).int().tolist()
    finally:
        loader.close()


def _shown(
    model: MaskedLearner,
    recipe: Recipe,
    key: str,
    audio: Tensor,
    num_steps: int,
    filled: Reconstruction | None,
    places: Sequence[tuple[float, int]],
) -> Shown:
    assert recipe.audio is not None
    grid, encoder = model.grid("audio"), model.encoder("audio")
    log_mel = denormalise_spectrogram(audio[0, 0].float().cpu(), *audio_statistics(recipe), recipe.audio.std_factor)
    patches = patchify(audio, grid)
    tokens = [token_at(grid, *place) for place in places] or [
        _most_salient(patches[0].mean(dim=-1).cpu(), grid, num_steps)
    ]
    named = [(_words(token, grid), token) for token in tokens]
    maps = maps_of(last_attention(encoder, patches)[0], encoder.num_prefix, named)
    return Shown(key, log_mel[:num_steps], _ending(filled, num_steps), maps)


def token_at(grid: TokenGrid, seconds: float, mel_bin: int) -> int:
    """The token whose patch holds a place of the spectrogram; where patches overlap, the first.

    Raises:
        UserError: no patch holds it.
    """
    step = int(seconds / STEP_SECONDS + 1e-6)
    for token in range(grid.num_tokens):
        steps, bins = places_of(token, grid)
        if step in steps and mel_bin in bins:
            return token
    last_steps, last_bins = places_of(grid.num_tokens - 1, grid)
    raise UserError(
        f"--at {seconds:g},{mel_bin}: no patch is there: choose from 0 to below {last_steps.stop * STEP_SECONDS:g} s and mel "
        f"bins from 0 to {last_bins.stop - 1}"
    )


def _most_salient(levels: Tensor, grid: TokenGrid, num_steps: int) -> int:
    """The token whose mean level, of all ``[N]``, is highest above its mel band's, among those before the clip's end.

    Loudness itself would nearly always choose the band where noise is loudest [our choice].
    """
    is_sound = torch.tensor([places_of(token, grid)[0].start < num_steps for token in range(grid.num_tokens)])
    by_cell, is_sound = levels.reshape(grid.cells), is_sound.reshape(grid.cells)
    counts = is_sound.sum(dim=grid.time_axis, keepdim=True).clamp(min=1)
    band = (by_cell * is_sound).sum(dim=grid.time_axis, keepdim=True) / counts
    return int((by_cell - band).masked_fill(~is_sound, -torch.inf).argmax())


def _words(token: int, grid: TokenGrid) -> str:
    steps, bins = places_of(token, grid)
    span = f"{steps.start * STEP_SECONDS:.2f} to {steps.stop * STEP_SECONDS:.2f} s"
    return f"patch at {span}, mel bins {bins.start} to {bins.stop - 1}"


def _ending(filled: Reconstruction | None, num_steps: int) -> Reconstruction | None:
    if filled is None:
        return None
    return Reconstruction(filled.original[:num_steps], filled.completed[:num_steps], filled.is_masked[:num_steps])


def pictures(
    run: Annotated[Path, typer.Argument(help="pre-training run folder")],
    shards: Annotated[str, typer.Argument(help="shards with the clips to show")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to change")] = None,
    out: Annotated[Path, typer.Option(help="folder for the pictures and the page")] = Path("pictures"),
    clips: Annotated[int, typer.Option(min=1, help="how many clips are shown")] = 3,
    mask_ratio: Annotated[float | None, typer.Option(help="share of tokens to hide; default: the run's")] = None,
    masking: Annotated[
        str | None, typer.Option(help="how they are chosen: random, structured, chunks, spans; default: the run's")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="hide these instead: .npy, time steps x mel bands of tokens, 1 is hidden")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="S,BIN", help="ask the patch there where it looks; repeatable; default: the one that stands out"
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="which one: newest, best or a step")] = "newest",
) -> None:
    """Draw reconstructions, error maps and attention of a run's audio model as PNG files and one page."""
    if not (run / CONFIG_FILE).is_file():
        raise UserError(f"{run} is not a run folder (no {CONFIG_FILE}): name a pre-training run")
    model, recipe = load_masked(run, checkpoint)
    if recipe.audio is None:
        raise UserError(f"{run} has no audio branch: name a run that hears")
    # The kind first: behind it stand the settings of that kind.
    recipe = _changed(recipe, shards, clips, [*_masking_changes(mask_ratio, masking), *(changes or [])])
    grid = model.grid("audio")
    view = None if mask is None else view_of(read_mask(mask, grid).to(choose_device(recipe.trainer.device)))
    places = [_place(text) for text in at or []]
    for place in places:
        token_at(grid, *place)
    shown = shown_clips(model.to(choose_device(recipe.trainer.device)), recipe, clips, places, view)
    if not shown:
        raise UserError(f"{shards}: none of its clips has sound; name other shards")
    where = write_pictures(out, shown, run, recipe, grid)
    Console().print(f"{len(shown)} clips: {where}", highlight=False, soft_wrap=True)


def _masking_changes(mask_ratio: float | None, masking: str | None) -> list[str]:
    if masking == "structured" and mask_ratio is not None:
        raise UserError(
            f"--mask-ratio {mask_ratio} does not go with --masking structured: set audio.masking.time_ratio=0.5 and "
            "audio.masking.mel_ratio=0.2 instead, behind the shards"
        )
    changes = [] if mask_ratio is None else [f"audio.mask_ratio={mask_ratio}"]
    return changes if masking is None else [f"audio.masking={{kind: {masking}}}", *changes]


def _changed(recipe: Recipe, shards: str, clips: int, changes: Sequence[str]) -> Recipe:
    """The run's recipe with the changes; one that asks for statistics of a batch gets those of the run, which are known."""
    own = [f"data.evaluation={shards}", f"trainer.device_batch={clips}", "data.evaluation_windows=1"]
    assert recipe.audio is not None
    if recipe.audio.batch_statistics == "evaluation":
        own.append("audio.batch_statistics=never")
    changed = change_recipe(recipe, *own, *changes)
    if grids_of(changed) != grids_of(recipe):
        raise UserError(
            f"{' '.join(changes)}: that cuts the input otherwise than the model was trained with; leave sizes as they are"
        )
    return changed


def _place(text: str) -> tuple[float, int]:
    match = re.fullmatch(r"(\d+(?:\.\d+)?),(\d+)", text)
    if match is None:
        raise UserError(f"--at {text}: give seconds and mel bin, e.g. --at 1.5,40")
    return float(match[1]), int(match[2])
