"""The first look at every clip: can it be opened, is all of it there, is it silent, has it been seen before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from mavil.data.deadline import HARD_LIMIT_FACTOR, TimeLimitExceeded, time_limit
from mavil.data.isolation import map_isolated
from mavil.data.media.containers import DecodeError, open_media, probe, start_of, video_stream
from mavil.data.media.encoders import WHOLE_FILE_SECONDS, read_file, read_image, sound_of_span
from mavil.data.shards.reading import Source, Target, locate
from mavil.structs import MODALITIES, SAMPLE_RATE, Clip, Modality

Depth = Literal["all", "quick", "none"]
JOURNAL = "verdicts.jsonl"
MIN_SECONDS = 0.1
"""A shorter clip is rejected as ``too_short``: it has fewer spectrogram steps than a patch [our choice]."""
SILENCE_DBFS = -60.0
"""A clip none of whose samples is louder is silent [our choice]: dither and the noise of codecs lie below."""
QUICK_SECONDS = 1.0
FAILURES = {
    "timeout": "decoding it took longer than --seconds-per-clip allows",
    "killed": "decoding it ended the process: a crash, a hang, or no memory left",
}
"""Causes that no decoder reports, with their detail."""
# An index at the end of a file and its header disagree a little in good files.
_MISSING_SECONDS = 1.0
# Only these containers state their length; for others FFmpeg guesses it from the bit rate.
_STATE_LENGTH = ("mov", "matroska")


@dataclass(frozen=True)
class Rules:
    """What a clip must be.

    Attributes:
        require: modalities it may not lack.
        min_seconds: shorter ones are ``too_short``.
        reject_silent: see :data:`SILENCE_DBFS`; for this all of the sound is decoded.
        depth: ``all`` of every track is decoded, or (``quick``) one frame and a second of sound; ``none`` takes every clip
            as good until it is written.
    """

    require: tuple[Modality, ...] = MODALITIES
    min_seconds: float = MIN_SECONDS
    reject_silent: bool = False
    depth: Depth = "all"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the first look at clip ``number`` of a list found; an empty ``cause`` is a usable clip.

    ``digest`` is equal for equal content. ``is_silent`` is ``None`` where not all of the sound was decoded.
    """

    number: int
    cause: str
    detail: str = ""
    digest: str = ""
    is_silent: bool | None = None


def screen_clips(
    clips: Sequence[Clip],
    journal: Path,
    *,
    rules: Rules,
    target: Target,
    read: Callable[[Clip], bytes] | None,
    workers: int,
    seconds_per_clip: float,
    show_progress: bool,
) -> list[Verdict]:
    """A verdict on each clip, in their order; those that the journal holds already are not looked at again.

    ``read`` replaces the reading of files (synthetic clips). Everything else as in
    :class:`mavil.data.shards.plan.PackOptions`.
    """
    verdicts = read_journal(journal)
    waiting = [(number, clip) for number, clip in enumerate(clips) if number not in verdicts]
    if waiting:
        with _open_journal(journal) as file:
            outcomes = map_isolated(
                partial(inspect_clip, rules=rules, target=target, read=read, seconds=seconds_per_clip),
                waiting,
                workers=workers,
                seconds_per_item=HARD_LIMIT_FACTOR * seconds_per_clip,
                description="looking at clips",
                show_progress=show_progress,
            )
            for outcome in outcomes:
                failure = outcome.failure or ""
                verdict = outcome.value or Verdict(outcome.item[0], failure, FAILURES[failure])
                file.write(json.dumps(astuple(verdict), ensure_ascii=False) + "\n")
                file.flush()
                verdicts[verdict.number] = verdict
    return [verdicts[number] for number in range(len(clips))]


def read_journal(journal: Path) -> dict[int, Verdict]:
    """The verdicts of an earlier run, by clip; a last line that was cut off by a kill does not count."""
    if not journal.exists():
        return {}
    lines = journal.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    verdicts = [Verdict(*json.loads(line)) for line in lines if line.startswith("[") and line.endswith("]")]
    return {verdict.number: verdict for verdict in verdicts}


def mark_duplicates(clips: Sequence[Clip], verdicts: Sequence[Verdict]) -> Iterator[Verdict]:
    """The same verdicts; of usable clips with equal content only the first stays usable."""
    first: dict[str, str] = {}
    for clip, verdict in zip(clips, verdicts, strict=True):
        if verdict.cause or not verdict.digest or first.setdefault(verdict.digest, clip.key) == clip.key:
            yield verdict
        else:
            yield Verdict(verdict.number, "duplicate", f"the same content as {first[verdict.digest]}", verdict.digest)


