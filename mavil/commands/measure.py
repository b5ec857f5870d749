"""``mavil measure RUN``: the numbers an ablation compares, of one finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from mavil import distributed
from mavil.atomic_files import write_text
from mavil.commands.assemble import curve_of, load_masked, read_recipe
from mavil.commands.embedding import Embedded, embed_shards
from mavil.commands.evaluate import evaluate_run
from mavil.commands.inputs import open_split, shards_of
from mavil.commands.inspect import inspect_recipe
from mavil.commands.retrieve import retrieval_results
from mavil.commands.schedule import global_batch
from mavil.commands.words import names_in
from mavil.config import PretrainTask, Recipe
from mavil.data.stream.shard_set import open_shards
from mavil.engine.checkpoints.folder import MANIFEST, read_manifest, step_of
from mavil.engine.checkpoints.reading import latest_checkpoint
from mavil.engine.metrics.tracker import read_metrics
from mavil.engine.process.runtime import choose_device, settle
from mavil.evaluation.probing import Cue, cue_column, cue_kind, probe_labels, probe_value
from mavil.pipelines.ablation import Measure
from mavil.structs import UserError

SPLITS = ("train", "evaluation")
RESULT_FILE = "measurement.json"
LABEL = "label"
"""The one probe that is of the clip's own label and not of a metadata field."""


def stored_measurement(run: Path, wanted: Measure) -> dict[str, float] | None:
    """What was measured of a run's newest checkpoint in this way before; ``None`` where that has still to be done."""
    try:
        stored = json.loads((run / RESULT_FILE).read_text())
        is_same = stored["checkpoint"] == _newest(run) and stored["wanted"] == _plain(wanted)
        return dict(stored["measures"]) if is_same else None
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def measure_run(run: Path, wanted: Measure) -> dict[str, float]:
    """Measure a run's newest checkpoint and write ``RUN/measurement.json``; names are ``group/what``.

    Raises:
        UserError: no checkpoint, no shards, a field that the clips do not have.
    """
    checkpoint = _newest(run)
    recipe = read_recipe(run, _shards_in(wanted))
    device = choose_device(recipe.trainer.device)
    settle(device, recipe.trainer.num_threads)
    with distributed.process_group(device):
        if isinstance(recipe.task, PretrainTask):
            measures = _of_embeddings(run, recipe, wanted, device)
        else:
            metrics = evaluate_run(run, recipe).metrics
            measures = {f"evaluation/{name}": value for name, value in metrics.items()}
        measures |= _costs(run, recipe) | _last_losses(run)
        if distributed.is_main():
            stored = {"checkpoint": checkpoint, "wanted": _plain(wanted), "measures": measures}
            write_text(run / RESULT_FILE, json.dumps(stored, indent=2) + "\n")
    return measures


def check_fields(recipe: Recipe, wanted: Measure) -> None:
    """Before hours are spent: whether the clips have what is to be probed and grouped by; goes to no other machine.

    Raises:
        UserError: the first clip of the shards, where they lie here, lacks a metadata field.
    """
    fields = [name for name in (*wanted.probes, *wanted.within) if name != LABEL]
    places = {wanted.train or recipe.data.train, wanted.evaluation or recipe.data.evaluation}
    for place in sorted(place for place in places if place and Path(place).is_dir()):
        record = json.loads(next(open_shards(place).records()))
        for field in fields:
            try:
                cue_column([record["metadata"]], field)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None


def probe_scores(train: Mapping[str, Tensor], known: Cue, test: Mapping[str, Tensor], asked: Cue) -> dict[str, float]:
    """Scores of linear probes on frozen embeddings by modality, and ``chance``: accuracies in percent, or R².

    ``train`` and ``test`` hold ``[clips, D]`` by modality; ``both`` are all of them side by side. ``known`` and ``asked`` are
    the cue of each training and test clip.

    Raises:
        ValueError: the cue has one value only, or more different texts than could be classes.
    """
    kind = cue_kind([*known, *asked])
    if kind is None:
        raise ValueError("it has one value only, or is a text of its own for nearly every clip")
    if len(train) > 1:
        train, test = ({**rows, "both": torch.cat([*rows.values()], dim=1)} for rows in (train, test))
    scores: dict[str, float] = {}
    for name, rows in train.items():
        if kind == "labels":
            result = probe_labels(rows, [str(v) for v in known], test[name], [str(v) for v in asked])
        else:
            result = probe_value(rows, [float(v) for v in known], test[name], [float(v) for v in asked])
        factor = 100 if kind == "labels" else 1
        scores |= {name: factor * result.score, "chance": factor * result.chance}
    return scores


def training_seconds(lines: Sequence[Mapping[str, Any]], clips_per_step: int) -> float:
    """Seconds a run computed, from the speeds in its metrics: without evaluations, checkpoints and starts."""
    seconds, before = 0.0, 0
    for line in lines:
        speed = line["conditions"].get("speed/clips_per_second")
        if speed:
            seconds += (line["step"] - before) * clips_per_step / speed
            before = line["step"]
    return seconds


