"""``mavil retrieve RUN``: find the video for a sound and the sound for a video, and say which cues made it possible."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mavil import distributed
from mavil.atomic_files import write_text
from mavil.commands.assemble import load_masked
from mavil.commands.embedding import Embedded, embed_shards
from mavil.commands.inputs import shards_of
from mavil.config import Recipe
from mavil.engine.process.runtime import choose_device, settle
from mavil.evaluation.probing import Cue, CueResult, cue_column, cue_table
from mavil.evaluation.retrieval import both_directions
from mavil.recipe import change_recipe
from mavil.structs import UserError

RESULT_FILE = "retrieval.json"
LOUDNESS = "loudness"
"""The one cue that is measured from the clip and needs no metadata."""


def retrieval_results(embedded: Embedded, within: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Both directions over the whole gallery, and inside the groups of each metadata field of ``within``.

    The gallery are the clips that have both modalities.

    Raises:
        UserError: there are none, or one has no such metadata field.
    """
    embedded = embedded.complete()
    results = {"whole gallery": both_directions(embedded.audio, embedded.video)}
    for field in within:
        groups = cue_column(embedded.metadata, field)
        results[f"within one {field}"] = both_directions(embedded.audio, embedded.video, groups)
    return results


def cue_results(train: Embedded, test: Embedded, cues: list[str]) -> list[CueResult]:
    """Linear probes of each cue from each modality's embedding, fitted on ``train``, scored on ``test``.

    On clips that have both modalities, so that the two columns are of the same clips.
    """
    train, test = train.complete(), test.complete()

    def columns(embedded: Embedded) -> dict[str, Cue]:
        return {cue: embedded.loudness if cue == LOUDNESS else cue_column(embedded.metadata, cue) for cue in cues}

    def embeddings(embedded: Embedded) -> dict[str, Tensor]:
        return {"audio": embedded.audio, "video": embedded.video}

    return cue_table(embeddings(train), columns(train), embeddings(test), columns(test))


def left_out(embedded: Embedded) -> dict[str, int]:
    """How many clips are in no gallery, by the modality they lack; none has neither."""
    return {
        "without_audio": int((~embedded.audio_present).sum()),
        "without_video": int((~embedded.video_present).sum()),
    }


def names_in(text: str | None) -> list[str]:
    """``"a,b"`` to ``["a", "b"]``."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def retrieve(
    run: Annotated[Path, typer.Argument(help="pre-training run folder")],
    shards: Annotated[str | None, typer.Option(help="the gallery; default: the run's data.evaluation")] = None,
    within: Annotated[
        str | None, typer.Option(help="metadata fields, e.g. speaker: also search inside one group only")
    ] = None,
    cues: Annotated[
        str | None, typer.Option(help="what to probe for: metadata fields and 'loudness', e.g. speaker,loudness")
    ] = None,
    train_shards: Annotated[
        str | None, typer.Option(help="shards the probes are fitted on; default: the run's data.train")
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="which one: newest, best (see trainer.best_metric) or a step")
    ] = "newest",
) -> None:
    """Retrieval in both directions with the gallery size and chance, and probes of cues; writes RUN/retrieval.json."""
    model, recipe = load_masked(run, checkpoint)
    if len(recipe.modalities) < 2:
        raise UserError(f"{run} has {recipe.modalities[0]} only: retrieval between modalities needs both")
    recipe = _with_shards(recipe, shards, train_shards)
    device = choose_device(recipe.trainer.device)
    settle(device, recipe.trainer.num_threads)
    with distributed.process_group(device):
        gallery = embed_shards(model, recipe, shards_of(recipe, "evaluation"), device)
        results = retrieval_results(gallery, names_in(within))
        probed: list[CueResult] = []
        if names_in(cues):
            train = embed_shards(model, recipe, shards_of(recipe, "train"), device)
            probed = cue_results(train, gallery, names_in(cues))
        if not distributed.is_main():
            return
        stored = {
            "shards": recipe.data.evaluation,
            "checkpoint": checkpoint,
            "left_out": left_out(gallery),
            "retrieval": results,
            "cues": [asdict(cue) for cue in probed],
        }
        write_text(run / RESULT_FILE, json.dumps(stored, indent=2) + "\n")
        console = Console()
        _print_left_out(console, gallery)
        _print(console, results, probed)


def _with_shards(recipe: Recipe, shards: str | None, train_shards: str | None) -> Recipe:
    changes = [f"data.evaluation={shards}"] if shards else []
    changes += [f"data.train={train_shards}"] if train_shards else []
    return change_recipe(recipe, *changes)


def _print_left_out(console: Console, gallery: Embedded) -> None:
    sound, picture = left_out(gallery).values()
    if sound + picture:
        console.print(
            f"{sound + picture} of {len(gallery.keys)} clips left out of the gallery: {sound} without sound, "
            f"{picture} without picture",
            highlight=False,
        )


def _print(console: Console, results: dict[str, dict[str, dict[str, Any]]], cues: list[CueResult]) -> None:
    table = Table(
        "gallery", "clips", "direction", "R@1", "R@5", "R@10", "chance", "median rank", title="retrieval, percent"
    )
    for gallery, ways in results.items():
        for way, numbers in ways.items():
            recalls = [f"{numbers[f'recall_at_{k}_percent']:.1f}" for k in (1, 5, 10)]
            chances = " / ".join(f"{numbers[f'chance_at_{k}_percent']:.3g}" for k in (1, 5, 10))
            size, rank = f"{numbers['gallery_size']:.0f}", f"{numbers['median_rank']:.1f}"
            table.add_row(gallery, size, way.replace("_", " "), *recalls, chances, rank)
    console.print(table)
    if not cues:
        return
    table = Table("cue", "measure", "audio", "video", "shuffled", "chance", title="linear probes of embeddings")
    for cue in cues:
        scores = [f"{cue.probes[m].score:.3f}" for m in ("audio", "video")]
        shuffled = " / ".join(f"{cue.shuffled[m]:.3f}" for m in ("audio", "video"))
        measure = "R²" if cue.kind == "value" else "accuracy"
        table.add_row(cue.cue, measure, *scores, shuffled, f"{cue.chance:.3f}")
    console.print(table)
