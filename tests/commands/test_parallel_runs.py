"""``trainer.parallel`` and what else may change how a step is computed, but not what: two ranks, through the command line."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from mavil.engine.checkpoints.reading import load_checkpoint, load_weights
from mavil.engine.metrics.tracker import read_metrics
from mavil.recipe import dump_recipe
from tests.support.processes import shared_launcher, start_ranks, wait_for
from tests.support.recipes import tiny_recipe

STEPS = 6
TOLERANCE = 1e-4
"""Relative, of the loss of each step: sums over ranks and parts in another order, in fp32, through six updates. The terms
themselves move by a tenth."""
TRAINER = {"device_batch": 4, "device": "cpu", "num_threads": 1, "log_every": 1, "checkpoint_every": "3 steps"}
needs_fairscale = pytest.mark.skipif(
    importlib.util.find_spec("fairscale") is None, reason="fairscale, which is optional, is not installed"
)


def losses(run: Path) -> list[float]:
    """Of each step; every step has one line."""
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    return [line["metrics"]["loss/total"] for line in lines]


class Runs:
    """Runs of one recipe in one folder."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self._recipe, self._folder = recipe, folder

    def train(self, name: str, *changes: str, ranks: int = 2) -> Path:
        """Start or continue a run on some ranks, up to its end."""
        run, log = self._folder / name, self._folder / f"{name}.log"
        arguments = ["train", self._recipe, *changes, "--out", run, "--resume"]
        for rank in start_ranks(shared_launcher(), ranks, arguments, self._folder, log):
            assert wait_for(rank, 180) == 0, log.read_text()[-3000:]
        return run

    def go_on(self, run: Path, name: str, *changes: str, ranks: int = 2) -> Path:
        """A copy of a run goes on from its third step."""
        copy = self._folder / name
        shutil.copytree(run, copy, symlinks=True)
        shutil.rmtree(copy / f"checkpoints/step_{STEPS:08d}")
        return self.train(name, *changes, ranks=ranks)


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("parallel")
    data = {"train": str(shards / "train"), "num_workers": 0}
    schedule = {"length": f"{STEPS} steps", "warmup": "1 step"}
    made = tiny_recipe(data=data, schedule=schedule, optimizer={"base_lr": 0.02, "clip_norm": 1.0}, trainer=TRAINER)
    (folder / "recipe.yaml").write_text(dump_recipe(made))
    return Runs(folder / "recipe.yaml", folder)


@pytest.fixture(scope="module")
def ddp(runs: Runs) -> Path:
    """What all others are compared with."""
    return runs.train("ddp")


def test_fsdp_gives_the_losses_of_ddp_and_its_checkpoint_goes_on_as_ddp(runs: Runs, ddp: Path) -> None:
    fsdp = runs.train("fsdp", "trainer.parallel=fsdp")
    assert losses(fsdp) == pytest.approx(losses(ddp), rel=TOLERANCE)
    moved = runs.go_on(fsdp, "fsdp_as_ddp", "trainer.parallel=ddp")
    assert losses(moved) == pytest.approx(losses(ddp), rel=TOLERANCE)
    ends = [load_checkpoint(run / f"checkpoints/step_{STEPS:08d}") for run in (ddp, fsdp, moved)]
    for end in ends[1:]:
        assert end.model.keys() == ends[0].model.keys()
        assert end.optimizer.keys() == ends[0].optimizer.keys()
        assert end.positions == ends[0].positions


@needs_fairscale
def test_a_run_of_ddp_goes_on_as_fairscale_and_then_on_one_rank(runs: Runs, ddp: Path) -> None:
    fairscale = runs.go_on(ddp, "ddp_as_fairscale", "trainer.parallel=fairscale")
    assert losses(fairscale) == pytest.approx(losses(ddp), rel=TOLERANCE)
    # Other readers deal the rest of the epoch anew: other clips meet, so only what is before is comparable.
    alone = runs.go_on(fairscale, "fairscale_alone", "trainer.parallel=fsdp", "trainer.device_batch=8", ranks=1)
    assert losses(alone)[:3] == losses(fairscale)[:3]
    assert load_checkpoint(alone / f"checkpoints/step_{STEPS:08d}").state.samples_seen == STEPS * 8


def test_settings_that_change_how_a_step_is_computed_change_no_loss(runs: Runs, ddp: Path) -> None:
    """Cached negatives in two micro-steps, blocks computed twice, the batch given as a whole, a moving average beside."""
    run = runs.train(
        "settings",
        "trainer.parallel=fsdp",
        "trainer.global_batch=8",
        "trainer.accumulation=2",
        "trainer.accumulation_negatives=cached",
        "trainer.activation_checkpointing=torch",
        "trainer.ema_decay=0.9",
    )
    assert losses(run) == pytest.approx(losses(ddp), rel=TOLERANCE)
    end = load_checkpoint(run / f"checkpoints/step_{STEPS:08d}")
    exported = {name: value for part in load_weights(run).values() for name, value in part.items()}
    assert any(torch.equal(value, other) for value in end.averaged.values() for other in exported.values())
    name = max(end.averaged, key=lambda name: end.averaged[name].numel())
    assert not torch.equal(end.averaged[name], end.model[name])


@pytest.mark.slow
@pytest.mark.parametrize("before", ["ddp", "fsdp", pytest.param("fairscale", marks=needs_fairscale)])
@pytest.mark.parametrize("after", ["ddp", "fsdp", pytest.param("fairscale", marks=needs_fairscale)])
@pytest.mark.parametrize("extra", [(), ("trainer.ema_decay=0.9", "trainer.activation_checkpointing=torch")])
def test_every_kind_goes_on_as_every_other(runs: Runs, ddp: Path, before: str, after: str, extra: tuple[str]) -> None:
    name = "_".join([before, *extra]).replace("trainer.", "")
    first = runs.train(name, f"trainer.parallel={before}", *extra)
    assert losses(first) == pytest.approx(losses(ddp), rel=TOLERANCE)
    moved = runs.go_on(first, f"{name}_as_{after}", f"trainer.parallel={after}", *extra)
    assert losses(moved) == pytest.approx(losses(ddp), rel=TOLERANCE)
    averages = [load_checkpoint(run / f"checkpoints/step_{STEPS:08d}").averaged for run in (first, moved)]
    assert bool(averages[0]) == bool(extra)
    for name, value in averages[0].items():
        torch.testing.assert_close(averages[1][name], value, rtol=TOLERANCE, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp", pytest.param("fairscale", marks=needs_fairscale)])
def test_a_run_goes_on_with_fewer_and_more_ranks(runs: Runs, ddp: Path, kind: str) -> None:
    change = f"trainer.parallel={kind}"
    alone = runs.go_on(
        ddp, f"{kind}_alone", change, "trainer.global_batch=8", "trainer.checkpoint_every=1 step", ranks=1
    )
    shutil.rmtree(alone / f"checkpoints/step_{STEPS:08d}")
    four = runs.train(f"{kind}_alone", change, "trainer.global_batch=8", ranks=4)
    assert load_checkpoint(four / f"checkpoints/step_{STEPS:08d}").state.samples_seen == STEPS * 8
    assert losses(four)[:3] == losses(ddp)[:3]
