"""``mavil pictures``: from a run and shards to pictures, under any mask."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from mavil.commands import pictures
from mavil.commands.picture_page import Shown, write_pictures
from mavil.commands.train import train_recipe
from mavil.config import Recipe
from mavil.recipe import change_recipe
from mavil.structs import TokenGrid, UserError
from tests.commands.conftest import Outcome
from tests.support.recipes import tiny_recipe

GRID = TokenGrid.of((64, 32), (16, 16), 1)


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of audio and video with fusion; the sound's tokens are numbered band by band."""
    recipe = change_recipe(
        tiny_recipe(schedule={"length": "1 step", "warmup": "0 steps"}),
        f"data.train={shards / 'train'}",
        "data.num_workers=0",
        "audio.token_order=mel_first",
        "trainer.device_batch=4",
        "trainer.device=cpu",
    )
    folder = tmp_path_factory.mktemp("pictures") / "run"
    train_recipe(recipe, folder, resume=False, console=Console(quiet=True))
    return folder


@pytest.fixture
def shown_by(
    mavil: Callable[..., Outcome], run: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[Shown], Recipe]]:
    """What ``mavil pictures RUN SHARDS ARGUMENTS`` would draw."""

    def shown(*arguments: object) -> tuple[list[Shown], Recipe]:
        found: list[Any] = []
        monkeypatch.setattr(
            pictures, "write_pictures", lambda out, clips, run, recipe, grid: found.extend((clips, recipe))
        )
        outcome = mavil("pictures", run, shards / "gallery", *arguments)
        assert outcome.code == 0, outcome.err
        return found[0], found[1]

    return shown


def test_every_picture_is_a_file_and_on_the_page(mavil: Callable[..., Outcome], run: Path, shards: Path) -> None:
    outcome = mavil("pictures", run, shards / "gallery", "--clips", 1, "--out", "seen")
    assert outcome.code == 0, outcome.err
    assert "1 clips: seen/pictures.html" in outcome.out
    names = sorted(path.name for path in Path("seen").iterdir())
    stem = names[0].removesuffix("_attention.png")
    assert re.fullmatch(r"01_synthetic_\w+", stem)
    assert names == [
        *(f"{stem}_{what}.png" for what in ("attention", "heads_0", "heads_1", "reconstruction")),
        "pictures.html",
    ]
    page = Path("seen/pictures.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "relative to its own mean" in page
    assert re.search(r"8\d % hidden; where hidden the mean absolute difference is \d+\.\d dB", page)
    assert "http" not in page


def test_the_masks_of_the_recipe_or_others(shown_by: Callable[..., tuple[list[Shown], Recipe]]) -> None:
    (first, second), _ = shown_by("--clips", 2)
    for clip in (first, second):
        assert clip.filled is not None
        assert torch.equal(clip.filled.original, clip.log_mel)
        assert len(clip.log_mel) == 64
        assert clip.filled.is_masked.float().mean() == 7 / 8  # int(8 x 0.2) of 8 tokens is visible
        changed = clip.filled.completed != clip.filled.original
        assert not changed[~clip.filled.is_masked].any()
        assert changed[clip.filled.is_masked].float().mean() > 0.9
    (again, *_), _ = shown_by("--clips", 2)
    assert again.filled is not None
    assert first.filled is not None
    assert torch.equal(again.filled.completed, first.filled.completed)
    (half,), recipe = shown_by("--clips", 1, "--mask-ratio", 0.5)
    assert half.filled is not None
    assert half.filled.is_masked.float().mean() == 0.5
    assert recipe.audio is not None
    assert recipe.audio.mask_ratio == 0.5
    (rows,), _ = shown_by(
        "--clips", 1, "--masking", "structured", "audio.masking.time_ratio=0.5", "audio.masking.mel_ratio=0"
    )
    assert rows.filled is not None
    assert rows.filled.is_masked.float().mean() == 0.5
    assert (rows.filled.is_masked == rows.filled.is_masked[:, :1]).all()


def test_a_mask_of_ones_own_and_chosen_patches(shown_by: Callable[..., tuple[list[Shown], Recipe]]) -> None:
    mask = np.zeros((4, 2), np.int64)
    mask[1:3, 0] = mask[3, 1] = 1
    np.save("mask.npy", mask)
    (clip,), _ = shown_by("--clips", 1, "--mask", "mask.npy", "--at", "0.2,3", "--at", "0.63,31")
    assert clip.filled is not None
    assert np.array_equal(clip.filled.is_masked.numpy(), mask.repeat(16, 0).repeat(16, 1))
    assert [(one.query, one.token) for one in clip.maps] == [
        ("CLS", None),
        ("patch at 0.16 to 0.32 s, mel bins 0 to 15", 1),
        ("patch at 0.48 to 0.64 s, mel bins 16 to 31", 7),
    ]


def test_a_patch_stands_out_from_its_band_before_the_clips_end() -> None:
    levels = torch.tensor([[9.0, 0.0], [9.0, 5.0], [9.0, 0.0], [99.0, 99.0]])
    assert pictures._most_salient(levels.flatten(), GRID, num_steps=40) == 3
    reordered = GRID.reordered((1, 0))
    assert pictures._most_salient(levels.T.flatten(), reordered, num_steps=40) == 5


def test_a_run_with_a_teacher_shows_attention_alone(
    shown_by: Callable[..., tuple[list[Shown], Recipe]], tmp_path: Path
) -> None:
    (clip,), recipe = shown_by("--clips", 1)
    stage2 = change_recipe(recipe, "task.teacher={run: runs/stage1}")
    page = write_pictures(tmp_path, [Shown(clip.key, clip.log_mel, None, clip.maps[:1])], Path("run"), stage2, GRID)
    assert "Name a stage-1 run" in page.read_text()
    assert not list(tmp_path.glob("*_reconstruction.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at", "9,3"], "--at 9,3: no patch is there: choose from 0 to below 0.64 s and mel bins from 0 to 31"),
        (["--at", "soon"], "--at soon: give seconds and mel bin"),
        (["--mask", "none.npy"], "--mask none.npy: cannot be read"),
        (["--masking", "structured", "--mask-ratio", 0.3], "does not go with --masking structured"),
        (["audio.num_steps=96"], "audio.num_steps=96: that cuts the input otherwise"),
    ],
)
def test_mistakes(
    mavil: Callable[..., Outcome], run: Path, shards: Path, arguments: list[object], message: str
) -> None:
    outcome = mavil("pictures", run, shards / "gallery", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    for values, message in (
        (np.zeros((2, 4)), "4 time steps and 2 mel bands"),
        (np.zeros((4, 2)), "at least one of each"),
        (np.full((4, 2), 0.5), "0 \\(visible\\) and 1 \\(hidden\\)"),
        (np.array([{}]), "cannot be read"),
    ):
        np.save(path, values)
        with pytest.raises(UserError, match=message):
            pictures.read_mask(path, GRID)
    np.save(path, np.ones((2, 4)))
    with pytest.raises(UserError, match="make it \\[4, 2\\]"):
        pictures.read_mask(path, GRID.reordered((1, 0)))
