"""What the sound of a set of shards is like: mean and deviation of its log-mel values, kept in ``stats.json`` beside them.

:mod:`mavil.data.shards.measure` measures them; training finds them by itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from mavil.atomic_files import sync
from mavil.data.shards.index import ShardIndex
from mavil.structs import UserError

logger = logging.getLogger(__name__)

STATISTICS = "stats.json"
FORMAT_VERSION = 1
FrontEnd = tuple[str, int]
"""Kind of spectrogram and mel bins: what the numbers depend on, beside the sound."""


@dataclass(frozen=True)
class LogMel:
    """Mean and deviation of natural-log mel energies, and what they were measured on.

    Attributes:
        num_mel_bins, mean, std, spectrogram: as the settings of these names in ``audio``.
        num_clips: measured; silent ones are among them, because training sees them too.
        seconds: of sound in those clips.
        num_silent: of those clips, the ones whose samples are all zero.
        shortest_seconds, longest_seconds: the lengths of their sound, as far as it was measured.
        sample_rates: Hz of the sound in the files -> clips.
        left_out: cause -> clips that could not be measured.
        drawn, seed: the number of clips drawn at random, and the seed of the draw; ``drawn`` is ``None`` for all clips.
    """

    num_mel_bins: int
    mean: float
    std: float
    num_clips: int
    seconds: float
    num_silent: int
    shortest_seconds: float
    longest_seconds: float
    sample_rates: dict[str, int]
    left_out: dict[str, int]
    drawn: int | None = None
    seed: int = 0
    # Behind the others and with a default: files of the time when there was one kind do not have it.
    spectrogram: str = "kaldi_hann"

    @property
    def front_end(self) -> FrontEnd:
        """What it was measured with."""
        return self.spectrogram, self.num_mel_bins


@dataclass(frozen=True)
class Statistics:
    """What ``stats.json`` holds: one :class:`LogMel` per front end, for the shards of one index.

    ``shards_sha256`` is the checksum of the index's list of shards, each with its own checksum; ``label_counts`` are the
    index's.
    """

    shards_sha256: str
    label_counts: dict[str, int]
    log_mel: dict[FrontEnd, LogMel]


def read_statistics(folder: Path, index: ShardIndex) -> Statistics | None:
    """The statistics that lie in ``folder``, if there are any and they are of the shards in ``index``.

    Those of other shards are ignored with a warning.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / STATISTICS
    found = _read(path)
    if found and found.shards_sha256 != _checksum_of(index):
        logger.warning(
            "%s is ignored: it was measured on other shards than the ones there now; measure again with mavil shards stats",
            path,
        )
        return None
    return found


def write_measurement(index: ShardIndex, measured: LogMel) -> Statistics:
    """Write a measurement of some shards beside them, atomically; keep those of other front ends.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        before = _read(index.folder / STATISTICS)
    except UserError:
        before = None
    is_ours = before is not None and before.shards_sha256 == _checksum_of(index)
    kept = before.log_mel if before and is_ours else {}
    statistics = Statistics(_checksum_of(index), index.label_counts, {**kept, measured.front_end: measured})
    values = [asdict(statistics.log_mel[front_end]) for front_end in sorted(statistics.log_mel)]
    tree = {"format_version": FORMAT_VERSION, **asdict(statistics), "log_mel": values}
    aside = index.folder / f"{STATISTICS}.tmp"
    try:
        aside.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        sync(aside)
        os.replace(aside, index.folder / STATISTICS)
        sync(index.folder)
    except OSError as error:
        raise UserError(
            f"{index.folder / STATISTICS}: cannot be written ({error.strerror}); let the owner of the shards measure, or "
            "set audio.mean and audio.std in the recipe"
        ) from None
    return statistics


def _read(path: Path) -> Statistics | None:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {tree['format_version']} instead of {FORMAT_VERSION}")
        measured = [LogMel(**values) for values in tree["log_mel"]]
        return Statistics(tree["shards_sha256"], tree["label_counts"], {m.front_end: m for m in measured})
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); measure again with mavil shards stats {path.parent}") from None


def _checksum_of(index: ShardIndex) -> str:
    """Of the list of shards, each with its own checksum: other clips, another checksum."""
    shards = [asdict(shard) for shard in index.shards]
    return hashlib.sha256(json.dumps([shards, index.tables], sort_keys=True).encode()).hexdigest()
