"""The demo's training set and gallery: synthetic clips, a person's own, or shards that exist already."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mavil.config import ClassifyTask, Recipe
from mavil.data.shards.index import ShardIndex, read_index
from mavil.data.shards.measure import measure_statistics
from mavil.data.shards.pack import make_shards
from mavil.data.shards.statistics import read_statistics
from mavil.data.sources.read import read_source
from mavil.data.synthetic import make_synthetic_shards
from mavil.structs import Clip, UserError

NUM_TRAIN = 1024
NUM_GALLERY = 200
"""Synthetic clips. With 200 candidates chance at rank 1 is 0.5 %, and knowing only the class (8) gives 4 %."""
CLIPS_PER_SHARD = 128
GALLERY_SHARE = 0.2
"""Of a person's own clips, held out class by class."""
FEWEST_OWN = 10


@dataclass(frozen=True)
class ClipSets:
    """Two folders of shards that share no clip; ``seed`` of ``None`` leaves the recipes' own."""

    train: Path
    evaluation: Path
    source: str
    seed: int | None

    @property
    def is_synthetic(self) -> bool:
        """Only these clips have known difficulty, so only they are judged."""
        return self.source == "synthetic"

    @property
    def num_train(self) -> int:
        """Clips to train on."""
        return self._indices()[0].num_clips

    def describe(self) -> dict[str, Any]:
        """For the summary: where the clips come from and how many there are."""
        train, gallery = self._indices()
        classes = sorted(train.label_counts)
        return {"source": self.source, "train": train.num_clips, "gallery": gallery.num_clips, "classes": len(classes)}

    def why_not_classify(self, recipe: Recipe) -> str | None:
        """Why these clips cannot be classified by the recipe; ``None`` when they can."""
        if isinstance(recipe.task, ClassifyTask) and recipe.task.label_field:
            return None
        train, gallery = self._indices()
        if len(train.label_counts) < 2:
            return f"the clips have {len(train.label_counts)} classes; put them into one sub-folder per class"
        unknown = sorted(set(gallery.label_counts) - set(train.label_counts))
        if unknown:
            return f"class {unknown[0]} has too few clips for a training set and a gallery"
        if sum(train.label_counts.values()) > train.num_clips:
            return "some clips have several labels, which the demo's recipes do not train on"
        return None

    def _indices(self) -> tuple[ShardIndex, ShardIndex]:
        return read_index(self.train), read_index(self.evaluation)


def make_clip_sets(
    out: Path,
    clips: Path | None,
    train_shards: Path | None,
    evaluation_shards: Path | None,
    seed: int | None,
    make_room: Callable[[], None],
) -> ClipSets:
    """Find or make the two sets; ``make_room`` is called once everything the person named has been found.

    Raises:
        UserError: options that exclude each other, missing or too few clips.
    """
    if (train_shards is None) != (evaluation_shards is None) or (clips and train_shards):
        raise UserError("give either --clips, or both --train-shards and --evaluation-shards, or none of them")
    if train_shards and evaluation_shards:
        read_index(train_shards), read_index(evaluation_shards)
        make_room()
        return ClipSets(train_shards, evaluation_shards, f"{train_shards}, {evaluation_shards}", seed)
    train, gallery = out / "shards" / "train", out / "shards" / "gallery"
    if clips is None:
        make_room()
        make_synthetic_shards(NUM_TRAIN, train, seed=seed or 0, clips_per_shard=CLIPS_PER_SHARD)
        make_synthetic_shards(NUM_GALLERY, gallery, seed=seed or 0, first=NUM_TRAIN, clips_per_shard=CLIPS_PER_SHARD)
        return ClipSets(train, gallery, "synthetic", seed)
    found = list(read_source(clips).clips)
    if len(found) < FEWEST_OWN:
        raise UserError(
            f"{clips}: {len(found)} clips are too few to train on and to retrieve among; give at least {FEWEST_OWN}"
        )
    kept, held_out = split(found, seed or 0)
    make_room()
    make_shards(kept, train, seed=seed or 0, clips_per_shard=CLIPS_PER_SHARD)
    make_shards(held_out, gallery, seed=seed or 0, clips_per_shard=CLIPS_PER_SHARD)
    return ClipSets(train, gallery, str(clips), seed)


def measure_sound(train: Path, recipes: Iterable[Recipe]) -> None:
    """Measure the log-mel statistics that recipes leave open, unless they lie beside the training shards already.

    Raises:
        UserError: as :func:`mavil.data.shards.measure.measure_statistics`.
    """
    open_ones = [r.audio for r in recipes if r.audio and r.audio.mean is None and "audio" in r.modalities]
    wanted = {(audio.spectrogram, audio.num_mel_bins) for audio in open_ones}
    found = read_statistics(train, read_index(train))
    for spectrogram, num_mel_bins in sorted(wanted.difference(found.log_mel if found else ())):
        measure_statistics(train, num_mel_bins=num_mel_bins, spectrogram=spectrogram)


def split(clips: list[Clip], seed: int) -> tuple[list[Clip], list[Clip]]:
    """Hold out :data:`GALLERY_SHARE` of every class, at random but the same for one seed; small classes only train."""
    classes: dict[tuple[str, ...], list[Clip]] = {}
    for clip in clips:
        classes.setdefault(clip.labels, []).append(clip)
    kept: list[Clip] = []
    held_out: list[Clip] = []
    for members in classes.values():
        shuffled = random.Random(seed).sample(members, len(members))
        num_held_out = int(GALLERY_SHARE * len(members))
        held_out += shuffled[:num_held_out]
        kept += shuffled[num_held_out:]
    if len(held_out) < 2:  # many tiny classes: take any clips
        shuffled = random.Random(seed).sample(clips, len(clips))
        num_held_out = max(2, int(GALLERY_SHARE * len(clips)))
        held_out, kept = shuffled[:num_held_out], shuffled[num_held_out:]
    return kept, held_out
