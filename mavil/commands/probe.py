"""``mavil probe RUN``: linear, attentive and nearest-neighbour probes of a run's frozen encoders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from mavil import distributed
from mavil.atomic_files import unwritable
from mavil.commands.overlap import overlaps_of
from mavil.commands.packing import shards_at
from mavil.commands.probe_clips import Split, Usable, open_splits, usable
from mavil.commands.probe_progress import Show, shown
from mavil.commands.probe_results import facts_of, print_results, remarks_on, write_results
from mavil.commands.probe_trials import KINDS, TOKEN_KINDS, Plan, Row, run_probes
from mavil.config import Recipe
from mavil.engine.process.runtime import choose_device, settle
from mavil.features.cached import size_text
from mavil.features.clips import features_of_shards
from mavil.features.frozen import FrozenEncoders, FrozenOptions, load_frozen, recipe_of
from mavil.recipe import change_recipe
from mavil.structs import Modality, UserError

FEATURES_FOLDER = "features"
TRAINED, CONTROL = "trained", "random weights"
"""What encoders are called in the table."""


class KindChoice(str, Enum):
    """Kinds of probes."""

    linear = "linear"
    attentive = "attentive"
    knn = "knn"
    all = "all"


class ModalityChoice(str, Enum):
    """What probes see; ``all``: each modality, and both together."""

    audio = "audio"
    video = "video"
    both = "both"
    all = "all"


class PoolingChoice(str, Enum):
    """How tokens become one vector."""

    mean = "mean"
    cls = "cls"
    mean_and_cls = "mean+cls"


class GridChoice(str, Enum):
    """Points among which validation chooses; ``none``: one usual point."""

    small = "small"
    none = "none"


def probe(
    run: Annotated[Path, typer.Argument(help="run folder of pre-training or fine-tuning")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to change")] = None,
    *,
    train: Annotated[str, typer.Option(help="shards, a CSV or a folder of media to learn from")],
    evaluation: Annotated[str, typer.Option(help="those to evaluate on; nothing is chosen on them")],
    validation: Annotated[
        str | None, typer.Option(help="those to choose settings on; default: a tenth of the training clips")
    ] = None,
    kind: Annotated[KindChoice, typer.Option(help="kind of probe")] = KindChoice.linear,
    modality: Annotated[ModalityChoice, typer.Option(help="what the probes see")] = ModalityChoice.all,
    layer: Annotated[str, typer.Option(help="last, the number of a block, or e.g. mean_of_last:4")] = "last",
    pooling: Annotated[PoolingChoice, typer.Option(help="how tokens become one vector")] = PoolingChoice.mean,
    label_field: Annotated[
        str | None, typer.Option(help="take the class from this metadata field instead of the clips' labels")
    ] = None,
    group_field: Annotated[
        str | None, typer.Option(help="metadata field, e.g. speaker: its clips are held out together or not at all")
    ] = None,
    grid: Annotated[GridChoice, typer.Option(help="settings to choose among")] = GridChoice.small,
    seeds: Annotated[int, typer.Option(min=1, help="repetitions, with the seeds 0, 1, ...")] = 3,
    control: Annotated[
        bool, typer.Option("--control", help="also probe the same encoders with random weights")
    ] = False,
    checkpoint: Annotated[
        str, typer.Option(help="which one: newest, best (see trainer.best_metric) or a step")
    ] = "newest",
    cache: Annotated[bool, typer.Option(help="keep features on disk, and take those that are there")] = True,
    out: Annotated[Path | None, typer.Option(help="folder for features and results; default: the run")] = None,
) -> None:
    """Probe a run's frozen encoders; writes RUN/probe/ and keeps features in RUN/features/."""
    if distributed.here().world_size > 1:
        raise UserError("mavil probe works in one process: start it without torchrun or srun's tasks")
    recipe = recipe_of(run, changes or [])
    modalities, combinations = modalities_of(recipe, modality.value)
    kinds = list(KINDS) if kind is KindChoice.all else [kind.value]
    train, evaluation = (shards_at(one, recipe.data.max_skip_ratio) for one in (train, evaluation))
    validation = shards_at(validation, recipe.data.max_skip_ratio) if validation else None
    splits = open_splits(recipe, train, validation, evaluation, label_field)
    device = choose_device(recipe.trainer.device)
    settle(device, recipe.trainer.num_threads)
    options = FrozenOptions(layer, pooling.value)
    console = Console()
    plan = Plan(splits, combinations, kinds, grid is GridChoice.none, seeds, group_field, device)
    rows, weights, encoded = list[Row](), dict[str, str](), dict[str, Usable]()
    with _features_folder(out or run, cache) as root, shown(console) as show:
        for encoder in (TRAINED, CONTROL) if control else (TRAINED,):
            frozen = load_frozen(run, recipe, modalities, options, checkpoint, is_random=encoder == CONTROL)
            weights[encoder] = frozen.identity()["weights"]
            encoding = _Encoding(frozen.to(device), recipe, plan, root, device)
            encoded = {split.option: encoding.of(split, console, encoder, show) for split in splits.each()}
            rows += run_probes(plan, encoded, encoder, console, show)
    overlaps = overlaps_of(change_recipe(recipe, f"data.evaluation={evaluation}"), f"data.train of {run}")
    facts = {**facts_of(run, recipe, checkpoint, options, plan, encoded, weights), **overlaps.facts()}
    write_results(out or run, rows, facts, splits, encoded[splits.evaluation.option].keys)
    for line in [*remarks_on(splits, encoded, group_field), *overlaps.lines()]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    print_results(console, rows, f"{run} on {evaluation}", seeds)