def inspect_clip(
    item: tuple[int, Clip], rules: Rules, target: Target, read: Callable[[Clip], bytes] | None, seconds: float
) -> Verdict:
    """Open a clip and decode as much as ``rules.depth`` says, in so many seconds at most."""
    number, clip = item
    try:
        with time_limit(seconds, ends_process=False):  # whoever calls ends the process where this does not suffice
            source = Source(read(clip), None, None) if read else locate(clip, target)
            return Verdict(number, "", "", source.digest(), inspect_source(source, rules))
    except DecodeError as error:
        return Verdict(number, error.cause, error.detail)
    except TimeLimitExceeded:
        return Verdict(number, "timeout", FAILURES["timeout"])


def inspect_source(source: Source, rules: Rules) -> bool | None:
    """Whether a clip is silent (``None``: not known), once as much as ``rules.depth`` says is decoded.

    Raises:
        DecodeError: it cannot be used.
    """
    start, end = source.span
    decodes_all = rules.depth == "all"
    hears_all = decodes_all or rules.reject_silent
    waveform = sound_of_span(source.media, start, end if hears_all else min(end, start + QUICK_SECONDS))
    sound_end = None if waveform is None else start + len(waveform) / SAMPLE_RATE
    frames_end = (
        _end_of_stills(source, sound_end) if source.stills else _end_of_frames(source.media, start, end, decodes_all)
    )
    if "audio" in rules.require and sound_end is None:
        raise DecodeError("no_audio", "it has no sound")
    if "video" in rules.require and frames_end is None:
        raise DecodeError("no_video", "it has no picture")
    if sound_end is None and frames_end is None:
        raise DecodeError("too_short" if start else "empty", f"nothing is to be heard or seen from {start:g} s on")
    if isinstance(source.media, bytes) and end == WHOLE_FILE_SECONDS and not source.stills:
        _check_whole(source.media, rules.min_seconds)
    elif decodes_all:
        _check_length(min(end, max(sound_end or 0.0, frames_end or 0.0)) - start, rules.min_seconds)
    if waveform is None:
        return False  # there is no sound that could be silent
    if not hears_all:
        return None
    is_silent = bool(np.abs(waveform).max() < 10 ** (SILENCE_DBFS / 20))
    if is_silent and rules.reject_silent:
        raise DecodeError("silent", f"no sample is louder than {SILENCE_DBFS:g} dBFS")
    return is_silent


def _end_of_frames(media: bytes | str, start: float, end: float, decodes_all: bool) -> float | None:
    """Where the last frame decoded ends, s of the file; ``None`` where there is no picture in the span."""
    with open_media(media) as container:
        try:
            stream = video_stream(container)
        except DecodeError as error:
            if error.cause != "no_video":
                raise
            return None
        file_start, last = start_of(container), None
        if start:
            container.seek(int((file_start + start) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time is not None and frame.time - file_start >= end:
                break
            last = frame
            if not decodes_all:
                break
        if last is None:
            return None
        found = (last.time or 0.0) + float(last.duration * last.time_base) - file_start
        return found if found > start or not decodes_all else None


def _end_of_stills(source: Source, sound_end: float | None) -> float | None:
    for still in source.stills:
        read_image(read_file(still))
    return sound_end


def _check_whole(media: bytes, min_seconds: float) -> None:
    """Whether all is there that the file says it has: a file cut off between two packets decodes without a complaint."""
    seconds = probe(media).duration_seconds
    _check_length(seconds, min_seconds)
    with open_media(media) as container:
        stated = (container.duration or 0) / 1e6 if container.format.name.startswith(_STATE_LENGTH) else 0.0
    if stated > seconds + _MISSING_SECONDS:
        raise DecodeError("undecodable", f"it ends after {seconds:g} s, though it says that it has {stated:g} s")


def _check_length(seconds: float, min_seconds: float) -> None:
    if seconds < min_seconds:
        raise DecodeError("too_short", f"{seconds:.6g} s, at least {min_seconds:g} s are needed")


@contextmanager
def _open_journal(journal: Path) -> Iterator[TextIO]:
    """For appending whole lines: what a kill left of a last one goes first."""
    if journal.exists():
        text = journal.read_bytes()
        if not text.endswith(b"\n"):
            os.truncate(journal, text.rfind(b"\n") + 1)
    with journal.open("a", encoding="utf-8") as file:
        yield file