def _of_embeddings(run: Path, recipe: Recipe, wanted: Measure, device: torch.device) -> dict[str, float]:
    model, _ = load_masked(run)
    gallery = embed_shards(model, recipe, shards_of(recipe, "evaluation"), device)
    measures: dict[str, float] = {}
    if wanted.probes:
        # Probes look at what stands before a projection, which keeps what the contrast asks for and little else.
        sets = {split: embed_shards(model, recipe, shards_of(recipe, split), device, False) for split in SPLITS}
        fitted_on, scored_on = (sets[split].complete(recipe.modalities) for split in SPLITS)
        for field in wanted.probes:
            known, asked = _cue(recipe, "train", fitted_on, field), _cue(recipe, "evaluation", scored_on, field)
            try:
                scores = probe_scores(_rows(recipe, fitted_on), known, _rows(recipe, scored_on), asked)
            except ValueError as error:
                raise UserError(f"{field!r} cannot be probed: {error}; name another one") from None
            measures |= {f"probe/{field}/{name}": score for name, score in scores.items()}
    if wanted.retrieval and len(recipe.modalities) > 1:
        for where, directions in retrieval_results(gallery, list(wanted.within)).items():
            group = "retrieval" if where == "whole gallery" else f"retrieval {where}"
            for direction, numbers in directions.items():
                way = direction.replace("_", " ")
                measures |= {f"{group}/{way} R@{k}": numbers[f"recall_at_{k}_percent"] for k in (1, 5, 10)}
                measures[f"{group}/chance R@1"] = numbers["chance_at_1_percent"]
    return measures


def _rows(recipe: Recipe, embedded: Embedded) -> dict[str, Tensor]:
    """``[clips, D]`` by modality."""
    return {modality: getattr(embedded, modality) for modality in recipe.modalities}


def _cue(recipe: Recipe, split: str, embedded: Embedded, field: str) -> Cue:
    if field != LABEL:
        return cue_column(embedded.metadata, field)
    shards = open_split(recipe, split)
    labels = {record["key"]: record["labels"] for record in map(json.loads, shards.records())}
    several = [key for key in embedded.keys if len(labels[key]) != 1]
    if several:
        raise UserError(
            f"{shards.storage.location}: {several[0]} has {len(labels[several[0]])} labels, a probe needs one per clip: "
            "probe a metadata field instead"
        )
    return [labels[key][0] for key in embedded.keys]


def _costs(run: Path, recipe: Recipe) -> dict[str, float]:
    """What the run cost: multiply-adds of training on one clip, backward pass and teacher included, and on all clips seen."""
    newest = latest_checkpoint(run)
    assert newest is not None  # or there would be nothing to measure
    batch = global_batch(recipe, int(read_manifest(newest)["ranks"]))
    clips = step_of(newest) * batch
    one_clip = inspect_recipe(recipe).multiply_adds["training_step"]
    return {
        "cost/G multiply-adds per clip": one_clip / 1e9,
        "cost/clips": float(clips),
        "cost/T multiply-adds": one_clip * clips / 1e12,
        "cost/training s": training_seconds(read_metrics(run), batch),
    }


def _last_losses(run: Path) -> dict[str, float]:
    for line in reversed(curve_of(run)):
        found = {name: value for name, value in line.items() if name.startswith("loss/")}
        if found:
            return found
    return {}


def _shards_in(wanted: Measure) -> list[str]:
    changes = [f"data.evaluation={wanted.evaluation}"] if wanted.evaluation else []
    return changes + ([f"data.train={wanted.train}"] if wanted.train else [])


def _newest(run: Path) -> dict[str, Any]:
    newest = latest_checkpoint(run)
    if newest is None:
        raise UserError(f"{run} has no checkpoint to measure: train it first")
    return {"step": step_of(newest), "digest": json.loads((newest / MANIFEST).read_bytes()).get("sha256")}


def _plain(wanted: Measure) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(wanted)))  # lists, as they come back from the file
    return plain


def measure(
    run: Annotated[Path, typer.Argument(help="run folder")],
    probes: Annotated[
        str | None, typer.Option(help="linear probes of frozen embeddings for these: label, or metadata fields")
    ] = None,
    retrieval: Annotated[bool, typer.Option(help="retrieval in both directions")] = True,
    within: Annotated[str | None, typer.Option(help="metadata fields: also search inside one group only")] = None,
    train_shards: Annotated[
        str | None, typer.Option(help="shards the probes are fitted on; default: the run's data.train")
    ] = None,
    shards: Annotated[str | None, typer.Option(help="shards to score on; default: the run's data.evaluation")] = None,
) -> None:
    """Measure a run for an ablation: probes, retrieval, cost and losses; writes RUN/measurement.json."""
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    wanted = Measure(tuple(names_in(probes)), retrieval, tuple(names_in(within)), train_shards, shards)
    for name, value in measure_run(run, wanted).items():
        typer.echo(f"{name}: {value:.6g}")
