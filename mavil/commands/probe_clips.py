"""The clips of a probe: which may be learned from, which are evaluated, and what classes there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mavil.commands.inputs import remote_options
from mavil.config import Recipe
from mavil.data.labels import Vocabulary
from mavil.data.stream.shard_set import ShardSet, open_shards
from mavil.evaluation.frozen.labelled import Features, Labelled
from mavil.features.cached import Stored
from mavil.features.clips import Described, described
from mavil.structs import Modality, UserError

SHOWN = "+"
"""Between the modalities of ``audio+video``."""


@dataclass(frozen=True)
class Split:
    """One set of shards before anything is decoded: ``option`` is how people named it, ``clips`` what records say, by key."""

    option: str
    shards: str
    opened: ShardSet
    clips: dict[str, Described]

    def counts(self) -> Counter[str]:
        """Clips of each class."""
        return Counter(label for clip in self.clips.values() for label in clip.labels)

    def has_several_labels(self) -> bool:
        """Whether any clip has more than one."""
        return any(len(set(clip.labels)) > 1 for clip in self.clips.values())


@dataclass(frozen=True)
class Splits:
    """All that a probe looks at; without ``validation`` some of the training clips are held out."""

    train: Split
    validation: Split | None
    evaluation: Split
    vocabulary: Vocabulary

    def each(self) -> list[Split]:
        """Those there are."""
        return [split for split in (self.train, self.validation, self.evaluation) if split is not None]

    def unseen(self) -> dict[str, int]:
        """Evaluated clips of each class that no known clip has."""
        return {name: n for name, n in sorted(self.evaluation.counts().items()) if name not in self.vocabulary.classes}

    def shared_keys(self) -> int:
        """Evaluated clips that are called as a known one."""
        return sum(key in known.clips for key in self.evaluation.clips for known in self._known())

    def shared_groups(self, field: str) -> int:
        """Evaluated clips of a group, by a metadata field, that known clips are also of."""
        groups = {clip.metadata.get(field) for known in self._known() for clip in known.clips.values()}
        return sum(clip.metadata.get(field, self) in groups for clip in self.evaluation.clips.values())

    def _known(self) -> list[Split]:
        return [split for split in self.each() if split is not self.evaluation]


@dataclass(frozen=True)
class Usable:
    """The clips of a split that have classes and every modality: their ``keys``, sorted, and where they are stored.

    ``left_out`` counts the others by cause.
    """

    keys: list[str]
    rows: np.ndarray
    stored: Stored
    left_out: dict[str, int]

    def features(self, modalities: Sequence[Modality], has_tokens: bool) -> Features:
        """Of these modalities: pooled, or their tokens."""
        names = [f"{m}_tokens" if has_tokens else m for m in modalities]
        return Features([[self.stored.arrays[name]] for name in names], self.rows)


def open_splits(recipe: Recipe, train: str, validation: str | None, evaluation: str, label_field: str | None) -> Splits:
    """Read labels and metadata of all clips, and refuse what no probe can be made of.

    Raises:
        UserError: shards that are not there, the same shard in two splits, no labels, or one class only.
    """
    named = {"--train": train, "--validation": validation, "--evaluation": evaluation}
    splits = {option: _open(recipe, option, shards, label_field) for option, shards in named.items() if shards}
    _refuse_shared_shards(list(splits.values()))
    known = splits["--train"].counts()
    if len(known) < 2:
        raise UserError(
            f"--train {train}: all labelled clips are of one class ({next(iter(known))!r}), and a probe tells classes apart: "
            "give shards with two classes at least, or name another --label-field"
        )
    if "--validation" in splits:
        strange = sorted(set(splits["--validation"].counts()) - set(known))
        if strange:
            raise UserError(
                f"--validation {validation}: class {strange[0]!r} has no training clip ({len(strange)} such classes): a choice "
                "by clips that nobody could learn means nothing; give other shards, or let training clips be held out"
            )
    order = splits["--train"].opened.index.classes if label_field is None else ()
    classes = [name for name in order if name in known] or sorted(known)
    return Splits(splits["--train"], splits.get("--validation"), splits["--evaluation"], Vocabulary(tuple(classes)))


def usable(split: Split, stored: Stored, modalities: Sequence[Modality]) -> Usable:
    """The clips of a split that can be used, of those that were encoded.

    Raises:
        UserError: there are none.
    """
    lacks = {f"without_{m}": ~stored.present[m] for m in modalities}
    unlabelled = np.array([not (split.clips[k].labels if k in split.clips else ()) for k in stored.keys], dtype=bool)
    causes = {**lacks, "without_label": unlabelled}
    is_left = np.zeros(len(stored.keys), dtype=bool)
    left_out = dict(stored.left_out)
    for cause, flags in causes.items():
        left_out[cause] = int((flags & ~is_left).sum())
        is_left |= flags
    kept = np.flatnonzero(~is_left)
    left_out = {cause: number for cause, number in left_out.items() if number}
    if not len(kept):
        told = ", ".join(f"{cause} {number}" for cause, number in left_out.items())
        raise UserError(f"{split.option} {split.shards}: no clip can be used ({told}): name other shards")
    return Usable([stored.keys[i] for i in kept], stored.rows[kept], stored, left_out)


def targets_of(split: Split, keys: Sequence[str], classes: Sequence[str]) -> Tensor:
    """``[n, classes]`` bool."""
    numbers = {name: number for number, name in enumerate(classes)}
    targets = torch.zeros(len(keys), len(classes), dtype=torch.bool)
    for row, key in enumerate(keys):
        targets[row, [numbers[label] for label in split.clips[key].labels]] = True
    return targets


def labelled(
    split: Split,
    found: Usable,
    vocabulary: Vocabulary,
    modalities: Sequence[Modality],
    has_tokens: bool,
    group_field: str | None,
) -> Labelled:
    """Clips to learn from.

    Raises:
        UserError: a clip has no metadata field of that name.
    """
    groups = None if group_field is None else tuple(group_of(split.clips[key], key, group_field) for key in found.keys)
    return Labelled(found.features(modalities, has_tokens), targets_of(split, found.keys, vocabulary.classes), groups)


def group_of(clip: Described, key: str, field: str) -> str:
    """The group that a clip belongs to.

    Raises:
        UserError: it has none.
    """
    if field not in clip.metadata:
        known = ", ".join(sorted(clip.metadata)) or "none"
        raise UserError(
            f"--group-field {field}: training clip {key} has no such metadata field (fields: {known}): name one that every "
            "clip has"
        )
    return clip.metadata[field]


def padded_scores(scores: Tensor, num_unseen: int) -> Tensor:
    """``[n, C]`` to ``[n, C + unseen]``: a class that no probe knows comes behind all others in every clip."""
    lowest = scores.min() - 1.0
    return torch.cat([scores, lowest.expand(len(scores), num_unseen)], dim=1)


def _open(recipe: Recipe, option: str, shards: str, label_field: str | None) -> Split:
    opened = open_shards(shards, remote_options(recipe))
    clips = described(opened, label_field)
    if not any(clip.labels for clip in clips.values()):
        raise UserError(f"{option} {shards}: {_why_unlabelled(clips, label_field)}")
    return Split(option, shards, opened, clips)


def _why_unlabelled(clips: Mapping[str, Described], label_field: str | None) -> str:
    fields = sorted({name for clip in clips.values() for name in clip.metadata})
    told = f"(fields: {', '.join(fields) or 'none'})"
    if label_field is not None:
        return f"no clip has a metadata field {label_field!r} {told}: set --label-field to one of them"
    return f"no clip has a label: name a metadata field with --label-field {told}, or pack the clips with labels"


def _refuse_shared_shards(splits: Sequence[Split]) -> None:
    seen: dict[str, Split] = {}
    for split in splits:
        for shard in split.opened.index.shards:
            other = seen.setdefault(shard.sha256, split)
            if other is not split:
                raise UserError(
                    f"{split.option} {split.shards}: shard {shard.name} is also in {other.option} {other.shards}: what a probe "
                    "learned or was chosen on must not be evaluated; name different shards"
                )
