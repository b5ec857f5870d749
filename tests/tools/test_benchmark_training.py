"""The benchmark of training: that its cases are comparable and its numbers mean what they say; never how fast this machine is."""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm.layers
import torch

from mavil.commands.assemble import read_recipe
from mavil.commands.inspect import inspect_recipe
from mavil.commands.schedule import global_batch
from mavil.recipe import dump_recipe
from mavil.structs import UserError
from mavil.tasks.pretrain import Pretraining
from tests.support.recipes import tiny_recipe
from tools.benchmarks import training, training_process
from tools.benchmarks.plain_loop import PlainLoop, random_inputs
from tools.benchmarks.training import GROUPS, Result, build_cases, operations_per_clip, report_of, run_case, run_cases
from tools.benchmarks.training_process import Case, Hook, Reading, measure
from tools.scaling.measured import read_measurements

SCRIPT = Path(__file__).parents[2] / "tools" / "benchmark.py"
CPU = torch.device("cpu")
CONTRAST = {"inter_weight": 0.5, "intra_weight": 0.5}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    settings = {"device": "cpu", "device_batch": 4, "num_threads": 1}
    path.write_text(dump_recipe(tiny_recipe(trainer=settings, task={"kind": "pretrain", "contrast": CONTRAST})))
    return path


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    timm.layers.set_fused_attn(True)
    torch.set_num_threads(threads)


def cases_of(recipe: Path, *changes: str, groups: tuple[str, ...] = GROUPS, steps: int = 2) -> list[Case]:
    return build_cases(recipe, changes, groups, ranks=2, steps=steps, folder=recipe.parent, threads=1)


def test_every_case_has_the_clips_of_the_recipe(recipe: Path) -> None:
    cases = cases_of(recipe)
    assert [case.name for case in cases] == [
        "engine",
        "bf16",
        "attention not fused",
        "activations computed again, torch",
        "activations computed again, fairscale",
        "blocks compiled",
        "average of the weights",
        "2 micro-steps, each its own candidates",
        "2 micro-steps, the candidates of all",
        "2 ranks, ddp",
        "2 ranks, fsdp",
        "2 ranks, fairscale",
    ]
    for case in cases:
        changed = read_recipe(Path(case.recipe), case.changes)
        assert global_batch(changed, case.ranks) == 4
        assert changed.model_copy(update={"trainer": None}) == read_recipe(recipe, case.plain_changes).model_copy(
            update={"trainer": None}
        )
    settings = [read_recipe(recipe, case.changes).trainer for case in cases]
    assert [one.precision for one in settings].count("bf16") == 1
    assert [one.accumulation_negatives for one in settings if one.accumulation == 2] == ["fewer", "cached"]
    assert [one.parallel for one, case in zip(settings, cases, strict=True) if case.ranks == 2] == [
        "ddp",
        "fsdp",
        "fairscale",
    ]
    assert [case.name for case in cases if case.saves] == ["engine"]


def test_threads_are_shared_and_groups_chosen(recipe: Path) -> None:
    cases = build_cases(recipe, [], ("ranks",), ranks=2, steps=1, folder=recipe.parent, threads=8)
    threads = [read_recipe(recipe, case.changes).trainer.num_threads for case in cases]
    assert threads == [8, 4, 4, 4]
    assert {read_recipe(recipe, case.plain_changes).trainer.num_threads for case in cases} == {8}
    with pytest.raises(UserError, match="device_batch is 3, which 2 ranks"):
        cases_of(recipe, "trainer.device_batch=3", groups=("ranks",))


