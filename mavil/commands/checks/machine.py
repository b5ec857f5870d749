"""Checks of the machines: ranks, devices, number format, packages, processors."""

from __future__ import annotations

import importlib
import os

import torch

from mavil import distributed
from mavil.commands.checks.batch import refuse_on_ranks
from mavil.commands.checks.findings import Findings, Odd
from mavil.commands.schedule import device_batch, global_batch
from mavil.config import Recipe
from mavil.distributed.members import Member, listed, own_member, what_differs
from mavil.engine.blocks import check_compiler
from mavil.engine.metrics.loggers import check_loggers
from mavil.engine.precision import choose_precision
from mavil.engine.process.runtime import choose_device
from mavil.structs import UserError


def check_machines(found: Findings, recipe: Recipe, ranks: int | None) -> bool:
    """What does not depend on data or run folder; ``ranks`` are assumed ones, for which there are no machines to look at.

    Returns:
        Whether the global batch divides, without which no length of the run is known.
    """
    device = torch.device("cpu")

    def choose() -> str:
        nonlocal device
        device = choose_device(recipe.trainer.device)
        return "cpu" if device.type == "cpu" else f"{device}, {torch.cuda.get_device_name(device)}"

    if ranks is None:
        found.everywhere("device", choose)
        members = distributed.gather_objects(own_member(distributed.here(), device))
        found.once("ranks", lambda: _alike(members))
        found.everywhere("precision", lambda: choose_precision(recipe.trainer.precision, device))
        problem = differing_precisions(recipe, device)
        if problem is not None:
            found.wrong("precision", problem)
    else:
        found.skip("device, precision", f"{ranks} rank(s) are assumed, and their machines are not here to look at")
    divides = found.once("batch", lambda: _batch(recipe, ranks or distributed.world_size()))
    found.once("loggers", lambda: _loggers(recipe))
    settings = recipe.trainer
    if "fairscale" in (settings.parallel, settings.activation_checkpointing):
        found.everywhere("fairscale", _fairscale)
    if settings.compile and ranks is None:
        found.everywhere("compile", lambda: _compile(device))
    elif settings.compile:
        found.skip("compile", "that, too, depends on the machines")
    if ranks is None:
        found.everywhere("processors", lambda: _processors(recipe))
    return divides


def _alike(members: list[Member]) -> str:
    problem = what_differs(members)
    if problem is not None:
        raise UserError(problem)
    nodes = list(dict.fromkeys(member.node for member in members))
    return f"{len(members)} rank(s) on {len(nodes)} node(s): {listed(nodes)}"


def differing_precisions(recipe: Recipe, device: torch.device) -> str | None:
    """Why the ranks would compute in different number formats, for people; collective."""
    try:
        own = choose_precision(recipe.trainer.precision, device)
    except UserError:
        own = None  # this rank says so itself
    formats = distributed.gather_objects((distributed.here().node, own))
    if len({chosen for _, chosen in formats if chosen}) < 2:
        return None
    told = listed(list(dict.fromkeys(f"{node}: {chosen}" for node, chosen in formats)))
    return f"the ranks' devices would compute in different formats ({told}): set trainer.precision to one that all have"


def _batch(recipe: Recipe, ranks: int) -> str:
    settings = recipe.trainer
    own = device_batch(recipe, ranks)
    refuse_on_ranks(recipe, ranks)
    cut = f" x {settings.accumulation} micro-steps" if settings.accumulation > 1 else ""
    text = f"{global_batch(recipe, ranks)} clips per step = {ranks} rank(s) x {own} clips{cut}"
    contrast = getattr(recipe.task, "contrast", None)
    if contrast is not None and settings.accumulation > 1 and settings.accumulation_negatives == "fewer":
        raise Odd(
            f"{text}; the contrastive losses compare the clips of one micro-step only (accumulation_negatives=fewer)"
        )
    if contrast is not None and contrast.negatives == "local" and ranks > 1:
        raise Odd(
            f"{text}; the contrastive losses compare the {own} clips of one rank only (task.contrast.negatives=local)"
        )
    if settings.precision == "fp16":
        raise Odd(f"{text}; fp16 leaves out steps whose gradient overflows: bf16 is safer where the cards have it")
    return text


def _loggers(recipe: Recipe) -> str:
    check_loggers(recipe.trainer.loggers)
    return ", ".join(("console", "metrics.jsonl", "TensorBoard", *recipe.trainer.loggers))


def _fairscale() -> str:
    try:
        return f"version {importlib.import_module('fairscale').__version__}"
    except ImportError as error:
        raise UserError(
            f"trainer.parallel or activation_checkpointing is fairscale, which cannot be imported ({error}): pip install "
            "fairscale, or set them to fsdp and torch"
        ) from None


def _compile(device: torch.device) -> str:
    if distributed.here().local_rank == 0:
        check_compiler(device)
    return "works"


def _processors(recipe: Recipe) -> str:
    workers, place = recipe.data.num_workers, distributed.here()
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # SLURM may bind each task to processors of its own.
    own = int(os.environ.get("SLURM_CPUS_PER_TASK") or max(1, num_cpus // (place.local_world_size or 1)))
    text = f"{own} for a rank and its {workers} loader worker(s)"
    if workers > 2 * own:
        raise Odd(f"{text}: ask for more, e.g. with --cpus-per-task, or set data.num_workers lower")
    return text
