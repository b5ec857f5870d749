"""Make WebDataset shards: tars in which each clip is ``KEY.<container>`` plus ``KEY.json``.

A folder of shards::

    000000.tar ...   clips_per_shard clips each or fewer, always the same bytes for the same clips
    clips.npy        where every clip lies; labels.npz: its labels (:mod:`mavil.data.shards.clip_table`)
    rejects.csv      clips that were left out: key, path, cause, detail
    index.json       written last: counts, labels, size and checksum of every shard

A folder without ``index.json`` is not a set of shards: writing was interrupted. The same command goes on with it.

First every clip is looked at (:mod:`mavil.data.shards.screening`), then the usable ones are dealt to shards and written
(:mod:`mavil.data.shards.writing`), then all is moved into its folder (:mod:`mavil.data.shards.publish`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich

from mavil.data.shards.index import INDEX, ShardIndex
from mavil.data.shards.plan import PackOptions, check_folder, close_staging, open_staging
from mavil.data.shards.publish import REJECTS, all_rejects, publish, write_set
from mavil.data.shards.screening import JOURNAL, Verdict, mark_duplicates, read_journal, screen_clips
from mavil.data.shards.writing import deal, read_finished, write_shards
from mavil.data.sources.listing import Listing, Reject, write_rejects
from mavil.seeds import sample_seed
from mavil.structs import Clip, UserError


def make_shards(clips: Listing | Sequence[Clip], out: Path, **options: Any) -> ShardIndex:
    """Write clips as shards. Nothing in ``out`` changes before all of them are complete.

    A run that was interrupted is continued by the same call: what was looked at and written is not done again, and the
    result is the same to the byte as without the interruption, whatever the number of workers.

    Args:
        clips: what to pack, each key once.
        out: the folder to make.
        options: see :class:`mavil.data.shards.plan.PackOptions`.

    Raises:
        UserError: ``out`` holds shards already, or an unfinished set of other clips or options; no clip can be used.
    """
    listing, chosen = _listing(clips), PackOptions(**options)
    chosen.check()
    check_folder(out, chosen.overwrite)
    with open_staging(out, listing.clips, chosen) as staging:
        if (staging / INDEX).exists():
            index = publish(staging, out)
        else:
            verdicts = _screen(listing, staging, chosen)
            index = _write(listing, verdicts, staging, out, chosen)
        close_staging(staging)
    return index


def screen_only(clips: Listing | Sequence[Clip], out: Path, **options: Any) -> list[Reject]:
    """Look at every clip, and write ``rejects.csv``; :func:`make_shards` with the same options does not look again.

    Raises:
        UserError: as :func:`make_shards`; or ``out`` holds shards, whose own list must not be replaced.
    """
    listing, chosen = _listing(clips), PackOptions(**options)
    chosen.check()
    check_folder(out, overwrite=False)
    with open_staging(out, listing.clips, chosen) as staging:
        rejects = all_rejects(listing, _screen(listing, staging, chosen), {})
        write_rejects(out / REJECTS, rejects)
    return rejects


def _listing(clips: Listing | Sequence[Clip]) -> Listing:
    listing = clips if isinstance(clips, Listing) else Listing(tuple(clips))
    if len({clip.key for clip in listing.clips}) < len(listing.clips):
        raise ValueError("two clips have the same key; a shard cannot tell them apart")
    known = set(listing.classes)
    for clip in listing.clips if known else ():
        if not known.issuperset(clip.labels):
            unknown = next(label for label in clip.labels if label not in known)
            raise UserError(f"{clip.path}: its label {unknown!r} is none of the {len(known)} classes of the source")
    return listing


def _screen(listing: Listing, staging: Path, options: PackOptions) -> list[Verdict]:
    if options.depth == "none":
        return [Verdict(number, "") for number in range(len(listing.clips))]
    num_done = len(read_journal(staging / JOURNAL))
    if num_done:
        _say(options, f"going on: {num_done} of {len(listing.clips)} clips were looked at before")
    verdicts = screen_clips(
        listing.clips,
        staging / JOURNAL,
        rules=options.rules,
        target=options.target,
        read=options.read,
        workers=options.workers,
        seconds_per_clip=options.seconds_per_clip,
        show_progress=options.show_progress,
    )
    return verdicts if options.keep_duplicates else list(mark_duplicates(listing.clips, verdicts))


def _write(listing: Listing, verdicts: Sequence[Verdict], staging: Path, out: Path, options: PackOptions) -> ShardIndex:
    order = list(range(len(listing.clips)))
    if not options.keep_order:
        random.Random(sample_seed("shards", options.seed)).shuffle(order)
    usable = [listing.clips[number] for number in order if not verdicts[number].cause]
    tasks = deal(usable, options.clips_per_shard)
    num_done = sum(read_finished(staging, task.name) is not None for task in tasks)
    if num_done:
        _say(options, f"going on: {num_done} of {len(tasks)} shards were written before")
    shards = write_shards(
        tasks,
        staging,
        read=options.reader,
        rules=options.rules,
        workers=options.workers,
        seconds_per_clip=options.seconds_per_clip,
        show_progress=options.show_progress,
    )
    rejects = all_rejects(listing, verdicts, {reject.key: reject for shard in shards for reject in shard.rejects})
    if not any(shard.info for shard in shards):
        raise _nothing_usable(out, staging, rejects)
    write_set(staging, listing, shards, rejects, verdicts)
    return publish(staging, out)


def _say(options: PackOptions, text: str) -> None:
    if options.show_progress:
        rich.get_console().print(text, highlight=False)


def _nothing_usable(out: Path, staging: Path, rejects: Sequence[Reject]) -> UserError:
    if not rejects:
        return UserError(f"{out}: there are no clips to make shards of")
    causes = ", ".join(f"{cause} {count}" for cause, count in Counter(reject.cause for reject in rejects).items())
    where = ""
    if not (out / INDEX).exists():  # a finished set keeps its own list
        write_rejects(out / REJECTS, rejects)
        where = f"; {out / REJECTS} lists all"
    close_staging(staging)
    first = rejects[0]
    one_sided = {"no_audio": "video", "no_video": "audio"}.get(first.cause)
    if one_sided and all(reject.cause == first.cause for reject in rejects):
        where += f"; --require {one_sided} packs clips without {'sound' if one_sided == 'video' else 'a picture'}"
    return UserError(
        f"none of the {len(rejects)} clips can be used ({causes}), e.g. {first.path}: {first.detail}{where}"
    )
