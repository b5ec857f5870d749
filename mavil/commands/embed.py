"""``mavil embed MODEL INPUTS... OUT``: the embeddings of many clips, in a folder that search and other tools read."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import mavil
from mavil import distributed
from mavil.commands.retrieve import names_in
from mavil.distributed.on_main import on_main
from mavil.embedder.bulk import BulkEmbedder, Work, encoder_of, encoder_together_of, too_many
from mavil.embedder.bulk_inputs import AllClips
from mavil.embedder.bulk_windows import Wanted
from mavil.embedder.model import LoadedModel
from mavil.embedder.stored import COMPLETE
from mavil.embedder.stored_files import FILE_FORMATS, FileFormat, check_installed
from mavil.embedder.stored_parts import LEFT_OUT, PartWriter, Settings, state_of
from mavil.engine.process.runtime import choose_device, settle
from mavil.engine.process.stopping import Interrupted
from mavil.engine.run import lock
from mavil.structs import UserError

CLIPS_PER_PART = 256
"""Committed together: what a killed call has to do again at most, for each process [our choice]."""
SECONDS_BETWEEN_LINES = 10.0
"""Where nobody looks at bars, as in training."""


def embed(
    model: Annotated[str, typer.Argument(help="run folder, exported folder, public checkpoint or owner/name")],
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS... OUT",
            help="shard folders or addresses, media files, folders of them, lists; last: the new folder",
        ),
    ],
    mean: Annotated[
        bool, typer.Option("--mean/--windows", help="one row per clip, the mean over its windows; or one per window")
    ] = False,
    modalities: Annotated[
        str | None, typer.Option(help="audio, video or audio,video; default: what the model has")
    ] = None,
    fused: Annotated[
        bool,
        typer.Option("--fused/--no-fused", help="also one embedding of sound and picture together, as m.embed gives"),
    ] = False,
    hop: Annotated[float | None, typer.Option(help="seconds from one window to the next; default: a window")] = None,
    file_format: Annotated[
        str, typer.Option("--format", help=f"of the files: {', '.join(FILE_FORMATS)}")
    ] = "safetensors",
    batch: Annotated[int, typer.Option(min=1, help="windows that pass the model together")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="processes that decode, per process of the job; 0: none")] = 2,
    seconds_per_clip: Annotated[float, typer.Option(min=0.1, help="a clip that decodes longer is left out")] = 60.0,
    max_skip_ratio: Annotated[float, typer.Option(min=0, max=1, help="share of clips that may be unusable")] = 0.05,
    checkpoint: Annotated[str, typer.Option(help="of a run: newest, best or a step")] = "newest",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    precision: Annotated[str, typer.Option(help="float32; bf16; or int8, on a CPU")] = "float32",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="read a public checkpoint that holds objects; none of them runs")
    ] = False,
) -> None:
    """Embed every clip once; killed and called again it goes on where it was. Under torchrun each process takes its share."""
    if len(places) < 2:
        raise UserError(f"mavil embed {model} {places[0]}: name what to embed and, last, the folder for the embeddings")
    *inputs, out = places
    if file_format not in FILE_FORMATS:
        raise UserError(f"--format {file_format}: choose one of {', '.join(FILE_FORMATS)}")
    chosen: FileFormat = file_format  # type: ignore[assignment]
    check_installed(chosen)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: choose auto, cpu or cuda")
    where = choose_device(device)  # type: ignore[arg-type]
    settle(where, None)
    try:
        # One process may have work for hours when another one is done.
        with distributed.process_group(where, timeout_minutes=None):
            loaded = mavil.load(model, checkpoint, where, precision, allow_pickle)
            clips = AllClips(inputs)
            wanted = names_in(modalities)
            settings = settings_for(loaded, clips, inputs, mean, wanted, hop, precision, chosen, checkpoint, fused)
            work = Work(batch, workers, seconds_per_clip, max_skip_ratio)
            embed_into(Path(out), loaded, clips, settings, work, Console())
    except KeyboardInterrupt:
        raise Interrupted("stopped; what is finished is kept, and the same command goes on with the rest") from None


def settings_for(
    model: LoadedModel,
    clips: AllClips,
    inputs: list[str],
    mean: bool,
    modalities: list[str],
    hop_seconds: float | None,
    precision: str,
    file_format: FileFormat,
    checkpoint: str = "newest",
    fused: bool = False,
) -> Settings:
    """What the rows will be.

    Raises:
        UserError: a modality that the model does not take, nothing to fuse, a hop that is none, or no clips.
    """
    unknown = [name for name in modalities if name not in model.modalities]
    if unknown:
        raise UserError(
            f"--modalities {unknown[0]}: {model.source} takes {' and '.join(model.modalities)}: choose of these"
        )
    if hop_seconds is not None and not 0 < hop_seconds < math.inf:
        raise UserError(f"--hop {hop_seconds:g}: give the seconds from one window to the next, more than 0")
    if not len(clips):
        raise UserError(f"{', '.join(inputs)}: there is no clip in there")
    chosen = [m for m in model.modalities if not modalities or m in modalities]
    if fused and len(model.modalities) == 1:
        raise UserError(
            f"--fused: {model.source} takes {chosen[0]} only, so there is nothing to fuse: leave --fused out"
        )
    if fused and len(chosen) == 1:
        raise UserError(
            f"--modalities {chosen[0]} --fused: what is fused is of {' and '.join(model.modalities)}: leave one option out"
        )
    return Settings(
        # Whoever searches stands elsewhere perhaps.
        model=os.path.abspath(model.source) if os.path.exists(model.source) else model.source,
        checkpoint=checkpoint,
        weights_digest=model.weights_digest,
        modalities={m: model.width[m] for m in chosen},
        rows="clips" if mean else "windows",
        window_seconds={m: model.window_seconds[m] for m in chosen},
        hop_seconds=hop_seconds,
        precision=precision,
        inputs=inputs,
        inputs_digest=clips.digest(),
        clips_listed=len(clips),
        clips_per_part=CLIPS_PER_PART,
        file_format=file_format,
        fused={m: model.model.encoder(m).width for m in chosen} if fused else {},
    )


def embed_into(
    out: Path, model: LoadedModel, clips: AllClips, settings: Settings, work: Work, console: Console
) -> None:
    """Embed what is missing in a folder, and finish it; all ranks together, each a row of neighbouring parts.

    Raises:
        UserError: the folder holds something else, another job writes to it, too many clips cannot be used, or the disk is
            full; on every rank.
    """
    if on_main(lambda: state_of(out, settings)) == COMPLETE:
        if distributed.is_main():
            console.print(f"{out} is complete, nothing to do", highlight=False, soft_wrap=True)
        return
    with lock.holding(out):
        began = time.monotonic()
        writer = PartWriter(out, settings)
        on_main(writer.begin)
        missing = on_main(writer.missing)
        own = np.array_split(np.array(missing, dtype=int), distributed.world_size())[distributed.rank()].tolist()
        encoders = encoder_of(model), encoder_together_of(model)
        bulk = BulkEmbedder(clips, settings, wanted_of(model, settings), encoders[0], writer, work, encoders[1])
        problem = _run(bulk, own, settings, console)
        told = distributed.gather_objects((problem, bulk.rejects()))
        problems = [text for text, _ in told if text is not None]
        if problems:
            on_main(lambda: writer.write_left_out([reject for _, rejects in told for reject in rejects]))
            raise UserError(problems[0])
        about = on_main(lambda: _finish(writer, settings, work.max_skip_ratio))
        if distributed.is_main():
            num_new = sum(settings.clips_in(number) for number in missing)
            _tell(console, out, about, num_new, time.monotonic() - began)


def wanted_of(model: LoadedModel, settings: Settings) -> Wanted:
    """Which windows of a clip, as the model's own methods take them."""
    reader = model.reader()
    lengths = {m: reader.lengths[m] for m in settings.modalities}
    frame_window = reader.frame_window if "video" in lengths else None
    return Wanted(lengths, frame_window, settings.hop_seconds, reader.backend, fused=bool(settings.fused))


