"""The command line: ``python tools/benchmark.py embed``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import mavil
from mavil.embedder.bulk_inputs import AllClips
from mavil.embedder.embedder import Embedder
from mavil.structs import UserError
from tools.benchmarks.embedding import Job, SomeClips, measure_throughput, measure_variants
from tools.benchmarks.machine import describe_machine

VARIANTS = ("float32", "bf16", "int8")
_FILE_WIDTH = 110
"""Of what goes to a file or another program, which would else be cut at 80 columns."""


def embed(
    model: Annotated[str, typer.Argument(help="what mavil.load takes")],
    inputs: Annotated[list[str], typer.Argument(help="shards and files, each measured by itself; see mavil embed")],
    num_clips: Annotated[int, typer.Option("--clips", min=2, help="the first so many of each input")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="times that everything is measured in turn")] = 5,
    workers: Annotated[int, typer.Option(min=0, help="processes that decode")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="windows that pass the model together")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="of the encoders on a CPU; default: all cores")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    variants: Annotated[
        str | None, typer.Option(help=f"precisions to compare on the first input, of {','.join(VARIANTS)}; none: ''")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all readings there too")] = None,
) -> None:
    """Files and shards to embeddings, in clips/s, against decoding and encoders alone; cheaper precisions and what they cost."""
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = mavil.load(model, device=device)
    fitting = [name for name in VARIANTS if name != "int8" or loaded.device.type == "cpu"]
    named = fitting if variants is None else [name for name in variants.split(",") if name]
    if unknown := [name for name in named if name not in VARIANTS]:
        raise UserError(f"--variants {unknown[0]}: choose of {', '.join(VARIANTS)}")
    models = {name: variant_of(model, name, device, loaded) for name in dict.fromkeys(("float32", *named)) if named}
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    report: dict[str, Any] = {"machine": describe_machine(), "threads": torch.get_num_threads(), "throughput": {}}
    chosen = {location: SomeClips(list(AllClips([location]).read(0, num_clips))) for location in inputs}
    for location, clips in chosen.items():
        job = Job(loaded, clips, batch, workers)
        report["throughput"][f"{location}, by the clock, {workers} workers"] = measure_throughput(job, rounds)
        if loaded.device.type == "cpu":
            report["throughput"][f"{location}, by core time, one process"] = measure_throughput(job.by_core(), rounds)
    if models:
        report["variants"] = measure_variants(models, chosen[inputs[0]], batch, rounds)
    print_embedding(report, console)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def variant_of(source: str, name: str, device: str, loaded: Embedder) -> Embedder:
    """The model of ``source`` in another precision.

    Raises:
        UserError: the device does not compute in it.
    """
    return loaded if name == "float32" else mavil.load(source, device=device, precision=name)


def print_embedding(report: dict[str, Any], console: Console) -> None:
    """The machine, a table per input, and one of the precisions."""
    for name, value in report["machine"].items():
        console.print(f"{name:>10}: {value}", highlight=False, soft_wrap=True)
    for location, rows in report["throughput"].items():
        table = Table(title=f"{location}, medians of {len(rows[0]['rounds'])} rounds; percents of the same round")
        for heading in ("", "clips/s", "% of decoding", "% of encoders", "% of both in turn"):
            table.add_column(heading, no_wrap=not heading, justify="right" if heading else "left")
        for row in rows:
            shares = [f"{row[f'percent_of_{name}']:.0f}" for name in ("decode", "encode", "both")]
            table.add_row(row["name"], f"{row['clips_per_second']:.3g}", *shares)
        console.print(table)
    if "variants" in report:
        console.print(_variants(report["variants"], report["threads"]))


def _variants(rows: list[dict[str, Any]], threads: int) -> Table:
    gallery = rows[0]["gallery"]
    table = Table(title=f"encoders alone, {threads} threads, per core; R@1 in percent, gallery of {gallery} clips")
    for heading in ("precision", "clips/s", "x float32", "lowest cosine", "R@1 audio to video", "R@1 video to audio"):
        table.add_column(heading, justify="left" if heading == "precision" else "right")
    for row in rows:
        recalls = [f"{row[way]:.1f}" if way in row else "-" for way in ("audio_to_video", "video_to_audio")]
        speed = (f"{row['clips_per_second']:.3g}", f"{row['times_as_fast']:.2f}", f"{row['lowest_cosine']:.5f}")
        table.add_row(row["precision"], *speed, *recalls)
    return table
