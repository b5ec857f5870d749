"""``mavil demo``: the whole of MAViL on a small set of clips, in minutes on a CPU, ending in a page to look at.

Shards, stage 1, stage 2, fine-tuning on audio, video and both (each also from random weights), retrieval in both
directions, a table, ``summary.json``, ``report.html``, and the encoders of stage 2 as a folder for ``mavil.load``. With the
synthetic clips the results are judged, and a result that is not good enough ends in exit code 3; clips of one's own are
reported without judgement.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mavil.atomic_files import write_text
from mavil.commands.assemble import curve_of, load_masked
from mavil.commands.demo_checks import Check, judge, print_results
from mavil.commands.demo_clips import ClipSets, make_clip_sets, measure_sound
from mavil.commands.embedding import Embedded, embed_shards
from mavil.commands.errors import EXIT_CHECKS_FAILED
from mavil.commands.export_facts import exported_run
from mavil.commands.retrieve import LOUDNESS, cue_results, retrieval_results
from mavil.commands.train import train_recipe
from mavil.commands.words import names_in
from mavil.config import PretrainTask, Recipe
from mavil.engine.process.runtime import choose_device, settle
from mavil.evaluation.probing import CueResult, probeable_fields
from mavil.export.card import card_of, usage
from mavil.export.folder import write_export
from mavil.recipe import change_recipe, load_recipe
from mavil.structs import UserError

MARKER = "demo.json"
"""Says that a folder was made by this command and may be moved aside by it."""
STAGES = ("stage1", "stage2")
EXPORT = "export"
"""Below the demo's folder: what ``mavil.load`` takes."""
FINETUNES = ("audio", "video", "both")
RECIPES = (*STAGES, *(f"finetune_{which}" for which in FINETUNES))
MOST_CUES = 8
SYNTHETIC_CUES = ["onset_seconds", "pitch_hz", "rate_hz", "hue", "background_light", LOUDNESS]
"""Factors that both modalities share, two that only the picture has, and the measured loudness, which goes with the size."""


@dataclass
class Results:
    """What the demo found; ``summary`` is the part of it that two runs with one seed share exactly."""

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    finetunes: dict[str, dict[str, Any]] = field(default_factory=dict)
    retrieval: dict[str, dict[str, dict[str, dict[str, Any]]]] = field(default_factory=dict)
    cues: list[CueResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self, clips: ClipSets, checks: list[Check], seed: int) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "seed": seed,
            "clips": clips.describe(),
            "stages": self.stages,
            "finetune": self.finetunes,
            "retrieval": self.retrieval,
            "cues": [asdict(cue) for cue in self.cues],
            "notes": self.notes,
            "export": EXPORT,
            "checks": [asdict(check) for check in checks],
        }


def run_demo(
    out: Path, recipes: Path, clips: ClipSets, cues: list[str], within: list[str], console: Console
) -> Results:
    """Every stage after the shards, each in its own run folder below ``out``."""
    results = Results()
    for stage in STAGES:
        console.rule(f"{stage}: {'masked reconstruction and contrast' if stage == 'stage1' else 'self-training'}")
        recipe = _recipe(recipes, stage, out, clips)
        train_recipe(recipe, out / stage, resume=False, console=console)
        results.stages[stage] = _first_and_last(out / stage)
    _finetune_all(results, out, recipes, clips, console)
    console.rule("retrieval")
    for stage in STAGES:
        gallery = _embed(out / stage, clips.evaluation)
        results.retrieval[stage] = retrieval_results(gallery, within)
    names = cues or (SYNTHETIC_CUES if clips.is_synthetic else _default_cues(gallery))
    if names:
        results.cues = cue_results(_embed(out / STAGES[-1], clips.train), gallery, names)
    return results


def _finetune_all(results: Results, out: Path, recipes: Path, clips: ClipSets, console: Console) -> None:
    for which in FINETUNES:
        recipe = _recipe(recipes, f"finetune_{which}", out, clips)
        reason = clips.why_not_classify(recipe)
        if reason:
            results.notes.append(f"fine-tuning left out: {reason}")
            console.print(results.notes[-1])
            return
        console.rule(f"fine-tuning on {which}")
        metrics: dict[str, dict[str, float]] = {}
        for start in ("pretrained", "random"):
            chosen = recipe if start == "pretrained" else change_recipe(recipe, "task.weights=null")
            console.print(f"from {start} weights")
            metrics[start] = train_recipe(chosen, out / f"finetune_{which}_{start}", resume=False, console=console)
        results.finetunes[which] = {
            "metric": "accuracy",
            "chance": metrics["random"]["accuracy_chance_majority"],
            "pretrained": metrics["pretrained"]["accuracy"],
            "random": metrics["random"]["accuracy"],
            "num_clips": int(metrics["random"]["num_clips"]),
            "steps": int(curve_of(out / f"finetune_{which}_random")[-1]["step"]),
        }