def _run(bulk: BulkEmbedder, own: list[int], settings: Settings, console: Console) -> str | None:
    """Make a rank's parts; what a person should know if that failed: the others must hear of it."""
    total = sum(settings.clips_in(number) for number in own)
    with _shown(console, total) as show:
        try:
            for done in bulk.run(own):
                show(done)
        except UserError as error:
            return str(error)
    return None


def _finish(writer: PartWriter, settings: Settings, max_skip_ratio: float) -> dict[str, Any]:
    rejects = writer.left_out()
    if rejects and (len(rejects) > max_skip_ratio * settings.clips_listed or len(rejects) == settings.clips_listed):
        writer.write_left_out()
        raise too_many(len(rejects), settings.clips_listed, max_skip_ratio, rejects[0])
    return writer.finish()


def _tell(console: Console, out: Path, about: dict[str, Any], num_new: int, seconds: float) -> None:
    left_out = sum(about["left_out"].values())
    rate = f"{num_new / max(seconds, 1e-9):.3g} clips/s"
    lines = [f"{about['num_rows']} rows of {about['clips']} clips in {seconds:.1f} s ({rate}): {out}"]
    if left_out:
        causes = ", ".join(f"{cause} {count}" for cause, count in about["left_out"].items())
        lines.append(f"{left_out} clips left out ({causes}): {out / LEFT_OUT}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _shown(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """Tells how many clips are done: a bar on a terminal, a line now and then in a file or a pipe, on rank 0."""
    began = last = time.monotonic()
    of_all = f" (process 1 of {distributed.world_size()})" if distributed.world_size() > 1 else ""

    def line(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and 0 < done < total:
            last = now
            rate = done / (now - began)
            text = f"{done} of {total} clips{of_all}, {rate:.3g} clips/s, {(total - done) / rate:.0f} s left"
            console.print(text, highlight=False, soft_wrap=True)

    if not distributed.is_main():
        yield lambda done: None
    elif not console.is_terminal:
        yield line
    else:
        speed = TextColumn("{task.fields[rate]:.3g} clips/s")
        with Progress(BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn(), console=console) as bars:
            bar = bars.add_task("clips", total=total, rate=0.0)
            yield lambda done: bars.update(bar, completed=done, rate=done / (time.monotonic() - began))
