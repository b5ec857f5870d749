"""Compute a refused step again, clip by clip in sight: ``python tools/replay_step.py runs/mine 4711``.

It takes what the run left in ``nonfinite_step_XXXXXXXX/`` and names the first module whose output, or whose output's gradient,
is not finite. One process: candidates of other ranks are not there, and kernels of another device may round differently.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

if __name__ == "__main__":
    # Python puts this file's own folder first; the repository has to be there.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mavil.commands.assemble import CLASSES_FILE, read_recipe, task_for
from mavil.commands.errors import EXIT_CODES
from mavil.commands.inputs import prepare_for
from mavil.config import ClassifyTask, Recipe
from mavil.data.labels import Vocabulary
from mavil.engine.checkpoints.folder import checkpoints, step_of
from mavil.engine.checkpoints.reading import load_checkpoint, load_state
from mavil.engine.nonfinite import read_batches, read_report
from mavil.engine.precision import Precision, autocast
from mavil.engine.process.runtime import choose_device, set_random_state
from mavil.structs import Batch, Inputs, UserError
from mavil.tasks.base import Task


@dataclass
class Finding:
    """Where something first was not finite: the module, what of it, the share of such values, and the clips they belong to.

    ``clips`` is empty where the values do not belong to some of the clips alone.
    """

    module: str
    what: str
    share: float
    clips: list[str]


@dataclass
class Watch:
    """What a micro-step did: its terms, and the first values that were not finite, forwards and backwards."""

    keys: list[str]
    terms: dict[str, float] = field(default_factory=dict)
    forward: Finding | None = None
    backward: Finding | None = None
    parameters: list[str] = field(default_factory=list)

    def look(self, module: str, what: Literal["output", "gradient of the output"], values: Tensor) -> None:
        """Note the first values that are not finite; modules report in the order in which they are computed."""
        if (self.forward if what == "output" else self.backward) is not None or not values.is_floating_point():
            return
        is_bad = ~torch.isfinite(values)
        if not bool(is_bad.any()):
            return
        finding = Finding(module, what, float(is_bad.float().mean()), self._clips_of(is_bad))
        if what == "output":
            self.forward = finding
        else:
            self.backward = finding

    def _clips_of(self, is_bad: Tensor) -> list[str]:
        # Views of the clips are joined on the batch axis, one whole batch after the other.
        if is_bad.ndim == 0 or len(is_bad) % len(self.keys):
            return []
        by_clip = is_bad.flatten(1).any(dim=1) if is_bad.ndim > 1 else is_bad
        bad = by_clip.view(-1, len(self.keys)).any(dim=0).tolist()
        return [] if all(bad) else [key for key, bad_one in zip(self.keys, bad, strict=True) if bad_one]


def replay_step(run: Path, step: int, device: torch.device, console: Console) -> list[Watch]:
    """Compute what was kept of a refused step again, and print what is found; one result per rank and micro-step.

    Raises:
        UserError: the run has no such step, nothing was kept of it, or the recipe's other runs are gone.
    """
    folder = run / f"nonfinite_step_{step:08d}"
    report, kept = read_report(folder), read_batches(folder)
    _print_ranks(report, console)
    if not kept:
        raise UserError(f"{folder} holds no clips (batch.rank*.pt): the disk was full; its report.json names them")
    recipe = read_recipe(run, [])
    task = _task(recipe, run, device)
    console.print(_load_weights(task, run, folder, step), highlight=False)
    prepare = prepare_for(recipe, device, training=True)
    found = []
    for rank, content in kept.items():
        if content["random"] is not None:
            set_random_state(content["random"], device)
        scale = content["loss_scale"] / recipe.trainer.accumulation
        for number, (batch, complete) in enumerate(zip(content["batches"], content["num_clips"], strict=True)):
            cut = f", of {complete} clips: terms that compare clips differ" if complete > len(batch) else ""
            console.rule(f"rank {rank}, kept micro-step {number + 1}: {len(batch)} clips{cut}")
            inputs = prepare(batch)
            _print_clips(batch, inputs, console)
            found.append(watched_step(task, inputs, step, device, content["precision"], scale))
            _print_watch(found[-1], console)
    return found


def watched_step(
    task: Task, inputs: Inputs, step: int, device: torch.device, precision: Precision, scale: float
) -> Watch:
    """One micro-step, forwards and backwards, under observation; ``scale`` multiplies the loss."""
    watch = Watch(inputs.keys)
    task.model.zero_grad()
    with _hooks(task.model, watch):
        with autocast(device, precision):
            report = task.loss(inputs, step - 1)
            total = report.total
        watch.terms = {name: float(value.detach()) for name, value in report.terms.items()}
        (total * scale).backward()
    gradients = ((name, p.grad) for name, p in task.model.named_parameters() if p.grad is not None)
    watch.parameters = [name for name, gradient in gradients if not bool(torch.isfinite(gradient).all())]
    return watch


@contextmanager
def _hooks(model: nn.Module, watch: Watch) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():

        def hook(_module: nn.Module, _inputs: Any, output: Any, name: str = name or "the whole model") -> None:
            for values in _tensors_in(output):
                watch.look(name, "output", values.detach())
                if values.requires_grad:
                    values.register_hook(lambda g, name=name: watch.look(name, "gradient of the output", g))

        handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors_in(inner)
    elif dataclasses.is_dataclass(value):
        yield from _tensors_in([getattr(value, part.name) for part in dataclasses.fields(value)])


def _task(recipe: Recipe, run: Path, device: torch.device) -> Task:
    """The recipe's task; weights it once began from are not needed any more, their run may be gone."""
    begun_anew = recipe.model_copy(update={"task": recipe.task.model_copy(update={"weights": None})})
    vocabulary = Vocabulary.from_file(run / CLASSES_FILE) if isinstance(recipe.task, ClassifyTask) else None
    return task_for(begun_anew, vocabulary, device)