def _recipe(recipes: Path, name: str, out: Path, clips: ClipSets) -> Recipe:
    """A recipe of the folder with its paths set to this demo's: shards, the teacher's run, the run to start from."""
    recipe = load_recipe(recipes / f"{name}.yaml")
    changes = [f"data.train={clips.train}", f"data.evaluation={clips.evaluation}"]
    changes += [f"seed={clips.seed}"] if clips.seed is not None else []
    if recipe.task.weights:
        changes.append(f"task.weights={out / (STAGES[0] if name == STAGES[1] else STAGES[1])}")
    if isinstance(recipe.task, PretrainTask) and recipe.task.teacher:
        changes.append(f"task.teacher.run={out / STAGES[0]}")
    if clips.num_train < recipe.trainer.device_batch:
        changes.append(f"trainer.device_batch={clips.num_train}")
    return change_recipe(recipe, *changes)


def _first_and_last(run: Path) -> dict[str, Any]:
    """First and last logged value of every loss term; the last one is the mean since the log line before it."""
    lines = [line for line in curve_of(run) if "loss/total" in line]
    terms = [name.removeprefix("loss/") for name in lines[0] if name.startswith("loss/")]
    return {
        "steps": int(lines[-1]["step"]),
        "num_negatives": lines[-1].get("train/num_negatives", 0.0),
        "first": {term: lines[0][f"loss/{term}"] for term in terms},
        "last": {term: lines[-1][f"loss/{term}"] for term in terms},
    }


def _embed(run: Path, shards: Path) -> Embedded:
    model, recipe = load_masked(run)
    device = choose_device(recipe.trainer.device)
    settle(device, recipe.trainer.num_threads)
    return embed_shards(model, recipe, shards, device)


def export_model(out: Path, results: Results, clips: ClipSets) -> str:
    """Write the encoders of the last stage to ``OUT/export``; return the three lines that use them."""
    exported = exported_run(out / STAGES[-1])
    # The demo's retrieval is in its summary, not in the run.
    exported.about["retrieval"] = {"data": clips.evaluation.name, "galleries": results.retrieval[STAGES[-1]]}
    write_export(out / EXPORT, exported, card_of(exported, EXPORT))
    return usage(str(out / EXPORT), exported.recipe.modalities)


def _default_cues(gallery: Embedded) -> list[str]:
    """Everything in the metadata that can be probed, and the measured loudness."""
    fields = [name for name in probeable_fields(gallery.metadata) if name != LOUDNESS]
    return [*fields[: MOST_CUES - 1], LOUDNESS]


def prepare_folder(out: Path) -> None:
    """Make ``out`` an empty demo folder; an earlier demo is moved to ``OUT.previous``, never deleted at once.

    Raises:
        UserError: the folder holds something that is no demo.
    """
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise UserError(f"{out} holds something that is not a demo: choose another folder with --out")
        previous = out.with_name(out.name + ".previous")
        if (previous / MARKER).is_file():
            shutil.rmtree(previous)
        out.rename(previous)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / MARKER, "{}\n")


def demo(
    out: Annotated[Path, typer.Option(help="folder of the runs, summary.json and report.html")] = Path("runs/demo"),
    clips: Annotated[
        Path | None, typer.Option(help="your own clips: a folder (a sub-folder per class) or a CSV; default: synthetic")
    ] = None,
    train_shards: Annotated[Path | None, typer.Option(help="shards that exist already, instead of --clips")] = None,
    evaluation_shards: Annotated[Path | None, typer.Option(help="the gallery that goes with --train-shards")] = None,
    recipes: Annotated[
        Path, typer.Option(help="folder with stage1, stage2 and finetune_{audio,video,both}.yaml")
    ] = Path("configs/tiny"),
    seed: Annotated[int | None, typer.Option(help="of clips, weights, order and masks; default: the recipes'")] = None,
    cues: Annotated[
        str | None, typer.Option(help="metadata fields to probe for, e.g. speaker,loudness; default: all")
    ] = None,
    within: Annotated[str | None, typer.Option(help="metadata fields to also retrieve inside of, e.g. speaker")] = None,
) -> None:
    """Pack clips, pre-train in two stages, fine-tune, retrieve, and write a report."""
    console = Console()
    sets = make_clip_sets(out, clips, train_shards, evaluation_shards, seed, lambda: prepare_folder(out))
    measure_sound(sets.train, [load_recipe(recipes / f"{name}.yaml") for name in RECIPES])
    results = run_demo(out, recipes, sets, names_in(cues), names_in(within), console)
    checks = judge(results.retrieval, results.finetunes) if sets.is_synthetic else []
    lines = export_model(out, results, sets)
    summary = results.summary(sets, checks, sets.seed or 0)
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    from mavil.commands.demo_report import write_report  # matplotlib and media only now

    write_report(out, sets, results, checks, lines)
    print_results(console, out, results.retrieval, results.finetunes, checks)
    console.print(f"model:   {out / EXPORT} (encoders and card); in Python:\n{lines}", highlight=False, soft_wrap=True)
    if any(not check.passed for check in checks):
        raise typer.Exit(EXIT_CHECKS_FAILED)
