"""From a recipe to what a model is fed: shards, classes, the loader of a split, the front ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mavil.commands.normalisation import audio_statistics
from mavil.commands.packing import shards_at
from mavil.commands.schedule import device_batch
from mavil.config import ClassifyTask, Recipe, Sampling, VideoBranch
from mavil.data.frames import FrameFrontEnd
from mavil.data.labels import Vocabulary, count_field_values, refuse_look_alikes
from mavil.data.loading.loader import Loader, build_loader
from mavil.data.loading.samples import BYTES_PER_GIB, Cache, ClipDecoder
from mavil.data.loading.skips import SkipPolicy
from mavil.data.media import FrameWindow
from mavil.data.prepare import Prepare, prepared
from mavil.data.spectrogram import AudioFrontEnd
from mavil.data.stream.attempts import RemoteOptions
from mavil.data.stream.shard_set import ShardSet, open_shards
from mavil.data.stream.weights import Draws
from mavil.engine.process.runtime import choose_device
from mavil.structs import MODALITIES, Inputs, Modality, UserError


def shards_of(recipe: Recipe, split: str) -> str:
    """The folder or address of the shards a recipe trains on (``train``) or is evaluated on (``evaluation``).

    A list or a folder of media files is packed first, where that was not done before.

    Raises:
        UserError: the recipe names none, or they cannot be packed.
    """
    location: str | None = getattr(recipe.data, split)
    if location is None:
        raise UserError(
            f"{recipe.name}: data.{split} is not set: name a folder of shards, e.g. data.{split}=shards/mine, or a CSV or a "
            "folder of media files"
        )
    return shards_at(location, recipe.data.max_skip_ratio)


def vocabulary_for(recipe: Recipe) -> Vocabulary | None:
    """The classes of the training shards, or ``None`` where the task needs no labels."""
    if not isinstance(recipe.task, ClassifyTask):
        return None
    shards = open_split(recipe, "train")
    field = recipe.task.label_field
    counts = count_field_values(shards.records(), field) if field else shards.index.label_counts
    if recipe.task.loss == "cross_entropy" and sum(counts.values()) > shards.index.num_clips:
        raise UserError(
            f"{shards.storage.location}: some clips have several labels, and task.loss=cross_entropy takes one per clip: "
            "set task.loss=binary_cross_entropy"
        )
    classes = tuple(counts) if field else shards.index.classes
    refuse_look_alikes(classes, shards.storage.location)
    return Vocabulary(classes)


def open_split(recipe: Recipe, split: str) -> ShardSet:
    """The shards of one split, wherever they lie.

    Raises:
        UserError: the recipe names none, or they are not there.
    """
    return open_shards(shards_of(recipe, split), remote_options(recipe))


def remote_options(recipe: Recipe) -> RemoteOptions:
    """How shards at an address are read."""
    return RemoteOptions(**recipe.data.remote.model_dump())


def loader_for(
    recipe: Recipe,
    split: str,
    vocabulary: Vocabulary | None,
    *,
    training: bool,
    places: Sequence[dict[str, Any]] | None = None,
    modalities: Sequence[Modality] | None = None,
    share: tuple[int, int] | None = None,
) -> Loader:
    """The loader of one split, endless and shuffled in training, else every clip once.

    ``modalities``: the only ones of the recipe that its clips are to show; the others are then absent in every clip.
    ``share``: rank and number of ranks to load for; those of the process group by default.
    """
    data = recipe.data
    rank, ranks = share or (None, None)
    return build_loader(
        shards_of(recipe, split),
        _decoder_for(recipe, vocabulary, training, recipe.modalities if modalities is None else modalities),
        # Evaluation may have any number of ranks, one among them, and never takes more than a device is said to bear.
        batch_size=device_batch(recipe) if training else recipe.trainer.device_batch,
        num_workers=data.num_workers,
        shuffle_buffer=data.shuffle_buffer,
        views=data.views_per_clip,
        draws=_draws(data.sampling),
        remote=remote_options(recipe),
        skips=SkipPolicy(data.max_skip_ratio, stops_at_first=data.unusable == "stop"),
        clip_seconds_limit=data.clip_seconds_limit,
        places=places,
        pin_memory=choose_device(recipe.trainer.device).type == "cuda",
        rank=rank,
        world_size=ranks,
    )


def _decoder_for(
    recipe: Recipe, vocabulary: Vocabulary | None, training: bool, shown: Sequence[Modality]
) -> ClipDecoder:
    audio, video = (recipe.branch(m) if m in recipe.modalities else None for m in MODALITIES)
    return ClipDecoder(
        audio_seconds=audio.seconds if audio else None,
        frame_window=FrameWindow(video.num_frames, video.frames_per_second, video.decode_short_side)
        if isinstance(video, VideoBranch)
        else None,
        seed=recipe.seed,
        training=training,
        backend=recipe.data.backend,
        vocabulary=vocabulary,
        label_field=recipe.task.label_field if isinstance(recipe.task, ClassifyTask) else None,
        cache=Cache(int(recipe.data.cache_gib * BYTES_PER_GIB)),
        keeps_incomplete=recipe.data.missing_modality == "keep",
        windows=recipe.data.evaluation_windows,
        hidden=tuple(m for m in recipe.modalities if m not in shown),
    )


def _draws(sampling: Sampling | None) -> Draws | None:
    return None if sampling is None else Draws(**sampling.model_dump())


def prepare_for(recipe: Recipe, device: torch.device, *, training: bool) -> Prepare:
    """The front ends of the modalities a recipe uses, on ``device``; ``training`` adds augmentation."""
    front_ends: dict[str, Any] = {"audio": None, "video": None}
    if "audio" in recipe.modalities and (audio := recipe.audio):
        mean, std = audio_statistics(recipe)
        front_ends["audio"] = AudioFrontEnd(
            audio.num_steps,
            audio.num_mel_bins,
            mean,
            std,
            spectrogram=audio.spectrogram,
            std_factor=audio.std_factor,
            batch_statistics=audio.batch_statistics,
            **audio.augment.model_dump(),
        )
    if "video" in recipe.modalities and (video := recipe.video):
        front_ends["video"] = FrameFrontEnd(
            video.size, video.mean, video.std, video.augment.crop_scale, video.augment.flip
        )
    task = recipe.task if isinstance(recipe.task, ClassifyTask) else ClassifyTask()
    shares = task.mixup.probability, task.mixup.beta, task.cutmix.probability, task.cutmix.beta
    return Prepare(front_ends["audio"], front_ends["video"], training, *shares).to(device)


def evaluation_inputs(
    recipe: Recipe, split: str, vocabulary: Vocabulary | None, device: torch.device
) -> Iterator[Inputs]:
    """Every clip of a split exactly once over all ranks, without augmentation, on ``device``."""
    loader = loader_for(recipe, split, vocabulary, training=False)
    return prepared(loader, prepare_for(recipe, device, training=False), device)
