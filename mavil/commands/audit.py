"""``mavil evaluate RUN --audit``: that a clip's logits depend on the clip alone, tried on the user's own model and data."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mavil import distributed
from mavil.atomic_files import unwritable, write_text
from mavil.commands.assemble import CLASSES_FILE, load_masked, task_for
from mavil.commands.audit_batches import NEIGHBOUR, Compositions, samples_of
from mavil.commands.errors import EXIT_CHECKS_FAILED
from mavil.commands.evaluate_results import AUDIT
from mavil.commands.inputs import loader_for, open_split, prepare_for
from mavil.commands.overlap import Overlap
from mavil.commands.overlap import overlap_with_training as overlap_with_training
from mavil.config import ClassifyTask, Recipe
from mavil.data.labels import Vocabulary
from mavil.data.stream.excerpt import spread_evenly, write_excerpt
from mavil.engine.checkpoints.reading import load_weights
from mavil.engine.process.runtime import choose_device, settle
from mavil.evaluation.audit import Check, Logits, Reference, check_movement, check_state, check_to_dict
from mavil.evaluation.predict import Collected, collect
from mavil.models.weights import load_parts
from mavil.recipe import change_recipe
from mavil.structs import Batch, Inputs, Modality, Sample, UserError
from mavil.tasks.base import unwrapped
from mavil.tasks.classify import JUDGED, Classification
from mavil.tasks.pretrain import embed_batch

NUM_CLIPS = 64
SMALL_BATCHES = (1, 3)
SHARES = (2, 3)
NUM_WORKERS = 2


@dataclass(frozen=True)
class Audit:
    """What an audit found; ``reference`` is of ``num_clips`` clips."""

    checks: list[Check]
    overlap: Overlap
    reference: Reference
    num_clips: int

    @property
    def has_failed(self) -> bool:
        """Whether any check has."""
        return any(check.passed is False for check in self.checks)


class Subject:
    """A model of a run and the way its evaluation takes from batches to logits.

    Args:
        run, recipe, which: as for ``mavil evaluate``.
        modalities: all that the model is shown; where there are two, each is also shown alone.

    Raises:
        UserError: the run has no such checkpoint.
    """

    def __init__(self, run: Path, recipe: Recipe, which: str, modalities: Sequence[Modality]) -> None:
        self.recipe = recipe
        self.modalities = tuple(modalities)
        self._device = choose_device(recipe.trainer.device)
        settle(self._device, recipe.trainer.num_threads)
        self._prepare = prepare_for(recipe, self._device, training=False)
        self.vocabulary: Vocabulary | None = None
        self._task: Classification | None = None
        if isinstance(recipe.task, ClassifyTask):
            self.vocabulary = Vocabulary.from_file(run / CLASSES_FILE)
            task = task_for(change_recipe(recipe, "task.weights=null"), self.vocabulary, self._device)
            load_parts(task.export_modules(), load_weights(run, which), str(run))
            assert isinstance(task, Classification)
            task.model.eval()
            self._task, self.model = task, unwrapped(task.model)
        else:
            self.model = load_masked(run, which)[0].to(self._device)

    def logits(self, batches: Iterable[Batch]) -> Logits:
        """Of every row of the batches in their order, but for those that only disturb."""
        found: list[tuple[tuple[str, int], dict[str, Tensor]]] = []
        for batch in batches:
            inputs = self._prepare(batch)
            # Numbers in place of keys: a clip may be twice in its batch, and its windows are compared one by one.
            numbered = replace(inputs, keys=[f"{row:06d}" for row in range(len(inputs))])
            values = self._rows(numbered).values
            heads = [name.removesuffix(JUDGED) for name in values if name.endswith(JUDGED)]
            for row, place in enumerate(zip(batch.keys, batch.seeds.tolist(), strict=True)):
                if place[0] != NEIGHBOUR:
                    judged = {head: values[head][row] for head in heads if values[f"{head}{JUDGED}"][row]}
                    found.append((place, judged))
        return found

    def _rows(self, inputs: Inputs) -> Collected:
        if self._task is not None:
            alone: list[tuple[Modality, ...]] = [(m,) for m in self.modalities] if len(self.modalities) > 1 else []
            return self._task.predict([inputs], [*alone, self.modalities])
        model: Any = self.model
        grids = {m: model.grid(m) for m in self.modalities}

        def compute(batch: Inputs) -> dict[str, Tensor]:
            rows = {str(m): values for m, values in embed_batch(model, grids, batch).items()}
            flags = {m: batch.present(m) for m in grids}
            everybody = torch.ones(len(batch))
            return {**rows, **{f"{m}{JUDGED}": everybody if f is None else f.float() for m, f in flags.items()}}

        return collect([inputs], compute)

    def loaded(
        self, num_workers: int = 0, device_batch: int | None = None, share: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """The batches of an ordinary evaluation, or of one rank of it."""
        size = device_batch or self.recipe.trainer.device_batch
        recipe = change_recipe(self.recipe, f"data.num_workers={num_workers}", f"trainer.device_batch={size}")
        loader = loader_for(
            recipe, "evaluation", self.vocabulary, training=False, modalities=self.modalities, share=share
        )
        try:
            yield from loader
        finally:
            loader.close()


def audit_run(
    run: Path,
    recipe: Recipe,
    which: str = "newest",
    modalities: Sequence[Modality] | None = None,
    num_clips: int = NUM_CLIPS,
    out: Path | None = None,
) -> None:
    """Audit a run, print a table, write ``audit.json`` into ``out``; default: the run folder, which no evaluation replaces.

    Raises:
        UserError: several ranks, no evaluation clips, or the folder cannot be written.
        typer.Exit: with 3, a check has failed.
    """
    audit = audit_model(run, recipe, which, modalities, num_clips)
    folder = out or run
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / AUDIT, json.dumps(_told(audit, recipe, which), indent=2) + "\n")
    except OSError as error:
        raise unwritable(folder, error) from None
    print_audit(Console(), audit)
    Console().print(f"written: {folder / AUDIT}", highlight=False, soft_wrap=True)
    if audit.has_failed:
        raise typer.Exit(EXIT_CHECKS_FAILED)


def audit_model(run: Path, recipe: Recipe, which: str, modalities: Sequence[Modality] | None, num_clips: int) -> Audit:
    """All checks on at most ``num_clips`` clips, spread evenly over ``data.evaluation``."""
    if distributed.world_size() > 1:
        raise UserError("--audit tries several ranks by itself: run it as one process")
    shards = open_split(recipe, "evaluation")
    overlap = overlap_with_training(recipe, in_full=True)
    with tempfile.TemporaryDirectory(prefix="mavil-audit-") as folder:
        write_excerpt(shards, spread_evenly(shards.index.num_clips, num_clips), Path(folder))
        # Of few clips many may be unusable by chance; the evaluation itself judges their share.
        few = change_recipe(recipe, f"data.evaluation={folder}", "data.max_skip_ratio=1")
        subject = Subject(run, few, which, modalities or recipe.modalities)
        before = _fingerprints(subject.model)
        reference = Reference.of(subject.logits(subject.loaded()))
        checks = list(_checks(subject, reference))
        training = [name for name, module in subject.model.named_modules() if module.training]
        after = _fingerprints(subject.model)
    checks.append(check_state(training, [name for name in before if before[name] != after[name]]))
    checks.append(_check_overlap(overlap))
    return Audit(checks, overlap, reference, len({key for key, _ in reference.logits}))


def _checks(subject: Subject, reference: Reference) -> Iterator[Check]:
    """Everything that must not move the logits."""
    mates = _why_batch_mates(subject.recipe)

    def judged(name: str, batches: Iterable[Batch], hint: str, is_whole: bool = True) -> Check:
        try:
            found = subject.logits(batches)
        except UserError:
            raise
        except (RuntimeError, ValueError) as error:
            # An ordinary evaluation went through: that the model cannot do this is what an audit is to find.
            return Check(name, False, detail=f"the model fails: {error}")
        return check_movement(name, reference, found, hint, is_whole)

    yield judged("the same again", subject.loaded(), "the model draws random numbers in evaluation, or keeps a state")
    for size in SMALL_BATCHES:
        yield judged(f"batches of {size}", subject.loaded(device_batch=size), mates)
    for ranks in SHARES:
        parts = (batch for rank in range(ranks) for batch in subject.loaded(share=(rank, ranks)))
        yield judged(f"{ranks} ranks", parts, mates)
    hint = "decoding depends on the process that does it"
    yield judged(f"{NUM_WORKERS} worker processes", subject.loaded(NUM_WORKERS), hint)
    compositions = _compositions(subject)
    yield judged("order reversed", compositions.reversed(), mates)
    yield judged("padded by a longer clip", compositions.beside_longer(), f"padding is seen, or {mates}")
    yield judged("padded to twice the length", compositions.padded(), "padding is seen")
    yield judged("each clip twice in its batch", compositions.doubled(), mates, is_whole=False)
    yield judged("the other half silent and black", compositions.half_silent(), mates)
    if len(subject.modalities) > 1:
        yield judged("others without sound or picture", compositions.beside_incomplete(), mates)
    else:
        yield Check("others without sound or picture", None, detail=f"the model is shown {subject.modalities[0]} only")


def _why_batch_mates(recipe: Recipe) -> str:
    """What makes a clip depend on others, as far as the recipe tells."""
    if "audio" in recipe.modalities and recipe.audio is not None and recipe.audio.batch_statistics == "evaluation":
        return (
            "audio.batch_statistics is evaluation, so every spectrogram is normalised by its batch; "
            "train and evaluate with audio.batch_statistics=never"
        )
    return "logits depend on the other clips of the batch; look for a normalisation over the batch"


def _compositions(subject: Subject) -> Compositions:
    samples: list[Sample] = []
    targets: dict[str, Tensor] = {}
    for batch in subject.loaded(device_batch=1):
        samples += samples_of(batch)
        if batch.targets is not None:
            targets |= dict(zip(batch.keys, batch.targets, strict=True))
    blanks: dict[Modality, Tensor] = {}
    recipe = subject.recipe
    if "audio" in recipe.modalities:
        blanks["audio"] = torch.zeros(1)
    if "video" in recipe.modalities and recipe.video is not None:
        blanks["video"] = torch.zeros(recipe.video.num_frames, 3, 1, 1, dtype=torch.uint8)
    return Compositions(samples, targets, blanks, recipe.trainer.device_batch)


def _fingerprints(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Two sums of every parameter and buffer: a copy of a large model would not fit beside it."""
    return {
        name: (tensor.detach().double().sum().item(), tensor.detach().double().square().sum().item())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def _check_overlap(overlap: Overlap) -> Check:
    name = "no evaluation clip is a training clip"
    if overlap.not_checked:
        return Check(name, None, detail=overlap.not_checked)
    has_shared = overlap.num_seen > 0
    return Check(name, not has_shared, detail="; ".join(overlap.lines()) if has_shared or overlap.recordings else "")


def _told(audit: Audit, recipe: Recipe, which: str) -> dict[str, Any]:
    return {
        "shards": recipe.data.evaluation,
        "checkpoint": which,
        "num_clips": audit.num_clips,
        "device_batch": recipe.trainer.device_batch,
        "precision": "float32",
        "tolerance": audit.reference.tolerance,
        "why_tolerance": audit.reference.why or None,
        "spread_of_logits": audit.reference.spread,
        "has_failed": audit.has_failed,
        "checks": [check_to_dict(check) for check in audit.checks],
        "overlap": audit.overlap.to_dict(),
    }


def print_audit(console: Console, audit: Audit) -> None:
    """A line per check, and what the failed ones say."""
    reference = audit.reference
    remark = f" ({reference.why})" if reference.why else ""
    console.print(
        f"audit of {audit.num_clips} clips in float32: no output may move by more than {reference.tolerance:.2g}{remark}",
        highlight=False,
        soft_wrap=True,
    )
    marks = {True: "passed", False: "[red]FAILED[/]", None: "not checked"}
    table = Table("check", "result", "largest movement", "clip")
    for check in audit.checks:
        moved = "" if check.movement is None else f"{check.movement:.2g}"
        table.add_row(check.name, marks[check.passed], moved, check.clip)
    console.print(table)
    for check in audit.checks:
        if check.detail:
            console.print(f"{check.name}: {check.detail}", highlight=False, soft_wrap=True, markup=False)
    failed = sum(check.passed is False for check in audit.checks)
    if failed:
        console.print(
            f"[red]{failed} of {len(audit.checks)} checks failed[/]: the numbers of this run cannot be trusted"
        )
