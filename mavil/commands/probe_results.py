"""What probes found, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from mavil.commands.evaluate_results import csv_text, write_folder
from mavil.commands.probe_clips import Splits, Usable
from mavil.commands.probe_trials import NUM_RESAMPLES, Plan, Row
from mavil.config import Recipe
from mavil.evaluation.predictions import Predictions, write_predictions
from mavil.features.cached import digest_of
from mavil.features.clips import clips_identity
from mavil.features.frozen import FrozenOptions

FOLDER, JSON_FILE, CSV_FILE = "probe", "probe.json", "probe.csv"
COLUMNS = (
    *("encoder", "kind", "shown", "metric", "value", "deviation_over_seeds", "low", "high", "validation", "chance"),
    *("seeds", "num_train", "num_validation", "num_evaluated"),
)


def facts_of(
    run: Path,
    recipe: Recipe,
    checkpoint: str,
    options: FrozenOptions,
    plan: Plan,
    encoded: Mapping[str, Usable],
    weights: Mapping[str, str],
) -> dict[str, Any]:
    """The protocol behind the numbers, as JSON can hold it; ``weights`` are digests by encoder."""
    splits = plan.splits
    clips = {
        split.option.removeprefix("--"): {
            "shards": split.shards,
            "digest": digest_of({"clips": [entry[:4] for entry in clips_identity(split.opened)]}),
            "num_clips": split.opened.index.num_clips,
            "num_used": len(encoded[split.option].keys),
            "left_out": encoded[split.option].left_out,
        }
        for split in splits.each()
    }
    return {
        "run": str(run),
        "recipe": recipe.name,
        "checkpoint": checkpoint,
        "weights": dict(weights),
        "layer": options.layer,
        "pooling": options.pooling,
        "windows": "the middle one of each clip",
        "clips": clips,
        "validation": "given" if splits.validation else "a tenth of the training clips, another one for each seed",
        "group_field": plan.group_field,
        "classes": len(splits.vocabulary),
        "unseen_classes": splits.unseen(),
        "num_shared_keys": splits.shared_keys(),
        "num_of_shared_groups": splits.shared_groups(plan.group_field) if plan.group_field else None,
        "grid": "none" if plan.has_no_grid else "small",
        "seeds": plan.seeds,
        "interval": f"95 %, of the first seed's probe, {NUM_RESAMPLES} bootstrap resamples of the clips",
    }


def write_results(
    out: Path, rows: Sequence[Row], facts: Mapping[str, Any], splits: Splits, keys: Sequence[str]
) -> None:
    """``OUT/probe/``: ``probe.json``, ``probe.csv`` and a file of predictions per kind and encoder.

    An earlier folder is replaced when the new one is complete.

    Raises:
        UserError: it cannot be written.
    """
    about = {**facts, "results": [_entry(row) for row in rows]}

    def write(folder: Path) -> None:
        (folder / JSON_FILE).write_text(json.dumps(about, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / CSV_FILE).write_text(csv_text([COLUMNS, *map(_line, rows)]), encoding="utf-8")
        for name, predictions in _predictions(rows, facts, splits, keys).items():
            write_predictions(folder / name, predictions)

    write_folder(out / FOLDER, write)


def remarks_on(splits: Splits, encoded: Mapping[str, Usable], group_field: str | None) -> list[str]:
    """What people should know beside the table."""
    lines = []
    for split in splits.each():
        found = encoded[split.option]
        told = ", ".join(f"{cause} {number}" for cause, number in found.left_out.items())
        if told:
            lines.append(f"{split.option}: {len(found.keys)} clips used, others left out ({told})")
    unseen = splits.unseen()
    if unseen:
        lines.append(
            f"{sum(unseen.values())} evaluated clips are of {len(unseen)} classes without a training clip, e.g. "
            f"{next(iter(unseen))!r}: they count as errors"
        )
    shared = splits.shared_keys()
    if shared:
        lines.append(
            f"{shared} evaluated clips are called like a training or validation clip: if they are the same, the numbers are "
            "too good"
        )
    if group_field is not None and (number := splits.shared_groups(group_field)):
        lines.append(
            f"{number} evaluated clips are of a {group_field} that training or validation clips are also of: the numbers say "
            f"nothing about a new {group_field}"
        )
    return lines


def print_results(console: Console, rows: Sequence[Row], title: str, seeds: int) -> None:
    """The table; shares in [0, 1]."""
    spread = f"mean ± sd,\n{seeds} seeds" if seeds > 1 else "value"
    metrics = " and ".join(dict.fromkeys(row.metric for row in rows))
    table = Table(
        *("encoder", "probe", "shown", Column(spread, no_wrap=True), "95 %,\nseed 0", "chance"),
        title=f"{title}: {metrics}",
        title_justify="left",
    )
    for row in rows:
        value = f"{row.mean:.3f}" + (f" ± {row.deviation:.3f}" if row.deviation is not None else "")
        low, high = row.interval
        table.add_row(row.encoder, row.kind, row.shown, value, f"{low:.3f}–{high:.3f}", f"{row.chance:.3f}")
    console.print(table)


def _validation(row: Row) -> float:
    return sum(one.chosen.score for one in row.fitted) / len(row.fitted)


def _entry(row: Row) -> dict[str, Any]:
    return {
        "encoder": row.encoder,
        "kind": row.kind,
        "shown": row.shown,
        "metric": row.metric,
        "mean": row.mean,
        "deviation_over_seeds": row.deviation,
        "interval": list(row.interval),
        "chance": row.chance,
        "seeds": [asdict(one) for one in row.fitted],
    }


def _line(row: Row) -> list[Any]:
    deviation = "" if row.deviation is None else f"{row.deviation:.6f}"
    numbers = (f"{value:.6f}" for value in (*row.interval, _validation(row), row.chance))
    first = row.fitted[0]
    sizes = (len(row.fitted), first.num_train, first.num_validation, len(row.targets))
    return [row.encoder, row.kind, row.shown, row.metric, f"{row.mean:.6f}", deviation, *numbers, *sizes]


def _predictions(
    rows: Sequence[Row], facts: Mapping[str, Any], splits: Splits, keys: Sequence[str]
) -> dict[str, Predictions]:
    """By file name, the first seed's scores of each combination of modalities."""
    found: dict[str, Predictions] = {}
    for encoder, kind in dict.fromkeys((row.encoder, row.kind) for row in rows):
        own = [row for row in rows if (row.encoder, row.kind) == (encoder, kind)]
        about = {"encoder": encoder, "kind": kind, "scores": "shares of votes" if kind == "knn" else "logits"}
        name = f"predictions-{kind}{'' if encoder == rows[0].encoder else '-control'}.npz"
        found[name] = Predictions(
            list(keys),
            (*splits.vocabulary.classes, *splits.unseen()),
            own[0].targets.float(),
            own[0].metric == "map",
            {row.shown: row.scores for row in own},
            {**facts, **about},
        )
    return found