def _load_weights(task: Task, run: Path, folder: Path, step: int) -> str:
    """Those the step was computed with, or else the newest saved before; says which."""
    path = folder / "weights.pt"
    if path.exists():
        load_state(task.model, torch.load(path, map_location="cpu", weights_only=True), path)
        return f"weights: those of the step ({path})"
    before = [found for found in checkpoints(run) if step_of(found) < step]
    if not before:
        raise UserError(f"{run} has no weights to replay step {step} with: neither {path} nor an older checkpoint")
    load_state(task.model, load_checkpoint(before[-1]).model, before[-1])
    return f"weights: of step {step_of(before[-1])} ({before[-1]}), {step - 1 - step_of(before[-1])} update(s) too old"


def _print_ranks(report: dict[str, Any], console: Console) -> None:
    blamed = ", ".join(map(str, report["blamed"]))
    console.print(f"step {report['step']}: {len(report['ranks'])} rank(s), to blame: {blamed}", highlight=False)
    for rank in report["blamed"]:
        for number, values in enumerate(report["ranks"][rank]["micro_steps"]):
            terms = ", ".join(f"{name} {value}" for name, value in values.items() if name.startswith("loss/"))
            console.print(f"  then, rank {rank}, micro-step {number + 1}: {terms}", highlight=False)


def _print_clips(batch: Batch, inputs: Inputs, console: Console) -> None:
    table = Table("clip", "values", "smallest", "largest", "not finite", title="what the model was given")
    sources: dict[str, Tensor | None] = {"waveform": batch.waveforms, "audio": inputs.audio, "video": inputs.video}
    for row, key in enumerate(batch.keys):
        for name, tensor in sources.items():
            if tensor is None:
                continue
            values = tensor[row].detach().float()
            finite = values[torch.isfinite(values)]
            ends = (f"{finite.min():.4g}", f"{finite.max():.4g}") if finite.numel() else ("-", "-")
            share = 1 - finite.numel() / max(1, values.numel())
            table.add_row(key, name, *ends, f"{share:.2%}", style="red" if share else "")
    console.print(table)


def _print_watch(watch: Watch, console: Console) -> None:
    terms = ", ".join(f"{name} {value:.6g}" for name, value in watch.terms.items())
    console.print(f"  now: {terms}", highlight=False)
    for finding in (watch.forward, watch.backward):
        if finding is not None:
            clips = f", of the clips {', '.join(finding.clips)}" if finding.clips else ""
            console.print(
                f"  first {finding.what} that is not finite: {finding.module} ({finding.share:.2%} of its values{clips})",
                highlight=False,
            )
    if watch.parameters:
        console.print(
            f"  {len(watch.parameters)} parameters with a gradient that is not finite, e.g. {watch.parameters[0]}",
            highlight=False,
        )
    if watch.forward is None and watch.backward is None:
        console.print("  every output and gradient is finite", highlight=False)


def main(
    run: Annotated[Path, typer.Argument(help="the run folder")],
    step: Annotated[int, typer.Argument(min=1, help="the step that was refused")],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Find what was not finite in a refused step."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: use auto, cpu or cuda")
    replay_step(run, step, choose_device(device), Console())  # type: ignore[arg-type]


if __name__ == "__main__":
    try:
        typer.run(main)
    except tuple(EXIT_CODES) as problem:
        typer.echo(f"replay_step: {problem}", err=True)
        sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(problem, kind)))
