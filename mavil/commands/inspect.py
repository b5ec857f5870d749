"""``mavil inspect RECIPE``: what a recipe amounts to, before an hour is spent on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mavil.commands.assemble import read_recipe, view_plan
from mavil.commands.normalisation import audio_statistics, complete_recipe
from mavil.commands.packing import known_shards
from mavil.commands.schedule import device_batch, learning_rate_at
from mavil.config import ClassifyTask, PretrainTask, Recipe
from mavil.data.shards.index import ShardIndex, read_index
from mavil.models.build import build_classifier, build_masked
from mavil.models.classifier import Classifier
from mavil.models.masked import MaskedLearner
from mavil.recipe import dump_recipe, recipe_from_tree
from mavil.structs import MODALITIES, Modality, TokenGrid
from mavil.tasks.masks import draw_visible_ids, seen_in_fine_tuning

ASSUMED_CLASSES = 527
"""Head size when no shards tell the number of classes: AudioSet's."""
ASSUMED_SAMPLES = 2_000_000
"""Clips per epoch when no shards tell: AudioSet's 2 M; only epochs in the schedule depend on it."""


@dataclass(frozen=True)
class Inspection:
    """Everything the command prints, ready for JSON. Costs are multiply-adds of one forward pass of one clip.

    ``audio_statistics`` are the log-mel ``mean`` and ``std`` that training would use now and their ``origin``; empty
    without sound.
    """

    recipe: dict[str, object]
    audio_statistics: dict[str, object]
    parameters: dict[str, int]
    tokens: dict[str, dict[str, object]]
    multiply_adds: dict[str, int]
    learning_rate: dict[str, float]
    memory_gib: dict[str, float]
    assumptions: list[str]


def inspect_recipe(recipe: Recipe, ranks: int = 1) -> Inspection:
    """Measure a recipe on the meta device: nothing is allocated, every number comes from the real modules.

    ``ranks`` processes train together: the applied learning rate follows the global batch.
    """
    assumptions: list[str] = []
    recipe, origin = complete_recipe(recipe, _training_shards(recipe))
    statistics = dict(zip(("mean", "std"), audio_statistics(recipe), strict=True)) if origin is not None else {}
    with torch.device("meta"):
        if isinstance(recipe.task, ClassifyTask):
            assumptions.append(f"{ASSUMED_CLASSES} classes")
            model: MaskedLearner | Classifier = build_classifier(recipe, ASSUMED_CLASSES)
        else:
            model = build_masked(recipe, _target_values(recipe))
    costs = _costs(recipe, model)
    rates, rate_assumptions = learning_rate_at(recipe, ASSUMED_SAMPLES, ranks)
    return Inspection(
        recipe=recipe.model_dump(mode="json"),
        audio_statistics={**statistics, "origin": origin} if statistics else {},
        parameters=_parameters(model),
        tokens=_tokens(recipe),
        multiply_adds=costs,
        learning_rate=rates,
        memory_gib=_memory(recipe, model, device_batch(recipe, ranks)),
        assumptions=[*assumptions, f"{ranks} rank(s)", *rate_assumptions],
    )


def _training_shards(recipe: Recipe) -> ShardIndex | None:
    """The index of the training shards if they lie here: inspecting a recipe goes to no other machine, and packs nothing."""
    folder = known_shards(recipe.data.train) if recipe.data.train else None
    return read_index(folder) if folder is not None else None


def _target_values(recipe: Recipe) -> dict[Modality, int] | None:
    if not isinstance(recipe.task, PretrainTask) or recipe.task.teacher is None:
        return None
    # The teacher's width is known only from its run; stages of one recipe family share it.
    return {m: branch.encoder.width for m in MODALITIES if (branch := recipe.branch(m)) is not None}


