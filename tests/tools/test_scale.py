"""The estimate: its formulas against small sums by hand, its counts against the code, its document against itself."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mavil import distributed
from mavil.commands.starting import grids_of
from mavil.config import Contrast, PretrainTask, Recipe, Reconstruction
from mavil.models.build import build_masked
from mavil.recipe import change_recipe, load_recipe
from mavil.structs import UserError
from mavil.tasks.pretrain import Pretraining
from mavil.tasks.views import ViewPlan
from tests.support.recipes import random_inputs, tiny_recipe
from tests.tools.conftest import Tool
from tools.scaling import estimates
from tools.scaling import question as questions
from tools.scaling.command import RECIPES, ROOT, build_question
from tools.scaling.inputs import Inputs, change_inputs
from tools.scaling.limits import room
from tools.scaling.question import Question
from tools.scaling.report import assumptions_of, tables_of
from tools.scaling.tables import put_into, short, span
from tools.scaling.work import Work, count_gathered, work_of

DOCUMENT = ROOT / "docs" / "clusters.md"


@pytest.fixture(autouse=True)
def _count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting the work of a recipe takes seconds."""

    def count(recipe: Recipe) -> Work:
        plain = change_recipe(recipe, "data.num_workers=8").model_dump_json()
        return replace(_counted(plain), recipe=recipe)

    monkeypatch.setattr(questions, "work_of", count)


@functools.cache
def _counted(recipe: str) -> Work:
    return work_of(Recipe.model_validate_json(recipe))


@pytest.fixture(scope="module")
def question() -> Question:
    return build_question(RECIPES)


@pytest.fixture
def scale(tool: Callable[[str], Tool]) -> Tool:
    return tool("scale")


