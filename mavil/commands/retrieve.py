"""``mavil retrieve RUN [DATA]``: find the video for a sound and the sound for a video, by a stated protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from torch import Tensor

from mavil import distributed
from mavil.commands.assemble import load_masked
from mavil.commands.embedding import Embedded, embed_shards, embed_windows
from mavil.commands.evaluate_results import write_folder
from mavil.commands.inputs import open_split, shards_of
from mavil.commands.overlap import overlaps_of
from mavil.commands.retrieve_galleries import PROTOCOLS, WHOLE, Notes, choose_gallery, repeated_labels, silent_lines
from mavil.commands.retrieve_results import (
    FOLDER,
    Results,
    print_retrieval,
    refuse_foreign_folder,
    write_retrieval,
)
from mavil.commands.words import names_in, split_words
from mavil.config import Recipe, VideoBranch
from mavil.engine.process.runtime import choose_device, settle
from mavil.evaluation.classification import BOOTSTRAP_SEED, LEVEL
from mavil.evaluation.probing import Cue, CueResult, cue_column, cue_table
from mavil.evaluation.retrieval import both_directions, retrieval_metrics
from mavil.evaluation.retrieval.class_precision import LARGEST
from mavil.evaluation.retrieval.result import Search
from mavil.models.masked import MaskedLearner
from mavil.recipe import change_recipe
from mavil.structs import UserError

LOUDNESS = "loudness"
"""The one cue that is measured from the clip and needs no metadata."""


def retrieval_results(
    embedded: Embedded, within: list[str], search: Search | None = None, name: str = WHOLE
) -> Results:
    """Both directions over the whole gallery, and inside the groups of each metadata field of ``within``.

    The gallery are the clips that have both modalities. Where ``search`` says which sounds exist, it is all clips as they are.

    Raises:
        UserError: there are none, or one has no such metadata field.
    """
    if search is None or search.query_present is None:
        embedded = embedded.complete()
    results = {name: both_directions(embedded.audio, embedded.video, search=search)}
    for field in within:
        groups = cue_column(embedded.metadata, field)
        results[f"within one {field}"] = both_directions(embedded.audio, embedded.video, groups, search)
    return results


def instance_results(
    windows: Embedded, counts: Tensor, seconds: dict[str, float], recipe: Recipe, search: Search
) -> tuple[Results, list[str]]:
    """The first window of a clip searches the last ones of all clips, and back, in each modality by itself.

    Args:
        windows: two windows of each clip, ``[n, 2, Z]``.
        counts: how many a clip has, ``[n]``.
        seconds: how long each clip is. Only those whose windows do not overlap take part: else they share their content.
        recipe: says how long a window is.
        search: how it is judged.

    Returns:
        The numbers, and a line per modality: how many clips are long enough.
    """
    results: Results = {}
    lines: list[str] = []
    for modality in recipe.modalities:
        rows, has = (
            (windows.audio, windows.audio_present) if modality == "audio" else (windows.video, windows.video_present)
        )
        length = _window_seconds(recipe, modality)
        is_long = torch.tensor([seconds[key] >= 2 * length for key in windows.keys]) & (counts > 1) & has
        number = int(is_long.sum())
        lines.append(
            f"{modality} to {modality}: {number} of {len(windows.keys)} clips have two windows of {length:g} s that do not "
            "overlap"
        )
        if number < 2:
            lines[-1] += "; at least 2 are needed"
            continue
        first, last = rows[is_long].unbind(dim=1)
        results[f"{modality}, two windows of a clip"] = {
            "first_to_last": retrieval_metrics(first, last, search=search).to_dict(),
            "last_to_first": retrieval_metrics(last, first, search=search).to_dict(),
        }
    return results, lines


def _window_seconds(recipe: Recipe, modality: str) -> float:
    branch = recipe.video if modality == "video" else recipe.audio
    assert branch is not None
    return branch.num_frames / branch.frames_per_second if isinstance(branch, VideoBranch) else branch.seconds


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


@dataclass(frozen=True)
class Wishes:
    """What was asked for on the command line."""

    protocol: str
    within: list[str]
    cues: list[str]
    windows: str
    instances: bool
    bootstrap: int


def retrieve(
    run: Annotated[Path, typer.Argument(help="pre-training run folder, or one fine-tuned for retrieval")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA] [KEY=VALUE]...",
            help="shards to search (default: the run's data.evaluation), and settings to change",
        ),
    ] = None,
    protocol: Annotated[str, typer.Option(help=f"which clips are searched: {PROTOCOLS}")] = "whole",
    within: Annotated[
        str | None, typer.Option(help="metadata fields, e.g. speaker: also search inside one group only")
    ] = None,
    windows: Annotated[
        Literal["mean", "best"],
        typer.Option(help="of several data.evaluation_windows: their mean, or the most similar pair of two clips"),
    ] = "mean",
    instances: Annotated[
        bool, typer.Option("--instances", help="also sound to sound and picture to picture: two windows of one clip")
    ] = False,
    cues: Annotated[
        str | None, typer.Option(help="what to probe for: metadata fields and 'loudness', e.g. speaker,loudness")
    ] = None,
    train_shards: Annotated[
        str | None, typer.Option(help="shards the probes are fitted on; default: the run's data.train")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="resamples of the queries for the intervals; 0: none")] = 1000,
    checkpoint: Annotated[
        str, typer.Option(help="which one: newest, best (see trainer.best_metric) or a step")
    ] = "newest",
    out: Annotated[Path | None, typer.Option(help="folder of the results; default: RUN/retrieval; replaced")] = None,
) -> None:
    """Retrieval in both directions with the gallery size and chance, and probes of cues; writes the folder RUN/retrieval."""
    data, changes = split_words(words or [])
    changes += [f"data.evaluation={data}"] if data else []
    changes += [f"data.train={train_shards}"] if train_shards else []
    wishes = Wishes(protocol, names_in(within), names_in(cues), windows, instances, bootstrap)
    retrieve_run(run, changes, wishes, checkpoint, out or run / FOLDER)


def retrieve_run(run: Path, changes: list[str], wishes: Wishes, checkpoint: str, place: Path) -> None:
    """Embed, search, print and write into ``place``; ``changes`` are settings KEY=VALUE.

    Raises:
        UserError: the run, the data or the protocol do not allow what is wished for; ``place`` is then as it was.
    """
    refuse_foreign_folder(place)
    model, recipe = load_masked(run, checkpoint)
    recipe = change_recipe(recipe, *changes)
    _refuse(run, recipe, wishes)
    device = choose_device(recipe.trainer.device)
    settle(device, recipe.trainer.num_threads)
    with distributed.process_group(device):
        embedded, pairs, train = _embed(model, recipe, device, wishes)
        if not distributed.is_main():
            return
    results, lines, facts = _judge(recipe, device, wishes, embedded, pairs)
    probed = cue_results(train, embedded, wishes.cues) if train is not None and embedded is not None else []
    overlaps = overlaps_of(recipe)
    stored = {
        "run": str(run),
        "data": recipe.data.evaluation,
        "checkpoint": checkpoint,
        "protocol": wishes.protocol,
        "evaluation_windows": recipe.data.evaluation_windows,
        "windows": wishes.windows,
        "bootstrap": {"resamples": wishes.bootstrap, "over": "queries", "percent": LEVEL, "seed": BOOTSTRAP_SEED},
        **facts,
        **overlaps.facts(),
        "cues": [asdict(cue) for cue in probed],
    }
    write_folder(place, lambda folder: write_retrieval(folder, stored, results))
    console = Console()
    for line in [*lines, *overlaps.lines()]:
        console.print(line, highlight=False, soft_wrap=True)
    print_retrieval(console, results, probed)
    console.print(f"written: {place}", highlight=False, soft_wrap=True)


def _refuse(run: Path, recipe: Recipe, wishes: Wishes) -> None:
    """What cannot be searched, before anything is embedded."""
    if wishes.windows == "best" and recipe.data.evaluation_windows < 2:
        raise UserError("--windows best chooses among several windows of a clip: add e.g. data.evaluation_windows=4")
    if len(recipe.modalities) < 2 and not wishes.instances:
        raise UserError(
            f"{run} has {recipe.modalities[0]} only: retrieval between modalities needs both; --instances searches two windows "
            "of one clip"
        )
    for name, value in (("--within", wishes.within), ("--cues", wishes.cues)):
        if value and len(recipe.modalities) < 2:
            raise UserError(f"{name} is about retrieval between modalities, but {run} has {recipe.modalities[0]} only")


def _embed(
    model: MaskedLearner, recipe: Recipe, device: torch.device, wishes: Wishes
) -> tuple[Embedded | None, tuple[Embedded, Tensor] | None, Embedded | None]:
    """The clips of the gallery, two windows of each of them, and the clips that probes are fitted on; ``None``: not wanted."""
    shards, embedded, pairs, train = shards_of(recipe, "evaluation"), None, None, None
    if len(recipe.modalities) == 2:
        if wishes.windows == "best":
            embedded, _ = embed_windows(model, recipe, shards, device)
        else:
            embedded = embed_shards(model, recipe, shards, device)
    if wishes.instances:
        pairs = embed_windows(model, change_recipe(recipe, "data.evaluation_windows=2"), shards, device)
    if wishes.cues:
        train = embed_shards(model, recipe, shards_of(recipe, "train"), device)
    return embedded, pairs, train


def _judge(
    recipe: Recipe,
    device: torch.device,
    wishes: Wishes,
    embedded: Embedded | None,
    pairs: tuple[Embedded, Tensor] | None,
) -> tuple[Results, list[str], dict[str, Any]]:
    """Numbers by gallery and direction, what there is to say about the galleries, and the same for JSON."""
    notes = Notes.of(open_split(recipe, "evaluation"))
    results: Results = {}
    lines: list[str] = []
    facts: dict[str, Any] = {}
    search = Search(bootstrap=wishes.bootstrap, device=device)
    if embedded is not None:
        gallery = choose_gallery(wishes.protocol, embedded, notes)
        lines += [] if gallery.keeps_silent else silent_lines(embedded)
        lines += gallery.lines
        facts = {"left_out": _left_out(embedded), "num_clips": len(gallery.embedded.keys), **gallery.facts}
        if gallery.keeps_silent:  # the precision by class does not know of clips that are not there
            own = replace(search, query_present=gallery.embedded.audio_present)
        else:
            own = replace(search, labels=_labels(gallery.embedded.keys, notes, lines))
        results = retrieval_results(gallery.embedded, wishes.within, own, gallery.name)
        if wishes.windows == "best" or recipe.data.evaluation_windows > 1:
            what = "the most similar pair counts" if wishes.windows == "best" else "their mean counts"
            lines.append(f"at most {recipe.data.evaluation_windows} windows of a clip: {what}")
    if pairs is not None:
        found, told = instance_results(*pairs, notes.seconds, recipe, search)
        results |= found
        lines += told
    return results, lines, facts


def _labels(keys: Sequence[str], notes: Notes, lines: list[str]) -> list[tuple[str, ...]] | None:
    labels = repeated_labels(keys, notes)
    if labels is not None and len(keys) > LARGEST:
        lines.append(f"mAP by class is left out: {len(keys)} clips, it is computed for at most {LARGEST}")
        return None
    return labels


def _left_out(embedded: Embedded) -> dict[str, int]:
    """How many clips lack a modality; none has neither."""
    return {
        "without_audio": int((~embedded.audio_present).sum()),
        "without_video": int((~embedded.video_present).sum()),
    }
