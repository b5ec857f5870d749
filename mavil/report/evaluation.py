"""The evaluation of a classifier as sections of a page: metrics, modality gap, calibration, classes and pairs of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mavil.evaluation.classification import ClassRow, Estimate, Scored
from mavil.evaluation.modality_gap import Gap
from mavil.evaluation.results import ListResult, Results
from mavil.report.charts import Chart, Charts, Line
from mavil.report.page import Section
from mavil.report.tables import Bar, Cell, Table

MOST_CLASSES = 60
"""A longer table of classes shows the best and the worst half of this number; all of them are in ``classes.csv``."""
_NAMES = {
    "map": "mAP",
    "auc": "area under the ROC curve",
    "d_prime": "d′",
    "accuracy": "top-1 accuracy",
    "top5_accuracy": "top-5 accuracy",
    "hit_at_1": "clips with a label as best class",
    "hit_at_5": "clips with a label among the best 5",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
}


def evaluation_sections(results: Results) -> list[Section]:
    """The sections of one evaluation, in the order in which they are read."""
    multi_label = results.predictions.multi_label
    sections = [Section("Metrics", _metric_words(results), [_metric_table(results), *_gap_tables(results.gaps)])]
    if results.listed is not None:
        sections.append(_list_section(results.listed))
    sections.append(Section("Calibration", _calibration_words(multi_label), _calibration(results.scored)))
    sections.append(
        Section("Classes", _class_words(results.scored), [_class_table(n, s) for n, s in results.scored.items()])
    )
    words = (
        "Of the clips that have A and not B, in how many B scored above A. Classes that often occur together are likely here."
        if multi_label
        else "How often clips of one class were taken for another one."
    )
    pairs = [_pair_table(name, scored, multi_label) for name, scored in results.scored.items() if scored.pairs]
    sections.append(Section("Pairs of classes", words, pairs))
    return sections


def _metric_words(results: Results) -> str:
    words = "In brackets the 95 % interval, by bootstrap over clips." if results.resamples else ""
    if any(scored.left_out for scored in results.scored.values()):
        words += " Classes without a positive or without a negative clip are left out of mAP, area and d′."
    return words


def _metric_table(results: Results) -> Table:
    metrics = list(dict.fromkeys(metric for scored in results.scored.values() for metric in scored.metrics))
    chance = next(iter(results.scored.values())).chance
    rows: list[list[Cell]] = []
    for metric in metrics:
        cells: list[Cell] = []
        for scored in results.scored.values():
            found = scored.metrics[metric]
            is_share = metric != "d_prime" and math.isfinite(found.value)
            cells.append(Bar(found.value, 1.0, _text(found), scored.chance.get(metric)) if is_share else _text(found))
        rows.append([_NAMES.get(metric, metric), *cells, f"{chance[metric]:.3g}" if metric in chance else ""])
    rows.append(["clips", *[str(scored.num_clips) for scored in results.scored.values()], ""])
    return Table(
        ["", *results.scored, "chance"], rows, "By what the model was shown", "The line across a bar is chance."
    )


def _gap_tables(gaps: Mapping[str, Sequence[Gap]]) -> list[Table]:
    rows = [
        [
            f"{shown} over {gap.best_single}",
            _NAMES.get(gap.metric, gap.metric),
            _text(gap.estimate, True),
            str(gap.num_clips),
        ]
        for shown, found in gaps.items()
        for gap in found
    ]
    caption = "Modality gap: both together less the better one alone, on the clips that have both"
    return [Table(["", "metric", "gap", "clips"], rows, caption)] if rows else []


def _list_section(listed: ListResult) -> Section:
    columns = ["hit_at_1", "accuracy_at_1", "f1_at_1", "hit_at_5", "f1_at_5", "map"]
    rows = [
        [f"{shown}: {subset}", str(number), *[_text(found[name]) if name in found else "" for name in columns]]
        for shown, subsets in listed.metrics.items()
        for subset, (number, found) in subsets.items()
    ]
    heads = ["shown: labels", "clips", "hit@1", "subset accuracy@1", "F1@1", "hit@5", "F1@5", "mAP"]
    blocks = [Table(heads, rows, f"Labels of {listed.name}")]
    own = [[shown, f"{value:.3f}"] for shown, value in listed.own_accuracy.items()]
    blocks.append(Table(["shown", "top-1 accuracy"], own, "The data's own labels on the same clips"))
    if listed.confusion:
        shares = [[name, f"{share:.3f}"] for name, share in listed.confusion.items()]
        note = "Share of clips whose best class is right with this modality alone and wrong with both."
        blocks.append(Table(["alone", "modality confusion"], shares, "Modality confusion", note))
    text = (
        f"{listed.num_clips} clips have predictions and are in the list; {listed.without_prediction} of the list have no "
        f"prediction, {listed.not_in_list} evaluated clips are not in the list."
    )
    return Section("Labels of a list", text, blocks)


def _calibration_words(multi_label: bool) -> str:
    if multi_label:
        return "Every clip and class is one decision; its probability is the sigmoid of its score."
    return "Every clip is one decision: its best class, with the softmax as its probability."


def _calibration(scored: Mapping[str, Scored]) -> list[Table | Charts]:
    charts = []
    for name, one in scored.items():
        bins = [b for b in one.calibration.bins if b.count]
        if bins:
            found = Line("found", [b.confidence for b in bins], [b.outcome for b in bins])
            ideal = Line("perfectly calibrated", [0.0, 1.0], [0.0, 1.0])
            charts.append(Chart(name, [found, ideal], "share that is true", "probability"))
    rows = [
        [name, f"{one.calibration.ece:.4f}", f"{one.calibration.brier:.4f}", str(one.calibration.decisions)]
        for name, one in scored.items()
    ]
    errors = Table(["", "expected calibration error", "Brier score", "decisions"], rows, "Calibration, 15 bins")
    bins_of = [_bin_table(name, one) for name, one in scored.items()]
    return [errors, Charts(charts, "One point per bin that is not empty."), *bins_of]


def _bin_table(name: str, scored: Scored) -> Table:
    rows = [
        [f"{b.low:.3f} to {b.high:.3f}", str(b.count), f"{b.confidence:.3f}", f"{b.outcome:.3f}"]
        for b in scored.calibration.bins
        if b.count
    ]
    return Table(["probability", "decisions", "mean probability", "share that is true"], rows, f"Reliability: {name}")


def _class_words(scored: Mapping[str, Scored]) -> str:
    numbers = {name: len(one.left_out) for name, one in scored.items() if one.left_out}
    told = "; ".join(f"{name}: {number} classes left out of the means" for name, number in numbers.items())
    return f"All of them are in classes.csv. {told}".strip()


def _class_table(name: str, scored: Scored) -> Table:
    rows, note = sorted(scored.classes, key=_quality, reverse=True), ""
    if len(rows) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        kept = [row for row in rows if row.positives]
        note = f"The best and the worst {half} of {len(kept)} classes with clips."
        rows = kept if len(kept) <= MOST_CLASSES else [*kept[:half], *kept[-half:]]
    cells: list[list[Cell]] = [
        [row.name, str(row.positives), _number(row.average_precision), _number(row.auc), _number(row.recall)]
        for row in rows
    ]
    return Table(["class", "clips", "average precision", "area", "recall"], cells, f"Classes: {name}", note)


def _quality(row: ClassRow) -> float:
    return -1.0 if math.isnan(row.average_precision) else row.average_precision


def _pair_table(name: str, scored: Scored, multi_label: bool) -> Table:
    first, second = ("A", "B above A") if multi_label else ("class", "taken for")
    rows = [
        [pair.true, pair.other, f"{pair.wrong:g} of {pair.clips}", f"{100 * pair.share:.0f} %", str(pair.together)]
        for pair in scored.pairs
    ]
    columns = [first, second, "clips", "share", "clips with both labels"]
    if not multi_label:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(columns, rows, f"The most frequent pairs: {name}")


def _text(found: Estimate, signed: bool = False) -> str:
    if math.isnan(found.value):
        return "not defined"
    value = f"{found.value:+.3f}" if signed else f"{found.value:.3f}"
    return value if math.isnan(found.low) else f"{value} ({found.low:.3f} – {found.high:.3f})"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
