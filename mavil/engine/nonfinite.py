"""A step whose loss or gradient is not finite: what it was made of goes to the run folder, and every rank stops.

``nonfinite_step_XXXXXXXX/`` holds ``report.json`` (every rank's clips and loss terms), ``batch.rank{r}.pt`` of the ranks to
blame (their clips as they came from the loader, and the random generators) and ``weights.pt``. ``tools/replay_step.py``
computes the step again from it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from mavil import distributed
from mavil.atomic_files import write_text
from mavil.engine.wording import first_names
from mavil.structs import Batch, UserError

logger = logging.getLogger(__name__)

MOST_RANKS = 4
"""Ranks whose clips are kept."""
MOST_BYTES = 64 * 2**20
"""Of the clips kept per rank: 8 clips of 10 s with 16 frames of 340 x 256 pixels are 36 MB."""
_MOST_NAMES_UNWRITTEN = 64


def refuse_update(
    run: Path,
    step: int,
    batches: Sequence[Batch],
    loss: float,
    norm: float,
    metrics: Sequence[Mapping[str, Tensor | float]],
    *,
    random: dict[str, Any] | None = None,
    precision: str = "fp32",
    loss_scale: float = 1.0,
    model_state: Callable[[], dict[str, Tensor]] | None = None,
) -> NoReturn:
    """Keep what a refused step was made of and raise; called by every rank together, before the update.

    What cannot be written, because the disk is full or the clips are too large, is told in the log and never hides the
    error itself.

    Args:
        run: the run folder, shared by all ranks.
        step: its number; the first is 1.
        batches: this rank's, one per micro-step, as the loader gave them.
        loss: this rank's mean over the micro-steps.
        norm: of the gradient over all ranks, without loss scale.
        metrics: of each micro-step, by name, with ``loss/...`` among them.
        random: generators of this process before the first micro-step, from :func:`mavil.engine.process.runtime.random_state`.
        precision: what it computed in.
        loss_scale: factor of the loss.
        model_state: collective; the complete weights on rank 0, ``{}`` elsewhere. ``None`` keeps no weights.

    Raises:
        UserError: always, on every rank alike but for the loss; ranks to blame and their clips are named.
    """
    terms = [{name: float(value) for name, value in values.items()} for values in metrics]
    ranks = distributed.gather_objects(_share_of_report(batches, terms, loss, norm))
    blamed = ranks_to_blame(ranks)
    target = run / f"nonfinite_step_{step:08d}"
    content: dict[str, Any] = {"step": step, "precision": precision, "loss_scale": loss_scale, "random": random}
    if distributed.rank() in blamed[:MOST_RANKS]:
        content["batches"] = _chosen_clips(batches, [values["loss/total"] for values in terms])
    weights: dict[str, Tensor] = {}
    if model_state is not None:
        try:
            weights = model_state()
        except RuntimeError as error:
            logger.warning("step %d is kept without its weights: %s", step, error)
    is_written, problems = _write(target, {"step": step, "blamed": blamed, "ranks": ranks}, content, weights)
    for problem in problems:
        logger.warning("step %d could not be kept as a whole: %s", step, problem)
    at_most = 5 if is_written else _MOST_NAMES_UNWRITTEN
    named = [f"rank {r}: {first_names(ranks[r]['keys'], at_most)}" for r in blamed]
    advice = "Look at these clips, or lower optimizer.base_lr"
    if precision == "fp16":
        advice += ", or compute in a format that reaches further than 65504 (trainer.precision=bf16 or fp32)"
    where = f" (all in {target}; python tools/replay_step.py {run} {step})" if is_written else ""
    raise UserError(
        f"step {step}: the loss ({loss:g} on rank {distributed.rank()}) or its gradient (norm {norm:g}) is not finite; "
        f"nothing was updated. Clips: {'; '.join(named)}{where}. {advice}"
    )


def _share_of_report(
    batches: Sequence[Batch], terms: Sequence[Mapping[str, float]], loss: float, norm: float
) -> dict[str, Any]:
    # As text: JSON has no NaN.
    return {
        "loss": str(loss),
        "gradient_norm": str(norm),
        "keys": [key for batch in batches for key in batch.keys],
        "clips_with_bad_sound": [key for batch in batches for key in _clips_with_bad_sound(batch)],
        "micro_steps": [{name: str(value) for name, value in values.items()} for values in terms],
    }


def ranks_to_blame(ranks: Sequence[Mapping[str, Any]]) -> list[int]:
    """Those with the most loss terms that are not finite; all where the loss tells nothing.

    A clip with which others are compared spoils the terms of every rank, but those of its own rank first. A gradient is
    averaged over ranks: it does not tell whose clips spoilt it.
    """
    counts = [
        sum(
            name.startswith("loss/") and not math.isfinite(float(value))
            for values in rank["micro_steps"]
            for name, value in values.items()
        )
        for rank in ranks
    ]
    return [rank for rank, count in enumerate(counts) if count == max(counts)]


def read_report(folder: Path) -> dict[str, Any]:
    """``report.json`` of a refused step.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not the folder of a refused step: {error}") from None
    return report


