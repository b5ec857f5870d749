"""``mavil shards make`` and ``mavil shards check``: media files into WebDataset shards, and shards against their index."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mavil.data.shards import CLIPS_PER_SHARD, REJECTS, ShardIndex, make_shards_from_source, verify_shards
from mavil.data.synthetic import make_synthetic_shards
from mavil.structs import MODALITIES, Modality, UserError

app = typer.Typer(no_args_is_help=True)


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
    source: Annotated[
        Path, typer.Argument(help="folder of media files (a sub-folder per class) or CSV; OUT with --synthetic")
    ],
    out: Annotated[Path | None, typer.Argument(help="folder to write the shards to")] = None,
    synthetic: Annotated[int | None, typer.Option(help="instead of a source: make this many synthetic clips")] = None,
    seed: Annotated[int, typer.Option(help="of the order of clips, and of synthetic clips")] = 0,
    clips_per_shard: Annotated[
        int, typer.Option(help="training needs a shard per loader worker at least")
    ] = CLIPS_PER_SHARD,
    skip: Annotated[
        int, typer.Option(min=0, help="leave out the first clips of the source, e.g. those trained on")
    ] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="take at most this many clips")] = None,
    require: Annotated[Require, typer.Option(help="reject clips without these")] = Require.both,
    reject_silent: Annotated[
        bool, typer.Option("--reject-silent", help="reject clips whose sound is all zero")
    ] = False,
    keep_order: Annotated[bool, typer.Option("--keep-order", help="do not shuffle clips before dealing them")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the shards that OUT already holds")] = False,
) -> None:
    """Pack media files, or synthetic clips (mavil shards make --synthetic N OUT), into shards."""
    options: dict[str, Any] = {
        "seed": seed,
        "clips_per_shard": clips_per_shard,
        "require": require.modalities,
        "reject_silent": reject_silent,
        "keep_order": keep_order,
        "overwrite": overwrite,
    }
    if synthetic is not None:
        if out is not None:
            raise UserError(f"--synthetic needs no source: write mavil shards make --synthetic {synthetic} {out}")
        index = make_synthetic_shards(min(synthetic - skip, limit or synthetic), source, first=skip, **options)
    elif out is None:
        raise UserError(f"where shall the shards go? write mavil shards make {source} OUT")
    else:
        index = make_shards_from_source(source, out, skip=skip, limit=limit, **options)
    show_index(index, Console())


@app.command()
def check(folder: Annotated[Path, typer.Argument(help="folder of shards")]) -> None:
    """Compare shards with their index: sizes, checksums, counts, and whether every member can be opened."""
    problems = verify_shards(folder)
    if problems:
        for problem in problems:
            typer.echo(problem)
        raise UserError(f"{folder}: {len(problems)} problems; copy the shards again or make them again")
    typer.echo(f"{folder}: every shard is as its index says")


def show_index(index: ShardIndex, console: Console) -> None:
    """Print what was packed and, by cause, what was left out."""
    size = sum(shard.bytes for shard in index.shards) / 1e6
    console.print(
        f"{index.num_clips} clips ({index.num_with_audio} with sound, {index.num_with_video} with picture, "
        f"{len(index.label_counts)} labels) in {len(index.shards)} shards, {size:.1f} MB: {index.folder}",
        highlight=False,
        soft_wrap=True,
    )
    if index.rejected:
        console.print(f"left out, listed in {index.folder / REJECTS}:", highlight=False, soft_wrap=True)
        table = Table("cause", "clips")
        for cause, count in sorted(index.rejected.items(), key=lambda item: -item[1]):
            table.add_row(cause, str(count))
        console.print(table)
