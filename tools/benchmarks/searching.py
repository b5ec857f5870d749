"""The command line: ``python tools/benchmark.py search``: time and memory of exact search, over sizes of the gallery."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mavil.engine.process.runtime import choose_device
from mavil.evaluation.nearest import nearest
from mavil.evaluation.retrieval import compute_standings
from mavil.structs import UserError
from tools.benchmarks.machine import describe_machine
from tools.benchmarks.passes import peak_bytes
from tools.benchmarks.processes import BYTES_PER_MIB

_FAISS = "FAISS flat"
_SPREAD = 1.0
"""Noise beside a pair's common part, as deviations of it: answers stand neither all first nor anywhere."""


@dataclass(frozen=True)
class Case:
    """One reading: ``contender`` on ``queries`` x ``gallery`` embeddings of ``width``, the best ``k``."""

    contender: str
    queries: int
    gallery: int
    width: int
    k: int
    device: str
    threads: int | None


def embeddings(case: Case) -> tuple[Tensor, Tensor]:
    """Pairs that resemble each other, ``[q, Z]`` and ``[n, Z]`` float32; the same in every process."""
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(case.gallery, case.width, generator=generator)
    queries = gallery[: case.queries] + _SPREAD * torch.randn(case.queries, case.width, generator=generator)
    return queries, gallery


def _nearest(queries: Tensor, gallery: Tensor, case: Case) -> object:
    return nearest(queries, gallery, case.k, case.device)


def _standings(queries: Tensor, gallery: Tensor, case: Case) -> object:
    return compute_standings(queries, gallery[: len(queries)], device=case.device)


def _whole(queries: Tensor, gallery: Tensor, case: Case) -> object:
    sides = [torch.nn.functional.normalize(side.to(case.device), dim=1) for side in (queries, gallery)]
    return (sides[0] @ sides[1].T).topk(case.k, dim=1).values.cpu()


def _faiss(queries: Tensor, gallery: Tensor, case: Case) -> object:
    import faiss

    if case.threads is not None:
        faiss.omp_set_num_threads(case.threads)
    index = faiss.IndexFlatIP(case.width)
    index.add(torch.nn.functional.normalize(gallery, dim=1).numpy())
    return index.search(torch.nn.functional.normalize(queries, dim=1).numpy(), case.k)


CONTENDERS: dict[str, Callable[[Tensor, Tensor, Case], object]] = {
    "nearest": _nearest,
    "ranks": _standings,
    "one product": _whole,
    _FAISS: _faiss,
}
"""Exact search; where each query's answer stands; everything at once, with memory of queries x gallery; FAISS's exact index."""


def measure(case: Case) -> dict[str, Any]:
    """Seconds, and how much memory (MiB) was added to that of the embeddings; in a process of its own."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    device = torch.device(case.device)
    queries, gallery = embeddings(case)
    CONTENDERS[case.contender](queries[:8], gallery[:8], Case(**{**asdict(case), "k": 1}))  # libraries start here
    before = peak_bytes(device)
    began = time.perf_counter()
    CONTENDERS[case.contender](queries, gallery, case)
    seconds = time.perf_counter() - began
    return {**asdict(case), "seconds": seconds, "added_mib": (peak_bytes(device) - before) / BYTES_PER_MIB}


def search(
    sizes: Annotated[str, typer.Option(help="embeddings of the gallery, one after the other")] = "5000,20000",
    queries: Annotated[int, typer.Option(min=1, help="at most so many; all of the gallery where it has fewer")] = 5000,
    width: Annotated[int, typer.Option(min=1, help="numbers of an embedding")] = 768,
    k: Annotated[int, typer.Option(min=1, help="how many are found")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="times that everything is measured in turn")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="default: all cores")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; FAISS stays on the CPU")] = "auto",
    largest_product: Annotated[float, typer.Option(help="GiB that 'one product' may take")] = 2.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all readings there too")] = None,
) -> None:
    """Exact search in blocks against one large product and FAISS's exact index: time, and memory beside the embeddings."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: choose auto, cpu or cuda")
    place = choose_device(device).type  # type: ignore[arg-type]
    cases = []
    for size in sizes.split(","):
        if not size.strip().isdigit() or not int(size):
            raise UserError(f"--sizes {sizes}: numbers of embeddings with commas between them, e.g. 5000,20000")
        asked = min(queries, int(size))
        too_large = asked * int(size) * 4 > largest_product * 2**30
        for name in CONTENDERS:
            is_there = name != _FAISS or importlib.util.find_spec("faiss") is not None
            if is_there and not (name == "one product" and too_large):
                cases.append(Case(name, asked, int(size), width, min(k, int(size)), place, threads))
    readings = [_apart(case) for _ in range(rounds) for case in cases]
    report = {"machine": describe_machine(), "rounds": rounds, "readings": readings}
    _print(report, cases)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _apart(case: Case) -> dict[str, Any]:
    """A new process for every reading: the largest memory of one is not that of the next."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (case,))


def _print(report: dict[str, Any], cases: list[Case]) -> None:
    console = Console()
    for name, value in report["machine"].items():
        console.print(f"{name:>10}: {value}", highlight=False, soft_wrap=True)
    table = Table("queries x gallery", "", "s", "x nearest", "G pairs/s", "MiB added")
    table.title = f"exact search on {cases[0].device}, width {cases[0].width}, medians of {report['rounds']} rounds"
    for case in cases:
        own = [
            one for one in report["readings"] if (one["contender"], one["gallery"]) == (case.contender, case.gallery)
        ]
        base = [one for one in report["readings"] if (one["contender"], one["gallery"]) == ("nearest", case.gallery)]
        seconds = median(one["seconds"] for one in own)
        # Of the same round: the machine may be busier in another one.
        ratio = median(one["seconds"] / first["seconds"] for one, first in zip(own, base, strict=True))
        others = case.queries if case.contender == "ranks" else case.gallery
        pairs = case.queries * others / seconds / 1e9
        memory = median(one["added_mib"] for one in own)
        size = f"{case.queries} x {others}"
        table.add_row(size, case.contender, f"{seconds:.3g}", f"{ratio:.2f}", f"{pairs:.3g}", f"{memory:.0f}")
    console.print(table)
