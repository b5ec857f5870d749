"""``mavil shards``: media files into WebDataset shards, and shards against their index."""

from __future__ import annotations

import os
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mavil.commands.shard_tables import show_counts, show_index, show_overlaps
from mavil.commands.statistics_tables import show_statistics
from mavil.data.shards.index import read_index
from mavil.data.shards.measure import measure_statistics
from mavil.data.shards.pack import make_shards, screen_only
from mavil.data.shards.plan import CLIPS_PER_SHARD, SECONDS_PER_CLIP
from mavil.data.shards.publish import REJECTS
from mavil.data.shards.reading import ENCODES
from mavil.data.shards.screening import MIN_SECONDS
from mavil.data.shards.selection import OVERLAP, leave_out, take_range, write_overlaps
from mavil.data.shards.statistics import STATISTICS
from mavil.data.shards.verify import foreign_files, verify_shards
from mavil.data.sources.read import FORMATS, Listing, SourceOptions, overlaps, read_source
from mavil.data.synthetic import make_synthetic_shards
from mavil.structs import MODALITIES, Modality, UserError

app = typer.Typer(
    help="Pack media files into shards, and check them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
BESIDE = (REJECTS, OVERLAP, STATISTICS)
"""What the verbs of this file write beside the shards."""

Workers = Annotated[int | None, typer.Option(min=0, help="processes; default: the cores of this machine")]
Media = Annotated[list[Path] | None, typer.Option(help="folder with the media files of a list; may be given again")]
Exclude = Annotated[list[Path] | None, typer.Option(help="leave out clips on this list; may be given again")]
Overlaps = Annotated[list[Path] | None, typer.Option(help="count the clips on this list too; may be given again")]
Classes = Annotated[Path | None, typer.Option(help="class names in their official order: CSV, or one a line")]
Quick = Annotated[bool, typer.Option("--quick", help="decode one frame and one second of sound of each clip, not all")]
Silent = Annotated[bool, typer.Option("--reject-silent", help="leave out clips without a sample above -60 dBFS")]
Duplicates = Annotated[bool, typer.Option("--keep-duplicates", help="keep clips with the content of an earlier one")]
Encode = Annotated[str, typer.Option(help="; ".join(f"{name}: {text}" for name, text in ENCODES.items()))]
KeepOrder = Annotated[bool, typer.Option("--keep-order", help="do not shuffle clips before dealing them to shards")]
ReportOnly = Annotated[
    bool, typer.Option("--report-only", help="look at the clips and write OUT/rejects.csv, no shards")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the shards that OUT already holds")]
Restart = Annotated[bool, typer.Option("--restart", help="throw away what an interrupted run has left")]
TimeLimit = Annotated[float, typer.Option(help="leave out clips that take longer to decode")]


class Spectrogram(str, Enum):
    """The front ends whose values can be measured."""

    kaldi_hann = "kaldi_hann"
    kaldi_povey = "kaldi_povey"
    slaney = "slaney"


class Require(str, Enum):
    """What every clip must have."""

    both = "both"
    audio = "audio"
    video = "video"
    any = "any"

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities a clip may not lack."""
        if self is Require.both:
            return MODALITIES
        return tuple(modality for modality in MODALITIES if modality == self.value)


@app.command()
def make(
    source: Annotated[Path, typer.Argument(help="folder of media files, CSV, or a dataset's list; OUT if --synthetic")],
    out: Annotated[Path | None, typer.Argument(help="folder to write the shards to")] = None,
    format: Annotated[str, typer.Option(help="of the source: " + ", ".join(FORMATS))] = "auto",
    media: Media = None,
    classes: Classes = None,
    split: Annotated[str | None, typer.Option(help="part of a source that has several, e.g. train")] = None,
    weights: Annotated[Path | None, typer.Option(help="CSV with a weight per clip of an AST JSON")] = None,
    skip: Annotated[int, typer.Option(min=0, help="leave out the first clips, e.g. those trained on")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="take at most this many clips")] = None,
    exclude: Exclude = None,
    overlap: Overlaps = None,
    require: Annotated[Require, typer.Option(help="leave out clips without these")] = Require.both,
    reject_silent: Silent = False,
    min_seconds: Annotated[float, typer.Option(min=0.0, help="leave out shorter clips")] = MIN_SECONDS,
    keep_duplicates: Duplicates = False,
    quick: Quick = False,
    seconds_per_clip: TimeLimit = SECONDS_PER_CLIP,
    encode: Encode = "copy",
    seconds: Annotated[float | None, typer.Option(help="most kept by --encode training; default: 10")] = None,
    seed: Annotated[int, typer.Option(help="of the order of clips, and of synthetic clips")] = 0,
    keep_order: KeepOrder = False,
    clips_per_shard: Annotated[int, typer.Option(help="at most; smaller shards mix better")] = CLIPS_PER_SHARD,
    workers: Workers = None,
    report_only: ReportOnly = False,
    overwrite: Overwrite = False,
    restart: Restart = False,
    synthetic: Annotated[int | None, typer.Option(help="instead of a source: make so many synthetic clips")] = None,
) -> None:
    """Pack media files, or synthetic clips (mavil shards make --synthetic N OUT), into shards.

    After an interruption the same command goes on where it was.
    """
    order = {"seed": seed, "keep_order": keep_order, "clips_per_shard": clips_per_shard}
    rules = {"require": require.modalities, "reject_silent": reject_silent, "min_seconds": min_seconds}
    work = {"workers": _num_workers(workers), "seconds_per_clip": seconds_per_clip, "restart": restart}
    options: dict[str, Any] = {**order, **rules, **work, "overwrite": overwrite}
    if synthetic is not None:
        if out is not None:
            raise UserError(f"--synthetic needs no source: write mavil shards make --synthetic {synthetic} {out}")
        if [given for given in (media, classes, split, weights, exclude, overlap, report_only, seconds) if given]:
            raise UserError("--synthetic takes only options of order, shards, workers and of what is left out")
        show_index(
            make_synthetic_shards(min(synthetic - skip, limit or synthetic), source, first=skip, **options), Console()
        )
        return
    if out is None:
        raise UserError(f"where shall the shards go? write mavil shards make {source} OUT")
    listing = read_source(source, SourceOptions(format, media or None, classes, split, weights))
    listing = take_range(listing, source, skip, limit)
    look: dict[str, Any] = {"keep_duplicates": keep_duplicates, "depth": "quick" if quick else "all"}
    try:
        _pack(
            listing, out, exclude or [], overlap or [], report_only, **options, **look, encode=encode, seconds=seconds
        )
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; the same command goes on where this one was: {out}", err=True)
        raise


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="folder of shards")],
    workers: Workers = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="compare sizes, checksums and tables, but decode nothing")
    ] = False,
    seconds_per_clip: TimeLimit = SECONDS_PER_CLIP,
) -> None:
    """Compare shards with their index and tables, and decode every clip; exits with 2 if anything is wrong."""
    problems = verify_shards(folder, workers=_num_workers(workers), quick=quick, seconds_per_clip=seconds_per_clip)
    foreign = foreign_files(read_index(folder), BESIDE)
    if foreign:
        typer.echo(f"not of this set: {', '.join(foreign)}")
    if problems:
        for problem in problems:
            typer.echo(problem)
        raise UserError(f"{folder}: {len(problems)} problems; copy the shards again or make them again")
    typer.echo(f"{folder}: every shard is as its index says{'' if quick else ', and every clip can be decoded'}")


@app.command()
def stats(
    folder: Annotated[Path, typer.Argument(help="folder of shards")],
    mel_bins: Annotated[int, typer.Option(min=1, help="of the spectrogram: audio.num_mel_bins of the recipe")] = 128,
    spectrogram: Annotated[
        Spectrogram, typer.Option(help="its kind: audio.spectrogram of the recipe")
    ] = Spectrogram.kaldi_hann,
    clips: Annotated[
        int | None,
        typer.Option(min=1, help="measure so many, drawn at random, e.g. 10000 of a large set; default: all"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of that draw")] = 0,
    workers: Workers = None,
) -> None:
    """Measure the sound's log-mel mean and deviation, for training to find beside the shards, and count labels."""
    num_workers = _num_workers(workers)
    found = measure_statistics(
        folder, num_mel_bins=mel_bins, spectrogram=spectrogram.value, clips=clips, seed=seed, workers=num_workers
    )
    show_statistics(read_index(folder), found.log_mel[spectrogram.value, mel_bins], Console())


def _pack(
    listing: Listing, out: Path, exclude: list[Path], overlap: list[Path], report_only: bool, **options: Any
) -> None:
    console = Console()
    found, shared = listing, overlaps(listing.clips, overlap)
    listing = leave_out(listing, overlaps(listing.clips, exclude))
    if report_only:
        causes = Counter(reject.cause for reject in screen_only(listing, out, **options))
        num_usable = len(listing.clips) + len(listing.rejects) - causes.total()
        show_counts(num_usable, causes, console, verb="usable")
    else:
        index = make_shards(listing, out, **options)
        show_counts(index.num_clips, index.rejected, console)
        show_index(index, console)
        causes = Counter(index.rejected)
    if causes:
        console.print(f"left out, listed in {out / REJECTS}", highlight=False, soft_wrap=True)
    if shared:
        write_overlaps(out / OVERLAP, found, shared)
        show_overlaps(shared, len(found.clips), console)
        console.print(f"listed in {out / OVERLAP}", highlight=False, soft_wrap=True)


def _num_workers(workers: int | None) -> int:
    return len(os.sched_getaffinity(0)) if workers is None else workers
