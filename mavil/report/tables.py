"""Tables of results in which every number stands beside what chance would give, as text and as a bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from mavil.evaluation.probing import CueResult
from mavil.evaluation.retrieval import RECALL_AT

_DIRECTIONS = {"audio_to_video": "sound → picture", "video_to_audio": "picture → sound"}


@dataclass(frozen=True)
class Bar:
    """A number drawn on a scale from 0 to ``full``; ``chance`` is marked by a line, ``text`` is what is read.

    ``muted`` draws it grey: a control or a baseline, not the result.
    """

    value: float
    full: float
    text: str
    chance: float | None = None
    muted: bool = False

    def html(self) -> str:
        """The contents of a table cell."""
        tick = ""
        if self.chance is not None:
            tick = f'<i class="chance" style="left:{_percent(self.chance, self.full)}"></i>'
        kind = "bar muted" if self.muted else "bar"
        return (
            f'<span class="{kind}"><b>{escape(self.text)}</b>'
            f'<span class="track"><i class="fill" style="width:{_percent(self.value, self.full)}"></i>{tick}</span></span>'
        )


Cell = str | Bar


@dataclass(frozen=True)
class Table:
    """A block of a section. The first cell of each row is its header; ``rows`` are as long as ``columns``."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    note: str = ""

    def html(self) -> str:
        """The block as HTML.

        Raises:
            ValueError: a row has not one cell per column.
        """
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"a row of {len(row)} cells in the table {self.caption!r} of {len(self.columns)} columns: {row}"
                )
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in self.columns)
        body = "".join(
            f'<tr><th scope="row">{_cell(row[0])}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])}</tr>'
            for row in self.rows
        )
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return (
            f'<div class="table" tabindex="0"><table><caption>{escape(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
        )


@dataclass(frozen=True)
class Comparison:
    """One fine-tuning result: a metric in [0, 1] from pre-trained and from random weights, same steps, and chance."""

    name: str
    metric: str
    pretrained: float
    random: float
    chance: float


def comparison_table(results: Sequence[Comparison], caption: str) -> Table:
    """Fine-tuning from pre-trained weights against the same run from random ones."""
    rows: list[list[Cell]] = [
        [
            result.name,
            result.metric,
            _share(result.pretrained, result.chance),
            _share(result.random, result.chance, muted=True),
            f"{100 * (result.pretrained - result.random):+.1f} points",
            f"{100 * result.chance:.1f} %",
        ]
        for result in results
    ]
    columns = ["", "metric", "pre-trained", "random start", "gain", "chance"]
    return Table(columns, rows, caption, "Both ran for the same steps. The line across each bar is chance.")


def retrieval_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]], caption: str) -> Table:
    """Retrieval in both directions; ``results`` maps a gallery's description to what ``retrieval.both_directions`` returned."""
    rows: list[list[Cell]] = []
    for gallery, directions in results.items():
        for direction, numbers in directions.items():
            recalls = [
                Bar(
                    numbers[f"recall_at_{k}_percent"],
                    100,
                    f"{numbers[f'recall_at_{k}_percent']:.1f} %",
                    numbers[f"chance_at_{k}_percent"],
                )
                for k in RECALL_AT
            ]
            chances = " / ".join(f"{numbers[f'chance_at_{k}_percent']:.3g}" for k in RECALL_AT) + " %"
            median = f"{numbers['median_rank']:.0f} of {numbers['gallery_size']:.0f}"
            rows.append([gallery, _DIRECTIONS[direction], *recalls, chances, median])
    columns = ["gallery", "direction", *(f"R@{k}" for k in RECALL_AT), "chance", "median rank"]
    note = "R@k: share of queries whose own clip is among the first k. The line across each bar is chance, equals share the rank."
    return Table(columns, rows, caption, note)


def cue_block(results: Sequence[CueResult], caption: str) -> Table:
    """What each modality's embedding knows: one row per cue, with chance and the control fitted to shuffled values."""
    modalities = list(results[0].probes) if results else []
    columns = ["cue", "measure", *(f"from {m}" for m in modalities), *(f"shuffled, {m}" for m in modalities), "chance"]
    rows: list[list[Cell]] = []
    for result in results:
        row: list[Cell] = [result.cue, "R²" if result.kind == "value" else f"accuracy, {_classes(result)} classes"]
        row += [_score(result, probe.score) for probe in result.probes.values()]
        row += [_score(result, score, muted=True) for score in result.shuffled.values()]
        row.append("0" if result.kind == "value" else f"{100 * result.chance:.1f} %")
        rows.append(row)
    note = (
        "Linear probes on frozen embeddings, fitted to training clips and scored on the others. Accuracy: chance is always "
        "guessing the most frequent label. R²: 1 is perfect, 0 is guessing the mean. Shuffled: the same probe, fitted to "
        "values dealt out at random."
    )
    return Table(columns, rows, caption, note)


def _classes(result: CueResult) -> int | None:
    return next(iter(result.probes.values())).num_classes


def _score(result: CueResult, score: float, muted: bool = False) -> Bar:
    if result.kind == "labels":
        return _share(score, result.chance, muted)
    return Bar(score, 1.0, f"{score:.2f}", muted=muted)


def _share(value: float, chance: float, muted: bool = False) -> Bar:
    return Bar(value, 1.0, f"{100 * value:.1f} %", chance, muted)


def _percent(value: float, full: float) -> str:
    return f"{min(max(value / full, 0.0), 1.0) * 100:.1f}%"


def _cell(cell: Cell) -> str:
    return cell.html() if isinstance(cell, Bar) else escape(cell)
