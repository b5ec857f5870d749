"""A refused step computed again: the module, the clip and the direction in which something stopped being finite."""

from __future__ import annotations

import io
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from mavil.commands.assemble import task_for
from mavil.commands.inputs import prepare_for
from mavil.config import Recipe
from mavil.data.labels import Vocabulary
from mavil.engine.checkpoints.reading import Checkpoint
from mavil.engine.checkpoints.saving import Saver
from mavil.engine.nonfinite import refuse_update
from mavil.engine.process.runtime import random_state
from mavil.recipe import dump_recipe
from mavil.structs import Batch, TrainState, UserError
from tests.support.recipes import tiny_recipe
from tools.replay_step import Watch, replay_step

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parents[2] / "tools" / "replay_step.py"
STEP = 5
NUM_CLIPS = 3


def recipe_of(**parts: Any) -> Recipe:
    audio = {**tiny_recipe().model_dump()["audio"], "mean": -4.0, "std": 4.0}
    return tiny_recipe(audio=audio, **parts)


def batch_of(spoilt: int | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    waveforms = 0.1 * torch.randn(NUM_CLIPS, 10560, generator=generator)
    if spoilt is not None:
        waveforms[spoilt, 4000] = torch.nan
    return Batch(
        [f"clip_{n}" for n in range(NUM_CLIPS)],
        torch.arange(NUM_CLIPS),
        waveforms,
        torch.full((NUM_CLIPS,), 10560),
        torch.randint(0, 256, (NUM_CLIPS, 4, 3, 32, 32), dtype=torch.uint8, generator=generator),
        torch.full((NUM_CLIPS, 2), 32),
        targets=torch.eye(2)[[0, 1, 0]],
    )


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., Path]:
    """A run folder as a refused step leaves it."""

    def leave(
        batches: list[Batch], recipe: Recipe | None = None, weights: dict[str, Tensor] | None = None, **settings: Any
    ) -> Path:
        (tmp_path / "config.yaml").write_text(dump_recipe(recipe or recipe_of()))
        (tmp_path / "classes.txt").write_text("bark\nmeow\n")
        totals = [float("nan")] * len(batches)
        with pytest.raises(UserError):
            refuse_update(
                tmp_path,
                STEP,
                batches,
                totals[0],
                totals[0],
                [{"loss/total": total} for total in totals],
                random=random_state(CPU),
                model_state=None if weights is None else lambda: weights,
                **settings,
            )
        return tmp_path

    return leave


def weights_of(recipe: Recipe | None = None) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(task_for(recipe or recipe_of(), None, CPU).model.state_dict())


def replay(run: Path) -> tuple[list[Watch], str]:
    text = io.StringIO()
    return replay_step(run, STEP, CPU, Console(file=text, width=200)), text.getvalue()


def test_a_clip_that_is_not_finite_is_named_with_the_first_module_that_saw_it(refused: Callable[..., Path]) -> None:
    (watch,), text = replay(refused([batch_of(spoilt=1)], weights=weights_of()))
    assert watch.forward is not None
    assert watch.forward.module.startswith("encoders.audio.patch_embed")
    assert watch.forward.clips == ["clip_1"]
    assert torch.tensor(watch.terms["audio_reconstruction"]).isnan()
    assert "of the clips clip_1" in text
    waveform = next(line for line in text.splitlines() if "clip_1" in line and "waveform" in line)
    assert "0.01%" in waveform
    assert next(line for line in text.splitlines() if "clip_0" in line and "waveform" in line).count("0.00%") == 1


def test_a_module_that_overflows_is_named_and_blames_no_clip(refused: Callable[..., Path]) -> None:
    weights = weights_of()
    weights["encoders.video.blocks.1.mlp.fc2.weight"] *= 1e38
    weights["encoders.video.blocks.1.mlp.fc2.weight"] *= 1e3
    (watch,), text = replay(refused([batch_of()], weights=weights))
    assert watch.forward is not None
    assert (watch.forward.module, watch.forward.clips) == ("encoders.video.blocks.1.mlp.fc2", [])
    assert "first output that is not finite: encoders.video.blocks.1.mlp.fc2 (" in text
    assert "weights: those of the step" in text


def test_a_gradient_that_overflows_is_found_where_it_begins(refused: Callable[..., Path]) -> None:
    """In fp16 with too large a factor: the loss is finite, its gradient is not."""
    run = refused([batch_of()], weights=weights_of(), precision="fp16", loss_scale=2.0**60)
    (watch,), text = replay(run)
    assert watch.forward is None
    assert watch.backward is not None
    assert watch.parameters
    assert all(torch.tensor(value).isfinite() for value in watch.terms.values())
    assert "first gradient of the output that is not finite: " in text
    (watch,), text = replay(refused([batch_of()], weights=weights_of(), precision="fp16", loss_scale=1.0))
    assert (watch.forward, watch.backward, watch.parameters) == (None, None, [])
    assert "every output and gradient is finite" in text


def test_a_classifier_drops_the_paths_that_the_run_dropped(refused: Callable[..., Path]) -> None:
    settings = {"kind": "classify", "modalities": ["audio"], "drop_path": 0.5, "loss": "cross_entropy"}
    recipe = recipe_of(task=settings)
    task = task_for(recipe, Vocabulary(("bark", "meow")), CPU)
    run = refused([batch_of()], recipe=recipe, weights=dict(task.model.state_dict()))
    # The generators are where they were when the step was refused: here, where it is computed for the first time.
    then = task.loss(prepare_for(recipe, CPU, training=True)(batch_of()), STEP - 1).terms["cross_entropy"].item()
    again = task.loss(prepare_for(recipe, CPU, training=True)(batch_of()), STEP - 1).terms["cross_entropy"].item()
    assert then != again
    (watch,), _ = replay(run)
    assert watch.terms["cross_entropy"] == then


def test_without_the_steps_own_weights_the_newest_before_it_are_taken(refused: Callable[..., Path]) -> None:
    run = refused([batch_of()])
    with pytest.raises(UserError, match=f"has no weights to replay step {STEP} with"):
        replay(run)
    for step in (1, STEP - 2, STEP):
        weights = weights_of()
        if step == STEP - 2:
            weights["encoders.audio.patch_embed.proj.weight"].fill_(torch.nan)
        saver = Saver(run, {"whole": ""}, keep=9)
        saver.save(Checkpoint(weights, {}, TrainState(step), None, {}))
        saver.close()
    (watch,), text = replay(run)
    assert watch.forward is not None
    assert f"weights: of step {STEP - 2} ({run / 'checkpoints'}" in text
    assert "1 update(s) too old" in text


def test_each_kept_micro_step_is_computed(refused: Callable[..., Path]) -> None:
    watches, text = replay(refused([batch_of(), batch_of(spoilt=2)], weights=weights_of()))
    assert [watch.forward is None for watch in watches] == [True, False]
    assert "kept micro-step 2" in text


def test_the_command_line(
    refused: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = refused([batch_of(spoilt=0)], weights=weights_of())
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # the script changes the first entry
    monkeypatch.setenv("COLUMNS", "200")
    for step, code in ((STEP, 0), (STEP + 1, 2)):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(run), str(step), "--device", "cpu"])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert (caught.value.code or 0) == code
    answer = capsys.readouterr()
    assert "of the clips clip_0" in answer.out
    assert "replay_step: " in answer.err
    assert "is not the folder of a refused step" in answer.err