def test_the_document_has_the_tables_of_today(question: Question) -> None:
    """After a change: python tools/scale.py --into docs/clusters.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert put_into(text, tables_of(question)) == text
    assert "assumed, not measured" in text


def test_a_document_without_all_places_is_refused(question: Question) -> None:
    tables = tables_of(question)
    place = "<!-- scale: work -->\nold\n<!-- scale: end -->"
    assert put_into(place, tables[:1]).splitlines()[1:-1] == tables[0].to_markdown().splitlines()
    with pytest.raises(UserError, match="places for work, and the tables are anchor"):
        put_into(place, tables)


def test_work_is_that_of_the_recipe(question: Question) -> None:
    first, second = question.works
    assert first.teacher == 0 < second.teacher
    assert first.flops_per_clip == 6 * first.forward
    assert second.flops_per_clip == 6 * second.forward + 2 * second.teacher
    assert second.backward_share < first.backward_share == pytest.approx(2 / 3)
    assert (first.blocks, first.teacher_blocks, second.teacher_blocks) == (12 + 12 + 2 + 8 + 8, 0, 12 + 12 + 2)
    assert first.samples(1000, 10) == 20_000
    assert first.checkpoint_bytes() == 12 * first.trained
    assert first.checkpoint_bytes(has_average=True) == 16 * first.trained
    supervised = load_recipe(ROOT / "configs" / "tiny" / "finetune_both.yaml")
    with pytest.raises(UserError, match="for pre-training recipes"):
        work_of(supervised)


@pytest.mark.parametrize(
    ("contrast", "expected"),
    [
        (Contrast(inter_weight=0.1, intra_weight=0.01), 6),
        (Contrast(inter_weight=0.1, intra_weight=0.0), 2),
        (Contrast(inter_weight=0.0, intra_weight=0.01), 4),
        (Contrast(negatives="local"), 0),
        (Contrast(intra_weight=0.0, directions="audio_for_video"), 1),
        (None, 0),
    ],
)
def test_gathers_are_those_of_the_losses(
    contrast: Contrast | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[Tensor] = []

    def note(rows: Tensor) -> Tensor:
        gathered.append(rows)
        return rows

    monkeypatch.setattr(distributed, "gather_with_gradient", note)
    plan = ViewPlan.of(grids_of(tiny_recipe()), {"audio": 0.75, "video": 0.75}, contrast, num_predicted=1)
    task = Pretraining(build_masked(tiny_recipe()), plan, Reconstruction(), contrast)
    task.loss(random_inputs(3), step=0)
    assert len(gathered) == count_gathered(PretrainTask(contrast=contrast), num_modalities=2) == expected
    assert all(rows.shape == (3, 32) and rows.dtype == torch.float32 for rows in gathered)


def test_tensors_per_block_are_those_of_a_block() -> None:
    work = work_of(tiny_recipe())
    blocks = build_masked(tiny_recipe()).encoders["audio"].blocks
    assert work.tensors == work.blocks * len(list(blocks[0].parameters()))  # type: ignore[union-attr,index]


def test_a_ring_sends_what_a_ring_sends(question: Question) -> None:
    """Four ranks in two nodes: each sends 3/4 of the bytes twice; 100 Gbit/s are 12.5 GB/s, of which 0.7 come through."""
    assert estimates.ring_bytes(2.0, 4, 1000) == 1500
    card = question.inputs.cards["A100"].model_copy(update={"node_gpus": 2, "node_network_gbit": 100.0})
    place = estimates.Place("A100", card, ranks=4, device_batch=1)
    assert place.nodes == 2
    seconds = estimates.collective_seconds(12.5e9, place, question.inputs)
    assert seconds == pytest.approx(1 / 0.7)
    one_node = replace(place, ranks=2)
    assert estimates.collective_seconds(12.5e9, one_node, question.inputs) == pytest.approx(12.5 / 300 / 0.7)
    assert estimates.collective_seconds(12.5e9, replace(place, ranks=1), question.inputs, count=9) == 0
    latency = estimates.collective_seconds(0.0, place, question.inputs, count=10)
    assert latency == pytest.approx(10 * 50e-6)


def test_gathers_go_round_three_times(question: Question) -> None:
    """Forward an all-gather, backward an all-reduce of the joined rows: six tensors [512, 768] float32."""
    work, place = question.works[0], question.place("A100", 64)
    assert work.gathered_bytes(512) == 6 * 512 * 768 * 4
    sent = 3 * 63 / 64 * work.gathered_bytes(512)
    expected = sent / (1600 / 8 * 1e9) / 0.7 + 12 * 50e-6
    assert estimates.gather_seconds(work, place, question.inputs) == pytest.approx(expected)


def test_gradients_hide_behind_the_backward_pass_except_the_last_bucket(question: Question) -> None:
    work, inputs, place = question.works[0], question.inputs, question.place("A100", 64)
    always = estimates.gather_seconds(work, place, inputs) + 2 * 50e-6
    gradients, exposed = estimates.exposed_seconds(work, place, inputs, busy=100.0)
    assert exposed == pytest.approx(gradients / 39 + always)
    gradients, exposed = estimates.exposed_seconds(work, place, inputs, busy=0.003)
    assert exposed == pytest.approx(gradients - 0.8 * 2 / 3 * 0.003 + always)
    assert estimates.exposed_seconds(work, replace(place, ranks=1), inputs, busy=1.0) == (0, 0)


def test_a_step_is_as_long_as_its_slowest_part(question: Question) -> None:
    work, place = question.works[0], question.place("A100", 8)
    step = estimates.estimate_step(work, place, question.inputs, 0.5)
    assert step.compute == pytest.approx(64 * work.flops_per_clip / (312e12 * 0.5))
    assert step.limit == "compute"
    assert step.source == "assumed"
    assert step.clips_per_second == pytest.approx(512 / (step.compute + step.exposed))

    def limited(*changes: str) -> estimates.Step:
        inputs = change_inputs(question.inputs, changes)
        return estimates.estimate_step(work, replace(place, card=inputs.cards["A100"]), inputs, 0.5)

    few_cores = limited("cards.A100.node_cores=16")
    assert few_cores.limit == "decode"
    assert few_cores.clips_per_second == pytest.approx(8 * (16 / 8 - 1) * 38.1)
    more_cores = limited("cards.A100.node_cores=640", "storage.node_read_gb_s=9", "compute.utilisation_high=1")
    assert more_cores.ceilings["decode"] == pytest.approx(8 * 8 * 38.1), "the recipe has 8 workers"
    slow_disk = limited("storage.read_gb_s=0.08")
    assert slow_disk.limit == "storage"
    assert slow_disk.clips_per_second == pytest.approx(100)
    assert limited("compute.host_forward_ms=1000").limit == "launch"
    assert limited("cards.A100.nvlink_gb_s=0.1").limit == "network"


def test_room_below_one_means_that_the_cards_wait(question: Question) -> None:
    work, place = question.works[0], question.place("A100", 8)
    inputs = change_inputs(question.inputs, ["storage.read_gb_s=0.08", "cards.A100.memory_gb=13"])
    place = replace(place, card=inputs.cards["A100"])
    factors = room(work, place, estimates.estimate_step(work, place, inputs, 0.4), inputs)
    assert {name for name, factor in factors.items() if factor < 1} == {"storage", "memory"}
    alone = replace(place, ranks=1)
    assert room(work, alone, estimates.estimate_step(work, alone, inputs, 0.4), inputs)["network"] == float("inf")


def test_lost_time_by_hand() -> None:
    inputs = Inputs()
    assert estimates.preempted_efficiency(inputs, 4, has_warning=True) == pytest.approx(1 - 3 / 240)
    assert estimates.preempted_efficiency(inputs, 4, has_warning=False) == pytest.approx(1 - (3 + 15) / 240)
    assert estimates.preempted_efficiency(inputs, 0.1, has_warning=False) == 0


def test_the_published_cost_implies_its_share_of_the_peak(question: Question) -> None:
    """5,120 hours at that share of 125 TFLOP/s do the work of both stages again."""
    share = estimates.implied_utilisation(question.works, question.inputs, question.inputs.cards["V100"])
    flops = sum(work.flops_per_clip * 40_000_000 for work in question.works)
    assert share * 125e12 * 5120 * 3600 == pytest.approx(flops, rel=1e-3)


def measured_file(folder: Path, **changes: Any) -> Path:
    tree = {
        "machine": {"processor": "AMD EPYC, 96 cores"},
        "device": "NVIDIA H100 80GB HBM3",
        "recipe": "configs/pretrain/mavil_stage1.yaml",
        "ranks": 1,
        "device_batch": 32,
        "step_seconds": 0.5,
        "gradient_bytes": 951_266_304,
    }
    path = folder / "measured.json"
    path.write_text(json.dumps({key: value for key, value in (tree | changes).items() if value is not None}))
    return path


def test_a_measured_step_takes_the_place_of_the_assumption(tmp_path: Path) -> None:
    measured = build_question(RECIPES, gpus="8,16", measured=[measured_file(tmp_path)])
    work = measured.works[0]
    scaled, same = (measured.steps_at(work, measured.place("H100", ranks))[0] for ranks in (8, 16))
    assert (scaled.compute, scaled.source) == (1.0, "measured at 32")
    assert (same.compute, same.source) == (0.5, "measured")
    assert measured.steps_at(work, measured.place("A100", 8))[0].source == "assumed"
    assert measured.steps_at(measured.works[1], measured.place("H100", 8))[0].source == "assumed"
    rows = {row[1]: row for row in tables_of(measured)[-1].rows}
    assert rows["gradient_bytes"][2] == rows["gradient_bytes"][3] == "9.513e+08"
    (sentence,) = assumptions_of(measured)
    assert "mavil_stage2 on H100" in sentence
    assert "mavil_stage1 on H100" not in sentence


def test_a_file_may_hold_several_measurements(tmp_path: Path) -> None:
    cases = [{"device_batch": batch, "step_seconds": 0.01 * batch} for batch in (16, 64)]
    path = measured_file(tmp_path, device_batch=None, step_seconds=None, cases=cases)
    question = build_question(RECIPES, gpus="8", measured=[path])
    assert [m.device_batch for m in question.measurements] == [16, 64]
    assert question.steps_at(question.works[0], question.place("H100", 8))[0].compute == pytest.approx(0.64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "configs/tiny/stage1.yaml"}, "of recipe stage1, and the estimate is for mavil_stage1"),
        ({"device": "cpu"}, "not one with V100, A100"),
        ({"step_seconds": None}, "holds no step_seconds"),
        ({"ranks": None}, "lacks a number"),
        ({"step_seconds": 0}, "must be above 0"),
    ],
)
def test_a_measurement_of_something_else_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = measured_file(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        build_question(RECIPES, measured=[path])


def test_inputs_are_changed_by_name_and_refused_by_name() -> None:
    inputs = change_inputs(Inputs(), ["loading.core_clips=50", "cards.V100.node_cores=96"])
    assert (inputs.loading.core_clips, inputs.cards["V100"].node_cores) == (50, 96)
    assert Inputs().cards["V100"].node_cores == 40
    with pytest.raises(UserError, match=r"write e\.g\. loading\.core_clips="):
        change_inputs(Inputs(), ["loading.core_clip=50"])
    for wrong in ("loading.core_clips=many", "compute.utilisation_low=1.5", "cards.V100.node_cores=0"):
        with pytest.raises(UserError, match=f"--set {wrong}"):
            change_inputs(Inputs(), [wrong])


def test_every_input_says_what_it_is_and_changes_something(question: Question) -> None:
    """An input that no table depends on is not read anywhere."""
    tables = [table for table in tables_of(question) if table.name not in ("inputs", "cards")]
    for name, value, text in question.inputs.leaves():
        assert text, name
        smaller = change_inputs(question.inputs, [f"{name}={value / 4 if isinstance(value, float) else value // 2}"])
        changed = replace(question, inputs=smaller)
        if changed.global_batch % max(changed.gpus) == 0:
            others = [table for table in tables_of(changed) if table.name not in ("inputs", "cards")]
            assert others != tables, name


def test_numbers_are_short() -> None:
    assert [short(v) for v in (1234.0, 0.0312, 4.0, 99.6, 0, float("inf"))] == [
        "1,200",
        "0.031",
        "4.0",
        "100",
        "0",
        "any",
    ]
    assert span(3.0, 1.0) == "1.0 - 3.0"
    assert span(1.001, 1.0) == "1.0"


def test_on_the_command_line(scale: Tool, tmp_path: Path) -> None:
    code, out, _ = scale("--gpus", "8", "--price", "2", "data.num_workers=15", "--networks", "10", "--markdown")
    assert code == 0
    assert "cost at 2 per GPU-hour" in out
    assert "| 15 |\n" in out, "the recipe's workers"
    assert "10 Gbit/s, ms" in out
    assert "Assumed, not measured" in out
    code, out, _ = scale("--gpus", "8")
    assert code == 0
    assert "What breaks first" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "48"], "the global batch of 512 clips cannot be divided by it"),
        (["--gpus", "a lot"], "write numbers with commas"),
        (["--gpus", "2.5"], "whole numbers above 0"),
        (["--card", "B200"], "not known; there are V100, A100, H100, H200"),
        (["--recipe", "nowhere.yaml"], "no such recipe"),
    ],
)
def test_what_cannot_be_estimated_is_said_in_one_line(arguments: list[str], message: str, scale: Tool) -> None:
    code, _, err = scale(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