def read_batches(folder: Path) -> dict[int, dict[str, Any]]:
    """What was kept of each rank: ``step``, ``precision``, ``loss_scale``, ``random``, ``batches`` and, of each, ``num_clips``.

    Raises:
        UserError: a file cannot be read.
    """
    found = {}
    for path in sorted(folder.glob("batch.rank*.pt")):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        content["num_clips"] = [kept.pop("num_clips") for kept in content["batches"]]
        content["batches"] = [Batch(**kept) for kept in content["batches"]]
        found[int(path.name.removeprefix("batch.rank").removesuffix(".pt"))] = content
    return found


def _chosen_clips(batches: Sequence[Batch], totals: Sequence[float]) -> list[dict[str, Any]]:
    """Micro-steps as plain values, in order, in at most :data:`MOST_BYTES`.

    One whose loss is not finite comes before the others, and is kept whole if it fits, for its clips are compared with each
    other. Of one that does not fit, clips with bad sound come first.
    """
    order = sorted(range(len(batches)), key=lambda i: math.isfinite(totals[i]))
    left, chosen = MOST_BYTES, {}
    for number in order:
        batch = batches[number]
        bytes_per_clip = sum(value.nbytes for value in _tensors(batch).values()) / max(1, len(batch))
        num_kept = min(len(batch), int(left / bytes_per_clip)) if bytes_per_clip else len(batch)
        if num_kept == 0:
            continue
        left -= int(num_kept * bytes_per_clip)
        bad = _clips_with_bad_sound(batch)
        kept = sorted(sorted(range(len(batch)), key=lambda i: batch.keys[i] not in bad)[:num_kept])
        chosen[number] = _plain(batch, kept)
    return [chosen[number] for number in sorted(chosen)]


def _plain(batch: Batch, kept: list[int]) -> dict[str, Any]:
    # Indexing copies: torch.save would write the whole storage of a view.
    values: dict[str, Any] = {name: value[kept].cpu() for name, value in _tensors(batch).items()}
    values["keys"] = [batch.keys[i] for i in kept]
    values["metadata"] = [dict(batch.metadata[i]) for i in kept] if batch.metadata else []
    return values | {"num_clips": len(batch)}


def _tensors(batch: Batch) -> dict[str, Tensor]:
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _clips_with_bad_sound(batch: Batch) -> list[str]:
    """Clips whose waveform is not finite; frames are whole numbers and always are."""
    if batch.waveforms is None:
        return []
    is_good = torch.isfinite(batch.waveforms).flatten(1).all(dim=1).tolist()
    return [key for key, good in zip(batch.keys, is_good, strict=True) if not good]


def _write(
    target: Path, report: dict[str, Any], content: dict[str, Any], weights: dict[str, Tensor]
) -> tuple[bool, list[str]]:
    """Write the folder aside and rename it; returns whether the report is there and what went wrong, alike on every rank."""
    aside = target.with_name(f".{target.name}.partial")
    problem = _attempt(lambda: _make_anew(aside)) if distributed.is_main() else None
    problem = distributed.broadcast_object(problem)
    if problem is not None:
        return False, [problem]
    own = []
    if distributed.is_main():
        # The smallest and most useful file first: the disk may be nearly full.
        own.append(_attempt(lambda: write_text(aside / "report.json", json.dumps(report, indent=2) + "\n")))
    if "batches" in content:
        own.append(_attempt(lambda: _save(aside / f"batch.rank{distributed.rank()}.pt", content)))
    found = [problem for rank in distributed.gather_objects(own) for problem in rank]
    if distributed.is_main():
        # The largest file last, when every rank has written its clips.
        if weights:
            found.append(_attempt(lambda: _save(aside / "weights.pt", weights)))
        found.append(_attempt(lambda: _put_in_place(aside, target)))
    # Also a barrier: the first rank to leave may end the others, and the folder must be there by then.
    is_written, found = distributed.broadcast_object(((target / "report.json").exists(), found))
    return is_written, [problem for problem in found if problem is not None]


def _attempt(action: Callable[[], None]) -> str | None:
    # torch.save reports a full disk as a RuntimeError.
    try:
        action()
    except (OSError, RuntimeError) as error:
        return f"{error}"
    return None


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _save(path: Path, content: Any) -> None:
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        raise OSError(f"{path.name}: {error}") from error


def _put_in_place(aside: Path, target: Path) -> None:
    """A resumed run may fail at the same step again: the newer folder replaces the older."""
    if not any(aside.iterdir()):
        aside.rmdir()
        raise OSError(f"{target}: nothing could be written")
    if target.exists():
        shutil.rmtree(target)
    os.rename(aside, target)
