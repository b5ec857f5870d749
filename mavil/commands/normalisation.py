"""The log-mel statistics a recipe is trained with: its own, those measured on its training shards, or AudioSet's.

Numbers of one front end mean nothing for another: the same clips have -4.3 in one kind of spectrogram and -7.1 in another. So
those measured count only for the recipe's own kind and number of mel bins; anything else is said, with what to do.

A recipe is completed before its run folder is written, so that the run's ``config.yaml`` has the numbers and evaluation,
retrieval and resuming use the same ones. Fine-tuning takes those of its own training shards too, not of the pre-training
run's: the practice of AST and Audio-MAE [source]. To keep the pre-training run's, set both from its ``config.yaml``.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mavil.config import AudioBranch, Recipe
from mavil.data.shards.index import ShardIndex
from mavil.data.shards.statistics import STATISTICS, FrontEnd, read_statistics
from mavil.data.stream.addresses import kind_of
from mavil.recipe import change_recipe, load_recipe
from mavil.structs import UserError

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
"""Of AudioSet, kaldi_hann with 128 mel bins [source Audio-MAE]; good enough for sound like AudioSet's."""
AUDIOSET_SLANEY_MEAN, AUDIOSET_SLANEY_STD = -7.1, 4.2
"""Of AudioSet, slaney with 80 mel bins [source M2D; MSM-MAE's README has -5.49 and 5.04 as a sample]."""
AUDIOSET: dict[str, tuple[float, float, FrontEnd]] = {
    "kaldi_hann": (AUDIOSET_MEAN, AUDIOSET_STD, ("kaldi_hann", 128)),
    "kaldi_povey": (AUDIOSET_MEAN, AUDIOSET_STD, ("kaldi_hann", 128)),
    "slaney": (AUDIOSET_SLANEY_MEAN, AUDIOSET_SLANEY_STD, ("slaney", 80)),
}
"""Kind of spectrogram -> mean, deviation, and the front end they were measured with. Nobody has published any for Povey
windows; on noise its mean is a tenth of a nat from that of Hann windows."""


class Completed(NamedTuple):
    """A recipe that has its log-mel statistics, if it needs any, and for people where they come from."""

    recipe: Recipe
    origin: str | None


def audio_statistics(recipe: Recipe) -> tuple[float, float]:
    """Mean and deviation of the log-mel values of a completed recipe.

    Raises:
        UserError: the recipe is not complete.
    """
    audio = recipe.audio
    if audio is None or audio.mean is None or audio.std is None:
        raise UserError(
            f"{recipe.name}: audio.mean and audio.std are not known here: set both; the config.yaml of a run has its own"
        )
    return audio.mean, audio.std


def complete_recipe(recipe: Recipe, shards: ShardIndex | None, run: Path | None = None) -> Completed:
    """The recipe with numbers for ``audio.mean`` and ``audio.std``.

    Args:
        recipe: numbers it has itself are kept; one that uses no sound stays as it is.
        shards: its training shards, or ``None`` where they cannot be looked at.
        run: the ``config.yaml`` of the run that goes on, whose numbers come before those of the shards.

    Raises:
        UserError: the statistics beside the shards, or the run's ``config.yaml``, cannot be read.
    """
    audio = recipe.audio
    if audio is None or "audio" not in recipe.modalities:
        return Completed(recipe, None)
    if audio.mean is not None:
        return Completed(recipe, "set in the recipe")
    own = (audio.spectrogram, audio.num_mel_bins)
    if run is not None and run.is_file():
        before = load_recipe(run).audio
        if before is not None and before.mean is not None and before.std is not None:
            return _with(recipe, before.mean, before.std, f"those the run began with ({run})")
    found = read_statistics(shards.folder, shards) if shards else None
    if found is not None and own in found.log_mel:
        measured = found.log_mel[own]
        return _with(
            recipe, measured.mean, measured.std, f"measured on {measured.num_clips} clips of {recipe.data.train}"
        )
    if shards is None:
        why = "the training shards are not there to look at"
    elif found is None:
        why = f"there is no {STATISTICS} of the training shards"
    else:
        there = ", ".join(_named(front_end) for front_end in sorted(found.log_mel))
        why = f"{STATISTICS} of the training shards has none for {_named(own)}, only for {there}"
    mean, std, of = AUDIOSET[audio.spectrogram]
    whose = "AudioSet's" if own == of else f"AudioSet's of {_named(of)} instead of {_named(own)}"
    return _with(recipe, mean, std, f"{whose}, for {why}; {_how_to_measure(recipe, audio)}")


def _named(front_end: FrontEnd) -> str:
    return f"{front_end[0]} with {front_end[1]} mel bins"


def _with(recipe: Recipe, mean: float, std: float, origin: str) -> Completed:
    return Completed(change_recipe(recipe, f"audio.mean={mean!r}", f"audio.std={std!r}"), origin)


def _how_to_measure(recipe: Recipe, audio: AudioBranch) -> str:
    train = recipe.data.train or "SHARDS"
    options = f"--mel-bins {audio.num_mel_bins}"
    if audio.spectrogram != "kaldi_hann":
        options = f"--spectrogram {audio.spectrogram} {options}"
    if kind_of(train) == "folder":
        return f"measure with: mavil shards stats {train} {options}"
    return f"measure where the shards lie, with: mavil shards stats FOLDER {options}"
