"""The command line: ``python tools/benchmark.py loader``, ``training``, ``model``, ``embed`` and ``search``."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from mavil.commands.errors import EXIT_CODES
from mavil.data.loading.loader import Loader, build_loader
from mavil.data.loading.samples import ClipDecoder
from mavil.data.media import FrameWindow
from tools.benchmarks.clips import PLAIN, ClipShape, make_clip, read_clips, write_clips
from tools.benchmarks.embedding_command import embed
from tools.benchmarks.machine import describe_machine
from tools.benchmarks.model_command import model
from tools.benchmarks.rates import decoders, loader_contender, measure_rates
from tools.benchmarks.searching import search
from tools.benchmarks.start_up import measure_start_up, write_large_set
from tools.benchmarks.tables import print_report
from tools.benchmarks.training_command import training
from tools.benchmarks.waiting import memory_of_workers, wait_share, wait_share_of_recipe

AUDIO_SECONDS, WINDOW = 10.0, FrameWindow(num_frames=8, frames_per_second=2.0, short_side=256)
"""What MAViL takes of a clip: 10 s of sound, 8 frames of 4 s."""
BATCH_SIZE = 8
SMALL_CLIPS, SMALL = 128, ClipShape(seconds=1.0, height=48, width=64, frames_per_second=(8,))
SMALL_WINDOW = FrameWindow(num_frames=2, frames_per_second=2.0, short_side=48)
SMALL_BATCH_SIZE = 32
START_UP_ROUNDS = 3

app = typer.Typer(name="benchmark", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def benchmark() -> None:
    """Measure this machine with this code. Figures of different runs or machines are not compared: ratios are."""


app.command()(training)
app.command()(model)
app.command()(embed)
app.command()(search)


@app.command()
def loader(
    shards: Annotated[Path | None, typer.Option(help="your own shards; default: clips made here")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="make clips as they come from the net, not for training")
    ] = False,
    num_clips: Annotated[int, typer.Option("--clips", min=BATCH_SIZE, help="clips to make, or to take of yours")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="times that everything is measured in turn")] = 5,
    workers: Annotated[int, typer.Option(min=0, help="the loader is measured with 0, 1 .. so many workers")] = 2,
    step_ms: Annotated[float | None, typer.Option(help="share of data waiting in a made-up step of so many ms")] = None,
    recipe: Annotated[Path | None, typer.Option(help="share of data waiting in real steps of this recipe")] = None,
    steps: Annotated[int, typer.Option(min=2, help="steps for either of them")] = 40,
    samples: Annotated[int, typer.Option(min=0, help="watch the workers' memory over so many small clips")] = 0,
    start_up: Annotated[bool, typer.Option("--start-up", help="time the start with an index of many shards")] = False,
    start_up_shards: Annotated[int, typer.Option(min=1, help="shards in that index")] = 10_000,
    start_up_clips: Annotated[int, typer.Option(min=16, help="clips in each of them")] = 200,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all readings there too")] = None,
) -> None:
    """Decoders and loader against the floor of libav alone; on request waiting, memory and start."""
    torch.set_num_threads(1)
    console = Console()
    report: dict[str, Any] = {"machine": describe_machine()}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as temporary:
        folder = Path(temporary)
        where = shards or _make_shards(
            folder / "clips", ClipShape(encoding=PLAIN) if plain else ClipShape(), num_clips, console
        )
        report |= _rates(where, num_clips, rounds, workers)
        most = max(1, workers)
        if step_ms is not None:
            build = _builder(where, BATCH_SIZE, AUDIO_SECONDS, WINDOW)
            share = _closing(build(most), partial(wait_share, step_seconds=step_ms / 1000, num_steps=steps))
            report["waiting"] = {"step": f"{step_ms:g} ms", "workers": most, "batch_size": BATCH_SIZE, "share": share}
        if recipe is not None:
            share = wait_share_of_recipe(recipe, where, most, steps)
            report["waiting_recipe"] = {"step": str(recipe), "workers": most, "share": share}
        if samples:
            small = _make_small_shards(folder / "small")
            build = _builder(small, SMALL_BATCH_SIZE, SMALL.seconds, SMALL_WINDOW)
            watch = partial(memory_of_workers, batch_size=SMALL_BATCH_SIZE, num_samples=samples)
            report["memory"] = {"samples": samples, "workers": _closing(build(most), watch)}
        if start_up:
            (folder / "large").mkdir()
            write_large_set(folder / "large", start_up_shards, start_up_clips)
            seconds = measure_start_up(folder / "large", START_UP_ROUNDS)
            report["start_up"] = {
                "shards": start_up_shards,
                "clips": start_up_shards * start_up_clips,
                "seconds": seconds,
            }
    print_report(report, console)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _rates(where: Path, num_clips: int, rounds: int, workers: int) -> dict[str, Any]:
    clips = read_clips(where, num_clips)
    build = _builder(where, BATCH_SIZE, AUDIO_SECONDS, WINDOW)
    loaders: list[Loader] = []

    def build_and_keep(num_workers: int) -> Loader:
        loaders.append(build(num_workers))
        return loaders[-1]

    contenders = decoders(clips, AUDIO_SECONDS, WINDOW)
    contenders += [loader_contender(build_and_keep, number, num_clips) for number in range(workers + 1)]
    rates = measure_rates(contenders, rounds)
    counts = loaders[0].counts
    for one in loaders:
        one.close()
    return {
        "rates": rates,
        "bytes_per_clip": {
            "media": sum(map(len, clips)) / len(clips),
            "read": counts["bytes_read"] / max(1, counts["samples"]),
        },
    }


def _builder(where: Path, batch_size: int, audio_seconds: float, window: FrameWindow) -> Callable[[int], Loader]:
    """From a number of workers to a training loader."""

    def build(num_workers: int) -> Loader:
        return build_loader(
            where,
            ClipDecoder(audio_seconds, window, seed=0, training=True),
            batch_size=batch_size,
            num_workers=num_workers,
        )

    return build


def _closing(one: Loader, measure: Callable[[Loader], Any]) -> Any:
    try:
        return measure(one)
    finally:
        one.close()


def _make_shards(folder: Path, shape: ClipShape, num_clips: int, console: Console) -> Path:
    folder.mkdir()
    with console.status(f"making {num_clips} clips of {shape.seconds:g} s, {shape.width}x{shape.height}"):
        clips = [make_clip(number, shape) for number in range(num_clips)]
    write_clips(folder, clips, shape.seconds, num_shards=4)
    return folder


def _make_small_shards(folder: Path) -> Path:
    folder.mkdir()
    write_clips(folder, [make_clip(number, SMALL) for number in range(SMALL_CLIPS)], SMALL.seconds, num_shards=4)
    return folder


def main() -> None:
    """Run the command line."""
    try:
        app()
    except tuple(EXIT_CODES) as error:
        typer.echo(f"benchmark: {error}", err=True)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