def _parameters(model: MaskedLearner | Classifier) -> dict[str, int]:
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.parts().items()}
    counts["all"] = sum(p.numel() for p in model.parameters())
    counts["trained"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return counts


def _tokens(recipe: Recipe) -> dict[str, dict[str, object]]:
    rows: dict[str, dict[str, object]] = {}
    for modality in recipe.modalities:
        branch = recipe.branch(modality)
        assert branch is not None
        grid = branch.grid()
        rows[modality] = {"grid": list(grid.cells), "patch": list(grid.patch), "tokens": grid.num_tokens}
        plan = view_plan(recipe)
        if plan is not None:
            rows[modality]["visible"] = plan.num_visible(modality)
        if isinstance(recipe.task, ClassifyTask):
            seen = seen_in_fine_tuning(recipe.task.masking, {modality: grid})
            if modality in seen:
                rows[modality]["seen in training"] = seen[modality]
    return rows


def _count(module: nn.Module, *args: object, method: str = "forward") -> int:
    module.eval()  # training may leave blocks out by chance
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        getattr(module, method)(*args)
    return counter.get_total_flops() // 2  # the counter counts a multiply-add as two operations


def _costs(recipe: Recipe, model: MaskedLearner | Classifier) -> dict[str, int]:
    """Multiply-adds of one clip: each part by itself, the whole forward pass with all views, and a training step."""
    costs: dict[str, int] = {}
    with torch.device("meta"):
        grids: dict[Modality, TokenGrid] = {m: b.grid() for m in recipe.modalities if (b := recipe.branch(m))}
        patches = {m: torch.empty(1, grid.num_tokens, grid.patch_values) for m, grid in grids.items()}
        for modality, values in patches.items():
            costs[f"{modality}_encoder_unmasked"] = _count(model.encoders[modality], values)
        if not isinstance(model, MaskedLearner):
            assert isinstance(recipe.task, ClassifyTask)
            masking = recipe.task.masking
            visible = draw_visible_ids(masking, grids, lambda _, __, count: torch.empty(1, count))
            forward, in_training = _count(model, patches), _count(model, patches, None, visible)
            # A backward pass computes two products for each one of the forward pass; frozen parts have none.
            return costs | {"forward": forward, "training_step": in_training if model.frozen else 3 * in_training}
        plan = view_plan(recipe)
        assert plan is not None
        views = plan.draw(lambda _, __, num_tokens: torch.empty(1, num_tokens))
        hidden: dict[Modality, torch.Tensor] = {}
        for modality, values in patches.items():
            view, encoder = views[modality].distinct()[0], model.encoder(modality)
            num_visible = view.visible_ids.shape[1]
            costs[f"{modality}_encoder_one_view"] = _count(encoder, values[:, :num_visible], view.visible_ids)
            hidden[modality] = torch.empty(1, encoder.num_prefix + num_visible, encoder.width)
            if modality in model.decoders:
                costs[f"{modality}_decoder"] = _count(model.decoders[modality], hidden[modality], view)
        if model.decoder is not None:
            costs["decoder"] = _count(model.decoder, hidden, {m: own.predicted[0] for m, own in views.items()})
        costs["forward"] = _count(model, patches, views)
        costs |= _teacher_cost(recipe, model, patches)
        # The backward pass as above; a teacher has none.
        costs["training_step"] = 3 * costs["forward"] + costs.get("teacher", 0)
    return costs


def _teacher_cost(recipe: Recipe, model: MaskedLearner, patches: dict[Modality, torch.Tensor]) -> dict[str, int]:
    assert isinstance(recipe.task, PretrainTask)
    teacher = recipe.task.teacher
    if teacher is None:
        return {}
    # Its layers and normalisation cost nothing, and its own size is known only from its run.
    return {"teacher": _count(model, patches, 1, True, teacher.context, method="contextualise")}


_KEPT_VALUES = 12
"""Per token and channel of a block, with fused attention and without dropout: its input and what is added up in it, both norms'
outputs, queries, keys, values, what attention mixed, and four of the MLP."""


def _memory(recipe: Recipe, model: MaskedLearner | Classifier, device_batch: int) -> dict[str, float]:
    """Rough memory of one rank in GiB: float32 weights, gradients and two Adam moments, and kept activations.

    A teacher adds its own weights. An estimate, not a measurement.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in model.parameters())
    is_half = recipe.trainer.precision in ("bf16", "fp16") or (
        recipe.trainer.precision == "auto" and recipe.trainer.device != "cpu"
    )
    bytes_per_value = 2 if is_half else 4
    has_teacher = isinstance(recipe.task, PretrainTask) and recipe.task.teacher is not None
    kept = 0
    for modality in recipe.modalities:
        branch = recipe.branch(modality)
        assert branch is not None
        tokens, encoder, decoder = branch.grid().num_tokens, branch.encoder, branch.decoder
        if isinstance(recipe.task, ClassifyTask):
            seen = seen_in_fine_tuning(recipe.task.masking, {modality: branch.grid()}).get(modality, tokens)
            kept += 0 if recipe.task.frozen else _KEPT_VALUES * seen * encoder.width * encoder.depth
            continue
        plan = view_plan(recipe)
        assert plan is not None
        visible = plan.visible_tokens(modality)
        kept += _KEPT_VALUES * visible * encoder.width * encoder.depth
        kept += _KEPT_VALUES * plan.num_predicted * tokens * decoder.width * decoder.depth
        if recipe.fusion is not None:
            predicted = plan.num_predicted * plan.num_visible(modality)
            kept += _KEPT_VALUES * predicted * encoder.width * recipe.fusion.depth
    gib = 1024.0**3
    return {
        "weights": 4 * everything * (2 if has_teacher else 1) / gib,
        "gradients_and_adam": 12 * trained / gib,
        "activations": kept * bytes_per_value * device_batch / gib,
    }


def inspect(
    recipe_path: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="a YAML from configs/ or the config.yaml of a run")
    ],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to change")] = None,
    ranks: Annotated[
        int, typer.Option(min=1, help="processes that train together; scales batch and learning rate")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON for programs")] = False,
) -> None:
    """Print a recipe's resolved settings, parameters, tokens, cost, learning rates and memory."""
    recipe = read_recipe(recipe_path, changes or [])
    result = inspect_recipe(recipe, ranks)
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2))
        return
    console = Console()
    console.print(dump_recipe(recipe_from_tree(result.recipe, str(recipe_path))), markup=False, highlight=False)
    if result.audio_statistics:
        numbers = "log-mel mean {}, deviation {}: {}".format(*result.audio_statistics.values())
        console.print(numbers, markup=False, highlight=False, soft_wrap=True)
    _print_table(console, "parameters", {k: f"{v / 1e6:,.2f} M" for k, v in result.parameters.items()})
    _print_table(console, "tokens", {k: ", ".join(f"{a} {b}" for a, b in v.items()) for k, v in result.tokens.items()})
    costs = {k: f"{v / 1e9:,.3g} G" for k, v in result.multiply_adds.items()}
    _print_table(console, "forward multiply-adds per clip", costs)
    _print_table(console, "learning rate", {k: f"{v:.3g}" for k, v in result.learning_rate.items()})
    _print_table(console, "memory per rank, estimated", {k: f"{v:.2f} GiB" for k, v in result.memory_gib.items()})
    if result.assumptions:
        console.print("assumed: " + "; ".join(result.assumptions))


def _print_table(console: Console, title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