def modalities_of(recipe: Recipe, choice: str) -> tuple[tuple[Modality, ...], list[tuple[Modality, ...]]]:
    """The modalities to encode, and the combinations of them that probes see.

    Raises:
        UserError: the run lacks one.
    """
    known = recipe.modalities
    if choice == "all":
        alone = [(m,) for m in known]
        return known, [*alone, known] if len(known) > 1 else [*alone]
    wanted = ("audio", "video") if choice == "both" else (choice,)
    missing = [m for m in wanted if m not in known]
    if missing:
        raise UserError(
            f"--modality {choice}: the run {recipe.name} knows {' and '.join(known)} only, no {missing[0]}: choose "
            f"{' or '.join(known)}"
        )
    chosen = tuple(m for m in known if m in wanted)
    return chosen, [chosen]


@dataclass(frozen=True)
class _Encoding:
    """One encoder on its device, and where its features are kept."""

    frozen: FrozenEncoders
    recipe: Recipe
    plan: Plan
    root: Path
    device: torch.device

    def of(self, split: Split, console: Console, encoder: str, show: Show) -> Usable:
        """The usable clips of a split, encoded now or before; says how large the features are."""
        has_tokens = any(name in TOKEN_KINDS for name in self.plan.kinds)
        size = size_text(split.opened.index.num_clips * self.frozen.bytes_per_clip(has_tokens))
        what = f"{encoder}: features of {split.option.removeprefix('--')}"
        console.print(f"{what}: about {size} for {split.opened.index.num_clips} clips", highlight=False)
        found = features_of_shards(
            self.frozen,
            self.recipe,
            split.shards,
            split.opened,
            has_tokens,
            self.root,
            self.device,
            lambda done, total: show(what, done, total),
        )
        how = "taken from" if found.was_there else f"encoded in {found.seconds:.1f} s, written to"
        stored = found.stored
        console.print(
            f"{what}: {len(stored.keys)} clips, {size_text(stored.num_bytes)}, {how} {self.root}", soft_wrap=True
        )
        return usable(split, stored, self.frozen.modalities)


@contextmanager
def _features_folder(out: Path, is_kept: bool) -> Iterator[Path]:
    """Where features are written: a folder that stays, or one on the same disk that goes at the end."""
    if is_kept:
        yield out / FEATURES_FOLDER
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{FEATURES_FOLDER}.", dir=out)
    except OSError as error:
        raise unwritable(out, error) from None
    with folder as name:
        yield Path(name)
