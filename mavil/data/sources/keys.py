"""Names of clips in shards: plain, the same on every machine, and each its own."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mavil.structs import Clip


def plain_key(relative_path: str) -> str:
    """A file's name without dots and slashes, which would split it in a WebDataset shard."""
    stem, dot, ending = relative_path.rpartition(".")
    name = stem if dot and "/" not in ending else relative_path
    return re.sub(r"[^A-Za-z0-9_-]", "_", name.replace("/", "__"))


def segment_key(recording: str, start: float, end: float | None = None) -> str:
    """``ID_000030`` as VGGSound names a segment by its start second, or ``ID_000030_000040``; milliseconds follow a ``-``."""
    return f"{recording}_{_padded(start)}" if end is None else f"{recording}_{_padded(start)}_{_padded(end)}"


def with_own_keys(clips: Sequence[Clip], names: Sequence[str]) -> list[Clip]:
    """Tell clips apart whose plain keys are equal, by a digest of what makes them different: their names and spans."""
    if len({clip.key for clip in clips}) == len(clips):
        return list(clips)
    counts = Counter(clip.key for clip in clips)
    return [
        clip if counts[clip.key] == 1 else _with_digest(clip, name) for clip, name in zip(clips, names, strict=True)
    ]


def _padded(seconds: float) -> str:
    if seconds == int(seconds):
        return f"{int(seconds):06d}"
    whole, rest = divmod(round(1000 * seconds), 1000)
    return f"{whole:06d}-{rest:03d}" if rest else f"{whole:06d}"


def _with_digest(clip: Clip, name: str) -> Clip:
    identity = f"{name}\n{clip.start_seconds}\n{clip.end_seconds}"
    return replace(clip, key=f"{clip.key}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}")
