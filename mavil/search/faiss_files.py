"""FAISS files beside stored embeddings: one per modality, and a note of which embeddings they were built of.

::

    FOLDER/                     written by mavil embed
        faiss.json              kind, digest of the embeddings, per modality the file's name, rows, size and SHA-256
        faiss-SHA256.audio      FAISS's own format; the name holds the beginning of its checksum
        faiss-SHA256.video

``faiss.json`` is replaced last. Until then the files that it names are still there: a killed ``mavil index`` changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mavil.atomic_files import sha256_of, sync, write_text
from mavil.structs import Modality, UserError

Kind = Literal["flat", "hnsw", "ivf"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NOTE = "faiss.json"
FORMAT = 1
LINKS = 32
"""Neighbours of a row in the graph of ``hnsw`` [source FAISS's guide to choosing an index: HNSW32]."""
EXPLORED_ROWS = 128
"""Rows that ``hnsw`` looks at beside those wanted: twice FAISS's usual 64 when searching [our choice]."""
ROWS_PER_LIST = 64
"""``ivf`` makes about one list per so many rows, at most :data:`MOST_LISTS`; FAISS warns below 39 rows to learn a list from."""
MOST_LISTS = 4096
LISTS_SEARCHED, LEAST_LISTS_SEARCHED = 1 / 8, 8
"""Of the lists of ``ivf``, those nearest to a query: a share of all, and how many at least [our choice]."""


@dataclass(frozen=True)
class FaissNote:
    """What ``faiss.json`` says; ``digest`` is that of the embeddings."""

    kind: Kind
    digest: str
    files: dict[Modality, dict[str, Any]]


def load_faiss() -> Any:
    """The ``faiss`` module.

    Raises:
        UserError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"FAISS is not installed ({error}): pip install 'mavil[faiss]'") from None
    return faiss


def build(kind: Kind, values: np.ndarray) -> Any:
    """A FAISS index of the rows ``values`` ``[n, Z]`` float32 by inner product; row i is i.

    Few rows are searched exactly whatever ``kind`` says: a graph or lists of less than a hundred rows save nothing.
    """
    faiss = load_faiss()
    rows, width = values.shape
    values = np.ascontiguousarray(values, dtype=np.float32)
    if kind == "hnsw" and rows > 2 * LINKS:
        index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 2 * EXPLORED_ROWS, EXPLORED_ROWS
    elif kind == "ivf" and rows > 2 * ROWS_PER_LIST:
        lists = min(MOST_LISTS, rows // ROWS_PER_LIST)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(values)
        index.nprobe = max(LEAST_LISTS_SEARCHED, round(lists * LISTS_SEARCHED))
    else:
        index = faiss.IndexFlatIP(width)
    index.add(values)
    return index


def search(index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores ``[q, k]`` and rows ``[q, k]``, the best first; row -1 where fewer than k were found."""
    faiss = load_faiss()
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if isinstance(index, faiss.IndexHNSW) and k > EXPLORED_ROWS:
        wider = faiss.SearchParametersHNSW(efSearch=2 * k)
        scores, rows = index.search(queries, k, params=wider)
    else:
        scores, rows = index.search(queries, k)
    return scores, rows


def is_exact(index: Any) -> bool:
    """Whether every row is compared."""
    return isinstance(index, load_faiss().IndexFlat)


def read_note(folder: Path) -> FaissNote | None:
    """What ``faiss.json`` says; ``None`` where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / NOTE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["format"] != FORMAT or tree["kind"] not in KINDS:
            raise ValueError(f"format {tree['format']}, kind {tree['kind']}")
        return FaissNote(tree["kind"], str(tree["digest"]), dict(tree["files"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); run mavil index {folder} again") from None


def write(folder: Path, kind: Kind, digest: str, indexes: dict[Modality, Any]) -> None:
    """Write the files and, last, the note; then remove what an earlier note named.

    Raises:
        OSError: the folder cannot be written.
    """
    faiss = load_faiss()
    files = {}
    for modality, index in indexes.items():
        aside = folder / f".faiss.{modality}.partial"
        try:
            faiss.write_index(index, str(aside))
        except RuntimeError as error:  # FAISS's name for a full disk and everything else
            aside.unlink(missing_ok=True)
            raise OSError(str(error)) from None
        sync(aside)
        checksum = sha256_of(aside)
        name = f"faiss-{checksum[:16]}.{modality}"
        files[modality] = {"name": name, "rows": index.ntotal, "bytes": aside.stat().st_size, "sha256": checksum}
        aside.replace(folder / name)
    sync(folder)
    note = {"format": FORMAT, "kind": kind, "digest": digest, "files": files}
    write_text(folder / NOTE, json.dumps(note, indent=1) + "\n")
    kept = {about["name"] for about in files.values()}
    for path in folder.glob("faiss-*.*"):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def read(folder: Path, note: FaissNote, modality: Modality) -> Any:
    """The FAISS index of one modality.

    Raises:
        UserError: the file is missing or not the one that was written.
    """
    faiss, about = load_faiss(), note.files.get(modality)
    try:
        if about is None:
            raise ValueError(f"it lists no file for {modality}")
        path = folder / Path(str(about["name"])).name
        if path.stat().st_size != about["bytes"] or sha256_of(path) != about["sha256"]:
            raise ValueError(f"{path.name} was changed since it was written")
        index = faiss.read_index(str(path))
        if index.ntotal != about["rows"]:
            raise ValueError(f"{path.name} holds {index.ntotal} rows, not {about['rows']}")
        return index
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{folder / NOTE}: the FAISS files are damaged ({error}); run mavil index {folder} again"
        ) from None