def test_the_engine_is_measured_beside_the_plain_loop_and_saves(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases_of(recipe, groups=(), steps=3)[0]
    assert case.saves
    # Each kind of step is made as slow as it is told apart by.
    slow(monkeypatch, PlainLoop, "step", 0.05)
    slow(monkeypatch, Pretraining, "own_loss", 0.02)
    reading = measure(case)
    assert len(reading.step_seconds) == len(reading.plain_seconds) == 3
    assert all(seconds >= 0.02 for seconds in reading.step_seconds)
    facts = reading.facts
    model = measure_model(recipe)
    assert facts["parameters"] == model
    assert facts["gradient_bytes"] == 4 * model
    assert (facts["ranks"], facts["device_batch"], facts["clips_per_step"]) == (1, 4, 4)
    assert facts["gathered_bytes"] == 0, "one rank gathers nothing"
    checkpoint = reading.checkpoint
    assert checkpoint["bytes"] == pytest.approx(12 * model, rel=0.25)  # weights and two moments; names and manifest
    assert 0 < checkpoint["blocked_seconds"] <= checkpoint["write_seconds"]
    assert checkpoint["step_seconds_while_writing"] >= 0.02


def test_the_clock_of_a_step_starts_behind_the_plain_loop(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for kind, method in ((PlainLoop, "step"), (Pretraining, "own_loss"), (Hook, "_wait")):
        monkeypatch.setattr(kind, method, noted(getattr(kind, method), f"{kind.__name__}.{method}", order))
    measure(replace(cases_of(recipe, groups=(), steps=2)[0], saves=False))
    measured = "".join({"PlainLoop.step": "p", "Pretraining.own_loss": "e", "Hook._wait": "|"}[name] for name in order)
    # The plain loop's own loss is an e too: pe. Its first steps warm up.
    assert measured == "eee|" + "pe" * (1 + training_process.WARM_UP_STEPS) + "|e|" + "pe" + "|e|"


def noted(plain: Callable[..., Any], name: str, order: list[str]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        order.append(name)
        return plain(*arguments, **options)

    return call


def measure_model(recipe: Path) -> int:
    return inspect_recipe(read_recipe(recipe, ["audio.mean=0", "audio.std=1"])).parameters["trained"]


def slow(monkeypatch: pytest.MonkeyPatch, kind: type, method: str, seconds: float) -> None:
    plain = getattr(kind, method)

    def slowed(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return plain(*arguments, **options)

    monkeypatch.setattr(kind, method, slowed)


def test_accumulated_steps_are_measured_whole(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {case.name: case for case in cases_of(recipe, groups=("accumulation",), steps=2)}
    slow(monkeypatch, Pretraining, "own_loss", 0.03)
    for name in ("2 micro-steps, each its own candidates", "2 micro-steps, the candidates of all"):
        reading = measure(replace(cases[name], folder=str(recipe.parent / name[-3:])))
        assert all(seconds >= 0.06 for seconds in reading.step_seconds), name
        assert reading.facts["clips_per_step"] == 4


def test_attention_can_be_unfused(recipe: Path) -> None:
    calls: list[int] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return plain(*arguments, **options)

    numbers = []
    for number, case in enumerate(cases_of(recipe, groups=("attention",), steps=1)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
            measure(replace(case, saves=False, folder=str(recipe.parent / str(number))))
        numbers.append(len(calls))
        calls.clear()
    assert numbers[0] > 0
    assert numbers[1] == 0


def test_the_plain_loop_trains_on_all_clips(recipe: Path) -> None:
    loop = PlainLoop(read_recipe(recipe, []), 6, CPU, num_threads=1)
    weights = {name: value.clone() for name, value in loop._task.model.state_dict().items()}
    seeds = loop._inputs.seeds.clone()
    assert loop.step() > 0
    assert any(not torch.equal(value, weights[name]) for name, value in loop._task.model.state_dict().items())
    assert not torch.equal(loop._inputs.seeds, seeds), "the same masks every step"
    assert loop._task.loss(loop._inputs, 0).scalars["num_negatives"] == 5
    assert all(parameter.grad is None for parameter in loop._task.model.parameters())


def test_inputs_fit_classifiers_too(recipe: Path) -> None:
    changed = tiny_recipe(task={"kind": "classify", "modalities": ["audio"], "loss": "cross_entropy"})
    inputs = random_inputs(changed, 3, CPU)
    assert inputs.video is None
    assert inputs.targets is not None
    assert inputs.targets.sum(dim=1).tolist() == [1, 1, 1]


def reading_of(*step_seconds: float, plain: float = 0.1, **facts: Any) -> Reading:
    known = {"device": "cpu", "precision": "fp32", "ranks": 1, "device_batch": 4, "clips_per_step": 4}
    known |= {"parameters": 10, "gradient_bytes": 40, "gathered_bytes": 0}
    saving = {"bytes": 120.0, "blocked_seconds": 0.5, "first_blocked_seconds": 0.7, "write_seconds": 2.0}
    saving["step_seconds_while_writing"] = 0.4
    return Reading(list(step_seconds), [plain] * len(step_seconds), 2**20, known | facts, saving)


def test_percents_are_of_the_plain_loop_of_the_same_round(recipe: Path) -> None:
    case = cases_of(recipe, groups=())[0]
    readings = [reading_of(0.2, 0.2), reading_of(0.1, 0.3, plain=0.2), reading_of(0.1, 0.1, plain=0.05)]
    summary = Result(case, readings).summary()
    assert summary["percent_of_plain"] == pytest.approx(200)
    assert summary["percent_of_plain_lowest"] == pytest.approx(100)
    assert summary["percent_of_plain_highest"] == pytest.approx(200)
    assert summary["step_seconds"] == pytest.approx(0.2)
    assert summary["clips_per_second"] == pytest.approx(20)


def test_the_report_is_what_the_scale_tool_reads(recipe: Path, tmp_path: Path) -> None:
    case = cases_of(recipe, groups=())[0]
    result = Result(case, [reading_of(0.2, 0.2, device="NVIDIA H100 80GB HBM3")])
    report = {"machine": {}, **report_of(recipe, [], [result])}
    (tmp_path / "measured.json").write_text(json.dumps(report))
    [measured] = read_measurements(tmp_path / "measured.json", ["tiny"], ["H100", "A100"])
    assert (measured.recipe, measured.ranks, measured.device_batch) == ("tiny", 1, 4)
    assert measured.step_seconds == pytest.approx(0.2)
    assert measured.extras == {
        "parameters": 10,
        "gradient_bytes": 40,
        "gathered_bytes": 0,
        "checkpoint_bytes": 120,
        "checkpoint_write_seconds": 2.0,
        "checkpoint_blocked_seconds": 0.5,
    }
    forward = inspect_recipe(read_recipe(recipe, ["audio.mean=0", "audio.std=1"])).multiply_adds["forward"]
    assert report["operations_per_clip"] == 2 * 3 * forward
    assert report["operations_per_second"] == pytest.approx(20 * 6 * forward)
    assert report["peak_share"] == pytest.approx(20 * 6 * forward / 989e12)


def test_the_share_of_checkpoints_is_at_the_interval_of_the_recipe(recipe: Path) -> None:
    result = Result(cases_of(recipe, groups=())[0], [reading_of(2.0)])
    # An epoch is 500,000 steps here: half an hour comes first.
    report = report_of(recipe, [], [result])
    assert report["checkpoint_interval_seconds"] == 1800
    assert report["checkpoint_share"] == pytest.approx(0.5 / 1800.5)
    report = report_of(recipe, ["trainer.checkpoint_every=10 steps"], [result])
    assert report["checkpoint_interval_seconds"] == pytest.approx(20)


def test_a_case_that_is_not_possible_here_is_left_out_and_the_others_go_on(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, bool]] = []

    def run(case: Case) -> Reading:
        order.append((case.name, case.saves))
        if "fairscale" in case.name:
            raise UserError("no fairscale")
        return reading_of(0.1)

    monkeypatch.setattr(training, "run_case", run)
    *_, (_, results) = run_cases(cases_of(recipe, groups=("blocks",)), rounds=2)
    names = [name for name, _ in order]
    assert names == [
        "engine",
        "activations computed again, torch",
        "activations computed again, fairscale",
        "blocks compiled",
        "engine",
        "activations computed again, torch",
        "blocks compiled",
    ]
    assert [saves for name, saves in order if name == "engine"] == [True, False]
    assert results[2].summary() == {"name": "activations computed again, fairscale", "problem": "no fairscale"}
    with pytest.raises(UserError, match="no fairscale"):
        report_of(recipe, [], [results[2]])


@pytest.fixture
def benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``benchmark("--rounds", "1")`` -> (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # the script changes the first entry
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "training", *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        answer = capsys.readouterr()
        return int(caught.value.code or 0), answer.out, answer.err

    return run


def test_the_command_prints_a_table_and_writes_json(
    benchmark: Callable[..., tuple[int, str, str]], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "run_case", lambda case: reading_of(0.2))
    options = ["--only", "precision", "--rounds", "2", "--json", str(tmp_path / "out.json")]
    code, printed, errors = benchmark(str(recipe), "trainer.device_batch=2", *options)
    assert (code, errors) == (0, "")
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["changes"] == ["trainer.device_batch=2"]
    assert [case["name"] for case in report["cases"]] == ["engine", "bf16"]
    assert all(len(case["rounds"]) == 2 for case in report["cases"])
    for text in ("engine", "bf16", "200.0", "0.500 s per save", "2.00 times"):
        assert text in printed


def test_mistakes_are_one_line(benchmark: Callable[..., tuple[int, str, str]], recipe: Path, tmp_path: Path) -> None:
    for arguments in (["--only", "speed"], ["--folder", str(tmp_path / "none")], ["no.yaml"]):
        code, _, errors = benchmark(*([str(recipe)] if arguments != ["no.yaml"] else []), *arguments)
        assert code == 2
        assert errors.startswith("benchmark: ")
        assert len(errors.splitlines()) == 1


@pytest.mark.slow
def test_ranks_are_processes_that_gather(recipe: Path) -> None:
    case = cases_of(recipe, groups=("ranks",), steps=1)[1]
    reading = run_case(case)
    assert (reading.facts["ranks"], reading.facts["device_batch"], reading.facts["clips_per_step"]) == (2, 2, 4)
    # Two tensors between the modalities, two within each of them; all clips, 32 numbers of 4 bytes.
    assert reading.facts["gathered_bytes"] == 6 * 4 * 32 * 4
    assert len(reading.plain_seconds) == 1
    with pytest.raises(UserError, match=r"2 ranks, ddp: .*no_such"):
        run_case(replace(case, recipe=str(recipe.parent / "no_such.yaml")))


def test_the_hook_ends_training_after_the_measured_steps(recipe: Path) -> None:
    case = cases_of(recipe, groups=(), steps=1)[0]
    hook = Hook(replace(case, saves=False), read_recipe(recipe, case.changes), CPU)
    batches, drawn = iter(hook), []
    for _ in range(training_process.WARM_UP_STEPS + 1):
        drawn += next(batches).seeds.tolist()
    with pytest.raises(training_process.Finished):
        next(batches)
    assert drawn == list(range(4 * (training_process.WARM_UP_STEPS + 1)))


def test_a_teacher_only_looks(recipe: Path) -> None:
    plain = read_recipe(recipe, ["audio.mean=0", "audio.std=1"])
    forward = inspect_recipe(plain).multiply_adds["forward"]
    with_teacher = read_recipe(recipe, ["audio.mean=0", "audio.std=1", "task.teacher={run: somewhere}"])
    costs = inspect_recipe(with_teacher).multiply_adds
    assert operations_per_clip(plain) == 6 * forward
    assert operations_per_clip(with_teacher) == 6 * costs["forward"] + 2 * costs["teacher"]
