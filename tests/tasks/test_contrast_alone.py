"""Fine-tuning for retrieval: whole clips are compared, nothing is hidden and nothing predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mavil.commands.assemble import task_for
from mavil.config import Recipe
from mavil.losses.contrastive import symmetric_info_nce
from mavil.models.masked import MaskedLearner
from mavil.structs import UserError
from mavil.tasks.pretrain import Pretraining, embed_batch
from tests.support.recipes import random_inputs, tiny_recipe

WHOLE = {"inter_weight": 1.0, "intra_weight": 0.0, "audio_mask_ratio": 0.0, "video_mask_ratio": 0.0}
TASK: dict[str, Any] = {"kind": "pretrain", "reconstruction": None, "contrast": WHOLE}


def alone(**changes: Any) -> Recipe:
    return tiny_recipe(**{"fusion": None, "task": TASK, **changes})


def task_of(recipe: Recipe) -> Pretraining:
    torch.manual_seed(0)
    task = task_for(recipe, None, torch.device("cpu"))
    assert isinstance(task, Pretraining)
    return task


def test_what_is_compared_are_the_embeddings_of_retrieval_and_nothing_else_is_there() -> None:
    task, inputs = task_of(alone()), random_inputs(6)
    assert isinstance(task.model, MaskedLearner)
    assert set(task.export_modules()) == {"audio_encoder", "video_encoder"}
    report = task.loss(inputs, 0)
    assert set(report.terms) == {"inter_contrast"}
    embedded = embed_batch(task.model, task.grids, inputs)
    expected = symmetric_info_nce(embedded["audio"], embedded["video"], 0.1, across_ranks=False)
    torch.testing.assert_close(report.total, expected.loss)
    report.total.backward()
    assert all(p.grad is not None for p in task.model.parameters() if p.requires_grad)
    # Views that hide something are another comparison.
    hidden = {**WHOLE, "audio_mask_ratio": 0.5, "video_mask_ratio": 0.5}
    masked = task_of(alone(task={**TASK, "contrast": hidden}))
    assert masked.loss(inputs, 0).total.item() != pytest.approx(report.total.item(), rel=1e-5)
    assert (
        masked.plan.visible_tokens("audio") * 2 == task.plan.visible_tokens("audio") == task.plan.num_visible("audio")
    )


def test_some_steps_find_the_pairs() -> None:
    task, inputs = task_of(alone()), random_inputs(12)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=2e-3)
    before = task.evaluate([inputs])
    first = task.loss(inputs, 0).total.item()
    for step in range(30):
        optimizer.zero_grad()
        loss = task.loss(inputs, step).total
        loss.backward()
        optimizer.step()
    after = task.evaluate([inputs])
    assert set(after) == set(before)
    assert not [name for name in after if "reconstruction" in name]
    assert loss.item() < 0.2 * first
    assert before["audio_to_video/recall_at_1_percent"] < 50 < after["audio_to_video/recall_at_1_percent"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {**TASK, "contrast": None}}, "nothing would be learned"),
        ({"fusion": {"kind": "joint"}}, "fusion is set, which only decoders use: set it to null"),
        ({"task": {**TASK, "teacher": {"run": "x"}}}, "task.teacher is set"),
        ({"task": {**TASK, "masked_views": 2}}, "task.masked_views=2 are to be predicted"),
        ({"task": {**TASK, "contrast": {**WHOLE, "intra_weight": 0.1}}}, "both views of a clip are the whole of it"),
    ],
)
def test_settings_that_would_train_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        alone(**changes)
