"""``report.html`` of an evaluation."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

import mavil
from mavil.config import Recipe
from mavil.evaluation.results import Results
from mavil.recipe import dump_recipe
from mavil.report.evaluation import evaluation_sections
from mavil.report.page import Listing, Report

REPORT = "report.html"


def evaluation_report(results: Results, run: Path, recipe: Recipe) -> Report:
    """The page: what was evaluated and how, then all numbers."""
    facts = results.predictions.facts
    windows = (
        "one window, the middle of each clip"
        if facts["evaluation_windows"] == 1
        else f"at most {facts['evaluation_windows']} windows of a clip, averaged logits, and the middle one alone"
    )
    left_out = ", ".join(f"{number} {cause}" for cause, number in facts["left_out"].items()) or "none"
    return Report(
        title=f"{recipe.name}: evaluation",
        intro=[
            f"Run {run}, step {facts['step']}, on {facts['data']}.",
            f"{facts['num_clips']} of {facts['clips_in_data']} clips used; left out: {left_out}. "
            f"{facts['num_windows']} windows: {windows}. {len(results.predictions.classes)} classes, loss {facts['loss']}.",
            " ".join(
                [
                    _overlap_words(facts["overlap"], "data.train"),
                    *(_overlap_words(one, f"data.train of {run}") for run, one in facts["overlap_of_starts"].items()),
                ]
            ),
        ],
        checks=[],
        sections=evaluation_sections(results),
        environment=f"mavil {mavil.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        listings=[Listing("protocol", json.dumps(facts, indent=2)), Listing("settings", dump_recipe(recipe))],
    )


def _overlap_words(overlap: dict[str, Any], where: str) -> str:
    if overlap["not_checked"]:
        return f"Overlap with {where} not checked: {overlap['not_checked']}."
    return (
        f"Of {overlap['num_evaluation']} evaluation clips {overlap['num_same_key']} are among the {overlap['num_train']} clips "
        f"of {where}, and {overlap['num_same_recording']} are of a recording that is there too."
    )
