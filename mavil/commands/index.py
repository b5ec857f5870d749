"""``mavil index FOLDER``: add FAISS to stored embeddings, so that large ones are searched faster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from mavil.atomic_files import unwritable
from mavil.embedder.stored import read_embeddings
from mavil.evaluation.nearest import nearest
from mavil.search import faiss_files
from mavil.search.faiss_files import Kind
from mavil.structs import MODALITIES, Modality, UserError

MOST_PROBES = 200
"""Rows of the index, spread evenly, whose neighbours are compared with those of exact search."""
NEIGHBOURS = 10


def index(
    folder: Annotated[Path, typer.Argument(help="embeddings that mavil embed has written")],
    kind: Annotated[
        Kind,
        typer.Option(help="flat: every row is compared; hnsw: a graph, fast; ivf: lists, smaller and faster to build"),
    ] = "hnsw",
) -> None:
    """Build a FAISS index beside the embeddings, and say how many of the nearest rows it finds; mavil search then uses it."""
    embeddings = read_embeddings(folder)
    if not len(embeddings):
        raise UserError(f"{folder} holds no embeddings: embed at least one clip")
    faiss_files.load_faiss()
    console = Console()
    built: dict[Modality, Any] = {}
    for modality in MODALITIES:  # what is fused is no query, and not searched
        rows = np.flatnonzero(embeddings.present.get(modality, ()))
        if not len(rows):
            continue
        begin = time.monotonic()
        values = np.asarray(embeddings.values[modality][rows], dtype=np.float32)
        built[modality] = faiss_files.build(kind, values)
        seconds = time.monotonic() - begin
        found = agreement(built[modality], values)
        exact = " (exact)" if faiss_files.is_exact(built[modality]) else ""
        console.print(
            f"{modality}: {len(rows)} rows, {kind}{exact}, built in {seconds:.1f} s, finds {100 * found:.1f} % of the "
            f"{min(NEIGHBOURS, len(rows))} nearest rows",
            highlight=False,
            soft_wrap=True,
        )
    try:
        faiss_files.write(folder, kind, str(embeddings.about["digest"]), built)
    except OSError as error:
        raise unwritable(folder, error) from None


def agreement(index: Any, values: np.ndarray) -> float:
    """The share of the nearest rows by exact search that the index finds too, over rows of its own as queries.

    Between equal embeddings there is no choice to agree on: a row counts that is as near as the last of the exact ones.
    """
    probes = values[np.unique(np.linspace(0, len(values) - 1, min(MOST_PROBES, len(values))).astype(np.int64))]
    k = min(NEIGHBOURS, len(values))
    wanted = nearest(probes, values, k)[0].numpy()
    _, rows = faiss_files.search(index, probes, k)
    scores = np.einsum("qz,qkz->qk", probes, values[rows.clip(0)])
    is_found = (rows >= 0) & (scores >= wanted[:, -1:] - 1e-5)
    return float(is_found.mean())
