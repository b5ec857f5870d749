"""The command line: ``python tools/simulate_shards.py``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from mavil.data.shards.clip_table import CLIPS, LABELS
from mavil.data.shards.index import INDEX
from mavil.data.stream.shard_set import open_shards
from mavil.structs import UserError
from tools.benchmarks.start_up import write_large_set
from tools.scaling.shard_plan import Playground, Readings, Team
from tools.scaling.tables import Table, short

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


@dataclass
class Findings:
    """Rows for people, and what is wrong: nothing, if all went well."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, what: str, value: str) -> None:
        """A row."""
        self.rows.append((what, value))

    def check_once(self, when: str, times_seen: np.ndarray) -> None:
        """Each clip must have come once: ``times_seen`` is ``[clips]``."""
        lost, twice = int((times_seen == 0).sum()), int((times_seen > 1).sum())
        self.add(f"{when}: clips lost, clips twice", f"{lost:,}, {twice:,}")
        if lost or twice:
            self.wrong.append(f"{when}: {lost} clips lost, {twice} more than once")

    def table(self, title: str) -> Table:
        """All rows."""
        return Table("simulation", title, ("what", "value"), tuple(self.rows))


app = typer.Typer(name="simulate_shards", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def simulate_shards(
    ranks: Annotated[int, typer.Option(min=1, help="processes that train together")] = 512,
    workers: Annotated[int, typer.Option(min=1, help="loader workers of each")] = 8,
    shards: Annotated[int, typer.Option(min=1, help="tars in the set")] = 10_000,
    clips_per_shard: Annotated[int, typer.Option(min=1, help="clips in each")] = 200,
    epochs: Annotated[int, typer.Option(min=1, help="to play from the start")] = 2,
    device_batch: Annotated[int, typer.Option(min=1, help="clips per rank and step")] = 3,
    shuffle_buffer: Annotated[int, typer.Option(min=1, help="window of the shuffle, clips")] = 2000,
    node_ranks: Annotated[int, typer.Option(min=1, help="ranks that share a node, for what a node reads")] = 8,
    resume_ranks: Annotated[
        int | None, typer.Option(min=0, help="go on with so many in the middle of an epoch; 0: do not; default: 3/4")
    ] = None,
    costs: Annotated[bool, typer.Option("--costs/--no-costs", help="measure a worker's start and memory too")] = True,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the tables as docs/clusters.md has them")] = False,
) -> None:
    """Play the real stream of every worker of a run over a made-up index: balance, each clip once, shards, start, resume."""
    team = Team(ranks, workers, device_batch, shuffle_buffer)
    after = _team_after(team, max(1, ranks * 3 // 4) if resume_ranks is None else resume_ranks)
    if shards * clips_per_shard < max(team.readers, 2 * ranks * device_batch):
        raise UserError(
            f"{shards} shards of {clips_per_shard} clips are too few for {team.readers} readers and steps of "
            f"{ranks * device_batch} clips: take more shards, or fewer ranks"
        )
    begin = time.perf_counter()
    findings, tables = Findings(), []
    with tempfile.TemporaryDirectory(prefix="simulate_shards_") as temporary:
        folder = Path(temporary)
        write_large_set(folder, shards, clips_per_shard)
        playground = Playground(open_shards(folder))
        simulate(findings, playground, team, after, epochs, node_ranks)
        findings.add("time of the simulation", f"{time.perf_counter() - begin:.0f} s")
        title = f"{ranks} ranks x {workers} workers, {shards:,} shards of {clips_per_shard} clips"
        tables.append(findings.table(title))
        if costs:
            tables.append(costs_table(folder, team))
    console = Console()
    for table in tables:
        if markdown:
            typer.echo(f"{table.title}\n\n{table.to_markdown()}\n")
        else:
            console.print(table.to_rich())
    if findings.wrong:
        typer.echo("simulate_shards: " + "; ".join(findings.wrong), err=True)
        raise typer.Exit(1)


def _team_after(team: Team, ranks: int) -> Team | None:
    """The same global batch on other ranks."""
    if ranks == 0:
        return None
    batch, left = divmod(team.ranks * team.device_batch, ranks)
    if left:
        raise UserError(
            f"--resume-ranks {ranks} does not divide the global batch of {team.ranks * team.device_batch}, which must stay: "
            "take another number, or another --device-batch"
        )
    return Team(ranks, team.workers, batch, team.shuffle_buffer)


def simulate(
    findings: Findings, playground: Playground, team: Team, after: Team | None, epochs: int, node_ranks: int
) -> None:
    """Play ``epochs`` whole epochs, then one that changes ranks in its middle and the epoch after it."""
    num_clips = int(playground.sizes.sum())
    readings = playground.play(team, epochs=epochs)
    for epoch, reading in enumerate(readings):
        findings.check_once(f"epoch {epoch}", np.bincount(reading.clips, minlength=num_clips))
    describe_balance(findings, readings[0])
    describe_shards(findings, readings[0], node_ranks)
    if after is None:
        return
    steps = num_clips // (team.ranks * team.device_batch) // 2
    before, places = playground.play_steps(team, steps)
    describe_progress(findings, before, steps)
    rest, whole = playground.play(after, places, epochs=2)
    change = f"{team.ranks} to {after.ranks} ranks after step {steps:,}"
    seen = np.bincount(before.clips, minlength=num_clips) + np.bincount(rest.clips, minlength=num_clips)
    findings.check_once(f"{change}, that epoch", seen)
    findings.check_once(f"{change}, the next one", np.bincount(whole.clips, minlength=num_clips))
    findings.add("left of that epoch for each reader", _span(rest.counts))


def describe_balance(findings: Findings, reading: Readings) -> None:
    """Clips per reader and rank."""
    team = reading.team
    per_rank = reading.counts.reshape(team.ranks, team.workers).sum(axis=1)
    findings.add("clips per worker", _span(reading.counts))
    findings.add("clips per rank", _span(per_rank))
    findings.add(
        "steps per epoch, the same on every rank", f"{len(reading.clips) // (team.ranks * team.device_batch):,}"
    )


def describe_progress(findings: Findings, before: Readings, steps: int) -> None:
    """How far apart the readers are when every rank has made as many steps."""
    apart = int(before.counts.max() - before.counts.min())
    findings.add(f"clips handed over per worker after step {steps:,}", f"{_span(before.counts)} ({apart} apart)")


def describe_shards(findings: Findings, reading: Readings, node_ranks: int) -> None:
    """Who opens what, and how many meet at one shard."""
    team, num_shards = reading.team, len(reading.sizes)
    by_reader = reading.pairs(1)
    per_reader = np.bincount(by_reader[:, 0], minlength=team.readers)
    findings.add("shards a worker reads from", f"{_span(per_reader)}, mean {per_reader.mean():.2f}")
    groups: list[tuple[str, int]] = [("worker", 1), ("rank", team.workers), ("node", team.workers * node_ranks)]
    for name, size in groups:
        pairs = reading.pairs(size)
        most = int(np.bincount(pairs[:, 1]).max())
        amplification = short(len(pairs) / num_shards, 3)
        findings.add(
            f"shards opened per epoch, each {name} once",
            f"{len(pairs):,} ({amplification} x; at most {most} per shard)",
        )
    shortest = int(reading.counts.min())
    moments = [reading.ranks_per_shard_at(shortest * eighth // 8) for eighth in range(0, 8, 2)]
    most_at_once = max(int(ranks.max()) for ranks in moments)
    touched = np.mean([len(ranks) for ranks in moments])
    findings.add("ranks at one shard for the same step", f"at most {most_at_once}; {touched:,.0f} shards are read")


def costs_table(folder: Path, team: Team) -> Table:
    """A worker's start and memory, and the size of the index."""
    command = [
        sys.executable,
        "-m",
        "tools.scaling.worker_costs",
        str(folder),
        str(team.readers),
        str(team.shuffle_buffer),
    ]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{' '.join(command)}: {answer.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(answer.stdout)
    kind: Callable[[float], str] = short
    rows = [(f"{name} on disk, MiB", kind((folder / name).stat().st_size / MIB)) for name in (INDEX, CLIPS, LABELS)]
    rows += [(name, kind(value)) for name, value in found.items()]
    return Table("costs", "One worker", ("what", "value"), tuple(rows))


def _span(counts: np.ndarray) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def main() -> None:
    """Run the command line."""
    try:
        app()
    except UserError as error:
        typer.echo(f"simulate_shards: {error}", err=True)
        sys.exit(2)
