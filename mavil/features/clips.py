"""Features of all clips of a set of shards, made once: the middle window of each clip, no augmentation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mavil.commands.inputs import loader_for, prepare_for
from mavil.config import Recipe
from mavil.data.labels import record_labels
from mavil.data.prepare import prepared
from mavil.data.stream.shard_set import ShardSet
from mavil.data.stream.storage import LocalFolder
from mavil.features import cached
from mavil.features.cached import Stored, Writer
from mavil.features.frozen import FrozenEncoders
from mavil.recipe import change_recipe

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ClipFeatures:
    """What is stored, whether it was there before, and how long making it took, s."""

    stored: Stored
    was_there: bool
    seconds: float


@dataclass(frozen=True)
class Described:
    """What the record of a clip says about it."""

    labels: tuple[str, ...]
    metadata: dict[str, str]


def features_of_shards(
    frozen: FrozenEncoders,
    recipe: Recipe,
    shards: str,
    opened: ShardSet,
    has_tokens: bool,
    root: Path,
    device: torch.device,
    progress: Progress,
) -> ClipFeatures:
    """Encode every clip once, or take what an earlier call stored.

    A clip with several modalities of which it lacks one is encoded with what it has. Labels play no part here.

    Args:
        frozen: on ``device``.
        recipe: how clips are decoded and prepared.
        shards: folder or address.
        opened: the same, opened before.
        has_tokens: also tokens, for attentive probes.
        root: folder of all stored features.
        device: where to encode.
        progress: told after every batch how many clips are done.

    Raises:
        UserError: too many clips cannot be used, or nothing can be written.
    """
    lacking = "keep" if len(frozen.modalities) > 1 else "skip"
    # One window per clip: what is averaged in evaluation is scores, and these are features.
    changes = (f"data.missing_modality={lacking}", "data.evaluation_windows=1")
    recipe = change_recipe(recipe, f"data.evaluation={shards}", *changes)
    identity = {**frozen.identity(), **_settings(recipe, frozen), "clips": clips_identity(opened)}
    for with_tokens in dict.fromkeys((has_tokens, True)):
        found = cached.find(root, {**identity, "tokens": with_tokens})
        if found is not None:
            return ClipFeatures(found, True, 0.0)
    begin = time.monotonic()
    num_bytes = opened.index.num_clips * frozen.bytes_per_clip(has_tokens)

    def fill(writer: Writer) -> None:
        _encode(frozen, recipe, has_tokens, device, progress, writer)

    stored = cached.make(root, {**identity, "tokens": has_tokens}, num_bytes, fill)
    return ClipFeatures(stored, False, time.monotonic() - begin)


def described(opened: ShardSet, label_field: str | None) -> dict[str, Described]:
    """Labels and metadata of every clip whose record can be read, by key; the media is not read."""
    found: dict[str, Described] = {}
    for text in opened.records():
        try:
            record = json.loads(text)
            metadata = {str(name): str(value) for name, value in (record.get("metadata") or {}).items()}
            found[str(record["key"])] = Described(record_labels(record, label_field), metadata)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # the loader counts such a clip as unusable
    return found


def clips_identity(opened: ShardSet) -> list[list[Any]]:
    """What changes when a clip does: every shard's name, size and checksum by the index and, in a folder, its time of change."""
    identity = []
    for shard in opened.index.shards:
        place: list[Any] = []
        if isinstance(opened.storage, LocalFolder):
            status = (opened.index.folder / shard.name).stat()
            place = [status.st_size, status.st_mtime_ns]
        identity.append([shard.name, shard.num_clips, shard.bytes, shard.sha256, *place])
    return identity


def _settings(recipe: Recipe, frozen: FrozenEncoders) -> dict[str, Any]:
    branches = {m: branch.model_dump(mode="json") for m in frozen.modalities if (branch := recipe.branch(m))}
    settings: dict[str, Any] = {"branches": branches, "backend": recipe.data.backend}
    if recipe.audio is not None and recipe.audio.batch_statistics != "never":
        # The front end looks at a whole batch, so who shares one with whom changes numbers.
        settings["batches"] = [recipe.trainer.device_batch, recipe.data.num_workers]
    return settings


def _encode(
    frozen: FrozenEncoders,
    recipe: Recipe,
    has_tokens: bool,
    device: torch.device,
    progress: Progress,
    writer: Writer,
) -> None:
    loader = loader_for(recipe, "evaluation", None, training=False, modalities=frozen.modalities)
    done = 0
    for inputs in prepared(loader, prepare_for(recipe, device, training=False), device):
        flags = {m: inputs.present(m) for m in frozen.modalities}
        everywhere = torch.ones(len(inputs), dtype=torch.bool)
        present = {str(m): everywhere if flag is None else flag.cpu() for m, flag in flags.items()}
        writer.add(inputs.keys, present, frozen(inputs, has_tokens))
        done += len(inputs)
        progress(done, loader.num_clips)
    writer.left_out.update(loader.skip_counts)
