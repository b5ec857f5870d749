"""Indexes for tests of search: stored embeddings written without ``mavil embed``."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mavil.data.synthetic import make_synthetic_shards
from mavil.embedder import stored_files
from mavil.embedder.embedder import Embedder
from mavil.embedder.loading import load
from mavil.embedder.stored import ABOUT, COMPLETE, FORMAT, described_files
from mavil.embedder.stored_files import FUSED, Column, Piece, Rows
from mavil.recipe import change_recipe
from tests.support.random_runs import write_run
from tests.support.recipes import tiny_recipe


def write_embeddings(
    folder: Path,
    values: Mapping[Column, np.ndarray],
    clips: Sequence[str],
    starts: Sequence[float] | None = None,
    present: Mapping[Column, Sequence[bool]] | None = None,
    sources: Sequence[str] | None = None,
    model: str = "a model",
    weights_digest: str = "digest",
) -> Path:
    """A folder as ``mavil embed`` writes it: row i is ``values[modality][i]`` of clip ``clips[i]``, 1 s from ``starts[i]`` on."""
    folder.mkdir(parents=True, exist_ok=True)
    begin = np.asarray(starts if starts is not None else np.zeros(len(clips)), dtype=np.float32)
    flags = {m: np.asarray(present[m] if present else np.ones(len(clips)), dtype=bool) for m in values}
    rows = Rows(list(clips), list(sources or [f"{c}.mp4" for c in clips]), begin, begin + 1, flags)
    widths = {m: v.shape[1] for m, v in values.items()}
    piece = Piece(rows, {m: np.asarray(v, dtype=np.float32) for m, v in values.items()})
    names = stored_files.write(folder, "npy", widths, len(clips), [piece])
    files, digest = described_files(folder, names)
    about = {
        "format": FORMAT,
        "state": COMPLETE,
        "model": {"source": model, "weights_digest": weights_digest},
        "modalities": {m: width for m, width in widths.items() if m != FUSED},
        "file_format": "npy",
        "num_rows": len(clips),
        "files": files,
        "digest": digest,
    }
    if FUSED in widths:
        about["fused"] = {"audio": widths[FUSED] // 2, "video": widths[FUSED] - widths[FUSED] // 2}
    (folder / ABOUT).write_text(json.dumps(about))
    return folder


@dataclass(frozen=True)
class Searchable:
    """A run with random weights, media files, shards of the same clips, and indexes of both."""

    run: Path
    files: list[Path]
    index: Path
    index_of_shards: Path


@functools.cache
def searchable() -> Searchable:
    """Made once for all tests, which change nothing in it; four clips of 4 s."""
    folder = Path(tempfile.mkdtemp(prefix="searchable-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_synthetic_shards(4, folder / "shards", clips_per_shard=4, show_progress=False)
    run = write_run(folder / "run", change_recipe(tiny_recipe(), "audio.mean=-7.0", "audio.std=4.0"))
    (shard,) = (folder / "shards").glob("*.tar")
    (folder / "files").mkdir()
    with tarfile.open(shard) as tar:
        for member in tar.getmembers():
            content = tar.extractfile(member)
            if content is not None and member.name.endswith(".mp4"):
                (folder / "files" / member.name).write_bytes(content.read())
    files = sorted((folder / "files").iterdir())
    model = load(run, device="cpu", output="numpy")
    in_shard = [f"{shard}::{file.stem}" for file in files]
    return Searchable(
        run,
        files,
        embed_files(folder / "index", model, files),
        embed_files(folder / "of_shards", model, files, in_shard),
    )


def embed_files(
    folder: Path, model: Embedder[np.ndarray], files: Sequence[Path], sources: Sequence[str] | None = None
) -> Path:
    """An index of both modalities of media files, which all have both, made with a model."""
    clips, starts, places = [], [], []
    values: dict[Column, list[np.ndarray]] = {"audio": [], "video": []}
    for file, source in zip(files, sources or [str(f) for f in files], strict=True):
        own = {
            "audio": model.embed_audio(file, windows=True),
            "video": model.embed_video(file, windows=True),
        }
        for row in range(min(len(windowed.values) for windowed in own.values())):
            clips.append(file.stem)
            places.append(source)
            starts.append(float(own["audio"].starts[row]))
            for modality, windowed in own.items():
                values[modality].append(windowed.values[row])
    arrays: dict[Column, np.ndarray] = {m: np.stack(v) for m, v in values.items()}
    return write_embeddings(
        folder, arrays, clips, starts, None, places, model=model.source, weights_digest=model.weights_digest
    )
