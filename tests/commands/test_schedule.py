"""Which weights the mean of the last ones takes, in steps, from lengths in epochs and steps."""

from __future__ import annotations

import pytest

from mavil.commands.schedule import mean_steps
from mavil.recipe import change_recipe
from mavil.structs import UserError
from tests.support.recipes import tiny_recipe


def steps(*changes: str) -> tuple[int, int]:
    """Of a training of 100 steps, 20 an epoch."""
    return mean_steps(
        change_recipe(tiny_recipe(), "trainer.device_batch=8", *changes), total=100, samples_per_epoch=160
    )


def test_lengths_become_steps() -> None:
    assert steps("trainer.mean_of_last=3 epochs") == (60, 20)
    assert steps("trainer.mean_of_last=50 steps", "trainer.mean_every=0.5 epochs") == (50, 10)
    assert steps("trainer.mean_of_last=5 epochs", "trainer.mean_every=0.01 epochs") == (100, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["trainer.mean_of_last=6 epochs"], "mean_of_last=6 epochs is 120 steps, but the training has 100"),
        (["trainer.mean_of_last=20 steps"], "mean_of_last=20 steps is 20 steps and trainer.mean_every=1 epochs is 20"),
    ],
)
def test_a_mean_that_is_too_long_or_of_one_set_is_refused(changes: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        steps(*changes)
    assert words in str(caught.value)
