"""Damage real media files at random and see that decoding them gives a valid result or a DecodeError, and nothing else.

    python tools/fuzz_media.py CLIPS... --count 2000 --seed 0

The work is done in other processes with limited memory: a crash or a hang costs one mutant and is counted.
"""

from __future__ import annotations

import functools
import json
import math
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mavil.data.isolation import map_isolated
from mavil.data.media import (
    DecodeError,
    FrameWindow,
    SoundWindow,
    cut_clip,
    decode_audio,
    decode_clip,
    decode_frames,
    probe,
)
from mavil.data.media.limits import MAX_PIXELS, MAX_SECONDS, MAX_SIDE
from mavil.structs import SAMPLE_RATE

WINDOW, AUDIO_SECONDS = FrameWindow(4, 2.0, 64), 4.0
# Names of fields and boxes; damage near them reaches further than damage to the pictures themselves.
TAGS = (
    *b"ftyp moov mvhd tkhd mdhd hdlr elst stsd avc1 avcC mp4a esds stts ctts stss stsc stsz stco moof tfhd trun".split(),
    *b"RIFF WAVE fmt data fLaC OggS OpusHead vorbis ID3 Xing LAME avih strh strf idx1 movi FORM COMM SSND FLV".split(),
    *(b"\x1aE\xdf\xa3", b"\x16T\xaek", b"\x15I\xa9f", b"\x1fC\xb6u", b"\x1cS\xbbk"),  # parts of a Matroska file
)
MEMORY_LIMIT_MIB = 4096
"""A process may not grow by more than this; what it asks for beyond is refused."""
EXTREMES = (0, 1, 2, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


@dataclass
class Outcome:
    """What one mutant turned into: ``ok`` or a cause for each call, ``finding`` (empty: none), growth of memory (MiB), time."""

    number: int
    seed_file: str
    calls: dict[str, str] = field(default_factory=dict)
    finding: str = ""
    memory_mib: int = 0
    seconds: float = 0.0


def mutate(media: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """One to three changes at random; ``other`` is a second file to splice with."""
    for _ in range(generator.choice([1, 1, 2, 3])):
        change = _CHANGES[generator.integers(len(_CHANGES))]
        media = change(bytearray(media or b"\0"), other, generator)
    return media


def _flip_bits(media: bytearray, _: bytes, generator: np.random.Generator) -> bytes:
    for place in generator.integers(len(media), size=2 ** generator.integers(0, 6)):
        media[place] ^= 1 << int(generator.integers(8))
    return bytes(media)


def _overwrite_run(media: bytearray, _: bytes, generator: np.random.Generator) -> bytes:
    start, length = _piece(len(media), generator)
    fill = (bytes(length), b"\xff" * length, generator.bytes(length))[generator.integers(3)]
    media[start : start + length] = fill
    return bytes(media)


def _truncate(media: bytearray, _: bytes, generator: np.random.Generator) -> bytes:
    return bytes(media[: generator.integers(1, len(media) + 1)])


def _delete(media: bytearray, _: bytes, generator: np.random.Generator) -> bytes:
    start, length = _piece(len(media), generator)
    return bytes(media[:start] + media[start + length :])


def _duplicate(media: bytearray, _: bytes, generator: np.random.Generator) -> bytes:
    start, length = _piece(len(media), generator)
    place = int(generator.integers(len(media)))
    return bytes(media[:place] + media[start : start + length] + media[place:])


def _swap(media: bytearray, _: bytes, generator: np.random.Generator) -> bytes:
    (first, length), second = _piece(len(media), generator), int(generator.integers(len(media)))
    piece = media[first : first + length]
    length = min(len(piece), len(media) - second)
    media[first : first + length], media[second : second + length] = media[second : second + length], piece[:length]
    return bytes(media)


def _splice(media: bytearray, other: bytes, generator: np.random.Generator) -> bytes:
    return bytes(media[: generator.integers(len(media))]) + other[generator.integers(len(other)) :]


def _blast_header(media: bytearray, _: bytes, generator: np.random.Generator) -> bytes:
    place, length = _header_place(media, generator), int(generator.integers(1, 33))
    media[place : place + length] = generator.bytes(length)
    return bytes(media)


def _set_extreme(media: bytearray, _: bytes, generator: np.random.Generator) -> bytes:
    for _number in range(generator.integers(1, 5)):
        place, width = _header_place(media, generator), int(generator.choice([2, 4, 8]))
        value = EXTREMES[generator.integers(len(EXTREMES))] % 2 ** (8 * width)
        media[place : place + width] = value.to_bytes(width, "big" if generator.random() < 0.5 else "little")
    return bytes(media)


def _header_place(media: bytearray, generator: np.random.Generator) -> int:
    """Up to 4 bytes before or 40 after a known name; anywhere in a file that has none."""
    places = [place for tag in TAGS if (place := media.find(tag)) >= 0]
    if not places:
        return int(generator.integers(len(media)))
    return max(0, places[generator.integers(len(places))] - 4 + int(generator.integers(48)))


def _piece(size: int, generator: np.random.Generator) -> tuple[int, int]:
    return int(generator.integers(size)), int(2 ** generator.uniform(0, math.log2(max(2, size / 2))))


_CHANGES: tuple[Callable[[bytearray, bytes, np.random.Generator], bytes], ...] = (
    *(_flip_bits, _overwrite_run, _truncate, _delete, _duplicate, _swap, _splice),
    *(_flip_bits, _overwrite_run, _blast_header, _blast_header, _set_extreme, _set_extreme),
)


def mutant(seeds: list[Path], seed: int, number: int) -> tuple[Path, bytes]:
    """Mutant ``number`` of a run and the file it was made from; depends on nothing else than these arguments."""
    generator = np.random.default_rng([seed, number])
    first, second = (seeds[place] for place in generator.integers(len(seeds), size=2))
    return first, mutate(first.read_bytes(), second.read_bytes(), generator)


def examine(media: bytes, backend: str) -> tuple[dict[str, str], str]:
    """``ok`` or the cause of each call, and what is wrong with that (empty: nothing)."""
    calls, finding = {}, ""
    with tempfile.NamedTemporaryFile() as file:
        file.write(media)
        file.flush()
        for name, call in _calls(media, file.name, backend).items():
            try:
                call()
                calls[name] = "ok"
            except DecodeError as error:
                calls[name] = error.cause
            except Exception as error:  # whatever else comes is what this tool looks for
                calls[name] = "other"
                finding = finding or f"{name}: {type(error).__name__}: {error}"
    return calls, finding


def _calls(media: bytes, path: str, backend: str) -> dict[str, Callable[[], None]]:
    def check_probe() -> None:
        info = probe(media)
        assert 0 <= info.duration_seconds <= MAX_SECONDS, f"duration {info.duration_seconds}"
        assert 0 <= info.frames_per_second < math.inf, f"frame rate {info.frames_per_second}"
        assert 0 <= info.width * info.height <= MAX_PIXELS, f"size {info.width}x{info.height}"

    def check_audio(start: float) -> None:
        _check_sound(decode_audio(media, AUDIO_SECONDS, backend, start))

    def check_frames(start: float) -> None:
        _check_pictures(decode_frames(media, WINDOW, start, backend))

    def check_clip() -> None:
        sound, frames = decode_clip(media, SoundWindow(0.7, AUDIO_SECONDS), WINDOW, 0.9, backend)
        assert sound is not None
        assert frames is not None
        _check_sound(sound)
        _check_pictures(frames)

    def check_cut(start: float | None, end: float | None) -> None:
        probe(cut_clip(path, start, end))

    return {
        "probe": check_probe,
        "sound": lambda: check_audio(0.0),
        "late sound": lambda: check_audio(1.3),
        "frames": lambda: check_frames(0.0),
        "late frames": lambda: check_frames(1.3),
        "both": check_clip,
        "cut span": lambda: check_cut(0.3, 1.3),
        "cut whole": lambda: check_cut(None, None),
    }


def _check_sound(waveform: Tensor) -> None:
    assert 0 < len(waveform) <= AUDIO_SECONDS * SAMPLE_RATE, f"{len(waveform)} samples"
    assert bool((waveform.abs() <= 1).all()), f"values up to {waveform.abs().max()}"


def _check_pictures(frames: Tensor) -> None:
    shape = tuple(frames.shape)
    assert shape[:2] == (WINDOW.num_frames, 3), f"shape {shape}"
    assert 1 <= min(shape[2:]) <= WINDOW.short_side, f"shape {shape}"
    assert max(shape[2:]) <= MAX_SIDE, f"shape {shape}"


def run_mutant(seeds: list[Path], seed: int, backend: str, number: int) -> Outcome:
    """Make one mutant and examine it, in a process with limited memory."""
    _limit_process()
    source, media = mutant(seeds, seed, number)
    memory, began = _peak_mib(), time.perf_counter()
    calls, finding = examine(media, backend)
    seconds = time.perf_counter() - began
    return Outcome(number, source.name, calls, finding, _peak_mib() - memory, round(seconds, 3))


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@functools.cache
def _limit_process() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decord writes a line for every damaged packet


def outcomes(seeds: list[Path], seed: int, count: int, backend: str, seconds_per_file: float) -> Iterator[Outcome]:
    """Examine ``count`` mutants in two processes; a process that dies or hangs is replaced."""
    work = functools.partial(run_mutant, seeds, seed, backend)
    results = map_isolated(
        work, range(count), workers=2, seconds_per_item=seconds_per_file, description="Mutants", show_progress=True
    )
    for result in results:
        if result.value is not None:
            yield result.value
        else:
            name = mutant(seeds, seed, result.item)[0].name
            yield Outcome(result.item, name, finding=f"process ended: {result.failure}")


def main(
    seeds: Annotated[list[Path], typer.Argument(exists=True, help="Media files, or folders of them.")],
    count: Annotated[int, typer.Option(min=1, help="Mutants to make.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the mutations; the same seed and files give the same mutants.")] = 0,
    backend: Annotated[str, typer.Option(help="pyav, torchcodec or decord.")] = "pyav",
    seconds_per_file: Annotated[float, typer.Option(help="More than this is a hang.")] = 20.0,
    memory_mib: Annotated[int, typer.Option(help="Growth of a process on one file that is a finding.")] = 512,
    findings: Annotated[Path, typer.Option(help="Where mutants with a finding are kept.")] = Path("fuzz_findings"),
) -> None:
    """Decode mutants of real files; exit code 1 if any gives neither a valid result nor a DecodeError."""
    files = sorted(f for s in seeds for f in (s.rglob("*") if s.is_dir() else [s]) if f.is_file() and f.stat().st_size)
    causes: dict[str, Counter[str]] = {}
    found, largest, slowest, began = list[Outcome](), 0, 0.0, time.perf_counter()
    for outcome in outcomes(files, seed, count, backend, seconds_per_file):
        if outcome.memory_mib > memory_mib and not outcome.finding:
            outcome.finding = f"memory: {outcome.memory_mib} MiB more"
        for call, cause in outcome.calls.items():
            causes.setdefault(call, Counter())[cause] += 1
        largest, slowest = max(largest, outcome.memory_mib), max(slowest, outcome.seconds)
        if outcome.finding:
            found.append(outcome)
            _keep(findings, outcome, mutant(files, seed, outcome.number)[1], seed)
    console = Console()
    table = Table("call", "outcomes")
    for call, counts in causes.items():
        table.add_row(call, ", ".join(f"{cause} {number}" for cause, number in counts.most_common()))
    console.print(table)
    console.print(
        f"{count} mutants of {len(files)} files with {backend} in {time.perf_counter() - began:.0f} s: {len(found)} findings; "
        f"slowest file {slowest:.2f} s, largest growth of memory {largest} MiB"
    )
    for kind, number in Counter(outcome.finding.partition("\n")[0][:150] for outcome in found).most_common(20):
        console.print(f"  {number} x {kind}", markup=False)
    if found:
        console.print(f"The mutants are in {findings}, one line for each in findings.jsonl")
        raise typer.Exit(1)


def _keep(folder: Path, outcome: Outcome, media: bytes, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{seed}_{outcome.number}_{outcome.seed_file}").write_bytes(media)
    with (folder / "findings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"seed": seed, **asdict(outcome)}) + "\n")


if __name__ == "__main__":
    typer.run(main)
